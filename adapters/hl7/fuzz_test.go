package hl7

import (
	"bufio"
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
)

// FuzzMessage writes messages with any values, and reads them again with the reader of
// answers: each value comes back, at its place, and nothing else has changed.
func FuzzMessage(f *testing.F) {
	for _, value := range []string{"", "a", `|^~\&`, `\F\`, "a\r\nb", "\x0b", "\x1c\r", "MSH|^~\\&|", "\t", "é\u0301\u2028", `""`, "\xff", "{key}"} {
		f.Add(value, "b")
		f.Add("b", value)
	}
	a, err := New(Config{
		Address: "clinic:1", Messages: map[string]Message{"*": {Event: "S12"}},
		Segments: "SCH|{key}|x^{fields.a?}&{fields.b?}^z\nNTE|{fields.a?}\nNTE|{fields.b?}~r",
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		body, err := json.Marshal(map[string]string{"a": one, "b": two})
		if err != nil {
			t.Fatal(err)
		}
		msg := hearing("created", "e-1", "")
		msg.Body = body
		p, err := a.Preview(msg)
		var sent struct{ A, B string }
		if json.Unmarshal(body, &sent) == nil { // what JSON makes of bad UTF-8
			one, two = sent.A, sent.B
		}
		if bad := strings.ContainsFunc(one+two, func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune("\r\n\t", r) }); bad != (err != nil) {
			t.Fatalf("%q, %q: %v", one, two, err)
		}
		if err != nil {
			return
		}
		framed := append(append([]byte{startBlock}, p.Body...), endBlock...)
		read, err := readBlock(bufio.NewReader(bytes.NewReader(framed)))
		if err != nil || !bytes.Equal(read, p.Body) || !utf8.Valid(read) {
			t.Fatalf("%q: %v", read, err)
		}
		lines := strings.Split(strings.TrimSuffix(string(read), segmentEnd), segmentEnd)
		want := 2
		for _, value := range []string{one, two} {
			if value != "" {
				want++
			}
		}
		if len(lines) != want || !strings.HasPrefix(lines[1], "SCH|H-2027-7") {
			t.Fatalf("%q", lines)
		}
		if one != "" {
			if got, want := unescaped(strings.Split(lines[2], "|")[1]), broken(one); got != want {
				t.Errorf("%q came as %q", want, got)
			}
		}
		if two != "" {
			pieces := strings.Split(strings.Split(lines[len(lines)-1], "|")[1], "~")
			if got, want := unescaped(pieces[0]), broken(two); got != want || len(pieces) != 2 {
				t.Errorf("%q came as %q", want, got)
			}
		}
	})
}

// broken is a value with all its line breaks in one form.
func broken(value string) string {
	return strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(value)
}

// unescaped reads one escaped text, by the table of the standard and not with the tables of
// the writer.
func unescaped(text string) string {
	var b strings.Builder
	for text != "" {
		before, rest, ok := strings.Cut(text, `\`)
		b.WriteString(before)
		if !ok {
			break
		}
		name, after, _ := strings.Cut(rest, `\`)
		b.WriteString(map[string]string{"F": "|", "S": "^", "T": "&", "R": "~", "E": `\`, ".br": "\n", "X09": "\t"}[name])
		text = after
	}
	return b.String()
}

// FuzzAnswer reads any bytes as an answer: no panic, and all texts can be stored.
func FuzzAnswer(f *testing.F) {
	for _, text := range []string{
		"", "MSH", "MSH|^~\\&", "MSH|^~\\&|\rMSA|AA|x", "MSH|||||||\rMSA||||||||", "MSH\x00\x00\x00\x00\x00\rMSA\x00AE", "MSH|^~\\&\rMSA|AE|x|a\x1b[1m\rERR|^^^&\rERR||^^~^^|^^|||||",
		"MSH|^~\\&\rMSA|AR|x\rERR||MSH^1^12|203\rZAP||F-1~F-2", "MSH\\\\\\\\\\\rMSA\\AA\\x",
	} {
		f.Add([]byte(text))
	}
	a, err := New(calendar("clinic:1"))
	if err != nil {
		f.Fatal(err)
	}
	s, err := a.next(hearing("created", "e-1", ""))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, block []byte) {
		answer, err := parseAck(block)
		if err != nil {
			return
		}
		receipt, err := a.judge(s, answer, hearing("created", "e-1", ""))
		if !storable(receipt.Code) || len(receipt.Code) > 64 {
			t.Errorf("code %q", receipt.Code)
		}
		if err != nil && (!storable(err.Error()) || len(err.Error()) > 512) {
			t.Errorf("error %q", err)
		}
		if err == nil && (receipt.Ref == nil || !storable(receipt.Ref.ExternalID) || len(receipt.Ref.ExternalID) > adapters.MaxRef) {
			t.Errorf("reference %+v", receipt.Ref)
		}
	})
}

func storable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}

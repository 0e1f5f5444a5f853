package console

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"unicode"
)

type delivery struct {
	Key   string `json:"key"`
	Error string `json:"error,omitempty"`
}

func (delivery) Header() []string  { return []string{"KEY", "ERROR"} }
func (d delivery) Cells() []string { return []string{d.Key, d.Error} }

func TestRowsInEveryFormat(t *testing.T) {
	for name, tc := range map[string]struct {
		format  Format
		batches [][]delivery
		want    string
	}{
		"table":                              {Table, [][]delivery{{{"H-1", "timeout"}, {"H-1000", ""}}}, "KEY     ERROR\nH-1     timeout\nH-1000  -\n"},
		"table in batches keeps its columns": {Table, [][]delivery{{{"H-1000", "a"}}, {{"H-1", "b"}}}, "KEY     ERROR\nH-1000  a\nH-1     b\n"},
		"empty table":                        {Table, nil, "KEY  ERROR\n"},
		"json":                               {JSON, [][]delivery{{{"H-1", "x"}}, {{"H-2", ""}}}, "[\n  {\"key\":\"H-1\",\"error\":\"x\"},\n  {\"key\":\"H-2\"}\n]\n"},
		"empty json":                         {JSON, nil, "[]\n"},
		"jsonl":                              {JSONL, [][]delivery{{{"H-1", "x"}, {"H-2", ""}}}, "{\"key\":\"H-1\",\"error\":\"x\"}\n{\"key\":\"H-2\"}\n"},
		"empty jsonl":                        {JSONL, nil, ""},
		"nothing moves the cursor":           {Table, [][]delivery{{{"H\x1b[2J", "a\nb\u202e"}}}, "KEY  ERROR\nH    a b\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			p := NewPrinter[delivery](&b, tc.format)
			for _, rows := range tc.batches {
				if err := p.Print(rows...); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if b.String() != tc.want {
				t.Errorf("got\n%q, want\n%q", b.String(), tc.want)
			}
		})
	}
}

// JSON does not harm a terminal, and a program reads the same values.
func TestJSONEscapesCharactersThatDoNotPrint(t *testing.T) {
	hostile := "H\x1b[2J\x7f\u0085\u009b2J\u00ad\u061c\u200b\u202e\u2066\u2028\ufeff\U000e0041 é 庭 \"\\ <&>"
	want := delivery{hostile, "a\nb"}
	texts := map[string]string{}
	for _, format := range []Format{JSON, JSONL} {
		var b strings.Builder
		if err := Rows(&b, format, want); err != nil {
			t.Fatal(err)
		}
		texts["rows as "+string(format)] = strings.Trim(strings.TrimSpace(b.String()), "[]")
		var o strings.Builder
		if err := Object(&o, format, want, nil); err != nil {
			t.Fatal(err)
		}
		texts["object as "+string(format)] = o.String()
	}
	for name, text := range texts {
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }); i >= 0 {
			t.Errorf("%s: %q has a character that does not print", name, text[i:])
		}
		var got delivery
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s: a program reads %q, %v; want %q", name, got, err, want)
		}
		if !strings.Contains(text, "é 庭") {
			t.Errorf("%s: %s escapes what prints", name, text)
		}
	}
}

func TestLongLinesAreCutOnATerminal(t *testing.T) {
	var b strings.Builder
	p := NewPrinter[delivery](&b, Table)
	p.columns = 10
	if err := p.Print(delivery{"H-1", "Gerichtstermin"}); err != nil {
		t.Fatal(err)
	}
	if want := "KEY  ERROR\nH-1  Geri…\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestObjectsInEveryFormat(t *testing.T) {
	text := func(w io.Writer) error { _, err := fmt.Fprintln(w, "as text"); return err }
	for format, want := range map[Format]string{
		Table: "as text\n",
		JSON:  "{\n  \"key\": \"H-1\"\n}\n",
		JSONL: "{\"key\":\"H-1\"}\n",
	} {
		var b strings.Builder
		if err := Object(&b, format, delivery{Key: "H-1"}, text); err != nil || b.String() != want {
			t.Errorf("%s: got %q, %v; want %q", format, b.String(), err, want)
		}
	}
}

func TestFormatsHaveNames(t *testing.T) {
	for _, name := range []string{"table", "json", "jsonl"} {
		if f, err := ParseFormat(name); err != nil || string(f) != name {
			t.Errorf("%s: got %q, %v", name, f, err)
		}
	}
	if f, err := ParseFormat("yaml"); err == nil {
		t.Errorf("yaml was taken as %q", f)
	}
}

func TestAFileIsNoTerminal(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if IsTerminal(f) || IsTerminal(&strings.Builder{}) {
		t.Error("taken for a terminal")
	}
	if err := ClearScreen(f); err != nil {
		t.Fatal(err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("cleared a file: %v, %v", info.Size(), err)
	}
}

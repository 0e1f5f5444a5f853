package relay

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzClean: what is recorded is a text that PostgreSQL takes and a terminal shows.
func FuzzClean(f *testing.F) {
	for _, s := range []string{"plain", "a\x00b", "a\xff\xfeb", "\x1b[31mred\x1b]0;x\x07", "a\r\n\tb", "\u202eabc\u200d", "\ufffd", strings.Repeat("é", 60), strings.Repeat("\xf0\x9f\x98\x80", 30)} {
		f.Add(s, uint16(100))
	}
	f.Fuzz(func(t *testing.T, s string, most uint16) {
		limit := max(int(most), 8)
		got := clean(s, limit)
		if len(got) > limit || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }) {
			t.Errorf("%q came out as %q", s, got)
		}
		if again := clean(got, limit); again != got {
			t.Errorf("%q came out as %q, and that as %q", s, got, again)
		}
	})
}

// FuzzRedact: no word of the payload comes out of an error that is recorded.
func FuzzRedact(f *testing.F) {
	for _, seed := range []struct{ text, payload string }{
		{"person Zebulon", `{"name":"Zebulon"}`},
		{"%zz", `{"a":[{"b":1}]}`},
		{"no ZEBULON%20quixote, 123456789", `{"a":["Zebulon Quixote",{"n":123456789}]}`},
		{"Zebu\u200dlon", `{"name":"Zebulon"}`},
		{"Zebu%00lon", `{"name":"Zebulon"}`},
		{"12\x0034", `{"n":1234}`},
		{"straße STRASSE ǅ", `["Straße","ǆ"]`},
	} {
		f.Add(seed.text, []byte(seed.payload))
	}
	f.Fuzz(func(t *testing.T, text string, payload []byte) {
		recorded := clean(redact(text, payload), maxError)
		if strings.HasSuffix(recorded, "…") {
			return // what is cut may look like another word
		}
		words, digits := valuesOf(payload)
		for token := range tokens(recorded) {
			lower := strings.ToLower(token)
			_, named := words[lower]
			_, plain := plainWords[lower]
			if named && !plain || len(token) >= 4 && isNumber(token) && strings.Contains(digits, token) {
				t.Errorf("%q holds %q of %s", recorded, token, payload)
			}
		}
	})
}

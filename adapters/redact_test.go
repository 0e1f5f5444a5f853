package adapters

import (
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestRedactHidesATextThatRepeatsThePayload(t *testing.T) {
	payload := []byte(`{"person":{"name":"Zebulon Quixote","ssn":"123-45-6789"},"judge":"Li","room":"Courtroom 3A","title":"Müller hearing","n":20270042,"list":["Ahmed"]}`)
	for name, text := range map[string]string{
		"as it is":                "person Zebulon Quixote unknown",
		"other case":              "person zebulon QUIXOTE unknown",
		"part and order":          "QUIXOTE, already has a hearing",
		"URL escaped":             "no Zebulon%20Quixote here",
		"plus for a blank":        "no Zebulon+Quixote here",
		"short":                   "judge Li unknown",
		"number in another form":  "ssn 123456789",
		"part of a number":        "ssn ends in 6789",
		"number value":            "case 20270042",
		"letters beyond ASCII":    "müller is busy",
		"in a list":               "ahmed",
		"split by what is unseen": "Zebu\u200dlon Qui%00xote",
		"broken escapes":          "100% zebulon",
		"base64":                  "basic WmVidWxvbiBRdWl4b3Rl",
	} {
		t.Run(name, func(t *testing.T) {
			if got := Redact(text, 1000, payload); got != Hidden {
				t.Errorf("got %q", got)
			}
		})
	}
	for _, text := range []string{"POST court.example.gov: HTTP 422: unknown courtroom", "person.name is missing", "Courtroom 3A is busy"} {
		if got := Redact(text, 1000, payload); got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	}
}

func TestTextsOfAPayload(t *testing.T) {
	want := []string{"1", "3A", "Jane Doe", "x", "y"}
	if got := slices.Sorted(slices.Values(texts([]byte(`{"Room":{"3A":1,"roomNumber":"x","Jane Doe":["y"]}}`)))); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// FuzzRedact: a text that is shown has no secret and no word of the payload.
func FuzzRedact(f *testing.F) {
	for _, seed := range []struct{ text, payload, secret string }{
		{"person Zebulon", `{"name":"Zebulon"}`, "tok-1"},
		{"%zz", `{"a":[{"b":1}]}`, "%zz"},
		{"no ZEBULON%20quixote, 123456789", `{"a":["Zebulon Quixote",{"n":123456789}]}`, "zebulon quixote"},
		{"Zebu\u200dlon", `{"name":"Zebulon"}`, ""},
		{"Zebu%00lon", `{"name":"Zebulon"}`, ""},
		{"12\x0034", `{"n":1234}`, ""},
		{"straße STRASSE ǅ", `["Straße","ǆ"]`, "STRASSE"},
		{"a b  c d", "", "a\tb c d"},
	} {
		f.Add(seed.text, []byte(seed.payload), seed.secret)
	}
	f.Fuzz(func(t *testing.T, text string, payload []byte, secret string) {
		const limit = 1000
		got := Redact(text, limit, payload, secret)
		if len(got) > limit || !safe(got) {
			t.Errorf("%q is not safe", got)
		}
		if got == Hidden || strings.HasSuffix(got, "…") {
			return // what is cut may look like another word
		}
		if hidden := fold(secret, maxValue); len(hidden) >= minHidden && strings.Contains(got, hidden) {
			t.Errorf("%q contains %q", got, hidden)
		}
		for _, value := range texts(payload) {
			if !utf8.ValidString(value) {
				t.Errorf("%q is to be hidden, and no text", value)
			}
		}
		if hasWord(got, slices.DeleteFunc(texts(payload), plain)) {
			t.Errorf("%q holds words of %s", got, payload)
		}
	})
}

func TestClean(t *testing.T) {
	for name, tc := range map[string]struct {
		text  string
		limit int
		want  string
	}{
		"plain":            {"Hearing 7: Müller", 100, "Hearing 7: Müller"},
		"NUL":              {"a\x00b", 100, "ab"},
		"invalid UTF-8":    {"a\xff\xfeb", 100, "ab"},
		"colour":           {"\x1b[1;31mred\x1b[0m", 100, "red"},
		"window title":     {"\x1b]0;owned\x07text", 100, "text"},
		"lone escape":      {"a\x1bb", 100, "ab"},
		"C1 control":       {"a\u009b31mb", 100, "a31mb"},
		"right to left":    {"a\u202eb", 100, "ab"},
		"lines":            {" a\r\n\tb\u2028c ", 100, " a   b c "},
		"cut at character": {"ééééé", 8, "éé…"},
		"fits exactly":     {"abcde", 5, "abcde"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Clean(tc.text, tc.limit); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// FuzzClean: a cleaned text is bounded and one line, and a second cleaning changes
// nothing.
func FuzzClean(f *testing.F) {
	for _, s := range []string{"plain", "a\x00b", "a\xff\xfeb", "\x1b[1;31mred\x1b[0m", "\x1b]0;owned\x07text", "\x1b\x1b[mc", "a\u009b31mb", "a\u202eb", " a\r\n\tb\u2028c ", "ééééé", "\x1b]\x1b]", "\u0085"} {
		f.Add(s, uint16(8))
	}
	f.Fuzz(func(t *testing.T, s string, most uint16) {
		limit := max(int(most), 8)
		got := Clean(s, limit)
		if len(got) > limit || !safe(got) {
			t.Errorf("%q came out as %q", s, got)
		}
		if again := Clean(got, limit); again != got {
			t.Errorf("%q came out as %q, and that as %q", s, got, again)
		}
	})
}

func safe(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.IsSpace(r) && r != ' '
	})
}

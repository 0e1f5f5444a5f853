package mapping_test

import (
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

func TestScopeOfAnEvent(t *testing.T) {
	for name, tc := range map[string]struct{ per, payload, want, err string }{
		"no expression":         {``, `{}`, "", ""},
		"a field":               {`event.court`, `{"court":"NY-07"}`, "NY-07", ""},
		"a missing field":       {`event.court`, `{}`, "", ""},
		"null":                  {`event.court`, `{"court":null}`, "", ""},
		"computed":              {`key + "/" + string(event.n)`, `{"n":3}`, "H-1/3", ""},
		"200 characters":        {`event.c`, `{"c":"` + strings.Repeat("ä", 200) + `"}`, strings.Repeat("ä", 200), ""},
		"201 characters":        {`event.c`, `{"c":"` + strings.Repeat("ä", 201) + `"}`, "", "field limits.per: the scope is longer than 200 characters"},
		"a control character":   {`event.c`, `{"c":"a\u0085"}`, "", "field limits.per: the scope has a control character"},
		"a number":              {`event.c`, `{"c":7}`, "", "field limits.per: the scope is a number for this event, not a text: write string(…)"},
		"an object":             {`event.c`, `{"c":{}}`, "", "field limits.per: the scope is an object"},
		"a member of something": {`event.a.b`, `{}`, "", "field limits.per: reads a member of a value that is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := mapping.CompileScope(tc.per)
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.Of(outbox.Event{Type: "t", Key: "H-1", Payload: []byte(tc.payload)}, nil)
			if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q, %v; want %q, %q", got, err, tc.want, tc.err)
			}
		})
	}
}

func TestScopesThatCannotBe(t *testing.T) {
	for src, want := range map[string]string{
		`1 + 1`:        "the scope is a number, and must be a text: write string(…)",
		`key == "a"`:   "the scope is a boolean, and must be a text",
		`cuort`:        "unknown name cuort",
		`event.`:       "does not compile",
		`now().String`: "now",
	} {
		if _, err := mapping.CompileScope(src); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", src, err, want)
		}
	}
}

package outbox

import (
	"encoding/json"
	"testing"
)

// FuzzReadHeaders checks that each member of any headers column gets a text, and that a string
// does not change.
func FuzzReadHeaders(f *testing.F) {
	for _, raw := range []string{
		``, `{}`, `null`, `[]`, `"x"`, `{"a"`, `{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}`,
		`{"n":1.50,"o":{"a":[1]},"t":true,"z":null,"":"\u0000\ud800"}`, `{"a":"x","a":2}`,
	} {
		f.Add([]byte(raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got := texts(raw)
		var want map[string]any
		if json.Unmarshal(raw, &want) != nil {
			want = nil
		}
		if len(got) != len(want) {
			t.Errorf("%s was read as %v", raw, got)
		}
		for name, value := range want {
			text, ok := got[name]
			if s, isText := value.(string); !ok || isText && s != text || !isText && text != "" && !json.Valid([]byte(text)) {
				t.Errorf("%s was read as %v", raw, got)
			}
		}
	})
}

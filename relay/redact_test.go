package relay

import "testing"

func TestRedactMasksWhatThePayloadHolds(t *testing.T) {
	payload := []byte(`{"person":{"name":"Zebulon Quixote","ssn":"123-45-6789"},"judge":"Li","room":"Courtroom 3A","title":"Müller hearing","n":20270042,"list":["Ahmed"]}`)
	tests := map[string]struct{ text, want string }{
		"as it is":                {"person Zebulon Quixote unknown", "person *** *** unknown"},
		"other case":              {"person zebulon QUIXOTE unknown", "person *** *** unknown"},
		"part and order":          {"QUIXOTE, already has a hearing", "***, already has a hearing"},
		"URL escaped":             {"no Zebulon%20Quixote here", "no *** *** here"},
		"plus for a blank":        {"no Zebulon+Quixote here", "no ***+*** here"},
		"short":                   {"judge Li unknown", "judge *** unknown"},
		"number in another form":  {"ssn 123456789 or 6789", "ssn *** or ***"},
		"number value":            {"case 20270042", "case ***"},
		"letters beyond ASCII":    {"müller is busy", "*** is busy"},
		"in a list":               {"ahmed", "***"},
		"plain words stay":        {"POST court.example.gov: HTTP 422: unknown courtroom", "POST court.example.gov: HTTP 422: unknown courtroom"},
		"names of fields stay":    {"person.name is missing", "person.name is missing"},
		"split by what is unseen": {"Zebu\u200dlon Qui%00xote", "*** ***"},
		"broken escapes":          {"100% zebulon", "100% ***"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := redact(test.text, payload); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

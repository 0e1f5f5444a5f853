package rest_test

import (
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
)

func TestDestinationIsTheHostThatDataNames(t *testing.T) {
	a, err := rest.New(rest.Config{
		URL: "https://{fields.court}.example.gov:8443/hearings", Allow: adapters.Allow{Hosts: []string{"*.example.gov"}},
		Routes: map[string]rest.Route{"data:*": {Request: rest.Request{URL: "https://data.example.gov/"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	destination := a.Destination()
	for name, tc := range map[string]struct{ eventType, body, want string }{
		"a host":             {"scheduling:created", `{"court":"NY07"}`, "ny07.example.gov:8443"},
		"another":            {"scheduling:created", `{"court":"ny08"}`, "ny08.example.gov:8443"},
		"a written host":     {"data:updated", `{"court":"ny07"}`, ""},
		"no field":           {"scheduling:created", `{}`, ""},
		"a host not allowed": {"scheduling:created", `{"court":"evil.example/"}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := destination(adapters.Message{Type: tc.eventType, Key: "H-1", Body: []byte(tc.body)}); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
	written, err := rest.New(rest.Config{URL: "https://court.example.gov/{key}"})
	if err != nil {
		t.Fatal(err)
	}
	if written.Destination() != nil {
		t.Error("an adapter with one host keeps destinations apart")
	}
}

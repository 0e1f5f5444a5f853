package rest_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/adaptertest"
	"github.com/hms-mkt/lockstep/adapters/rest"
)

func TestConformance(t *testing.T) {
	adaptertest.Run(t, adaptertest.Harness{
		New: func(t *testing.T, s adaptertest.Setup) adapters.Adapter {
			return newAdapter(t, rest.Config{
				URL: s.URL, Timeout: s.Timeout, ExternalID: rest.Source{Path: "/id"},
				List: &rest.List{URL: s.URL, Items: "/all", Key: "/key", Fields: map[string]string{"startsAt": "/startsAt", "hearingId": "/hearingId"}},
				Read: &rest.Read{URL: s.URL, Equal: []rest.Match{{Path: "/startsAt", Field: "startsAt"}}},
				Auth: adapters.Credentials{Kind: adapters.Bearer, Token: s.Secret},
			})
		},
		Accept: func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"id":"ext-7"}`)
		},
		Refuse: func(w http.ResponseWriter, status int, reason string) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(map[string]any{"title": reason, "status": status, "detail": reason})
		},
		Listed: func(w http.ResponseWriter, _ *http.Request, held adapters.Message) {
			record, err := held.Fields()
			if err != nil {
				t.Error(err)
			}
			record["key"] = held.Key
			_ = json.NewEncoder(w).Encode(map[string]any{"all": []any{record}})
		},
		Holds: func(w http.ResponseWriter, _ *http.Request, held *adapters.Message) {
			if held == nil {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusNotFound)
				_, _ = io.WriteString(w, `{"title":"no such hearing"}`)
				return
			}
			_, _ = w.Write(held.Body)
		},
		Key: func(r *http.Request, _ []byte) string { return strings.Trim(r.Header.Get("Idempotency-Key"), `"`) },
	})
}

func newAdapter(t *testing.T, c rest.Config) *rest.Adapter {
	t.Helper()
	a, err := rest.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

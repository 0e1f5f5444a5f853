package webhook_test

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/adaptertest"
	"github.com/hms-mkt/lockstep/adapters/webhook"
)

func TestConformance(t *testing.T) {
	for _, payload := range []webhook.Payload{webhook.Standard, webhook.CloudEventsBinary} {
		t.Run(string(payload), func(t *testing.T) {
			adaptertest.Run(t, adaptertest.Harness{
				New: func(t *testing.T, s adaptertest.Setup) adapters.Adapter {
					c := webhook.Config{
						URL: s.URL, Timeout: s.Timeout, Payload: payload, Secrets: []adapters.Secret{secret, oldSecret},
						Auth: adapters.Credentials{Kind: adapters.Bearer, Token: s.Secret},
					}
					if payload == webhook.CloudEventsBinary {
						c.Source = "/agency"
					}
					return newAdapter(t, c)
				},
				Accept: func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusNoContent) },
				Refuse: func(w http.ResponseWriter, status int, reason string) {
					w.Header().Set("Content-Type", "application/problem+json")
					w.WriteHeader(status)
					_ = json.NewEncoder(w).Encode(map[string]any{"title": reason, "status": status})
				},
				Key: func(r *http.Request, _ []byte) string { return r.Header.Get("Webhook-Id") },
				Classes: map[int]adapters.Class{
					410: adapters.ClassAuth, 502: adapters.ClassThrottled, 504: adapters.ClassThrottled,
				},
			})
		})
	}
}

func newAdapter(t *testing.T, c webhook.Config) *webhook.Adapter {
	t.Helper()
	a, err := webhook.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

package config_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/config"
)

// A receiver repeats a key that the body template has from the environment.
func TestNoErrorRepeatsASecretOfABody(t *testing.T) {
	const key = "k9-4711-quite-hidden"
	court := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !strings.Contains(string(body), key) {
			t.Errorf("got %s", body)
		}
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = fmt.Fprintf(w, `{"title":"invalid key %s"}`, key)
	}))
	t.Cleanup(court.Close)
	file, err := config.Parse("c.yaml", []byte(`
database: {url: "postgres://localhost/a"}
syncs:
  - name: CourtSync
    events: [a, b]
    adapter:
      kind: rest
      url: `+court.URL+`
      body: {kind: template, content_type: text/xml, template: "<a key='${KEY}'/>"}
      routes:
        b:
          body: {kind: template, content_type: text/xml, template: "<b><key>${KEY}</key></b>"}
    mapping: {hearingId: case_reference}
`), func(name string) (string, bool) { return key, name == "KEY" })
	if err != nil {
		t.Fatal(err)
	}
	for _, eventType := range []string{"a", "b"} {
		_, err := file.Syncs[0].Adapter.Deliver(t.Context(), adapters.Message{ID: "e", IdempotencyKey: "e", Type: eventType, Key: "H-1", Body: []byte(`{}`)})
		if err == nil || strings.Contains(err.Error(), key) {
			t.Errorf("event %s: %v", eventType, err)
		}
	}
}

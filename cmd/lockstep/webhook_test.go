package main

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const webhookYAML = `
database: {url: "${DATABASE_URL}"}
relay: {poll: 5ms, name: relay-1}
listen: 127.0.0.1:0
syncs:
  - name: ClinicSync
    events: ["scheduling:*"]
    adapter:
      kind: webhook
      url: "%s/hooks/hearings"
      secrets: ["${HOOK_SECRET}", whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD]
      types: {"scheduling:created": hearing.booked}
    mapping: {hearingId: case_reference}
    retry: {initial: 10ms, max: 50ms}
`

// A receiver that answers 410 gets only probes, and no delivery fails because of
// it. When it is back, it gets everything that waited.
func TestAWebhookThatIsGoneHoldsItsSync(t *testing.T) {
	w := newWorld(t)
	const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	w.env["HOOK_SECRET"] = secret
	w.configure(fmt.Sprintf(webhookYAML, w.court.URL))
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu   sync.Mutex
		ids  []string
		gone = true
	)
	w.court.answers(func(r *http.Request, body string) int {
		mu.Lock()
		defer mu.Unlock()
		if err := verifier.Verify([]byte(body), r.Header); err != nil {
			t.Error(err)
		}
		ids = append(ids, r.Header.Get("webhook-id"))
		if gone {
			return http.StatusGone
		}
		return http.StatusNoContent
	})
	event := w.emit("H-1", `{"hearingId":"H-1"}`)

	r := w.start("run")
	w.eventually(`SELECT EXISTS (SELECT FROM outbox.sync WHERE hold_kind = 'auth' AND hold_reason LIKE '%HTTP 410%')`)
	if failed := ask[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'failed'`); failed != 0 {
		t.Errorf("%d deliveries failed", failed)
	}
	mu.Lock()
	gone = false
	mu.Unlock()
	w.eventually(nothingOpen)
	r.stop(t, 0)

	mu.Lock()
	defer mu.Unlock()
	if len(ids) < 2 || slices.ContainsFunc(ids, func(id string) bool { return id != event }) {
		t.Errorf("ids %v, want that of event %s on every attempt", ids, event)
	}
	w.court.mu.Lock()
	defer w.court.mu.Unlock()
	sent := w.court.bodies[len(w.court.bodies)-1]
	if !ask[bool](w, `SELECT request_sha256 = encode(sha256(convert_to($1, 'UTF8')), 'hex') FROM outbox.delivery_log WHERE outcome = 'delivered'`, sent) {
		t.Errorf("the log has another digest than that of %s", sent)
	}
}

package webhook_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/webhook"
)

// A clinic verifies what the agency sends with the reference library of
// Standard Webhooks.
func Example() {
	const shared = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	verifier, err := standardwebhooks.NewWebhook(shared)
	if err != nil {
		fmt.Println(err)
		return
	}
	clinic := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := verifier.Verify(body, r.Header); err != nil {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Println(r.Header.Get("webhook-id"), string(body))
		w.WriteHeader(http.StatusNoContent)
	}))
	defer clinic.Close()

	hearings, err := webhook.New(webhook.Config{
		URL:     clinic.URL + "/hooks/hearings",
		Secrets: []adapters.Secret{shared},
		Types:   map[string]string{"scheduling:updated": "hearing.rescheduled"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = hearings.Close() }()

	receipt, err := hearings.Deliver(context.Background(), adapters.Message{
		ID: "e-1", IdempotencyKey: "e-1", Type: "scheduling:updated", Key: "hearing-7",
		OccurredAt: time.Date(2027, 3, 1, 14, 30, 0, 0, time.UTC), Body: []byte(`{"hearingId":"7","room":"3A"}`),
	})
	fmt.Println(receipt.Code, err)
	// Output:
	// e-1 {"type":"hearing.rescheduled","timestamp":"2027-03-01T14:30:00Z","data":{"hearingId":"7","room":"3A"}}
	// HTTP 204 <nil>
}

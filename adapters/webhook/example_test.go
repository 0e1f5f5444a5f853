package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/webhook"
)

func verify(key []byte, h http.Header, body []byte) bool {
	id, at := h.Get("webhook-id"), h.Get("webhook-timestamp")
	sent, err := strconv.ParseInt(at, 10, 64)
	if err != nil || time.Since(time.Unix(sent, 0)).Abs() > 5*time.Minute {
		return false
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
	want := []byte("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return slices.ContainsFunc(strings.Fields(h.Get("webhook-signature")), func(s string) bool { return hmac.Equal([]byte(s), want) })
}

// A clinic verifies what the agency sends it.
func Example() {
	key := []byte("31 random bytes, known to both.")
	clinic := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !verify(key, r.Header, body) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Println(r.Header.Get("webhook-id"), string(body))
		w.WriteHeader(http.StatusNoContent)
	}))
	defer clinic.Close()

	hearings, err := webhook.New(webhook.Config{
		URL:     clinic.URL + "/hooks/hearings",
		Secrets: []adapters.Secret{adapters.Secret("whsec_" + base64.StdEncoding.EncodeToString(key))},
		Types:   map[string]string{"scheduling:updated": "hearing.rescheduled"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = hearings.Close() }()

	msg := adapters.Message{
		ID: "e-1", IdempotencyKey: "e-1", Type: "scheduling:updated", Key: "hearing-7",
		OccurredAt: time.Date(2027, 3, 1, 14, 30, 0, 0, time.UTC), Body: []byte(`{"hearingId":"7","room":"3A"}`),
	}
	receipt, err := hearings.Deliver(context.Background(), msg)
	fmt.Println(receipt.Code, err)

	key = []byte("another key, which nobody knows.")
	receipt, err = hearings.Deliver(context.Background(), msg)
	fmt.Println(receipt.Code, adapters.ClassOf(err))
	// Output:
	// e-1 {"type":"hearing.rescheduled","timestamp":"2027-03-01T14:30:00Z","data":{"hearingId":"7","room":"3A"}}
	// HTTP 204 <nil>
	// HTTP 401 auth
}

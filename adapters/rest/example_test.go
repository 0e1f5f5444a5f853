package rest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
)

// A hearing is created with POST; what the court answers addresses its
// cancellation.
func Example() {
	court := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Println(r.Method, r.URL.Path, r.Header.Get("Idempotency-Key"), string(body))
		if r.Method == http.MethodPost {
			w.Header().Set("ETag", `"v1"`)
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"id": 4711}`)
			return
		}
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, `{"title": "Hearing has begun", "type": "https://court.example/problems/begun"}`)
	}))
	defer court.Close()

	calendar, err := rest.New(rest.Config{
		URL:        court.URL + "/api/calendar",
		Auth:       adapters.Credentials{Kind: adapters.Bearer, Token: "from the environment"},
		ExternalID: rest.Source{Path: "/id"},
		Routes: map[string]rest.Route{
			"scheduling:cancelled": {Request: rest.Request{Method: "DELETE", URL: court.URL + "/api/calendar/{ref.external_id}"}},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = calendar.Close() }()

	receipt, err := calendar.Deliver(context.Background(), adapters.Message{
		ID: "e-1", IdempotencyKey: "e-1", Type: "scheduling:created", Key: "hearing-7",
		Body: []byte(`{"hearingId":"7"}`),
	})
	fmt.Println(receipt.Code, receipt.Ref.ExternalID, receipt.Ref.ETag, err)

	receipt, err = calendar.Deliver(context.Background(), adapters.Message{
		ID: "e-2", IdempotencyKey: "e-2", Type: "scheduling:cancelled", Key: "hearing-7",
		Body: []byte(`{"cancellationReasonCode":"WD"}`), Ref: *receipt.Ref,
	})
	fmt.Println(receipt.Code, adapters.ClassOf(err))
	// Output:
	// POST /api/calendar "e-1" {"hearingId":"7"}
	// HTTP 201 4711 "v1" <nil>
	// DELETE /api/calendar/4711 "e-2" {"cancellationReasonCode":"WD"}
	// HTTP 409 conflict
}

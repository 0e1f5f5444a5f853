package relay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/adapters/rest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// A service embeds the relay. The relay runs in a goroutine of the service, until its
// context ends.
func Example() {
	database, drop := pgtest.ForExample() // a migrated database
	defer drop()
	received := make(chan string)
	court := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusCreated)
		received <- string(body)
	}))
	defer court.Close()

	adapter, err := rest.New(rest.Config{URL: court.URL})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	store, err := outbox.Open(ctx, database, outbox.Options{Name: "agency-1"})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	r, err := relay.New(store, relay.Config{
		Logger: slog.New(slog.DiscardHandler),
		Syncs: []relay.Sync{{
			Name:    "CourtCalendarSync",
			Events:  []string{"scheduling:updated"},
			Adapter: adapter,
			Mapping: relay.Mapping{Fields: []relay.Field{
				{From: "hearingId", To: "case_reference"},
				{From: "scheduledAt", To: "start_time"},
				{From: "location", To: "courtroom"},
			}},
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()

	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		log.Fatal(err)
	}
	payload, _ := json.Marshal(map[string]any{"hearingId": "H-1", "scheduledAt": "2027-03-02T09:30:00-05:00", "location": "3A"})
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		return outbox.Append(ctx, tx, outbox.Event{Type: "scheduling:updated", Key: "H-1", Payload: payload})
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-received)
	_ = conn.Close(ctx)
	stop()
	fmt.Println("stopped:", <-done)
	// Output:
	// {"case_reference":"H-1","start_time":"2027-03-02T09:30:00-05:00","courtroom":"3A"}
	// stopped: <nil>
}

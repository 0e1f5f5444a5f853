package main

import (
	"net/http"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/waiting"
)

// idleTransactionTimeout is the one that a relay's sessions have.
const idleTransactionTimeout = 10 * time.Second

// While a court takes its time, no session of the relay keeps a transaction open
// that began before the request did.
func TestNoTransactionIsOpenWhileTheCourtIsAsked(t *testing.T) {
	w := newWorld(t)
	asked, look := make(chan *http.Request), make(chan struct{})
	w.court.answers(func(r *http.Request, _ string) int {
		select {
		case asked <- r:
		case <-r.Context().Done():
		}
		select {
		case <-look:
		case <-r.Context().Done():
		}
		return http.StatusCreated
	})
	w.emit("H-1", `{"hearingId": "H-1"}`)
	relay := w.start("run")
	request := <-asked
	began := ask[string](w, `SELECT clock_timestamp()::text`)
	// The relay keeps polling, so its sessions are alive.
	w.eventually(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'relay-1' AND query_start > '` + began + `')`)
	// A short statement of another loop may be running at this moment. It ends long
	// before the database would end an idle transaction.
	waiting.For(t, idleTransactionTimeout/2, "no transaction is open that is older than the request", func() bool {
		return ask[bool](w, `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'relay-1' AND xact_start < $1::timestamptz)`, began)
	})
	if err := request.Context().Err(); err != nil {
		t.Errorf("transactions were open until the relay gave the request up: %v", err)
	}
	if state := ask[string](w, `SELECT state FROM outbox.open_delivery`); state != "sending" {
		t.Errorf("the delivery is %s, not being sent", state)
	}
	close(look)
	w.eventually(nothingOpen)
	relay.stop(t, 0)
}

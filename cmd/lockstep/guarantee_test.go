package main

import (
	"net/http"
	"testing"
)

// While a court takes its time, no session of the relay has a transaction open
// that began before the request did.
func TestNoTransactionIsOpenWhileTheCourtIsAsked(t *testing.T) {
	w := newWorld(t)
	asked, look := make(chan struct{}), make(chan struct{})
	w.court.answers(func(*http.Request, string) int {
		close(asked)
		<-look
		return http.StatusCreated
	})
	w.emit("H-1", `{"hearingId": "H-1"}`)
	relay := w.start("run")
	<-asked
	began := ask[string](w, `SELECT clock_timestamp()::text`)
	// The relay goes on polling, so its sessions are alive; none of them is older than the request.
	w.eventually(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'relay-1' AND query_start > '` + began + `')`)
	open := ask[int](w, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'relay-1' AND xact_start < $1::timestamptz`, began)
	if open != 0 {
		t.Errorf("%d transactions are open while the court is asked", open)
	}
	if state := ask[string](w, `SELECT state FROM outbox.delivery`); state != "sending" {
		t.Errorf("the delivery is %s, not being sent", state)
	}
	close(look)
	w.eventually(nothingOpen)
	relay.stop(t, 0)
}

package relay_test

import (
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// Two relays with the same name are two relays. Each removes its row when it stops.
func TestRelaysShowThatTheyRun(t *testing.T) {
	w := newWorld(t)
	config := sync1(newCourt(accepts))
	config.Version = "v1.4.0"
	const running = `SELECT count(*)::int FROM outbox.relay WHERE running AND name = 'relay' AND version = 'v1.4.0' AND syncs = '{CourtCalendarSync}' AND host <> '' AND started_at <= seen_at`
	first, second := w.start("relay", config), w.start("relay", config)
	w.eventually("both are there", func() bool { return query[int](w, running) == 2 })
	if err := first.stop(); err != nil {
		t.Error(err)
	}
	if n := query[int](w, `SELECT count(*)::int FROM outbox.relay`); n != 1 {
		t.Errorf("%d relays after the first has stopped, want 1", n)
	}
	if err := second.stop(); err != nil {
		t.Error(err)
	}
	if n := query[int](w, `SELECT count(*)::int FROM outbox.relay`); n != 0 {
		t.Errorf("%d relays after both have stopped, want none", n)
	}
}

// A relay that died is forgotten after an hour. A beat of one that hung for longer brings it back,
// with the time of its start.
func TestARelayThatDiedIsForgotten(t *testing.T) {
	w := newWorld(t)
	store, err := outbox.Open(t.Context(), pgtest.AsRole(t, w.url, "outbox_relay"), outbox.Options{Name: "relay-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	h := outbox.NewHeartbeat("host", "", []string{"CourtCalendarSync"})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(store.Beat(t.Context(), h))
	must(store.Beat(t.Context(), h))
	if got := query[string](w, `SELECT concat_ws(' ', name, host, coalesce(version, '-'), running) FROM outbox.relay`); got != "relay-1 host - t" {
		t.Errorf("got %s", got)
	}
	w.exec(`UPDATE outbox.heartbeat SET seen_at = now() - interval '59 minutes'`)
	w.exec(`SELECT outbox.maintain()`)
	if got := query[string](w, `SELECT concat_ws(' ', name, running) FROM outbox.relay`); got != "relay-1 f" {
		t.Errorf("after 59 minutes: %s", got)
	}
	for _, since := range []string{`- interval '61 minutes'`, `+ interval '61 minutes'`} {
		w.exec(`UPDATE outbox.heartbeat SET seen_at = now() ` + since)
		w.exec(`SELECT outbox.maintain()`)
		if n := query[int](w, `SELECT count(*)::int FROM outbox.relay`); n != 0 {
			t.Errorf("%d relays after an hour, want none", n)
		}
		must(store.Beat(t.Context(), h))
	}
	if got := query[string](w, `SELECT concat_ws(' ', name, running, started_at <= seen_at) FROM outbox.relay`); got != "relay-1 t t" {
		t.Errorf("back again: %s", got)
	}
}

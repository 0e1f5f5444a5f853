package relay_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// Row-level security may hide events. Then nothing fails, and the reason is in the database and in the log.
func TestEventsThatAreHiddenFailNothing(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	w.start("relay-1", sync1(c))
	w.emit("H-1", map[string]any{"a": 1})
	w.drained()
	w.exec(`ALTER TABLE outbox.event ENABLE ROW LEVEL SECURITY`)
	w.emit("H-2", map[string]any{"a": 2})
	w.eventually("it waits", func() bool {
		return query[string](w, `SELECT coalesce(max(error), '') FROM outbox.delivery`) == "the event cannot be read: this login may not relay"
	})
	store, err := outbox.Open(t.Context(), pgtest.AsRole(t, w.url, "outbox_relay"), outbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	second, err := relay.New(store, sync1(c))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); !errors.Is(err, outbox.ErrPrivilege) || !strings.Contains(err.Error(), "row-level security may hide rows of outbox.event") {
		t.Errorf("a relay that starts says %v", err)
	}
	if failed := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'failed'`); failed != 0 {
		t.Errorf("%d deliveries failed", failed)
	}
	w.exec(`ALTER TABLE outbox.event DISABLE ROW LEVEL SECURITY`)
	w.exec(`UPDATE outbox.delivery SET due_at = clock_timestamp()`)
	w.exec(`UPDATE outbox.lane SET due_at = clock_timestamp() WHERE claim IS NULL`)
	w.drained()
	if got := c.got(); len(got) != 2 {
		t.Errorf("the court got %d, want 2", len(got))
	}
}

// A relay does not start while new events would get numbers that were used.
func TestRelayRefusesASequenceThatBeganAnew(t *testing.T) {
	w := newWorld(t)
	w.emit("H-1", map[string]any{"a": 1})
	w.exec(`ALTER TABLE outbox.event ALTER COLUMN seq RESTART`)
	r := w.start("relay-1", sync1(newCourt(accepts)))
	if err := <-r.done; !errors.Is(err, outbox.ErrNumbers) || !strings.Contains(err.Error(), "as the owner: SELECT setval('outbox.event_seq_seq', 1)") {
		t.Errorf("Run returned %v", err)
	} else {
		r.done <- err
	}
}

package relay_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// The filter leaves out an event. It is never sent, so a failed event before it stays failed.
func TestFilteredEventDoesNotSupersede(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if strings.Contains(string(m.Body), `"n":1`) {
			return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("no"))
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	w.start("relay-1", sync1(c, func(s *relay.Sync) { s.OnFailed, s.When = "supersede", `event.court == "NY-07"` }))
	first := w.emit("H-1", map[string]any{"n": 1, "court": "NY-07"})
	states := func() string {
		return query[string](w, `SELECT coalesce(string_agg(state, ' ' ORDER BY event_seq), '') FROM outbox.open_delivery`)
	}
	w.eventually("the first has failed", func() bool { return states() == "failed" })
	second := w.emit("H-1", map[string]any{"n": 2, "court": "NY-08"})
	w.eventually("the filtered one was looked at and waits behind it", func() bool {
		got := query[string](w, `SELECT outbox.why_not_delivered($1)`, second)
		return strings.Contains(got, "waits behind event "+first) && strings.Contains(got, "does not supersede")
	})
	if got := states(); got != "failed queued" {
		t.Errorf("states: %s, want failed queued", got)
	}
	w.emit("H-1", map[string]any{"n": 3, "court": "NY-07"})
	w.drained()
	got := query[string](w, `SELECT string_agg(outcome, ' ' ORDER BY id) FROM outbox.delivery_log`)
	if got != "failed superseded filtered delivered" {
		t.Errorf("log: %s", got)
	}
}

// An event for which the condition cannot be evaluated fails, which operators see.
func TestEventThatTheFilterCannotJudgeSupersedes(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("no"))
	})
	w.start("relay-1", sync1(c, func(s *relay.Sync) { s.OnFailed, s.When = "supersede", `event.court.name == "NY-07"` }))
	w.emit("H-1", map[string]any{"court": map[string]any{"name": "NY-07"}})
	w.eventually("the first has failed", func() bool { return query[int](w, `SELECT count(*) FROM outbox.failed`) == 1 })
	w.emit("H-1", map[string]any{"court": 7})
	w.eventually("the second has failed instead", func() bool {
		return query[string](w, `SELECT coalesce(string_agg(outcome || ' ' || error_class, ', ' ORDER BY id), '') FROM outbox.delivery_log`) ==
			"failed permanent, superseded permanent, failed mapping"
	})
}

// A sync is changed to take more types during a transaction of three hours, such as a backup. The
// sync does not stop.
func TestWiderPatternsDoNotStopARunningSync(t *testing.T) {
	for name, from := range map[string]string{"from then on": "", "with older events": "beginning"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := newCourt(accepts)
			w.start("relay-1", sync1(c))
			write := func(typ, key string) string {
				return query[string](w, `SELECT outbox.emit($1, $2, '{}')::text`, typ, key)
			}
			write("data:updated", "H-0")
			write("scheduling:updated", "H-0")
			w.eventually("delivered", func() bool { return c.count() == 1 })

			dump, err := w.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = dump.Rollback(t.Context()) }()
			if _, err := dump.Exec(t.Context(), `SELECT count(*) FROM outbox.event`); err != nil {
				t.Fatal(err)
			}
			store, err := outbox.Open(t.Context(), w.url, outbox.Options{Name: "apply"})
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			changed, err := store.Apply(t.Context(), outbox.Registration{
				Name: "CourtCalendarSync", Patterns: []string{"scheduling:*", "data:*"}, OnFailed: "block", From: from,
			})
			if err != nil || !changed {
				t.Fatalf("apply: %t, %v", changed, err)
			}
			added := write("data:updated", "H-1")
			behind := write("scheduling:updated", "H-1")
			other := write("scheduling:updated", "H-2")
			w.eventually("the sync sends the types that it had", func() bool {
				return slices.ContainsFunc(c.got(), func(m adapters.Message) bool { return m.ID == other })
			})
			w.eventually("the status names what is waited for", func() bool {
				return query[bool](w, `SELECT hold IS NULL AND backfill LIKE '%pid%' FROM outbox.status WHERE sync IS NOT NULL`)
			})
			for _, id := range []string{added, behind} {
				why := query[string](w, `SELECT outbox.why_not_delivered($1)`, id)
				if !strings.Contains(why, "its type was added to the sync") || !strings.Contains(why, "normal and usually short; the oldest: pid") {
					t.Errorf("why_not_delivered: %s", why)
				}
			}
			if got := c.count(); got != 2 {
				t.Errorf("%d delivered during the open transaction, want 2: %v", got, c.got())
			}
			if err := dump.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.drainedExceptUnmatched()
			var order []string
			for _, m := range c.got() {
				if m.Key == "H-1" {
					order = append(order, m.ID)
				}
			}
			if !slices.Equal(order, []string{added, behind}) {
				t.Errorf("the key's order: %v, want %v", order, []string{added, behind})
			}
			want := 4
			if from != "" {
				want = 5
			}
			if got := c.count(); got != want {
				t.Errorf("%d delivered, want %d", got, want)
			}
		})
	}
}

// drainedExceptUnmatched waits until all events that a sync takes are finished.
func (w *world) drainedExceptUnmatched() {
	w.t.Helper()
	w.eventually("every delivery finished", func() bool {
		return query[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery) AND NOT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NOT NULL)`)
	})
}

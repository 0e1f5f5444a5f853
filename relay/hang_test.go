package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

// quickCourt says that its attempts are short, so that a lease may be.
type quickCourt struct{ *court }

func (quickCourt) AttemptTimeout() time.Duration { return 200 * time.Millisecond }

// hangingCourt does not return from an attempt for a key that begins with
// "stuck" before leave is called, whatever its context says.
type hangingCourt struct {
	quickCourt
	leave func()
}

func newHangingCourt(t *testing.T) hangingCourt {
	t.Helper()
	left := make(chan struct{})
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if strings.HasPrefix(m.Key, "stuck") {
			<-left
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	h := hangingCourt{quickCourt{c}, sync.OnceFunc(func() { close(left) })}
	t.Cleanup(h.leave)
	return h
}

const hangingLease = 3 * time.Second

func hangingConfig(c hangingCourt, other adapters.Adapter, log *logBuffer) relay.Config {
	config := sync1(c, func(s *relay.Sync) { s.Concurrency = 4 })
	config.Syncs = append(config.Syncs, relay.Sync{Name: "Other", Events: []string{"scheduling:*"}, Adapter: other, From: "beginning"})
	config.Workers, config.Lease = 8, hangingLease
	config.Logger = slog.New(slog.NewTextHandler(log, nil))
	return config
}

// outcomes returns the log of the key that hangs.
func outcomes(w *world) string {
	return query[string](w, `SELECT coalesce(string_agg(outcome, ' ' ORDER BY id), '') FROM outbox.delivery_log WHERE sync = 'CourtCalendarSync' AND key = 'stuck'`)
}

// An adapter does not return from an attempt. The attempt ends with its lease and is logged as
// unknown, once. No other delivery waits, and the late answer changes nothing.
func TestAnAttemptThatDoesNotReturnIsAbandoned(t *testing.T) {
	w := newWorld(t)
	var log logBuffer
	c, other := newHangingCourt(t), quickCourt{newCourt(accepts)}
	r := w.start("relay-1", hangingConfig(c, other, &log))
	t.Cleanup(func() { c.leave(); _ = r.stop() })
	w.emit("stuck", map[string]any{"n": 1})
	w.eventually("abandoned", func() bool {
		w.extendLeases()
		return strings.HasPrefix(outcomes(w), "unknown")
	})
	if got := query[string](w, `SELECT error_class || ': ' || error FROM outbox.delivery_log WHERE outcome = 'unknown'`); !strings.HasPrefix(got, "unknown: the adapter has not returned") {
		t.Errorf("logged %q", got)
	}
	w.eventually("the next attempt waits", func() bool { return strings.HasPrefix(outcomes(w), "unknown retry") })
	for i := range 20 {
		w.emit(fmt.Sprint("H-", i), map[string]any{"n": 1})
	}
	w.eventually("the others are delivered", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`) == 41
	})
	if got := c.count(); got != 21 {
		t.Errorf("the court was called %d times, want 21: once for the attempt that hangs", got)
	}
	if got := query[int](w, `SELECT coalesce(max(crashes), 0) FROM outbox.lane`); got != 0 {
		t.Errorf("a relay was taken for dead %d times", got)
	}
	c.leave()
	w.drained()
	if got := outcomes(w); !strings.HasSuffix(got, "retry delivered") || strings.Count(got, "unknown") != 1 || strings.Count(got, "delivered") != 1 {
		t.Errorf("outcomes %q, want one unknown, retries and one delivered", got)
	}
	w.eventually("its return is logged", func() bool { return log.count("an abandoned call has returned") == 1 })
	if left := log.count("does not return and is abandoned"); left != 1 {
		t.Errorf("logged %d times that it was abandoned, want once", left)
	}
}

// When every worker of a sync hangs, it claims nothing more. Due deliveries wait at no cost, and
// other syncs have the shared workers.
func TestASyncWithAllWorkersHangingStallsOnlyItself(t *testing.T) {
	w := newWorld(t)
	var log logBuffer
	c, other := newHangingCourt(t), quickCourt{newCourt(accepts)}
	r := w.start("relay-1", hangingConfig(c, other, &log))
	t.Cleanup(func() { c.leave(); _ = r.stop() })
	left := func(n int) func() bool {
		return func() bool {
			w.extendLeases()
			return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'unknown'`) == n
		}
	}
	for i := range 3 {
		w.emit(fmt.Sprint("stuck-", i), map[string]any{"n": 1})
	}
	w.eventually("three abandoned", left(3))
	// The last worker hangs first, with work behind it.
	w.exec(`
INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', CASE n WHEN 1 THEN 'stuck-3' ELSE 'H-' || n % 10 END, '{}' FROM generate_series(1, 200) AS n`)
	w.eventually("all abandoned", left(4))
	w.within(2*time.Minute, "the other sync delivers", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE sync = 'Other' AND outcome = 'delivered'`) == 203
	})
	updates, since := -1, time.Now()
	w.eventually("what was claimed went back, and for longer than a lease nothing is claimed", func() bool {
		now := query[int](w, `SELECT n_tup_ins + n_tup_upd + (SELECT count(claim) FROM outbox.lane) FROM pg_stat_user_tables WHERE relid = 'outbox.lane'::regclass`)
		if now != updates {
			updates, since = now, time.Now()
		}
		return time.Since(since) > hangingLease+time.Second
	})
	if got := query[string](w, `SELECT format('crashes %s, attempts %s', max(crashes), max(attempts)) FROM outbox.open_delivery WHERE key LIKE 'H-%'`); got != "crashes 0, attempts 0" {
		t.Errorf("in the sync that hangs: %s; want none", got)
	}
	c.leave()
	w.drained()
}

// A condition would take hours for an event. The event fails, and the error names the condition. No
// other delivery waits for it, in its own sync or in another.
func TestAnExpressionThatWouldTakeHoursFailsItsDelivery(t *testing.T) {
	w := newWorld(t)
	c, other := newCourt(accepts), newCourt(accepts)
	config := sync1(c, func(s *relay.Sync) { s.When = `all(event.a ?? [], not (# in event.b))` })
	config.Syncs = append(config.Syncs, relay.Sync{Name: "Other", Events: []string{"scheduling:*"}, Adapter: other, From: "beginning"})
	w.start("relay-1", config)
	w.exec(`
INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', 'long-' || k, jsonb_build_object('a', a, 'b', b)
  FROM generate_series(1, 2) AS k, (SELECT jsonb_agg(n) AS a, jsonb_agg(100000 + n) AS b FROM generate_series(1, 40000) AS n) AS lists`)
	for i := range 20 {
		w.emit(fmt.Sprint("H-", i), map[string]any{"n": 1})
	}
	w.within(2*time.Minute, "those fail and nothing else is left", func() bool {
		return query[string](w, `SELECT coalesce(string_agg(DISTINCT format('%s %s %s', state, error_class, left(error, 60)), ', '), '') || count(*) FROM outbox.delivery`) ==
			"failed mapping field when: the expression takes too many steps for this eve2"
	})
	if got, others := c.count(), other.count(); got != 20 || others != 22 {
		t.Errorf("sent %d and %d, want 20 and 22", got, others)
	}
}

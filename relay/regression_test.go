package relay_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

// register registers the syncs of a configuration and stops again.
func (w *world) register(c relay.Config) {
	w.t.Helper()
	r := w.start("register", c)
	w.eventually("registered", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.sync WHERE backfill_seq IS NULL`) == len(c.Syncs)
	})
	_ = r.stop()
}

func (w *world) bulk(n int) {
	w.t.Helper()
	w.exec(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'B-' || n, '{"n":1}' FROM generate_series(1, $1) AS n`, n)
}

// A relay died with deliveries in hand, then the court went down: the probe
// that ends the hold may have to be one of those deliveries.
func TestHoldEndsThoughOnlySuspectsAreDue(t *testing.T) {
	for name, suspects := range map[string]int{"one suspect": 1, "a page of suspects before a healthy one": 100} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			config := sync1(newCourt(accepts))
			w.register(config)
			w.bulk(suspects)
			w.exec(`UPDATE outbox.delivery SET crashes = 2`)
			if suspects > 1 {
				w.emit("H-1", map[string]any{"n": 1})
			}
			w.exec(`INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', 'breaker', now(), 'court was down', 'relay-0')`)
			w.start("relay-1", config)
			w.drained()
		})
	}
}

// The first of a key has failed and is due later than the many behind it that
// nobody looked at yet: the probe does not take them for nothing to try with.
func TestProbeFindsTheHeadBehindItsKey(t *testing.T) {
	w := newWorld(t)
	config := sync1(newCourt(accepts))
	w.register(config)
	w.exec(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'H-1', '{"n":1}' FROM generate_series(1, 5000)`)
	w.exec(`UPDATE outbox.delivery SET state = 'retry', due_at = clock_timestamp() WHERE event_seq = (SELECT min(event_seq) FROM outbox.delivery)`)
	w.exec(`INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', 'breaker', now(), 'court was down', 'relay-0')`)
	w.start("relay-1", config)
	w.eventually("the hold ends", func() bool { return query[int](w, `SELECT count(*) FROM outbox.hold`) == 0 })
}

// What a claim under way at the stop brings is released, not left to its lease.
func TestStopUnderLoadLeavesNoClaims(t *testing.T) {
	w := newWorld(t)
	config := sync1(newCourt(accepts))
	config.Logger = slog.New(slog.DiscardHandler)
	w.register(config)
	w.bulk(20000)
	for i := range 8 {
		r := w.start(fmt.Sprint("relay-", i), config)
		done := query[int](w, `SELECT count(*) FROM outbox.delivery_log`)
		w.eventually("busy", func() bool { return query[int](w, `SELECT count(*) FROM outbox.delivery_log`) > done+10*i })
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if n := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'sending' OR crashes > 0`); n > 0 {
			t.Errorf("stop %d left %d claims behind", i, n)
		}
	}
}

// An adapter that forgets to mark what the end of its context means has still
// sent its request.
func TestAttemptCutOffByAStopIsLogged(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(ctx context.Context, _ adapters.Message, _ int) (adapters.Receipt, error) {
		<-ctx.Done()
		return adapters.Receipt{}, fmt.Errorf("post: %w", ctx.Err())
	})
	config := sync1(c)
	config.Drain = 100 * time.Millisecond
	r := w.start("relay-1", config)
	w.emit("H-1", map[string]any{"n": 1})
	w.eventually("sent", func() bool { return c.count() == 1 })
	if err := r.stop(); !errors.Is(err, relay.ErrNotDrained) {
		t.Errorf("Run returned %v", err)
	}
	if got := query[string](w, `SELECT coalesce(string_agg(outcome, ' '), '') FROM outbox.delivery_log`); got != "unknown" {
		t.Errorf("log: %q, want unknown", got)
	}
}

// An adapter that does not return keeps no stop, also where it has a delivery
// that is sent alone.
func TestStopLeavesAnAdapterBehindThatDoesNotReturn(t *testing.T) {
	w := newWorld(t)
	leave := make(chan struct{})
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		<-leave
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	config := sync1(c)
	config.Drain = 100 * time.Millisecond
	config.Logger = slog.New(slog.DiscardHandler) // what is left behind may outlive the test
	w.register(config)
	w.emit("H-1", map[string]any{"n": 1})
	w.exec(`UPDATE outbox.delivery SET crashes = 2`)
	r := w.start("relay-1", config)
	w.eventually("sent alone", func() bool { return c.count() == 1 })
	r.cancel()
	select {
	case err := <-r.done:
		r.done <- err
		if !errors.Is(err, relay.ErrNotDrained) {
			t.Errorf("Run returned %v, want ErrNotDrained", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("Run did not return")
	}
	close(leave)
}

// Operators think while their psql transaction is open; nobody else waits.
func TestOpenTransactionsOfOperatorsHoldUpNobody(t *testing.T) {
	tests := map[string]string{
		"requeue": `UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'`,
		"pause":   `SELECT outbox.pause('CourtCalendarSync', 'thinking')`,
		"discard": `SELECT outbox.discard(sync, event_id, 'thinking') FROM outbox.failed`,
	}
	for name, statement := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
				if m.Key == "bad" {
					return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("no"))
				}
				return adapters.Receipt{Code: "HTTP 200"}, nil
			})
			w.start("relay-1", sync1(c, func(s *relay.Sync) { s.OnFailed = "supersede" }))
			w.emit("bad", map[string]any{"n": 1})
			w.eventually("failed", func() bool { return query[int](w, `SELECT count(*) FROM outbox.failed`) == 1 })
			tx, err := w.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			if _, err := tx.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
			w.emit("bad", map[string]any{"n": 2})
			// Past several polls and sweeps.
			for i, began := 0, time.Now(); time.Since(began) < time.Second; i++ {
				key := fmt.Sprint("other-", i)
				w.emit(key, map[string]any{"n": 1})
				w.within(5*time.Second, "another key is delivered", func() bool {
					return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE key = $1`, key) == 0
				})
			}
		})
	}
}

// A rate of one in ten seconds must not become a loop of claims and releases.
func TestSlowRateClaimsWhatItCanSend(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	config := sync1(c, func(s *relay.Sync) { s.Rate = 0.1 })
	w.register(config)
	w.bulk(50)
	var looks claimCounter
	config.Observer = &looks
	w.start("relay-1", config)
	w.eventually("the first", func() bool { return c.count() > 0 })
	first := looks.Load()
	w.eventually("the relay has looked often", func() bool { return looks.Load() > first+20 })
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'sending'`); got > 0 || c.count() > 2 {
		t.Errorf("%d claimed, %d sent: want none claimed before it may go", got, c.count())
	}
}

// claimCounter counts how often a relay looked for due deliveries.
type claimCounter struct{ atomic.Int64 }

func (*claimCounter) Attempt(string, string, time.Duration) {}
func (*claimCounter) LeaseLost(string)                      {}
func (*claimCounter) Clock(time.Duration)                   {}
func (*claimCounter) LogAhead(int)                          {}
func (c *claimCounter) Claim(string, int, time.Duration)    { c.Add(1) }

type flakyReader struct {
	*court
	failed atomic.Bool
}

func (r *flakyReader) Read(context.Context, adapters.Message) (adapters.Standing, adapters.Ref, error) {
	if !r.failed.Swap(true) {
		return 0, adapters.Ref{}, errors.New("timeout")
	}
	return adapters.Older, adapters.Ref{ETag: "new"}, nil
}

// Reading back failed once: that is not the one more attempt with the new
// reference.
func TestConflictAfterFailedReadBackIsSentOnceMore(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if m.Ref.ETag != "new" {
			return adapters.Receipt{Code: "HTTP 412"}, adapters.Conflict(errors.New("stale"))
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	w.start("relay-1", sync1(&flakyReader{court: c}))
	w.emit("H-1", map[string]any{"n": 1})
	w.drained()
}

// heldNext is a key of which somebody holds the second delivery, which is parked,
// while the first is recorded. The slow check of parked deliveries, which would
// find it too, is kept busy with others.
func heldNext(w *world) (r *running, release func()) {
	w.t.Helper()
	answer := make(chan struct{})
	c := newCourt(func(ctx context.Context, m adapters.Message, nth int) (adapters.Receipt, error) {
		if m.Key == "z" && nth == 1 {
			<-answer
		}
		return accepts(ctx, m, nth)
	})
	w.registered(sync1(c))
	r = w.start("relay-1", sync1(c))
	w.exec(`BEGIN;
INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'a' || n, '{}' FROM generate_series(1, 30000) AS n;
UPDATE outbox.delivery SET state = 'retry', due_at = clock_timestamp() + interval '1 hour';
COMMIT`)
	w.emit("z", map[string]int{"n": 1})
	w.eventually("the first is being sent", func() bool { return c.count() == 1 })
	second := w.emit("z", map[string]int{"n": 2})
	w.eventually("the second is parked", func() bool {
		return query[string](w, `SELECT state FROM outbox.delivery WHERE event_id = $1`, second) == "queued"
	})
	holder, err := w.pool.Begin(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := holder.Exec(w.t.Context(), `SELECT FROM outbox.delivery WHERE event_id = $1 FOR UPDATE`, second); err != nil {
		w.t.Fatal(err)
	}
	close(answer)
	w.eventually("the first is recorded", func() bool { return query[int](w, `SELECT count(*) FROM outbox.delivery_log`) == 1 })
	return r, func() {
		if err := holder.Rollback(w.t.Context()); err != nil {
			w.t.Error(err)
		}
	}
}

// The relay goes on with the key as soon as he lets go.
func TestKeyIsGoneOnWithOnceNobodyHoldsItsNext(t *testing.T) {
	w := newWorld(t)
	_, release := heldNext(w)
	release()
	w.within(5*time.Second, "the second is delivered", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE key = 'z'`) == 2
	})
}

// A relay that stops tries for a second to leave nobody asleep.
func TestKeyIsWokenAtAStop(t *testing.T) {
	w := newWorld(t)
	r, release := heldNext(w)
	r.cancel()
	time.Sleep(200 * time.Millisecond) // the fault: somebody holds the row well into the stop
	release()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if got := query[string](w, `SELECT state FROM outbox.delivery WHERE key = 'z'`); got != "pending" {
		t.Errorf("the second is %s after the stop, want it pending", got)
	}
}

// More keys sleep than the queue of claims has places, and wake at the same
// moment.
func TestManyKeysThatSleptWakeTogether(t *testing.T) {
	const keys = 4000
	w := newWorld(t)
	w.registered(sync1(newCourt(accepts)))
	w.exec(`BEGIN;
INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'k' || n % 4000, '{}' FROM generate_series(1, 8000) AS n;
UPDATE outbox.delivery SET state = 'queued', due_at = 'infinity' WHERE event_seq > (SELECT min(seq) + 3999 FROM outbox.event);
COMMIT`)
	holder, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Exec(t.Context(), `SELECT FROM outbox.delivery WHERE state = 'queued' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	w.start("relay-1", sync1(newCourt(accepts)))
	w.eventually("the first of each key is recorded", func() bool { return query[int](w, `SELECT count(*) FROM outbox.delivery_log`) == keys })
	if err := holder.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.drained()
}

// One result that the database asks to repeat, again and again, does not keep
// the others that are recorded with it.
func TestARepeatedRecordingDoesNotKeepTheOthers(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	c := newCourt(func(ctx context.Context, m adapters.Message, nth int) (adapters.Receipt, error) {
		<-release
		return accepts(ctx, m, nth)
	})
	config := sync1(c)
	w.register(config)
	w.exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'try again' USING ERRCODE = '40001'; END $$`)
	w.exec(`CREATE TRIGGER refuse BEFORE INSERT ON outbox.delivery_log FOR EACH ROW WHEN (NEW.key = 'in-the-way') EXECUTE FUNCTION refuse()`)
	w.emit("in-the-way", map[string]any{"n": 1})
	w.bulk(15)
	w.start("relay-1", config)
	w.eventually("all are with the receiver", func() bool { return c.count() == 16 })
	close(release) // and answered together
	w.eventually("the others are recorded", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`) == 15
	})
	w.exec(`DROP TRIGGER refuse ON outbox.delivery_log`)
	w.drained()
	if n := c.count(); n != 16 {
		t.Errorf("%d requests, want 16: a recording is repeated, not the request", n)
	}
}

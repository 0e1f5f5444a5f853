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

// A relay died with claims, and then the court went down. All due deliveries are suspects, so the
// hold is probed with one of them.
func TestHoldEndsThoughOnlySuspectsAreDue(t *testing.T) {
	for name, suspects := range map[string]int{"one suspect": 1, "a page of suspects before a healthy one": 100} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			config := sync1(newCourt(accepts))
			w.register(config)
			w.bulk(suspects)
			w.diedWith(2, `true`)
			if suspects > 1 {
				w.emit("H-1", map[string]any{"n": 1})
			}
			w.exec(`INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', 'breaker', now(), 'court was down', 'relay-0')`)
			w.start("relay-1", config)
			w.drained()
		})
	}
}

// The only delivery that may be sent is the first of a long lane that no relay has read yet. It was
// tried before, so it became due after all deliveries behind it.
func TestProbeFindsTheFirstDeliveryOfALongLane(t *testing.T) {
	w := newWorld(t)
	config := sync1(newCourt(accepts))
	w.register(config)
	w.exec(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'H-1', '{"n":1}' FROM generate_series(1, 2000)`)
	w.exec(`UPDATE outbox.delivery SET state = 'retry', due_at = clock_timestamp() WHERE event_seq = (SELECT min(event_seq) FROM outbox.delivery)`)
	w.exec(`INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', 'breaker', now(), 'court was down', 'relay-0')`)
	w.start("relay-1", config)
	w.eventually("the hold ends", func() bool { return query[int](w, `SELECT count(*) FROM outbox.hold`) == 0 })
}

// A stop comes during a claim. The claimed lanes are released, and do not wait for the end of their
// lease.
func TestStopUnderLoadLeavesNoClaims(t *testing.T) {
	w := newWorld(t)
	config := sync1(newCourt(accepts))
	config.Logger = slog.New(slog.DiscardHandler)
	w.register(config)
	w.bulk(10000)
	for i := range 5 {
		r := w.start(fmt.Sprint("relay-", i), config)
		done := query[int](w, `SELECT count(*) FROM outbox.delivery_log`)
		w.eventually("busy", func() bool { return query[int](w, `SELECT count(*) FROM outbox.delivery_log`) > done+20*i })
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if n := w.claims(); n > 0 {
			t.Errorf("stop %d left %d claims behind", i, n)
		}
	}
}

// An adapter returns the error of its context unmarked. Its request may have been sent, so the
// outcome is unknown.
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

// An adapter does not return. The relay stops nevertheless, even if the adapter has a suspect.
func TestAStopAbandonsAnAdapterThatDoesNotReturn(t *testing.T) {
	w := newWorld(t)
	leave := make(chan struct{})
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		<-leave
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	config := sync1(c)
	config.Drain = 100 * time.Millisecond
	config.Logger = slog.New(slog.DiscardHandler) // an abandoned call may end after the test
	w.register(config)
	w.emit("H-1", map[string]any{"n": 1})
	w.diedWith(2, `true`)
	r := w.start("relay-1", config)
	w.eventually("sent alone", func() bool { return c.count() == 1 })
	r.cancel()
	select {
	case err := <-r.done:
		r.done <- err
		if !errors.Is(err, relay.ErrNotDrained) {
			t.Errorf("Run returned %v, want ErrNotDrained", err)
		}
	case <-time.After(patience):
		t.Error("Run did not return")
	}
	close(leave)
}

// Transactions of operators stay open. No relay and no other key waits for them.
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
			var looks claimCounter
			config := sync1(c, func(s *relay.Sync) { s.OnFailed = "supersede" })
			config.Observer = &looks
			w.start("relay-1", config)
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
			for i, first := 0, looks.Load(); looks.Load() < first+50; i++ {
				key := fmt.Sprint("other-", i)
				w.emit(key, map[string]any{"n": 1})
				w.eventually("another key is delivered", w.delivered(key))
			}
		})
	}
}

// A rate of one attempt in minutes must not cause a loop of claims and releases.
func TestASlowRateClaimsNoMoreThanItCanSend(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	config := sync1(c, func(s *relay.Sync) { s.Rate = 0.005 })
	w.register(config)
	w.bulk(50)
	var looks claimCounter
	config.Observer = &looks
	w.start("relay-1", config)
	w.counts("the first is delivered and nothing else is claimed", 1, `
SELECT count(*) FROM outbox.delivery_log WHERE NOT EXISTS (SELECT FROM outbox.lane WHERE claim IS NOT NULL)`)
	first := looks.Load()
	w.eventually("the relay has looked often", func() bool {
		if n := w.claims(); n > 0 {
			t.Fatalf("%d are claimed before one may go", n)
		}
		return looks.Load() > first+20
	})
	if n := c.count(); n != 1 {
		t.Errorf("%d are sent, want 1", n)
	}
}

// claimCounter counts the polls of a relay.
type claimCounter struct{ atomic.Int64 }

func (*claimCounter) Attempt(string, string, time.Duration) {}
func (*claimCounter) LeaseLost(string)                      {}
func (*claimCounter) Clock(time.Duration)                   {}
func (*claimCounter) MissingID(string)                      {}
func (*claimCounter) LogAhead(int)                          {}
func (*claimCounter) Alert(string, string, int64)           {}
func (c *claimCounter) Claim(string, int, time.Duration)    { c.Add(1) }

type flakyReader struct {
	*court
	failed atomic.Bool
}

func (*flakyReader) Reads(adapters.Message) bool { return true }

func (r *flakyReader) Read(context.Context, adapters.Message) (adapters.Reading, error) {
	if !r.failed.Swap(true) {
		return adapters.Reading{}, errors.New("timeout")
	}
	return adapters.Reading{Standing: adapters.Older, Ref: &adapters.Ref{ETag: "new"}}, nil
}

// A read-back has failed once. The delivery still gets its one more attempt with the new reference.
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

// The next delivery of some keys is locked while the one before is recorded. When the lock is
// released, the relay sends these deliveries. If the relay was stopped meanwhile, another one sends
// them, because the first has no claim left.
func TestAKeyResumesAfterALock(t *testing.T) {
	const keys = 20
	for name, stops := range map[string]bool{"the same relay": false, "another relay": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			answer := make(chan struct{})
			c := newCourt(func(ctx context.Context, m adapters.Message, nth int) (adapters.Receipt, error) {
				<-answer
				return accepts(ctx, m, nth)
			})
			config := sync1(c)
			config.Workers, config.Lease = keys, 10*patience // nothing waits for its end
			w.register(config)
			w.bulk(keys)
			w.bulk(keys)
			r := w.start("relay-1", config)
			w.eventually("the first of each key is being sent", func() bool { return c.count() == keys })
			holder, err := w.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = holder.Rollback(context.Background()) }()
			if _, err := holder.Exec(t.Context(), `SELECT FROM outbox.open_delivery AS o JOIN outbox.delivery AS d USING (sync, key, event_seq) WHERE o.state = 'queued' FOR UPDATE OF d`); err != nil {
				t.Fatal(err)
			}
			close(answer)
			w.eventually("the first of each is recorded", func() bool { return query[int](w, `SELECT count(*) FROM outbox.delivery_log`) == keys })
			w.emit("other", map[string]any{"n": 1})
			w.eventually("another key is delivered meanwhile", w.delivered("other"))
			if stops {
				if err := r.stop(); err != nil {
					t.Fatal(err)
				}
				if n := w.claims(); n > 0 {
					t.Errorf("%d claims are left behind", n)
				}
				w.start("relay-2", config)
			}
			if n := c.count(); n != keys+1 {
				t.Errorf("%d requests, want %d: nothing that is locked is sent", n, keys+1)
			}
			if err := holder.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.drained()
		})
	}
}

// The database asks again and again to repeat the recording of one result. The other results of the
// batch are recorded.
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
	w.exec(`CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$`) // no lock on the log
	w.drained()
	if n := c.count(); n != 16 {
		t.Errorf("%d requests, want 16: a recording is repeated, not the request", n)
	}
}

package relay_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

func rejects(err error) func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
	return func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 422"}, err
	}
}

func TestAFailedDeliveryBlocksItsKeyOnly(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if m.Key == "H-1" && strings.Contains(string(m.Body), `"n":0`) {
			return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("room unknown"))
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	for n := range 3 {
		w.emit("H-1", map[string]any{"n": n})
		w.emit("H-2", map[string]any{"n": n})
	}
	w.start("relay-1", sync1(c))
	w.eventually("H-2 delivered and H-1 blocked", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`) == 3 &&
			query[int](w, `SELECT count(*) FROM outbox.failed WHERE key = 'H-1'`) == 1 &&
			query[int](w, `SELECT count(*) FROM outbox.open_delivery WHERE key = 'H-1' AND state = 'queued'`) == 2
	})
	if got := query[string](w, `SELECT key || ' ' || behind FROM outbox.blocked_key`); got != "H-1 2" {
		t.Errorf("blocked_key says %q, want H-1 with 2 behind", got)
	}
	if got := query[string](w, `SELECT error_class || ': ' || error FROM outbox.failed`); got != "permanent: room unknown" {
		t.Errorf("failed says %q", got)
	}
}

func TestSupersedeClosesAFailedDeliveryForANewerEvent(t *testing.T) {
	for name, early := range map[string]bool{"newer waits when the first fails": true, "newer comes after the first failed": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			hang := make(chan struct{})
			c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
				if strings.Contains(string(m.Body), `"n":0`) {
					<-hang
					return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("no"))
				}
				return adapters.Receipt{Code: "HTTP 200"}, nil
			})
			first := w.emit("H-1", map[string]any{"n": 0})
			w.start("relay-1", sync1(c, func(s *relay.Sync) { s.OnFailed = "supersede" }))
			if early {
				w.emit("H-1", map[string]any{"n": 1})
				w.eventually("the second waits", func() bool {
					return query[int](w, `SELECT count(*) FROM outbox.open_delivery WHERE state = 'queued'`) == 1
				})
				close(hang)
			} else {
				close(hang)
				w.eventually("first failed", func() bool {
					return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'failed'`) == 1
				})
				w.emit("H-1", map[string]any{"n": 1})
			}
			w.drained()
			got := query[string](w, `SELECT string_agg(outcome, ' ' ORDER BY id) FROM outbox.delivery_log WHERE event_id = $1`, first)
			if got != "failed superseded" {
				t.Errorf("log of the first event: %q, want failed superseded", got)
			}
		})
	}
}

func TestRetryKeepsBytesAndKey(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
		if nth < 4 {
			return adapters.Receipt{}, adapters.Unknown(errors.New("no answer"))
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	id := w.emit("H-1", json.RawMessage(`{"z":1.10,"a":{"b":12345678901234567890}}`))
	w.start("relay-1", sync1(c))
	w.drained()
	for _, m := range c.got() {
		if string(m.Body) != string(c.got()[0].Body) || m.IdempotencyKey != id {
			t.Errorf("attempt %d: key %s body %s; want the first attempt's: key %s body %s", m.Attempt, m.IdempotencyKey, m.Body, id, c.got()[0].Body)
		}
	}
	got := query[string](w, `SELECT string_agg(outcome || attempt, ' ' ORDER BY id) FROM outbox.delivery_log`)
	if got != "unknown1 unknown2 unknown3 delivered4" {
		t.Errorf("log: %s", got)
	}
}

func TestRequeueAfterRepairedMappingTakesNewKey(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if strings.Contains(string(m.Body), "right") {
			return adapters.Receipt{Code: "HTTP 200"}, nil
		}
		return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("unknown field"))
	})
	mapped := func(to string) relay.Config {
		return sync1(c, func(s *relay.Sync) { s.Mapping = relay.Mapping{Fields: []relay.Field{{From: "a", To: to}}} })
	}
	id := w.emit("H-1", map[string]any{"a": 1})
	failed := func() bool { return query[int](w, `SELECT count(*) FROM outbox.failed`) == 1 }

	r := w.start("relay-1", mapped("wrong"))
	w.eventually("failed", failed)
	w.exec(`UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'`)
	w.eventually("failed again with the same body", func() bool { return failed() && c.count() == 2 })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	w.start("relay-2", mapped("right"))
	w.exec(`UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'`)
	w.drained()
	w.exec(`SELECT outbox.replay('CourtCalendarSync', $1, 'court lost it')`, id)
	w.drained()

	var keys []string
	for _, m := range c.got() {
		keys = append(keys, m.IdempotencyKey)
	}
	if got, want := strings.Join(keys, " "), strings.Join([]string{id, id, id + ":2", id + ":3"}, " "); got != want {
		t.Errorf("idempotency keys %s, want %s", got, want)
	}
}

// An adapter may send other bytes than the mapped fields, and different ones at each attempt. The
// log has the digest of the sent bytes. A requeue with the same fields keeps the idempotency key.
func TestTheLogKeepsTheDigestOfTheSentBytes(t *testing.T) {
	w := newWorld(t)
	digest := func(nth int) string { return fmt.Sprintf("%064x", nth) }
	c := newCourt(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
		if nth < 2 {
			return adapters.Receipt{Code: "HTTP 422", SHA256: digest(nth)}, adapters.Permanent(errors.New("no such room"))
		}
		return adapters.Receipt{Code: "HTTP 200", SHA256: digest(nth)}, nil
	})
	id := w.emit("H-1", map[string]any{"n": 1})
	w.start("relay-1", sync1(c))
	w.eventually("failed", func() bool { return query[int](w, `SELECT count(*) FROM outbox.failed`) == 1 })
	w.exec(`UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'`)
	w.drained()
	for _, m := range c.got() {
		if m.IdempotencyKey != id {
			t.Errorf("attempt %d has key %s, want %s", m.Attempt, m.IdempotencyKey, id)
		}
	}
	got := query[string](w, `SELECT string_agg(outcome || request_sha256, ' ' ORDER BY id) FROM outbox.delivery_log WHERE outcome <> 'requeued'`)
	if want := "failed" + digest(1) + " delivered" + digest(2); got != want {
		t.Errorf("log %s, want %s", got, want)
	}
}

func TestThrottleHoldsTheSyncAndOthersFlow(t *testing.T) {
	w := newWorld(t)
	var throttled atomic.Bool
	throttled.Store(true)
	busy := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		if throttled.Load() {
			return adapters.Receipt{Code: "HTTP 429"}, adapters.Throttled(errors.New("HTTP 429"), 400*time.Millisecond)
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	other := newCourt(accepts)
	config := sync1(busy, func(s *relay.Sync) { s.Retry.Attempts = 1 })
	config.Syncs = append(config.Syncs, relay.Sync{Name: "Other", Events: []string{"*"}, Adapter: other})
	w.start("relay-1", config)
	for n := range 40 {
		w.emit(fmt.Sprint("H-", n), map[string]any{"n": n})
	}
	w.eventually("the other sync is done while this one is on hold", func() bool {
		return other.count() == 40 && query[int](w, `SELECT count(*) FROM outbox.status WHERE sync = 'CourtCalendarSync' AND hold = 'throttle'`) == 1
	})
	throttled.Store(false)
	w.drained()
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'failed'`); got != 0 {
		t.Errorf("%d failed: a throttle must use no budget", got)
	}
}

func TestAuthHoldsTheSyncAndProbes(t *testing.T) {
	w := newWorld(t)
	var refused atomic.Bool
	refused.Store(true)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		if refused.Load() {
			return adapters.Receipt{Code: "HTTP 401"}, adapters.Auth(errors.New("HTTP 401"))
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	w.start("relay-1", sync1(c, func(s *relay.Sync) { s.Retry.Attempts = 2 }))
	for n := range 20 {
		w.emit(fmt.Sprint("H-", n), map[string]any{"n": n})
	}
	w.eventually("held for auth", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.sync WHERE hold_kind = 'auth'`) == 1
	})
	w.eventually("a probe was refused", func() bool {
		return query[int](w, `SELECT coalesce(max(probes), 0) FROM outbox.hold WHERE kind = 'auth'`) > 0
	})
	refused.Store(false)
	w.drained()
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'failed'`); got != 0 {
		t.Errorf("%d failed: rows never fail for credentials", got)
	}
	w.noHolds()
}

func TestForbiddenForOneRowFailsIt(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if m.Key == "H-3" {
			return adapters.Receipt{Code: "HTTP 403"}, adapters.Forbidden(errors.New("sealed"))
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	w.start("relay-1", sync1(c))
	for n := range 6 {
		w.emit(fmt.Sprint("H-", n), map[string]any{"n": n})
	}
	w.eventually("only H-3 left, failed", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery`) == 1 &&
			query[int](w, `SELECT count(*) FROM outbox.failed WHERE key = 'H-3' AND error_class = 'permanent'`) == 1
	})
}

func TestBreakerStopsTrafficToADeadCourt(t *testing.T) {
	w := newWorld(t)
	var down atomic.Bool
	down.Store(true)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		if down.Load() {
			return adapters.Receipt{}, errors.New("connection refused")
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	w.start("relay-1", sync1(c))
	for n := range 60 {
		w.emit(fmt.Sprint("H-", n), map[string]any{"n": n})
	}
	w.eventually("breaker open", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.sync WHERE hold_kind = 'breaker'`) == 1
	})
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE attempts = 0`); got == 0 {
		t.Error("every delivery was tried: the breaker saved nothing")
	}
	down.Store(false)
	w.drained()
}

func TestBudgetEndsRetries(t *testing.T) {
	for name, change := range map[string]func(*relay.Sync){
		"by attempts": func(s *relay.Sync) { s.Retry.Attempts = 3 },
		"by time":     func(s *relay.Sync) { s.Retry.MaxAge = 150 * time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := newCourt(rejects(errors.New("HTTP 500")))
			w.emit("H-1", map[string]any{"n": 1})
			w.start("relay-1", sync1(c, change))
			w.eventually("failed", func() bool {
				return query[int](w, `SELECT count(*) FROM outbox.failed WHERE error LIKE 'gave up after%'`) == 1
			})
			if name == "by attempts" && c.count() != 3 {
				t.Errorf("%d attempts, want 3", c.count())
			}
		})
	}
}

func TestMappingErrorNamesTheFieldAndSendsNothing(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	w.start("relay-1", sync1(c, func(s *relay.Sync) {
		s.Mapping = relay.Mapping{Fields: []relay.Field{{From: "hearingId", To: "case_reference"}}}
	}))
	w.emit("H-1", map[string]any{"other": 1})
	w.emit("H-2", map[string]any{"hearingId": "2"})
	w.eventually("one failed for mapping, the other delivered", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.failed WHERE error_class = 'mapping' AND error LIKE '%hearingId%'`) == 1 &&
			c.count() == 1
	})
}

func TestFilteredIsRecorded(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	w.start("relay-1", sync1(c, func(s *relay.Sync) { s.When = `event.court == "NY-07"` }))
	w.emit("H-1", map[string]any{"court": "NY-07"})
	w.emit("H-2", map[string]any{"court": "NJ-01"})
	w.drained()
	if got := query[string](w, `SELECT string_agg(key || ' ' || outcome, ', ' ORDER BY key) FROM outbox.delivery_log`); got != "H-1 delivered, H-2 filtered" {
		t.Errorf("log: %s", got)
	}
}

// An adapter may find that there is nothing to send. The event ends in its order, and the log
// and why_not_delivered say why.
func TestSkippedIsFilteredWithItsReason(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, msg adapters.Message, _ int) (adapters.Receipt, error) {
		if msg.Ref.ExternalID == "" && strings.Contains(string(msg.Body), "cancel") {
			return adapters.Receipt{Skipped: "nothing to cancel"}, nil
		}
		return adapters.Receipt{Code: "HTTP 200", Ref: &adapters.Ref{ExternalID: "7"}}, nil
	})
	w.start("relay-1", sync1(c))
	w.emit("H-1", map[string]any{"n": "cancel"})
	w.drained()
	w.emit("H-1", map[string]any{"n": "book"})
	w.emit("H-1", map[string]any{"n": "cancel"})
	w.drained()
	if got := query[string](w, `SELECT string_agg(concat_ws(' ', outcome, attempt::text, request_sha256 IS NOT NULL, reason), ', ' ORDER BY id) FROM outbox.delivery_log`); got != "filtered f nothing to cancel, delivered 1 t, delivered 1 t" {
		t.Errorf("log: %s", got)
	}
	if got := query[string](w, `SELECT outbox.why_not_delivered((SELECT event_id FROM outbox.delivery_log WHERE outcome = 'filtered'))`); !strings.HasSuffix(got, ": nothing to cancel") {
		t.Error(got)
	}
}

// The answer to a booking had no id, so the receiver may have the hearing. Its cancellation is not
// left out.
func TestSkippedFailsIfTheReceiverMayHaveTheRecord(t *testing.T) {
	w := newWorld(t)
	const cancelled = "scheduling:cancelled"
	c := newCourt(func(_ context.Context, msg adapters.Message, _ int) (adapters.Receipt, error) {
		if msg.Type == cancelled && msg.Ref.ExternalID == "" {
			return adapters.Receipt{Skipped: "nothing to cancel"}, nil
		}
		return adapters.Receipt{Code: "HTTP 202", Accepted: true}, nil
	})
	config := sync1(c, func(s *relay.Sync) { s.Events = []string{"scheduling:*"} })
	w.start("relay-1", config)
	cancel := func(key string) {
		w.exec(`INSERT INTO outbox.event (type, key, payload) VALUES ($1, $2, '{}')`, cancelled, key)
	}
	cancel("H-1")
	w.drained()
	w.emit("H-2", map[string]any{"n": "book"})
	cancel("H-2")
	w.eventually("the cancellation fails", func() bool {
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.failed WHERE key = 'H-2' AND strpos(error, 'may have reached it') > 0)`)
	})
	if got := query[string](w, `SELECT string_agg(key, ' ') FROM outbox.delivery_log WHERE outcome = 'filtered'`); got != "H-1" {
		t.Errorf("filtered: %s", got)
	}
}

func TestPanicIsThatAttemptsFailure(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
		if nth == 1 {
			panic("adapter bug")
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	w.start("relay-1", sync1(c))
	w.emit("H-1", map[string]any{"n": 1})
	w.drained()
	if got := query[string](w, `SELECT string_agg(outcome, ' ' ORDER BY id) FROM outbox.delivery_log`); got != "unknown delivered" {
		t.Errorf("log: %s", got)
	}
}

func TestPauseTakesEffectAndResumes(t *testing.T) {
	w := newWorld(t)
	c, other := newCourt(accepts), newCourt(accepts)
	config := sync1(c)
	config.Syncs = append(config.Syncs, relay.Sync{Name: "Other", Events: []string{"*"}, From: "beginning", Adapter: other})
	w.start("relay-1", config)
	w.emit("H-0", map[string]any{"n": 0})
	w.drained()
	w.exec(`SELECT outbox.pause('CourtCalendarSync', 'court asked')`)
	for n := range 10 {
		w.emit(fmt.Sprint("H-", n), map[string]any{"n": n})
		w.eventually("the sync that is not paused has it", func() bool { return other.count() == n+2 })
	}
	if got := c.count(); got != 1 {
		t.Errorf("court got %d requests during the pause, want the 1 before it", got)
	}
	w.exec(`SELECT outbox.resume('CourtCalendarSync')`)
	w.drained()
}

func TestStopDrainsAndReleases(t *testing.T) {
	w := newWorld(t)
	entered := make(chan struct{}, 1000)
	answersWhen := func(leave <-chan struct{}) *court {
		return newCourt(func(ctx context.Context, _ adapters.Message, _ int) (adapters.Receipt, error) {
			entered <- struct{}{}
			select {
			case <-leave:
				return adapters.Receipt{Code: "HTTP 200"}, nil
			case <-ctx.Done():
				return adapters.Receipt{}, adapters.Unknown(ctx.Err())
			}
		})
	}
	t.Run("in time", func(t *testing.T) {
		w.bulk(100)
		leave, log := make(chan struct{}), &logBuffer{}
		c := answersWhen(leave)
		config := sync1(c, func(s *relay.Sync) { s.Concurrency = 4 })
		config.Logger = slog.New(slog.NewTextHandler(log, nil))
		r := w.start("relay-1", config)
		for range 4 {
			<-entered
		}
		r.cancel()
		w.eventually("the relay stops", func() bool { return log.contains("relay stopping") })
		close(leave)
		if err := r.stop(); err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
		if got := query[int](w, `SELECT count(*) FROM outbox.open_delivery WHERE state <> 'pending' OR crashes > 0 OR attempts > 0`); got != 0 {
			t.Errorf("%d rows were not released as they had been", got)
		}
	})
	t.Run("not in time", func(t *testing.T) {
		w.bulk(100)
		for len(entered) > 0 {
			<-entered
		}
		config := sync1(answersWhen(nil), func(s *relay.Sync) { s.Concurrency = 4 })
		config.Drain = 100 * time.Millisecond
		r := w.start("relay-2", config)
		for range 4 {
			<-entered
		}
		if err := r.stop(); !errors.Is(err, relay.ErrNotDrained) {
			t.Errorf("Run returned %v, want ErrNotDrained", err)
		}
		if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'unknown'`); got == 0 {
			t.Error("the attempts that were cut off are not in the log")
		}
		if got := query[int](w, `SELECT count(*) FROM outbox.open_delivery WHERE state = 'sending' OR charged > 0`); got != 0 {
			t.Errorf("%d rows still claimed or charged", got)
		}
	})
}

func TestSyncAddedLaterMustSayWhereItStarts(t *testing.T) {
	w := newWorld(t)
	first := newCourt(accepts)
	r := w.start("relay-1", sync1(first))
	w.emit("H-1", map[string]any{"n": 1})
	w.drained()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	later := func(from string) (relay.Config, *court) {
		c := newCourt(accepts)
		config := sync1(first)
		config.Syncs = append(config.Syncs, relay.Sync{Name: "Later" + from, Events: []string{"*"}, Adapter: c, From: from})
		return config, c
	}
	config, _ := later("")
	store, err := outbox.Open(t.Context(), w.url, outbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	refusing, err := relay.New(store, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := refusing.Run(t.Context()); !errors.Is(err, outbox.ErrNeedsFrom) {
		t.Errorf("Run returned %v, want ErrNeedsFrom", err)
	}

	config, c := later("now")
	r = w.start("relay-2", config)
	w.eventually("registered", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.sync WHERE backfill_seq IS NULL`) == 2
	})
	w.emit("H-2", map[string]any{"n": 2})
	w.drained()
	if got := c.count(); got != 1 {
		t.Errorf("from now: %d events, want only the one after", got)
	}
	_ = r.stop()
	config, c = later("beginning")
	w.start("relay-3", config)
	w.eventually("all retained events", func() bool { return c.count() == 2 })
}

// A writer at REPEATABLE READ does not see the sync, because its snapshot is older. Its event is
// sent.
func TestRegistrationMissesNoOpenWriter(t *testing.T) {
	w := newWorld(t)
	r := w.start("relay-1", sync1(newCourt(accepts)))
	w.eventually("registered", func() bool { return query[int](w, `SELECT count(*) FROM outbox.sync WHERE backfill_seq IS NULL`) == 1 })
	_ = r.stop()

	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.sync`); err != nil {
		t.Fatal(err)
	}
	w.emit("H-0", map[string]any{"n": 0}) // committed before: not for a sync that starts now
	c := newCourt(accepts)
	config := sync1(newCourt(accepts))
	config.Syncs = append(config.Syncs, relay.Sync{Name: "Later", Events: []string{"*"}, Adapter: c, From: "now"})
	w.start("relay-2", config)
	w.eventually("the registration waits for the writer and names it", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.sync WHERE name = 'Later' AND hold_kind = 'backfill' AND hold_reason LIKE '%pid%'`) == 1
	})
	w.emit("H-1", map[string]any{"n": 2})
	if _, err := tx.Exec(t.Context(), `INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-1', '{"n": 1}')`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.drained()
	if got := c.count(); got != 2 {
		t.Errorf("the new sync got %d events, want the open writer's and the one after: %v", got, c.got())
	}
}

func TestDeliveryThatKillsRelaysIsSentAloneAndGivenUp(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	w.start("relay-1", sync1(c))
	w.emit("H-0", map[string]any{"n": 0})
	w.drained()
	w.exec(`SELECT outbox.pause('CourtCalendarSync', 'set up')`)
	for n, deaths := range []int{5, 4, 1} {
		key := fmt.Sprint("died-", deaths)
		w.emit(key, map[string]any{"n": n})
		w.diedWith(deaths, `key = '`+key+`'`)
	}
	w.exec(`SELECT outbox.resume('CourtCalendarSync')`)
	w.eventually("one given up, two delivered", func() bool {
		return query[string](w, `SELECT coalesce(string_agg(format('%s %s', key, outcome), ', ' ORDER BY key), '')
			FROM outbox.delivery_log WHERE key LIKE 'died%' AND outcome <> 'unknown'`) == "died-1 delivered, died-4 delivered, died-5 failed"
	})
	if got := query[string](w, `SELECT error_class || ': ' || error FROM outbox.failed`); got != "crash: 5 relays died while sending it" {
		t.Errorf("failed says %q", got)
	}
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'unknown' AND relay = 'dead relay'`); got != 3 {
		t.Errorf("%d unknown rows for the dead relay's claims, want 3", got)
	}
	w.exec(`SELECT outbox.requeue('CourtCalendarSync')`)
	w.drained() // a requeue is a new life: its deaths are forgotten
}

type reader struct {
	*court
	standing adapters.Standing
}

func (*reader) Reads(adapters.Message) bool { return true }

func (r *reader) Read(context.Context, adapters.Message) (adapters.Reading, error) {
	return adapters.Reading{Standing: r.standing, Code: "HTTP 200", Ref: &adapters.Ref{ExternalID: "X-1", ETag: `"2"`}}, nil
}

func TestConflictIsReadBack(t *testing.T) {
	tests := map[string]struct {
		standing adapters.Standing
		log      string
	}{
		"equal counts as delivered": {adapters.Equal, "read delivered"},
		"older is sent once more":   {adapters.Older, "read retry delivered"},
		"newer is drift":            {adapters.Newer, "read failed"},
		"foreign is drift":          {adapters.Foreign, "read failed"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := &reader{standing: test.standing, court: newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
				if m.Ref.ETag == `"2"` {
					return adapters.Receipt{Code: "HTTP 200"}, nil
				}
				return adapters.Receipt{Code: "HTTP 412"}, adapters.Conflict(errors.New("precondition failed"))
			})}
			w.start("relay-1", sync1(c))
			w.emit("H-1", map[string]any{"n": 1})
			want := func() bool {
				return query[string](w, `SELECT coalesce(string_agg(outcome, ' ' ORDER BY id), '') FROM outbox.delivery_log`) == test.log
			}
			w.eventually(test.log, want)
		})
	}
}

// A body that was sent once is sent again byte for byte, also by a relay with another mapping.
func TestRetryKeepsBytesOverAChangedMapping(t *testing.T) {
	w := newWorld(t)
	var up atomic.Bool
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		if up.Load() {
			return adapters.Receipt{Code: "HTTP 200"}, nil
		}
		return adapters.Receipt{Code: "HTTP 503"}, errors.New("HTTP 503")
	})
	mapped := func(to string) relay.Config {
		return sync1(c, func(s *relay.Sync) { s.Mapping = relay.Mapping{Fields: []relay.Field{{From: "a", To: to}}} })
	}
	r := w.start("relay-1", mapped("old"))
	w.emit("H-1", map[string]any{"a": 1})
	w.eventually("tried", func() bool { return query[int](w, `SELECT count(*) FROM outbox.delivery_log`) > 0 })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	up.Store(true)
	w.start("relay-2", mapped("new"))
	w.drained()
	for _, m := range c.got() {
		if string(m.Body) != `{"old":1}` {
			t.Errorf("attempt %d sent %s, want what the first attempt sent", m.Attempt, m.Body)
		}
	}
	if got := query[int](w, `SELECT count(DISTINCT mapping_version) FROM outbox.delivery_log`); got != 1 {
		t.Errorf("%d mapping versions in the log, want the first one's alone", got)
	}
}

// A login that may only read is refused at the start.
func TestLoginThatMayNotRelayIsRefused(t *testing.T) {
	w := newWorld(t)
	store, err := outbox.Open(t.Context(), pgtest.AsRole(t, w.url, "outbox_auditor"), outbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	r, err := relay.New(store, sync1(newCourt(accepts)))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); !errors.Is(err, outbox.ErrPrivilege) {
		t.Errorf("Run returned %v, want ErrPrivilege", err)
	}
}

// A hearing was deleted and created again: its version begins anew. The cancellation must address
// the second record. An answer without an id makes the reference belong to the newer event.
func TestReferenceFollowsTheLane(t *testing.T) {
	w := newWorld(t)
	ids := []string{"ID-5", "", "ID-1", "", "ID-5-replayed"}
	var n atomic.Int32
	addressed := make(chan string, len(ids))
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		receipt := adapters.Receipt{Code: "HTTP 200"}
		addressed <- m.Ref.ExternalID
		if id := ids[n.Add(1)-1]; id != "" {
			receipt.Ref = &adapters.Ref{ExternalID: id}
		}
		return receipt, nil
	})
	log := &logBuffer{}
	config := sync1(c)
	config.Logger = slog.New(slog.NewTextHandler(log, nil))
	w.start("relay-1", config)
	write := func(version int) string {
		id := query[string](w, `INSERT INTO outbox.event (type, key, version, payload) VALUES ('scheduling:updated', 'H-1', $1, '{"n":1}') RETURNING id::text`, version)
		w.drained()
		return id
	}
	old := write(5)
	write(6)
	again := write(1)
	write(2)
	if got := query[string](w, `SELECT external_id || ' ' || version FROM outbox.external_ref`); got != "ID-1 2" {
		t.Errorf("reference: %s, want ID-1 2", got)
	}
	w.exec(`SELECT outbox.replay('CourtCalendarSync', $1, 'again')`, old)
	w.drained()
	if got := query[string](w, `SELECT external_id || ' ' || version FROM outbox.external_ref`); got != "ID-5-replayed 5" {
		t.Errorf("reference after the replay: %s, want ID-5-replayed 5", got)
	}
	for i, want := range []string{"", "ID-5", "ID-5", "ID-1", "ID-1"} {
		if got := <-addressed; got != want {
			t.Errorf("request %d addressed %q, want %q", i+1, got, want)
		}
	}
	const fallen = "the version of this key has fallen"
	if n := log.count(fallen); n != 1 || !log.contains("event="+again) {
		t.Errorf("the log says %d times that a version has fallen, want once, of %s", n, again)
	}
}

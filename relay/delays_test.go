package relay_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

// A receiver that rejects a message with a reason is up. Earlier failures do not count for the
// breaker any more.
func TestARejectionShowsThatTheReceiverIsUp(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if m.Key == "rejected" {
			return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("no such room"))
		}
		return adapters.Receipt{Code: "HTTP 500"}, errors.New("HTTP 500")
	})
	config := sync1(c, func(s *relay.Sync) { s.Retry.Initial, s.Retry.Max = time.Hour, time.Hour })
	w.register(config)
	w.start("relay-1", config)
	const each = 9 // one more opens the breaker
	for n := range 2*each + 1 {
		key := fmt.Sprint("H-", n)
		if n == each {
			key = "rejected"
		}
		w.emit(key, map[string]any{"n": n})
		w.eventually("the key was tried, or the sync is on hold", func() bool {
			return query[bool](w, `SELECT count(*) = $1 OR EXISTS (SELECT FROM outbox.hold) FROM outbox.delivery_log WHERE attempt = 1`, n+1)
		})
	}
	if got := query[string](w, `SELECT coalesce(string_agg(kind || ': ' || reason, '; '), 'none') FROM outbox.hold`); got != "none" {
		t.Errorf("hold: %s", got)
	}
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'retry' AND charged = 1`); got != 2*each {
		t.Errorf("%d deliveries were charged for their failure, want %d", got, 2*each)
	}
}

// A receiver has asked for pauses many times. The first failure after that waits for the first
// delay, not for the delay of the attempt's number.
func TestBackoffCountsFailuresAndNoThrottles(t *testing.T) {
	const throttles = 8
	w := newWorld(t)
	c := newCourt(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
		if nth <= throttles {
			return adapters.Receipt{Code: "HTTP 429"}, adapters.Throttled(errors.New("HTTP 429"), time.Millisecond)
		}
		return adapters.Receipt{Code: "HTTP 500"}, errors.New("HTTP 500")
	})
	w.start("relay-1", sync1(c, func(s *relay.Sync) {
		s.Retry.Initial, s.Retry.Max = 10*time.Second, 24*time.Hour
	}))
	w.emit("H-1", map[string]any{"n": 1})
	w.eventually("it failed once", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE error_class = 'transient'`) == 1
	})
	// The delay after the second failure would be 20 s, after the ninth 43 minutes.
	if got := query[time.Duration](w, `SELECT due_at - clock_timestamp() FROM outbox.delivery`); got > 15*time.Second {
		t.Errorf("the next attempt is in %s after %d throttles and one failure, want in 10 s", got, throttles)
	}
}

// An adapter passes on the pause that its receiver asks for. A delivery waits for at most an hour,
// whatever the adapter returns.
func TestNoReceiverMakesUsWaitForMoreThanAnHour(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		wait string
	}{
		"a delivery": {adapters.RetryAfter(errors.New("HTTP 500"), 100*time.Hour), `SELECT max(due_at) FROM outbox.delivery WHERE state = 'retry'`},
		"a sync":     {adapters.Throttled(errors.New("HTTP 429"), 100*time.Hour), `SELECT max(until) FROM outbox.hold`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
				return adapters.Receipt{Code: "HTTP 500"}, test.err
			})
			w.start("relay-1", sync1(c, func(s *relay.Sync) { s.Retry.MaxAge = 1000 * time.Hour }))
			w.emit("H-1", map[string]any{"n": 1})
			w.eventually("it was asked to wait", func() bool {
				return query[bool](w, `SELECT count(*) = 1 AND coalesce((`+test.wait+`) > clock_timestamp() + interval '30 minutes', false)
					FROM outbox.delivery_log WHERE attempt = 1`)
			})
			if query[bool](w, `SELECT (`+test.wait+`) > clock_timestamp() + interval '1 hour'`) {
				t.Errorf("%s waits until %s", name, query[time.Time](w, test.wait))
			}
		})
	}
}

// held puts the sync on a breaker hold whose probe is due.
func (w *world) held() {
	w.t.Helper()
	w.exec(`INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', 'breaker', now(), 'court was down', 'relay-0')`)
}

// A receiver that is down does not answer probes. The pauses between them grow, as after a refused
// connection.
func TestAProbeWithoutAnAnswerIsFollowedByAPause(t *testing.T) {
	for name, err := range map[string]error{
		"no answer": adapters.Unknown(errors.New("no answer")),
		"refused":   errors.New("connection refused"),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			probes := make(chan time.Time, 100)
			c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
				probes <- time.Now()
				return adapters.Receipt{}, err
			})
			config := sync1(c)
			w.register(config)
			w.held()
			w.bulk(20)
			w.start("relay-1", config)
			w.eventually("two probes", func() bool { return len(probes) >= 2 })
			first, second := <-probes, <-probes
			if pause := second.Sub(first); pause < time.Second {
				t.Errorf("%s between the probes, want a second", pause)
			}
		})
	}
}

// A probe is not sent, because its event is filtered or cannot be mapped. This shows nothing about
// the receiver, and the hold stays.
func TestAProbeThatIsNotSentLiftsNoHold(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{}, errors.New("connection refused")
	})
	config := sync1(c, func(s *relay.Sync) {
		s.When = `event.court != "elsewhere"`
		s.Mapping = relay.Mapping{Fields: []relay.Field{{From: "hearingId", To: "case_reference"}}}
	})
	w.register(config)
	w.held()
	w.emit("filtered", map[string]any{"court": "elsewhere"})
	w.emit("unmappable", map[string]any{"court": "NY-07"})
	w.start("relay-1", config)
	w.eventually("both are judged", func() bool {
		return query[string](w, `SELECT coalesce(string_agg(outcome, ' ' ORDER BY outcome), '') FROM outbox.delivery_log`) == "failed filtered"
	})
	w.eventually("the hold is gone or has had two probes", func() bool {
		return query[bool](w, `SELECT coalesce(max(probes) >= 2, true) FROM outbox.hold`)
	})
	if n := query[int](w, `SELECT count(*) FROM outbox.hold`); n != 1 {
		t.Fatal("the hold was lifted by a probe that was not sent")
	}
	for n := range 30 {
		w.emit(fmt.Sprint("H-", n), map[string]any{"hearingId": "1"})
	}
	w.eventually("a probe was sent", func() bool { return c.count() > 0 })
	if got := query[string](w, `SELECT coalesce(string_agg(kind, ' '), 'none') FROM outbox.hold`); got != "breaker" {
		t.Errorf("hold: %s, want the breaker's", got)
	}
	if got, probes := c.count(), query[int](w, `SELECT probes FROM outbox.hold`); got > probes {
		t.Errorf("the court, which is down, got %d requests with %d probes", got, probes)
	}
}

// While a receiver is known to be down, attempts cost no budget.
func TestNoRowPaysForAProbe(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 500"}, errors.New("HTTP 500")
	})
	config := sync1(c, func(s *relay.Sync) { s.Retry.Attempts = 1 })
	w.register(config)
	w.held()
	w.emit("H-1", map[string]any{"n": 1})
	w.start("relay-1", config)
	w.eventually("two probes, or one that failed the row", func() bool {
		return query[bool](w, `SELECT count(*) >= 2 OR EXISTS (SELECT FROM outbox.failed) FROM outbox.delivery_log`)
	})
	if got := query[string](w, `SELECT string_agg(DISTINCT outcome, ' ') FROM outbox.delivery_log`); got != "retry" {
		t.Errorf("outcomes of probes: %s, want retry only", got)
	}
	if got := query[int](w, `SELECT charged + spent_ms FROM outbox.delivery`); got != 0 {
		t.Errorf("the row paid %d for probes", got)
	}
}

// The last attempt is within the time of the budget. A delay that would end later is shortened.
func TestTheLastAttemptLiesWithinTheBudget(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 500"}, errors.New("HTTP 500")
	})
	w.start("relay-1", sync1(c, func(s *relay.Sync) {
		s.Retry.Initial, s.Retry.Max, s.Retry.MaxAge = time.Hour, time.Hour, 10*patience
	}))
	w.emit("H-1", map[string]any{"n": 1})
	w.eventually("it was tried", func() bool {
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.delivery WHERE state = 'retry')`)
	})
	if wait := query[time.Duration](w, `SELECT due_at - clock_timestamp() FROM outbox.delivery`); wait > 10*patience {
		t.Errorf("the next attempt is in %s, want it within the budget of %s", wait, 10*patience)
	}
	w.makeDue("H-1")
	w.counts("it has failed", 1, `SELECT count(*) FROM outbox.failed`)
	if got := query[string](w, `SELECT error FROM outbox.failed`); !strings.HasPrefix(got, "gave up after 10m0s of retries: ") {
		t.Errorf("the delivery failed: %s", got)
	}
	if got := c.count(); got != 2 {
		t.Errorf("%d attempts, want one at either end of the budget", got)
	}
}

// An operator's requeue resets all counts of the delivery.
func TestARequeueIsANewLife(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
		if nth <= 4 {
			return adapters.Receipt{Code: "HTTP 500"}, errors.New("HTTP 500")
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	w.start("relay-1", sync1(c, func(s *relay.Sync) { s.Retry.Attempts = 3 }))
	id := w.emit("H-1", map[string]any{"n": 1})
	w.eventually("failed", func() bool { return query[int](w, `SELECT count(*) FROM outbox.failed`) == 1 })
	w.exec(`UPDATE outbox.delivery SET spent_ms = 1e12`)
	w.exec(`SELECT outbox.requeue('CourtCalendarSync', event_id => $1)`, id)
	w.eventually("it is delivered, or has failed again", func() bool {
		return query[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE state <> 'failed')`)
	})
	got := query[string](w, `SELECT string_agg(outcome || coalesce(attempt::text, ''), ' ' ORDER BY id) FROM outbox.delivery_log`)
	if want := "retry1 retry2 failed3 requeued3 retry4 delivered5"; !strings.Contains(got, want) {
		t.Errorf("log: %s, want %s", got, want)
	}
}

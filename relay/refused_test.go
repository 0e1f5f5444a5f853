package relay_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

// answers with an error for keys that begin with "bad", and accepts the others.
func badOnes(code string, err error) *court {
	return newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if strings.HasPrefix(m.Key, "bad") {
			return adapters.Receipt{Code: code}, err
		}
		return adapters.Receipt{Code: "HTTP 201"}, nil
	})
}

// traffic writes events of new keys, each after the one before was delivered, until the condition
// holds.
func (w *world) traffic(what string, holds func() bool) {
	w.t.Helper()
	for n, deadline := 0, time.Now().Add(2*patience); !holds(); n++ {
		if time.Now().After(deadline) {
			w.t.Fatalf("still not: %s\n%s", what, w.dump())
		}
		id := w.emit(fmt.Sprint("good-", n), map[string]any{"n": n})
		w.eventually("another hearing is delivered", func() bool {
			return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE event_id = $1 AND outcome = 'delivered')`, id)
		})
	}
}

func (w *world) failed() int {
	w.t.Helper()
	return query[int](w, `SELECT count(*) FROM outbox.failed WHERE key LIKE 'bad%' AND error_class = 'permanent'`)
}

func TestARecordThatIsRefusedWhileOthersAreAcceptedFails(t *testing.T) {
	for name, refusal := range map[string]error{
		"HTTP 401": adapters.Auth(errors.New("no access")), "HTTP 403": adapters.Forbidden(errors.New("sealed")),
	} {
		for _, bad := range []int{1, 6, 30} {
			t.Run(fmt.Sprintf("%s, %d", name, bad), func(t *testing.T) {
				w := newWorld(t)
				c := badOnes(name, refusal)
				w.start("relay-1", sync1(c, func(s *relay.Sync) { s.Retry.Attempts = 1 }))
				w.emit("good", map[string]any{"n": 1})
				w.drained()
				for n := range bad {
					w.emit(fmt.Sprint("bad-", n), map[string]any{"n": n})
				}
				w.traffic("all that are refused have failed", func() bool { return w.failed() == bad })
				says := query[string](w, `SELECT DISTINCT regexp_replace(error, '\d+ times', 'N times') FROM outbox.failed`)
				if want := "the receiver refuses this record with " + name + ", the last N times, while it accepts others: " + refusal.Error(); says != want {
					t.Errorf("reason %q, want %q", says, want)
				}
				if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'failed' AND key NOT LIKE 'bad%'`); n > 0 {
					t.Errorf("%d others failed", n)
				}
				w.traffic("no hold is left", func() bool { return query[int](w, `SELECT count(*) FROM outbox.hold`) == 0 })
			})
		}
	}
}

// The sync is on hold, because all its deliveries were refused. A new one is tried at once, before
// the next probe is due.
func TestAHoldForRefusalsLetsTheFirstOfOthersThrough(t *testing.T) {
	w := newWorld(t)
	c := badOnes("HTTP 401", adapters.Auth(errors.New("no access")))
	w.start("relay-1", sync1(c))
	for n := range 12 {
		w.emit(fmt.Sprint("bad-", n), map[string]any{"n": n})
	}
	w.eventually("held, and the next probe is far away", func() bool {
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.hold WHERE kind = 'auth' AND until > clock_timestamp() + interval '7 seconds' AND probes > 1)
			AND NOT EXISTS (SELECT FROM outbox.lane WHERE claim IS NOT NULL)`)
	})
	w.exec(`UPDATE outbox.hold SET until = clock_timestamp() + $1::interval`, laterThanTestsWait)
	w.traffic("all that are refused have failed", func() bool { return w.failed() == 12 })
}

// laterThanTestsWait is the delay of a probe that must not come during a test. If it were more than
// a minute longer than a lease, the hold would be corrected as after a clock was set back.
const laterThanTestsWait = patience + 50*time.Second

// No request is accepted: the credentials count as bad, even if there are few keys.
func TestCredentialTroubleFailsNothing(t *testing.T) {
	for name, refusal := range map[string]error{
		"HTTP 401": adapters.Auth(errors.New("no access")), "HTTP 403": adapters.Forbidden(errors.New("no access")),
	} {
		for _, keys := range []int{1, 2, 40} {
			t.Run(fmt.Sprintf("%s, %d", name, keys), func(t *testing.T) {
				w := newWorld(t)
				var refused atomic.Bool
				c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
					if refused.Load() {
						return adapters.Receipt{Code: name}, refusal
					}
					return adapters.Receipt{Code: "HTTP 201"}, nil
				})
				w.start("relay-1", sync1(c, func(s *relay.Sync) { s.Concurrency, s.Retry.Attempts = 4, 1 }))
				w.emit("before", map[string]any{"n": 1})
				w.drained()
				refused.Store(true)
				for n := range keys {
					w.emit(fmt.Sprint("H-", n), map[string]any{"n": n})
				}
				w.eventually("held and probed", func() bool {
					return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.sync WHERE hold_kind = 'auth') AND coalesce(max(probes), 0) > 0 FROM outbox.hold`)
				})
				if asked := c.count(); asked > 40 {
					t.Errorf("the court was asked %d times in spite of the hold", asked)
				}
				refused.Store(false)
				w.drained()
				if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'failed'`); n > 0 {
					t.Errorf("%d failed: rows never fail for credentials", n)
				}
			})
		}
	}
}

// A gateway answers instead of the court. Its answers fail no delivery. Refusals of the court
// itself do.
func TestAnswersWithoutAReasonOpenTheBreaker(t *testing.T) {
	w := newWorld(t)
	var away atomic.Bool
	away.Store(true)
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		switch {
		case strings.HasPrefix(m.Key, "bad"):
			return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("no such room"))
		case away.Load():
			return adapters.Receipt{Code: "HTTP 404"}, adapters.Unexplained(errors.New("a page"))
		}
		return adapters.Receipt{Code: "HTTP 201"}, nil
	})
	w.start("relay-1", sync1(c))
	for n := range 60 {
		w.emit(fmt.Sprint("H-", n), map[string]any{"n": n})
	}
	w.eventually("the breaker is open", func() bool {
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.sync WHERE hold_kind = 'breaker')`)
	})
	w.emit("bad-1", map[string]any{"n": 1})
	w.eventually("a probe failed", func() bool {
		return query[bool](w, `SELECT coalesce(max(probes), 0) > 1 FROM outbox.hold`)
	})
	away.Store(false)
	w.eventually("all but one are delivered", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery`) == 1 && w.failed() == 1
	})
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'failed'`); n != 1 {
		t.Errorf("%d failed, want the one that the court refused", n)
	}
	if got := query[string](w, `SELECT string_agg(DISTINCT error_class, ' ') FROM outbox.delivery_log WHERE code = 'HTTP 404'`); got != "transient" {
		t.Errorf("answers without a reason are logged as %s, want transient", got)
	}
}

func TestARecordThatAloneGetsNoReasonFails(t *testing.T) {
	w := newWorld(t)
	c := badOnes("HTTP 404", adapters.Unexplained(errors.New("a page")))
	w.start("relay-1", sync1(c))
	w.emit("bad", map[string]any{"n": 1})
	w.traffic("it has failed", func() bool { return w.failed() == 1 })
	says := query[string](w, `SELECT regexp_replace(error, '\d+ times', 'N times') FROM outbox.failed`)
	if want := "the receiver answers this record with HTTP 404 and no reason, the last N times, while it accepts others: a page"; says != want {
		t.Errorf("reason %q, want %q", says, want)
	}
}

// A machine has no file descriptor left. This is our own fault and costs no budget.
func TestAFaultOfThisMachineCostsNothing(t *testing.T) {
	w := newWorld(t)
	var out atomic.Bool
	out.Store(true)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		if out.Load() {
			return adapters.Receipt{}, fmt.Errorf("file drop: %w", &os.PathError{Op: "open", Path: "/srv/court/x", Err: syscall.EMFILE})
		}
		return adapters.Receipt{Code: "HTTP 201"}, nil
	})
	const keys = 40
	w.start("relay-1", sync1(c, func(s *relay.Sync) { s.Retry.Attempts, s.Concurrency = 1, 4 }))
	for n := range keys {
		w.emit(fmt.Sprint("H-", n), map[string]any{"n": n})
	}
	w.eventually("several were tried", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE error_class = 'local'`) > 8
	})
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE attempts > 0 OR charged > 0 OR spent_ms > 0`); n > 0 {
		t.Errorf("%d deliveries paid for it", n)
	}
	if n := query[int](w, `SELECT count(*) FROM outbox.hold`); n > 0 {
		t.Error("the sync is on hold, for other relays too")
	}
	out.Store(false)
	w.drained()
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'failed' OR attempt > 1`); n > 0 {
		t.Errorf("%d attempts too many", n)
	}
}

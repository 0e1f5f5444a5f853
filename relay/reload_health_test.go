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

// Refusals of the old credentials do not count for the new ones. A record that was refused with both
// does not fail while no request with the new ones was accepted.
func TestOldRefusalsDoNotCountForNewCredentials(t *testing.T) {
	w := newWorld(t)
	refused := adapters.Auth(errors.New("no access"))
	refuses := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 401"}, refused
	})
	patient := func(s *relay.Sync) {
		s.Retry = relay.Retry{Initial: time.Minute, Max: time.Minute} // a record is at fault after a minute
	}
	r := w.start("relay-1", sync1(badOnes("HTTP 401", refused), patient))
	w.emit("good", map[string]any{"n": 1})
	w.drained()
	w.emit("bad", map[string]any{"n": 1})
	for n := 0; query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE key = 'bad'`) < 3; n++ {
		w.makeDue("bad")
		w.emit(fmt.Sprint("good-", n), map[string]any{"n": n})
		w.eventually("another is delivered", w.delivered(fmt.Sprint("good-", n)))
	}
	if _, err := r.Reload(sync1(refuses, patient)); err != nil {
		t.Fatal(err)
	}
	w.eventually("the sync is on hold", func() bool {
		w.makeDue("bad")
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.hold WHERE kind = 'auth')`)
	})
	if w.failed() > 0 {
		t.Errorf("failed although the new credentials were never accepted: %s", query[string](w, `SELECT error FROM outbox.failed`))
	}
}

// A probe with the old credentials is in flight. Its failure does not delay a probe with the new
// ones.
func TestNewCredentialsAreTriedAfterAProbeWithTheOld(t *testing.T) {
	w := newWorld(t)
	began, answer := make(chan struct{}, 100), make(chan struct{})
	refuses := newCourt(func(ctx context.Context, m adapters.Message, nth int) (adapters.Receipt, error) {
		if began <- struct{}{}; nth > 3 {
			select {
			case <-answer:
			case <-ctx.Done():
			}
		}
		return adapters.Receipt{Code: "HTTP 401"}, adapters.Auth(errors.New("no access"))
	})
	r := w.start("relay-1", sync1(refuses))
	w.emit("H-1", map[string]any{"n": 1})
	w.eventually("a probe after three refusals is in flight", func() bool { return len(began) > 3 })
	w.exec(`UPDATE outbox.hold SET probes = 5`) // the pause after it would be long
	knows := newCourt(accepts)
	if _, err := r.Reload(sync1(knows)); err != nil {
		t.Fatal(err)
	}
	close(answer)
	w.eventually("the new credentials are tried", func() bool { return knows.count() > 0 })
}

// A delivery waits for an abandoned attempt of its event. This costs no budget.
func TestWaitingForAnAttemptCostsNoBudget(t *testing.T) {
	w := newWorld(t)
	var log logBuffer
	c, other := newHangingCourt(t), quickCourt{newCourt(accepts)}
	config := hangingConfig(c, other, &log)
	config.Syncs[0].Retry.Attempts = 3
	r := w.start("relay-1", config)
	t.Cleanup(func() { c.leave(); _ = r.stop() })
	w.emit("stuck", map[string]any{"n": 1})
	w.eventually("it has waited more often than the budget allows attempts", func() bool {
		return strings.Count(outcomes(w), "retry") > 3
	})
	if got := outcomes(w); strings.Contains(got, "failed") {
		t.Errorf("outcomes %q, want none that failed", got)
	}
}

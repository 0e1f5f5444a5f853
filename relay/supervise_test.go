package relay_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

// panicking is an observer that panics in every third call of each kind.
type panicking struct{ attempts, claims, lost, clock, ahead atomic.Int64 }

func oops(calls *atomic.Int64) {
	if calls.Add(1)%3 == 0 {
		panic("the observer panics")
	}
}

func (p *panicking) Attempt(string, string, time.Duration) { oops(&p.attempts) }
func (p *panicking) Claim(string, int, time.Duration)      { oops(&p.claims) }
func (p *panicking) LeaseLost(string)                      { oops(&p.lost) }
func (p *panicking) Clock(time.Duration)                   { oops(&p.clock) }
func (p *panicking) MissingID(string)                      {}
func (p *panicking) Alert(string, string, int64)           { panic("the observer panics") }
func (p *panicking) LogAhead(int)                          { oops(&p.ahead) }

// logBuffer is a log that can be read during writes.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) contains(s string) bool { return b.count(s) > 0 }

func (b *logBuffer) count(s string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), s)
}

func TestPanicsInTheRelayAreLoggedAndStopNothing(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	var log logBuffer
	config := sync1(c)
	config.Observer = &panicking{}
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	w.start("relay-1", config)
	for n := range 20 {
		w.emit(fmt.Sprint("H-", n%5), map[string]any{"n": n})
	}
	w.drained()
	inOrder(t, c)
	for _, said := range []string{"panic, starting the loop again", "claim for sync CourtCalendarSync", "stack="} {
		w.eventually("the log says "+said, func() bool { return log.contains(said) })
	}
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'unknown' AND error LIKE '%panic%'`); got == 0 {
		t.Error("no attempt ended in a panic: the test tests nothing")
	}
}

// stubborn is an adapter that ignores the end of its context.
type stubborn struct{ until chan struct{} }

func (s stubborn) Deliver(context.Context, adapters.Message) (adapters.Receipt, error) {
	<-s.until
	return adapters.Receipt{Code: "HTTP 200"}, nil
}

func (stubborn) AttemptTimeout() time.Duration { return 50 * time.Millisecond }

// A call that does not return costs its sync a worker. If no worker is left, the sync sends nothing and
// the relay is not ready.
func TestAttemptThatNeverEndsMakesTheRelayNotReady(t *testing.T) {
	w := newWorld(t)
	a := stubborn{until: make(chan struct{})}
	var log logBuffer
	config := sync1(a, func(s *relay.Sync) { s.Concurrency = 1 })
	config.Lease = time.Second
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	r := w.start("relay-1", config)
	w.eventually("ready", func() bool { return r.Ready(t.Context()) == nil })
	w.emit("H-1", map[string]any{"n": 1})
	w.eventually("not ready, and says why", func() bool {
		err := r.Ready(t.Context())
		return err != nil && strings.Contains(err.Error(), "stalled: waiting for the calls that keep all workers of sync CourtCalendarSync takes")
	})
	w.eventually("it is logged", func() bool { return log.contains("stalled, the relay is not ready") })
	close(a.until)
	w.eventually("ready again", func() bool { return r.Ready(t.Context()) == nil })
	w.eventually("that is logged too", func() bool { return log.contains("resumed after a stall") })
	w.drained()
}

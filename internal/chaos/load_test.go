//go:build linux

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/hms-mkt/lockstep/internal/waiting"
)

// load is a group of writers at work.
type load struct {
	w       *world
	end     context.CancelFunc
	group   sync.WaitGroup
	written atomic.Int64
}

// loadSpec configures writers. Their keys overlap, so they wait for each other. One in fifty transactions
// stays open for a while. Every fourth event is from a writer without a row of its own.
type loadSpec struct {
	writers int
	keys    int
	events  int     // how many in all; 0 is until the load ends
	rate    float64 // events per second in all; 0 is no limit
}

// begin starts the writers. They repeat a write that the database refuses, because outages are for the
// relay.
func (w *world) begin(s loadSpec) *load {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{w: w, end: cancel}
	w.t.Cleanup(func() { cancel(); l.group.Wait() })
	limit := rate.NewLimiter(rate.Inf, 1)
	if s.rate > 0 {
		limit = rate.NewLimiter(rate.Limit(s.rate), 1)
	}
	var taken atomic.Int64
	for n := range s.writers {
		random := rand.New(rand.NewPCG(w.run.seed, uint64(100+n)))
		l.group.Go(func() {
			for s.events == 0 || taken.Add(1) <= int64(s.events) {
				for !l.one(ctx, limit, random, s.keys) {
					if ctx.Err() != nil {
						return
					}
					waiting.StallFor(ctx, 20*time.Millisecond) // as a writer would before it tries again
				}
			}
		})
	}
	return l
}

func (l *load) one(ctx context.Context, limit *rate.Limiter, random *rand.Rand, keys int) bool {
	if limit.Wait(ctx) != nil {
		return false
	}
	call, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var err error
	switch dice := random.IntN(200); {
	case dice < 50:
		err = l.w.emit(call, fmt.Sprint("E-", random.IntN(keys)))
	case dice < 54:
		err = l.w.write(call, fmt.Sprint("H-", random.IntN(keys)), 200*time.Millisecond)
	default:
		err = l.w.write(call, fmt.Sprint("H-", random.IntN(keys)), 0)
	}
	if err == nil {
		l.written.Add(1)
	}
	return err == nil
}

// wait waits until all events are written.
func (l *load) wait() {
	l.w.t.Helper()
	done := make(chan struct{})
	go func() { l.group.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * patience):
		l.w.t.Fatalf("the writers did not finish: %d written", l.written.Load())
	}
}

// stop ends the writers.
func (l *load) stop() {
	l.end()
	l.group.Wait()
}

// reaches waits until n events are written.
func (l *load) reaches(n int64) {
	l.w.t.Helper()
	l.w.within(10*patience, fmt.Sprint(n, " events written"), func() bool { return l.written.Load() >= n })
}

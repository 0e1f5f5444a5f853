package relay

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// processStart is the zero of times that are stored as durations. They are measured on the
// monotonic clock, so a change of the wall clock has no effect.
var processStart = time.Now()

func sinceStart() int64 { return int64(time.Since(processStart)) }

// step is the current work of a loop. If it takes too long, the relay logs it and is not
// ready. The zero step is idle.
type step struct {
	name  string
	bound time.Duration
	since atomic.Int64 // sinceStart, 0 when idle
	told  bool         // the watcher has logged that it is stuck
}

func (s *step) begin() { s.since.Store(sinceStart()) }
func (s *step) end()   { s.since.Store(0) }

// stuck returns how long the step has taken, and whether that is longer than its bound.
func (s *step) stuck() (time.Duration, bool) {
	since := s.since.Load()
	took := time.Duration(sinceStart() - since)
	return took, since != 0 && took > s.bound
}

// steps has the steps of all loops of a relay.
type steps struct {
	mu  sync.Mutex
	all []*step
}

// add makes a step. If it takes longer than bound, the relay is not ready.
func (w *steps) add(name string, bound time.Duration) *step {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &step{name: name, bound: bound}
	w.all = append(w.all, s)
	return s
}

// stuck returns an error that names the steps that take too long, nil if none does.
func (w *steps) stuck() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for _, s := range w.all {
		if took, stuck := s.stuck(); stuck {
			names = append(names, fmt.Sprintf("%s takes %s", s.name, took.Round(time.Second)))
		}
	}
	if names == nil {
		return nil
	}
	return fmt.Errorf("stalled: %s", strings.Join(names, ", "))
}

// report calls tell for each step that got stuck or resumed since the last report.
func (w *steps) report(tell func(name string, took time.Duration, stuck bool)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.all {
		if took, stuck := s.stuck(); stuck != s.told {
			s.told = stuck
			tell(s.name, took, stuck)
		}
	}
}

// Bounds on the steps of the loops. They are longer than the bounds of the store on its
// calls.
const (
	claimBound    = 30 * time.Second // plus the longest attempt, for which a claimer may have to wait
	recordBound   = 30 * time.Second
	maintainBound = 5 * time.Minute
	watchEvery    = time.Second
)

// watchLoop logs loops that are stuck, until ctx ends. It does nothing else about them: every
// call has its own deadline, and claims end with their lease.
func (r *Relay) watchLoop(ctx context.Context) {
	for ctx.Err() == nil {
		r.steps.report(func(name string, took time.Duration, stuck bool) {
			if stuck {
				r.log.ErrorContext(ctx, "stalled, the relay is not ready", "loop", name, "for", took.Round(time.Second))
			} else {
				r.log.InfoContext(ctx, "resumed after a stall", "loop", name)
			}
		})
		sleep(ctx, watchEvery)
	}
}

// supervise runs a loop until it returns. After a panic it logs the stack and starts the loop
// again. Lanes that the loop had claimed become due when their lease ends.
func (r *Relay) supervise(name string, loop func() error) error {
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		started := time.Now()
		panicked, err := r.survive(name, loop)
		if !panicked {
			return err
		}
		if time.Since(started) > time.Minute {
			pause = firstPause
		}
		time.Sleep(pause)
	}
}

func (r *Relay) survive(name string, loop func() error) (panicked bool, err error) {
	defer func() {
		if v := recover(); v != nil {
			panicked = true
			r.log.Error("panic, starting the loop again", "loop", name, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	return false, loop()
}

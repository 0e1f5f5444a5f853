package relay

import (
	"context"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// recordLoop records results as they come: whatever has come together since
// the last recording goes in one. A row that somebody else keeps locked is set
// aside and tried again without holding up the others; while the database is
// away results wait here, bounded by the claims outstanding.
//
// There are two: the second helps when results come faster than one recording
// after the other can take them. Which of them takes a result makes no
// difference: the next of its key is claimed only once it is recorded.
func (p *pipeline) recordLoop(attempts context.Context, doing *step, helps bool) {
	var waiting []outbox.Result                                // to be recorded
	defer func() { p.outstanding.Add(int64(-len(waiting))) }() // not zero after a panic only: the leases end
	defer doing.end()
	open := true
	pause := time.Duration(0)
	calls, one := p.relay.caller("record deliveries", p.sync.Name), p.relay.caller("record a delivery", p.sync.Name)
	calls.loop, one.loop, one.says = doing.name, doing.name, "the database refuses a result"
	for open || len(waiting) > 0 {
		p = p.now()
		if pause == 0 && !helps && p.asleep.any() {
			pause = wakeEvery
		}
		waiting, open = p.collect(waiting, open, pause, helps)
		if len(waiting) == 0 && !p.asleep.due() {
			continue
		}
		if p.relay.cut.Load() && pause > 0 && !open {
			p.log.ErrorContext(attempts, "stopping with results that the database did not take; others will find out", "results", len(waiting))
			return
		}
		var err error
		doing.begin()
		waiting, err = p.record(context.WithoutCancel(attempts), waiting)
		doing.end()
		switch {
		case err != nil:
			pause = calls.failed(context.WithoutCancel(attempts), err)
			if !outbox.IsTemporary(err) || outbox.IsConflict(err) { // a row that is in somebody's way must not keep the others
				if waiting = p.recordEach(context.WithoutCancel(attempts), waiting, one); len(waiting) == 0 {
					pause = 0
				}
			}
		case len(waiting) > 0:
			pause = 20 * time.Millisecond // locked by somebody
		default:
			pause = 0
			calls.worked(context.WithoutCancel(attempts))
			one.worked(context.WithoutCancel(attempts))
		}
	}
}

// sleepers are keys whose next delivery is parked and could not be woken when
// the one before it was recorded, since somebody held it. Some are tried again
// with a recording, or without one, at every wakeEvery; beyond mostAsleep they
// are left to the slow check. They are safe for concurrent use.
type sleepers struct {
	mu    sync.Mutex
	keys  map[string]bool
	tried time.Time
}

const (
	wakeEvery  = 20 * time.Millisecond
	mostAsleep = 20 * maxBatch
)

func (s *sleepers) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.keys) > 0
}

func (s *sleepers) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.keys) > 0 && time.Since(s.tried) >= wakeEvery
}

// take hands out some of those that are due.
func (s *sleepers) take() []string {
	if !s.due() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried = time.Now()
	var some []string
	for key := range s.keys {
		if len(some) == maxBatch {
			break
		}
		some = append(some, key)
		delete(s.keys, key)
	}
	return some
}

func (s *sleepers) add(keys []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys == nil {
		s.keys = map[string]bool{}
	}
	for _, key := range keys {
		if len(s.keys) < mostAsleep {
			s.keys[key] = true
		}
	}
}

// wakeAsleep tries for a second, at a stop, what the slow check would have to
// find else.
func (p *pipeline) wakeAsleep(ctx context.Context) {
	for until := time.Now().Add(time.Second); p.asleep.any() && time.Now().Before(until) && !p.relay.cut.Load(); {
		if _, err := p.record(ctx, nil); err != nil {
			return
		}
		sleep(ctx, wakeEvery)
	}
}

// collect adds what has come in. It waits for the first result, or who helps
// for a pile of them, or for the pause to pass when some are waiting already.
func (p *pipeline) collect(waiting []outbox.Result, open bool, pause time.Duration, helps bool) ([]outbox.Result, bool) {
	if !open {
		time.Sleep(pause)
		return waiting, false
	}
	first, pile := p.results, p.piled
	if helps {
		first = nil
	} else {
		pile = nil
	}
	var passed <-chan time.Time // never, without a pause
	if pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		passed = t.C
	}
	select {
	case r, ok := <-first:
		if !ok {
			return waiting, false
		}
		waiting = append(waiting, r)
		runtime.Gosched() // what was claimed together is often answered together
	case <-pile:
	case <-passed:
	}
	for len(waiting) < maxBatch {
		select {
		case r, ok := <-p.results:
			if !ok {
				return waiting, false
			}
			waiting = append(waiting, r)
		default:
			return waiting, true
		}
	}
	return waiting, true
}

// answered hands a result to the recorders.
func (p *pipeline) answered(r outbox.Result) {
	p.results <- r
	if len(p.results) >= helpAt {
		select {
		case p.piled <- struct{}{}:
		default:
		}
	}
}

// recordEach records results one by one, so that one which the database refuses
// does not keep the others.
func (p *pipeline) recordEach(ctx context.Context, results []outbox.Result, calls *caller) (left []outbox.Result) {
	for _, r := range results {
		still, err := p.record(ctx, []outbox.Result{r})
		if err != nil {
			calls.failed(ctx, err, "event", r.Delivery.Event.ID, "key", r.Delivery.Key)
		}
		left = append(left, still...)
	}
	return left
}

// record writes results down, hands on what comes next for their keys and wakes
// what slept. It returns what is still to be recorded.
func (p *pipeline) record(ctx context.Context, results []outbox.Result) (left []outbox.Result, err error) {
	next := outbox.ClaimRequest{Sync: p.sync.Name, From: *p.walked.Load(), Lease: p.relay.config.Lease, Keys: p.asleep.take(), Wanted: p.wanted()}
	if !p.draining.Load() && p.hold.Load() == nil && p.rate == nil && p.slots.usable() > 0 {
		// No more than leave: the queue has room for what the budget of claims allows.
		stay, goOn := p.outstanding.Load()-int64(len(results)), p.goOn.Load()
		next.Budget = int(min(int64(len(results)), max(0, goOn-stay)))
		if goOn < math.MaxInt64 && p.behind.Load() {
			next.From = outbox.Cursor{} // they keep their age: the sweep finds them
		}
	}
	if p.draining.Load() {
		next.From = outbox.End() // no walk of this relay comes by any more
	}
	started := time.Now()
	answer := p.relay.store.Record(ctx, results, next)
	p.accept(answer.Claims, started, false)
	finished := 0
	for i := range results {
		switch {
		case answer.Done[i]:
			finished++
			if results[i].Outcome.Finished() {
				p.delivered.Store(sinceBegan())
			}
		case answer.Lost[i]:
			finished++
			p.relay.config.Observer.LeaseLost(p.sync.Name)
			p.log.WarnContext(ctx, "lease lost: another relay has taken the delivery over",
				"event", results[i].Delivery.Event.ID, "key", results[i].Delivery.Key, "outcome", results[i].Outcome)
		default:
			left = append(left, results[i])
		}
	}
	p.outstanding.Add(int64(-finished))
	p.recorded.Add(int64(finished))
	if answer.Claims.Woken || finished > 0 && p.full.Load() {
		p.wake()
	}
	return left, answer.Err
}

package relay

import (
	"context"
	"runtime"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// recordLoop records results as they come: all that have come since the last recording
// go into one. A row that another session has locked is set aside and tried again; the
// others do not wait for it. While the database is away results wait here. The lanes
// claimed bound their number.
//
// There are two recorders. The second helps when results come faster than the first can
// record them. It does not matter which of them takes a result: the next delivery of a
// lane is handed out only once the one before is recorded.
func (p *pipeline) recordLoop(attempts context.Context, doing *step, helps bool) {
	var waiting []answer                                       // to be recorded
	defer func() { p.outstanding.Add(int64(-len(waiting))) }() // not zero after a panic only: the leases end
	defer doing.end()
	open := true
	pause := time.Duration(0)
	calls, one := p.relay.caller("record deliveries", p.sync.Name), p.relay.caller("record a delivery", p.sync.Name)
	calls.loop, one.loop, one.says = doing.name, doing.name, "the database refuses a result"
	for open || len(waiting) > 0 {
		p = p.now()
		waiting, open = p.collect(waiting, open, pause, helps)
		if len(waiting) == 0 {
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
			if !outbox.IsTemporary(err) || outbox.IsConflict(err) { // one row that conflicts must not hold up the others
				if waiting = p.recordEach(context.WithoutCancel(attempts), waiting, one); len(waiting) == 0 {
					pause = 0
				}
			}
		case len(waiting) > 0:
			pause = 20 * time.Millisecond // locked by another session
		default:
			pause = 0
			calls.worked(context.WithoutCancel(attempts))
			one.worked(context.WithoutCancel(attempts))
		}
	}
}

// collect adds the results that have come in. It waits for the first result, the second
// recorder for many of them, or for the pause to pass when some are waiting already.
func (p *pipeline) collect(waiting []answer, open bool, pause time.Duration, helps bool) ([]answer, bool) {
	if !open {
		time.Sleep(pause)
		return waiting, false
	}
	first, pile := p.results, p.resultsPiled
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

// answer is what became of a claimed delivery.
type answer struct {
	outbox.Result
	work work
}

// submit hands a result to the recorders.
func (p *pipeline) submit(w work, r outbox.Result) {
	p.results <- answer{r, w}
	if len(p.results) >= secondRecorderAt {
		select {
		case p.resultsPiled <- struct{}{}:
		default:
		}
	}
}

// giveBack releases lanes that have nothing to be sent now.
func (p *pipeline) giveBack(idle []outbox.Result) {
	p.outstanding.Add(int64(len(idle)))
	for _, r := range idle {
		p.submit(work{}, r)
	}
}

// recordEach records results one by one, so that one which the database refuses
// does not keep the others.
func (p *pipeline) recordEach(ctx context.Context, answers []answer, calls *caller) (left []answer) {
	for _, a := range answers {
		still, err := p.record(ctx, []answer{a})
		if err != nil {
			calls.failed(ctx, err, "event", a.Delivery.Event.ID, "key", a.Delivery.Key)
		}
		left = append(left, still...)
	}
	return left
}

// record writes results down and hands on the next deliveries of lanes that stay
// claimed. It returns what is still to be recorded.
func (p *pipeline) record(ctx context.Context, answers []answer) (left []answer, err error) {
	stay := !p.draining.Load() && p.hold.Load() == nil && p.rate == nil
	now, results := time.Now(), make([]outbox.Result, len(answers))
	lanes := make(map[string]work, len(answers))
	p.scheduleMu.Lock()
	for i, a := range answers {
		results[i] = a.Result
		a.work.probe = probe{} // what follows in the lane is none
		results[i].Stay = stay && p.mayStart(a.work) && p.schedule.stays(now, a.work.claimed, a.Took)
		if results[i].Stay {
			lanes[a.Delivery.Key] = a.work
		}
	}
	p.scheduleMu.Unlock()
	recorded := p.relay.store.Record(ctx, p.sync.Name, results)
	for _, d := range recorded.Next {
		p.accept([]*outbox.Delivery{d}, lanes[d.Key])
	}
	finished := 0
	for i := range results {
		switch {
		case recorded.Done[i]:
			finished++
			if results[i].Outcome.Finished() {
				p.delivered.Store(sinceStart())
			}
		case recorded.Lost[i]:
			finished++
			p.relay.config.Observer.LeaseLost(p.sync.Name)
			p.log.WarnContext(ctx, "lease lost: another relay has taken the delivery over",
				"event", results[i].Delivery.Event.ID, "key", results[i].Delivery.Key, "outcome", results[i].Outcome)
		default:
			left = append(left, answers[i])
		}
	}
	p.outstanding.Add(int64(-finished))
	p.recorded.Add(int64(finished))
	if finished > len(recorded.Next) && p.atCapacity.Load() {
		p.wake()
	}
	return left, recorded.Err
}

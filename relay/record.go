package relay

import (
	"context"
	"runtime"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// recordLoop records results as they come. All results since the last recording go into the
// next one. If another session has locked a row, its result is tried again later, and the
// others do not wait for it. While the database cannot be reached, results wait here. Their
// number is bounded by the number of claimed lanes.
//
// There are two recorders. The second one helps if results come faster than the first can
// record them. Either may take a result: the next delivery of a lane is sent only after the
// one before is recorded.
func (p *pipeline) recordLoop(attempts context.Context, doing *step, helps bool) {
	var waiting []answer                                       // answers to be recorded
	defer func() { p.outstanding.Add(int64(-len(waiting))) }() // not empty only after a panic: then the leases end
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
			p.log.ErrorContext(attempts, "stopping with results that the database did not take: other relays will log them as unknown", "results", len(waiting))
			return
		}
		var err error
		doing.begin()
		waiting, err = p.record(context.WithoutCancel(attempts), waiting)
		doing.end()
		switch {
		case err != nil:
			pause = calls.failed(context.WithoutCancel(attempts), err)
			if !outbox.IsTemporary(err) || outbox.IsConflict(err) { // the others must not wait for one row that conflicts
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

// collect adds new results to those that wait. It waits for a first result; the second
// recorder waits for many of them. If results wait already, collect returns after the
// pause at the latest.
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
	var passed <-chan time.Time // nil without a pause
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
		runtime.Gosched() // deliveries that were claimed together are often answered together
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

// answer is the result of a claimed delivery, with its work.
type answer struct {
	outbox.Result
	work work
}

// submit passes a result to the recorders.
func (p *pipeline) submit(w work, r outbox.Result) {
	p.results <- answer{r, w}
	if len(p.results) >= secondRecorderAt {
		select {
		case p.resultsPiled <- struct{}{}:
		default:
		}
	}
}

// releaseIdle releases lanes that have nothing to send now.
func (p *pipeline) releaseIdle(idle []outbox.Result) {
	p.outstanding.Add(int64(len(idle)))
	for _, r := range idle {
		p.submit(work{}, r)
	}
}

// recordEach records results one by one. So a result that the database refuses does not
// stop the others.
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

// record records results, and passes the next deliveries of kept lanes to the senders. It
// returns the results that are not recorded yet.
func (p *pipeline) record(ctx context.Context, answers []answer) (left []answer, err error) {
	stay := !p.draining.Load() && p.hold.Load() == nil && p.rate == nil
	now, results := time.Now(), make([]outbox.Result, len(answers))
	lanes := make(map[string]work, len(answers))
	p.scheduleMu.Lock()
	for i, a := range answers {
		results[i] = a.Result
		a.work.probe = probe{} // the next delivery of the lane is not a probe
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
	finished, goesOn := 0, false // the lane of a step or a read is due again
	for i := range results {
		switch {
		case recorded.Done[i]:
			finished++
			switch outcome := results[i].Outcome; {
			case outcome.Finished():
				p.delivered.Store(sinceStart())
			case outcome == outbox.Step, outcome == outbox.Read:
				goesOn = true
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
	if goesOn || finished > len(recorded.Next) && p.atCapacity.Load() {
		p.wake()
	}
	return left, recorded.Err
}

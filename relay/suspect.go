package relay

import (
	"context"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// suspect asks the suspect loop to send a suspect. If right is granted, the suspect is sent
// as a probe. It reports false if an earlier request is still open.
func (p *pipeline) suspect(right probe) bool {
	select {
	case p.suspects <- right:
		return true
	default:
		return false
	}
}

// suspectLoop sends suspects: deliveries during which two or more relays died. While it
// sends one, this process sends no other delivery of the sync and no suspect of another
// sync. So the next death shows which delivery caused it. After a suspect, the sync sends
// its other deliveries for as long as the suspect took. If attempts in flight do not end
// in time, the sync sends other deliveries for four times as long, and the next wait is
// longer.
func (p *pipeline) suspectLoop(attempts context.Context) {
	doing := p.relay.steps.add("a suspect of sync "+p.sync.Name, 2*p.sync.AttemptTimeout()+recordBound)
	defer doing.end()
	aloneWait, calls := firstAloneWait, p.relay.caller("claim suspects", p.sync.Name)
	for {
		var right probe
		select {
		case right = <-p.suspects:
		case <-p.stop:
			return
		}
		p = p.now()
		began := time.Now()
		doing.begin()
		alone, err := p.sendSuspect(attempts, right, aloneWait)
		doing.end()
		switch took := time.Since(began); {
		case err != nil:
			p.rest(calls.failed(attempts, err))
		case alone:
			calls.worked(attempts)
			aloneWait = firstAloneWait
			p.rest(took)
		default:
			aloneWait = min(2*aloneWait, p.sync.AttemptTimeout())
			p.rest(4 * took)
		}
	}
}

// sendSuspect claims one suspect and sends it. It does nothing and reports false if attempts
// in flight do not end within aloneWait.
func (p *pipeline) sendSuspect(attempts context.Context, right probe, aloneWait time.Duration) (alone bool, err error) {
	claimed := false
	defer func() {
		if right.granted() && !claimed && err == nil {
			p.inDatabase("set the next probe", func(ctx context.Context) error { return p.nothingToProbeWith(ctx, right) })
		}
	}()
	if alone = p.slots.acquireExclusive(aloneWait); !alone {
		return false, nil
	}
	defer p.slots.releaseExclusive()
	p = p.now() // there may have been a reload while it waited
	if p.draining.Load() || p.slots.workers() == 0 {
		return true, nil
	}
	lease, started := p.relay.config.Lease, time.Now()
	claims, err := p.relay.store.ClaimOne(attempts, outbox.OneRequest{Sync: p.sync.Name, Lease: lease, Wanted: p.wanted(), Suspect: true, Probe: right.granted(), Scope: right.of})
	p.noteHeld(started, claims.Held)
	p.releaseIdle(claims.Idle)
	if claimed = len(claims.Deliveries) > 0; !claimed {
		return true, err
	}
	p.outstanding.Add(1)
	w := work{Delivery: claims.Deliveries[0], leaseEnd: started.Add(lease), probe: right}
	if right.granted() {
		p.probing.Add(1)
	}
	scope, result, ok := p.scopeOf(attempts, w)
	switch w.to, w.located = scope, ok; {
	case !ok:
	case w.probe.granted() && w.probe.of != "" && w.probe.of != scope, p.heldApart(w):
		result = outbox.Result{Delivery: w.Delivery, Scope: &w.to}
	default:
		result = p.attempt(attempts, w)
	}
	p.finish(w, result)
	return true, nil
}

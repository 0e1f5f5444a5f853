package relay

import (
	"context"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// probe is the right to send one delivery in spite of an auth or breaker hold, to learn
// whether the trouble is over. The zero probe gives no such right.
type probe struct {
	of     string // the scope that is on hold; empty means the whole sync
	number int    // number of probes of the hold by all relays, with this one
}

func (p probe) granted() bool { return p.number > 0 }

// sendProbe sends one delivery in spite of an auth or breaker hold of a scope, unless
// another relay probes it. The database proposes keys, and sendProbe takes the first one
// that it can claim. If the whole sync is on hold and none of them can be claimed, it takes
// any due lane.
func (p *pipeline) sendProbe(ctx, attempts context.Context, scope string) error {
	store, lease := p.relay.store, p.relay.config.Lease
	granted, err := store.Probe(attempts, p.sync.Name, scope, lease)
	if err != nil || granted.Number == 0 {
		return err
	}
	right := probe{of: scope, number: granted.Number}
	keys := granted.With
	if scope == "" {
		keys = append(keys, "") // any due lane
	}
	for _, key := range keys {
		if ctx.Err() != nil {
			break
		}
		p.claiming.begin()
		asked := time.Now()
		claims, err := store.ClaimOne(attempts, outbox.OneRequest{Sync: p.sync.Name, Lease: lease, Wanted: p.wanted(), Key: key, Probe: true})
		p.noteHeld(asked, claims.Held)
		p.probing.Add(int64(len(claims.Deliveries)))
		p.accept(claims.Deliveries, work{leaseEnd: asked.Add(lease), claimed: asked, probe: right})
		p.releaseIdle(claims.Idle)
		if err != nil || len(claims.Deliveries) > 0 {
			return err
		}
	}
	if granted.Suspects && p.suspect(right) {
		return nil
	}
	return p.nothingToProbeWith(attempts, right)
}

// nothingToProbeWith sets the next probe to be due soon: then a delivery may be due. If no
// lane of the scope waits, it ends the hold.
func (p *pipeline) nothingToProbeWith(ctx context.Context, right probe) error {
	if right.of != "" {
		if lifted, err := p.relay.store.LiftUnused(ctx, p.sync.Name, right.of); lifted || err != nil {
			return err
		}
	}
	return p.relay.store.ProbeAgain(ctx, p.sync.Name, right.of, right.number, time.Second, false)
}

// probed handles the result of a probe. If the receiver accepted or rejected the message,
// the hold ends. If the attempt failed, the next probe waits longer. If nothing was sent,
// the next probe may follow at once.
func (p *pipeline) probed(w work, r outbox.Result) {
	p.probing.Add(-1)
	again, untried := time.Duration(0), false
	switch {
	case r.Outcome.Succeeded() && r.Attempt, r.Outcome == outbox.Failed && r.Attempt:
		p.inDatabase("lift the hold", func(ctx context.Context) error { return p.relay.store.Lift(ctx, p.sync.Name, w.probe.of) })
		p.wake()
		return
	case r.Outcome == outbox.Retry, r.Outcome == outbox.Unknown, r.Outcome == outbox.Read && r.Class != "":
		again, untried = min(probeMost, time.Second<<min(w.probe.number, 5)), r.Delivery.Class == ""
		if p != p.now() {
			again, untried = 0, false // a reload has replaced the settings that it tried
		}
	}
	p.inDatabase("set the next probe", func(ctx context.Context) error {
		return p.relay.store.ProbeAgain(ctx, p.sync.Name, w.probe.of, w.probe.number, again, untried)
	})
}

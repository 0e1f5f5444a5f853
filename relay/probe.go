package relay

import (
	"context"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// probe is the right to send one delivery in spite of an auth or breaker hold, to find
// out whether that can end. The zero probe is none.
type probe struct {
	of     string // the scope that is on hold; empty is the whole sync
	number int    // probes of the hold, by all relays, this one included
}

func (p probe) granted() bool { return p.number > 0 }

// sendProbe sends one delivery in spite of an auth or breaker hold of a scope, unless
// another relay is probing it. The database proposes keys: it takes the first that it
// can claim. If the whole sync is on hold, any other key will do.
func (p *pipeline) sendProbe(ctx, attempts context.Context, scope string) error {
	store, lease := p.relay.store, p.relay.config.Lease
	granted, err := store.Probe(attempts, p.sync.Name, scope, lease)
	if err != nil || granted.Number == 0 {
		return err
	}
	right := probe{of: scope, number: granted.Number}
	keys := granted.With
	if scope == "" {
		keys = append(keys, "") // or whatever is due
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
		p.giveBack(claims.Idle)
		if err != nil || len(claims.Deliveries) > 0 {
			return err
		}
	}
	if granted.Suspects && p.suspect(right) {
		return nil
	}
	return p.nothingToProbeWith(attempts, right)
}

// nothingToProbeWith has the next probe made soon, when something may be due. A hold
// of a scope for which nothing waits is lifted.
func (p *pipeline) nothingToProbeWith(ctx context.Context, right probe) error {
	if right.of != "" {
		if lifted, err := p.relay.store.LiftUnused(ctx, p.sync.Name, right.of); lifted || err != nil {
			return err
		}
	}
	return p.relay.store.ProbeAgain(ctx, p.sync.Name, right.of, right.number, time.Second, false)
}

// probed draws the conclusion from a probe: an answer that is about the message
// ends the hold, a failure makes the next probe wait longer, and a delivery
// that was not sent after all changes nothing.
func (p *pipeline) probed(w work, r outbox.Result) {
	p.probing.Add(-1)
	again, untried := time.Duration(0), false
	switch {
	case r.Outcome.Finished() && r.Attempt, r.Outcome == outbox.Failed && r.Attempt:
		p.inDatabase("lift the hold", func(ctx context.Context) error { return p.relay.store.Lift(ctx, p.sync.Name, w.probe.of) })
		p.wake()
		return
	case r.Outcome == outbox.Retry, r.Outcome == outbox.Unknown:
		again, untried = min(probeMost, time.Second<<min(w.probe.number, 5)), r.Delivery.Class == ""
		if p != p.now() {
			again, untried = 0, false // it tried what a reload has replaced
		}
	}
	p.inDatabase("set the next probe", func(ctx context.Context) error {
		return p.relay.store.ProbeAgain(ctx, p.sync.Name, w.probe.of, w.probe.number, again, untried)
	})
}

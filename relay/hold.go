package relay

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// setHold remembers what the database said last. When a hold ends, traffic
// starts again with a single delivery.
func (p *pipeline) setHold(h *outbox.Hold) {
	before := p.hold.Swap(h)
	switch {
	case h != nil && before == nil:
		until := "lifted"
		if !h.Until.IsZero() {
			until = h.Until.UTC().Format(time.RFC3339)
		}
		p.log.Info("sync on hold", "kind", h.Kind, "until", until, "reason", h.Reason)
	case h == nil && before != nil:
		p.log.Info("hold ended", "kind", before.Kind)
		p.healths.released()
		switch before.Kind {
		case outbox.HoldBreaker, outbox.HoldThrottle, outbox.HoldWindow:
			p.slots.slow()
		case outbox.HoldOperator, outbox.HoldBackfill, outbox.HoldAuth: // the receiver was not at its limit
		}
	}
}

// noteHeld remembers the scopes that a claim, asked for at the given time, found on
// hold, before its deliveries are sent. It reports whether some of them are new.
func (p *pipeline) noteHeld(asked time.Time, held []string) (news bool) {
	if len(held) == 0 {
		return false
	}
	var parked []work
	p.destinationsMu.Lock()
	for _, scope := range held {
		fresh, waiting := p.destinations.hold(asked, outbox.Hold{Scope: scope}, asked.Sub(processStart))
		news, parked = fresh || news, append(parked, waiting...)
	}
	p.destinationsMu.Unlock()
	p.giveBackParked(parked)
	return news
}

// readScopes ends the holds of scopes that a claim, asked for at the given time, did
// not find any more, and reads what the others are. It sends probes of those that are
// due. Probes have a quarter of the slots, so that many dead destinations leave the
// others theirs.
func (p *pipeline) readScopes(ctx, attempts context.Context, asked time.Time, held []string, news bool) error {
	p.destinationsMu.Lock()
	ended := p.destinations.release(asked.Sub(processStart), held)
	p.destinationsMu.Unlock()
	for _, h := range ended {
		p.log.InfoContext(ctx, "hold ended", "scope", h.Scope, "kind", h.Kind)
		p.healths.of(h.Scope).released()
	}
	if news = p.probeMisplaced.Swap(false) || news; len(held) == 0 || !news && time.Since(p.scopesRead) < scopesEvery {
		return nil
	}
	p.scopesRead = time.Now()
	holds, err := p.relay.store.ScopeHolds(attempts, p.sync.Name)
	for _, h := range holds {
		if p.setScopeHold(h, p.scopesRead.Sub(processStart)) {
			p.log.InfoContext(ctx, "scope on hold", "scope", h.Scope, "kind", h.Kind, "reason", h.Reason)
		}
	}
	// Those that have been due longest come first: many that do not answer must not take every probe from the others.
	slices.SortFunc(holds, func(a, b outbox.Hold) int { return a.Until.Compare(b.Until) })
	for most, asked := max(1, p.slots.usable()/4), 0; len(holds) > 0 && asked < most; holds = holds[1:] {
		if holds[0].ProbeDue && p.hold.Load() == nil && ctx.Err() == nil && p.slots.workers() > 0 && p.probing.Load() < int64(most) {
			asked++ // counts even if no lane can be claimed: the claimer is busy meanwhile
			err = errors.Join(err, p.sendProbe(ctx, attempts, holds[0].Scope))
		}
	}
	return err
}

// setScopeHold remembers the hold of a scope, as it was known at the given time, and
// reports whether it is new. Deliveries that were parked for it are given back.
func (p *pipeline) setScopeHold(h outbox.Hold, at time.Duration) (news bool) {
	p.destinationsMu.Lock()
	news, parked := p.destinations.hold(time.Now(), h, at)
	p.destinationsMu.Unlock()
	p.giveBackParked(parked)
	return news
}

// scopesEvery is the pause between looks at the holds of scopes while there are any,
// to probe those that are due. With half, the database is asked twice as often while a
// host is down. With double, probes come that much later.
const scopesEvery = 250 * time.Millisecond

// held reports whether the sync, or that scope of it, is on hold.
func (p *pipeline) held(scope string) bool {
	return p.hold.Load() != nil || p.heldApart(work{to: scope})
}

// heldApart reports whether the scope of a delivery is on hold, which is no probe of
// that scope.
func (p *pipeline) heldApart(w work) bool {
	if w.to == "" || w.probe.granted() && w.probe.of == w.to {
		return false
	}
	p.destinationsMu.Lock()
	defer p.destinationsMu.Unlock()
	if w.probe.granted() && w.probe.of == "" { // where all are on hold, one of them must do
		return p.destinations.heldFirmly(w.to)
	}
	return p.destinations.held(w.to)
}

// putOnHold puts a scope on hold for all relays, and for this one at once. An empty
// scope is the whole sync.
func (p *pipeline) putOnHold(scope string, kind outbox.HoldKind, d time.Duration, reason string) {
	hold := outbox.Hold{Scope: scope, Kind: kind, Until: time.Now().Add(d), Reason: reason}
	if scope == "" {
		p.heldAt.Store(math.MaxInt64)
		defer func() { p.heldAt.Store(sinceStart()) }()
		p.hold.CompareAndSwap(nil, &hold)
		p.log.Warn("sync put on hold", "kind", kind, "for", d, "reason", reason)
	} else {
		p.setScopeHold(hold, math.MaxInt64)
		defer func() {
			p.destinationsMu.Lock()
			defer p.destinationsMu.Unlock()
			p.destinations.settled(scope, time.Duration(sinceStart()))
		}()
		p.log.Warn("scope put on hold", "scope", scope, "kind", kind, "for", d, "reason", reason)
	}
	p.inDatabase("put the sync on hold", func(ctx context.Context) error {
		return p.relay.store.Hold(ctx, p.sync.Name, scope, kind, d, reason)
	})
}

// holds are those of the sync and of its scopes that this relay knows of.
func (s *state) holds() []outbox.Hold {
	s.destinationsMu.Lock()
	defer s.destinationsMu.Unlock()
	holds := s.destinations.holds()
	if hold := s.hold.Load(); hold != nil {
		holds = append(holds, *hold)
	}
	return holds
}

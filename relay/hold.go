package relay

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// setHold remembers the hold of the whole sync, nil for none, as the database has it. After
// a hold, the sync starts again with a single delivery.
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

// noteHeld remembers the scopes that a claim found on hold. The claim began at the time
// asked. The caller calls it before the deliveries of the claim are sent. It reports
// whether there are new holds.
func (p *pipeline) noteHeld(asked time.Time, held []string) (news bool) {
	if len(held) == 0 {
		return false
	}
	var waiting []work
	p.destinationsMu.Lock()
	for _, scope := range held {
		isNew, released := p.destinations.hold(asked, outbox.Hold{Scope: scope}, asked.Sub(processStart))
		news, waiting = isNew || news, append(waiting, released...)
	}
	p.destinationsMu.Unlock()
	p.releaseWaiting(waiting)
	return news
}

// readScopes ends holds of scopes that a claim did not find any more, and reads the other
// holds from the database. The claim began at the time asked and found the scopes of held
// on hold. readScopes sends probes that are due. Probes use at most a quarter of the slots,
// so many dead destinations do not take the slots of the others.
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
	// Holds whose probes have been due longest come first. Many scopes that do not answer must not take all probes.
	slices.SortFunc(holds, func(a, b outbox.Hold) int { return a.Until.Compare(b.Until) })
	for most, asked := max(1, p.slots.usable()/4), 0; len(holds) > 0 && asked < most; holds = holds[1:] {
		if holds[0].ProbeDue && p.hold.Load() == nil && ctx.Err() == nil && p.slots.workers() > 0 && p.probing.Load() < int64(most) {
			asked++ // counts even if no lane can be claimed, because each call takes time of the claimer
			err = errors.Join(err, p.sendProbe(ctx, attempts, holds[0].Scope))
		}
	}
	return err
}

// setScopeHold remembers the hold of a scope, which was known at the given time. It reports
// whether the hold is new. It releases the waiting deliveries of the scope.
func (p *pipeline) setScopeHold(h outbox.Hold, at time.Duration) (news bool) {
	p.destinationsMu.Lock()
	news, waiting := p.destinations.hold(time.Now(), h, at)
	p.destinationsMu.Unlock()
	p.releaseWaiting(waiting)
	return news
}

// scopesEvery is the pause between reads of the holds of scopes, while there are any, to find
// probes that are due. With half, the database is asked twice as often while a host is
// down. With double, probes come later.
const scopesEvery = 250 * time.Millisecond

// held reports whether the sync or the scope is on hold.
func (p *pipeline) held(scope string) bool {
	return p.hold.Load() != nil || p.heldApart(work{to: scope})
}

// heldApart reports whether the hold of a scope prevents the delivery: its scope is on hold,
// and it is not a probe of that hold.
func (p *pipeline) heldApart(w work) bool {
	if w.to == "" || w.probe.granted() && w.probe.of == w.to {
		return false
	}
	p.destinationsMu.Lock()
	defer p.destinationsMu.Unlock()
	if w.probe.granted() && w.probe.of == "" { // it probes the whole sync, and all scopes may be on hold: one of them is used
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

// holds returns the holds of the sync and of its scopes that this relay knows.
func (s *state) holds() []outbox.Hold {
	s.destinationsMu.Lock()
	defer s.destinationsMu.Unlock()
	holds := s.destinations.holds()
	if hold := s.hold.Load(); hold != nil {
		holds = append(holds, *hold)
	}
	return holds
}

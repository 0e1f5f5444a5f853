package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// scoped reports whether the sync keeps destinations apart.
func (p *pipeline) scoped() bool { return !p.scope.IsZero() || p.destination != nil }

// scopeOf finds the scope of a delivery. For that the delivery is rendered. It
// reports false together with the result of a delivery that is not to be sent.
func (p *pipeline) scopeOf(ctx context.Context, w work) (scope string, done outbox.Result, ok bool) {
	d := w.Delivery
	switch {
	case !p.scoped():
		return "", done, true
	case d.Missing, d.Crashes >= maxCrashes, p.left.has(d.Event.ID):
		return d.Scope, done, true // the attempt says what is wrong, and sends nothing
	}
	if d.Body == nil || !p.scope.IsZero() {
		if scope, done, ok = p.prepare(ctx, w); !ok {
			return "", done, false
		}
	}
	if p.scope.IsZero() {
		scope = p.host(d)
	}
	return scope, done, true
}

// locate finds the scope of an event that was rendered before.
func (p *pipeline) locate(d *outbox.Delivery, w mapping.Watcher) (r rendered) {
	defer p.recovered(d, &r.err)
	r.wanted = true
	r.scope, r.err = p.scope.Of(d.Event, w)
	return r
}

// host asks the adapter which host the request goes to. What it does not say is
// left to the attempt, which says what is wrong.
func (p *pipeline) host(d *outbox.Delivery) (host string) {
	defer func() {
		if v := recover(); v != nil {
			p.log.Error("adapter panicked", "event", d.Event.ID, "key", d.Key, "panic", redact(fmt.Sprint(v), d.Event.Payload), "stack", string(debug.Stack()))
			host = ""
		}
	}()
	if host = p.destination(p.message(d)); utf8.RuneCountInString(host) > mapping.MaxScope || strings.ContainsFunc(host, unicode.IsControl) || !utf8.ValidString(host) {
		return ""
	}
	return host
}

// scopesEvery is the pause between looks at the holds of scopes while there are any,
// to probe those that are due. Half of it asks the database twice as often for as long
// as a host is down; twice of it has probes come that much later.
const scopesEvery = 250 * time.Millisecond

// noteHeld remembers the scopes that a claim, asked for at the given time, found on
// hold, before its deliveries are sent. It reports whether some were not known.
func (p *pipeline) noteHeld(asked time.Time, held []string) (news bool) {
	for _, scope := range held {
		news = p.setScopeHold(outbox.Hold{Scope: scope}, asked.Sub(began)) || news
	}
	return news
}

// readScopes ends the holds of scopes that a claim, asked for at the given time, did
// not find any more, and reads what the others are. It sends probes of those that are
// due. Probes have a quarter of the slots, so that many dead destinations leave the
// others theirs.
func (p *pipeline) readScopes(ctx, attempts context.Context, asked time.Time, held []string, news bool) error {
	p.placing.Lock()
	ended := p.destinations.release(asked.Sub(began), held)
	p.placing.Unlock()
	for _, h := range ended {
		p.log.InfoContext(ctx, "hold ended", "scope", h.Scope, "kind", h.Kind)
		p.healths.of(h.Scope).released()
	}
	if news = p.elsewhere.Swap(false) || news; len(held) == 0 || !news && time.Since(p.scopesRead) < scopesEvery {
		return nil
	}
	p.scopesRead = time.Now()
	holds, err := p.relay.store.ScopeHolds(attempts, p.sync.Name)
	for _, h := range holds {
		if p.setScopeHold(h, p.scopesRead.Sub(began)) {
			p.log.InfoContext(ctx, "scope on hold", "scope", h.Scope, "kind", h.Kind, "reason", h.Reason)
		}
	}
	// Those that have been due longest come first: many that do not answer must not take every probe from the others.
	slices.SortFunc(holds, func(a, b outbox.Hold) int { return a.Until.Compare(b.Until) })
	for most, asked := max(1, p.slots.usable()/4), 0; len(holds) > 0 && asked < most; holds = holds[1:] {
		if holds[0].ProbeDue && p.hold.Load() == nil && ctx.Err() == nil && p.slots.workers() > 0 && p.probing.Load() < int64(most) {
			asked++ // also where nothing is found to be sent: the claimer does nothing else meanwhile
			err = errors.Join(err, p.sendProbe(ctx, attempts, holds[0].Scope))
		}
	}
	return err
}

// setScopeHold remembers the hold of a scope, as it was known at the given time, and
// reports whether it is news. What was parked for it is given back.
func (p *pipeline) setScopeHold(h outbox.Hold, at time.Duration) (news bool) {
	p.placing.Lock()
	news, parked := p.destinations.hold(time.Now(), h, at)
	p.placing.Unlock()
	p.giveBackParked(parked)
	return news
}

func (p *pipeline) giveBackParked(parked []work) {
	for i := range parked {
		p.finish(parked[i], outbox.Result{Delivery: parked[i].Delivery, Scope: &parked[i].to})
	}
}

// unpark sends on what may start by now, and gives back what has waited too long.
func (p *pipeline) unpark() {
	slots := p.slots.usable()
	p.placing.Lock()
	starting, late := p.destinations.ready(time.Now(), slots, p.sync.AttemptTimeout()+leaseMargin)
	p.placing.Unlock()
	for _, w := range starting {
		p.queue <- w
	}
	p.giveBackParked(late)
}

// parked is how many deliveries wait for their destination.
func (p *pipeline) parked() int {
	p.placing.Lock()
	defer p.placing.Unlock()
	return p.destinations.parked
}

// tellScopes says in a request which destinations are busy, and of which scopes the
// claim must know.
func (p *pipeline) tellScopes(r *outbox.ClaimRequest, arrivals *outbox.Arrivals) {
	p.placing.Lock()
	defer p.placing.Unlock()
	r.Busy = p.destinations.busy()
	arrivals.Know(slices.Collect(maps.Keys(p.destinations.known)))
	p.destinations.known = nil
}

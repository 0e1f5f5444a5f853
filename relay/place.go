package relay

import (
	"context"
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

// place finds out where a delivery goes, and whether it may start.
func (p *pipeline) place(attempts context.Context, w *work, doing *step) (placement, outbox.Result) {
	released := outbox.Result{Delivery: w.Delivery}
	if !p.scoped() && w.Scope == "" && w.probe.of == "" {
		return startsNow, released
	}
	if !p.mayStart(*w) {
		return isReturned, released
	}
	doing.begin()
	scope, done, ok := p.scopeOf(attempts, *w)
	doing.end()
	if !ok {
		return isReturned, done
	}
	w.to, w.located = scope, true
	released.Scope = &w.to
	switch {
	case w.probe.granted() && w.probe.of != "" && w.probe.of != scope: // it is no probe of that hold
		p.probeMisplaced.Store(true)
		return isReturned, released
	case p.heldApart(*w):
		return isReturned, released
	case !p.scoped():
		return startsNow, released
	}
	slots := p.slots.usable()
	p.destinationsMu.Lock()
	defer p.destinationsMu.Unlock()
	w.placed = true
	return p.destinations.begin(time.Now(), *w, slots), released
}

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
		return d.Scope, done, true // the attempt reports the reason, and sends nothing
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

// host asks the adapter for the host that the request goes to. It is empty when the
// adapter cannot say: then the attempt reports the reason.
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

// unpark sends on what may start by now, and gives back what has waited too long.
func (p *pipeline) unpark() {
	slots := p.slots.usable()
	p.destinationsMu.Lock()
	starting, late := p.destinations.ready(time.Now(), slots, p.sync.AttemptTimeout()+leaseMargin)
	p.destinationsMu.Unlock()
	for _, w := range starting {
		p.queue <- w
	}
	p.giveBackParked(late)
}

func (p *pipeline) giveBackParked(parked []work) {
	for i := range parked {
		p.finish(parked[i], outbox.Result{Delivery: parked[i].Delivery, Scope: &parked[i].to})
	}
}

// parked is how many deliveries wait for their destination.
func (p *pipeline) parked() int {
	p.destinationsMu.Lock()
	defer p.destinationsMu.Unlock()
	return p.destinations.parked
}

// tellScopes adds the busy destinations to a request, and tells arrivals of the scopes
// that lanes were given back into.
func (p *pipeline) tellScopes(r *outbox.ClaimRequest, arrivals *outbox.Arrivals) {
	p.destinationsMu.Lock()
	defer p.destinationsMu.Unlock()
	r.Busy = p.destinations.busy()
	arrivals.Know(slices.Collect(maps.Keys(p.destinations.returned)))
	p.destinations.returned = nil
}

// bound sets what a destination may have in flight.
func (p *pipeline) bound() {
	p.destinationsMu.Lock()
	defer p.destinationsMu.Unlock()
	if !p.scope.IsZero() {
		p.destinations.configure(p.sync.Concurrency, p.sync.Rate)
	} else {
		p.destinations.configure(0, 0)
	}
}

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

// place finds the scope of a delivery, and decides whether it may start.
func (p *pipeline) place(attempts context.Context, w *work, doing *step) (placement, outbox.Result) {
	released := outbox.Result{Delivery: w.Delivery}
	if !p.scoped() && w.Scope == "" && w.probe.of == "" {
		return startsNow, released
	}
	if !p.mayStart(*w) {
		return isReleased, released
	}
	doing.begin()
	scope, done, ok := p.scopeOf(attempts, *w)
	doing.end()
	if !ok {
		return isReleased, done
	}
	w.to, w.located = scope, true
	released.Scope = &w.to
	switch {
	case w.probe.granted() && w.probe.of != "" && w.probe.of != scope: // the delivery goes to another scope, so it cannot probe this hold
		p.probeMisplaced.Store(true)
		return isReleased, released
	case p.heldApart(*w):
		return isReleased, released
	case !p.scoped():
		return startsNow, released
	}
	slots := p.slots.usable()
	p.destinationsMu.Lock()
	defer p.destinationsMu.Unlock()
	w.placed = true
	return p.destinations.begin(time.Now(), *w, slots), released
}

// scoped reports whether the sync has more than one destination.
func (p *pipeline) scoped() bool { return !p.scope.IsZero() || p.destination != nil }

// scopeOf finds the scope of a delivery. To find it, it may render the delivery. It reports
// false if there is nothing to send: then it returns the result.
func (p *pipeline) scopeOf(ctx context.Context, w work) (scope string, done outbox.Result, ok bool) {
	d := w.Delivery
	switch {
	case !p.scoped():
		return "", done, true
	case d.Missing, d.Crashes >= maxCrashes, p.abandoned.has(d.Event.ID):
		return d.Scope, done, true // the attempt reports the reason, and sends nothing
	}
	if !p.isRendered(d) || !p.scope.IsZero() {
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

// host asks the adapter for the host of the request. It is empty if the adapter cannot
// tell: then the attempt reports the reason.
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

// startWaiting passes waiting deliveries to the senders if they may start now. It releases
// those that have waited too long.
func (p *pipeline) startWaiting() {
	slots := p.slots.usable()
	p.destinationsMu.Lock()
	starting, late := p.destinations.ready(time.Now(), slots, p.sync.AttemptTimeout()+leaseMargin)
	p.destinationsMu.Unlock()
	for _, w := range starting {
		p.queue <- w
	}
	p.releaseWaiting(late)
}

func (p *pipeline) releaseWaiting(waiting []work) {
	for i := range waiting {
		p.finish(waiting[i], outbox.Result{Delivery: waiting[i].Delivery, Scope: &waiting[i].to})
	}
}

// waiting is how many deliveries wait for their destination.
func (p *pipeline) waiting() int {
	p.destinationsMu.Lock()
	defer p.destinationsMu.Unlock()
	return p.destinations.waiting
}

// tellScopes adds the busy destinations to a request, and tells arrivals the scopes of
// lanes that were just released.
func (p *pipeline) tellScopes(r *outbox.ClaimRequest, arrivals *outbox.Arrivals) {
	p.destinationsMu.Lock()
	defer p.destinationsMu.Unlock()
	r.Busy = p.destinations.busy()
	arrivals.Know(slices.Collect(maps.Keys(p.destinations.released)))
	p.destinations.released = nil
}

// bound sets the limits of each destination.
func (p *pipeline) bound() {
	p.destinationsMu.Lock()
	defer p.destinationsMu.Unlock()
	if !p.scope.IsZero() {
		p.destinations.configure(p.sync.Concurrency, p.sync.Rate)
	} else {
		p.destinations.configure(0, 0)
	}
}

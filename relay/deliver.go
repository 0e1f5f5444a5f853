package relay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"
	"unicode"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
)

// maxCrashes is how many relays may die while sending one delivery before it
// is given up.
const maxCrashes = 5

// handle takes a delivery to its end, or parks it until its destination has room.
// It returns the result, and the deliveries that may start for it. doing is the
// sender's step.
func (p *pipeline) handle(attempts context.Context, w work, doing *step) (result outbox.Result, next []work) {
	if !w.placed {
		at, done := p.place(attempts, &w, doing)
		switch at {
		case waits:
			return outbox.Result{}, nil
		case leaves:
			p.finish(w, done)
			return done, nil
		case starts:
		}
	}
	result = p.deliver(attempts, w, doing)
	if w.placed {
		slots := p.slots.usable()
		p.placing.Lock()
		full := p.destinations.overflowing
		next = p.destinations.ended(time.Now(), w.to, result.Outcome.Finished() && result.Attempt, slots)
		freed := p.destinations.overflowing < full
		p.placing.Unlock()
		if freed {
			p.wake() // lanes of that destination may be claimed again
		}
	}
	p.finish(w, result)
	return result, next
}

// finish hands the result of a delivery to the recorders. A lane that is not kept
// is given back into the scope of its delivery, if that is in trouble or was
// written down wrongly.
func (p *pipeline) finish(w work, result outbox.Result) {
	if w.probe.granted() {
		p.probed(w, result)
	}
	tried := result.Outcome != "" && !result.Outcome.Finished()
	if result.Scope == nil && w.located && w.to != w.Scope && (tried || w.Scope != "" || p.held(w.to)) {
		result.Scope = &w.to
	}
	if result.Scope != nil && *result.Scope != "" {
		p.placing.Lock()
		p.destinations.note(*result.Scope)
		p.placing.Unlock()
	}
	p.answered(w, result)
}

// place finds out where a delivery goes, and whether it may start.
func (p *pipeline) place(attempts context.Context, w *work, doing *step) (placement, outbox.Result) {
	released := outbox.Result{Delivery: w.Delivery}
	if !p.scoped() && w.Scope == "" && w.probe.of == "" {
		return starts, released
	}
	if !p.mayStart(*w) {
		return leaves, released
	}
	doing.begin()
	scope, done, ok := p.scopeOf(attempts, *w)
	doing.end()
	if !ok {
		return leaves, done
	}
	w.to, w.located = scope, true
	released.Scope = &w.to
	switch {
	case w.probe.granted() && w.probe.of != "" && w.probe.of != scope: // it tells nothing about the hold that is probed
		p.elsewhere.Store(true)
		return leaves, released
	case p.heldApart(*w):
		return leaves, released
	case !p.scoped():
		return starts, released
	}
	slots := p.slots.usable()
	p.placing.Lock()
	defer p.placing.Unlock()
	w.placed = true
	return p.destinations.begin(time.Now(), *w, slots), released
}

// deliver waits for a slot and makes the attempt, unless there is a reason to
// give the claim back: a hold, the end of the lease, a stop.
func (p *pipeline) deliver(attempts context.Context, w work, doing *step) outbox.Result {
	released := outbox.Result{Delivery: w.Delivery}
	if !p.mayStart(w) || !p.slots.acquire() {
		return released
	}
	defer p.slots.release()
	p = p.now() // a reload may have come while it waited
	if !p.mayStart(w) {
		return released
	}
	doing.begin()
	defer doing.end()
	return p.attempt(attempts, w)
}

// mayStart looks at what can have changed since the claim. The lease must
// outlast the longest attempt.
func (p *pipeline) mayStart(w work) bool {
	if p.draining.Load() || time.Until(w.leaseEnd) < p.sync.AttemptTimeout()+leaseMargin {
		return false
	}
	return w.probe.granted() || !p.held(w.to)
}

// heldApart reports whether the scope of a delivery is on hold, which is no probe of
// that scope.
func (p *pipeline) heldApart(w work) bool {
	if w.to == "" || w.probe.granted() && w.probe.of == w.to {
		return false
	}
	p.placing.Lock()
	defer p.placing.Unlock()
	if w.probe.granted() && w.probe.of == "" { // where all are on hold, one of them must do
		return p.destinations.heldFirmly(w.to)
	}
	return p.destinations.held(w.to)
}

// held reports whether the sync, or that scope of it, is on hold.
func (p *pipeline) held(scope string) bool {
	return p.hold.Load() != nil || p.heldApart(work{to: scope})
}

// attempt renders the message, lets the adapter make one attempt and judges it.
// A panic on the way, an observer's for instance, leaves the outcome unknown.
func (p *pipeline) attempt(ctx context.Context, w work) (result outbox.Result) {
	d := w.Delivery
	defer func() {
		if v := recover(); v != nil {
			p.log.ErrorContext(ctx, "panic", "event", d.Event.ID, "key", d.Key, "panic", redact(fmt.Sprint(v), d.Event.Payload), "stack", string(debug.Stack()))
			delay := p.sync.Retry.delay(d.Charged + 1)
			result = outbox.Result{
				Delivery: d, Outcome: outbox.Unknown, Attempt: true, Charge: true, Delay: delay, Spend: delay,
				Class: string(adapters.ClassUnknown), Error: errPanic.Error() + " in the relay",
			}
		}
	}()
	switch {
	case d.Missing:
		return p.giveUp(d, "permanent", "the event is gone from outbox.event")
	case d.Crashes >= maxCrashes:
		return p.giveUp(d, "crash", fmt.Sprintf("%d relays died while sending it", maxCrashes))
	}
	switch {
	case p.slots.workers() == 0:
		return outbox.Result{Delivery: d} // also where nobody asks for a slot
	case p.left.has(d.Event.ID):
		// Nothing is sent, and it is our own side's fault: that uses up no budget and says nothing about the receiver.
		result = outbox.Result{
			Delivery: d, Outcome: outbox.Retry, Delay: max(p.sync.Retry.delay(d.Charged+1), p.relay.config.Lease/4),
			Class: string(adapters.ClassUnknown), Error: "waits for an earlier attempt in this relay, which has not returned",
		}
		p.report(d, &result)
		return result
	}
	if d.Body == nil {
		if _, done, ok := p.prepare(ctx, w); !ok {
			return done
		}
		if time.Until(w.leaseEnd) < leaseMargin {
			return outbox.Result{Delivery: d} // somebody else may have it soon
		}
	}
	if d.BodySHA256 != "" && d.BodySHA256 != digest(d.Body) {
		d.Revision++ // another body needs another idempotency key
		d.BodySHA256 = digest(d.Body)
	}
	ctx, cancel := context.WithDeadlineCause(ctx, w.leaseEnd.Add(-leaseMargin/2), errLeaseEnds)
	defer cancel()
	started := time.Now()
	receipt, err := p.call(ctx, p.message(d))
	answered := time.Now()
	result = outbox.Result{
		Delivery: d, Attempt: true, Code: clean(receipt.Code, 100), SHA256: clean(receipt.SHA256, hex.EncodedLen(sha256.Size)),
		AnsweredAt: answered, Took: answered.Sub(started),
	}
	if result.SHA256 == "" {
		result.SHA256 = digest(d.Body)
	}
	if err == nil {
		p.succeeded(w, &result, receipt)
	} else {
		p.failed(ctx, w, &result, receipt, err)
	}
	p.relay.config.Observer.Attempt(p.sync.Name, string(result.Outcome), result.Took)
	return result
}

// errLeaseEnds is the cause of a context that ends an attempt for its lease.
var errLeaseEnds = errors.New("the lease is about to end")

// digest is the SHA-256 of a body, in hexadecimal.
func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// prepare decides whether the sync wants the event, and renders it. What was
// rendered before stays. It returns what limits.per says of the event.
func (p *pipeline) prepare(ctx context.Context, w work) (scope string, _ outbox.Result, ok bool) {
	d := w.Delivery
	var r rendered
	work, kept := p.render, d.Body != nil
	if kept {
		work = p.locate
	}
	if p.filter.IsZero() && !p.mapper.Computes() && p.scope.IsZero() {
		r = work(d, nil)
	} else {
		done, ok := p.relay.decoding.acquire(ctx, len(d.Event.Payload), w.leaseEnd.Add(-p.sync.AttemptTimeout()-leaseMargin))
		if !ok {
			return "", outbox.Result{Delivery: d}, false
		}
		r = p.evaluate(d, work)
		done()
	}
	switch {
	case r.err != nil:
		if !kept {
			d.MappingVersion = p.mapper.Version()
		}
		return "", p.giveUp(d, "mapping", r.err.Error()), false
	case !r.wanted:
		return "", outbox.Result{Delivery: d, Outcome: outbox.Filtered}, false
	case !kept:
		d.Body, d.MappingVersion = r.body, p.mapper.Version()
	}
	return r.scope, outbox.Result{}, true
}

func (p *pipeline) message(d *outbox.Delivery) adapters.Message {
	key := d.Event.ID
	if d.Revision > 1 {
		key = fmt.Sprintf("%s:%d", d.Event.ID, d.Revision)
	}
	return adapters.Message{
		ID: d.Event.ID, IdempotencyKey: key, Type: d.Event.Type, Key: d.Key, Version: d.Event.Version,
		OccurredAt: d.Event.OccurredAt, Attempt: d.Total + 1, Body: d.Body, Headers: d.Event.Headers,
		Ref: adapters.Ref{ExternalID: d.Ref.ExternalID, ETag: d.Ref.ETag, Version: d.Ref.Version},
	}
}

// errPanic marks what a panic became.
var errPanic = errors.New("panic")

// recovered makes a panic of the mapping or the filter that delivery's error.
func (p *pipeline) recovered(d *outbox.Delivery, err *error) {
	if v := recover(); v != nil {
		p.log.Error("mapping panicked", "event", d.Event.ID, "key", d.Key, "panic", redact(fmt.Sprint(v), d.Event.Payload), "stack", string(debug.Stack()))
		*err = fmt.Errorf("%w in the mapping: %T", errPanic, v)
	}
}

func reference(r *adapters.Ref, d *outbox.Delivery) *outbox.Ref {
	if r == nil {
		if !d.Ref.Known {
			return nil
		}
		// The receiver names nothing new: the reference stays, and is the newer event's from now on.
		return &outbox.Ref{ExternalID: d.Ref.ExternalID, ETag: d.Ref.ETag, Version: d.Event.Version}
	}
	return &outbox.Ref{ExternalID: clean(r.ExternalID, 500), ETag: clean(r.ETag, 500), Version: d.Event.Version}
}

// giveUp fails a delivery of which nothing was sent.
func (p *pipeline) giveUp(d *outbox.Delivery, class, reason string) outbox.Result {
	p.log.Error("delivery failed", "event", d.Event.ID, "key", d.Key, "class", class, "error", reason)
	return outbox.Result{Delivery: d, Outcome: outbox.Failed, Failed: true, Class: class, Error: clean(reason, maxError)}
}

// maxError bounds the text of an error in the database, in bytes.
const maxError = 1000

// clean makes a text from outside fit for the log: no control characters, no
// invalid UTF-8, bounded.
func clean(s string, most int) string {
	s = visible(s)
	if len(s) <= most {
		return s
	}
	cut := most - len("…")
	for cut > 0 && s[cut]&0xC0 == 0x80 {
		cut--
	}
	return s[:cut] + "…"
}

// visible leaves out of s what nobody sees or no database takes.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r == unicode.ReplacementChar || !unicode.IsGraphic(r):
			return -1
		}
		return r
	}, s)
}

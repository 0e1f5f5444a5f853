package relay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
)

// maxCrashes is how many relays may die while sending one delivery before it
// is given up.
const maxCrashes = 5

// handle sends a delivery, or parks it until its destination has capacity. It returns
// the result, and the parked deliveries that may start now. doing is the sender's step.
func (p *pipeline) handle(attempts context.Context, w work, doing *step) (result outbox.Result, next []work) {
	if !w.placed {
		at, done := p.place(attempts, &w, doing)
		switch at {
		case isParked:
			return outbox.Result{}, nil
		case isReturned:
			p.finish(w, done)
			return done, nil
		case startsNow:
		}
	}
	result = p.deliver(attempts, w, doing)
	if w.placed {
		slots := p.slots.usable()
		p.destinationsMu.Lock()
		full := p.destinations.overflowing
		next = p.destinations.ended(time.Now(), w.to, result.Outcome.Finished() && result.Attempt, slots)
		freed := p.destinations.overflowing < full
		p.destinationsMu.Unlock()
		if freed {
			p.wake() // lanes of that destination may be claimed again
		}
	}
	p.finish(w, result)
	return result, next
}

// finish hands the result of a delivery to the recorders. A lane that is given back
// gets the scope of its delivery, if that scope is in trouble or the lane has another.
func (p *pipeline) finish(w work, result outbox.Result) {
	if w.probe.granted() {
		p.probed(w, result)
	}
	tried := result.Outcome != "" && !result.Outcome.Finished()
	if result.Scope == nil && w.located && w.to != w.Scope && (tried || w.Scope != "" || p.held(w.to)) {
		result.Scope = &w.to
	}
	if result.Scope != nil && *result.Scope != "" {
		p.destinationsMu.Lock()
		p.destinations.noteReturned(*result.Scope)
		p.destinationsMu.Unlock()
	}
	p.submit(w, result)
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
		return outbox.Result{Delivery: d} // a suspect does not ask for a slot
	case p.left.has(d.Event.ID):
		// Nothing is sent, and the fault is ours: it costs no budget and is no sign of the receiver's health.
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
			return outbox.Result{Delivery: d} // another relay may take it over soon
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
		Delivery: d, Attempt: true, Code: adapters.Clean(receipt.Code, 100), SHA256: adapters.Clean(receipt.SHA256, hex.EncodedLen(sha256.Size)),
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

// prepare decides whether the sync wants the event, renders it unless an earlier
// attempt did, and returns its scope by limits.per.
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
	return &outbox.Ref{ExternalID: unchanged(r.ExternalID), ETag: unchanged(r.ETag), Version: d.Event.Version}
}

// unchanged returns an id or ETag that can be kept as it is. Others are empty.
func unchanged(s string) string {
	if adapters.Clean(s, adapters.MaxRef) != s {
		return ""
	}
	return s
}

// giveUp fails a delivery of which nothing was sent.
func (p *pipeline) giveUp(d *outbox.Delivery, class, reason string) outbox.Result {
	p.log.Error("delivery failed", "event", d.Event.ID, "key", d.Key, "class", class, "error", reason)
	return outbox.Result{Delivery: d, Outcome: outbox.Failed, Failed: true, Class: class, Error: adapters.Clean(reason, maxError)}
}

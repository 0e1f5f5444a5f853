package relay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// maxCrashes is how many relays may die while they send one delivery. Then it fails.
const maxCrashes = 5

// handle sends a delivery, or lets it wait until its destination has capacity. It returns
// the result, and the waiting deliveries that may start now. doing is the sender's step.
func (p *pipeline) handle(attempts context.Context, w work, doing *step) (result outbox.Result, next []work) {
	if !w.placed {
		at, done := p.place(attempts, &w, doing)
		switch at {
		case isWaiting:
			return outbox.Result{}, nil
		case isReleased:
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
		next = p.destinations.ended(time.Now(), w.to, result.Outcome.Succeeded() && result.Attempt, slots)
		freed := p.destinations.overflowing < full
		p.destinationsMu.Unlock()
		if freed {
			p.wake() // lanes of that destination may be claimed again
		}
	}
	p.finish(w, result)
	return result, next
}

// finish passes the result of a delivery to the recorders. If the lane is released, it gets
// the scope of its delivery, if the attempt did not succeed, the scope is on hold or the
// lane has another scope.
func (p *pipeline) finish(w work, result outbox.Result) {
	if w.probe.granted() {
		p.probed(w, result)
	}
	tried := result.Outcome != "" && !result.Outcome.Succeeded()
	if result.Scope == nil && w.located && w.to != w.Scope && (tried || w.Scope != "" || p.held(w.to)) {
		result.Scope = &w.to
	}
	if result.Scope != nil && *result.Scope != "" {
		p.destinationsMu.Lock()
		p.destinations.noteReleased(*result.Scope)
		p.destinationsMu.Unlock()
	}
	p.submit(w, result)
}

// deliver waits for a slot and makes the attempt. It releases the delivery instead if there
// is a hold, if the lease ends too soon, or if the relay stops.
func (p *pipeline) deliver(attempts context.Context, w work, doing *step) outbox.Result {
	released := outbox.Result{Delivery: w.Delivery}
	if !p.mayStart(w) || !p.slots.acquire() {
		return released
	}
	defer p.slots.release()
	p = p.now() // there may have been a reload while it waited
	if !p.mayStart(w) {
		return released
	}
	doing.begin()
	defer doing.end()
	return p.attempt(attempts, w)
}

// mayStart reports whether an attempt may still start: things may have changed since the
// claim. The lease must last longer than the longest attempt.
func (p *pipeline) mayStart(w work) bool {
	if p.draining.Load() || time.Until(w.leaseEnd) < p.sync.AttemptTimeout()+leaseMargin {
		return false
	}
	return w.probe.granted() || !p.held(w.to)
}

// attempt renders the message, lets the adapter make one attempt and judges its result.
// After a panic in this code, such as a panic of an observer, the outcome is unknown.
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
		// Row-level security hides events from a login. Then nothing fails, and the delivery waits.
		if err := p.relay.store.CheckPrivileges(ctx); err != nil {
			p.log.ErrorContext(ctx, "event cannot be read", "event", d.Event.ID, "key", d.Key, "error", err)
			return p.later(d, "the event cannot be read: "+outbox.Brief(err))
		}
		return p.giveUp(d, "permanent", "the event is gone from outbox.event")
	case d.Crashes >= maxCrashes:
		return p.giveUp(d, "crash", fmt.Sprintf("%d relays died while sending it", maxCrashes))
	}
	switch {
	case p.slots.workers() == 0:
		return outbox.Result{Delivery: d} // a suspect does not ask for a slot
	case p.abandoned.has(d.Event.ID):
		return p.later(d, "waits for an earlier attempt in this relay, which has not returned")
	}
	if !p.isRendered(d) {
		if _, done, ok := p.prepare(ctx, w); !ok {
			return done
		}
		if time.Until(w.leaseEnd) < leaseMargin {
			return outbox.Result{Delivery: d} // the lease ends too soon
		}
	}
	if !p.hours.open(time.Now()) {
		return outbox.Result{Delivery: d} // the window has closed since the claim
	}
	p.checkSpelling(ctx, d.Event.Type)
	if versionFalls(d) {
		p.log.WarnContext(ctx, "the version of this key has fallen: it was deleted and created again, or its writer does not count upwards; the order of its events decides",
			"event", d.Event.ID, "key", d.Key, "version", *d.Event.Version, "before", *d.Ref.Version)
	}
	ctx, cancel := context.WithDeadlineCause(ctx, w.leaseEnd.Add(-leaseMargin/2), errLeaseEnds)
	defer cancel()
	ctx, span := p.startSpan(ctx, d)
	defer func() { endSpan(span, d, &result) }()
	if d.Uncertain {
		if looked, ok := p.look(ctx, w); ok {
			return looked
		}
	}
	started := time.Now()
	receipt, err := p.call(ctx, p.message(d))
	if err == nil && receipt.Skipped != "" {
		return p.skipped(ctx, d, adapters.Clean(receipt.Skipped, maxError))
	}
	answered := time.Now()
	result = outbox.Result{
		Delivery: d, Attempt: true, Code: adapters.Clean(receipt.Code, 100), SHA256: adapters.Clean(receipt.SHA256, hex.EncodedLen(sha256.Size)),
		AnsweredAt: answered, Took: answered.Sub(started),
	}
	if result.SHA256 == "" {
		result.SHA256 = digest(d.Body)
	}
	if receipt.NoID {
		p.relay.config.Observer.MissingID(p.sync.Name)
	}
	if err == nil {
		p.succeeded(w, &result, receipt)
	} else {
		p.failed(ctx, w, &result, receipt, err)
	}
	p.relay.config.Observer.Attempt(p.sync.Name, string(result.Outcome), result.Took)
	return result
}

// skipped finishes a delivery for which the adapter found nothing to send. The delivery
// fails instead if the receiver may have the record: its answer may have lacked the id.
func (p *pipeline) skipped(ctx context.Context, d *outbox.Delivery, why string) outbox.Result {
	last, err := p.relay.store.LastReached(ctx, p.sync.Name, d.Key)
	switch {
	case err != nil:
		return p.later(d, "the log cannot be read: "+outbox.Brief(err))
	case last != "" && last != d.Event.Type:
		return p.giveUp(d, "permanent", "nothing was sent: the receiver's id of this key is not known, but an event "+last+
			" may have reached it; set the id with lockstep ref set, then requeue, or discard")
	}
	return outbox.Result{Delivery: d, Outcome: outbox.Filtered, Reason: why}
}

// versionFalls reports whether this is the first attempt of an event with a lower version
// than the event of its key that was answered last. A replay has a lower version by nature.
func versionFalls(d *outbox.Delivery) bool {
	return d.Total == 0 && d.Revision == 1 && d.Event.Version != nil && d.Ref.Version != nil && *d.Event.Version < *d.Ref.Version
}

// errLeaseEnds is the cause of a context that ends an attempt for its lease.
var errLeaseEnds = errors.New("the lease is about to end")

// digest is the SHA-256 of a body, in hexadecimal.
func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// prepare applies the filter to the event, renders the body (see isRendered), and returns the scope by limits.per. It reports false if there is nothing to
// send: then it returns the result.
func (p *pipeline) prepare(ctx context.Context, w work) (scope string, _ outbox.Result, ok bool) {
	d, to := w.Delivery, p.routeOf(w.Delivery)
	kept := p.isRendered(d)
	work := p.locate
	if !kept {
		work = func(d *outbox.Delivery, w mapping.Watcher) rendered { return p.render(d, to, w) }
	}
	r, ok := p.rendered(ctx, w, to, work)
	if ok && r.err == nil && r.wanted && !kept && d.BodySHA256 != "" && (d.BodySHA256 != digest(r.body) || d.MappingVersion != "" && to.request() != requestIn(d.MappingVersion)) {
		d.Revision++ // another body, or another request, needs another idempotency key
		if to.mapper.UsesKey() {
			r, ok = p.rendered(ctx, w, to, work)
		}
		d.BodySHA256 = digest(r.body) // it may be rendered once more before it is sent
	}
	switch {
	case !ok:
		return "", outbox.Result{Delivery: d}, false
	case r.err != nil:
		if !kept {
			d.MappingVersion = to.version()
		}
		return "", p.giveUp(d, "mapping", r.err.Error()), false
	case !r.wanted:
		return "", outbox.Result{Delivery: d, Outcome: outbox.Filtered}, false
	case !kept:
		d.Body, d.MappingVersion = r.body, to.version()
	}
	return r.scope, outbox.Result{}, true
}

// rendered returns the result of work. It reports false if the lease ends too soon for
// that.
func (p *pipeline) rendered(ctx context.Context, w work, to route, work func(*outbox.Delivery, mapping.Watcher) rendered) (r rendered, ok bool) {
	if p.filter.IsZero() && !to.mapper.Computes() && p.scope.IsZero() {
		return work(w.Delivery, nil), true
	}
	done, ok := p.relay.decoding.acquire(ctx, len(w.Event.Payload), w.leaseEnd.Add(-p.sync.AttemptTimeout()-leaseMargin))
	if !ok {
		return rendered{}, false
	}
	defer done()
	return p.evaluate(w.Delivery, work), true
}

// idempotencyKey is the event's id, or "id:n" for a replay and for another body. From the
// second step on, the number of the step follows after a slash.
func idempotencyKey(d *outbox.Delivery) string {
	key := d.Event.ID
	if d.Revision > 1 {
		key = fmt.Sprintf("%s:%d", key, d.Revision)
	}
	if d.Step > 0 {
		key = fmt.Sprintf("%s/%d", key, d.Step+1)
	}
	return key
}

func (p *pipeline) message(d *outbox.Delivery) adapters.Message {
	return adapters.Message{
		ID: d.Event.ID, IdempotencyKey: idempotencyKey(d), Type: d.Event.Type, Key: d.Key, Version: d.Event.Version,
		OccurredAt: d.Event.OccurredAt, Attempt: d.Total + 1, Step: d.Step, Body: d.Body, Headers: d.Event.Headers,
		Ref: adapters.Ref{ExternalID: d.Ref.ExternalID, ETag: d.Ref.ETag, Version: d.Ref.Version, Learned: d.Ref.Learned},
	}
}

// errPanic is wrapped by the errors of attempts that panicked.
var errPanic = errors.New("panic")

// recovered turns a panic of the mapping or the filter into the error of this delivery.
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
		// The receiver returned no reference: the known one stays, and now belongs to the newer event.
		return &outbox.Ref{ExternalID: d.Ref.ExternalID, ETag: d.Ref.ETag, Version: d.Event.Version, Learned: d.Ref.Learned}
	}
	return &outbox.Ref{ExternalID: unchanged(r.ExternalID), ETag: unchanged(r.ETag), Version: d.Event.Version, Learned: learned(r.Learned)}
}

// learned returns the learnt values that can be kept, and at most as many as may be.
func learned(values map[string]string) map[string]string {
	kept := make(map[string]string, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if unchanged(name) != "" && unchanged(values[name]) != "" && len(kept) < adapters.MaxLearned {
			kept[name] = values[name]
		}
	}
	return kept
}

// unchanged returns an id or ETag that can be kept as it is. Others are empty.
func unchanged(s string) string {
	if adapters.Clean(s, adapters.MaxRef) != s {
		return ""
	}
	return s
}

// later lets a delivery wait before an attempt: nothing was sent. The fault is ours, so it
// costs no budget and does not count against the receiver.
func (p *pipeline) later(d *outbox.Delivery, reason string) outbox.Result {
	result := outbox.Result{
		Delivery: d, Outcome: outbox.Retry, Delay: max(p.sync.Retry.delay(d.Charged+1), p.relay.config.Lease/4),
		Class: string(adapters.ClassUnknown), Error: adapters.Clean(reason, maxError),
	}
	p.report(context.Background(), d, &result)
	return result
}

// giveUp fails a delivery before an attempt: nothing was sent.
func (p *pipeline) giveUp(d *outbox.Delivery, class, reason string) outbox.Result {
	p.log.Error("delivery failed", "event", d.Event.ID, "key", d.Key, "class", class, "error", reason)
	return outbox.Result{Delivery: d, Outcome: outbox.Failed, Failed: true, Class: class, Error: adapters.Clean(reason, maxError)}
}

package relay

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// Go cannot end a goroutine from outside. So a relay abandons two kinds of calls: a call of
// an adapter that does not return although its context has ended, and an evaluation that
// does not end. An abandoned call continues in its own goroutine, and its result is
// ignored. The sender releases its slot and takes the next delivery, so no other delivery
// waits. Until an abandoned call returns, its sync has one worker less. This bounds the
// number of abandoned calls.

const (
	// returnGrace is how long an adapter has to return after the end of its context. With
	// half, a busy machine abandons calls that are about to return. With double, there is
	// no time to record the outcome within the lease.
	returnGrace = 100 * time.Millisecond

	// An evaluation is abandoned if it has counted no step for evaluationPeriods periods in
	// a row: it runs a function whose cost is not counted. A machine that is busy, or was
	// stopped for a while, only delays the next step. With half, a very busy machine
	// abandons evaluations that would end. With double, a worker is lost later. If the
	// lease is short, the periods are shorter: together a quarter of the lease.
	evaluationPeriod  = time.Second
	evaluationPeriods = 10

	// An abandoned evaluation keeps a processor busy, so it costs this share of the sync's
	// workers: one in two. A sync abandons at most two evaluations. Then it sends nothing
	// until the relay is started again.
	evaluationShare = 2
)

// errAbandoned is the error of an abandoned call.
var errAbandoned = errors.New("the adapter has not returned although the attempt had to end, and the call was abandoned: the receiver may or may not have the event")

// abandonedAttempts has the events whose call was abandoned and has not returned. An event
// has at most one such call in a process: its next attempt waits for the end of the call.
// Otherwise one event could take all workers.
type abandonedAttempts struct {
	mu     sync.Mutex
	events map[string]struct{}
}

func (l *abandonedAttempts) add(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.events == nil {
		l.events = map[string]struct{}{}
	}
	l.events[event] = struct{}{}
}

func (l *abandonedAttempts) remove(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.events, event)
}

func (l *abandonedAttempts) has(event string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.events[event]
	return ok
}

// abandon notes that a call about an event was abandoned. The call has returned when
// returned is closed.
func (p *pipeline) abandon(what, event, key string, workers int, returned <-chan struct{}) {
	began := time.Now()
	p.abandoned.add(event)
	p.slots.lose(workers)
	p.log.Error("a call does not return and is abandoned: the sync has fewer workers until it returns; if it never does, restart the relay",
		"call", what, "event", event, "key", key, "workers_left", p.slots.workers())
	go func() {
		<-returned
		p.slots.lose(-workers)
		p.abandoned.remove(event)
		p.log.Warn("an abandoned call has returned; its answer is ignored",
			"call", what, "event", event, "key", key, "after", time.Since(began).Round(time.Millisecond).String(), "workers_left", p.slots.workers())
		p.wake()
	}()
}

// bounded runs a call of the adapter in its own goroutine. If the call does not return soon
// after the end of ctx, bounded abandons it and reports false.
func bounded[T any](ctx context.Context, p *pipeline, m adapters.Message, call func() T) (answer T, ok bool) {
	var (
		late     T
		answered bool // stays false if the adapter ends the goroutine
		returned = make(chan struct{})
	)
	go func() {
		defer close(returned)
		late = call()
		answered = true
	}()
	select {
	case <-returned:
		return late, answered
	case <-ctx.Done():
	}
	grace := time.NewTimer(returnGrace)
	if !errors.Is(context.Cause(ctx), errLeaseEnds) {
		grace.Reset(stopGrace) // the relay stops
	}
	defer grace.Stop()
	select {
	case <-returned:
		return late, answered
	case <-grace.C:
	}
	p.abandon("attempt", m.ID, m.Key, 1, returned)
	return answer, false
}

// reply is the answer of an adapter to an attempt.
type reply struct {
	receipt adapters.Receipt
	err     error
}

// call lets the adapter make the attempt. After a panic the outcome is unknown: the request
// may have been sent.
func (p *pipeline) call(ctx context.Context, m adapters.Message) (adapters.Receipt, error) {
	a, ok := bounded(ctx, p, m, func() (a reply) {
		defer p.adapterPanicked(ctx, m, &a.err)
		a.receipt, a.err = p.sync.Adapter.Deliver(ctx, m)
		return a
	})
	if !ok {
		return adapters.Receipt{}, adapters.Unknown(errAbandoned)
	}
	return a.receipt, a.err
}

// read lets the adapter read the receiver's copy.
func (p *pipeline) read(ctx context.Context, r adapters.Reader, m adapters.Message) (adapters.Reading, error) {
	type answer struct {
		adapters.Reading
		err error
	}
	got, ok := bounded(ctx, p, m, func() (a answer) {
		defer p.adapterPanicked(ctx, m, &a.err)
		a.Reading, a.err = r.Read(ctx, m)
		return a
	})
	if !ok {
		got.err = errAbandoned
	}
	return got.Reading, got.err
}

func (p *pipeline) adapterPanicked(ctx context.Context, m adapters.Message, err *error) {
	if v := recover(); v != nil {
		p.log.ErrorContext(ctx, "adapter panicked", "event", m.ID, "key", m.Key, "panic", redact(fmt.Sprint(v), m.Body), "stack", string(debug.Stack()))
		*err = adapters.Unknown(fmt.Errorf("%w in the adapter: %v", errPanic, v))
	}
}

// mapper is a compiled mapping.
type mapper interface {
	Map(ev outbox.Event, to mapping.Sending, w mapping.Watcher) ([]byte, error)
	Version() string
	Computes() bool
	UsesKey() bool
	UsesRef() bool
}

// evaluation watches the expressions of one event, while a sender waits for their results.
// It implements [mapping.Watcher].
type evaluation struct {
	abandoned atomic.Bool // the sender waits no longer
	field     atomic.Pointer[string]
	progress  atomic.Int64 // rises with the steps
}

// Begin notes the field whose expression is evaluated.
func (e *evaluation) Begin(field string) {
	e.field.Store(&field)
	e.progress.Add(1)
}

// Continue counts progress. It reports false if the sender waits no longer.
func (e *evaluation) Continue() bool {
	e.progress.Add(1)
	return !e.abandoned.Load()
}

// rendered is the result of filter, mapping and scope for an event.
type rendered struct {
	wanted bool
	body   []byte
	scope  string // scope by limits.per
	err    error
}

// render decides whether the sync wants the event, maps it for a route and finds its scope.
func (p *pipeline) render(d *outbox.Delivery, to route, w mapping.Watcher) (r rendered) {
	defer p.recovered(d, &r.err)
	if r.wanted = d.Body != nil; !r.wanted { // what was sent once is wanted
		r.wanted, r.err = p.filter.Match(d.Event, w)
	}
	if r.err == nil && r.wanted {
		if r.body, r.err = to.mapper.Map(d.Event, mapping.Sending{IdempotencyKey: idempotencyKey(d), Ref: d.Ref}, w); r.err == nil {
			r.scope, r.err = p.scope.Of(d.Event, w)
		}
	}
	return r
}

// wants applies the filter to an event during a claim. It does not wait for ever, because
// the claimer calls it. If the filter cannot be evaluated, the event is wanted: its attempt
// reports the reason.
func (p *pipeline) wants(ev outbox.Event) bool {
	if p.abandoned.has(ev.ID) {
		return true
	}
	r := p.evaluate(&outbox.Delivery{Key: ev.Key, Event: ev}, func(d *outbox.Delivery, w mapping.Watcher) (r rendered) {
		defer p.recovered(d, &r.err)
		r.wanted, r.err = p.filter.Match(d.Event, w)
		return r
	})
	return r.wanted || r.err != nil
}

// evaluate runs work, which evaluates expressions, and returns its result. If the evaluation
// makes no progress, evaluate abandons it and returns an error.
func (p *pipeline) evaluate(d *outbox.Delivery, work func(*outbox.Delivery, mapping.Watcher) rendered) rendered {
	var (
		e        evaluation
		late     rendered
		returned = make(chan struct{})
		period   = time.NewTicker(p.relay.evaluationPeriod)
	)
	defer period.Stop()
	go func() {
		defer close(returned)
		late = work(d, &e)
	}()
	for idle, at := 0, int64(-1); idle < evaluationPeriods; {
		select {
		case <-returned:
			return late
		case <-period.C:
		}
		if now := e.progress.Load(); now != at {
			idle, at = 0, now
		} else {
			idle++
		}
	}
	e.abandoned.Store(true)
	p.abandon("evaluation of an expression", d.Event.ID, d.Key, max(1, (p.senders()+1)/evaluationShare), returned)
	field := "when"
	if begun := e.field.Load(); begun != nil {
		field = *begun
	}
	return rendered{err: &mapping.FieldError{Field: field, Reason: "the evaluation does not end for this event and was abandoned: simplify the expression"}}
}

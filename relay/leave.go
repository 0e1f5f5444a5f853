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

// Nothing in Go ends a goroutine from outside. A call of an adapter that does
// not return although its context has ended, and an evaluation that does not
// end, are left behind: they run on in a goroutine of their own, and what they
// return counts for nothing. The sender gives its slot back and takes the next delivery, so
// that nobody else waits. The sync has a worker less for each call that it has
// left behind, until the call returns, so that their number is bounded.

const (
	// After the end of its context an adapter has this long to return. Half as
	// long would leave calls behind on a busy machine that are about to return,
	// twice as long would leave no time to record the outcome within the lease.
	returnGrace = 100 * time.Millisecond

	// An evaluation is left behind when it has counted no step for so many of
	// these periods in a row: it is in a function whose cost was overlooked. A
	// machine that is busy, or was stopped for a while, only delays the next
	// step. Half of that would leave evaluations behind on a machine without
	// any time for them, twice of that would keep a worker longer. Shorter where
	// a lease is short: no more than a quarter of it.
	evaluationPeriod  = time.Second
	evaluationPeriods = 10

	// An evaluation that is left behind keeps a processor busy, so it takes this
	// share of the sync's workers: a sync leaves two behind at most, and then
	// sends nothing until the relay is started again.
	evaluationShare = 2
)

// errLeftBehind is what a call becomes that does not return.
var errLeftBehind = errors.New("the adapter has not returned although the attempt was over, and was left behind: whether the receiver got it is not known")

// leftBehind remembers the events whose attempt has not returned. An event has
// one such attempt at most in a process: the next waits for it, or one event
// would take worker after worker.
type leftBehind struct {
	mu     sync.Mutex
	events map[string]struct{}
}

func (l *leftBehind) add(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.events == nil {
		l.events = map[string]struct{}{}
	}
	l.events[event] = struct{}{}
}

func (l *leftBehind) remove(event string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.events, event)
}

func (l *leftBehind) has(event string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.events[event]
	return ok
}

// leave notes that something about an event is left behind, and that it has
// returned once returned is closed.
func (p *pipeline) leave(what, event, key string, workers int, returned <-chan struct{}) {
	began := time.Now()
	p.left.add(event)
	p.slots.lose(workers)
	p.log.Error("a call does not return and is left behind: the sync has fewer workers until it does; if it does not, restart the relay",
		"call", what, "event", event, "key", key, "workers_left", p.slots.workers())
	go func() {
		<-returned
		p.slots.lose(-workers)
		p.left.remove(event)
		p.log.Warn("a call has returned after it was left behind; its answer counts for nothing",
			"call", what, "event", event, "key", key, "after", time.Since(began).Round(time.Millisecond).String(), "workers_left", p.slots.workers())
		p.wake()
	}()
}

// bounded calls the adapter in a goroutine of its own. It leaves the call
// behind, and reports false, when that does not return soon after ctx has ended.
func bounded[T any](ctx context.Context, p *pipeline, m adapters.Message, call func() T) (answer T, ok bool) {
	var (
		late     T
		answered bool // not where the adapter ends the goroutine
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
	p.leave("attempt", m.ID, m.Key, 1, returned)
	return answer, false
}

// reply is what an adapter says to an attempt.
type reply struct {
	receipt adapters.Receipt
	err     error
}

// call lets the adapter work. A panic is that attempt's failure: the request
// may have been sent.
func (p *pipeline) call(ctx context.Context, m adapters.Message) (adapters.Receipt, error) {
	a, ok := bounded(ctx, p, m, func() (a reply) {
		defer p.adapterPanicked(ctx, m, &a.err)
		a.receipt, a.err = p.sync.Adapter.Deliver(ctx, m)
		return a
	})
	if !ok {
		return adapters.Receipt{}, adapters.Unknown(errLeftBehind)
	}
	return a.receipt, a.err
}

// read lets the adapter read back what the receiver holds.
func (p *pipeline) read(ctx context.Context, r adapters.Reader, m adapters.Message) (adapters.Standing, adapters.Ref, error) {
	type held struct {
		standing adapters.Standing
		ref      adapters.Ref
		err      error
	}
	h, ok := bounded(ctx, p, m, func() (h held) {
		defer p.adapterPanicked(ctx, m, &h.err)
		h.standing, h.ref, h.err = r.Read(ctx, m)
		return h
	})
	if !ok {
		h.err = errLeftBehind
	}
	return h.standing, h.ref, h.err
}

func (p *pipeline) adapterPanicked(ctx context.Context, m adapters.Message, err *error) {
	if v := recover(); v != nil {
		p.log.ErrorContext(ctx, "adapter panicked", "event", m.ID, "key", m.Key, "panic", redact(fmt.Sprint(v), m.Body), "stack", string(debug.Stack()))
		*err = adapters.Unknown(fmt.Errorf("%w in the adapter: %v", errPanic, v))
	}
}

// mapper is a compiled mapping.
type mapper interface {
	Map(ev outbox.Event, w mapping.Watcher) ([]byte, error)
	Version() string
	Computes() bool
}

// evaluation watches the expressions of an event for the sender that waits for
// their results. It implements [mapping.Watcher].
type evaluation struct {
	abandoned atomic.Bool // the sender does not wait any more
	field     atomic.Pointer[string]
	progress  atomic.Int64 // rises with the steps
}

// Begin notes whose expression is evaluated.
func (e *evaluation) Begin(field string) {
	e.field.Store(&field)
	e.progress.Add(1)
}

// Continue notes that steps were taken.
func (e *evaluation) Continue() bool {
	e.progress.Add(1)
	return !e.abandoned.Load()
}

// rendered is what becomes of an event before it is sent.
type rendered struct {
	wanted bool
	body   []byte
	scope  string // what limits.per says
	err    error
}

// render decides whether the sync wants the event, maps it and finds its scope.
func (p *pipeline) render(d *outbox.Delivery, w mapping.Watcher) (r rendered) {
	defer p.recovered(d, &r.err)
	if r.wanted, r.err = p.filter.Match(d.Event, w); r.err == nil && r.wanted {
		if r.body, r.err = p.mapper.Map(d.Event, w); r.err == nil {
			r.scope, r.err = p.scope.Of(d.Event, w)
		}
	}
	return r
}

// wants is the filter for a claim: who claims and who records must not wait for
// ever either. An event for which that cannot be told is wanted: its attempt says
// what is wrong.
func (p *pipeline) wants(ev outbox.Event) bool {
	if p.left.has(ev.ID) {
		return true
	}
	r := p.evaluate(&outbox.Delivery{Key: ev.Key, Event: ev}, func(d *outbox.Delivery, w mapping.Watcher) (r rendered) {
		defer p.recovered(d, &r.err)
		r.wanted, r.err = p.filter.Match(d.Event, w)
		return r
	})
	return r.wanted || r.err != nil
}

// evaluate is render where there are expressions: it does not wait for ever.
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
	p.leave("evaluation of an expression", d.Event.ID, d.Key, max(1, (p.senders()+1)/evaluationShare), returned)
	field := "when"
	if begun := e.field.Load(); begun != nil {
		field = *begun
	}
	return rendered{err: &mapping.FieldError{Field: field, Reason: "the evaluation does not end for this event and was left behind: simplify the expression"}}
}

package relay

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// pipeline carries one sync: a goroutine claims, some send, two record. It is
// the settings of the sync, which never change, and the state, which is shared
// with the pipeline that replaces this one at a reload. An attempt stays with
// the pipeline it began with. Loops take the current one for each round.
type pipeline struct {
	*state
	sync        Sync
	mapper      mapper
	filter      *mapping.Filter
	scope       *mapping.Scope
	destination func(adapters.Message) string // nil where the adapter has one host
	rate        *rate.Limiter                 // nil without a limit, and where it is per destination
	healths     *healths                      // how the receiver answered to these settings, by scope
}

// state is what a sync's pipelines share.
type state struct {
	relay   *Relay
	log     *slog.Logger
	slots   *share
	left    leftBehind
	current atomic.Pointer[pipeline]

	queue   chan work
	results chan answer
	piled   chan struct{} // so many results wait that a second recording pays
	woken   chan struct{}
	resized chan struct{} // a reload has changed the concurrency

	suspects chan probe // there is one to be sent; the zero probe: as any other delivery

	placing      sync.Mutex
	destinations destinations
	elsewhere    atomic.Bool // a probe's lane has turned out to be another scope's: the next is tried at once
	scopesRead   time.Time   // when the claimer read the holds of scopes last

	scheduling  sync.Mutex
	schedule    schedule
	claiming    *step
	recording   [2]*step
	outstanding atomic.Int64 // lanes claimed and not yet given back, with results to be recorded
	recorded    atomic.Int64 // ever
	payload     atomic.Int64 // bytes of a payload, on average lately
	hold        atomic.Pointer[outbox.Hold]
	heldAt      atomic.Int64 // sinceBegan; claims asked for earlier know nothing of the hold set here
	delivered   atomic.Int64 // sinceBegan of the last success not yet noted in the database
	probing     atomic.Int64 // probes under way
	draining    atomic.Bool
	full        atomic.Bool   // the claimer counts the room, or waits for it
	stop        chan struct{} // closed when draining begins
}

// work is a claimed delivery on its way to a sender.
type work struct {
	*outbox.Delivery
	leaseEnd time.Time // by the local monotonic clock, from before the claim was asked for
	claimed  time.Time // when its lane's turn began
	probe    probe     // the right to be sent in spite of a hold, if it has one

	to      string // the scope that it goes to, once it is located
	located bool
	placed  bool // its destination counts it as in flight or parked
}

// probe is the right to send one delivery in spite of an auth or breaker hold, to find
// out whether that can end. The zero probe is none.
type probe struct {
	of     string // the scope that is on hold; empty is the whole sync
	number int    // probes of the hold, by all relays, this one included
}

func (p probe) granted() bool { return p.number > 0 }

// size is the memory that a parked delivery takes.
func (w work) size() int { return len(w.Event.Payload) + len(w.Body) }

const (
	maxBatch      = 500                    // most results in one recording, and waiting for it
	helpAt        = 200                    // results that wait when a second recording is begun beside the first
	lastWords     = 5 * time.Second        // at a stop: for releasing claims, and for adapters that ignore their context
	leastPatience = time.Second            // for what is in flight to end before a suspect is sent
	leaseMargin   = 500 * time.Millisecond // left of a lease after the longest attempt, for recording it
)

func newPipeline(r *Relay, s Sync, slots *share) (*pipeline, error) {
	p, err := compileSync(s)
	if err != nil {
		return nil, err
	}
	p.state = &state{
		relay: r, slots: slots,
		log:     r.log.With("sync", s.Name),
		queue:   make(chan work, 2*(maxPrefetch+max(s.Concurrency, r.config.Workers))), // twice: what is parked has room too
		results: make(chan answer, maxBatch),
		piled:   make(chan struct{}, 1),
		woken:   make(chan struct{}, 1),
		resized: make(chan struct{}, 1),
		stop:    make(chan struct{}),

		suspects: make(chan probe, 1),
	}
	p.bound()
	p.current.Store(p)
	p.claiming = r.steps.add("claiming for sync "+s.Name, claimBound+r.config.Lease/2)
	slots.hanging = r.steps.add("waiting for the calls that keep all workers of sync "+s.Name, 0)
	for i := range p.recording {
		p.recording[i] = r.steps.add(fmt.Sprintf("recording %d for sync %s", i+1, s.Name), recordBound)
	}
	return p, nil
}

// compileSync makes a pipeline without a state of the settings of a sync.
func compileSync(s Sync) (*pipeline, error) {
	p := &pipeline{sync: s, healths: newHealths(s.Retry.Initial)}
	var err error
	if p.mapper, err = s.Mapping.Compile(); err != nil {
		return nil, err
	}
	if p.filter, err = mapping.CompileFilter(s.When); err != nil {
		return nil, err
	}
	if p.scope, err = mapping.CompileScope(s.Per); err != nil {
		return nil, fmt.Errorf("limits.per: %w", err)
	}
	if a, ok := s.Adapter.(adapters.Addresser); ok && p.scope.IsZero() {
		p.destination = a.Destination()
	}
	if s.Rate > 0 && p.scope.IsZero() {
		p.rate = rate.NewLimiter(rate.Limit(s.Rate), max(1, int(s.Rate/10)))
	}
	return p, nil
}

// bound sets what a destination may have in flight.
func (p *pipeline) bound() {
	p.placing.Lock()
	defer p.placing.Unlock()
	if !p.scope.IsZero() {
		p.destinations.configure(p.sync.Concurrency, p.sync.Rate)
	} else {
		p.destinations.configure(0, 0)
	}
}

// senders is how many deliveries the sync may have in flight.
func (p *pipeline) senders() int { return p.sync.inFlight(p.relay.config.Workers) }

// now is the current pipeline of the sync.
func (s *state) now() *pipeline { return s.current.Load() }

// wake makes the claimer look at once.
func (p *pipeline) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// accept hands claimed deliveries to the senders. The queue has room for every
// lane that the capacity allows.
func (p *pipeline) accept(deliveries []*outbox.Delivery, w work) {
	p.outstanding.Add(int64(len(deliveries)))
	if p.rate != nil {
		p.rate.AllowN(time.Now(), len(deliveries))
	}
	for _, d := range deliveries {
		size := p.payload.Load()
		p.payload.Store(size + (int64(len(d.Event.Payload))-size)/4)
		w.Delivery, w.to, w.located, w.placed = d, "", false, false
		p.queue <- w
	}
}

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

// wanted is the sync's filter for [outbox.ClaimRequest], nil without a condition.
func (p *pipeline) wanted() func(outbox.Event) bool {
	if p.filter.IsZero() {
		return nil
	}
	return p.wants
}

// sendProbe sends one delivery in spite of an auth or breaker hold of a scope, if no
// other relay is just doing that: of those that the database proposes the first that
// can be claimed, and else any, if the whole sync is on hold.
func (p *pipeline) sendProbe(ctx, attempts context.Context, scope string) error {
	store, lease := p.relay.store, p.relay.config.Lease
	granted, err := store.Probe(attempts, p.sync.Name, scope, lease)
	if err != nil || granted.Number == 0 {
		return err
	}
	right := probe{of: scope, number: granted.Number}
	keys := granted.With
	if scope == "" {
		keys = append(keys, "") // or whatever is due
	}
	for _, key := range keys {
		if ctx.Err() != nil {
			break
		}
		p.claiming.begin()
		asked := time.Now()
		claims, err := store.ClaimOne(attempts, outbox.OneRequest{Sync: p.sync.Name, Lease: lease, Wanted: p.wanted(), Key: key, Probe: true})
		p.noteHeld(asked, claims.Held)
		p.probing.Add(int64(len(claims.Deliveries)))
		p.accept(claims.Deliveries, work{leaseEnd: asked.Add(lease), claimed: asked, probe: right})
		p.giveBack(claims.Idle)
		if err != nil || len(claims.Deliveries) > 0 {
			return err
		}
	}
	if granted.Suspects && p.suspect(right) {
		return nil
	}
	return p.nothingToProbeWith(attempts, right)
}

// nothingToProbeWith has the next probe made soon, when something may be due. A hold
// of a scope for which nothing waits is lifted.
func (p *pipeline) nothingToProbeWith(ctx context.Context, right probe) error {
	if right.of != "" {
		if lifted, err := p.relay.store.LiftUnused(ctx, p.sync.Name, right.of); lifted || err != nil {
			return err
		}
	}
	return p.relay.store.ProbeAgain(ctx, p.sync.Name, right.of, right.number, time.Second, false)
}

// suspect asks for a suspect to be sent, as a probe in spite of a hold. It
// reports false when the request before this one is still open.
func (p *pipeline) suspect(right probe) bool {
	select {
	case p.suspects <- right:
		return true
	default:
		return false
	}
}

// suspectLoop sends suspects: deliveries during which two or more relays died.
// Each is sent while nothing else of its sync is in flight in this process, so
// that the next death tells which one it was, and no suspect of another sync is.
// After each the sync has as much time for its other deliveries. Where attempts
// take too long to end within a moment, the sync continues for four times as long
// and the next wait is longer.
func (p *pipeline) suspectLoop(attempts context.Context) {
	doing := p.relay.steps.add("a suspect of sync "+p.sync.Name, 2*p.sync.AttemptTimeout()+recordBound)
	defer doing.end()
	patience, calls := leastPatience, p.relay.caller("claim suspects", p.sync.Name)
	for {
		var right probe
		select {
		case right = <-p.suspects:
		case <-p.stop:
			return
		}
		p = p.now()
		began := time.Now()
		doing.begin()
		alone, err := p.sendSuspect(attempts, right, patience)
		doing.end()
		switch took := time.Since(began); {
		case err != nil:
			p.rest(calls.failed(attempts, err))
		case alone:
			calls.worked(attempts)
			patience = leastPatience
			p.rest(took)
		default:
			patience = min(2*patience, p.sync.AttemptTimeout())
			p.rest(4 * took)
		}
	}
}

// rest pauses, unless the relay stops.
func (p *pipeline) rest(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.stop:
	case <-t.C:
	}
}

// sendSuspect claims one suspect and sends it, unless what is in flight does not
// end in time.
func (p *pipeline) sendSuspect(attempts context.Context, right probe, patience time.Duration) (alone bool, err error) {
	claimed := false
	defer func() {
		if right.granted() && !claimed && err == nil {
			p.inDatabase("set the next probe", func(ctx context.Context) error { return p.nothingToProbeWith(ctx, right) })
		}
	}()
	if alone = p.slots.acquireAlone(patience); !alone {
		return false, nil
	}
	defer p.slots.releaseAlone()
	p = p.now() // a reload may have come while it waited
	if p.draining.Load() || p.slots.workers() == 0 {
		return true, nil
	}
	lease, started := p.relay.config.Lease, time.Now()
	claims, err := p.relay.store.ClaimOne(attempts, outbox.OneRequest{Sync: p.sync.Name, Lease: lease, Wanted: p.wanted(), Suspect: true, Probe: right.granted(), Scope: right.of})
	p.noteHeld(started, claims.Held)
	p.giveBack(claims.Idle)
	if claimed = len(claims.Deliveries) > 0; !claimed {
		return true, err
	}
	p.outstanding.Add(1)
	w := work{Delivery: claims.Deliveries[0], leaseEnd: started.Add(lease), probe: right}
	if right.granted() {
		p.probing.Add(1)
	}
	scope, result, ok := p.scopeOf(attempts, w)
	switch w.to, w.located = scope, ok; {
	case !ok:
	case w.probe.granted() && w.probe.of != "" && w.probe.of != scope, p.heldApart(w):
		result = outbox.Result{Delivery: w.Delivery, Scope: &w.to}
	default:
		result = p.attempt(attempts, w)
	}
	p.finish(w, result)
	return true, nil
}

// send runs the senders and the recorders until drain was called and everything
// is recorded or released.
func (p *pipeline) send(attempts context.Context) {
	var recording, sending sync.WaitGroup
	for i, doing := range p.recording {
		recording.Go(func() {
			_ = p.relay.supervise("record for sync "+p.sync.Name, func() error { p.recordLoop(attempts, doing, i > 0); return nil })
		})
	}
	sending.Go(func() {
		_ = p.relay.supervise("suspects of sync "+p.sync.Name, func() error { p.suspectLoop(attempts); return nil })
	})
	senders := 0
	for open := true; open; {
		for ; senders < p.now().senders(); senders++ {
			sending.Go(func() { p.sendLoop(attempts) })
		}
		select {
		case <-p.resized:
		case <-p.stop:
			open = false
		}
	}
	sending.Wait()
	close(p.results)
	close(p.piled)
	recording.Wait()
	p.releaseQueue(context.WithoutCancel(attempts))
	p.noteLast(context.WithoutCancel(attempts))
}

// noteDelivery tells the database of the last success. It reports false where
// that has to be tried again.
func (p *pipeline) noteDelivery(ctx context.Context) (bool, error) {
	last := p.delivered.Load()
	if last == 0 {
		return true, nil
	}
	noted, err := p.relay.store.NoteDelivery(ctx, p.sync.Name, began.Add(time.Duration(last)))
	if noted && err == nil {
		p.delivered.CompareAndSwap(last, 0) // unless there is a later one
	}
	return noted, err
}

// noteLast does so at a stop, for a second at most.
func (p *pipeline) noteLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	calls := p.relay.caller("note the last delivery", p.sync.Name)
	for ctx.Err() == nil {
		noted, err := p.noteDelivery(ctx)
		switch {
		case err != nil:
			sleep(ctx, calls.failed(ctx, err))
		case noted:
			return
		default:
			sleep(ctx, 20*time.Millisecond)
		}
	}
}

func (p *pipeline) sendLoop(attempts context.Context) {
	doing := p.relay.steps.add("an attempt of sync "+p.sync.Name, p.relay.config.Lease)
	short := 0 // attempts in a row for which this machine lacked something
	for {
		select {
		case w := <-p.queue:
			for next := []work{w}; len(next) > 0; {
				var result outbox.Result
				result, next = p.now().handle(attempts, next[0], doing)
				for i := 1; i < len(next); i++ { // the first stays with this sender
					p.queue <- next[i]
				}
				switch {
				case result.Class == string(adapters.ClassLocal): // other deliveries need the same; they wait for the sender
					p.rest(min(restMost, restFirst<<short))
					short = min(short+1, 10)
				case result.Outcome != "":
					short = 0
				}
			}
		case <-p.stop:
			return
		}
	}
}

// Pauses of a sender for which this machine had no descriptor, port or memory.
const (
	restFirst = 250 * time.Millisecond
	restMost  = 5 * time.Second
)

// drain ends the senders: what is under way is finished, what is queued is
// released. The queue stays open, since a recording may still bring claims.
func (p *pipeline) drain() {
	p.draining.Store(true)
	close(p.stop)
}

// releaseQueue gives back what was claimed and never sent.
func (p *pipeline) releaseQueue(ctx context.Context) {
	var unsent []answer
	for len(p.queue) > 0 {
		w := <-p.queue
		unsent = append(unsent, answer{outbox.Result{Delivery: w.Delivery}, w})
	}
	p.placing.Lock()
	for _, w := range p.destinations.all() {
		unsent = append(unsent, answer{outbox.Result{Delivery: w.Delivery, Scope: &w.to}, w})
	}
	p.placing.Unlock()
	if len(unsent) == 0 {
		return
	}
	calls := p.relay.caller("release deliveries", p.sync.Name)
	// Left to themselves they would wait for the end of their lease, as if the relay had died.
	for until := time.Now().Add(lastWords); len(unsent) > 0 && time.Now().Before(until); {
		var err error
		if unsent, err = p.record(ctx, unsent); err != nil {
			sleep(ctx, calls.failed(ctx, err))
		}
	}
}

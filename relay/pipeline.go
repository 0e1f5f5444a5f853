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

// pipeline sends the deliveries of one sync: one goroutine claims, several send, two
// record. It has the settings of the sync, which never change, and the state. A reload
// replaces the pipeline with another one that has the same state. An attempt ends with the
// pipeline that it began with. Loops take the current pipeline for each round.
type pipeline struct {
	*state
	sync        Sync
	mapper      mapper            // of all routes without one of their own
	mappers     map[string]mapper // of routes, by name
	router      adapters.Router   // nil if the adapter has no routes
	filter      *mapping.Filter
	scope       *mapping.Scope
	destination func(adapters.Message) string // nil if the adapter has one host
	rate        *rate.Limiter                 // nil without a limit, and if each destination has its own
	spelling    *spelling                     // of event types
	healths     *healths                      // the receiver's answers with these settings, by scope
	hours       *hours                        // when deliveries may start
}

// state is the state that the pipelines of a sync share.
type state struct {
	relay     *Relay
	log       *slog.Logger
	slots     *share
	abandoned abandonedAttempts
	current   atomic.Pointer[pipeline]

	queue        chan work
	results      chan answer
	resultsPiled chan struct{} // many results wait: the second recorder helps
	woken        chan struct{} // the claimer polls at once
	resized      chan struct{} // a reload has changed the concurrency

	suspects chan probe // requests to send a suspect, with the right to probe or with the zero probe

	destinationsMu sync.Mutex
	destinations   destinations
	probeMisplaced atomic.Bool // the lane of a probe belonged to another scope: the next lane is tried at once
	scopesRead     time.Time   // when the claimer last read the holds of scopes

	scheduleMu  sync.Mutex
	schedule    schedule
	claiming    *step
	recording   [2]*step
	outstanding atomic.Int64 // lanes claimed and not yet released, also those whose results wait to be recorded
	recorded    atomic.Int64 // results recorded since the start
	payload     atomic.Int64 // recent average size of a payload, in bytes
	hold        atomic.Pointer[outbox.Hold]
	heldAt      atomic.Int64 // sinceStart of the last hold set here; a claim that began earlier may not see it
	delivered   atomic.Int64 // sinceStart of the last success that is not in the database yet
	probing     atomic.Int64 // probes in flight
	draining    atomic.Bool
	saidNoETag  atomic.Bool   // the log has said that answers lack an ETag
	atCapacity  atomic.Bool   // the claimer has no capacity left, or is counting it
	stop        chan struct{} // closed when draining begins
}

// work is a claimed delivery that was not sent yet.
type work struct {
	*outbox.Delivery
	leaseEnd time.Time // by the local monotonic clock, counted from the moment before the claim
	claimed  time.Time // when the lane was claimed: it is kept for one turn from then on
	probe    probe     // the right to be sent in spite of a hold; may be the zero probe

	to      string // the scope that it goes to, if located
	located bool   // the scope was found
	placed  bool   // its destination counts it as in flight or waiting
}

// size is the memory that a waiting delivery takes.
func (w work) size() int { return len(w.Event.Payload) + len(w.Body) }

const (
	maxBatch         = 500                    // most results in one recording, and in the queue for it
	secondRecorderAt = 200                    // number of waiting results from which the second recorder helps
	stopGrace        = 5 * time.Second        // at a stop: time to release claims, and time for adapters that ignore their context
	firstAloneWait   = time.Second            // time for attempts in flight to end before a suspect is sent
	leaseMargin      = 500 * time.Millisecond // part of the lease that is kept to record the longest attempt
)

func newPipeline(r *Relay, s Sync, slots *share) (*pipeline, error) {
	p, err := compileSync(s)
	if err != nil {
		return nil, err
	}
	p.state = &state{
		relay: r, slots: slots,
		log:          r.log.With("sync", s.Name),
		queue:        make(chan work, 2*(maxPrefetch+max(s.Concurrency, r.config.Workers))), // twice: deliveries that waited for their destination come back to the queue
		results:      make(chan answer, maxBatch),
		resultsPiled: make(chan struct{}, 1),
		woken:        make(chan struct{}, 1),
		resized:      make(chan struct{}, 1),
		stop:         make(chan struct{}),

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

// compileSync makes a pipeline from the settings of a sync. Its state is not set yet.
func compileSync(s Sync) (*pipeline, error) {
	p := &pipeline{sync: s, healths: newHealths(s.Retry.Initial), spelling: newSpelling(s.TypeNames), hours: newHours(s)}
	var err error
	if p.mapper, err = s.Mapping.Compile(); err != nil {
		return nil, err
	}
	p.router, _ = s.Adapter.(adapters.Router)
	p.mappers = make(map[string]mapper, len(s.Routes))
	for name, m := range s.Routes {
		if p.mappers[name], err = m.Compile(); err != nil {
			return nil, fmt.Errorf("route %q: %w", name, err)
		}
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

// senders is how many deliveries the sync may have in flight.
func (p *pipeline) senders() int { return p.sync.inFlight(p.relay.config.Workers) }

// now is the current pipeline of the sync.
func (s *state) now() *pipeline { return s.current.Load() }

// wake makes the claimer poll at once.
func (p *pipeline) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// accept passes claimed deliveries to the senders. The queue is large enough for every lane
// that the capacity allows, so accept does not wait.
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

// wanted is the sync's filter for [outbox.ClaimRequest], nil without a condition.
func (p *pipeline) wanted() func(outbox.Event) bool {
	if p.filter.IsZero() {
		return nil
	}
	return p.wants
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

// send runs the senders and the recorders. It returns after drain was called and all
// deliveries are recorded or released.
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
	close(p.resultsPiled)
	recording.Wait()
	p.releaseQueue(context.WithoutCancel(attempts))
	p.noteLast(context.WithoutCancel(attempts))
}

// noteDelivery writes the time of the last success to the database. It reports false if the
// caller must try again.
func (p *pipeline) noteDelivery(ctx context.Context) (bool, error) {
	last := p.delivered.Load()
	if last == 0 {
		return true, nil
	}
	noted, err := p.relay.store.NoteDelivery(ctx, p.sync.Name, processStart.Add(time.Duration(last)))
	if noted && err == nil {
		p.delivered.CompareAndSwap(last, 0) // unless there is a later one
	}
	return noted, err
}

// noteLast calls noteDelivery at a stop, for at most a second.
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
	short := 0 // attempts in a row that failed for lack of descriptors, ports or memory
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
				case result.Class == string(adapters.ClassLocal): // other deliveries need the same resource, so the sender pauses
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

// Pauses of a sender after this machine had no descriptor, port or memory for an attempt.
const (
	restFirst = 250 * time.Millisecond
	restMost  = 5 * time.Second
)

// drain ends the senders. Attempts in flight are finished, and queued deliveries are
// released. The queue stays open, since a recording may still add deliveries.
func (p *pipeline) drain() {
	p.draining.Store(true)
	close(p.stop)
}

// releaseQueue releases deliveries that were claimed and not sent.
func (p *pipeline) releaseQueue(ctx context.Context) {
	var unsent []answer
	for len(p.queue) > 0 {
		w := <-p.queue
		unsent = append(unsent, answer{outbox.Result{Delivery: w.Delivery}, w})
	}
	p.destinationsMu.Lock()
	for _, w := range p.destinations.all() {
		unsent = append(unsent, answer{outbox.Result{Delivery: w.Delivery, Scope: &w.to}, w})
	}
	p.destinationsMu.Unlock()
	if len(unsent) == 0 {
		return
	}
	calls := p.relay.caller("release deliveries", p.sync.Name)
	// Without a release they would wait for the end of their lease, as if the relay had died.
	for until := time.Now().Add(stopGrace); len(unsent) > 0 && time.Now().Before(until); {
		var err error
		if unsent, err = p.record(ctx, unsent); err != nil {
			sleep(ctx, calls.failed(ctx, err))
		}
	}
}

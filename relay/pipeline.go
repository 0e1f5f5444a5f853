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

	queue        chan work
	results      chan answer
	resultsPiled chan struct{} // so many results wait that a second recording pays
	woken        chan struct{}
	resized      chan struct{} // a reload has changed the concurrency

	suspects chan probe // there is one to be sent; the zero probe: as any other delivery

	destinationsMu sync.Mutex
	destinations   destinations
	probeMisplaced atomic.Bool // a probe's lane has turned out to be another scope's: the next is tried at once
	scopesRead     time.Time   // when the claimer read the holds of scopes last

	scheduleMu  sync.Mutex
	schedule    schedule
	claiming    *step
	recording   [2]*step
	outstanding atomic.Int64 // lanes claimed and not yet given back, with results to be recorded
	recorded    atomic.Int64 // ever
	payload     atomic.Int64 // bytes of a payload, on average lately
	hold        atomic.Pointer[outbox.Hold]
	heldAt      atomic.Int64 // sinceStart; claims asked for earlier do not know the hold set here
	delivered   atomic.Int64 // sinceStart of the last success that is not in the database yet
	probing     atomic.Int64 // probes under way
	draining    atomic.Bool
	atCapacity  atomic.Bool   // the claimer counts its free capacity, or waits for some
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

// size is the memory that a parked delivery takes.
func (w work) size() int { return len(w.Event.Payload) + len(w.Body) }

const (
	maxBatch         = 500                    // most results in one recording, and waiting for it
	secondRecorderAt = 200                    // results that wait when the second recorder starts to help
	stopGrace        = 5 * time.Second        // at a stop: for releasing claims, and for adapters that ignore their context
	firstAloneWait   = time.Second            // for what is in flight to end before a suspect is sent
	leaseMargin      = 500 * time.Millisecond // left of a lease after the longest attempt, for recording it
)

func newPipeline(r *Relay, s Sync, slots *share) (*pipeline, error) {
	p, err := compileSync(s)
	if err != nil {
		return nil, err
	}
	p.state = &state{
		relay: r, slots: slots,
		log:          r.log.With("sync", s.Name),
		queue:        make(chan work, 2*(maxPrefetch+max(s.Concurrency, r.config.Workers))), // twice: what is parked has room too
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
	close(p.resultsPiled)
	recording.Wait()
	p.releaseQueue(context.WithoutCancel(attempts))
	p.noteLast(context.WithoutCancel(attempts))
}

// noteDelivery writes the time of the last success to the database. It reports false where
// that has to be tried again.
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
	p.destinationsMu.Lock()
	for _, w := range p.destinations.all() {
		unsent = append(unsent, answer{outbox.Result{Delivery: w.Delivery, Scope: &w.to}, w})
	}
	p.destinationsMu.Unlock()
	if len(unsent) == 0 {
		return
	}
	calls := p.relay.caller("release deliveries", p.sync.Name)
	// Left to themselves they would wait for the end of their lease, as if the relay had died.
	for until := time.Now().Add(stopGrace); len(unsent) > 0 && time.Now().Before(until); {
		var err error
		if unsent, err = p.record(ctx, unsent); err != nil {
			sleep(ctx, calls.failed(ctx, err))
		}
	}
}

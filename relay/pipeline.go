package relay

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/hms-mkt/lockstep/outbox"
)

// pipeline carries one sync: a goroutine claims, some send, two record.
type pipeline struct {
	relay  *Relay
	sync   Sync
	mapper *Mapper
	filter *Filter
	log    *slog.Logger
	slots  *share
	left   leftBehind
	rate   *rate.Limiter // nil without a limit
	health *health

	queue   chan work
	results chan outbox.Result
	piled   chan struct{} // so many results wait that a second recording pays
	woken   chan struct{}

	claiming    *step
	recording   [2]*step
	outstanding atomic.Int64 // claimed and not yet recorded
	recorded    atomic.Int64 // ever
	begun       int          // claimed by walks, ever; the claimer's own
	aloneFrom   time.Time    // before this, deliveries that killed a relay wait; the claimer's own
	payload     atomic.Int64 // bytes of a payload, on average lately
	hold        atomic.Pointer[outbox.Hold]
	heldAt      atomic.Int64 // sinceBegan; claims asked for earlier know nothing of the hold set here
	asleep      sleepers
	walked      atomic.Pointer[outbox.Cursor] // where the walk stands that does not come back
	behind      atomic.Bool                   // and that is far behind the clock
	goOn        atomic.Int64                  // most to have claimed when a recording goes on with its keys
	delivered   atomic.Int64                  // sinceBegan of the last success not yet noted in the database
	probes      atomic.Int64                  // of the hold, by all relays, when this one probed last
	draining    atomic.Bool
	full        atomic.Bool   // the claimer counts the room, or waits for it
	stop        chan struct{} // closed when draining begins
}

// work is a claimed delivery on its way to a sender.
type work struct {
	*outbox.Delivery
	leaseEnd time.Time // by the local monotonic clock, from before the claim was asked for
	probe    bool      // sent in spite of a hold, to find out whether it can end
}

const (
	prefetchFor = 50 * time.Millisecond
	maxPrefetch = 1000   // most deliveries claimed beyond those in flight
	leastPage   = 100    // least rows looked at in one claim, if so many are due
	maxPage     = 1000   // most rows looked at in one claim
	mostPassed  = 20_000 // most rows that walks leave behind them, and a sweep looks at

	maxPrefetchBytes = 8 << 20                // about the most payload claimed ahead; bounds memory where events are large
	maxBatch         = 500                    // most results in one recording, and waiting for it
	helpAt           = 200                    // results that wait when a second recording is begun beside the first
	mostPatience     = 20 * time.Millisecond  // for how long a claim waits until it is worth its while
	mostCrowded      = time.Second            // for how long keys under way may leave no room for others
	crowdedAgain     = 100 * time.Millisecond // the same until nobody waits any more
	farBehind        = 10 * time.Second       // of a walk: what becomes due now would wait for long
	busyPoll         = 2 * time.Millisecond   // pause between polls while there is work
	lastWords        = 5 * time.Second        // at a stop: for releasing claims, and for adapters that ignore their context
	sweepEvery       = 200 * time.Millisecond // least pause between walks from the beginning
	tendEvery        = time.Second            // pause between housekeeping
	leaseMargin      = 500 * time.Millisecond // left of a lease after the longest attempt, for recording it
)

func newPipeline(r *Relay, s Sync, slots *share) (*pipeline, error) {
	mapper, err := s.Mapping.Compile()
	if err != nil {
		return nil, err
	}
	filter, err := CompileFilter(s.When)
	if err != nil {
		return nil, err
	}
	p := &pipeline{
		relay: r, sync: s, mapper: mapper, filter: filter, slots: slots, health: newHealth(),
		log:     r.log.With("sync", s.Name),
		queue:   make(chan work, 2*(maxPrefetch+s.Concurrency)),
		results: make(chan outbox.Result, maxBatch),
		piled:   make(chan struct{}, 1),
		woken:   make(chan struct{}, 1),
		stop:    make(chan struct{}),
	}
	p.walked.Store(new(outbox.Cursor))
	p.claiming = r.steps.add("claiming for sync "+s.Name, claimBound+r.config.longestAttempt())
	for i := range p.recording {
		p.recording[i] = r.steps.add(fmt.Sprintf("recording %d for sync %s", i+1, s.Name), recordBound)
	}
	if s.Rate > 0 {
		p.rate = rate.NewLimiter(rate.Limit(s.Rate), max(1, int(s.Rate/10)))
	}
	return p, nil
}

// wake makes the claimer look at once.
func (p *pipeline) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// accept hands claimed deliveries to the senders, and remembers who sleeps. The
// queue has room for every claim that the budget allows.
func (p *pipeline) accept(c outbox.Claims, asked time.Time, probe bool) {
	p.asleep.add(c.Asleep)
	p.outstanding.Add(int64(len(c.Deliveries)))
	if p.rate != nil {
		p.rate.AllowN(time.Now(), len(c.Deliveries))
	}
	for _, d := range c.Deliveries {
		size := p.payload.Load()
		p.payload.Store(size + (int64(len(d.Event.Payload))-size)/4)
		p.queue <- work{Delivery: d, leaseEnd: asked.Add(p.relay.config.Lease), probe: probe}
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
		p.health.answered()
		if before.Kind != outbox.HoldOperator && before.Kind != outbox.HoldBackfill {
			p.slots.slow()
		}
	}
}

// probe sends one delivery in spite of an auth or breaker hold, if no other
// relay is just doing that. What was due before the first of a key, which has
// failed, stands in front of it: it is parked page by page until one is found.
func (p *pipeline) probe(ctx, attempts context.Context) error {
	store, lease := p.relay.store, p.relay.config.Lease
	probes, ours, err := store.Probe(attempts, p.sync.Name, lease)
	if err != nil || !ours {
		return err
	}
	p.probes.Store(int64(probes))
	var claims outbox.Claims
	request := outbox.ClaimRequest{Sync: p.sync.Name, Budget: 1, Page: maxPage, Lease: lease, Probe: true}
	until := time.Now().Add(lease / 2)
	for {
		p.claiming.begin()
		started := time.Now()
		claims, err = store.Claim(attempts, request)
		if err != nil || len(claims.Deliveries) > 0 {
			p.accept(claims, started, true)
			return err
		}
		if claims.Suspects > 0 || !claims.More || ctx.Err() != nil || started.After(until) {
			break
		}
		request.From = claims.Next
	}
	if claims.Suspects > 0 {
		p.relay.alone.Lock()
		defer p.relay.alone.Unlock()
		started := time.Now()
		request.From, request.Solo = outbox.Cursor{}, true
		if claims, err = store.Claim(attempts, request); err != nil {
			return err
		}
		if len(claims.Deliveries) > 0 {
			p.outstanding.Add(1)
			result := p.attempt(attempts, work{Delivery: claims.Deliveries[0], leaseEnd: started.Add(lease), probe: true})
			p.probed(result)
			p.answered(result)
			return nil
		}
	}
	return store.ProbeAgain(attempts, p.sync.Name, probes, time.Second) // nothing due to try with
}

// sendAlone sends deliveries during which a relay died, one after the other and
// with nothing else in flight in this process, for a few seconds at most.
func (p *pipeline) sendAlone(ctx, attempts context.Context, suspects int) {
	p.relay.alone.Lock()
	defer p.relay.alone.Unlock()
	until := time.Now().Add(5 * time.Second)
	for ; suspects > 0 && ctx.Err() == nil && time.Now().Before(until); suspects-- {
		p.claiming.begin()
		started := time.Now()
		claims, err := p.relay.store.Claim(attempts, outbox.ClaimRequest{
			Sync: p.sync.Name, Budget: 1, Page: 100, Lease: p.relay.config.Lease, Solo: true,
		})
		if err != nil {
			p.relay.complain(ctx, "claim deliveries", err, "sync", p.sync.Name)
			return
		}
		if len(claims.Deliveries) == 0 {
			return
		}
		p.outstanding.Add(1)
		p.answered(p.attempt(attempts, work{Delivery: claims.Deliveries[0], leaseEnd: started.Add(p.relay.config.Lease)}))
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
	for range p.sync.Concurrency {
		sending.Go(func() { p.sendLoop(attempts) })
	}
	sending.Wait()
	close(p.results)
	close(p.piled)
	recording.Wait()
	p.releaseQueue(context.WithoutCancel(attempts))
	p.wakeAsleep(context.WithoutCancel(attempts))
}

func (p *pipeline) sendLoop(attempts context.Context) {
	doing := p.relay.steps.add("an attempt of sync "+p.sync.Name, p.relay.config.Lease)
	for {
		select {
		case w := <-p.queue:
			p.answered(p.deliver(attempts, w, doing))
		case <-p.stop:
			return
		}
	}
}

// drain ends the senders: what is under way is finished, what is queued is
// released. The queue stays open, since a recording may still bring claims.
func (p *pipeline) drain() {
	p.draining.Store(true)
	close(p.stop)
}

// releaseQueue gives back what was claimed and never sent.
func (p *pipeline) releaseQueue(ctx context.Context) {
	var unsent []outbox.Result
	for len(p.queue) > 0 {
		unsent = append(unsent, outbox.Result{Delivery: (<-p.queue).Delivery})
	}
	if len(unsent) == 0 {
		return
	}
	// Left to themselves they would wait for their lease and then go one by one, as if the relay had died.
	for until := time.Now().Add(lastWords); len(unsent) > 0 && time.Now().Before(until); {
		var err error
		if unsent, err = p.record(ctx, unsent); err != nil {
			p.relay.complain(ctx, "release deliveries", err, "sync", p.sync.Name)
			sleep(ctx, 100*time.Millisecond)
		}
	}
}

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
)

// pipeline carries one sync: a goroutine claims, some send, two record.
type pipeline struct {
	relay  *Relay
	sync   Sync
	mapper *Mapper
	filter *Filter
	log    *slog.Logger
	slots  *share
	rate   *rate.Limiter // nil without a limit
	health *health

	queue   chan work
	results chan outbox.Result
	piled   chan struct{} // so many results wait that a second recording pays
	woken   chan struct{}

	suspects chan bool // there is one to be sent; true: as a probe

	claiming    *step
	recording   [2]*step
	outstanding atomic.Int64 // claimed and not yet recorded
	recorded    atomic.Int64 // ever
	accepted    atomic.Int64 // claimed, ever
	begun       int          // claimed by walks, ever; the claimer's own
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
	freshAfter       = 2 * time.Second        // of a walk behind the clock: what comes now has a share of its own
	freshOneIn       = 4                      // deliveries that are claimed, one is fresh
	freshFor         = 5 * time.Second        // until what could not be claimed is left to the main walk
	freshEvery       = 20 * time.Millisecond  // pause between looks when there was nothing more
	farBehind        = 10 * time.Second       // of a walk: what becomes due now would wait for long
	busyPoll         = 2 * time.Millisecond   // pause between polls while there is work
	lastWords        = 5 * time.Second        // at a stop: for releasing claims, and for adapters that ignore their context
	sweepEvery       = 200 * time.Millisecond // least pause between walks from the beginning
	tendEvery        = time.Second            // pause between housekeeping
	leastPatience    = time.Second            // for what is in flight to end before a suspect is sent
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
		relay: r, sync: s, mapper: mapper, filter: filter, slots: slots, health: newHealth(s.Retry.Initial),
		log:     r.log.With("sync", s.Name),
		queue:   make(chan work, 2*(maxPrefetch+s.Concurrency)),
		results: make(chan outbox.Result, maxBatch),
		piled:   make(chan struct{}, 1),
		woken:   make(chan struct{}, 1),
		stop:    make(chan struct{}),

		suspects: make(chan bool, 1),
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
	p.accepted.Add(int64(len(c.Deliveries)))
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
		p.health.released()
		switch before.Kind {
		case outbox.HoldBreaker, outbox.HoldThrottle, outbox.HoldWindow:
			p.slots.slow()
		case outbox.HoldOperator, outbox.HoldBackfill, outbox.HoldAuth: // the receiver was not at its limit
		}
	}
}

// probe sends one delivery in spite of an auth or breaker hold, if no other
// relay is just doing that: of those that the database proposes the first that
// can be claimed, and else any. What was due before the first of a key, which has
// failed, stands in front of it: it is parked page by page until one is found.
func (p *pipeline) probe(ctx, attempts context.Context) error {
	store, lease := p.relay.store, p.relay.config.Lease
	probe, err := store.Probe(attempts, p.sync.Name, lease)
	if err != nil || probe.Number == 0 {
		return err
	}
	p.probes.Store(int64(probe.Number))
	var claims outbox.Claims
	request := outbox.ClaimRequest{Sync: p.sync.Name, Budget: 1, Page: 1, Lease: lease, Probe: true}
	for _, request.From = range probe.With {
		p.claiming.begin()
		started := time.Now()
		claims, err = store.Claim(attempts, request)
		if err != nil || len(claims.Deliveries) > 0 {
			p.accept(claims, started, true)
			return err
		}
	}
	request.From, request.Page = outbox.Cursor{}, maxPage
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
	if claims.Suspects > 0 && p.suspect(true) {
		return nil
	}
	return p.nothingToProbeWith(attempts)
}

// nothingToProbeWith has the next probe made soon, when something may be due.
func (p *pipeline) nothingToProbeWith(ctx context.Context) error {
	return p.relay.store.ProbeAgain(ctx, p.sync.Name, int(p.probes.Load()), time.Second, false)
}

// suspect asks for a suspect to be sent, as a probe in spite of a hold. It
// reports false when the request before this one is still open.
func (p *pipeline) suspect(probe bool) bool {
	select {
	case p.suspects <- probe:
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
	patience := leastPatience
	for {
		var probe bool
		select {
		case probe = <-p.suspects:
		case <-p.stop:
			return
		}
		began := time.Now()
		doing.begin()
		alone := p.slots.acquireAlone(patience)
		if alone {
			p.sendSuspect(attempts, probe)
			p.slots.releaseAlone()
			patience = leastPatience
		} else if probe {
			p.inDatabase("set the next probe", p.nothingToProbeWith)
		}
		doing.end()
		took := time.Since(began)
		if !alone {
			patience, took = min(2*patience, p.sync.AttemptTimeout()), 4*took
		}
		p.rest(took)
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

// sendSuspect claims one suspect and sends it.
func (p *pipeline) sendSuspect(attempts context.Context, probe bool) {
	if p.draining.Load() {
		return
	}
	lease, started := p.relay.config.Lease, time.Now()
	claims, err := p.relay.store.Claim(attempts, outbox.ClaimRequest{
		Sync: p.sync.Name, Budget: 1, Page: leastPage, Lease: lease, Solo: true, Probe: probe,
	})
	if err != nil {
		p.relay.complain(attempts, "claim deliveries", err, "sync", p.sync.Name)
		return
	}
	p.asleep.add(claims.Asleep)
	if len(claims.Deliveries) == 0 {
		if probe {
			p.inDatabase("set the next probe", p.nothingToProbeWith)
		}
		return
	}
	p.outstanding.Add(1)
	result := p.attempt(attempts, work{Delivery: claims.Deliveries[0], leaseEnd: started.Add(lease), probe: probe})
	if probe {
		p.probed(result)
	}
	p.answered(result)
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
	sending.Go(func() { p.suspectLoop(attempts) })
	sending.Wait()
	close(p.results)
	close(p.piled)
	recording.Wait()
	p.releaseQueue(context.WithoutCancel(attempts))
	p.wakeAsleep(context.WithoutCancel(attempts))
}

func (p *pipeline) sendLoop(attempts context.Context) {
	doing := p.relay.steps.add("an attempt of sync "+p.sync.Name, p.relay.config.Lease)
	short := 0 // attempts in a row for which this machine lacked something
	for {
		select {
		case w := <-p.queue:
			result := p.deliver(attempts, w, doing)
			p.answered(result)
			switch {
			case result.Class == string(adapters.ClassLocal): // other deliveries need the same; they wait for the sender
				p.rest(min(restMost, restFirst<<short))
				short = min(short+1, 10)
			case result.Outcome != "":
				short = 0
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

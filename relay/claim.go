package relay

import (
	"context"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

const (
	busyPoll       = 2 * time.Millisecond // pause between polls while there is work
	housekeepEvery = time.Second          // pause between calls of housekeep
)

// claimLoop claims lanes until ctx ends. The context attempts ends later.
func (p *pipeline) claimLoop(ctx, attempts context.Context) {
	var (
		arrivals  outbox.Arrivals
		housekept time.Time
		checked   string // key of the last lane whose times were repaired
		calls     = p.relay.caller("claim deliveries", p.sync.Name)
		pause     = busyPoll
	)
	defer p.claiming.end()
	for ctx.Err() == nil {
		p = p.now()
		p.claiming.begin()
		p.startWaiting()
		found := foundNone
		p.atCapacity.Store(true) // before the free capacity is counted: a recording in between must wake this loop
		kept, err := p.hours.keep(ctx, p.relay.store, p.sync.Name)
		if kept {
			found, err = p.claim(ctx, attempts, &arrivals)
		}
		if err == nil && time.Since(housekept) > housekeepEvery {
			housekept = time.Now()
			err = p.housekeep(ctx, &checked)
		}
		p.atCapacity.Store(err == nil && found == foundFull)
		p.claiming.end()
		if err != nil {
			// This pause ignores p.woken.
			sleep(ctx, calls.failed(ctx, err))
			pause = busyPoll
			continue
		}
		calls.worked(ctx)
		switch found {
		case foundMore:
			continue
		case foundSome:
			pause = min(busyPoll, p.relay.config.Poll)
			if p.sync.Notify {
				pause = min(5*busyPoll, p.relay.config.Poll) // writers tell when there is more
			}
		case foundFull:
			pause = min(smallClaimWait, p.relay.config.Poll) // a recording wakes the loop, a rate limit does not
			if p.rate != nil || p.waiting() > 0 {
				pause = min(pause, 4*busyPoll)
			}
		default:
			pause = min(max(2*pause, time.Millisecond), p.relay.config.Poll)
		}
		t := time.NewTimer(min(pause, p.hours.change(time.Now())))
		select {
		case <-ctx.Done():
		case <-p.woken:
		case <-t.C:
		}
		t.Stop()
	}
}

type findings int

const (
	foundNone findings = iota
	foundSome
	foundMore // there is capacity left, and more lanes wait
	foundFull // there is no capacity left
)

// claim claims as many lanes as the capacity allows, and passes their deliveries to the
// senders.
func (p *pipeline) claim(ctx, attempts context.Context, arrivals *outbox.Arrivals) (findings, error) {
	request := outbox.ClaimRequest{Sync: p.sync.Name, Lease: p.relay.config.Lease, Wanted: p.wanted()}
	asked := time.Now()
	p.scheduleMu.Lock()
	p.schedule.next(asked, p.load(), &request)
	idle := asked.Sub(p.schedule.asked)
	p.scheduleMu.Unlock()
	p.tellScopes(&request, arrivals)
	if request.Capacity == 0 && idle < p.relay.config.Poll {
		return foundFull, nil
	}
	// A stop must not lose the answer: then the claimed lanes are released.
	claims, err := p.relay.store.Claim(attempts, request, arrivals)
	news := p.noteHeld(asked, claims.Held)
	p.accept(claims.Deliveries, work{leaseEnd: asked.Add(p.relay.config.Lease), claimed: time.Now()})
	p.releaseIdle(claims.Idle)
	if err != nil {
		return foundNone, err
	}
	p.scheduleMu.Lock()
	p.schedule.answered(time.Now(), request, claims)
	p.scheduleMu.Unlock()
	p.relay.config.Observer.Claim(p.sync.Name, len(claims.Deliveries), time.Since(asked))
	if claims.Hold != nil || int64(asked.Sub(processStart)) > p.heldAt.Load() {
		p.setHold(claims.Hold)
	}
	if err := p.readScopes(ctx, attempts, asked, claims.Held, news); err != nil {
		return foundNone, err
	}
	if claims.Hold != nil {
		if claims.Hold.ProbeDue && p.slots.workers() > 0 {
			return foundNone, p.sendProbe(ctx, attempts, "")
		}
		return foundNone, nil
	}
	if claims.Suspects {
		p.suspect(probe{})
	}
	got := len(claims.Deliveries) + len(claims.Idle)
	switch {
	case request.Capacity == 0 || got >= request.Capacity:
		return foundFull, nil
	case claims.Unopened || claims.Due && request.Lanes < request.Capacity:
		return foundMore, nil
	case got > 0:
		return foundSome, nil
	}
	return foundNone, nil
}

// load returns the current load for the schedule.
func (p *pipeline) load() load {
	l := load{
		slots: p.slots.usable(), starting: p.slots.starting(), bounded: p.sync.maxInFlight() > 0,
		claimed: int(p.outstanding.Load()) - p.waiting(), // a delivery that waits for its destination does not wait for a slot
		queued:  len(p.queue), recorded: p.recorded.Load(), payload: p.payload.Load(), tokens: -1,
	}
	if p.rate != nil {
		l.tokens = int(p.rate.Tokens()) // a lane is claimed only when its delivery may be sent, however low the rate is
	}
	return l
}

// housekeep does the slow work for a sync. It makes deliveries due that waited for a
// backfill, repairs times after a clock was set back, removes holds that have ended, and
// writes the time of the last success.
func (p *pipeline) housekeep(ctx context.Context, checked *string) error {
	if _, err := p.relay.store.ReleaseBackfilled(ctx, p.sync.Name, 1000); err != nil {
		return err
	}
	next, err := p.relay.store.RepairTimes(ctx, p.sync.Name, *checked, 1000)
	if err != nil {
		return err
	}
	*checked = next
	if err := p.relay.store.EndHolds(ctx, p.sync.Name, max(p.relay.config.Lease, probeMost)); err != nil {
		return err
	}
	p.destinationsMu.Lock()
	p.destinations.forget(time.Now(), forgetAfter)
	p.destinationsMu.Unlock()
	_, err = p.noteDelivery(ctx)
	return err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

const (
	outage       = 3 * time.Second  // of the court
	rush         = 2 * time.Second  // in which the clinic is busy
	sceneTimeout = 20 * time.Second // how long a scene waits for what must happen
	stallTimeout = time.Minute      // the demo gives up when no delivery finishes for this long
)

// scenes plays all scenes. It returns when both systems have every change.
func (d *demo) scenes(ctx context.Context) error {
	t := d.traffic
	calm := t.all[:len(t.all)/4]
	rest := t.all[len(calm):]

	d.progress.say("%d clerks book, move and cancel %d hearings: %d changes; court and clinic are well", clerks, len(t.list), len(t.all))
	if err := t.work(ctx, calm, spread(len(calm))); err != nil {
		return err
	}
	if err := d.drained(ctx); err != nil {
		return err
	}
	var err error
	if d.story.calmUntil, err = d.world.clock(ctx); err != nil {
		return err
	}

	d.progress.say("now both fail now and then: errors, slow answers, lost answers")
	if err := d.world.setFaults(unreliable); err != nil {
		return err
	}
	group, during := errgroup.WithContext(ctx)
	group.Go(func() error { return t.work(during, rest, spread(len(rest))) })
	group.Go(func() error {
		// The disasters begin when the clerks have made some of the changes.
		some := int64(len(calm) + len(rest)*15/100)
		if err := until(during, stallTimeout, func() (bool, error) { return t.done.Load() >= some, nil }); err != nil {
			return err
		}
		return d.disasters(during)
	})
	if err := group.Wait(); err != nil {
		return err
	}
	d.progress.say("the clerks are done and both systems work again: the waiting changes are sent")
	if err := d.world.setFaults(nil); err != nil {
		return err
	}
	return d.drained(ctx)
}

// spread is how long the clerks take for n changes.
func spread(n int) time.Duration {
	return min(max(time.Duration(n)*35*time.Millisecond, time.Second), 10*time.Second)
}

// disasters takes the court down, makes the clinic busy and kills a relay, one
// after the other.
func (d *demo) disasters(ctx context.Context) error {
	court, clinic := d.world.court, d.world.clinic
	d.progress.say("the court is down; the clerks still work, and the clinic gets their changes at once")
	court.sim.Down(true)
	defer court.sim.Down(false)
	took, err := d.trouble(ctx, court, clinic, "down", outage)
	if err != nil {
		return err
	}
	court.sim.Down(false)
	d.progress.say("the court is back after %s", seconds(took))
	if err := d.offHold(ctx, court); err != nil {
		return err
	}

	d.progress.say("the clinic is busy: a Fault that says so, or 503; the court gets the changes at once")
	if err := clinic.sim.SetFaults(busy); err != nil {
		return err
	}
	if took, err = d.trouble(ctx, clinic, court, "busy", rush); err != nil {
		return err
	}
	d.progress.say("the clinic works again after %s", seconds(took))
	if err := clinic.sim.SetFaults(unreliable); err != nil {
		return err
	}
	if err := d.offHold(ctx, court); err != nil {
		return err
	}
	return d.killRelay(ctx)
}

// trouble waits until the time of a trouble is over, and records it for the report.
func (d *demo) trouble(ctx context.Context, sys, other *system, what string, long time.Duration) (took time.Duration, err error) {
	t := trouble{system: sys, other: other, what: what}
	if t.from, err = d.world.clock(ctx); err != nil {
		return 0, err
	}
	select {
	case <-time.After(long):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	t.until, err = d.world.clock(ctx)
	d.story.troubles = append(d.story.troubles, t)
	return t.took(), err
}

// offHold waits until the relays send to the system.
func (d *demo) offHold(ctx context.Context, sys *system) error {
	err := until(ctx, sceneTimeout, func() (bool, error) {
		s, err := d.world.state(ctx)
		return s.Syncs[sys.sync].Hold == "", err
	})
	if err != nil {
		return fmt.Errorf("waiting for the end of the hold on %s: %w", sys.sync, err)
	}
	return nil
}

// killRelay kills relay 2 while it waits for slow answers, and starts it again when
// relay 1 has taken over.
func (d *demo) killRelay(ctx context.Context) error {
	w := d.world
	if err := w.setFaults(slow); err != nil {
		return err
	}
	// With little traffic it may have claimed fewer deliveries, or none.
	err := until(ctx, 2*time.Second, func() (bool, error) {
		n, err := w.claimed(ctx, relay2)
		return n >= 4, err
	})
	if err != nil && !errors.Is(err, errTooLong) {
		return err
	}
	began := time.Now()
	if err := w.relay(relay2).kill(); err != nil {
		return fmt.Errorf("kill %s: %w", relay2, err)
	}
	if d.story.killed, err = w.claimed(ctx, relay2); err != nil {
		return err
	}
	if d.story.killed > 0 {
		d.progress.say("relay 2 killed with %d deliveries in flight; relay 1 takes over when the leases end", d.story.killed)
	} else {
		d.progress.say("relay 2 killed with nothing in flight; relay 1 works alone")
	}
	if err := w.setFaults(unreliable); err != nil {
		return err
	}
	err = until(ctx, sceneTimeout, func() (bool, error) {
		n, err := w.claimed(ctx, relay2)
		return n == 0, err
	})
	if err != nil {
		return fmt.Errorf("relay 1 has not taken over from relay 2: %w", err)
	}
	d.story.takeover = time.Since(began)
	if d.story.killed > 0 {
		d.progress.say("relay 1 took over after %s", seconds(d.story.takeover))
	}
	d.progress.say("relay 2 is started again")
	return w.startRelay(ctx, relay2)
}

// setFaults gives both systems a script.
func (w *world) setFaults(faults []courtsim.Fault) error {
	return errors.Join(w.court.sim.SetFaults(faults), w.clinic.sim.SetFaults(faults))
}

// The fault scripts of the systems.
var (
	// unreliable fails from time to time. Over REST the Fault is a plain 500.
	unreliable = []courtsim.Fault{
		{Match: courtsim.Match{After: 4, First: 1}, Do: courtsim.Action{Drop: courtsim.DropAfter}},
		{Match: courtsim.Match{Probability: 0.07}, Do: courtsim.Action{Fault: "Server"}},
		{Match: courtsim.Match{Probability: 0.05}, Do: courtsim.Action{Drop: courtsim.DropAfter}},
		{Match: courtsim.Match{Probability: 0.02}, Do: courtsim.Action{Delay: courtsim.Duration(600 * time.Millisecond)}},
	}
	// busy asks for a pause.
	busy = []courtsim.Fault{
		{Match: courtsim.Match{Every: 2}, Do: courtsim.Action{Status: 503, RetryAfter: "1"}},
		{Do: courtsim.Action{Fault: "Busy", RetryAfter: "1"}},
	}
	// slow answers slowly, so that a relay has deliveries in flight when it is killed.
	slow = []courtsim.Fault{{Do: courtsim.Action{Delay: courtsim.Duration(700 * time.Millisecond)}}}
)

// clock returns the time by the database's clock.
func (w *world) clock(ctx context.Context) (at time.Time, err error) {
	err = w.pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&at)
	return at, err
}

// drained waits until no delivery is open.
func (d *demo) drained(ctx context.Context) error {
	best, since := -1, time.Now()
	return until(ctx, 10*stallTimeout, func() (bool, error) {
		open, err := d.world.open(ctx)
		if err != nil || open == 0 {
			return true, err
		}
		if best < 0 || open < best {
			best, since = open, time.Now()
		}
		if time.Since(since) > stallTimeout {
			return true, fmt.Errorf("%d deliveries are still open and none was finished for %s; run with --keep and see: lockstep explain", open, stallTimeout)
		}
		return false, nil
	})
}

// errTooLong means that something did not happen in time.
var errTooLong = errors.New("it took too long")

// until calls ok repeatedly until it returns true or an error, or the time is over.
func until(ctx context.Context, most time.Duration, ok func() (bool, error)) error {
	end := time.After(most)
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case done || err != nil:
			return err
		}
		select {
		case <-tick.C:
		case <-end:
			return errTooLong
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

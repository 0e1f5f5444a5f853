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
	outage    = 3 * time.Second
	sceneMost = 20 * time.Second // how long a scene waits for what should happen
	stalled   = time.Minute      // without a finished delivery the demo gives up
)

// scenes performs the whole play and returns when nothing is left to be told.
func (d *demo) scenes(ctx context.Context) error {
	t := d.traffic
	calm := t.all[:len(t.all)/4]
	rest := t.all[len(calm):]

	d.progress.say("%d clerks book, move and cancel %d hearings: %d changes; the court is well", clerks, len(t.list), len(t.all))
	if err := t.work(ctx, calm, spread(len(calm))); err != nil {
		return err
	}
	if err := d.drained(ctx); err != nil {
		return err
	}
	if err := d.world.pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&d.story.calmUntil); err != nil {
		return err
	}

	d.progress.say("now the court fails: 500, 503 and 429 with Retry-After, slow answers, lost answers")
	if err := d.world.court.SetFaults(unreliable(len(rest))); err != nil {
		return err
	}
	group, during := errgroup.WithContext(ctx)
	group.Go(func() error { return t.work(during, rest, spread(len(rest))) })
	group.Go(func() error { return d.disasters(during, len(calm), len(rest)) })
	if err := group.Wait(); err != nil {
		return err
	}
	d.progress.say("the clerks are done and the court is well again: what waits goes out")
	if err := d.world.court.SetFaults(nil); err != nil {
		return err
	}
	return d.drained(ctx)
}

// spread is how long the clerks take for n changes.
func spread(n int) time.Duration {
	return min(max(time.Duration(n)*35*time.Millisecond, time.Second), 10*time.Second)
}

// disasters takes the court down and kills a relay while the clerks make the
// changes from calm on.
func (d *demo) disasters(ctx context.Context, calm, rest int) error {
	if err := d.changesMade(ctx, calm+rest*3/10); err != nil {
		return err
	}
	if err := d.takeCourtDown(ctx); err != nil {
		return err
	}
	if err := d.changesMade(ctx, calm+rest*6/10); err != nil {
		return err
	}
	return d.killRelay(ctx, rest)
}

func (d *demo) takeCourtDown(ctx context.Context) error {
	d.progress.say("the court is down; the clerks go on working")
	began := time.Now()
	d.world.court.Down(true)
	defer d.world.court.Down(false)
	select {
	case <-time.After(outage):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	d.world.court.Down(false)
	d.story.down = time.Since(began)
	d.progress.say("the court is back after %s", seconds(d.story.down))
	return nil
}

// killRelay kills relay 2 while it waits for slow answers, and starts it again
// once relay 1 has taken over.
func (d *demo) killRelay(ctx context.Context, rest int) error {
	w := d.world
	err := until(ctx, sceneMost, func() (bool, error) {
		s, err := w.standing(ctx)
		return s.Hold == "", err
	})
	if err != nil {
		return fmt.Errorf("waiting for the sync to come off its hold: %w", err)
	}
	if err := w.court.SetFaults(slow()); err != nil {
		return err
	}
	// With little traffic it may have less in hand, or nothing; then it is killed so.
	err = until(ctx, 2*time.Second, func() (bool, error) {
		n, err := w.inHand(ctx, relay2)
		return n >= 4, err
	})
	if err != nil && !errors.Is(err, errTooLong) {
		return err
	}
	began := time.Now()
	if err := w.relay(relay2).kill(); err != nil {
		return fmt.Errorf("kill %s: %w", relay2, err)
	}
	if d.story.killed, err = w.inHand(ctx, relay2); err != nil {
		return err
	}
	if d.story.killed > 0 {
		d.progress.say("relay 2 killed with %d in hand – relay 1 takes over when its leases of %s end", d.story.killed, lease)
	} else {
		d.progress.say("relay 2 killed with nothing in hand – relay 1 goes on alone")
	}
	if err := w.court.SetFaults(unreliable(rest)); err != nil {
		return err
	}
	err = until(ctx, sceneMost, func() (bool, error) {
		n, err := w.inHand(ctx, relay2)
		return n == 0, err
	})
	if err != nil {
		return fmt.Errorf("relay 1 has not taken over from relay 2: %w", err)
	}
	d.story.takeover = time.Since(began)
	if d.story.killed > 0 {
		d.progress.say("relay 1 took over after %s; relay 2 is started again", seconds(d.story.takeover))
	} else {
		d.progress.say("relay 2 is started again")
	}
	return w.startRelay(ctx, relay2)
}

// unreliable is a court that fails now and then; n is about how many requests
// it will get.
func unreliable(n int) []courtsim.Fault {
	second := courtsim.Action{Status: 503, RetryAfter: "1"}
	return []courtsim.Fault{
		{Match: courtsim.Match{After: n / 8, First: 1}, Do: second},
		{Match: courtsim.Match{After: n / 3, First: 1}, Do: courtsim.Action{Status: 429, RetryAfter: "1"}},
		{Match: courtsim.Match{After: 4, First: 1}, Do: courtsim.Action{Drop: courtsim.DropAfter}},
		{Match: courtsim.Match{Probability: 0.07}, Do: courtsim.Action{Status: 500}},
		{Match: courtsim.Match{Probability: 0.05}, Do: courtsim.Action{Drop: courtsim.DropAfter}},
		{Match: courtsim.Match{Probability: 0.02}, Do: courtsim.Action{Delay: courtsim.Duration(600 * time.Millisecond)}},
	}
}

// slow is a court that takes its time for every answer, so that a relay has
// something in hand when it is killed.
func slow() []courtsim.Fault {
	return []courtsim.Fault{{Do: courtsim.Action{Delay: courtsim.Duration(700 * time.Millisecond)}}}
}

// changesMade waits until the clerks have made n changes.
func (d *demo) changesMade(ctx context.Context, n int) error {
	return until(ctx, stalled, func() (bool, error) { return d.traffic.done.Load() >= int64(n), nil })
}

// drained waits until no delivery is open.
func (d *demo) drained(ctx context.Context) error {
	best, since := -1, time.Now()
	return until(ctx, 10*stalled, func() (bool, error) {
		open, err := d.world.open(ctx)
		if err != nil || open == 0 {
			return true, err
		}
		if best < 0 || open < best {
			best, since = open, time.Now()
		}
		if time.Since(since) > stalled {
			return true, fmt.Errorf("%d deliveries are still open and none was finished for %s; see --keep and lockstep explain", open, stalled)
		}
		return false, nil
	})
}

// errTooLong means that something awaited did not happen in time.
var errTooLong = errors.New("it took too long")

// until asks again and again until ok, an error, or the end of the time.
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

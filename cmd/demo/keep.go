package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// What --keep leaves behind: hearings in every state that a person must look at.
const (
	refusedKey  = "DEMO-REFUSED"  // the court refuses it
	blockedKey  = "DEMO-BLOCKED"  // the court refuses the booking, so the changes after it wait
	heldKey     = "DEMO-HELD"     // its courthouse is paused
	soonKey     = "DEMO-SOON"     // refused, and the hearing is tomorrow
	requeuedKey = "DEMO-REQUEUED" // was refused until a person sent it again
)

// operator is the person who has repaired something, and who can log in to the console.
const operator = "maria"

// heldCourthouse is the destination that is paused.
const heldCourthouse = "Oxford Combined Court"

// trickle is the pause between two changes of the clerks after the scenes.
const trickle = 2 * time.Second

// stay leaves everything running until ctx ends or a relay ends by itself. It makes some
// hearings wait, prints what to look at, and lets the clerks go on slowly.
func (d *demo) stay(ctx context.Context) error {
	watched := d.world.watchRelays(ctx)
	if err := d.world.startConsole(ctx); err != nil {
		return err
	}
	if err := d.exhibit(watched); err != nil {
		return causeOr(watched, err)
	}
	if _, err := io.WriteString(d.stdout, d.world.fill(hints)); err != nil {
		return err
	}
	d.goOn(watched)
	d.progress.say("stopping and removing everything that was started")
	if ctx.Err() == nil {
		return context.Cause(watched)
	}
	return nil
}

// exhibit brings some hearings into the states that a person must look at.
func (d *demo) exhibit(ctx context.Context) error {
	w := d.world
	d.progress.say("some hearings are left that need a person: refused, blocked, paused")
	// Each courthouse becomes a destination of its own, so that one can be paused.
	w.limits = "    limits: {per: event.courthouse}"
	if err := w.restartRelays(ctx); err != nil {
		return err
	}
	refuse := func(keys ...string) error {
		var script []courtsim.Fault
		for _, key := range keys {
			script = append(script, courtsim.Fault{Match: courtsim.Match{Key: key}, Do: courtsim.Action{Status: 422}})
		}
		return w.court.sim.SetFaults(script)
	}
	if err := refuse(refusedKey, blockedKey, soonKey, requeuedKey); err != nil {
		return err
	}
	registered := func() (bool, error) {
		n, err := w.count(ctx, "SELECT count(*) FROM outbox.sync WHERE backfill_seq IS NULL")
		return n >= len(w.systems()), err
	}
	if err := until(ctx, sceneTimeout, registered); err != nil {
		return fmt.Errorf("waiting until the syncs are registered: %w", err)
	}
	if err := w.exec(ctx, "SELECT outbox.pause($1, 'the courthouse moves to new computers', scope => $2)", w.court.sync, heldCourthouse); err != nil {
		return err
	}
	day := workday(time.Now().UTC().AddDate(0, 0, 10))
	for i, h := range []struct {
		key, courthouse string
		start           time.Time
	}{
		{refusedKey, "Leicester County Court", day},
		{blockedKey, "Leicester County Court", day},
		{heldKey, heldCourthouse, day},
		{soonKey, "Leicester County Court", time.Now().UTC().AddDate(0, 0, 1)},
		{requeuedKey, "Leicester County Court", day},
	} {
		start := time.Date(h.start.Year(), h.start.Month(), h.start.Day(), 9+i, 30, 0, 0, time.UTC)
		_, err := d.traffic.post(ctx, "/hearings", 0, map[string]any{
			"id": h.key, "case_number": fmt.Sprintf("27-CV-%04d", 901+i), "hearing_type": "Directions",
			"courthouse": h.courthouse, "courtroom": fmt.Sprintf("Court %d", 1+i), "local_start": start.Format(wallTime),
			"zone": londonZone, "duration_minutes": 60,
		})
		if err != nil {
			return fmt.Errorf("book %s: %w", h.key, err)
		}
	}
	if _, err := d.traffic.post(ctx, "/hearings/"+blockedKey+"/reschedule", 1, map[string]any{
		"local_start": time.Date(day.Year(), day.Month(), day.Day(), 15, 0, 0, 0, time.UTC).Format(wallTime),
	}); err != nil {
		return fmt.Errorf("move %s: %w", blockedKey, err)
	}
	failed := func(key string) func() (bool, error) {
		return func() (bool, error) {
			n, err := w.count(ctx, "SELECT count(*) FROM outbox.delivery WHERE state = 'failed' AND sync = $1 AND key = $2", w.court.sync, key)
			return n > 0, err
		}
	}
	for _, key := range []string{refusedKey, blockedKey, soonKey, requeuedKey} {
		if err := until(ctx, sceneTimeout, failed(key)); err != nil {
			return fmt.Errorf("waiting until the court refuses %s: %w", key, err)
		}
	}
	if err := refuse(refusedKey, blockedKey, soonKey); err != nil {
		return err
	}
	if err := w.exec(ctx, `WITH who AS MATERIALIZED (SELECT set_config('lockstep.actor', $3, true))
SELECT outbox.requeue($1, key => $2, reason => 'the court has corrected its list of rooms') FROM who`, w.court.sync, requeuedKey, operator); err != nil {
		return err
	}
	err := until(ctx, sceneTimeout, func() (bool, error) {
		n, err := w.count(ctx, "SELECT count(*) FROM outbox.delivery_log WHERE sync = $1 AND key = $2 AND outcome = 'delivered'", w.court.sync, requeuedKey)
		return n > 0, err
	})
	if err != nil {
		return fmt.Errorf("waiting until the court takes %s: %w", requeuedKey, err)
	}
	return nil
}

// goOn lets a clerk move a hearing now and then until ctx ends.
func (d *demo) goOn(ctx context.Context) {
	var live []change // the last change of each hearing that was not cancelled
	last := map[int]change{}
	for _, c := range d.traffic.all {
		last[c.hearing] = c
	}
	for i := range d.traffic.list {
		if c := last[i]; c.what != cancelled {
			live = append(live, c)
		}
	}
	random := rand.New(rand.NewPCG(d.seed, 0x6b656570))
	tick := time.NewTicker(trickle)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if len(live) == 0 {
			continue
		}
		i := random.IntN(len(live))
		live[i] = move(d.traffic.list[live[i].hearing], live[i], random)
		d.traffic.versions[live[i].hearing] = 0 // whatever the person at the page has changed
		if err := d.traffic.make(ctx, live[i]); err != nil && ctx.Err() == nil {
			d.progress.say("a clerk could not make a change: %v", err)
		}
	}
}

// restartRelays writes the configuration again, and starts the relays with it.
func (w *world) restartRelays(ctx context.Context) error {
	if err := os.WriteFile(w.configFile, []byte(w.fill(lockstepYAML)), 0o600); err != nil {
		return err
	}
	if err := w.stopRelays(); err != nil {
		return err
	}
	return errors.Join(w.startRelay(ctx, relay1), w.startRelay(ctx, relay2))
}

func (w *world) exec(ctx context.Context, sql string, args ...any) error {
	_, err := w.pool.Exec(ctx, sql, args...)
	return err
}

// causeOr returns why ctx has ended, which says more than the errors that follow from it,
// or err.
func causeOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/outbox"
)

// state is a reading of the database at one moment.
type state struct {
	Events  int
	Claimed map[string]int // deliveries by the relay that has claimed them
	Syncs   map[string]syncState
}

// syncState is the state of the sync of one system.
type syncState struct {
	Open int    // deliveries that are not finished
	Hold string // kind of the strongest hold, "" if none
}

func (w *world) state(ctx context.Context) (state, error) {
	s := state{Claimed: map[string]int{}, Syncs: map[string]syncState{}}
	err := w.pool.QueryRow(ctx, "/* demo: events */ SELECT count(*) FROM outbox.event").Scan(&s.Events)
	if err != nil {
		return s, err
	}
	for _, sys := range w.systems() {
		s.Syncs[sys.sync] = syncState{Open: s.Events} // until the relays have registered it
	}
	rows, _ := w.pool.Query(ctx, `/* demo: progress */
SELECT s.name, coalesce(s.hold_kind, ''), count(d.sync),
       count(d.sync) FILTER (WHERE d.claimed_by = $1 AND d.state = 'sending'),
       count(d.sync) FILTER (WHERE d.claimed_by = $2 AND d.state = 'sending')
  FROM outbox.sync AS s
  LEFT JOIN outbox.open_delivery AS d ON d.sync = s.name
 GROUP BY s.name, s.hold_kind`, relay1, relay2) // ForEachRow returns its error
	var (
		name               string
		one                syncState
		claimed1, claimed2 int
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &one.Hold, &one.Open, &claimed1, &claimed2}, func() error {
		if one.Hold == string(outbox.HoldBackfill) {
			one.Open = s.Events // some of them have no delivery yet
		}
		s.Syncs[name] = one
		s.Claimed[relay1] += claimed1
		s.Claimed[relay2] += claimed2
		return nil
	})
	return s, err
}

// finished returns the number of changes that the system has got.
func (s state) finished(sys *system) int { return max(0, s.Events-s.Syncs[sys.sync].Open) }

// open counts the deliveries that are not finished. It also counts events without a
// delivery, which are older than the registration of the syncs.
func (w *world) open(ctx context.Context) (int, error) {
	return w.count(ctx, `/* demo: open */
SELECT (SELECT count(*) FROM outbox.delivery)
     + (SELECT count(*) FROM outbox.unmatched)
     + (SELECT count(*) FROM outbox.sync WHERE backfill_seq IS NOT NULL)`)
}

// claimed counts the deliveries that a relay has claimed.
func (w *world) claimed(ctx context.Context, relay string) (int, error) {
	return w.count(ctx, `/* demo: claimed */
SELECT count(*) FROM outbox.open_delivery WHERE state = 'sending' AND claimed_by = $1`, relay)
}

func (w *world) count(ctx context.Context, sql string, args ...any) (n int, err error) {
	err = w.pool.QueryRow(ctx, sql, args...).Scan(&n)
	return n, err
}

// watch keeps the progress up to date until ctx ends, and says when holds begin
// and end.
func (d *demo) watch(ctx context.Context) {
	tick := time.NewTicker(150 * time.Millisecond)
	defer tick.Stop()
	holds := map[string]string{}
	for {
		if s, err := d.world.state(ctx); err == nil { // the scenes report an error
			for _, sys := range d.world.systems() {
				if one := s.Syncs[sys.sync]; one.Hold != holds[sys.sync] {
					d.sayHold(sys, holds[sys.sync], one)
					holds[sys.sync] = one.Hold
				}
			}
			d.progress.show(d.statusLines(s))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (d *demo) sayHold(sys *system, before string, s syncState) {
	switch {
	case s.Hold == "throttle":
		d.progress.say("the %s asks for a pause (%s with Retry-After): nothing is sent to it until then", sys.name, sys.lastPause())
	case s.Hold == "breaker":
		d.progress.say("the %s does not answer: the relays stop sending and probe it now and then (%d wait)", sys.name, s.Open)
	case s.Hold == "" && before == "breaker":
		d.progress.say("the %s answered a probe: %d waiting changes are sent, in order", sys.name, s.Open)
	}
}

// statusLines returns the state as lines for the viewer.
func (d *demo) statusLines(s state) []string {
	all := len(d.traffic.all)
	court, clinic := d.world.court, d.world.clinic
	lines := []string{
		fmt.Sprintf("%s  %d of %d changes made; the court has %d, the clinic %d",
			bar(s.finished(court)+s.finished(clinic), 2*all), s.Events, all, s.finished(court), s.finished(clinic)),
		fmt.Sprintf("court: %s   clinic: %s", court.now(s), clinic.now(s)),
		fmt.Sprintf("relay 1: %s   relay 2: %s", d.relayNow(relay1, s), d.relayNow(relay2, s)),
	}
	if last := d.traffic.last.Load(); last != nil {
		lines = append(lines, "clerks: "+*last)
	}
	return lines
}

// now describes the system by its newest answers.
func (sys *system) now(s state) string {
	one := s.Syncs[sys.sync]
	switch one.Hold {
	case "throttle":
		return fmt.Sprintf("answered %s, wants a pause (%d wait)", sys.lastPause(), one.Open)
	case "breaker":
		return fmt.Sprintf("no answer, probed now and then (%d wait)", one.Open)
	}
	for _, e := range slices.Backward(sys.sim.Ledger()) {
		switch {
		case time.Since(e.Time) > 400*time.Millisecond:
			return "answers"
		case e.Status == 0:
			return "an answer was lost – retrying"
		case e.Status >= 500:
			return fmt.Sprintf("answered %s – retrying", answered(e))
		}
	}
	return "answers"
}

func (d *demo) relayNow(name string, s state) string {
	inFlight := s.Claimed[name]
	select {
	case <-d.world.relay(name).done:
		return fmt.Sprintf("killed, %d in flight", inFlight)
	default:
		return fmt.Sprintf("%d in flight", inFlight)
	}
}

// bar draws how much of all is done.
func bar(done, all int) string {
	const width = 24
	full := width * min(done, all) / max(all, 1)
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}

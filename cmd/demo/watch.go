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

// standing is what the database says at one moment.
type standing struct {
	Events int
	Hands  map[string]int // deliveries in a relay's hands
	Syncs  map[string]syncStanding
}

// syncStanding is how it stands with one system.
type syncStanding struct {
	Open int    // deliveries not finished
	Hold string // kind of the strongest hold, "" if none
}

func (w *world) standing(ctx context.Context) (standing, error) {
	s := standing{Hands: map[string]int{}, Syncs: map[string]syncStanding{}}
	err := w.pool.QueryRow(ctx, "/* demo: events */ SELECT count(*) FROM outbox.event").Scan(&s.Events)
	if err != nil {
		return s, err
	}
	for _, sys := range w.systems() {
		s.Syncs[sys.sync] = syncStanding{Open: s.Events} // until the relays have registered it
	}
	rows, err := w.pool.Query(ctx, `/* demo: progress */
SELECT s.name, coalesce(s.hold_kind, ''), count(d.sync),
       count(d.sync) FILTER (WHERE d.claimed_by = $1 AND d.state = 'sending'),
       count(d.sync) FILTER (WHERE d.claimed_by = $2 AND d.state = 'sending')
  FROM outbox.sync AS s
  LEFT JOIN outbox.open_delivery AS d ON d.sync = s.name
 GROUP BY s.name, s.hold_kind`, relay1, relay2)
	if err != nil {
		return s, err
	}
	var (
		name         string
		one          syncStanding
		hand1, hand2 int
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &one.Hold, &one.Open, &hand1, &hand2}, func() error {
		if one.Hold == string(outbox.HoldBackfill) {
			one.Open = s.Events // not all of them have a delivery yet
		}
		s.Syncs[name] = one
		s.Hands[relay1] += hand1
		s.Hands[relay2] += hand2
		return nil
	})
	return s, err
}

// told is how many changes the system has been told.
func (s standing) told(sys *system) int { return max(0, s.Events-s.Syncs[sys.sync].Open) }

// open counts what a system was not told yet. Events that were there before the
// relays registered the syncs have no delivery at first: they are open too.
func (w *world) open(ctx context.Context) (n int, err error) {
	err = w.pool.QueryRow(ctx, `/* demo: open */
SELECT (SELECT count(*) FROM outbox.delivery)
     + (SELECT count(*) FROM outbox.unmatched)
     + (SELECT count(*) FROM outbox.sync WHERE backfill_seq IS NOT NULL)`).Scan(&n)
	return n, err
}

// inHand counts the deliveries that a relay has claimed.
func (w *world) inHand(ctx context.Context, relay string) (n int, err error) {
	err = w.pool.QueryRow(ctx, `/* demo: in hand */
SELECT count(*) FROM outbox.open_delivery WHERE state = 'sending' AND claimed_by = $1`, relay).Scan(&n)
	return n, err
}

// watch keeps the progress up to date until ctx ends, and tells when holds
// begin and end.
func (d *demo) watch(ctx context.Context) {
	tick := time.NewTicker(150 * time.Millisecond)
	defer tick.Stop()
	holds := map[string]string{}
	for {
		if s, err := d.world.standing(ctx); err == nil { // else the scenes meet the error too
			for _, sys := range d.world.systems() {
				if one := s.Syncs[sys.sync]; one.Hold != holds[sys.sync] {
					d.tellHold(sys, holds[sys.sync], one)
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

func (d *demo) tellHold(sys *system, before string, s syncStanding) {
	switch {
	case s.Hold == "throttle":
		d.progress.say("the %s asks for a pause (%s with Retry-After): nothing is sent to it until then", sys.name, sys.lastPause())
	case s.Hold == "breaker":
		d.progress.say("the %s does not answer: the relays stop sending, and try one now and then (%d wait)", sys.name, s.Open)
	case s.Hold == "" && before == "breaker":
		d.progress.say("the %s answered a try: %d waiting changes go out, in order", sys.name, s.Open)
	}
}

// statusLines say how things stand in a user's words.
func (d *demo) statusLines(s standing) []string {
	all := len(d.traffic.all)
	court, clinic := d.world.court, d.world.clinic
	lines := []string{
		fmt.Sprintf("%s  %d of %d changes made; the court has %d, the clinic %d",
			bar(s.told(court)+s.told(clinic), 2*all), s.Events, all, s.told(court), s.told(clinic)),
		fmt.Sprintf("court: %s   clinic: %s", court.now(s), clinic.now(s)),
		fmt.Sprintf("relay 1: %s   relay 2: %s", d.relayNow(relay1, s), d.relayNow(relay2, s)),
	}
	if last := d.traffic.last.Load(); last != nil {
		lines = append(lines, "clerks: "+*last)
	}
	return lines
}

// now describes the system by its newest answers.
func (sys *system) now(s standing) string {
	one := s.Syncs[sys.sync]
	switch one.Hold {
	case "throttle":
		return fmt.Sprintf("answered %s, wants a pause (%d wait)", sys.lastPause(), one.Open)
	case "breaker":
		return fmt.Sprintf("no answer, tried now and then (%d wait)", one.Open)
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

func (d *demo) relayNow(name string, s standing) string {
	inHand := s.Hands[name]
	select {
	case <-d.world.relay(name).done:
		return fmt.Sprintf("killed, %d in hand", inHand)
	default:
		return fmt.Sprintf("%d in hand", inHand)
	}
}

// bar draws how much of all is done.
func bar(done, all int) string {
	const width = 24
	full := width * min(done, all) / max(all, 1)
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// standing is what the database says at one moment.
type standing struct {
	Events int
	Open   int // deliveries not finished
	Hand1  int // deliveries in the hands of relay 1
	Hand2  int
	Hold   string // kind of the strongest hold, "" if none
}

func (w *world) standing(ctx context.Context) (standing, error) {
	rows, err := w.pool.Query(ctx, `/* demo: progress */
SELECT (SELECT count(*) FROM outbox.event) AS events,
       count(*) AS open,
       count(*) FILTER (WHERE claimed_by = $2 AND state = 'sending') AS hand1,
       count(*) FILTER (WHERE claimed_by = $3 AND state = 'sending') AS hand2,
       coalesce((SELECT hold_kind FROM outbox.sync WHERE name = $1), '') AS hold
  FROM outbox.delivery
 WHERE sync = $1`, syncName, relay1, relay2)
	if err != nil {
		return standing{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[standing])
}

// open counts what the court was not told yet. Events that wait for the relays
// to register the sync have no delivery: they are open too.
func (w *world) open(ctx context.Context) (n int, err error) {
	err = w.pool.QueryRow(ctx, `/* demo: open */
SELECT (SELECT count(*) FROM outbox.delivery) + (SELECT count(*) FROM outbox.unmatched)`).Scan(&n)
	return n, err
}

// inHand counts the deliveries that a relay has claimed.
func (w *world) inHand(ctx context.Context, relay string) (n int, err error) {
	err = w.pool.QueryRow(ctx, `/* demo: in hand */
SELECT count(*) FROM outbox.delivery WHERE state = 'sending' AND claimed_by = $1`, relay).Scan(&n)
	return n, err
}

// watch keeps the progress up to date until ctx ends, and tells when holds
// begin and end.
func (d *demo) watch(ctx context.Context) {
	tick := time.NewTicker(150 * time.Millisecond)
	defer tick.Stop()
	hold := ""
	for {
		if s, err := d.world.standing(ctx); err == nil { // else the scenes meet the error too
			ledger := d.world.court.Ledger()
			if s.Hold != hold {
				d.tellHold(hold, s, ledger)
				hold = s.Hold
			}
			d.progress.show(d.statusLines(s, ledger))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (d *demo) tellHold(before string, s standing, ledger []courtsim.Entry) {
	switch {
	case s.Hold == "throttle":
		d.progress.say("the court asks for a pause (HTTP %d with Retry-After): nothing is sent to it until then", lastPause(ledger))
	case s.Hold == "breaker":
		d.progress.say("delivery after delivery fails: the relays stop sending, and try one now and then (%d wait)", s.Open)
	case s.Hold == "" && before == "breaker":
		d.progress.say("a try succeeded: %d waiting changes go out, in order", s.Open)
	}
}

// lastPause is the status by which the court asked for a pause last.
func lastPause(ledger []courtsim.Entry) int {
	for _, e := range slices.Backward(ledger) {
		if s := e.Status; s == http.StatusTooManyRequests || s == http.StatusServiceUnavailable {
			return s
		}
	}
	return http.StatusServiceUnavailable
}

// statusLines say how things stand in a user's words.
func (d *demo) statusLines(s standing, ledger []courtsim.Entry) []string {
	all := len(d.traffic.all)
	told := max(0, s.Events-s.Open)
	lines := []string{
		fmt.Sprintf("%s  %d of %d changes made, %d told to the court, %d waiting", bar(told, all), s.Events, all, told, s.Open),
		fmt.Sprintf("court: %s   relay 1: %s   relay 2: %s", d.courtNow(s, ledger), d.relayNow(relay1, s.Hand1), d.relayNow(relay2, s.Hand2)),
	}
	if last := d.traffic.last.Load(); last != nil {
		lines = append(lines, "clerks: "+*last)
	}
	return lines
}

// courtNow describes the court by its newest answers.
func (d *demo) courtNow(s standing, ledger []courtsim.Entry) string {
	switch s.Hold {
	case "throttle":
		return fmt.Sprintf("answered %d, wants a pause", lastPause(ledger))
	case "breaker":
		return "no answer, tried now and then"
	}
	for _, e := range slices.Backward(ledger) {
		switch {
		case time.Since(e.Time) > 400*time.Millisecond:
			return "answers"
		case e.Status == 0:
			return "an answer was lost – retrying"
		case e.Status >= 500:
			return fmt.Sprintf("answered %d – retrying", e.Status)
		}
	}
	return "answers"
}

func (d *demo) relayNow(name string, inHand int) string {
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

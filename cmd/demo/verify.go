package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// facts is what both sides hold when all is over.
type facts struct {
	hearings []hearing
	events   []event
	calendar map[string]courtsim.Booking
	ledger   []courtsim.Entry
}

// hearing is a hearing as the database has it.
type hearing struct {
	ID        string
	StartsAt  time.Time
	Courtroom string
	Status    string
	Version   int64
	EventID   string // event of that version
}

// event is an event with what the delivery log says of it.
type event struct {
	ID         string
	Key        string
	Version    int64
	InsertedAt time.Time
	Open       bool       // its delivery is not finished
	Attempts   int        // rows of the log for requests that the court may have seen
	AnsweredAt *time.Time // when the court acknowledged it
	SHA256     *string    // of the body that was acknowledged
}

func (w *world) facts(ctx context.Context) (facts, error) {
	f := facts{calendar: w.court.Calendar(), ledger: w.court.Ledger()}
	rows, err := w.pool.Query(ctx, `/* demo: hearings */
SELECT id, starts_at, courtroom, status, version, event_id::text
  FROM scheduling.hearing
 ORDER BY id`)
	if err != nil {
		return f, err
	}
	if f.hearings, err = pgx.CollectRows(rows, pgx.RowToStructByPos[hearing]); err != nil {
		return f, err
	}
	rows, err = w.pool.Query(ctx, `/* demo: events */
SELECT e.id::text, e.key, e.version, e.inserted_at,
       EXISTS (SELECT FROM outbox.delivery AS d WHERE d.event_id = e.id AND d.key = e.key AND d.sync = $1),
       count(l.id) FILTER (WHERE l.outcome IN ('delivered', 'duplicate', 'accepted', 'retry', 'unknown', 'failed', 'lease_lost')),
       min(l.answered_at) FILTER (WHERE l.outcome IN ('delivered', 'duplicate', 'accepted')),
       min(l.request_sha256) FILTER (WHERE l.outcome IN ('delivered', 'duplicate', 'accepted'))
  FROM outbox.event AS e
  LEFT JOIN outbox.delivery_log AS l ON l.event_id = e.id AND l.sync = $1
 GROUP BY e.id
 ORDER BY e.seq`, syncName)
	if err != nil {
		return f, err
	}
	f.events, err = pgx.CollectRows(rows, pgx.RowToStructByPos[event])
	return f, err
}

// verdict is what the comparison found. Every figure is counted.
type verdict struct {
	Hearings, Cancelled int
	Events              int
	Attempts            int // by the delivery log
	Retries             int // attempts beyond the first of each event
	Requests            int // by the court's ledger
	Answers             map[int]int
	Duplicates          int // requests whose event the court had taken before

	Lost       int // events that neither the court has nor a delivery is open for
	Open       int // deliveries that are not finished
	OutOfOrder int // acceptances whose version is not above all before, per hearing
	Different  int // hearings whose time, room, status or version is not the court's
	Unlogged   int // requests without a row in the delivery log, and rows without their request

	Problems []string // a sentence for each of these
	Times    []timing
}

// timing is how long an event took from its insert to the court's answer.
type timing struct {
	at   time.Time
	took time.Duration
}

func (v *verdict) agrees() bool {
	return v.Lost+v.Open+v.OutOfOrder+v.Different+v.Unlogged == 0
}

func (v *verdict) add(counter *int, format string, args ...any) {
	*counter++
	v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
}

// judge compares what the two sides hold.
func judge(f facts) verdict {
	v := verdict{Hearings: len(f.hearings), Events: len(f.events), Answers: map[int]int{}}
	known := make(map[string]*event, len(f.events))
	for i := range f.events {
		known[f.events[i].ID] = &f.events[i]
	}
	seen := v.readLedger(f.ledger, known)
	v.compareEvents(f.events, seen)
	v.compareHearings(f.hearings, f.calendar, known)
	return v
}

// sighting is what the court's ledger has of one event.
type sighting struct {
	requests int
	accepted int
	sha256   string // of the body that was accepted
}

// readLedger goes through the court's ledger in its order.
func (v *verdict) readLedger(ledger []courtsim.Entry, known map[string]*event) map[string]*sighting {
	seen := map[string]*sighting{}
	newest := map[string]int64{} // version accepted last, by hearing
	for _, e := range ledger {
		if e.Method == http.MethodGet {
			continue
		}
		v.Requests++
		v.Answers[e.Status]++
		if e.Duplicate {
			v.Duplicates++
		}
		id, _, _ := strings.Cut(e.IdempotencyKey, ":") // "<id>:<n>" is a replay of the event
		ev := known[id]
		if ev == nil {
			v.add(&v.Unlogged, "request %d at the court, about %s, belongs to no event", e.Seq, e.CaseReference)
			continue
		}
		s := seen[id]
		if s == nil {
			s = &sighting{}
			seen[id] = s
		}
		s.requests++
		if !e.Accepted {
			continue
		}
		s.accepted++
		s.sha256 = e.BodySHA256
		if ev.Version <= newest[ev.Key] {
			v.add(&v.OutOfOrder, "%s: the court took version %d after version %d", ev.Key, ev.Version, newest[ev.Key])
			continue
		}
		newest[ev.Key] = ev.Version
	}
	return seen
}

func (v *verdict) compareEvents(events []event, seen map[string]*sighting) {
	for _, e := range events {
		s := seen[e.ID]
		if s == nil {
			s = &sighting{}
		}
		v.Attempts += e.Attempts
		v.Retries += max(0, e.Attempts-1)
		switch {
		case e.Open:
			v.add(&v.Open, "%s: version %d is still on its way", e.Key, e.Version)
		case s.accepted == 0:
			v.add(&v.Lost, "%s: version %d is lost: the court never took it and no delivery is open", e.Key, e.Version)
		}
		if s.requests > e.Attempts {
			v.add(&v.Unlogged, "%s: version %d was sent %d times, the delivery log has %d attempts", e.Key, e.Version, s.requests, e.Attempts)
		}
		if e.SHA256 != nil && (s.accepted == 0 || s.sha256 != *e.SHA256) {
			v.add(&v.Unlogged, "%s: the delivery log says that version %d was acknowledged, the court's ledger has not got that request", e.Key, e.Version)
		}
		if e.AnsweredAt != nil {
			v.Times = append(v.Times, timing{e.InsertedAt, e.AnsweredAt.Sub(e.InsertedAt)})
		}
	}
}

func (v *verdict) compareHearings(hearings []hearing, calendar map[string]courtsim.Booking, known map[string]*event) {
	ours := map[string]bool{}
	for _, h := range hearings {
		ours[h.ID] = true
		if h.Status == cancelled {
			v.Cancelled++
		}
		if what := differs(h, calendar, known); what != "" {
			v.add(&v.Different, "%s: %s", h.ID, what)
		}
	}
	for _, ref := range slices.Sorted(maps.Keys(calendar)) {
		if !ours[ref] {
			v.add(&v.Different, "%s: the court has it, the database has not", ref)
		}
	}
}

// differs says in what the court's booking is not the hearing, "" if in nothing.
func differs(h hearing, calendar map[string]courtsim.Booking, known map[string]*event) string {
	b, ok := calendar[h.ID]
	if !ok {
		return "the court has no such hearing"
	}
	var fields struct {
		StartTime string `json:"start_time"`
		Courtroom string
		Status    string
	}
	if err := json.Unmarshal(b.Fields, &fields); err != nil {
		return "the court's booking is not readable: " + err.Error()
	}
	zone, err := time.LoadLocation(courtZone)
	if err != nil {
		return err.Error()
	}
	var found []string
	compare := func(what, ours, theirs string) {
		if ours != theirs {
			found = append(found, fmt.Sprintf("%s is %q here and %q at the court", what, ours, theirs))
		}
	}
	compare("the start", h.StartsAt.In(zone).Format(time.RFC3339), fields.StartTime)
	compare("the room", h.Courtroom, fields.Courtroom)
	compare("the status", h.Status, b.Status)
	id, _, _ := strings.Cut(b.IdempotencyKey, ":")
	if id != h.EventID {
		theirs := "one that is not ours"
		if e := known[id]; e != nil {
			theirs = fmt.Sprint(e.Version)
		}
		found = append(found, fmt.Sprintf("the version is %d here and %s at the court", h.Version, theirs))
	}
	return strings.Join(found, ", ")
}

// percentile returns the duration that the given share of times, 0 to 1, does
// not exceed; 0 without any.
func percentile(times []timing, share float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.SortedFunc(slices.Values(times), func(a, b timing) int { return cmp.Compare(a.took, b.took) })
	i := int(share*float64(len(sorted))+0.999999) - 1 // nearest rank
	return sorted[min(max(i, 0), len(sorted)-1)].took
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// facts are the contents of the database and of the systems at the end.
type facts struct {
	hearings []hearing
	systems  []holding
}

// holding is the content of one system, and what the outbox says about it.
type holding struct {
	*system
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

// event is an event, with what the delivery log says about it for one system.
type event struct {
	ID         string
	Key        string
	Version    int64
	InsertedAt time.Time
	Open       bool       // its delivery is not finished
	Attempts   int        // rows of the log for requests that the system may have read
	Acks       int        // requests that it acknowledged
	AnsweredAt *time.Time // of the first acknowledgement
	SHA256     *string    // of the request that it acknowledged
}

func (w *world) facts(ctx context.Context) (facts, error) {
	var f facts
	rows, _ := w.pool.Query(ctx, `/* demo: hearings */
SELECT id, starts_at, courtroom, status, version, event_id::text
  FROM scheduling.hearing
 ORDER BY id`) // CollectRows returns its error
	var err error
	if f.hearings, err = pgx.CollectRows(rows, pgx.RowToStructByPos[hearing]); err != nil {
		return f, err
	}
	for _, sys := range w.systems() {
		h := holding{system: sys, calendar: sys.sim.Calendar(), ledger: sys.sim.Ledger()}
		rows, _ := w.pool.Query(ctx, `/* demo: events */
SELECT e.id::text, e.key, e.version, e.inserted_at,
       EXISTS (SELECT FROM outbox.delivery AS d WHERE d.event_id = e.id AND d.key = e.key AND d.sync = $1),
       count(l.id) FILTER (WHERE l.outcome IN ('delivered', 'duplicate', 'accepted', 'retry', 'unknown', 'failed', 'lease_lost')),
       count(l.id) FILTER (WHERE l.outcome IN ('delivered', 'duplicate', 'accepted')),
       min(l.answered_at) FILTER (WHERE l.outcome IN ('delivered', 'duplicate', 'accepted')),
       min(l.request_sha256) FILTER (WHERE l.outcome IN ('delivered', 'duplicate', 'accepted'))
  FROM outbox.event AS e
  LEFT JOIN outbox.delivery_log AS l ON l.event_id = e.id AND l.sync = $1
 GROUP BY e.id
 ORDER BY e.seq`, sys.sync)
		if h.events, err = pgx.CollectRows(rows, pgx.RowToStructByPos[event]); err != nil {
			return f, err
		}
		f.systems = append(f.systems, h)
	}
	return f, nil
}

// verdict is the result of the comparison. Every figure is counted.
type verdict struct {
	Hearings, Cancelled int
	Accounts            []*account   // of each system
	Separations         []separation // of each trouble
}

// account is the result of the comparison with one system.
type account struct {
	*system
	Events     int
	Attempts   int            // by the delivery log
	Retries    int            // attempts beyond the first of each event
	Requests   int            // by the system's ledger
	Answers    map[string]int // by their text; "" is no answer
	Duplicates int            // requests for an event that the system had taken before

	Lost       int // events that the system does not have, without an open delivery
	Open       int // deliveries that are not finished
	OutOfOrder int // accepted requests whose version is not above all earlier ones of the hearing
	Different  int // hearings whose time, room, status or version differs
	Unlogged   int // requests without a row in the delivery log, and rows without their request
	Needless   int // events sent again although their acknowledgement was recorded

	Problems []string // a sentence for each of these
	Times    []timing
}

// timing is how long an event took from its insert to the system's answer.
type timing struct {
	at   time.Time
	took time.Duration
}

// separation counts the changes that both systems got while one was in trouble.
type separation struct {
	trouble
	Made            int      // changes made in this time
	Troubled, Other int      // changes of these that each system acknowledged in this time
	Times           []timing // until the other system's answer, for changes due before the end
	Problem         string   // "" if the other system got its changes
}

func (v verdict) agrees() bool { return len(v.problems()) == 0 }

func (v verdict) problems() []string {
	var all []string
	for _, a := range v.Accounts {
		all = append(all, a.Problems...)
	}
	for _, s := range v.Separations {
		if s.Problem != "" {
			all = append(all, s.Problem)
		}
	}
	return all
}

func (a *account) add(counter *int, format string, args ...any) {
	*counter++
	a.Problems = append(a.Problems, fmt.Sprintf(format, args...))
}

// judge compares the contents of the database and of the systems.
func judge(f facts, s story) verdict {
	v := verdict{Hearings: len(f.hearings)}
	for _, h := range f.hearings {
		if h.Status == cancelled {
			v.Cancelled++
		}
	}
	for _, h := range f.systems {
		a := &account{system: h.system, Events: len(h.events), Answers: map[string]int{}}
		known := make(map[string]*event, len(h.events))
		for i := range h.events {
			known[h.events[i].ID] = &h.events[i]
		}
		seen := a.readLedger(h.ledger, known)
		a.compareEvents(h.events, seen)
		a.compareHearings(f.hearings, h.calendar, known)
		v.Accounts = append(v.Accounts, a)
	}
	for _, t := range s.troubles {
		v.Separations = append(v.Separations, separate(t, f.systems))
	}
	return v
}

// moments is how soon after its commit a working system must have a change.
const moments = time.Second

// separate counts the changes made while one system was in trouble, and how many of
// them each system took.
func separate(t trouble, systems []holding) separation {
	s := separation{trouble: t}
	due := 0 // changes that the other system should have got in this time
	for _, h := range systems {
		for _, e := range h.events {
			if !t.during(e.InsertedAt) {
				continue
			}
			acknowledged := e.AnsweredAt != nil && t.during(*e.AnsweredAt)
			if h.system == t.system {
				s.Made++
				s.Troubled += count(acknowledged)
				continue
			}
			s.Other += count(acknowledged)
			if !t.during(e.InsertedAt.Add(moments)) {
				continue // the next scene may delay them
			}
			due++
			if e.AnsweredAt != nil {
				s.Times = append(s.Times, timing{e.InsertedAt, e.AnsweredAt.Sub(e.InsertedAt)})
			}
		}
	}
	if due > 0 && s.Other == 0 {
		s.Problem = fmt.Sprintf("while the %s was %s, the %s got nothing, although %d changes were due", t.system.name, t.what, t.other.name, due)
	}
	return s
}

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// sighting is the content of a system's ledger about one event.
type sighting struct {
	requests int
	accepted int
	digests  []string // of the requests that were accepted or duplicates
}

// answered is the answer to a request in a word, "" without an answer.
func answered(e courtsim.Entry) string {
	switch {
	case e.Status == 0:
		return ""
	case e.Result != "":
		return e.Result
	case e.Status < 300:
		return "2xx"
	}
	return strconv.Itoa(e.Status)
}

// readLedger reads the system's ledger in its order.
func (a *account) readLedger(ledger []courtsim.Entry, known map[string]*event) map[string]*sighting {
	seen := map[string]*sighting{}
	newest := map[string]int64{} // version accepted last, by hearing
	for _, e := range ledger {
		if e.Method == http.MethodGet {
			continue
		}
		a.Requests++
		a.Answers[answered(e)]++
		if e.Duplicate {
			a.Duplicates++
		}
		id, _, _ := strings.Cut(e.IdempotencyKey, ":") // "<id>:<n>" is a replay of the event
		ev := known[id]
		if ev == nil {
			a.add(&a.Unlogged, "request %d at the %s, about %s, belongs to no event", e.Seq, a.name, e.CaseReference)
			continue
		}
		s := seen[id]
		if s == nil {
			s = &sighting{}
			seen[id] = s
		}
		s.requests++
		if e.Accepted || e.Duplicate {
			s.digests = append(s.digests, e.BodySHA256)
		}
		if !e.Accepted {
			continue
		}
		s.accepted++
		if ev.Version <= newest[ev.Key] {
			a.add(&a.OutOfOrder, "%s: the %s took version %d after version %d", ev.Key, a.name, ev.Version, newest[ev.Key])
			continue
		}
		newest[ev.Key] = ev.Version
	}
	return seen
}

func (a *account) compareEvents(events []event, seen map[string]*sighting) {
	for _, e := range events {
		s := seen[e.ID]
		if s == nil {
			s = &sighting{}
		}
		a.Attempts += e.Attempts
		a.Retries += max(0, e.Attempts-1)
		switch {
		case e.Open:
			a.add(&a.Open, "%s: version %d is still open for the %s", e.Key, e.Version, a.name)
		case s.accepted == 0:
			a.add(&a.Lost, "%s: version %d is lost: the %s never took it and no delivery is open", e.Key, e.Version, a.name)
		}
		if s.requests > e.Attempts {
			a.add(&a.Unlogged, "%s: version %d was sent to the %s %d times, the delivery log has %d attempts", e.Key, e.Version, a.name, s.requests, e.Attempts)
		}
		if e.SHA256 != nil && !slices.Contains(s.digests, *e.SHA256) {
			a.add(&a.Unlogged, "%s: the delivery log says that version %d was acknowledged, the %s's ledger does not have that request", e.Key, e.Version, a.name)
		}
		if e.Acks > 1 {
			a.add(&a.Needless, "%s: version %d was sent to the %s again, although its acknowledgement was recorded", e.Key, e.Version, a.name)
		}
		if e.AnsweredAt != nil {
			a.Times = append(a.Times, timing{e.InsertedAt, e.AnsweredAt.Sub(e.InsertedAt)})
		}
	}
}

func (a *account) compareHearings(hearings []hearing, calendar map[string]courtsim.Booking, known map[string]*event) {
	ours := map[string]bool{}
	for _, h := range hearings {
		ours[h.ID] = true
		if what := a.differs(h, calendar, known); what != "" {
			a.add(&a.Different, "%s: %s", h.ID, what)
		}
	}
	for _, ref := range slices.Sorted(maps.Keys(calendar)) {
		if !ours[ref] {
			a.add(&a.Different, "%s: the %s has it, the database does not", ref, a.name)
		}
	}
}

// differs says how the system's booking differs from the hearing, or returns "".
func (a *account) differs(h hearing, calendar map[string]courtsim.Booking, known map[string]*event) string {
	b, ok := calendar[h.ID]
	if !ok {
		return "the " + a.name + " has no such hearing"
	}
	var fields map[string]any
	if err := json.Unmarshal(b.Fields, &fields); err != nil {
		return "the " + a.name + "'s booking is not readable: " + err.Error()
	}
	zone, err := time.LoadLocation(a.zone)
	if err != nil {
		return err.Error()
	}
	var found []string
	compare := func(what, ours string, theirs any) {
		if ours != theirs {
			found = append(found, fmt.Sprintf("%s is %q here and %q at the %s", what, ours, theirs, a.name))
		}
	}
	compare("the start", h.StartsAt.In(zone).Format(time.RFC3339), fields[a.start])
	compare("the room", h.Courtroom, fields[a.room])
	compare("the status", h.Status, b.Status)
	id, _, _ := strings.Cut(b.IdempotencyKey, ":")
	if id != h.EventID {
		theirs := "an unknown one"
		if e := known[id]; e != nil {
			theirs = fmt.Sprint(e.Version)
		}
		found = append(found, fmt.Sprintf("the version is %d here and %s at the %s", h.Version, theirs, a.name))
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

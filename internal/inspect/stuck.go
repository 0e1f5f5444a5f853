package inspect

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	stuckPage   = 100  // rows on one page
	stuckScan   = 3000 // deliveries that are searched for one page
	mostSoonest = 1000 // deliveries of each sync that are searched for those at risk
	settling    = time.Minute
)

// Stuck is an open delivery that needs attention, with the lane that it is in.
type Stuck struct {
	Sync      string
	Key       string
	EventID   string
	Event     string     // what people call it, such as "version 3"
	State     string     // as in outbox.open_delivery
	Class     string     // error class of the last attempt
	CreatedAt time.Time  // when it was written
	NeededBy  *time.Time // the time of the hearing or the like; nil: not known
	Behind    Count      // later open deliveries of the key
	Escalated bool       // outbox.alert has it as escalated
	Standing  Standing
	Says      []Sentence // why the receiver does not have it, and what happens next
}

// StuckFilter selects deliveries that need attention. An empty field selects all.
type StuckFilter struct {
	Sync  string
	Class string // error class
	Error string // part of the error's text, in upper or lower case

	Failed  bool // only those that have failed; otherwise also those that are retried
	Blocked bool // only those with a later delivery of their key behind them

	After Place // only later places, for the next page
}

// Place is the place of a delivery in the lists. The zero value is before all.
type Place struct {
	Sync, Key string
	Seq       int64
}

// StuckPage is one page of a list, in the order of sync and key.
type StuckPage struct {
	At   time.Time
	List []Stuck
	Next *Place // where the next page begins; nil: this is the last one
}

// ReadStuck reads a page of the deliveries that f selects. It searches a bounded number of
// deliveries, so a page that is not the last one may be empty.
func ReadStuck(ctx context.Context, db Beginner, f StuckFilter) (p StuckPage, err error) {
	err = read(ctx, db, func(tx pgx.Tx) error {
		p, err = readStuck(ctx, tx, f)
		return err
	})
	return p, err
}

// place is a delivery that a search has found, or only the last one that it looked at.
type place struct {
	Sync  string
	Key   string
	Seq   int64
	Found bool
}

func readStuck(ctx context.Context, tx pgx.Tx, f StuckFilter) (p StuckPage, err error) {
	if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&p.At); err != nil {
		return p, err
	}
	const search = `-- lockstep: deliveries that need attention
WITH searched AS MATERIALIZED (
    SELECT d.sync, d.key, d.event_seq, d.state, d.error_class, d.error
      FROM outbox.delivery AS d
     WHERE ($1 = '' OR d.sync = $1)
       AND (d.sync, d.key, d.event_seq) > ($2, $3, $4)
       AND (NOT $5 OR d.state = 'failed')
     ORDER BY d.sync, d.key, d.event_seq
     LIMIT $9
), found AS (
    SELECT s.sync, s.key, s.event_seq
      FROM searched AS s
     WHERE s.state IN ('failed', 'retry')
       AND ($6 = '' OR s.error_class = $6)
       AND ($7 = '' OR position(lower($7) IN lower(s.error)) > 0)
       AND (NOT $8 OR NOT EXISTS (SELECT FROM outbox.delivery AS b WHERE b.sync = s.sync AND b.key = s.key AND b.event_seq < s.event_seq)
                  AND EXISTS (SELECT FROM outbox.delivery AS b WHERE b.sync = s.sync AND b.key = s.key AND b.event_seq > s.event_seq))
     ORDER BY s.sync, s.key, s.event_seq
     LIMIT $10
), ends AS (
    SELECT s.sync, s.key, s.event_seq FROM searched AS s ORDER BY s.sync, s.key, s.event_seq OFFSET $9 - 1 LIMIT 1
)
SELECT sync, key, event_seq AS seq, true AS found FROM found
UNION ALL
SELECT sync, key, event_seq, false FROM ends
ORDER BY found DESC, sync, key, seq`
	scan := stuckScan
	if f.Failed && f.Class == "" && f.Error == "" && !f.Blocked {
		scan = stuckPage + 1 // each delivery that is searched is found
	}
	places, err := collect[place](ctx, tx, search, f.Sync, f.After.Sync, f.After.Key, f.After.Seq, f.Failed, f.Class, f.Error, f.Blocked, scan, stuckPage+1)
	if err != nil {
		return p, err
	}
	found := slices.DeleteFunc(slices.Clone(places), func(one place) bool { return !one.Found })
	switch {
	case len(found) > stuckPage:
		found = found[:stuckPage]
		last := found[stuckPage-1]
		p.Next = &Place{last.Sync, last.Key, last.Seq}
	case len(places) > len(found):
		last := places[len(places)-1]
		p.Next = &Place{last.Sync, last.Key, last.Seq}
	}
	p.List, err = describe(ctx, tx, p.At, found)
	return p, err
}

// readAtRisk reads the keys whose hearing or the like is in the future while the receiver
// does not have their newest event, the soonest first. A delivery that was
// written a moment ago is not at risk yet.
func readAtRisk(ctx context.Context, tx pgx.Tx, at time.Time, sync string, most int) ([]Stuck, error) {
	const search = `-- lockstep overview: at risk
SELECT w.sync, w.key, w.seq, true AS found
  FROM (SELECT DISTINCT ON (d.sync, d.key) d.sync, d.key, d.event_seq AS seq, d.needed_by
          FROM outbox.sync AS s
         CROSS JOIN LATERAL (
               SELECT n.sync, n.key, n.event_seq, n.needed_by, n.created_at, n.state
                 FROM outbox.delivery AS n
                WHERE n.sync = s.name AND n.needed_by >= $1
                ORDER BY n.needed_by
                LIMIT $2) AS d
         WHERE ($3 = '' OR s.name = $3)
           AND (d.state <> 'pending' OR d.created_at < $4)
         ORDER BY d.sync, d.key, d.needed_by, d.event_seq) AS w
 ORDER BY w.needed_by, w.sync, w.key
 LIMIT $5`
	found, err := collect[place](ctx, tx, search, at, mostSoonest, sync, at.Add(-settling), most)
	if err != nil {
		return nil, err
	}
	return describe(ctx, tx, at, found)
}

// countPast counts the open deliveries whose hearing or the like is in the past.
func countPast(ctx context.Context, tx pgx.Tx, at time.Time) (n Count, err error) {
	const count = `-- lockstep overview: past
SELECT count(*)
  FROM (SELECT FROM outbox.sync AS s
         CROSS JOIN LATERAL (SELECT FROM outbox.delivery AS d WHERE d.sync = s.name AND d.needed_by < $1 LIMIT $2) AS one
         LIMIT $2) AS counted`
	err = tx.QueryRow(ctx, count, at, MostCounted+1).Scan(&n)
	return n, err
}

// stuckRow is a delivery with what else is known of it.
type stuckRow struct {
	Delivery
	Key       string
	Type      string
	Version   *int64
	Scope     string
	Served    bool
	Behind    Count
	Escalated bool
	Leads     int64 // place of the first delivery of its lane
}

// describe says about deliveries why their receivers do not have them. A delivery that is
// finished meanwhile is left out.
func describe(ctx context.Context, tx pgx.Tx, at time.Time, found []place) ([]Stuck, error) {
	if len(found) == 0 {
		return nil, nil
	}
	rows, err := readDetails(ctx, tx, found)
	if err != nil {
		return nil, err
	}
	var leads []place
	for _, row := range rows {
		if row.Leads != row.EventSeq {
			leads = append(leads, place{Sync: row.Sync, Key: row.Key, Seq: row.Leads})
		}
	}
	first, err := readDetails(ctx, tx, leads)
	if err != nil {
		return nil, err
	}
	var syncs []string
	for _, row := range rows {
		syncs = append(syncs, row.Sync)
	}
	slices.Sort(syncs)
	holds, err := readHolds(ctx, tx, slices.Compact(syncs))
	if err != nil {
		return nil, err
	}
	all := make([]Stuck, 0, len(rows))
	explained := map[string]bool{} // syncs whose hold is in a row above
	for _, row := range rows {
		one := Stuck{
			Sync: row.Sync, Key: row.Key, EventID: row.EventID, Event: name(row.Version, row.Type), State: row.State, Class: row.ErrorClass,
			CreatedAt: row.CreatedAt, NeededBy: row.NeededBy, Behind: row.Behind, Escalated: row.Escalated,
		}
		head := row
		if i := slices.IndexFunc(first, func(f stuckRow) bool { return f.Sync == row.Sync && f.Key == row.Key && f.EventSeq == row.Leads }); i >= 0 {
			head = first[i]
			one.Says = append(one.Says, say(strings.ToUpper(one.Event[:1]), one.Event[1:], " waits behind ", name(head.Version, head.Type), "."))
		}
		lane := head.lane(holds)
		whole := slices.ContainsFunc(lane.Holds, func(h Hold) bool { return h.Scope == "" })
		lane.heldAbove = whole && explained[row.Sync]
		standing, said := lane.Says(&Story{At: at})
		explained[row.Sync] = explained[row.Sync] || whole && standing == OnHold
		one.Standing, one.Says = standing, append(one.Says, said...)
		all = append(all, one)
	}
	return all, nil
}

// lane is the lane of a delivery that is the first one in it.
func (r *stuckRow) lane(holds []Hold) *Lane {
	l := &Lane{
		Sync: r.Sync, First: &r.Delivery, Served: r.Served, Open: int(r.Behind) + 1,
		Events: []LaneEvent{{Event: Event{ID: r.EventID, Type: r.Type, Version: r.Version}}},
	}
	for _, h := range holds {
		if h.Sync == r.Sync && (h.Scope == "" || h.Scope == r.Scope) {
			l.Holds = append(l.Holds, h)
		}
	}
	return l
}

// readDetails reads deliveries, in the order of places.
func readDetails(ctx context.Context, tx pgx.Tx, places []place) ([]stuckRow, error) {
	if len(places) == 0 {
		return nil, nil
	}
	var syncs, keys []string
	var seqs []int64
	for _, p := range places {
		syncs, keys, seqs = append(syncs, p.Sync), append(keys, p.Key), append(seqs, p.Seq)
	}
	const details = `-- lockstep: why deliveries are not sent
SELECT d.sync, d.event_seq, d.event_id::text AS event_id, d.state, d.attempts, CASE WHEN d.due_at < 'infinity' THEN d.due_at END AS due_at,
       coalesce(d.claimed_by, '') AS claimed_by, d.lease_until, coalesce(d.error_class, '') AS error_class, coalesce(d.error, '') AS error,
       d.created_at, d.needed_by, d.key, coalesce(e.type, '') AS type, e.version, coalesce(l.scope, '') AS scope,
       EXISTS (SELECT FROM outbox.relay AS r WHERE r.running AND d.sync = ANY (r.syncs)) AS served,
       coalesce(d.escalates_at <= statement_timestamp(), false) AS escalated,
       (SELECT count(*) FROM (SELECT FROM outbox.delivery AS b WHERE b.sync = d.sync AND b.key = d.key AND b.event_seq > d.event_seq LIMIT $4) AS counted)::int AS behind,
       (SELECT b.event_seq FROM outbox.delivery AS b WHERE b.sync = d.sync AND b.key = d.key ORDER BY b.event_seq LIMIT 1) AS leads
  FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS w (sync, key, event_seq, place)
  JOIN outbox.open_delivery AS d ON d.sync = w.sync AND d.key = w.key AND d.event_seq = w.event_seq
  LEFT JOIN outbox.event AS e ON e.id = d.event_id
  LEFT JOIN outbox.lane AS l ON l.sync = d.sync AND l.key = d.key
 ORDER BY w.place`
	return collect[stuckRow](ctx, tx, details, syncs, keys, seqs, mostBehind)
}

// readHolds reads the holds of syncs and of their destinations, the strongest first.
func readHolds(ctx context.Context, tx pgx.Tx, syncs []string) ([]Hold, error) {
	const holds = `-- lockstep: what stops syncs
SELECT h.sync, h.scope, h.kind, h.until, h.reason, h.by, h.since
  FROM outbox.hold AS h
 WHERE h.sync = ANY ($1)
   AND (h.kind IN ('auth', 'breaker') OR h.until IS NULL OR h.until > clock_timestamp())
 ORDER BY h.sync, outbox.hold_rank(h.kind), h.scope
 LIMIT 2000`
	return collect[Hold](ctx, tx, holds, syncs)
}

package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// PageSize is how many deliveries one transaction changes at most. A set of up to that many
// is changed as a whole or not at all.
const PageSize = 1000

// mostPlaces is how many deliveries Apply reads ahead. It keeps only their places.
const mostPlaces = 50_000

// Order is what Apply does. [Set.Order] returns the order for a set that a person has seen.
type Order struct {
	Action Action
	Filter Filter
	// Fingerprint is that of the set which the person has seen. Apply refuses with a
	// [ChangedError] if the set is another one by now. Empty: it takes the set as it finds it.
	Fingerprint string
	// Rate is how many deliveries it changes per second at most. Zero: no limit.
	Rate float64
	// Each gets the deliveries of each page, as they were before the action, after the page is
	// committed. For Filter.Retired, it gets them before. If it returns an error, Apply ends.
	Each func(page []Delivery) error

	set      *Set                                             // the set that it is the order of, nil if it is none
	pageSize int                                              // default: PageSize
	lockWait time.Duration                                    // for the locks of deliveries; default: 10 s
	wait     func(ctx context.Context, until time.Time) error // default: waitUntil
}

// Order returns the order to change exactly this set.
func (s Set) Order() Order {
	return Order{Action: s.Action, Filter: s.Filter, Fingerprint: s.Fingerprint, set: &s}
}

// Result is what Apply has done.
type Result struct {
	Set  Set   // as it was at the beginning
	Done int64 // deliveries that Apply changed; those of the set that others changed meanwhile are not counted
}

// StoppedError says that Apply ended between two pages because its context ended.
type StoppedError struct {
	Result
	cause error
}

func (e *StoppedError) Error() string {
	return fmt.Sprintf("stopped: %d of %d %s, the others were not changed", e.Done, e.Set.Count, e.Set.Action.Did())
}

func (e *StoppedError) Unwrap() error { return e.cause }

// place finds one delivery of a set again.
type place struct {
	Sync      string
	Key       string
	EventSeq  int64
	EventID   string
	Life      string
	At        time.Time
	Soonest   string
	Seq       int64
	NewestSeq int64
	Hash      int64
}

// Apply changes the set that o selects. It begins with the soonest hearing, and changes a
// page of deliveries in each transaction. If ctx ends, it completes the page that it has
// begun, and returns a [StoppedError]. If the connection breaks, it may return an
// [UnclearError]. With the same AsOf and without a fingerprint, another Apply continues.
func Apply(ctx context.Context, db Beginner, by Actor, o Order) (r Result, err error) {
	o.pageSize, o.lockWait = cmp.Or(o.pageSize, PageSize), cmp.Or(o.lockWait, 10*time.Second)
	if o.Rate > 0 {
		o.pageSize = max(1, min(o.pageSize, int(o.Rate)))
	}
	if o.wait == nil {
		o.wait = waitUntil
	}
	if o.Fingerprint == "" && o.set != nil {
		r.Set = *o.set // there is nothing to compare, and a large set takes seconds to count
	} else if r.Set, err = chooseNow(ctx, db, o.Action, o.Filter); err != nil {
		return r, err
	}
	if o.Fingerprint != "" && o.Fingerprint != r.Set.Fingerprint {
		return r, changed(ctx, db, o)
	}
	o.Filter = r.Set.Filter // with its AsOf
	if r.Set.Count == 0 {
		return r, nil
	}
	if o.Filter.Retired {
		if r.Done, err = discardRetired(ctx, db, by, o); err != nil {
			return r, r.after(ctx, err)
		}
		return r, nil
	}
	if r.Set.Count > int64(o.pageSize) {
		o.Fingerprint = "" // others may change some deliveries meanwhile; each page leaves those out
	}
	begun := time.Now()
	var last *place
	for {
		var places []place
		err := pgx.BeginTxFunc(ctx, db, snapshot, func(tx pgx.Tx) (err error) {
			places, err = o.places(ctx, tx, last)
			return err
		})
		if err != nil {
			return r, r.after(ctx, err)
		}
		if len(places) == 0 {
			return r, nil
		}
		last = &places[len(places)-1]
		for page := range slices.Chunk(places, o.pageSize) {
			if o.Rate > 0 && r.Done > 0 {
				if err := o.wait(ctx, begun.Add(time.Duration(float64(r.Done)/o.Rate*float64(time.Second)))); err != nil {
					return r, r.after(ctx, err)
				}
			}
			if ctx.Err() != nil {
				return r, r.after(ctx, context.Cause(ctx))
			}
			done, err := o.page(ctx, db, by, page)
			if err != nil {
				return r, r.after(ctx, err)
			}
			r.Done += int64(len(done))
			if o.Each != nil && len(done) > 0 {
				if err := o.Each(done); err != nil {
					return r, r.after(ctx, err)
				}
			}
		}
	}
}

// UnclearError says that the connection broke while a page was committed: nobody can know
// from here whether it was.
type UnclearError struct {
	Result
	Page  int64 // deliveries of the page
	cause error
}

func (e *UnclearError) Error() string {
	return fmt.Sprintf("%d of %d were %s, perhaps %d more were, and the others were not changed: %v",
		e.Done, e.Set.Count, e.Set.Action.Did(), e.Page, e.cause)
}

func (e *UnclearError) Unwrap() error { return e.cause }

// after says in an error what was done before it.
func (r *Result) after(ctx context.Context, err error) error {
	unclear, isUnclear := errors.AsType[*UnclearError](err)
	switch {
	case isUnclear:
		unclear.Result = *r
		return unclear
	case ctx.Err() != nil:
		return &StoppedError{*r, context.Cause(ctx)}
	case r.Done == 0:
		return unchanged(err)
	}
	return fmt.Errorf("%d of %d were %s, and the others were not changed: %w", r.Done, r.Set.Count, r.Set.Action.Did(), err)
}

// unchanged says in an error that nothing was changed.
func unchanged(err error) error {
	if _, says := errors.AsType[*ChangedError](err); err == nil || says {
		return err
	}
	return fmt.Errorf("nothing was changed: %w", err)
}

// waitUntil returns at a time, or earlier with the error of ctx.
func waitUntil(ctx context.Context, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// snapshot makes all reads of a transaction see one moment.
var snapshot = pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}

func chooseNow(ctx context.Context, db Beginner, a Action, f Filter) (s Set, err error) {
	err = pgx.BeginTxFunc(ctx, db, snapshot, func(tx pgx.Tx) (err error) {
		s, err = Choose(ctx, tx, a, f)
		return err
	})
	return s, err
}

// changed returns a ChangedError with the set as it is now.
func changed(ctx context.Context, db Beginner, o Order) error {
	o.Filter.AsOf = time.Time{}
	now, err := chooseNow(ctx, db, o.Action, o.Filter)
	if err != nil {
		return unchanged(err)
	}
	return &ChangedError{now}
}

// places reads the next places of the set, after the given one.
func (o *Order) places(ctx context.Context, tx pgx.Tx, after *place) ([]place, error) {
	most := mostPlaces
	if o.Rate > 0 {
		most = max(o.pageSize, min(most, int(o.Rate*60))) // a minute's work, so that they are not too old
	}
	next := `-- lockstep: places of a set
` + o.Filter.chosen(o.Action, false) + `
SELECT c.sync, c.key, c.event_seq, c.event_id::text AS event_id, c.life, c.at, c.soonest::text AS soonest, c.seq, c.newest_seq, ` + hashed + ` AS hash
  FROM chosen AS c
 WHERE $9::text IS NULL OR (c.soonest, c.seq, c.sync) > ($9::timestamptz, $10::bigint, $11::text)
 ORDER BY c.soonest, c.seq, c.sync
 LIMIT $12`
	args := append(o.Filter.args(), nil, nil, nil, most)
	if after != nil {
		args[8], args[9], args[10] = after.Soonest, after.Seq, after.Sync
	}
	return collect[place](ctx, tx, next, args...)
}

// pageLock is the advisory lock of pages: of two operators who change the same deliveries,
// the second one sees what the first one did.
const pageLock = 1869967993

// waitForOthers waits until other people's pages have ended, and bounds the waits for locks
// of deliveries.
func waitForOthers(ctx context.Context, tx pgx.Tx, lockWait time.Duration) error {
	const (
		wait  = `SELECT set_config('lock_timeout', '1min', true), pg_advisory_xact_lock($1)`
		bound = `SELECT set_config('lock_timeout', $1, true)`
	)
	if _, err := tx.Exec(ctx, wait, pageLock); err != nil {
		return whyLocked(err, "the page of another person did not end within a minute")
	}
	_, err := tx.Exec(ctx, bound, fmt.Sprint(lockWait.Milliseconds()))
	return err
}

// whyLocked says in an error of a lock what it waited for.
func whyLocked(err error, why string) error {
	if refusal, ok := errors.AsType[*pgconn.PgError](err); ok && refusal.Code == "55P03" { // lock_not_available
		return fmt.Errorf("%s: %w", why, err)
	}
	return err
}

// page changes those deliveries of a page that are still as they were when they were
// chosen, and returns them. If waits ends while it waits for others, it changes nothing. After
// that the page is completed, so that its result is known.
func (o *Order) page(waits context.Context, db Beginner, by Actor, places []place) (done []Delivery, err error) {
	ctx := context.WithoutCancel(waits)
	err = Act(ctx, db, by, func(tx pgx.Tx) error {
		if err := waitForOthers(waits, tx, o.lockWait); err != nil {
			return err
		}
		found, err := o.find(ctx, tx, places)
		if err != nil {
			return whyLocked(err, fmt.Sprintf("somebody has locked one of the deliveries for %s: see who is idle in transaction in pg_stat_activity", o.lockWait))
		}
		if o.Fingerprint != "" && o.Fingerprint != fingerprint(int64(len(found)), hashOf(places, found)) {
			return errSetChanged
		}
		if len(found) == 0 {
			return nil
		}
		if err := o.change(ctx, tx, found, by.Reason); err != nil {
			return err
		}
		done = deliveries(found)
		return nil
	})
	switch {
	case errors.Is(err, errSetChanged):
		return nil, changed(ctx, db, *o)
	case errors.Is(err, errUnclear):
		return nil, &UnclearError{Page: int64(len(done)), cause: err}
	}
	return done, err
}

var errSetChanged = errors.New("the set has changed")

// foundDelivery is a delivery of a page that is still in the set.
type foundDelivery struct {
	Delivery
	N   int     // its index in the page
	TID *string // its row, which is locked; nil for a delivered event
}

func hashOf(places []place, found []foundDelivery) (hash int64) {
	for _, f := range found {
		hash ^= places[f.N].Hash
	}
	return hash
}

func deliveries(found []foundDelivery) []Delivery {
	list := make([]Delivery, len(found))
	for i := range found {
		list[i] = found[i].Delivery
	}
	return list
}

// find reads the deliveries of a page that are still in the set, in the page's order. It
// locks open ones, in the order of their primary key.
func (o *Order) find(ctx context.Context, tx pgx.Tx, places []place) ([]foundDelivery, error) {
	const given = `unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::timestamptz[], $7::bigint[], $8::int[])
           AS k (sync, key, event_seq, event_id, life, at, newest_seq, n)`
	const lock = `-- lockstep: lock the deliveries of a page
WITH page AS MATERIALIZED (
    SELECT k.*, d.tid
      FROM ` + given + `
     CROSS JOIN LATERAL (
           SELECT d.ctid AS tid
             FROM outbox.delivery AS d
            WHERE d.sync = k.sync AND d.key = k.key AND d.event_seq = k.event_seq
              AND d.changed_in = k.life::xid8 AND (d.state = 'failed' OR $9)
              FOR UPDATE) AS d
)
SELECT c.n, c.tid::text AS tid, `
	const check = `-- lockstep: check the delivered events of a page
WITH page AS MATERIALIZED (
    SELECT k.*
      FROM ` + given + `
     WHERE NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = k.sync AND d.key = k.key AND d.event_id = k.event_id)
       AND NOT EXISTS (SELECT FROM outbox.delivery_log AS later WHERE later.event_id = k.event_id AND later.sync = k.sync AND later.at > $10)
       AND ($9 OR NOT EXISTS ` + newerEvent + `)
)
SELECT c.n, NULL AS tid, `
	var (
		syncs, keys, events, lives []string
		seqs, newest               []int64
		times                      []time.Time
		order                      = make([]int, len(places))
	)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		p, q := &places[a], &places[b]
		return cmp.Or(cmp.Compare(p.Sync, q.Sync), cmp.Compare(p.Key, q.Key), cmp.Compare(p.EventSeq, q.EventSeq))
	})
	for _, i := range order {
		p := &places[i]
		syncs, keys, events, lives = append(syncs, p.Sync), append(keys, p.Key), append(events, p.EventID), append(lives, p.Life)
		seqs, newest, times = append(seqs, p.EventSeq), append(newest, p.NewestSeq), append(times, p.At)
	}
	s := Set{Action: o.Action, Filter: o.Filter}
	args := []any{syncs, keys, seqs, events, lives, times, newest, order}
	sql := lock + s.columns()
	if o.Action == Replay {
		sql, args = check+s.columns(), append(args, o.Filter.Force, o.Filter.AsOf)
	} else {
		args = append(args, o.Action == Discard && (o.Filter.Event != "" || o.Filter.Retired))
	}
	return collect[foundDelivery](ctx, tx, sql+`
 ORDER BY c.n`, args...)
}

// change does the action.
func (o *Order) change(ctx context.Context, tx pgx.Tx, found []foundDelivery, reason string) error {
	if o.Action == Requeue {
		// The database does the rest of a requeue.
		const requeue = `-- lockstep: requeue
UPDATE outbox.delivery AS d
   SET state = 'pending'
 WHERE d.ctid = ANY ($1::text[]::tid[])`
		var rows []string
		for _, f := range found {
			rows = append(rows, *f.TID)
		}
		_, err := tx.Exec(ctx, requeue, rows)
		return err
	}
	const discard = `-- lockstep: discard
SELECT outbox.discard(g.sync, g.event_id, $3) FROM unnest($1::text[], $2::uuid[]) AS g (sync, event_id)`
	const replay = `-- lockstep: replay
SELECT outbox.replay(g.sync, g.event_id, $3) FROM unnest($1::text[], $2::uuid[]) AS g (sync, event_id)`
	var syncs, events []string
	for _, f := range found {
		syncs, events = append(syncs, f.Sync), append(events, f.EventID)
	}
	sql := discard
	if o.Action == Replay {
		sql = replay
	}
	_, err := tx.Exec(ctx, sql, syncs, events, reason)
	return err
}

// discardRetired gives up all open deliveries of a retired sync, in one transaction.
func discardRetired(ctx context.Context, db Beginner, by Actor, o Order) (done int64, err error) {
	err = Act(ctx, db, by, func(tx pgx.Tx) error {
		var (
			last *place
			hash int64
		)
		for {
			places, err := o.places(ctx, tx, last)
			if err != nil {
				return err
			}
			if len(places) == 0 {
				break
			}
			last = &places[len(places)-1]
			for page := range slices.Chunk(places, o.pageSize) {
				found, err := o.find(ctx, tx, page)
				if err != nil {
					return err
				}
				done += int64(len(found))
				hash ^= hashOf(page, found)
				if o.Each != nil {
					if err := o.Each(deliveries(found)); err != nil {
						return err
					}
				}
			}
		}
		if o.Fingerprint != "" && o.Fingerprint != fingerprint(done, hash) {
			return errSetChanged
		}
		return tx.QueryRow(ctx, `SELECT outbox.discard_all($1, $2)`, o.Filter.Sync, by.Reason).Scan(&done)
	})
	switch {
	case errors.Is(err, errSetChanged):
		return 0, changed(ctx, db, o)
	case errors.Is(err, errUnclear):
		return 0, &UnclearError{Page: done, cause: err}
	case err != nil:
		return 0, err
	}
	return done, nil
}

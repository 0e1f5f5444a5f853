package inspect

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Bounds of one read of changes.
const (
	MostChanges = 100    // changes
	mostRows    = 10_000 // rows of the log that people wrote, also those that the filter leaves out
	firstRows   = 1000   // of them are read first, which is mostly enough
	mostKeys    = 5      // keys of one change
)

// Changes are what people did, the newest first.
type Changes struct {
	At    time.Time // when they were read, by the database's clock
	List  []Change
	Older int64 // older changes have smaller ids in the log; 0: there are no older ones
}

// Change is something that a person did: one row of the log, or several rows about
// different deliveries with the same person, outcome, sync and reason.
type Change struct {
	Entry           // the newest row
	Rows  int       // number of rows
	First time.Time // when the oldest row was recorded
	Keys  []string  // some keys, the newest first
	Cut   bool      // the read ended in the middle of it: it may have older rows
}

// ChangeFilter selects changes. The zero value selects all.
type ChangeFilter struct {
	Person string // an actor, or the name after its slash
	Sync   string
	Action string // an outcome, such as requeued
	Since  time.Time
	Until  time.Time // zero: no bound
	Before int64     // only rows of the log with smaller ids; 0: all
	After  int64     // only rows of the log with larger ids
}

// Actions are the outcomes of what people do.
func Actions() []string {
	return []string{"requeued", "replayed", "discarded", "paused", "resumed", "retired", "sync_changed", "reference_set", "confirmed", "reconciled"}
}

// changeGroup has the rows of the log that are one change.
type changeGroup struct {
	Newest, Oldest *int64 // ids; nil: nothing is selected
	Rows           int
	First          *time.Time
	Keys           []string
	Looked, Last   int64 // of all rows that were looked at: the number, and the smallest id
}

// ReadChanges reads what people did, from the newest rows of the log that f selects. It
// looks at a bounded number of rows: if none of them is selected, the list is empty and
// Older says where to continue.
func ReadChanges(ctx context.Context, db Beginner, f ChangeFilter) (c Changes, err error) {
	const newest = `-- lockstep changes
WITH looked_at AS MATERIALIZED (
    SELECT l.id, l.at, l.sync, l.event_id, l.key, l.outcome, l.actor, l.reason
      FROM outbox.delivery_log AS l
     WHERE l.actor IS NOT NULL
       AND l.id < $1
       AND l.id > $2
       AND l.at >= coalesce($3::timestamptz, '-infinity')
       AND l.at < coalesce($4::timestamptz, 'infinity')
     ORDER BY l.id DESC
     LIMIT $5
), marked AS (
    SELECT r.*, r.event_id IS NULL
                OR (r.actor, r.outcome, r.sync, r.reason, true) IS DISTINCT FROM
                   (lag(r.actor) OVER w, lag(r.outcome) OVER w, lag(r.sync) OVER w, lag(r.reason) OVER w, lag(r.event_id) OVER w IS NOT NULL) AS begins
      FROM looked_at AS r
     WHERE ($6::text = '' OR r.sync = $6)
       AND ($7::text = '' OR r.outcome = $7)
       AND ($8::text = '' OR r.actor = $8 OR right(r.actor, length($8) + 1) = '/' || $8)
    WINDOW w AS (ORDER BY r.id DESC)
), numbered AS (
    SELECT m.*, count(*) FILTER (WHERE m.begins) OVER (ORDER BY m.id DESC) AS change
      FROM marked AS m
), placed AS (
    SELECT n.*, row_number() OVER (PARTITION BY n.change ORDER BY n.id DESC) AS place
      FROM numbered AS n
), grouped AS (
    SELECT p.change, max(p.id) AS newest, min(p.id) AS oldest, count(*) AS rows, min(p.at) AS first,
           array_agg(p.key ORDER BY p.place) FILTER (WHERE p.place <= 50 AND p.key IS NOT NULL) AS keys
      FROM placed AS p
     GROUP BY p.change
     ORDER BY p.change
     LIMIT $9
)
SELECT g.newest, g.oldest, coalesce(g.rows, 0)::int AS rows, g.first, g.keys, l.looked, l.last
  FROM (SELECT count(*) AS looked, coalesce(min(id), 0) AS last FROM looked_at) AS l
  LEFT JOIN grouped AS g ON true
 ORDER BY g.change`
	const entries = `-- lockstep changes: the newest row of each
SELECT ` + entryColumns + `
  FROM outbox.delivery_log AS l
 WHERE l.id = ANY ($1)`
	before := cmp.Or(f.Before, math.MaxInt64)
	err = read(ctx, db, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&c.At); err != nil {
			return err
		}
		var groups []changeGroup
		for _, most := range []int64{firstRows, mostRows} {
			groups, err = collect[changeGroup](ctx, tx, newest, before, f.After, bound(f.Since), bound(f.Until), most,
				f.Sync, f.Action, f.Person, MostChanges+1)
			if err != nil {
				return err
			}
			if groups[0].Looked < most || len(groups) > MostChanges {
				break
			}
		}
		if groups[0].Looked == mostRows {
			c.Older = groups[0].Last
		}
		if groups[0].Newest == nil {
			return nil
		}
		more := len(groups) > MostChanges
		if more {
			groups = groups[:MostChanges]
			c.Older = *groups[MostChanges-1].Oldest
		}
		var ids []int64
		for _, g := range groups {
			ids = append(ids, *g.Newest)
		}
		rows, err := collect[Entry](ctx, tx, entries, ids)
		if err != nil {
			return err
		}
		byID := map[int64]Entry{}
		for _, row := range rows {
			byID[row.ID] = row
		}
		for _, g := range groups {
			c.List = append(c.List, Change{Entry: byID[*g.Newest], Rows: g.Rows, First: *g.First, Keys: distinct(g.Keys)})
		}
		c.List[len(c.List)-1].Cut = c.Older != 0 && !more
		return nil
	})
	return c, err
}

// bound returns a time of a filter as a parameter.
func bound(at time.Time) *time.Time {
	if at.IsZero() {
		return nil
	}
	return &at
}

// distinct returns the first keys of a list that are different.
func distinct(all []string) (keys []string) {
	for _, key := range all {
		if len(keys) < mostKeys && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// Continue adds older changes to c. The last change of c and the first one of older may be
// one.
func (c *Changes) Continue(older Changes) {
	if last := len(c.List) - 1; last >= 0 && len(older.List) > 0 && c.List[last].Cut && c.List[last].includes(&older.List[0].Entry) {
		first := older.List[0]
		joined := &c.List[last]
		joined.Rows += first.Rows
		joined.First, joined.Cut = first.First, first.Cut
		joined.Keys = distinct(slices.Concat(joined.Keys, first.Keys))
		older.List = older.List[1:]
	}
	c.List, c.Older = append(c.List, older.List...), older.Older
}

// includes reports whether a row is part of the same action, as far as the log can tell.
func (c *Change) includes(row *Entry) bool {
	return c.EventID != "" && row.EventID != "" &&
		c.Actor == row.Actor && c.Outcome == row.Outcome && c.Sync == row.Sync && c.Reason == row.Reason
}

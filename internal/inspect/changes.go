package inspect

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// mostChanges is how many rows of the log one page of changes is made of.
const mostChanges = 2000

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
}

const mostKeys = 5 // keys of a Change

// ChangeFilter selects changes. The zero value selects all.
type ChangeFilter struct {
	Person string // an actor, or the name after its slash
	Sync   string
	Before int64 // only rows of the log with smaller ids
	After  int64 // only rows of the log with larger ids
}

// ReadChanges reads what people did, from the newest rows of the log that f selects.
func ReadChanges(ctx context.Context, db Beginner, f ChangeFilter) (c Changes, err error) {
	const newest = `-- lockstep changes
SELECT ` + entryColumns + `
  FROM outbox.delivery_log AS l
 WHERE l.actor IS NOT NULL
   AND ($1 = 0 OR l.id < $1)
   AND ($2 = '' OR l.sync = $2)
   AND l.id > $5
   AND ($3 = '' OR l.actor = $3 OR right(l.actor, length($3) + 1) = '/' || $3)
 ORDER BY l.id DESC
 LIMIT $4`
	var rows []Entry
	err = read(ctx, db, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&c.At); err != nil {
			return err
		}
		rows, err = collect[Entry](ctx, tx, newest, f.Before, f.Sync, f.Person, mostChanges, f.After)
		return err
	})
	if len(rows) == mostChanges {
		c.Older = rows[len(rows)-1].ID
	}
	for _, row := range rows {
		if last := len(c.List) - 1; last >= 0 && c.List[last].includes(&row) {
			c.List[last].add(&row)
			continue
		}
		c.List = append(c.List, Change{Entry: row})
		c.List[len(c.List)-1].add(&row)
	}
	return c, err
}

// includes reports whether a row is part of the same action, as far as the log can tell.
func (c *Change) includes(row *Entry) bool {
	return c.EventID != "" && row.EventID != "" &&
		c.Actor == row.Actor && c.Outcome == row.Outcome && c.Sync == row.Sync && c.Reason == row.Reason
}

func (c *Change) add(row *Entry) {
	c.Rows++
	c.First = row.At
	if row.Key != "" && len(c.Keys) < mostKeys && !slices.Contains(c.Keys, row.Key) {
		c.Keys = append(c.Keys, row.Key)
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/outbox"
)

// horizon finds out up to which id the log is complete: no row with that id or
// a smaller one can appear any more. Ids are drawn before their transactions
// commit, so a row may become visible after others with larger ids.
//
// On a primary, whoever inserts into the log holds its lock from before the id
// is drawn until the commit. So once all who held the lock after an id was
// visible have let go, the log is complete up to it. A standby does not show
// these locks. There all transactions are waited for that the standby knows to
// be open a second after the id was visible.
type horizon struct {
	settled int64 // complete up to here
	past    bool  // and there was nothing before until to come

	target   int64
	ends     bool // the target was read when until had passed
	read     time.Time
	waits    map[string]string // by transaction, who it is
	xmax     int64             // of the standby
	deciding bool              // target is not settled yet
}

// standbyDelay is how long a transaction may take between drawing an id and
// getting its number, which a standby sees.
const standbyDelay = time.Second

// advance looks once whether more has settled.
func (h *horizon) advance(ctx context.Context, db *database, until instant) error {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("no answer within %s", connectTimeout))
	defer cancel()
	if h.deciding {
		if err := h.decide(ctx, db); err != nil || h.deciding {
			return err
		}
	}
	const newest = `-- lockstep log: newest id
SELECT coalesce(max(id), 0), coalesce(clock_timestamp() >= coalesce($1::timestamptz, clock_timestamp() - $2::interval), false), pg_is_in_recovery()
  FROM outbox.delivery_log`
	at, ago := until.before()
	var standby bool
	if err := db.conn.QueryRow(ctx, newest, at, ago).Scan(&h.target, &h.ends, &standby); err != nil {
		return err
	}
	if h.target < h.settled && h.target > 0 && !standby {
		return fmt.Errorf("the log ends at id %d, before id %d: this is another database, or one that was restored or lost its latest rows in a failover", h.target, h.settled)
	}
	if h.target <= h.settled && !h.ends {
		return nil
	}
	h.read, h.deciding, h.xmax, h.waits = time.Now(), true, 0, nil
	if !standby {
		writers, err := h.writers(ctx, db)
		if err != nil {
			return err
		}
		h.waits = writers
	}
	return h.decide(ctx, db)
}

// decide looks whether target has settled.
func (h *horizon) decide(ctx context.Context, db *database) error {
	if h.waits != nil { // a primary
		if len(h.waits) > 0 {
			now, err := h.writers(ctx, db)
			if err != nil {
				return err
			}
			maps.DeleteFunc(h.waits, func(transaction, _ string) bool { return now[transaction] == "" })
		}
		h.settle(len(h.waits) == 0)
		return nil
	}
	if time.Since(h.read) < standbyDelay {
		return nil
	}
	const snapshot = `SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM pg_current_snapshot() AS s`
	var xmin, xmax int64
	if err := db.conn.QueryRow(ctx, snapshot).Scan(&xmin, &xmax); err != nil {
		return err
	}
	if h.xmax == 0 {
		h.xmax = xmax
	}
	h.settle(xmin >= h.xmax)
	return nil
}

func (h *horizon) settle(complete bool) {
	if complete {
		h.settled, h.past, h.deciding = max(h.settled, h.target), h.ends, false
	}
}

// forget begins anew, after a connection was lost.
func (h *horizon) forget() { h.deciding = false }

// writers are the transactions that hold the log's lock for inserting.
func (h *horizon) writers(ctx context.Context, db *database) (map[string]string, error) {
	const statement = `-- lockstep log: who writes it
SELECT l.virtualtransaction AS transaction,
       CASE WHEN l.pid IS NULL THEN 'a prepared transaction'
            ELSE format('pid %s (user %s, application %s)', l.pid, a.usename, coalesce(nullif(a.application_name, ''), 'unknown')) END AS who
  FROM pg_locks AS l
  LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'RowExclusiveLock'
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.relation IN (SELECT relid FROM pg_partition_tree('outbox.delivery_log'))`
	type writer struct {
		Transaction string `db:"transaction"`
		Who         string `db:"who"`
	}
	rows, err := query[writer](ctx, db.conn, statement)
	all := map[string]string{}
	for _, w := range rows {
		all[w.Transaction] = w.Who
	}
	return all, err
}

// who names those that are waited for.
func (h *horizon) who() string {
	if h.waits == nil {
		return "transactions of the primary"
	}
	return strings.Join(slices.Sorted(maps.Values(h.waits)), ", ")
}

// follower hands the log on in the order of ids, each row once.
type follower struct {
	app     *app
	filter  logFilter
	print   func(...logRow) error
	db      *database // nil while the database is away
	horizon horizon
	after   int64         // printed up to here
	newest  bool          // begin with the newest rows
	pause   time.Duration // before the next try while the database is away
	away    time.Time     // since when
	said    time.Time     // when it was last said who is waited for
}

const (
	followEvery = 500 * time.Millisecond
	settleEvery = 20 * time.Millisecond
	sayAfter    = 2 * time.Second // of waiting for a transaction
	sayEvery    = time.Minute
	followPage  = 1000
	batchWait   = 5 * time.Second // how long log --after waits for open transactions
	mostAway    = 2 * time.Second // longest pause between tries to connect
)

// follow prints rows until ctx ends or, with --until, until nothing before that
// can come any more. An outage of the database is waited for.
func (f *follower) follow(ctx context.Context) error {
	defer func() {
		if f.db != nil {
			f.db.close()
		}
	}()
	for {
		pause, err := f.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errLogEnds):
			return nil
		case err != nil && !passes(err):
			return f.explain(err)
		case err != nil:
			pause = f.lost(ctx, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// errLogEnds ends a follower that has printed everything before --until.
var errLogEnds = errors.New("the log is complete up to --until")

// round prints what has settled.
func (f *follower) round(ctx context.Context) (pause time.Duration, err error) {
	if f.db == nil {
		if f.db, err = f.app.connect(ctx, nil, "log", roleAuditor); err != nil {
			f.db = nil
			return 0, err
		}
		f.app.log.InfoContext(ctx, "database answers again", "after", time.Since(f.away).Round(time.Second))
		f.pause = 0
	}
	if err := f.horizon.advance(ctx, f.db, f.filter.until); err != nil {
		return 0, err
	}
	if f.newest && !f.horizon.deciding {
		rows, err := f.db.newest(ctx, f.filter, f.horizon.settled)
		if err != nil {
			return 0, err
		}
		if err := f.print(rows...); err != nil {
			return 0, printError{err}
		}
		f.newest, f.after = false, f.horizon.settled
	}
	for f.after < f.horizon.settled {
		rows, err := f.db.rowsAfter(ctx, f.filter, f.after, f.horizon.settled, followPage)
		if err != nil {
			return 0, err
		}
		if err := f.print(rows...); err != nil {
			return 0, printError{err}
		}
		if len(rows) < followPage {
			f.after = f.horizon.settled
		} else {
			f.after = rows[len(rows)-1].ID
		}
	}
	if f.horizon.past {
		return 0, errLogEnds
	}
	if !f.horizon.deciding {
		f.said = time.Time{}
		return followEvery, nil
	}
	waited := time.Since(f.horizon.read)
	if waited < time.Second {
		return settleEvery, nil
	}
	if waited > sayAfter && time.Since(f.said) > sayEvery {
		f.said = time.Now()
		f.app.log.WarnContext(ctx, "rows are held back until open transactions end, which may still add some before them",
			"after_id", f.after, "newest_id", f.horizon.target, "for", waited.Round(time.Second), "by", f.horizon.who())
	}
	return followEvery, nil
}

// lost notes that the database is away, and returns how long to wait.
func (f *follower) lost(ctx context.Context, err error) time.Duration {
	if f.db != nil {
		f.db.close()
		f.db = nil
	}
	f.horizon.forget()
	if f.pause == 0 {
		f.away = time.Now()
		f.app.log.WarnContext(ctx, "database is away, trying again", "after_id", f.after, "error", err)
	}
	f.pause = min(max(2*f.pause, 100*time.Millisecond), mostAway)
	return f.pause
}

func (f *follower) explain(err error) error {
	if printing, ok := errors.AsType[printError](err); ok {
		return printing.err
	}
	if f.db != nil {
		return f.db.explain(err)
	}
	return err
}

// printError is an error of the output, which does not pass.
type printError struct{ err error }

func (e printError) Error() string { return e.err.Error() }

// passes reports whether an error is that of a database that is away.
func passes(err error) bool {
	if _, printing := errors.AsType[printError](err); printing {
		return false
	}
	if _, answered := errors.AsType[*pgconn.PgError](err); answered {
		return outbox.IsTemporary(err)
	}
	_, dialled := errors.AsType[dialError](err)
	return dialled || outbox.IsTemporary(err)
}

// await waits until the log is complete up to what is its newest row now.
func (h *horizon) await(ctx context.Context, db *database, bound time.Duration) error {
	for {
		if err := h.advance(ctx, db, instant{}); err != nil {
			return db.explain(err)
		}
		if !h.deciding {
			return nil
		}
		if waited := time.Since(h.read); waited > bound {
			return fmt.Errorf("open transactions may still add rows before id %d: %s; nothing was printed, try again when they have ended", h.target, h.who())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settleEvery):
		}
	}
}

// rowsAfter returns the first rows with an id after one and up to another.
func (db *database) rowsAfter(ctx context.Context, f logFilter, after, upTo int64, limit int) ([]logRow, error) {
	const statement = `-- lockstep log: rows after an id
SELECT ` + logColumns + `
  FROM outbox.delivery_log
 WHERE id > $1
   AND id <= $2
   AND ` + logCondition + `
 ORDER BY id
 LIMIT $3`
	return query[logRow](ctx, db.conn, statement, append([]any{after, upTo, limit}, f.args()...)...)
}

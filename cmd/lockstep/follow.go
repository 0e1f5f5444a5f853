package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/outbox"
)

// horizon finds the id up to which the log is complete: no row with this id or a
// smaller one can still appear. A transaction gets its ids before it commits, so a row
// may become visible after rows with larger ids.
//
// On a primary, a transaction that inserts into the log holds the lock of the
// table from before it gets an id until it commits. So the log is complete up to
// an id when all transactions have ended that held the lock after that id was
// visible. A standby does not show these locks. There, the horizon waits for all
// transactions that the standby knows to be open a second after the id was
// visible.
type horizon struct {
	settled int64 // the log is complete up to this id
	past    bool  // and no row before --until can appear any more

	target   int64             // the id that must settle next
	ends     bool              // --until had passed when target was read
	read     time.Time         // when target was read
	waits    map[string]string // on a primary: the transactions to wait for, and what they are
	xmax     int64             // on a standby: the first transaction not to wait for, 0 if not known yet
	deciding bool              // target has not settled yet
}

// standbyDelay is the time that a transaction may need from getting an id to getting
// its own number, which a standby sees.
const standbyDelay = time.Second

// advance checks once whether more has settled.
func (h *horizon) advance(ctx context.Context, db *database, until instant) error {
	ctx, cancel := answerWithin(ctx, connectTimeout)
	defer cancel()
	if h.deciding {
		if err := h.decide(ctx, db); err != nil || h.deciding {
			return err
		}
	}
	const newest = `-- lockstep log: newest id
SELECT coalesce(max(id), 0), coalesce(clock_timestamp() >= coalesce($1::timestamptz, clock_timestamp() - $2::interval), false), pg_is_in_recovery()
  FROM outbox.delivery_log`
	var standby bool
	if err := db.conn.QueryRow(ctx, newest, until.at, until.ago.interval()).Scan(&h.target, &h.ends, &standby); err != nil {
		return err
	}
	if h.target < h.settled && h.target > 0 && !standby {
		return fmt.Errorf("the log ends at id %d, before id %d: this is another database, or it was restored or lost its latest rows in a failover; check the database, then continue with --after %[1]d", h.target, h.settled)
	}
	if h.target <= h.settled && !h.ends {
		return nil
	}
	h.read, h.deciding, h.xmax, h.waits = time.Now(), true, 0, nil
	if !standby {
		writers, err := db.logWriters(ctx)
		if err != nil {
			return err
		}
		h.waits = writers
	}
	return h.decide(ctx, db)
}

// decide checks whether the target has settled.
func (h *horizon) decide(ctx context.Context, db *database) error {
	if h.waits != nil { // a primary
		if len(h.waits) > 0 {
			now, err := db.logWriters(ctx)
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

// logWriters returns the transactions that hold the log's lock for inserting,
// and what they are.
func (db *database) logWriters(ctx context.Context) (map[string]string, error) {
	const statement = `-- lockstep log: its writers
SELECT l.virtualtransaction AS transaction,
       CASE WHEN l.pid IS NULL THEN 'a prepared transaction'
            ELSE format('pid %s (user %s, application %s)', l.pid, a.usename, coalesce(nullif(a.application_name, ''), 'unknown')) END AS who
  FROM pg_locks AS l
  LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
 WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'RowExclusiveLock'
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.relation IN (SELECT relid FROM pg_partition_tree('outbox.delivery_log'))`
	type writer struct{ Transaction, Who string }
	rows, err := query[writer](ctx, db.conn, statement)
	all := map[string]string{}
	for _, w := range rows {
		all[w.Transaction] = w.Who
	}
	return all, err
}

// blockers names the transactions that the horizon waits for.
func (h *horizon) blockers() string {
	if h.waits == nil {
		return "transactions of the primary"
	}
	return strings.Join(slices.Sorted(maps.Values(h.waits)), ", ")
}

// follower prints the log in the order of ids, each row once.
type follower struct {
	app     *app
	name    string    // of its sessions
	db      *database // nil while there is no connection
	filter  logFilter
	print   func(...logRow) error
	horizon horizon
	after   int64         // id up to which rows are printed
	newest  bool          // print the newest rows first
	pause   time.Duration // before the next try to connect, 0 while connected
	lostAt  time.Time     // when the connection was lost
	warned  time.Time     // when the last warning about held rows was logged
}

const (
	followEvery   = 500 * time.Millisecond
	settleEvery   = 20 * time.Millisecond
	warnAfter     = 2 * time.Second // of holding rows back
	warnEvery     = time.Minute
	followPage    = 1000
	batchWait     = 5 * time.Second // how long log --after waits for open transactions
	reconnectMost = 2 * time.Second // longest pause between tries to connect
)

// follow prints rows until ctx ends or, with --until, until no row before that
// can appear any more. It survives an outage of the database.
func (f *follower) follow(ctx context.Context) error {
	defer func() {
		if f.db != nil {
			f.db.close()
		}
	}()
	for {
		pause, err := f.round(ctx)
		switch {
		case ctx.Err() != nil, errors.Is(err, errLogEnds):
			return nil
		case err != nil && !isOutage(err):
			if f.db != nil {
				err = f.db.explain(err)
			}
			return err
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

// round prints the rows that have settled.
func (f *follower) round(ctx context.Context) (pause time.Duration, err error) {
	if f.db == nil {
		if f.db, err = f.app.connect(ctx, nil, f.name, roleAuditor); err != nil {
			f.db = nil
			return 0, err
		}
		f.app.log.InfoContext(ctx, "database answers again", "after", time.Since(f.lostAt).Round(time.Second))
		f.pause = 0
	}
	if err := f.horizon.advance(ctx, f.db, f.filter.until); err != nil {
		return 0, err
	}
	settled := f.horizon.settled
	if f.newest && !f.horizon.deciding {
		rows, err := f.db.rows(ctx, f.filter, math.MinInt64, settled, newestFirst, f.filter.limit)
		if err == nil {
			err = f.printRows(rows)
		}
		if err != nil {
			return 0, err
		}
		f.newest, f.after = false, settled
	}
	for f.after < settled {
		rows, err := f.db.rows(ctx, f.filter, f.after, settled, byID, followPage)
		if err == nil {
			err = f.printRows(rows)
		}
		if err != nil {
			return 0, err
		}
		f.after = settled
		if len(rows) == followPage {
			f.after = rows[len(rows)-1].ID
		}
	}
	if f.horizon.past {
		return 0, errLogEnds
	}
	if !f.horizon.deciding {
		f.warned = time.Time{}
		return followEvery, nil
	}
	waited := time.Since(f.horizon.read)
	if waited < time.Second {
		return settleEvery, nil
	}
	if waited > warnAfter && time.Since(f.warned) > warnEvery {
		f.warned = time.Now()
		f.app.log.WarnContext(ctx, "rows are held back until open transactions end, which may still add rows before them",
			"after_id", f.after, "newest_id", f.horizon.target, "for", waited.Round(time.Second), "by", f.horizon.blockers())
	}
	return followEvery, nil
}

func (f *follower) printRows(rows []logRow) error {
	if err := f.print(rows...); err != nil {
		return printError{err}
	}
	return nil
}

// lost notes that the connection is lost, and returns the pause before the next try.
func (f *follower) lost(ctx context.Context, err error) time.Duration {
	if f.db != nil {
		f.db.close()
		f.db = nil
	}
	f.horizon.deciding = false
	if f.pause == 0 {
		f.lostAt = time.Now()
		f.app.log.WarnContext(ctx, "database is away, trying again", "after_id", f.after, "error", err)
	}
	f.pause = min(max(2*f.pause, 100*time.Millisecond), reconnectMost)
	return f.pause
}

// printError is an error of the output. It is no outage of the database.
type printError struct{ err error }

func (e printError) Error() string { return e.err.Error() }

// isOutage reports whether err means that the database does not answer for now.
func isOutage(err error) bool {
	_, printing := errors.AsType[printError](err)
	_, answered := errors.AsType[*pgconn.PgError](err)
	_, dialled := errors.AsType[dialError](err)
	return !printing && (outbox.IsTemporary(err) || dialled && !answered)
}

// await waits until the log is complete up to its current newest row.
func (h *horizon) await(ctx context.Context, db *database, bound time.Duration) error {
	for {
		if err := h.advance(ctx, db, instant{}); err != nil {
			return err
		}
		if !h.deciding {
			return nil
		}
		if waited := time.Since(h.read); waited > bound {
			return fmt.Errorf("open transactions may still add rows before id %d: %s; nothing was printed, try again when they have ended", h.target, h.blockers())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settleEvery):
		}
	}
}

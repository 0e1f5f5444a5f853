package outbox

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Status is a row of the view outbox.status.
type Status struct {
	Sync             *string        `json:"sync"`
	Hold             *string        `json:"hold"`
	DueNow           int64          `json:"due_now"`
	Pending          int64          `json:"pending"`
	Queued           int64          `json:"queued"`
	Retry            int64          `json:"retry"`
	Sending          int64          `json:"sending"`
	Failed           int64          `json:"failed"`
	BlockedKeys      int64          `json:"blocked_keys"`
	OldestPendingAge *time.Duration `json:"oldest_pending_age"`
	LastDeliveredAt  *time.Time     `json:"last_delivered_at"`
	HoldUntil        *time.Time     `json:"hold_until"`
	HoldReason       *string        `json:"hold_reason"`
	HoldBy           *string        `json:"hold_by"`
	RetiredAt        *time.Time     `json:"retired_at"`
	Backfill         *string        `json:"backfill"`    // what the addition of events waits for or does
	ScopeHolds       []ScopeHold    `json:"scope_holds"` // scopes of the sync that are on hold; Hold is about the whole sync
}

// ScopeHold is the strongest hold of one scope of a sync, as outbox.status shows it.
type ScopeHold struct {
	Scope  string     `json:"scope"`
	Hold   string     `json:"hold"`
	Until  *time.Time `json:"until"`
	Reason string     `json:"reason"`
	By     string     `json:"by"`
}

// Status returns how every sync stands, and last the row without a sync, whose
// Pending counts the events that no sync matched. It reads all open work: call
// it every few seconds at most.
func (s *Store) Status(ctx context.Context) ([]Status, error) {
	var list []Status
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		// The pool's planner settings are for the hot path; this one counts whole tables.
		if _, err := tx.Exec(ctx, `SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_bitmapscan = on`); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT * FROM outbox.status ORDER BY sync NULLS LAST`)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Status])
		return err
	})
	return list, s.judge(ctx, err)
}

// Maintenance is what a call of [Store.Maintain] came to.
type Maintenance struct {
	Done    []string // what was changed
	Held    []string // whose advisory lock keeps it from its work; another relay's goes by itself
	Trouble []string // what it could not do, or found in disorder, and does not put right itself
	More    bool     // there may be further events to remove
}

// Maintain makes the log's next partitions, drops those past retention, and
// removes finished events and references. The database's own retention counts
// where it is longer than keepEvents or keepLog.
func (s *Store) Maintain(ctx context.Context, keepEvents, keepLog Retention) (m Maintenance, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		m = Maintenance{}
		rows, err := tx.Query(ctx, `SELECT done, n FROM outbox.maintain($1::text::interval, $2::text::interval)`, string(keepEvents), string(keepLog))
		if err != nil {
			return err
		}
		var what string
		var n int64
		_, err = pgx.ForEachRow(rows, []any{&what, &n}, func() error {
			if what == "events removed" {
				m.More = n >= 20000
				if n == 0 {
					return nil
				}
			}
			if held, ok := strings.CutPrefix(what, "held: "); ok {
				m.Held = append(m.Held, held)
			} else if trouble, ok := strings.CutPrefix(what, "trouble: "); ok {
				m.Trouble = append(m.Trouble, trouble)
			} else {
				m.Done = append(m.Done, what)
			}
			return nil
		})
		return err
	})
	return m, s.judge(ctx, err)
}

// Kept is a retention of the database that is longer than the one asked for.
type Kept struct {
	What  string // events or log
	Keep  Retention
	Asked Retention
}

// KeptLonger lists what the database keeps longer than asked: outbox.retention,
// which only the owner changes, rules.
func (s *Store) KeptLonger(ctx context.Context, keepEvents, keepLog Retention) ([]Kept, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `
SELECT r.what, r.keep::text, a.asked
  FROM (VALUES ('events', $1::text), ('log', $2::text)) AS a (what, asked)
  JOIN outbox.retention AS r ON r.what = a.what
 WHERE r.keep > a.asked::interval
 ORDER BY r.what`
	rows, err := s.pool.Query(ctx, statement, string(keepEvents), string(keepLog))
	if err != nil {
		return nil, s.judge(ctx, err)
	}
	kept, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Kept])
	return kept, s.judge(ctx, err)
}

// LogMonthsAhead returns for how many months after this one the log has its
// partition, without a gap: three while [Store.Maintain] does its work, -1 if
// not even this month has one.
func (s *Store) LogMonthsAhead(ctx context.Context) (int, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `
SELECT coalesce(min(m.i) - 1, 3)
  FROM generate_series(0, 3) AS m (i)
 WHERE NOT EXISTS (
       SELECT FROM pg_inherits AS i
         JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'outbox.delivery_log'::regclass
          AND c.relname = 'delivery_log_' || to_char(date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') + make_interval(months => m.i), 'YYYY_MM'))`
	var months int
	err := s.pool.QueryRow(ctx, statement).Scan(&months)
	return months, s.judge(ctx, err)
}

// Retention is a PostgreSQL interval such as "90 days" or "84 months".
type Retention string

// Listen calls listening once it hears, and wake with a sync's name whenever a
// NOTIFY arrives, until ctx ends or the connection, its own, breaks. Through a transaction pooler nothing
// would ever arrive: there it only waits. Polling makes up for that.
func (s *Store) Listen(ctx context.Context, listening func(), wake func(sync string)) error {
	if s.pooler {
		<-ctx.Done()
		return nil
	}
	var conn *pgx.Conn
	err := s.within(ctx, func(ctx context.Context) (err error) {
		if conn, err = pgx.ConnectConfig(ctx, s.pool.Config().ConnConfig); err == nil {
			_, err = conn.Exec(ctx, `LISTEN outbox`)
		}
		return err
	})
	if conn != nil {
		defer func() {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			_ = conn.Close(closing)
		}()
	}
	if err == nil {
		listening()
	}
	for err == nil {
		waiting, cancel := context.WithTimeout(ctx, s.timeout)
		var n *pgconn.Notification
		n, err = conn.WaitForNotification(waiting)
		quiet := waiting.Err() != nil && ctx.Err() == nil && !conn.IsClosed()
		cancel()
		switch {
		case err == nil:
			wake(n.Payload)
		case quiet:
			// Silence may also be that of a dead connection, or of a server that was demoted.
			err = s.within(ctx, func(ctx context.Context) error { return checkWritable(ctx, conn) })
		}
	}
	return s.judge(ctx, err)
}

func checkWritable(ctx context.Context, conn *pgx.Conn) error {
	var readOnly bool
	err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean`).Scan(&readOnly)
	if err == nil && readOnly {
		return ErrReadOnly
	}
	return err
}

// within makes a database call that is not the pool's.
func (s *Store) within(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	return call(ctx)
}

package outbox

import (
	"context"
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

// Maintain makes the log's next partitions, drops those past retention and
// removes finished events. It reports what was done; more is true when there
// may be further events to remove.
func (s *Store) Maintain(ctx context.Context, keepEvents, keepLog Retention) (done []string, more bool, err error) {
	err = s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT done, n FROM outbox.maintain($1::text::interval, $2::text::interval)`, string(keepEvents), string(keepLog))
		if err != nil {
			return err
		}
		var what string
		var n int64
		_, err = pgx.ForEachRow(rows, []any{&what, &n}, func() error {
			if what == "events removed" {
				more = n >= 20000
				if n == 0 {
					return nil
				}
			}
			done = append(done, what)
			return nil
		})
		return err
	})
	return done, more, s.judge(ctx, err)
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

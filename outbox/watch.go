package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
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
	return list, s.judge(err)
}

// Maintain makes the log's next partitions, drops those past retention and
// removes finished events. It reports what was done; more is true when there
// may be further events to remove.
func (s *Store) Maintain(ctx context.Context, keepEvents, keepLog Retention) (done []string, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 12*s.timeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, `SELECT done, n FROM outbox.maintain($1::text::interval, $2::text::interval)`, string(keepEvents), string(keepLog))
	if err != nil {
		return nil, false, s.judge(err)
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
	return done, more, s.judge(err)
}

// Retention is a PostgreSQL interval such as "90 days" or "84 months".
type Retention string

// Listen calls wake with a sync's name whenever a NOTIFY arrives, until ctx
// ends or the connection breaks. It needs a direct connection: through a
// transaction pooler nothing ever arrives, which polling makes up for.
func (s *Store) Listen(ctx context.Context, wake func(sync string)) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return s.judge(err)
	}
	// Not given back: a pooled connection would go on listening.
	own := conn.Hijack()
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = own.Close(closing)
	}()
	if _, err := own.Exec(ctx, `LISTEN outbox`); err != nil {
		return s.judge(err)
	}
	for {
		n, err := own.WaitForNotification(ctx)
		if err != nil {
			return s.judge(err)
		}
		wake(n.Payload)
	}
}

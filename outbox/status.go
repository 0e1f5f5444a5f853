package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Status is a row of the view outbox.status.
type Status struct {
	Sync             *string          `json:"sync"`
	Hold             *string          `json:"hold"`
	DueNow           int64            `json:"due_now"`
	Pending          int64            `json:"pending"`
	Queued           int64            `json:"queued"`
	Retry            int64            `json:"retry"`
	Sending          int64            `json:"sending"`
	Failed           int64            `json:"failed"`
	BlockedKeys      int64            `json:"blocked_keys"`
	OldestPendingAge *time.Duration   `json:"oldest_pending_age"`
	LastDeliveredAt  *time.Time       `json:"last_delivered_at"`
	HoldUntil        *time.Time       `json:"hold_until"`
	HoldReason       *string          `json:"hold_reason"`
	HoldBy           *string          `json:"hold_by"`
	RetiredAt        *time.Time       `json:"retired_at"`
	Backfill         *string          `json:"backfill"`      // state of the backfill: what it does or waits for
	ScopeHolds       []ScopeHold      `json:"scope_holds"`   // scopes of the sync that are on hold; Hold is about the whole sync
	Relays           []RelaySeen      `json:"relays"`        // relays that serve the sync; in the row without a sync, all relays of the database
	Missed           int64            `json:"missed"`        // events found without a delivery, because they were written with triggers off
	ReconciledAt     *time.Time       `json:"reconciled_at"` // when both calendars were last compared
	Drift            map[string]int64 `json:"drift"`         // what differed then, by its kind; nil: never compared
	Unconfirmed      int64            `json:"unconfirmed"`   // keys whose last event the receiver took for later processing, and has not confirmed
}

// RelaySeen is a relay of the database, as outbox.relay has it.
type RelaySeen struct {
	Name      string    `json:"name"`
	Host      *string   `json:"host"`
	Version   *string   `json:"version"`
	StartedAt time.Time `json:"started_at"`
	SeenAt    time.Time `json:"seen_at"`
	Running   bool      `json:"running"` // it was seen in the last 30 seconds
}

// ScopeHold is the strongest hold of one scope of a sync, as outbox.status shows it.
type ScopeHold struct {
	Scope  string     `json:"scope"`
	Hold   string     `json:"hold"`
	Until  *time.Time `json:"until"`
	Reason string     `json:"reason"`
	By     string     `json:"by"`
}

// Status returns the state of each sync. The last row has no sync: its Pending is the
// number of events that no sync matched. Status reads all open deliveries, so call it every
// few seconds at most.
func (s *Store) Status(ctx context.Context) ([]Status, error) {
	var list []Status
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		// The planner settings of the pool are for the hot path, but this query counts whole tables. A pooler does not keep
		// intervalstyle.
		const local = `SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_bitmapscan = on; SET LOCAL intervalstyle = postgres`
		if _, err := tx.Exec(ctx, local); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
			SELECT s.sync, hold, due_now, pending, queued, retry, sending, failed, blocked_keys, oldest_pending_age, last_delivered_at, hold_until, hold_reason, hold_by,
			       retired_at, backfill, scope_holds, relays, missed, r.at, r.found, unconfirmed
			  FROM outbox.status AS s
			  LEFT JOIN outbox.reconciliation AS r ON r.sync = s.sync
			 ORDER BY s.sync NULLS LAST`)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Status])
		return err
	})
	return list, s.judge(ctx, err)
}

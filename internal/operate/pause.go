package operate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// MostWaiting bounds the count of deliveries that wait for a sync.
const MostWaiting = 10_000

// Pause is the operator's hold of a sync, or of one scope of it, at one moment.
type Pause struct {
	Sync    string
	Scope   string // empty: the whole sync
	Paused  bool
	By      string
	Reason  string
	Since   time.Time
	Until   *time.Time // nil: until it is lifted
	Waiting int        // open deliveries of the sync that have not failed, counted up to MostWaiting + 1
	Oldest  *time.Time // when the oldest of the first 10,001 was written
}

// Fingerprint tells this state of the hold from any other.
func (p *Pause) Fingerprint() string {
	if !p.Paused {
		return "none"
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %v %v", p.Sync, p.Scope, p.By, p.Reason, p.Since.UnixMicro(), p.Until))
	return hex.EncodeToString(sum[:12])
}

// PauseChanged is the error of a change that was decided on another state of the hold.
type PauseChanged struct{ Now Pause }

func (e *PauseChanged) Error() string {
	now := "not paused"
	if e.Now.Paused {
		now = fmt.Sprintf("paused by %s: %s", e.Now.By, e.Now.Reason)
	}
	return fmt.Sprintf("nothing was changed: sync %s is now %s", e.Now.Sync, now)
}

// ReadPause reads the operator's hold of a registered sync.
func ReadPause(ctx context.Context, tx pgx.Tx, sync, scope string) (Pause, error) {
	p := Pause{Sync: sync, Scope: scope}
	if _, err := tx.Exec(ctx, `SELECT outbox.check_sync($1)`, sync); err != nil {
		return p, err
	}
	const hold = `-- lockstep: pause
SELECT h.by IS NOT NULL, coalesce(h.by, ''), coalesce(h.reason, ''), coalesce(h.since, clock_timestamp()), h.until, w.waiting, w.oldest
  FROM (SELECT count(*) AS waiting, min(d.created_at) AS oldest
          FROM (SELECT created_at FROM outbox.delivery WHERE sync = $1 AND state <> 'failed' LIMIT $3) AS d) AS w
  LEFT JOIN outbox.hold AS h
    ON h.sync = $1 AND h.scope = $2 AND h.kind = 'operator' AND (h.until IS NULL OR h.until > clock_timestamp())`
	err := tx.QueryRow(ctx, hold, sync, scope, MostWaiting+1).Scan(&p.Paused, &p.By, &p.Reason, &p.Since, &p.Until, &p.Waiting, &p.Oldest)
	return p, err
}

// End is when a pause ends by itself. The zero value means never.
type End struct {
	At    time.Time
	After time.Duration // if At is zero
}

// SetPause pauses a sync or a scope of it. It refuses with [PauseChanged] if the hold is
// not the one that seen is the fingerprint of.
func SetPause(ctx context.Context, db Beginner, by Actor, sync, scope, seen string, end End) error {
	return changePause(ctx, db, by, sync, scope, seen, func(tx pgx.Tx) error {
		var at *time.Time
		if !end.At.IsZero() {
			at = &end.At
		}
		const pause = `SELECT outbox.pause($1, $2, coalesce($3::timestamptz, clock_timestamp() + nullif($4::interval, '0')), $5)`
		_, err := tx.Exec(ctx, pause, sync, by.Reason, at, end.After, scope)
		return err
	})
}

// LiftPause resumes what SetPause paused, with the same condition.
func LiftPause(ctx context.Context, db Beginner, by Actor, sync, scope, seen string) error {
	return changePause(ctx, db, by, sync, scope, seen, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SELECT outbox.resume($1, $2, $3)`, sync, scope, by.Reason)
		return err
	})
}

// pauseLock is the advisory lock of pages that change a pause: of two equal requests, the
// second one sees what the first one did.
const pauseLock = 1869967992

// pauseLockWait bounds the wait for others who change the same pause.
const pauseLockWait = 2 * time.Second

func changePause(ctx context.Context, db Beginner, by Actor, sync, scope, seen string, change func(pgx.Tx) error) error {
	err := Act(ctx, db, by, func(tx pgx.Tx) error {
		const begin = `SELECT set_config('lock_timeout', $1, true), pg_advisory_xact_lock($2)`
		if _, err := tx.Exec(ctx, begin, fmt.Sprint(pauseLockWait.Milliseconds()), pauseLock); err != nil {
			return err
		}
		now, err := ReadPause(ctx, tx, sync, scope)
		if err != nil {
			return err
		}
		if now.Fingerprint() != seen {
			return &PauseChanged{now}
		}
		return change(tx)
	})
	return whyLocked(err, fmt.Sprintf("nothing was changed: somebody else has been changing the pause for %s: see who is idle in transaction in pg_stat_activity", pauseLockWait))
}

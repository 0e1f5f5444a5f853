package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// ErrNeedsFrom reports a sync that is added to others and does not say where it starts.
var ErrNeedsFrom = errors.New(`must say where it starts: from: beginning, from: now or from: <RFC 3339 time>`)

// Register adds the syncs that the database does not know yet. It does not change known
// syncs: in a rolling restart, relays with two configurations would change them back and
// forth. [Store.Apply] changes a known sync. The first syncs of a database start with every
// retained event. Register returns all syncs of the database.
func (s *Store) Register(ctx context.Context, regs []Registration) (map[string]Registered, error) {
	err := s.registering(ctx, func(ctx context.Context, tx pgx.Tx, known map[string]Registered) error {
		var problems []error
		for _, r := range regs {
			if _, ok := known[r.Name]; !ok {
				problems = append(problems, addSync(ctx, tx, r, len(known) == 0))
			}
		}
		return errors.Join(problems...)
	})
	if err != nil {
		return nil, err
	}
	return s.Syncs(ctx)
}

// Apply writes r to the database's row of the sync, and adds the sync if there is none. New
// patterns apply to events from now on. Open transactions may not see the new patterns:
// until they end, events of the added types wait, and no others. If r has From, Apply also
// adds retained events that match and were not sent yet. A retired sync takes events
// again. Apply reports whether it changed anything.
func (s *Store) Apply(ctx context.Context, r Registration) (changed bool, err error) {
	err = s.registering(ctx, func(ctx context.Context, tx pgx.Tx, known map[string]Registered) error {
		changed = false
		if _, ok := known[r.Name]; !ok {
			changed = true
			return addSync(ctx, tx, r, len(known) == 0)
		}
		var old Registered
		var settled []string
		const row = `
SELECT ` + registeredColumns + `, settled
  FROM outbox.sync
 WHERE name = $1
   FOR UPDATE` // waits for recordings of failures that have read the old policy: makeFailedDue must see their deliveries
		if err := tx.QueryRow(ctx, row, r.Name).Scan(append(old.into(), &settled)...); err != nil {
			return err
		}
		if old.Matches(r) && r.From == "" {
			return nil
		}
		changed = true
		change := planBackfill(old, settled, r)
		if _, err := tx.Exec(ctx, `SELECT set_config('lockstep.actor', $1, true)`, r.Actor); err != nil {
			return err
		}
		const update = `
UPDATE outbox.sync SET patterns = $2, on_failed = $3, notify = $4, retired_at = NULL, settled = $5 WHERE name = $1`
		if _, err := tx.Exec(ctx, update, r.Name, r.Patterns, r.OnFailed, r.Notify, change.settled); err != nil {
			return err
		}
		if !old.Escalate.Equal(r.Escalate) {
			if err := setEscalation(ctx, tx, r, true); err != nil {
				return err
			}
		}
		if r.OnFailed == "supersede" && old.OnFailed != "supersede" {
			if _, err := tx.Exec(ctx, makeFailedDue, r.Name); err != nil {
				return err
			}
		}
		if !change.waits && r.From == "" {
			return nil
		}
		r.From = cmp.Or(r.From, "now")
		return beginBackfill(ctx, tx, r, change)
	})
	if err == nil {
		err = s.recountEscalations(ctx, r.Name)
	}
	return changed, err
}

// registering runs do with the known syncs. In the whole database, one call runs at a time.
func (s *Store) registering(ctx context.Context, do func(ctx context.Context, tx pgx.Tx, known map[string]Registered) error) error {
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := lock(ctx, tx, registrationLock, false); err != nil {
			return err
		}
		known, err := listSyncs(ctx, tx)
		if err != nil {
			return err
		}
		return do(ctx, tx, known)
	})
	return s.judge(ctx, err)
}

func addSync(ctx context.Context, tx pgx.Tx, r Registration, isFirst bool) error {
	if r.From == "" {
		if !isFirst {
			return fmt.Errorf("sync %q is new to this database and %w", r.Name, ErrNeedsFrom)
		}
		r.From = "beginning"
	}
	const insert = `
INSERT INTO outbox.sync (name, patterns, on_failed, notify) VALUES ($1, $2, $3, $4)`
	if _, err := tx.Exec(ctx, insert, r.Name, r.Patterns, r.OnFailed, r.Notify); err != nil {
		return fmt.Errorf("register sync %q: %w", r.Name, err)
	}
	if !r.Escalate.Equal(Escalation{}) {
		if err := setEscalation(ctx, tx, r, false); err != nil {
			return err
		}
	}
	return beginBackfill(ctx, tx, r, backfillPlan{waits: true, holds: true})
}

// makeFailedDue makes lanes due whose first delivery has failed. From now on, a delivery
// behind it may supersede it.
const makeFailedDue = `
UPDATE outbox.lane AS l
   SET due_at = clock_timestamp()
  FROM (SELECT DISTINCT d.key FROM outbox.delivery AS d WHERE d.sync = $1 AND d.state = 'failed') AS d
 WHERE l.sync = $1 AND l.key = d.key AND l.claim IS NULL AND l.due_at = 'infinity'`

// The numbers of the advisory locks that relays and outbox.maintain take.
const (
	retentionLock    = 1869967989 // backfills share it; the removal of events takes it alone
	registrationLock = 1869967990
)

// lock takes an advisory lock until the end of the transaction. Another program may use
// the same number: an error names its session.
func lock(ctx context.Context, tx pgx.Tx, key int64, shared bool) error {
	function := "advisory_xact_lock"
	if shared {
		function = "advisory_xact_lock_shared"
	}
	var taken bool
	if err := tx.QueryRow(ctx, `SELECT pg_try_`+function+`($1)`, key).Scan(&taken); err != nil || taken {
		return err
	}
	var holder *string
	if err := tx.QueryRow(ctx, `SELECT outbox.lock_holder($1)`, key).Scan(&holder); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `SELECT pg_`+function+`($1)`, key)
	if err != nil && holder != nil {
		return fmt.Errorf("the advisory lock %d is held by %s, and nothing continues until that lock is released: %w", key, *holder, err)
	}
	return err
}

package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Backfill adds deliveries for the retained events of one registration, or of one change
// of patterns. First it waits for open transactions that may insert events without seeing
// the change. Then it adds the missing deliveries, page by page. Several relays may run
// the same backfill at once. A Backfill is not safe for concurrent use.
type Backfill struct {
	store *Store
	sync  string
	round int
	open  []string // transactions still to wait for
	begun bool     // open was read for this round
}

// NewBackfill begins or continues the backfill of a sync. It calls nothing yet.
func (s *Store) NewBackfill(sync string) *Backfill { return &Backfill{store: s, sync: sync} }

// Step does the next step, for at most page events, and reports whether the backfill is
// complete. If wait is true, the caller pauses before the next step.
func (b *Backfill) Step(ctx context.Context, page int) (complete, wait bool, err error) {
	if wait, err := b.waitForWriters(ctx); err != nil || wait {
		return false, wait, err
	}
	if complete, err = b.addPage(ctx, page); err != nil || !complete {
		return false, false, err
	}
	for released := page; released == page; {
		if released, err = b.store.ReleaseBackfilled(ctx, b.sync, page); err != nil {
			return false, false, err // relays release the rest, see ReleaseBackfilled
		}
	}
	return true, false, nil
}

// backfillPlan says how a backfill begins.
type backfillPlan struct {
	waits   bool     // it waits for transactions that may not see the current patterns of the sync
	holds   bool     // the whole sync is on hold until it is complete
	settled []string // patterns of the types that are sent meanwhile; nil means all if it does not wait, and none if it holds
}

// planBackfill decides how to backfill after a change of a known sync. A type is settled
// if every open transaction sees a row of the sync that takes this type. This includes
// transactions that began before the change, or before an earlier change whose backfill
// is not complete.
func planBackfill(old Registered, settled []string, r Registration) backfillPlan {
	isOnHold := old.Backfilling && settled == nil
	p := backfillPlan{waits: old.Retired || !covers(old.Patterns, r.Patterns)}
	switch {
	case isOnHold:
	case old.Retired:
		p.settled = []string{}
	case old.Backfilling:
		p.settled = intersection(settled, old.Patterns)
	case p.waits:
		p.settled = old.Patterns
	default:
		p.holds = true // the events to add come before the open deliveries
	}
	return p
}

// insertedSince returns the time from which on a backfill adds retained events. It also
// adds all events that were not visible when it began.
func insertedSince(from string) (string, error) {
	switch from {
	case "beginning":
		return "-infinity", nil
	case "now":
		return "infinity", nil
	}
	if _, err := time.Parse(time.RFC3339, from); err != nil {
		return "", fmt.Errorf("from %q: want beginning, now or an RFC 3339 time such as 2027-01-31T00:00:00Z", from)
	}
	return from, nil
}

// beginBackfill writes to the sync's row which events are to be added.
func beginBackfill(ctx context.Context, tx pgx.Tx, r Registration, plan backfillPlan) error {
	since, err := insertedSince(r.From)
	if err != nil {
		return fmt.Errorf("sync %q: %w", r.Name, err)
	}
	const work = `SELECT outbox.begin_backfill($1, $2::text::timestamptz, $3)`
	if _, err := tx.Exec(ctx, work, r.Name, since, plan.waits); err != nil {
		return fmt.Errorf("register sync %q: %w", r.Name, err)
	}
	if !plan.holds {
		return nil
	}
	_, err = tx.Exec(ctx, backfillHold, r.Name)
	return err
}

// addsEvents is the value of outbox.sync.backfill_reason while there is nobody to wait for.
// SQL has the same text in outbox.begin_backfill.
const addsEvents = "retained events are being added"

const backfillHold = `
INSERT INTO outbox.hold (sync, kind, reason, by)
SELECT name, 'backfill', backfill_reason, session_user FROM outbox.sync WHERE name = $1
ON CONFLICT ON CONSTRAINT hold_pkey DO NOTHING`

// writer is a transaction that may insert events without seeing an earlier change of a sync.
type writer struct {
	Transaction string
	PID         int // 0: it is prepared
	Since       time.Time
}

// olderWriters returns the writers that began before this call, the oldest first.
func (s *Store) olderWriters(ctx context.Context) ([]writer, error) {
	return list[writer](ctx, s, `SELECT transaction, coalesce(pid, 0), coalesce(since, now()) AS began FROM outbox.older_writers() ORDER BY began`)
}

// waitForWriters reports whether there is still a transaction to wait for. It reads the
// round before the list of transactions. So a transaction that is not in the list began
// after the change of that round, and sees it.
func (b *Backfill) waitForWriters(ctx context.Context) (bool, error) {
	var waits bool
	var round int
	err := b.store.scan(ctx, []any{&waits, &round}, `SELECT backfill_waits, backfill_round FROM outbox.sync WHERE name = $1`, b.sync)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && !waits {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if round != b.round {
		b.round, b.begun, b.open = round, false, nil
	}
	writers, err := b.store.olderWriters(ctx)
	if err != nil {
		return false, err
	}
	if b.begun {
		writers = slices.DeleteFunc(writers, func(w writer) bool { return !slices.Contains(b.open, w.Transaction) })
	}
	b.begun, b.open = true, nil
	for _, w := range writers {
		b.open = append(b.open, w.Transaction)
	}
	reason := addsEvents
	if len(writers) > 0 {
		oldest := writers[0]
		reason = fmt.Sprintf("waits until %d transaction(s) end that may not have seen the change, which is normal and usually short; the oldest: pid %d since %s",
			len(writers), oldest.PID, oldest.Since.UTC().Format(time.RFC3339))
		if oldest.PID == 0 {
			reason = fmt.Sprintf("waits until %d transaction(s) end that may not have seen the change; one of them is prepared (see pg_prepared_xacts)", len(writers))
		}
	}
	const note = `-- lockstep: backfill waits
WITH changed AS (
    UPDATE outbox.sync SET backfill_reason = $3, backfill_waits = $4
     WHERE name = $1 AND backfill_round = $2 AND backfill_waits AND (backfill_reason IS DISTINCT FROM $3 OR NOT $4)
    RETURNING name
)
UPDATE outbox.hold AS h SET reason = $3 FROM changed AS c WHERE h.sync = c.name AND h.kind = 'backfill'`
	_, err = b.store.exec(ctx, note, b.sync, round, reason, len(writers) > 0)
	return len(writers) > 0, err
}

// addPage adds the missing deliveries of a page of events. If the log has the end of a
// delivery, it is not added again.
func (b *Backfill) addPage(ctx context.Context, page int) (complete bool, err error) {
	err = b.store.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		complete = false
		// Retention must not remove an event that is about to get a delivery.
		if err := lock(ctx, tx, retentionLock, true); err != nil {
			return err
		}
		const state = `
SELECT backfill_seq, backfill_waits, settled IS NOT NULL AND backfill_from < 'infinity'
  FROM outbox.sync
 WHERE name = $1 AND backfill_seq IS NOT NULL
   FOR NO KEY UPDATE`
		var at int64
		var waits, older bool
		err := tx.QueryRow(ctx, state, b.sync).Scan(&at, &waits, &older)
		if errors.Is(err, pgx.ErrNoRows) {
			complete = true // another relay was faster
			return nil
		}
		if err != nil || waits { // the sync was changed again: the next step waits
			return err
		}
		if older { // older events come before those that are due now
			if _, err := tx.Exec(ctx, backfillHold, b.sync); err != nil {
				return err
			}
		}
		const add = `-- lockstep: backfill
WITH page AS MATERIALIZED (
    SELECT e.seq, e.id, e.key, e.type, e.payload, e.inserted_at
      FROM outbox.event AS e
     WHERE e.seq > $2
     ORDER BY e.seq
     LIMIT $3
), missing AS MATERIALIZED (
    SELECT p.seq, p.id, p.key, p.type, clock_timestamp() AS added_at, s.escalate_before, s.escalate_after,
           CASE WHEN s.escalate_at <> '{}' THEN outbox.needed_by(p.type, p.payload, s.escalate_at, s.escalate_zone) END AS needed_by
      FROM page AS p
      JOIN outbox.sync AS s ON s.name = $1
     WHERE outbox.takes(s.name, s.likes, s.operator_likes, p.type, p.key)
       AND (p.inserted_at >= s.backfill_from OR s.backfill_unseen @> p.seq)
       -- A recording removes the delivery and writes the log row in one transaction: a snapshot sees one of the two.
       -- OFFSET 0 makes the planner use the indexes for each event, whatever table sizes it assumes.
       AND NOT EXISTS (SELECT FROM outbox.delivery AS d
                        WHERE d.sync = $1 AND d.key = p.key AND d.event_seq = p.seq
                       OFFSET 0)
       AND NOT EXISTS (SELECT FROM outbox.delivery_log AS l
                        WHERE l.event_id = p.id AND l.sync = $1
                          AND outbox.ends_delivery(l.outcome)
                       OFFSET 0)
), added AS (
    INSERT INTO outbox.delivery (sync, key, event_seq, event_id, created_at, needed_by, escalates_at)
    SELECT $1, m.key, m.seq, m.id, m.added_at, m.needed_by, outbox.escalates_at(m.type, m.needed_by, m.added_at, m.escalate_before, m.escalate_after)
      FROM missing AS m
     ORDER BY m.seq
    ON CONFLICT DO NOTHING
), matched AS (
    DELETE FROM outbox.unmatched AS u USING missing AS m WHERE u.event_seq = m.seq
), found AS (
    DELETE FROM outbox.missed AS f USING missing AS m WHERE f.event_seq = m.seq
)
SELECT count(*), max(seq) FROM page`
		var n int
		var last *int64
		if err := tx.QueryRow(ctx, add, b.sync, at, page).Scan(&n, &last); err != nil {
			return err
		}
		if n == page {
			_, err = tx.Exec(ctx, `UPDATE outbox.sync SET backfill_seq = $2 WHERE name = $1`, b.sync, last)
			return err
		}
		complete = true
		const finish = `
UPDATE outbox.sync
   SET backfill_seq = NULL, backfill_from = NULL, backfill_unseen = NULL, backfill_reason = NULL, settled = NULL
 WHERE name = $1`
		if _, err := tx.Exec(ctx, finish, b.sync); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM outbox.hold WHERE sync = $1 AND kind = 'backfill'`, b.sync); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, releaseBackfilled, b.sync, page)
		return err
	})
	return complete, b.store.judge(ctx, err)
}

// releaseBackfilled makes deliveries due that waited for a backfill which is complete now.
// It skips locked ones: the next call makes them due.
const releaseBackfilled = `-- lockstep: release backfilled
-- $1 sync, $2 most deliveries
WITH waiting_delivery AS MATERIALIZED (
    SELECT d.ctid AS tid
      FROM outbox.delivery AS d
     WHERE d.sync = $1 AND d.error_class = 'backfill'
       AND (SELECT s.settled IS NULL OR s.backfill_seq IS NULL FROM outbox.sync AS s WHERE s.name = $1)
     ORDER BY d.event_seq
     LIMIT $2
       FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE outbox.delivery AS d
   SET due_at = clock_timestamp(), changed_in = pg_current_xact_id(), error_class = NULL, error = NULL
  FROM waiting_delivery AS w
 WHERE d.ctid = w.tid`

// ReleaseBackfilled makes deliveries due that waited for a backfill which is complete, at
// most page of them. It returns their number. A relay calls it every second, because a
// writer that began before the end of the backfill may commit after it.
func (s *Store) ReleaseBackfilled(ctx context.Context, sync string, page int) (int, error) {
	released, err := s.exec(ctx, releaseBackfilled, sync, page)
	return int(released), err
}

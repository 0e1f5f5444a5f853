package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Registration is a sync as a configuration names it.
type Registration struct {
	Name     string
	Patterns []string // event types; * stands for any run of characters
	OnFailed string   // block or supersede
	Notify   bool     // wake relays by NOTIFY
	From     string   // beginning, now or an RFC 3339 time; empty where the choice is the default
	Actor    string   // who has Apply change it, where people share a login; the log has login/name
}

// Registered is a sync as the database has it, which is what relays obey.
type Registered struct {
	Name         string
	Patterns     []string
	OnFailed     string
	Notify       bool
	Retired      bool
	Backfilling  bool
	LastDelivery *time.Time
}

// Matches reports whether the database's row says the same as r.
func (d Registered) Matches(r Registration) bool {
	return slices.Equal(d.Patterns, r.Patterns) && d.OnFailed == r.OnFailed && d.Notify == r.Notify && !d.Retired
}

// ErrNeedsFrom reports a sync that is added to others without saying where it
// starts.
var ErrNeedsFrom = errors.New(`must say where it starts: from: beginning, from: now or from: <RFC 3339 time>`)

// ErrUnknownSync reports a name that is not registered.
var ErrUnknownSync = errors.New("sync is not registered")

// start says which retained events a registration adds: those inserted at or
// after from, and in any case those that were not visible when it was made.
func start(from string) (time.Time, bool, error) {
	switch from {
	case "beginning":
		return time.Time{}, true, nil
	case "now":
		return time.Time{}, false, nil
	}
	t, err := time.Parse(time.RFC3339, from)
	if err != nil {
		return time.Time{}, false, fmt.Errorf("from %q: want beginning, now or an RFC 3339 time such as 2027-01-31T00:00:00Z", from)
	}
	return t, false, nil
}

// The advisory locks of relays and outbox.maintain, by their keys.
const (
	retentionLock    = 1869967989 // shared by backfills; kept whole while events are removed
	registrationLock = 1869967990
)

// lock takes an advisory lock until the transaction's end. Anybody may take one
// of the same number: an error names who has it.
func lock(ctx context.Context, tx pgx.Tx, key int64, shared bool) error {
	try, take := `SELECT pg_try_advisory_xact_lock($1)`, `SELECT pg_advisory_xact_lock($1)`
	if shared {
		try, take = `SELECT pg_try_advisory_xact_lock_shared($1)`, `SELECT pg_advisory_xact_lock_shared($1)`
	}
	var taken bool
	if err := tx.QueryRow(ctx, try, key).Scan(&taken); err != nil || taken {
		return err
	}
	var holder *string
	if err := tx.QueryRow(ctx, `SELECT outbox.lock_holder($1)`, key).Scan(&holder); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, take, key)
	if err != nil && holder != nil {
		return fmt.Errorf("the advisory lock %d is held by %s, and nothing continues until that lock is released: %w", key, *holder, err)
	}
	return err
}

// Register adds the syncs that the database does not know yet, and leaves the
// others as they are: a changed one is changed by [Store.Apply], so that a
// rolling restart with two configurations cannot flip it. The first syncs ever
// start with every retained event. It returns the database's rows for regs.
func (s *Store) Register(ctx context.Context, regs []Registration) (map[string]Registered, error) {
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := lock(ctx, tx, registrationLock, false); err != nil {
			return err
		}
		known, err := listSyncs(ctx, tx)
		if err != nil {
			return err
		}
		var problems []error
		for _, r := range regs {
			if _, ok := known[r.Name]; ok {
				continue
			}
			if r.From == "" {
				if len(known) > 0 {
					problems = append(problems, fmt.Errorf("sync %q is new to this database and %w", r.Name, ErrNeedsFrom))
					continue
				}
				r.From = "beginning"
			}
			if err := insertSync(ctx, tx, r); err != nil {
				problems = append(problems, err)
			}
		}
		return errors.Join(problems...)
	})
	if err != nil {
		return nil, s.judge(ctx, err)
	}
	return s.Syncs(ctx)
}

// Apply makes the database's row of a sync say what r says. New patterns apply
// to events from then on, and while transactions are open that may not know of
// them, only events of the added types wait; From, where given, adds retained
// events that match and were not sent yet. A retired sync lives again. It reports
// whether anything was changed.
func (s *Store) Apply(ctx context.Context, r Registration) (bool, error) {
	var changed bool
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		changed = false
		if err := lock(ctx, tx, registrationLock, false); err != nil {
			return err
		}
		known, err := listSyncs(ctx, tx)
		if err != nil {
			return err
		}
		if _, ok := known[r.Name]; !ok {
			if r.From == "" && len(known) > 0 {
				return fmt.Errorf("sync %q is new to this database and %w", r.Name, ErrNeedsFrom)
			}
			if r.From == "" {
				r.From = "beginning"
			}
			changed = true
			return insertSync(ctx, tx, r)
		}
		var old Registered
		var settled []string
		const row = `
SELECT patterns, on_failed, notify, retired_at IS NOT NULL, backfill_seq IS NOT NULL, settled
  FROM outbox.sync
 WHERE name = $1
   FOR UPDATE` // waits for those who are recording a failure: what they decide by the old policy is seen below
		if err := tx.QueryRow(ctx, row, r.Name).Scan(&old.Patterns, &old.OnFailed, &old.Notify, &old.Retired, &old.Backfilling, &settled); err != nil {
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
		if r.OnFailed == "supersede" && old.OnFailed != "supersede" {
			if _, err := tx.Exec(ctx, wakeFailed, r.Name); err != nil {
				return err
			}
		}
		if !change.waits && r.From == "" {
			return nil
		}
		if r.From == "" {
			r.From = "now"
		}
		return beginBackfill(ctx, tx, r, change)
	})
	return changed, s.judge(ctx, err)
}

// backfill is how the addition of events to a sync begins.
type backfill struct {
	waits   bool     // for transactions that may not see the sync's patterns as they are now
	holds   bool     // the whole sync meanwhile
	settled []string // types that are sent meanwhile, nil without a wait or where the hold keeps back everything
}

// planBackfill says what a change of a known sync needs. A type is settled if
// every open transaction sees a row of the sync that takes it: those that began
// before this change, and before earlier ones whose backfill is not complete.
func planBackfill(old Registered, settled []string, r Registration) backfill {
	held := old.Backfilling && settled == nil
	b := backfill{waits: old.Retired || !covers(old.Patterns, r.Patterns)}
	switch {
	case held:
	case old.Retired:
		b.settled = []string{}
	case old.Backfilling:
		b.settled = intersection(settled, old.Patterns)
	case b.waits:
		b.settled = old.Patterns
	default:
		b.holds = true // older events go in front of those that wait now
	}
	return b
}

// covers reports whether every type that one of others matches is matched by one
// of patterns too. It may say no where the answer is yes.
func covers(patterns, others []string) bool {
	return !slices.ContainsFunc(others, func(other string) bool { return !covered(patterns, other) })
}

// covered takes a * of other for a character, which only a * of a pattern
// matches: then that pattern matches whatever stands in its place.
func covered(patterns []string, other string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, other) })
}

// matches reports whether a pattern matches all of s: * stands for any run of
// characters.
func matches(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(s, parts[0])
	if len(parts) == 1 || !ok {
		return ok && rest == ""
	}
	last := len(parts) - 1
	for _, part := range parts[1:last] {
		if _, rest, ok = strings.Cut(rest, part); !ok {
			return false
		}
	}
	return strings.HasSuffix(rest, parts[last])
}

// intersection are patterns that match only types which both lists match: not
// always all of them.
func intersection(a, b []string) []string {
	both := []string{}
	for _, p := range a {
		if covered(b, p) {
			both = append(both, p)
		}
	}
	for _, p := range b {
		if covered(a, p) && !slices.Contains(both, p) {
			both = append(both, p)
		}
	}
	return both
}

// wakeFailed has relays look at lanes whose first delivery has failed: from now on what
// stands behind it may supersede it.
const wakeFailed = `
UPDATE outbox.lane AS l
   SET due_at = clock_timestamp()
  FROM (SELECT DISTINCT d.key FROM outbox.delivery AS d WHERE d.sync = $1 AND d.state = 'failed') AS d
 WHERE l.sync = $1 AND l.key = d.key AND l.claim IS NULL AND l.due_at = 'infinity'`

func insertSync(ctx context.Context, tx pgx.Tx, r Registration) error {
	const insert = `
INSERT INTO outbox.sync (name, patterns, on_failed, notify) VALUES ($1, $2, $3, $4)`
	if _, err := tx.Exec(ctx, insert, r.Name, r.Patterns, r.OnFailed, r.Notify); err != nil {
		return fmt.Errorf("register sync %q: %w", r.Name, err)
	}
	return beginBackfill(ctx, tx, r, backfill{waits: true, holds: true})
}

// beginBackfill writes down which events are to be added: those from a time on,
// and the numbers that no visible event has yet. The latter are the events of
// transactions that are open now, which may never see the change; what they
// insert is known by its number, whenever they commit.
func beginBackfill(ctx context.Context, tx pgx.Tx, r Registration, change backfill) error {
	from, beginning, err := start(r.From)
	if err != nil {
		return fmt.Errorf("sync %q: %w", r.Name, err)
	}
	var at any = from
	switch {
	case beginning:
		at = "-infinity"
	case from.IsZero():
		at = "infinity"
	}
	const work = `
UPDATE outbox.sync
   SET backfill_seq = 0,
       backfill_from = least(backfill_from, $2::text::timestamptz),
       backfill_unseen = coalesce(backfill_unseen, '{}') + (
           SELECT coalesce(range_agg(int8range(g.before + 1, g.seq)) FILTER (WHERE g.seq > g.before + 1), '{}')
                  + int8multirange(int8range(coalesce(max(g.seq), 0) + 1, NULL))
             FROM (SELECT seq, lag(seq, 1, 0::bigint) OVER (ORDER BY seq) AS before FROM outbox.event) AS g),
       backfill_waits = backfill_waits OR $3,
       backfill_round = backfill_round + $3::int,
       backfill_reason = CASE WHEN $3 THEN $4 ELSE coalesce(backfill_reason, $5) END
 WHERE name = $1`
	if t, ok := at.(time.Time); ok {
		at = t.Format(time.RFC3339Nano)
	}
	if _, err := tx.Exec(ctx, work, r.Name, at, change.waits, waitsForWriters, addsEvents); err != nil {
		return fmt.Errorf("register sync %q: %w", r.Name, err)
	}
	if !change.holds {
		return nil
	}
	_, err = tx.Exec(ctx, backfillHold, r.Name)
	return err
}

// What a backfill is about.
const (
	waitsForWriters = "waits for transactions that began before the change"
	addsEvents      = "retained events are being added"
)

const backfillHold = `
INSERT INTO outbox.hold (sync, kind, reason, by)
SELECT name, 'backfill', backfill_reason, session_user FROM outbox.sync WHERE name = $1
ON CONFLICT ON CONSTRAINT hold_pkey DO NOTHING`

// Syncs returns every registered sync by name.
func (s *Store) Syncs(ctx context.Context) (map[string]Registered, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	all, err := listSyncs(ctx, s.pool)
	return all, s.judge(ctx, err)
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func listSyncs(ctx context.Context, q querier) (map[string]Registered, error) {
	const list = `
SELECT name, patterns, on_failed, notify, retired_at IS NOT NULL, backfill_seq IS NOT NULL, last_delivered_at
  FROM outbox.sync`
	rows, err := q.Query(ctx, list)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Registered])
	if err != nil {
		return nil, err
	}
	byName := make(map[string]Registered, len(all))
	for _, r := range all {
		byName[r.Name] = r
	}
	return byName, nil
}

// Backfill is the work of one registration or change of patterns: first it waits
// for transactions that may insert events without seeing it, then it adds what is
// missing, page by page. Several relays may do it at once.
type Backfill struct {
	store *Store
	sync  string
	round int
	open  []string // transactions still to wait for; nil before the first look
	begun bool
}

// NewBackfill goes on with the registration of a sync, wherever it stands.
func (s *Store) NewBackfill(sync string) *Backfill { return &Backfill{store: s, sync: sync} }

// Step does the next bit and reports whether the registration is complete.
// Between steps that wait, the caller pauses: wait is then true.
func (b *Backfill) Step(ctx context.Context, page int) (complete, wait bool, err error) {
	if wait, err := b.waitForWriters(ctx); err != nil || wait {
		return false, wait, err
	}
	if complete, err = b.addPage(ctx, page); err != nil || !complete {
		return false, false, err
	}
	for released := page; released == page; {
		if released, err = b.store.ReleaseBackfilled(ctx, b.sync, page); err != nil {
			return false, false, err // what is left is released by ReleaseBackfilled
		}
	}
	return true, false, nil
}

// waitForWriters reports whether there is still somebody to wait for. The round
// is read before the transactions: those that the list lacks began after the
// change of that round, and see it.
func (b *Backfill) waitForWriters(ctx context.Context) (bool, error) {
	ctx, cancel := b.store.deadline(ctx)
	defer cancel()
	var waits bool
	var round int
	err := b.store.pool.QueryRow(ctx, `SELECT backfill_waits, backfill_round FROM outbox.sync WHERE name = $1`, b.sync).Scan(&waits, &round)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && !waits {
		return false, nil
	}
	if err != nil {
		return false, b.store.judge(ctx, err)
	}
	if round != b.round {
		b.round, b.begun, b.open = round, false, nil
	}
	rows, err := b.store.pool.Query(ctx, `SELECT transaction, coalesce(pid, 0), coalesce(since, now()) FROM outbox.older_writers()`)
	if err != nil {
		return false, b.store.judge(ctx, err)
	}
	type writer struct {
		Transaction string
		PID         int
		Since       time.Time
	}
	writers, err := pgx.CollectRows(rows, pgx.RowToStructByPos[writer])
	if err != nil {
		return false, b.store.judge(ctx, err)
	}
	var still []writer
	for _, w := range writers {
		if !b.begun || slices.Contains(b.open, w.Transaction) {
			still = append(still, w)
		}
	}
	b.begun, b.open = true, nil
	for _, w := range still {
		b.open = append(b.open, w.Transaction)
	}
	reason := addsEvents
	if len(still) > 0 {
		oldest := slices.MinFunc(still, func(x, y writer) int { return x.Since.Compare(y.Since) })
		reason = fmt.Sprintf("waits for %d transaction(s) that may not have seen the change, the oldest: pid %d since %s",
			len(still), oldest.PID, oldest.Since.UTC().Format(time.RFC3339))
		if oldest.PID == 0 {
			reason = fmt.Sprintf("waits for %d transaction(s) that may not have seen the change, one of them prepared (see pg_prepared_xacts)", len(still))
		}
	}
	const note = `-- lockstep: backfill waits
WITH changed AS (
    UPDATE outbox.sync SET backfill_reason = $3, backfill_waits = $4
     WHERE name = $1 AND backfill_round = $2 AND backfill_waits AND (backfill_reason IS DISTINCT FROM $3 OR NOT $4)
    RETURNING name
)
UPDATE outbox.hold AS h SET reason = $3 FROM changed AS c WHERE h.sync = c.name AND h.kind = 'backfill'`
	_, err = b.store.pool.Exec(ctx, note, b.sync, round, reason, len(still) > 0)
	return len(still) > 0, b.store.judge(ctx, err)
}

// addPage adds the deliveries that a page of events lacks. What was finished or
// discarded meanwhile has its log row and is not added again.
func (b *Backfill) addPage(ctx context.Context, page int) (complete bool, err error) {
	err = b.store.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		complete = false
		// Keeps retention from removing events that are about to get a delivery.
		if err := lock(ctx, tx, retentionLock, true); err != nil {
			return err
		}
		const stands = `
SELECT backfill_seq, backfill_waits, settled IS NOT NULL AND backfill_from < 'infinity'
  FROM outbox.sync
 WHERE name = $1 AND backfill_seq IS NOT NULL
   FOR NO KEY UPDATE`
		var at int64
		var waits, older bool
		err := tx.QueryRow(ctx, stands, b.sync).Scan(&at, &waits, &older)
		if errors.Is(err, pgx.ErrNoRows) {
			complete = true // another relay was faster
			return nil
		}
		if err != nil || waits { // changed once more since: the next step waits
			return err
		}
		if older { // they go in front of those that are due now
			if _, err := tx.Exec(ctx, backfillHold, b.sync); err != nil {
				return err
			}
		}
		const add = `-- lockstep: backfill
WITH page AS MATERIALIZED (
    SELECT e.seq, e.id, e.key, e.type, e.inserted_at
      FROM outbox.event AS e
     WHERE e.seq > $2
     ORDER BY e.seq
     LIMIT $3
), missing AS MATERIALIZED (
    SELECT p.seq, p.id, p.key
      FROM page AS p
      JOIN outbox.sync AS s ON s.name = $1
     WHERE p.type LIKE ANY (s.likes)
       AND (p.inserted_at >= s.backfill_from OR s.backfill_unseen @> p.seq)
       -- A recording moves an event from one to the other in one transaction, so a snapshot sees it in one of them.
       -- OFFSET 0 has them looked up for each event, whatever the planner thinks of the tables' sizes.
       AND NOT EXISTS (SELECT FROM outbox.delivery AS d
                        WHERE d.sync = $1 AND d.key = p.key AND d.event_seq = p.seq
                       OFFSET 0)
       AND NOT EXISTS (SELECT FROM outbox.delivery_log AS l
                        WHERE l.event_id = p.id AND l.sync = $1
                          AND l.outcome IN ('delivered', 'duplicate', 'accepted', 'filtered', 'superseded', 'discarded')
                       OFFSET 0)
), added AS (
    INSERT INTO outbox.delivery (sync, key, event_seq, event_id)
    SELECT $1, m.key, m.seq, m.id
      FROM missing AS m
     ORDER BY m.seq
    ON CONFLICT DO NOTHING
), matched AS (
    DELETE FROM outbox.unmatched AS u USING missing AS m WHERE u.event_seq = m.seq
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

// releaseBackfilled makes deliveries ordinary that waited for a backfill which is
// complete. One that somebody holds is left for the next time. So is that of a
// writer who began before the end and commits after it.
const releaseBackfilled = `-- lockstep: release backfilled
WITH waiting AS MATERIALIZED (
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
  FROM waiting AS w
 WHERE d.ctid = w.tid`

// ReleaseBackfilled has up to page deliveries of a sync sent that waited for a
// backfill which is complete. A relay calls it every second: a writer who began before the
// backfill ended may commit after it.
func (s *Store) ReleaseBackfilled(ctx context.Context, sync string, page int) (int, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	tag, err := s.pool.Exec(ctx, releaseBackfilled, sync, page)
	return int(tag.RowsAffected()), s.judge(ctx, err)
}

// inTx runs do in a transaction that may take twelve times as long as another
// call. Each of its statements sees what was committed before: what do reads
// after it has waited for a lock must not be older than the lock. The error is
// still to be judged.
func (s *Store) inTx(ctx context.Context, do func(context.Context, pgx.Tx) error) error {
	bound := 12 * s.timeout
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("database did not finish the transaction within %s", bound))
	defer cancel()
	return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true)`, strconv.FormatInt(bound.Milliseconds(), 10)); err != nil {
			return err
		}
		return do(ctx, tx)
	})
}

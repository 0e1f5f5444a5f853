package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
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
		return fmt.Errorf("the advisory lock %d is held by %s, and nothing goes on until it lets go: %w", key, *holder, err)
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
// to events from then on; From, where given, adds retained events that match
// and were not sent yet. A retired sync lives again. It reports whether
// anything was changed.
func (s *Store) Apply(ctx context.Context, r Registration) (bool, error) {
	changed := false
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		changed = false
		if err := lock(ctx, tx, registrationLock, false); err != nil {
			return err
		}
		known, err := listSyncs(ctx, tx)
		if err != nil {
			return err
		}
		old, ok := known[r.Name]
		if !ok {
			if r.From == "" && len(known) > 0 {
				return fmt.Errorf("sync %q is new to this database and %w", r.Name, ErrNeedsFrom)
			}
			if r.From == "" {
				r.From = "beginning"
			}
			changed = true
			return insertSync(ctx, tx, r)
		}
		if old.Matches(r) && r.From == "" {
			return nil
		}
		changed = true
		if _, err := tx.Exec(ctx, `SELECT set_config('lockstep.actor', $1, true)`, r.Actor); err != nil {
			return err
		}
		const update = `
UPDATE outbox.sync SET patterns = $2, on_failed = $3, notify = $4, retired_at = NULL WHERE name = $1`
		if _, err := tx.Exec(ctx, update, r.Name, r.Patterns, r.OnFailed, r.Notify); err != nil {
			return err
		}
		if r.OnFailed == "supersede" && old.OnFailed != "supersede" {
			const keys = `SELECT coalesce(array_agg(DISTINCT key), '{}') FROM outbox.delivery WHERE sync = $1 AND state = 'failed'`
			var failed []string
			if err := tx.QueryRow(ctx, keys, r.Name).Scan(&failed); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, supersedeFailed, r.Name, failed, s.relay); err != nil {
				return err
			}
		}
		if slices.Equal(old.Patterns, r.Patterns) && !old.Retired && r.From == "" {
			return nil
		}
		if r.From == "" {
			r.From = "now"
		}
		return beginBackfill(ctx, tx, r)
	})
	return changed, s.judge(ctx, err)
}

func insertSync(ctx context.Context, tx pgx.Tx, r Registration) error {
	const insert = `
INSERT INTO outbox.sync (name, patterns, on_failed, notify) VALUES ($1, $2, $3, $4)`
	if _, err := tx.Exec(ctx, insert, r.Name, r.Patterns, r.OnFailed, r.Notify); err != nil {
		return fmt.Errorf("register sync %q: %w", r.Name, err)
	}
	return beginBackfill(ctx, tx, r)
}

// beginBackfill puts the sync on hold and writes down which events are to be
// added: those from a time on, and the numbers that no visible event has yet.
// The latter are the events of transactions that are open now, which may never
// see the sync; what they insert is known by its number, whenever they commit.
func beginBackfill(ctx context.Context, tx pgx.Tx, r Registration) error {
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
             FROM (SELECT seq, lag(seq, 1, 0::bigint) OVER (ORDER BY seq) AS before FROM outbox.event) AS g)
 WHERE name = $1`
	if t, ok := at.(time.Time); ok {
		at = t.Format(time.RFC3339Nano)
	}
	if _, err := tx.Exec(ctx, work, r.Name, at); err != nil {
		return fmt.Errorf("register sync %q: %w", r.Name, err)
	}
	const hold = `
INSERT INTO outbox.hold (sync, kind, reason, by) VALUES ($1, 'backfill', 'registered; waits for transactions that began before', session_user)
ON CONFLICT ON CONSTRAINT hold_pkey DO NOTHING`
	_, err = tx.Exec(ctx, hold, r.Name)
	return err
}

// Syncs returns every registered sync by name.
func (s *Store) Syncs(ctx context.Context) (map[string]Registered, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	all, err := listSyncs(ctx, s.pool)
	return all, s.judge(ctx, err)
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
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

// Backfill is the work of one registration: first it waits for transactions
// that may insert events without seeing the sync, then it adds what is missing,
// page by page. Several relays may do it at once.
type Backfill struct {
	store *Store
	sync  string
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
	complete, err = b.addPage(ctx, page)
	return complete, false, err
}

func (b *Backfill) waitForWriters(ctx context.Context) (bool, error) {
	if b.begun && len(b.open) == 0 {
		return false, nil
	}
	ctx, cancel := b.store.deadline(ctx)
	defer cancel()
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
	if len(still) == 0 {
		return false, nil
	}
	oldest := slices.MinFunc(still, func(x, y writer) int { return x.Since.Compare(y.Since) })
	for _, w := range still {
		b.open = append(b.open, w.Transaction)
	}
	reason := fmt.Sprintf("registered; waits for %d transaction(s) that may not have seen it, the oldest: pid %d since %s",
		len(still), oldest.PID, oldest.Since.UTC().Format(time.RFC3339))
	if oldest.PID == 0 {
		reason = fmt.Sprintf("registered; waits for %d transaction(s) that may not have seen it, one of them prepared (see pg_prepared_xacts)", len(still))
	}
	_, err = b.store.pool.Exec(ctx, `UPDATE outbox.hold SET reason = $2 WHERE sync = $1 AND kind = 'backfill' AND reason <> $2`, b.sync, reason)
	return true, b.store.judge(ctx, err)
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
		var at int64
		err := tx.QueryRow(ctx, `SELECT backfill_seq FROM outbox.sync WHERE name = $1 AND backfill_seq IS NOT NULL FOR NO KEY UPDATE`, b.sync).Scan(&at)
		if errors.Is(err, pgx.ErrNoRows) {
			complete = true // another relay was faster
			return nil
		}
		if err != nil {
			return err
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
UPDATE outbox.sync SET backfill_seq = NULL, backfill_from = NULL, backfill_unseen = NULL WHERE name = $1`
		if _, err := tx.Exec(ctx, finish, b.sync); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `DELETE FROM outbox.hold WHERE sync = $1 AND kind = 'backfill'`, b.sync)
		return err
	})
	return complete, b.store.judge(ctx, err)
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

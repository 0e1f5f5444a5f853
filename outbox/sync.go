package outbox

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// Registration is a sync as a configuration names it.
type Registration struct {
	Name     string
	Patterns []string // of event types; * matches any characters
	OnFailed string   // block or supersede
	Notify   bool     // relays are told of new events by NOTIFY
	Escalate Escalation
	From     string // beginning, now or an RFC 3339 time; may be empty for the first syncs of a database: beginning
	Actor    string // name of the person who changes the sync; the log has login/name
}

// Registered is a sync as the database has it. Relays follow the database, not their
// configuration.
type Registered struct {
	Name        string
	Patterns    []string
	OnFailed    string
	Notify      bool
	Retired     bool
	Backfilling bool
	Escalate    Escalation
	recount     *string // open deliveries after this key have times of an earlier Escalate; nil: none has
}

// Matches reports whether the database's row has the settings of r, and is not retired.
func (d Registered) Matches(r Registration) bool {
	return slices.Equal(d.Patterns, r.Patterns) && d.OnFailed == r.OnFailed && d.Notify == r.Notify && d.Escalate.Equal(r.Escalate) && d.recount == nil && !d.Retired
}

// registeredColumns are the columns of a Registered. Intervals are in nanoseconds: a pooler does
// not keep intervalstyle, which would change their text.
const registeredColumns = `name, patterns, on_failed, notify, retired_at IS NOT NULL, backfill_seq IS NOT NULL,
       escalate_at, escalate_zone, coalesce((extract(epoch FROM escalate_before) * 1000000000)::bigint, 0),
       coalesce((extract(epoch FROM escalate_after) * 1000000000)::bigint, 0), escalate_recount`

// into returns where registeredColumns are scanned to.
func (d *Registered) into() []any {
	e := &d.Escalate
	return []any{&d.Name, &d.Patterns, &d.OnFailed, &d.Notify, &d.Retired, &d.Backfilling, &e.At, &e.Zone, &e.Before, &e.After, &d.recount}
}

// Syncs returns every registered sync by name.
func (s *Store) Syncs(ctx context.Context) (map[string]Registered, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	all, err := listSyncs(ctx, s.pool)
	return all, s.judge(ctx, err)
}

func listSyncs(ctx context.Context, on database) (map[string]Registered, error) {
	const list = `
SELECT ` + registeredColumns + `
  FROM outbox.sync`
	rows, err := on.Query(ctx, list)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r Registered, err error) { return r, row.Scan(r.into()...) })
	if err != nil {
		return nil, err
	}
	byName := make(map[string]Registered, len(all))
	for _, r := range all {
		byName[r.Name] = r
	}
	return byName, nil
}

// LastReached returns the type of the last event of a key that the receiver of a sync has,
// or may have. It is empty if there is none in the delivery log.
func (s *Store) LastReached(ctx context.Context, sync, key string) (eventType string, err error) {
	const statement = `-- lockstep: last reached
SELECT coalesce((SELECT l.event_type FROM outbox.delivery_log AS l
                  WHERE l.sync = $1 AND l.key = $2
                    AND l.outcome IN ('delivered', 'duplicate', 'accepted', 'step', 'unknown', 'lease_lost')
                  ORDER BY l.id DESC LIMIT 1), '')`
	err = s.scan(ctx, []any{&eventType}, statement, sync, key)
	return eventType, err
}

// NoteDelivery writes the time of the last success to the sync's row, for outbox.status. It
// does not wait for locks: it reports false if the row is locked.
func (s *Store) NoteDelivery(ctx context.Context, sync string, at time.Time) (bool, error) {
	const statement = `-- lockstep: last delivered
WITH locked_sync AS MATERIALIZED (
    SELECT name FROM outbox.sync WHERE name = $1 FOR NO KEY UPDATE SKIP LOCKED
), noted AS (
    UPDATE outbox.sync AS s SET last_delivered_at = clock_timestamp() - $2::interval
      FROM locked_sync AS l
     WHERE s.name = l.name AND (s.last_delivered_at IS NULL OR s.last_delivered_at < clock_timestamp() - $2::interval)
)
SELECT count(*) > 0 FROM locked_sync`
	var noted bool
	err := s.scan(ctx, []any{&noted}, statement, sync, max(time.Since(at), 0))
	return noted, err
}

package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// HoldKind is why a sync, or one scope of it, sends nothing. Holds of different kinds are
// kept apart: one that ends never lifts another.
type HoldKind string

// The kinds of hold, the strongest first.
const (
	HoldOperator HoldKind = "operator" // until outbox.resume
	HoldBackfill HoldKind = "backfill" // until the registration has added every event
	HoldAuth     HoldKind = "auth"     // until a probe is accepted
	HoldBreaker  HoldKind = "breaker"  // until a probe is accepted
	HoldThrottle HoldKind = "throttle" // until a time
	HoldWindow   HoldKind = "window"   // until a time
)

// Hold is a hold in force.
type Hold struct {
	Scope    string // what it holds; empty for the whole sync
	Kind     HoldKind
	Until    time.Time // end of a throttle or window, next probe of auth and breaker; zero when somebody lifts it
	Reason   string
	ProbeDue bool // auth and breaker: a probe may be sent now
}

// Hold puts a scope of a sync on hold for d from now, or all of it where scope is
// empty. A hold of the same scope and kind that lasts longer stays as it is. An
// auth hold may be probed at once with a delivery that was not tried yet.
func (s *Store) Hold(ctx context.Context, sync, scope string, kind HoldKind, d time.Duration, reason string) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: hold
INSERT INTO outbox.hold AS h (sync, scope, kind, until, untried_at, reason, by)
SELECT name, $6, $2::text, clock_timestamp() + $3::interval, CASE WHEN $2::text = 'auth' THEN clock_timestamp() END, $4, $5
  FROM outbox.sync
 WHERE name = $1
ON CONFLICT ON CONSTRAINT hold_pkey DO UPDATE
   SET until = greatest(h.until, excluded.until), reason = excluded.reason, by = excluded.by,
       since = CASE WHEN h.kind IN ('throttle', 'window') AND h.until <= clock_timestamp() THEN excluded.since ELSE h.since END -- it had ended
 WHERE h.until IS NOT NULL`
	_, err := s.pool.Exec(ctx, statement, sync, kind, d, reason, s.relay, scope)
	return s.judge(ctx, err)
}

// Probe is the right to send one delivery in spite of an auth or breaker hold.
type Probe struct {
	Number int      // how many the hold has had, this one included; 0 if it was not granted
	With   []string // keys with a first delivery that tells most, the best first

	Suspects bool // lanes of the scope are due during whose claims two or more relays died
}

// Probe asks for the right to send one delivery in spite of an auth or breaker
// hold of a scope whose next probe is due. One relay gets it; the next is due after
// within, should this one never come back. A hold of a scope is probed with lanes of
// that scope only, and not while the whole sync is on hold. A hold of the whole sync,
// whose scope is empty, is probed with any lane whose own scope is not held.
//
// Best is a delivery that was not tried yet: the newest and the oldest in turn, so
// that many of one kind, which the receiver refuses, do not take every probe from
// the others. Those that were refused come last. An auth hold is probed earlier
// with a delivery that was not tried yet. Suspects are left out.
func (s *Store) Probe(ctx context.Context, sync, scope string, within time.Duration) (Probe, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: probe
WITH held AS MATERIALIZED (
    SELECT max(h.probes) % 2 = 0 AS newest
      FROM outbox.hold AS h
     WHERE h.sync = $1 AND h.scope = $5 AND h.kind IN ('auth', 'breaker') AND least(h.until, h.untried_at) <= clock_timestamp()
    HAVING count(*) > 0
), key AS MATERIALIZED (
    (SELECT l.key FROM held CROSS JOIN outbox.lane AS l WHERE l.sync = $1 AND l.scope = $5 AND l.due_at <= now() AND l.due_at < 'infinity' ORDER BY l.due_at LIMIT $3)
    UNION
    (SELECT l.key FROM held CROSS JOIN outbox.lane AS l WHERE l.sync = $1 AND l.scope = $5 AND l.due_at <= now() AND l.due_at < 'infinity' ORDER BY l.due_at DESC LIMIT $3)
    UNION
    (SELECT d.key FROM held CROSS JOIN LATERAL (
            SELECT d.key FROM outbox.delivery AS d WHERE d.sync = $1 AND $5 = '' ORDER BY d.changed_in, d.event_seq LIMIT $3) AS d)
    UNION
    (SELECT d.key FROM held CROSS JOIN LATERAL (
            SELECT d.key FROM outbox.delivery AS d WHERE d.sync = $1 AND $5 = '' ORDER BY d.changed_in DESC, d.event_seq DESC LIMIT $3) AS d)
), candidate AS MATERIALIZED (
    SELECT r.*, row_number() OVER () AS n
      FROM (SELECT k.key, CASE WHEN f.error_class IS NULL THEN 0 WHEN f.error_class NOT IN ('auth', 'forbidden') THEN 1 ELSE 2 END AS rank
              FROM key AS k
             CROSS JOIN held
             CROSS JOIN LATERAL (
                   SELECT f.state, f.due_at, f.event_seq, f.error_class
                     FROM outbox.delivery AS f
                    WHERE f.sync = $1 AND f.key = k.key
                    ORDER BY f.event_seq
                    LIMIT 1) AS f
              LEFT JOIN LATERAL (
                   SELECT l.scope, l.due_at, l.crashes + (l.claim IS NOT NULL)::int AS crashes
                     FROM outbox.lane AS l
                    WHERE l.sync = $1 AND l.key = k.key) AS l ON true
             WHERE f.state <> 'failed' AND f.due_at <= now() AND (l.due_at IS NULL OR l.due_at <= now() AND l.crashes < 2)
               AND (coalesce(l.scope, '') = $5 OR NOT EXISTS (SELECT FROM outbox.hold AS o WHERE o.sync = $1 AND o.scope = l.scope))
             ORDER BY rank, CASE WHEN held.newest AND f.error_class IS NULL THEN f.event_seq END DESC NULLS LAST, f.due_at, f.event_seq
             LIMIT $4) AS r
), tells AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM candidate WHERE rank = 0) AS untried
), granted AS (
    UPDATE outbox.hold AS h
       SET until = clock_timestamp() + $2::interval,
           untried_at = CASE WHEN h.untried_at IS NOT NULL THEN clock_timestamp() + $2::interval END,
           probes = h.probes + 1
      FROM tells AS t
     WHERE h.sync = $1 AND h.scope = $5 AND h.kind IN ('auth', 'breaker')
       AND (h.until <= clock_timestamp() OR t.untried AND h.untried_at <= clock_timestamp())
       AND NOT EXISTS (SELECT FROM outbox.hold AS o
                        WHERE o.sync = $1 AND o.scope IN ('', $5)
                          AND (o.kind IN ('operator', 'backfill')
                               OR o.kind IN ('auth', 'breaker') AND o.scope <> $5
                               OR o.until > clock_timestamp()
                                  AND NOT (o.kind = 'auth' AND t.untried AND coalesce(o.untried_at <= clock_timestamp(), false))))
    RETURNING h.probes
)
SELECT g.probes, c.key,
       EXISTS (SELECT FROM outbox.lane AS l
                WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2
                  AND ($5 = '' OR l.scope = $5))
  FROM (SELECT max(probes) AS probes FROM granted) AS g
  LEFT JOIN candidate AS c ON true
 WHERE g.probes IS NOT NULL
 ORDER BY c.n`
	var p Probe
	rows, err := s.pool.Query(ctx, statement, sync, within, probePage, probeCandidates, scope)
	if err != nil {
		return Probe{}, s.judge(ctx, err)
	}
	var key *string
	_, err = pgx.ForEachRow(rows, []any{&p.Number, &key, &p.Suspects}, func() error {
		if key != nil {
			p.With = append(p.With, *key)
		}
		return nil
	})
	return p, s.judge(ctx, err)
}

const (
	probePage       = 100 // lanes and deliveries that are looked at from either end
	probeCandidates = 8   // most that are proposed
)

// ProbeAgain sets when the next probe of a scope's auth and breaker holds is due,
// unless they had another since the one with that number. After a probe with a
// delivery that was not tried before, the next one of that kind may follow soon: in
// 100 ms, and twice as long each time, up to 30 s. After any other it may follow
// at once.
func (s *Store) ProbeAgain(ctx context.Context, sync, scope string, probes int, in time.Duration, untried bool) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: probe again
UPDATE outbox.hold AS h
   SET until = clock_timestamp() + $3::interval,
       untried_at = CASE WHEN h.kind <> 'auth' THEN NULL
                         WHEN $4 THEN clock_timestamp() + least(interval '30 seconds', interval '100 milliseconds' * 2 ^ least(h.untried_probes, 10))
                         ELSE clock_timestamp() END,
       untried_probes = h.untried_probes + $4::boolean::int
 WHERE h.sync = $1 AND h.scope = $5 AND h.kind IN ('auth', 'breaker') AND h.probes <= $2`
	_, err := s.pool.Exec(ctx, statement, sync, probes, in, untried, scope)
	return s.judge(ctx, err)
}

// Lift ends the auth and breaker holds of a scope, and of no other: a probe was
// accepted. An empty scope is the whole sync.
func (s *Store) Lift(ctx context.Context, sync, scope string) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: lift hold
DELETE FROM outbox.hold WHERE sync = $1 AND scope = $2 AND kind IN ('auth', 'breaker')`
	_, err := s.pool.Exec(ctx, statement, sync, scope)
	return s.judge(ctx, err)
}

// LiftUnused ends the auth and breaker holds of a scope for which no lane waits:
// nothing could probe them. It reports whether there were any. Should the receiver
// still be down, the next deliveries to it find out.
func (s *Store) LiftUnused(ctx context.Context, sync, scope string) (bool, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: lift unused hold
DELETE FROM outbox.hold AS h
 WHERE h.sync = $1 AND h.scope = $2 AND h.scope <> '' AND h.kind IN ('auth', 'breaker')
   AND NOT EXISTS (SELECT FROM outbox.lane AS l WHERE l.sync = $1 AND l.scope = $2 AND l.due_at < 'infinity')`
	tag, err := s.pool.Exec(ctx, statement, sync, scope)
	return tag.RowsAffected() > 0, s.judge(ctx, err)
}

// ScopeHolds lists the scopes of a sync that are on hold, each with its strongest
// hold. Holds of the whole sync are not among them.
func (s *Store) ScopeHolds(ctx context.Context, sync string) ([]Hold, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: scopes on hold
SELECT DISTINCT ON (scope) scope, kind, until, reason, coalesce(least(until, untried_at) <= clock_timestamp(), false)` + holdsInForce + `
   AND scope <> ''
 ORDER BY scope, array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind::text)`
	rows, err := s.pool.Query(ctx, statement, sync, false)
	if err != nil {
		return nil, s.judge(ctx, err)
	}
	var holds []Hold
	var h Hold
	var until *time.Time
	_, err = pgx.ForEachRow(rows, []any{&h.Scope, &h.Kind, &until, &h.Reason, &h.ProbeDue}, func() error {
		if h.Until = (time.Time{}); until != nil {
			h.Until = *until
		}
		holds = append(holds, h)
		return nil
	})
	return holds, s.judge(ctx, err)
}

// EndHolds removes holds of a sync that ended by time, or began in the future:
// the database's clock was set back since, and they would last until it has
// caught up. Where a probe ends a hold, it is due at once then, and also where
// it would be due later than within from now, which is the longest that relays
// ask for. EndHolds waits for nobody: a sync whose row an operator's open
// transaction holds is left for the next time.
func (s *Store) EndHolds(ctx context.Context, sync string, within time.Duration) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: end hold
WITH free AS MATERIALIZED (SELECT name FROM outbox.sync WHERE name = $1 FOR NO KEY UPDATE SKIP LOCKED
), over AS MATERIALIZED (
    SELECT o.sync, o.scope, o.kind
      FROM free JOIN outbox.hold AS o ON o.sync = free.name
     WHERE o.kind IN ('throttle', 'window') AND o.until <= clock_timestamp()
        OR o.kind NOT IN ('operator', 'backfill') AND o.since > clock_timestamp() + interval '1 minute'
        OR o.kind IN ('auth', 'breaker') AND o.until > clock_timestamp() + $2::interval + interval '1 minute'
       FOR UPDATE OF o SKIP LOCKED
), probed AS (
    UPDATE outbox.hold AS h
       SET until = clock_timestamp(), since = least(h.since, clock_timestamp()), untried_at = least(h.untried_at, clock_timestamp())
      FROM over
     WHERE h.sync = over.sync AND h.scope = over.scope AND h.kind = over.kind AND h.kind IN ('auth', 'breaker')
)
DELETE FROM outbox.hold AS h
 USING over
 WHERE h.sync = over.sync AND h.scope = over.scope AND h.kind = over.kind AND h.kind IN ('throttle', 'window')`
	_, err := s.pool.Exec(ctx, statement, sync, within)
	return s.judge(ctx, err)
}

// NoteDelivery keeps when something was delivered to a sync last, for
// outbox.status. It waits for nobody either: it reports false where somebody
// else holds the sync's row.
func (s *Store) NoteDelivery(ctx context.Context, sync string, at time.Time) (bool, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: last delivered
WITH free AS MATERIALIZED (SELECT name FROM outbox.sync WHERE name = $1 FOR NO KEY UPDATE SKIP LOCKED
), noted AS (
    UPDATE outbox.sync AS s SET last_delivered_at = clock_timestamp() - $2::interval
      FROM free
     WHERE s.name = free.name AND (s.last_delivered_at IS NULL OR s.last_delivered_at < clock_timestamp() - $2::interval)
)
SELECT count(*) > 0 FROM free`
	var noted bool
	err := s.pool.QueryRow(ctx, statement, sync, max(time.Since(at), 0)).Scan(&noted)
	return noted, s.judge(ctx, err)
}

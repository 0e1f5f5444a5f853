package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// HoldKind is a reason why a sync, or one scope of it, sends nothing. Holds of different
// kinds are kept apart: one that ends never lifts another.
type HoldKind string

// The kinds of hold, the strongest first. SQL has the same order: outbox.hold_rank.
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
	Scope    string // empty: the whole sync
	Kind     HoldKind
	Until    time.Time // end of a throttle or window hold, next probe of an auth or breaker hold; zero: until it is lifted
	Reason   string
	ProbeDue bool // a probe of an auth or breaker hold may be sent now
}

// holdsInForce are the holds of sync $1 that prevent a claim. A throttle or window hold
// ends by time. With $2, auth and breaker holds let a probe pass.
const holdsInForce = `
      FROM outbox.hold
     WHERE sync = $1
       AND (kind NOT IN ('throttle', 'window') OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))`

// scopesOnHold are the scopes of a sync on hold; the empty one is the whole sync.
const scopesOnHold = `scope_on_hold AS MATERIALIZED (
    SELECT scope` + holdsInForce + `
)`

// holdColumns are those of a Hold.
const holdColumns = `scope, kind, until, reason, coalesce(least(until, untried_at) <= clock_timestamp(), false) AS probe_due`

// strongestHold is the strongest hold of a whole sync.
const strongestHold = `-- lockstep: hold
-- $1 sync, $2 true: without auth and breaker holds
    SELECT ` + holdColumns + holdsInForce + `
       AND scope = ''
     ORDER BY outbox.hold_rank(kind)
     LIMIT 1`

// strongestHold returns nil if the hold has ended meanwhile.
func (s *Store) strongestHold(ctx context.Context, sync string, probe bool) (*Hold, error) {
	holds, err := s.holds(ctx, strongestHold, sync, probe)
	if err != nil || len(holds) == 0 {
		return nil, err
	}
	return &holds[0], nil
}

// ScopeHolds lists the scopes of a sync that are on hold, each with its strongest
// hold. Holds of the whole sync are not among them.
func (s *Store) ScopeHolds(ctx context.Context, sync string) ([]Hold, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: scopes on hold
SELECT DISTINCT ON (scope) ` + holdColumns + holdsInForce + `
   AND scope <> ''
 ORDER BY scope, outbox.hold_rank(kind)`
	holds, err := s.holds(ctx, statement, sync, false)
	return holds, s.judge(ctx, err)
}

func (s *Store) holds(ctx context.Context, statement, sync string, probe bool) ([]Hold, error) {
	rows, err := s.pool.Query(ctx, statement, sync, probe)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (h Hold, err error) {
		var until pgtype.Timestamptz
		err = row.Scan(&h.Scope, &h.Kind, &until, &h.Reason, &h.ProbeDue)
		h.Until = until.Time
		return h, err
	})
}

// Hold puts a scope of a sync on hold for d from now; the empty scope is the whole sync.
// A hold of the same scope and kind that lasts longer is not shortened. An auth hold may
// be probed at once with a delivery that was not tried yet.
func (s *Store) Hold(ctx context.Context, sync, scope string, kind HoldKind, d time.Duration, reason string) error {
	const statement = `-- lockstep: hold
INSERT INTO outbox.hold AS h (sync, scope, kind, until, untried_at, reason, by)
SELECT name, $6, $2::text, clock_timestamp() + $3::interval, CASE WHEN $2::text = 'auth' THEN clock_timestamp() END, $4, $5
  FROM outbox.sync
 WHERE name = $1
ON CONFLICT ON CONSTRAINT hold_pkey DO UPDATE
   SET until = greatest(h.until, excluded.until), reason = excluded.reason, by = excluded.by,
       since = CASE WHEN h.kind IN ('throttle', 'window') AND h.until <= clock_timestamp() THEN excluded.since ELSE h.since END -- it had ended
 WHERE h.until IS NOT NULL`
	_, err := s.exec(ctx, statement, sync, kind, d, reason, s.relay, scope)
	return err
}

// Probe is the right to send one delivery in spite of an auth or breaker hold.
type Probe struct {
	Number   int      // counts the probes of the hold, this one included; 0: not granted
	With     []string // keys whose first delivery to send, the most telling first
	Suspects bool     // suspects of the scope are due
}

// Probe asks for the right to send one delivery in spite of an auth or breaker hold of a
// scope whose next probe is due. One relay gets it. If that relay does not come back, the
// next probe is due after within. A hold of a scope is probed with lanes of that scope,
// and only while the whole sync is not on hold. A hold of the whole sync, whose scope is
// empty, is probed with any lane whose own scope is not on hold.
//
// Best is a delivery that was not tried yet: the newest and the oldest in turn, so that
// many deliveries of one kind, which the receiver refuses, do not take all probes.
// Deliveries that were refused come last, and suspects are left out. An auth hold is
// probed earlier with a delivery that was not tried yet.
func (s *Store) Probe(ctx context.Context, sync, scope string, within time.Duration) (Probe, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: probe
-- $1 sync, $2 pause before the next probe, $3 most lanes and deliveries to read from either end, $4 most keys, $5 scope
WITH due_hold AS MATERIALIZED ( -- one row or none
    SELECT max(h.probes) % 2 = 0 AS newest_first
      FROM outbox.hold AS h
     WHERE h.sync = $1 AND h.scope = $5 AND h.kind IN ('auth', 'breaker') AND least(h.until, h.untried_at) <= clock_timestamp()
    HAVING count(*) > 0
), near_key AS MATERIALIZED (
    (SELECT l.key FROM due_hold CROSS JOIN outbox.lane AS l WHERE l.sync = $1 AND l.scope = $5 AND l.due_at <= now() AND l.due_at < 'infinity' ORDER BY l.due_at LIMIT $3)
    UNION
    (SELECT l.key FROM due_hold CROSS JOIN outbox.lane AS l WHERE l.sync = $1 AND l.scope = $5 AND l.due_at <= now() AND l.due_at < 'infinity' ORDER BY l.due_at DESC LIMIT $3)
    UNION
    (SELECT d.key FROM due_hold CROSS JOIN LATERAL (
            SELECT d.key FROM outbox.delivery AS d WHERE d.sync = $1 AND $5 = '' ORDER BY d.changed_in, d.event_seq LIMIT $3) AS d)
    UNION
    (SELECT d.key FROM due_hold CROSS JOIN LATERAL (
            SELECT d.key FROM outbox.delivery AS d WHERE d.sync = $1 AND $5 = '' ORDER BY d.changed_in DESC, d.event_seq DESC LIMIT $3) AS d)
), candidate AS MATERIALIZED (
    SELECT r.*, row_number() OVER () AS n
      FROM (SELECT k.key, CASE WHEN f.error_class IS NULL THEN 0 WHEN f.error_class NOT IN ('auth', 'forbidden') THEN 1 ELSE 2 END AS rank
              FROM near_key AS k
             CROSS JOIN due_hold AS h
             CROSS JOIN LATERAL (
                   SELECT f.state, f.due_at, f.event_seq, f.error_class
                     FROM outbox.delivery AS f
                    WHERE f.sync = $1 AND f.key = k.key
                    ORDER BY f.event_seq
                    LIMIT 1) AS f
              LEFT JOIN LATERAL (
                   SELECT l.scope, l.due_at, ` + crashes + ` AS crashes
                     FROM outbox.lane AS l
                    WHERE l.sync = $1 AND l.key = k.key) AS l ON true
             WHERE f.state <> 'failed' AND f.due_at <= now() AND (l.due_at IS NULL OR l.due_at <= now() AND l.crashes < 2)
               AND (coalesce(l.scope, '') = $5 OR NOT EXISTS (SELECT FROM outbox.hold AS o WHERE o.sync = $1 AND o.scope = l.scope))
             ORDER BY rank, CASE WHEN h.newest_first AND f.error_class IS NULL THEN f.event_seq END DESC NULLS LAST, f.due_at, f.event_seq
             LIMIT $4) AS r
), best AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM candidate WHERE rank = 0) AS untried
), probed_hold AS (
    UPDATE outbox.hold AS h
       SET until = clock_timestamp() + $2::interval,
           untried_at = CASE WHEN h.untried_at IS NOT NULL THEN clock_timestamp() + $2::interval END,
           probes = h.probes + 1
      FROM best AS t
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
                WHERE l.sync = $1 AND l.due_at <= now() AND ` + isSuspect + `
                  AND ($5 = '' OR l.scope = $5))
  FROM (SELECT max(probes) AS probes FROM probed_hold) AS g
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
	probePage       = 100 // lanes and deliveries to read from either end
	probeCandidates = 8   // most keys to propose
)

// ProbeAgain sets when the next probe of the auth and breaker holds of a scope is due,
// unless there was another probe since the one with that number. A probe with a delivery
// that was not tried before may be followed soon by another of that kind: after 100 ms,
// doubled each time, up to 30 s. After any other probe it may follow at once.
func (s *Store) ProbeAgain(ctx context.Context, sync, scope string, probes int, in time.Duration, untried bool) error {
	const statement = `-- lockstep: probe again
UPDATE outbox.hold AS h
   SET until = clock_timestamp() + $3::interval,
       untried_at = CASE WHEN h.kind <> 'auth' THEN NULL
                         WHEN $4 THEN clock_timestamp() + least(interval '30 seconds', interval '100 milliseconds' * 2 ^ least(h.untried_probes, 10))
                         ELSE clock_timestamp() END,
       untried_probes = h.untried_probes + $4::boolean::int
 WHERE h.sync = $1 AND h.scope = $5 AND h.kind IN ('auth', 'breaker') AND h.probes <= $2`
	_, err := s.exec(ctx, statement, sync, probes, in, untried, scope)
	return err
}

// Lift ends the auth and breaker holds of a scope, and no others: a probe was accepted.
// The empty scope is the whole sync.
func (s *Store) Lift(ctx context.Context, sync, scope string) error {
	const statement = `-- lockstep: lift hold
DELETE FROM outbox.hold WHERE sync = $1 AND scope = $2 AND kind IN ('auth', 'breaker')`
	_, err := s.exec(ctx, statement, sync, scope)
	return err
}

// LiftUnused ends the auth and breaker holds of a scope for which no lane waits: nothing
// can probe them. It reports whether there were any. If the receiver is still down, the
// next deliveries find out.
func (s *Store) LiftUnused(ctx context.Context, sync, scope string) (bool, error) {
	const statement = `-- lockstep: lift unused hold
DELETE FROM outbox.hold AS h
 WHERE h.sync = $1 AND h.scope = $2 AND h.scope <> '' AND h.kind IN ('auth', 'breaker')
   AND NOT EXISTS (SELECT FROM outbox.lane AS l WHERE l.sync = $1 AND l.scope = $2 AND l.due_at < 'infinity')`
	lifted, err := s.exec(ctx, statement, sync, scope)
	return lifted > 0, err
}

// EndHolds removes the throttle and window holds of a sync that have ended. It also
// corrects holds after the database's clock was set back: one that began in the future
// is removed or, if a probe ends it, may be probed at once. The same is true of a hold
// whose next probe is due later than within from now, which is the longest that relays
// ask for. EndHolds waits for nobody: if somebody has locked the sync's row, it does
// nothing.
func (s *Store) EndHolds(ctx context.Context, sync string, within time.Duration) error {
	const statement = `-- lockstep: end hold
-- $1 sync, $2 longest pause between probes
WITH locked_sync AS MATERIALIZED (
    SELECT name FROM outbox.sync WHERE name = $1 FOR NO KEY UPDATE SKIP LOCKED
), ended_hold AS MATERIALIZED (
    SELECT o.sync, o.scope, o.kind
      FROM locked_sync AS s
      JOIN outbox.hold AS o ON o.sync = s.name
     WHERE o.kind IN ('throttle', 'window') AND o.until <= clock_timestamp()
        OR o.kind NOT IN ('operator', 'backfill') AND o.since > clock_timestamp() + interval '1 minute'
        OR o.kind IN ('auth', 'breaker') AND o.until > clock_timestamp() + $2::interval + interval '1 minute'
       FOR UPDATE OF o SKIP LOCKED
), hold_to_probe AS (
    UPDATE outbox.hold AS h
       SET until = clock_timestamp(), since = least(h.since, clock_timestamp()), untried_at = least(h.untried_at, clock_timestamp())
      FROM ended_hold AS o
     WHERE h.sync = o.sync AND h.scope = o.scope AND h.kind = o.kind AND h.kind IN ('auth', 'breaker')
)
DELETE FROM outbox.hold AS h
 USING ended_hold AS o
 WHERE h.sync = o.sync AND h.scope = o.scope AND h.kind = o.kind AND h.kind IN ('throttle', 'window')`
	_, err := s.exec(ctx, statement, sync, within)
	return err
}

package outbox

import (
	"context"
	"time"
)

// HoldKind is why a whole sync sends nothing. Holds of different kinds are
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
	Kind     HoldKind
	Until    time.Time // end of a throttle or window, next probe of auth and breaker; zero when somebody lifts it
	Reason   string
	ProbeDue bool // auth and breaker: a probe may be sent now
}

// Hold puts a sync on hold for d from now. A hold of the same kind that lasts
// longer stays as it is.
func (s *Store) Hold(ctx context.Context, sync string, kind HoldKind, d time.Duration, reason string) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: hold
INSERT INTO outbox.hold AS h (sync, kind, until, reason, by)
SELECT name, $2, clock_timestamp() + $3::interval, $4, $5 FROM outbox.sync WHERE name = $1
ON CONFLICT ON CONSTRAINT hold_pkey DO UPDATE
   SET until = greatest(h.until, excluded.until), reason = excluded.reason, by = excluded.by
 WHERE h.until IS NOT NULL`
	_, err := s.pool.Exec(ctx, statement, sync, kind, d, reason, s.relay)
	return s.judge(ctx, err)
}

// Probe asks for the right to send one delivery in spite of an auth or breaker
// hold whose next probe is due. One relay gets it, and the number of probes that
// the hold has had, this one included; the next is due after within, should this
// one never come back.
func (s *Store) Probe(ctx context.Context, sync string, within time.Duration) (probes int, ok bool, err error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: probe
WITH due AS (
    UPDATE outbox.hold AS h
       SET until = clock_timestamp() + $2::interval, probes = h.probes + 1
     WHERE h.sync = $1 AND h.kind IN ('auth', 'breaker') AND h.until <= clock_timestamp()
       AND NOT EXISTS (SELECT FROM outbox.hold AS o
                        WHERE o.sync = $1
                          AND (o.kind IN ('operator', 'backfill')
                               OR o.kind IN ('throttle', 'window') AND o.until > clock_timestamp()
                               OR o.kind IN ('auth', 'breaker') AND o.until > clock_timestamp()))
    RETURNING h.probes
)
SELECT coalesce(max(probes), 0) FROM due`
	err = s.pool.QueryRow(ctx, statement, sync, within).Scan(&probes)
	return probes, probes > 0, s.judge(ctx, err)
}

// ProbeAgain sets when the next probe of a sync's auth and breaker holds is due,
// unless they had another since the one with that number.
func (s *Store) ProbeAgain(ctx context.Context, sync string, probes int, in time.Duration) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: probe again
UPDATE outbox.hold SET until = clock_timestamp() + $3::interval WHERE sync = $1 AND kind IN ('auth', 'breaker') AND probes <= $2`
	_, err := s.pool.Exec(ctx, statement, sync, probes, in)
	return s.judge(ctx, err)
}

// Lift ends the auth and breaker holds of a sync: a probe was accepted.
func (s *Store) Lift(ctx context.Context, sync string) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `-- lockstep: lift hold
DELETE FROM outbox.hold WHERE sync = $1 AND kind IN ('auth', 'breaker')`
	_, err := s.pool.Exec(ctx, statement, sync)
	return s.judge(ctx, err)
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
    SELECT o.sync, o.kind
      FROM free JOIN outbox.hold AS o ON o.sync = free.name
     WHERE o.kind IN ('throttle', 'window') AND o.until <= clock_timestamp()
        OR o.kind NOT IN ('operator', 'backfill') AND o.since > clock_timestamp() + interval '1 minute'
        OR o.kind IN ('auth', 'breaker') AND o.until > clock_timestamp() + $2::interval + interval '1 minute'
       FOR UPDATE OF o SKIP LOCKED
), probed AS (
    UPDATE outbox.hold AS h
       SET until = clock_timestamp(), since = least(h.since, clock_timestamp())
      FROM over
     WHERE h.sync = over.sync AND h.kind = over.kind AND h.kind IN ('auth', 'breaker')
)
DELETE FROM outbox.hold AS h
 USING over
 WHERE h.sync = over.sync AND h.kind = over.kind AND h.kind IN ('throttle', 'window')`
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

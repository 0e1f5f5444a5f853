package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// HoldKind is the kind of a [Hold]. A sync may have several holds of different kinds. The
// end of one does not end another.
type HoldKind string

// The kinds of hold, the strongest first. SQL has the same order: outbox.hold_rank.
const (
	HoldOperator HoldKind = "operator" // until outbox.resume, or until a time
	HoldBackfill HoldKind = "backfill" // until the backfill is complete
	HoldAuth     HoldKind = "auth"     // until a probe is accepted
	HoldBreaker  HoldKind = "breaker"  // until a probe is accepted
	HoldThrottle HoldKind = "throttle" // until a time
	HoldWindow   HoldKind = "window"   // until a time
)

// Hold is a reason why a whole sync, or one scope of it, sends nothing for now.
type Hold struct {
	Scope    string // empty: the whole sync
	Kind     HoldKind
	Until    time.Time // end of a pause, throttle or window hold, next probe of an auth or breaker hold; zero: until it is lifted
	Reason   string
	ProbeDue bool // a probe of an auth or breaker hold may be sent now
}

// holdsInForce are the holds of sync $1 that prevent a claim. A hold ends at its time, but
// for an auth or breaker hold this is the time of the next probe. If $2 is true, auth and
// breaker holds do not prevent it.
const holdsInForce = `
      FROM outbox.hold
     WHERE sync = $1
       AND (kind IN ('auth', 'breaker') OR until IS NULL OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))`

// scopesOnHold are the scopes of a sync that are on hold. The empty scope is the whole
// sync.
const scopesOnHold = `scope_on_hold AS MATERIALIZED (
    SELECT scope` + holdsInForce + `
)`

// holdColumns are the columns of a Hold.
const holdColumns = `scope, kind, until, reason, coalesce(least(until, untried_at) <= clock_timestamp(), false) AS probe_due`

// strongestHold is the strongest hold of a whole sync.
const strongestHold = `-- lockstep: hold
-- $1 sync, $2 true: without auth and breaker holds
    SELECT ` + holdColumns + holdsInForce + `
       AND scope = ''
     ORDER BY outbox.hold_rank(kind)
     LIMIT 1`

// strongestHold reads the strongest hold of the whole sync. It returns nil if there is no
// hold any more.
func (s *Store) strongestHold(ctx context.Context, sync string, probe bool) (*Hold, error) {
	holds, err := s.holds(ctx, strongestHold, sync, probe)
	if err != nil || len(holds) == 0 {
		return nil, err
	}
	return &holds[0], nil
}

// ScopeHolds returns the strongest hold of each scope of a sync. It leaves out holds of the
// whole sync.
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

// Hold puts a scope of a sync on hold for d from now. The empty scope is the whole sync. If
// there is a longer hold of the same scope and kind, its end does not change. For an auth
// or breaker hold, d is the time until the next probe. An auth hold may be probed at once
// with a delivery that was not tried yet.
func (s *Store) Hold(ctx context.Context, sync, scope string, kind HoldKind, d time.Duration, reason string) error {
	const statement = `-- lockstep: hold
INSERT INTO outbox.hold AS h (sync, scope, kind, until, untried_at, reason, by)
SELECT name, $6, $2::text, clock_timestamp() + $3::interval, CASE WHEN $2::text = 'auth' THEN clock_timestamp() END, $4, $5
  FROM outbox.sync
 WHERE name = $1
ON CONFLICT ON CONSTRAINT hold_pkey DO UPDATE
   SET until = greatest(h.until, excluded.until), reason = excluded.reason, by = excluded.by,
       since = CASE WHEN h.kind NOT IN ('auth', 'breaker') AND h.until <= clock_timestamp() THEN excluded.since ELSE h.since END -- it had ended
 WHERE h.until IS NOT NULL`
	_, err := s.exec(ctx, statement, sync, kind, d, reason, s.relay, scope)
	return err
}

// Probe is the right to send one delivery in spite of an auth or breaker hold.
type Probe struct {
	Number   int      // number of probes of the hold, with this one; 0: no probe was granted
	With     []string // keys to claim for the probe, the best first; see [Store.Probe]
	Suspects bool     // suspects of the scope are due
}

// Probe asks for the right to send one delivery in spite of an auth or breaker hold of a
// scope. The right exists if the next probe of the hold is due, and one relay gets it. If
// that relay dies, the next probe is due after within. A hold of a scope is probed with
// lanes of that scope, and only while the whole sync is not on hold. A hold of the whole
// sync, whose scope is empty, is probed with any lane whose own scope is not on hold.
//
// The best delivery for a probe is one that was not tried yet. Probe proposes the newest
// and the oldest of these alternately: many deliveries of one kind, which the receiver
// refuses, must not take all probes. Deliveries that were refused come last, and suspects
// are left out. An auth hold is probed earlier if there is a delivery that was not tried
// yet.
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
                          AND (o.kind IN ('operator', 'backfill') AND o.until IS NULL
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
	probePage       = 100 // most lanes and deliveries to read from either end
	probeCandidates = 8   // most keys to propose
)

// ProbeAgain sets when the next probe of the auth and breaker holds of a scope is due: after
// in. It changes nothing if there was another probe since the one with the number probes.
//
// A probe of an auth hold with a delivery that was not tried yet may come earlier. If the
// last probe was of this kind, untried is true: the next one may follow after 100 ms,
// doubled each time, up to 30 s. If not, the next one may follow at once.
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

// Lift ends the auth and breaker holds of a scope, and no others. A relay calls it when a
// probe was accepted. The empty scope is the whole sync.
func (s *Store) Lift(ctx context.Context, sync, scope string) error {
	const statement = `-- lockstep: lift hold
DELETE FROM outbox.hold WHERE sync = $1 AND scope = $2 AND kind IN ('auth', 'breaker')`
	_, err := s.exec(ctx, statement, sync, scope)
	return err
}

// LiftUnused ends the auth and breaker holds of a scope for which no lane waits, because
// there is nothing to probe them with. It reports whether it ended any. If the receiver is
// still down, the next deliveries fail and cause a new hold.
func (s *Store) LiftUnused(ctx context.Context, sync, scope string) (bool, error) {
	const statement = `-- lockstep: lift unused hold
DELETE FROM outbox.hold AS h
 WHERE h.sync = $1 AND h.scope = $2 AND h.scope <> '' AND h.kind IN ('auth', 'breaker')
   AND NOT EXISTS (SELECT FROM outbox.lane AS l WHERE l.sync = $1 AND l.scope = $2 AND l.due_at < 'infinity')`
	lifted, err := s.exec(ctx, statement, sync, scope)
	return lifted > 0, err
}

// EndHolds removes the pauses, throttle and window holds of a sync that have ended. It also
// corrects holds after the database's clock was set back. A throttle or window hold that
// began in the future is removed. An auth or breaker hold may be probed at once if it began
// in the future, or if its next probe is due later than within from now. Within is the
// longest pause between probes that relays ask for. EndHolds does not wait for locks: if
// the sync's row is locked, it does nothing.
func (s *Store) EndHolds(ctx context.Context, sync string, within time.Duration) error {
	const statement = `-- lockstep: end hold
-- $1 sync, $2 longest pause between probes
WITH locked_sync AS MATERIALIZED (
    SELECT name FROM outbox.sync WHERE name = $1 FOR NO KEY UPDATE SKIP LOCKED
), ended_hold AS MATERIALIZED (
    SELECT o.sync, o.scope, o.kind
      FROM locked_sync AS s
      JOIN outbox.hold AS o ON o.sync = s.name
     WHERE o.kind NOT IN ('auth', 'breaker') AND o.until <= clock_timestamp()
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
 WHERE h.sync = o.sync AND h.scope = o.scope AND h.kind = o.kind AND h.kind NOT IN ('auth', 'breaker')`
	_, err := s.exec(ctx, statement, sync, within)
	return err
}

// Window says whether deliveries of a sync may start in the period from From until Until.
type Window struct {
	Open        bool
	From, Until time.Time
	Reason      string // of the hold, if they may not; it names the opening
}

const keepWindow = `-- lockstep: keep window
-- $1 sync, $2 true: deliveries may start, $3 begin and $4 end of the period, $5 reason, $6 relay
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), sync_to_change AS MATERIALIZED (
    SELECT s.name
      FROM clock AS c
      JOIN outbox.sync AS s ON s.name = $1
      LEFT JOIN outbox.hold AS h ON h.sync = s.name AND h.scope = '' AND h.kind = 'window'
     WHERE c.now >= $3 AND c.now < $4
       AND CASE WHEN $2 THEN h.sync IS NOT NULL ELSE (h.until, h.reason) IS DISTINCT FROM ($4, $5) END
), locked_sync AS MATERIALIZED (
    SELECT s.name
      FROM outbox.sync AS s
     WHERE s.name = (SELECT name FROM sync_to_change)
       FOR NO KEY UPDATE SKIP LOCKED
), ended_hold AS (
    DELETE FROM outbox.hold AS h
     USING locked_sync AS s
     WHERE $2 AND h.sync = s.name AND h.scope = '' AND h.kind = 'window'
), new_hold AS (
    INSERT INTO outbox.hold AS h (sync, scope, kind, until, reason, by)
    SELECT name, '', 'window', $4, $5, $6
      FROM locked_sync
     WHERE NOT $2
    ON CONFLICT ON CONSTRAINT hold_pkey DO UPDATE
       SET until = excluded.until, reason = excluded.reason, by = excluded.by,
           since = CASE WHEN h.until <= clock_timestamp() THEN excluded.since ELSE h.since END -- it had ended
)
SELECT now, now >= $3 AND now < $4 AND (SELECT count(*) FROM sync_to_change) = (SELECT count(*) FROM locked_sync)
  FROM clock`

// KeepWindow puts a sync on hold until the end of the period, or ends that hold, as w says.
// Several relays may call it with the same period. It reports true if the hold is now as w
// says. It changes nothing and reports false if the database's clock is not within the
// period, or if the sync's row is locked. It does not wait for that lock. It returns what
// the database's clock showed.
func (s *Store) KeepWindow(ctx context.Context, sync string, w Window) (kept bool, now time.Time, err error) {
	err = s.scan(ctx, []any{&now, &kept}, keepWindow, sync, w.Open, w.From, w.Until, w.Reason, s.relay)
	return kept, now, err
}

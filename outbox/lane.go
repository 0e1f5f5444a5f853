package outbox

import (
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A lane is the queue of one key in one sync: a row of outbox.lane. Only the relay that
// has its claim may send its first delivery.
//
//	          open             settle
//	no lane ────────▶ claimed ────────▶ claimed, with the next delivery
//	                     ▲              no lane: nothing is left
//	                     │              waiting until due_at
//	                     └─── claim ◀──────┘
//
// A relay opens lanes for deliveries whose key has none (openLanes). It claims lanes that
// are due (claimLanes, claimKey, claimSuspect). After each recording it decides what
// happens next with a lane (settleLanes). While a lane is claimed, due_at is the end of
// its lease. When the lease has ended, the lane is due and another relay may claim it.

// crashes is how many claims of the lane l in a row ended although their relay neither
// recorded a result nor released the lane. If a due lane has a claim, that claim counts
// too.
const crashes = `l.crashes + (l.claim IS NOT NULL)::int`

// A lane is a suspect after two crashes: its delivery may kill relays, so it is sent
// alone. The test of l.crashes makes isSuspect use the index of lanes with crashes.
const (
	isSuspect  = `l.crashes > 0 AND ` + crashes + ` >= 2`
	notSuspect = crashes + ` < 2`
)

// isClaimable is whether neither the scope of the lane l nor its whole sync is on hold.
const isClaimable = `l.scope NOT IN (SELECT scope FROM scope_on_hold) AND '' NOT IN (SELECT scope FROM scope_on_hold)`

// dueLanes are the lanes of a scope s that became due at $8 or later. A closed lane stays
// in the index as long as an old transaction is open. The condition on $8 skips such
// entries.
const dueLanes = `
             SELECT l.ctid AS tid, l.due_at
               FROM outbox.lane AS l
              WHERE l.sync = $1 AND l.scope = s.name AND l.due_at >= $8::text::timestamptz AND l.due_at <= now() AND l.due_at < 'infinity'
                AND ` + notSuspect + `
              ORDER BY l.due_at`

// claimableScopes are the scopes of $7 that are not on hold.
const claimableScopes = scopesOnHold + `, claimable_scope AS MATERIALIZED (
    SELECT s.name
      FROM unnest($7::text[]) AS s (name)
     WHERE s.name NOT IN (SELECT scope FROM scope_on_hold)
       AND '' NOT IN (SELECT scope FROM scope_on_hold)
)`

// openLanes reads deliveries that have become ready, and opens lanes for keys without one.
// It opens as many of them claimed as the capacity allows. It leaves out deliveries that
// wait for a backfill: they become ready when the backfill is complete.
//
// It reads deliveries from four sources:
//
//  1. deliveries after the cursor ($12, $13), the oldest first, at most $14
//  2. if there are more of these than it can read, the latest deliveries
//  3. deliveries of transactions that were running at the last poll ($11) and have ended
//     since, at most $18 of each
//  4. keys to check again ($15 to $17), see [Arrivals]
//
// The capacity is $9, less the lanes that claimLanes will claim in this transaction: the
// due lanes, at most $6. $10 keys of the second source come before the first source. The
// cursor stops before the first key for which there is no capacity.
//
// If another transaction has inserted the lane of the same key, the insertion waits for
// it. While it waits, this transaction must have no claims that others wait for. So
// claimLanes, which never waits, runs after openLanes. The setting lockstep.opened tells
// claimLanes how many lanes were opened claimed.
//
// If the first delivery of a key has failed, its lane is opened unclaimed and waits. Many
// failed keys must not use the capacity of new keys. There are two exceptions: a
// transaction has locked that delivery, or the sync supersedes failed deliveries.
//
// A waiting lane becomes due in two cases. A new delivery has a lower event_seq than the
// one that the lane waits for. Or a new delivery may supersede a failed one. If the lane
// of a key is claimed, the key is checked again later.
const openLanes = `-- lockstep: open lanes
-- $1 sync, $2 true: claim in spite of an auth or breaker hold, $3 claim, $4 relay, $5 lease, $6 most due lanes to claim, $7 scopes,
-- $8 earliest due_at of a lane, $9 most lanes to claim, $10 of these for the latest keys, -1: do not read them,
-- $11 snapshot of the last poll, $12 cursor: changed_in, $13 cursor: event_seq, $14 most deliveries to read after the cursor,
-- $15 keys to check again, $16 their claims, $17 their event_seq, $18 most deliveries to read of other sources
WITH ` + claimableScopes + `, found_delivery AS MATERIALIZED (
    SELECT 1 AS source, row_number() OVER (ORDER BY d.changed_in, d.event_seq) AS n, d.*
      FROM (SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid AS claim
              FROM outbox.delivery AS d
             WHERE d.sync = $1 AND (d.changed_in, d.event_seq) > ($12::text::xid8, $13)
             ORDER BY d.changed_in, d.event_seq
             LIMIT CASE WHEN '' IN (SELECT scope FROM scope_on_hold) THEN 1 ELSE $14::bigint END) AS d
    UNION ALL
    SELECT 2, row_number() OVER (ORDER BY d.changed_in DESC, d.event_seq DESC), d.*
      FROM (SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid
              FROM outbox.delivery AS d
             WHERE d.sync = $1 AND d.changed_in >= $12::text::xid8
             ORDER BY d.changed_in DESC, d.event_seq DESC
             LIMIT CASE WHEN $10::bigint < 0 THEN 0 ELSE least(greatest(4 * $10::bigint, 200), $18::bigint) END) AS d
    UNION ALL
    SELECT 3, row_number() OVER (PARTITION BY x.xid), d.*
      FROM pg_snapshot_xip($11::text::pg_snapshot) AS x (xid)
     CROSS JOIN LATERAL (
           SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.changed_in = x.xid
            ORDER BY d.event_seq
            LIMIT $18::bigint) AS d
     WHERE pg_visible_in_snapshot(x.xid, pg_current_snapshot())
    UNION ALL
    SELECT 4, 0, u.key, u.event_seq, NULL, now(), u.claim
      FROM unnest($15::text[], $16::uuid[], $17::bigint[]) AS u (key, claim, event_seq)
), found_key AS MATERIALIZED ( -- each key once, with its lane
    SELECT k.*, l.tid, l.claim AS lane_claim, l.due_at AS lane_due, l.judged
      FROM (SELECT k.key, max(k.source) AS source, bool_or(k.source = 3) AS late, min(k.event_seq) AS event_seq, max(k.claim::text)::uuid AS claim,
                   min(k.n) FILTER (WHERE k.source = 1) AS oldest, min(k.n) FILTER (WHERE k.source = 2) AS latest -- its first position in that source
              FROM found_delivery AS k
             WHERE k.due_at < 'infinity'
             GROUP BY k.key) AS k
      LEFT JOIN LATERAL (
           SELECT l.ctid AS tid, l.claim, l.due_at, l.judged
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key
            OFFSET 0) AS l ON true
), any_failed AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.state = 'failed') AS found
), policy AS MATERIALIZED ( -- read only if a delivery has failed, see settleLanes
    SELECT s.on_failed FROM outbox.sync AS s WHERE s.name = $1 FOR KEY SHARE SKIP LOCKED
), key_without_lane AS MATERIALIZED (
    SELECT k.*, row_number() OVER (PARTITION BY k.waits, k.source > 2 ORDER BY k.oldest) AS by_oldest,
           row_number() OVER (PARTITION BY k.waits, k.source > 2 ORDER BY k.latest) AS by_latest
      FROM (SELECT k.key, k.source, k.oldest, k.latest,
                   (SELECT f.found FROM any_failed AS f) -- a key with a failed first delivery needs no capacity
                   AND coalesce((SELECT d.state = 'failed' AND (d.untouched OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.tid FOR UPDATE SKIP LOCKED))
                                   FROM (SELECT o.ctid AS tid, o.xmax = '0' AS untouched, o.state
                                           FROM outbox.delivery AS o
                                          WHERE o.sync = $1 AND o.key = k.key
                                          ORDER BY o.event_seq
                                          LIMIT 1) AS d), false) -- no transaction is discarding it
                   AND coalesce((SELECT on_failed = 'block' FROM policy), false) AS waits
              FROM found_key AS k
             WHERE k.tid IS NULL
               AND (k.source < 4 OR EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = k.key AND d.due_at < 'infinity' OFFSET 0))) AS k
), due_lane AS MATERIALIZED ( -- claimLanes will claim these
    SELECT count(*) AS n
      FROM (SELECT
              FROM claimable_scope AS s
             CROSS JOIN LATERAL (` + dueLanes + `
                      LIMIT $6::bigint) AS l
             LIMIT $6::bigint) AS l
), capacity AS MATERIALIZED ( -- keys of late transactions come first, then the share of the latest, then the oldest
    SELECT c.n, least(c.late, c.n) AS late, greatest(0, least(c.latest, c.n - c.late, greatest($10::bigint, c.n - c.late - c.old))) AS latest
      FROM (SELECT CASE WHEN '' IN (SELECT scope FROM scope_on_hold) THEN 0 ELSE $9::bigint - (SELECT n FROM due_lane) END AS n,
                   count(*) FILTER (WHERE source > 2) AS late, count(latest) FILTER (WHERE source < 3) AS latest, count(oldest) FILTER (WHERE source < 3) AS old
              FROM key_without_lane
             WHERE NOT waits) AS c
), chosen_key AS MATERIALIZED (
    SELECT m.key, m.source, m.oldest, m.waits,
           NOT m.waits AND CASE WHEN m.source > 2 THEN m.by_oldest <= c.n
                                ELSE m.oldest IS NOT NULL AND m.by_oldest <= c.n - c.late - c.latest OR m.latest IS NOT NULL AND m.by_latest <= c.latest END AS is_claimed
      FROM key_without_lane AS m
     CROSS JOIN capacity AS c
), opened_lane AS (
    INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
    SELECT $1, c.key, CASE WHEN c.is_claimed THEN now() + $5::interval WHEN c.waits THEN 'infinity' ELSE now() END, CASE WHEN c.is_claimed THEN $3::uuid END, CASE WHEN c.is_claimed THEN $4 END
      FROM chosen_key AS c
     WHERE c.is_claimed OR c.waits OR c.source > 2
     ORDER BY c.key
    ON CONFLICT DO NOTHING
    RETURNING key, claim
), lane_to_make_due AS MATERIALIZED ( -- waits without a reason
    SELECT k.key, k.event_seq, l.tid
      FROM found_key AS k
     CROSS JOIN LATERAL (
           SELECT f.state, f.due_at
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = k.key
            ORDER BY f.event_seq
            LIMIT 1) AS f
      LEFT JOIN LATERAL (
           SELECT l.ctid AS tid
             FROM outbox.lane AS l
            WHERE l.ctid = k.tid AND l.claim IS NULL AND l.due_at > now() -- the relay that claims a due lane reads its first delivery
              FOR UPDATE SKIP LOCKED) AS l ON true
     WHERE k.lane_claim IS NULL AND k.lane_due > now()
       AND (k.judged >= k.event_seq
            OR f.state <> 'failed' AND f.due_at < k.lane_due
            OR f.state = 'failed' AND (SELECT s.on_failed = 'supersede' FROM outbox.sync AS s WHERE s.name = $1)
               AND EXISTS (SELECT FROM outbox.delivery AS d
                            WHERE d.sync = $1 AND d.key = k.key AND d.event_seq > k.judged AND d.state <> 'failed' AND d.due_at < 'infinity'))
), lane_made_due AS (
    UPDATE outbox.lane AS l
       SET due_at = now(), judged = least(l.judged, w.event_seq - 1)
      FROM lane_to_make_due AS w
     WHERE l.ctid = w.tid
    RETURNING l.key
), first_without_capacity AS MATERIALIZED ( -- the cursor stops before this key
    SELECT min(c.oldest) AS n FROM chosen_key AS c WHERE c.source < 3 AND NOT c.is_claimed AND NOT c.waits
), key_to_check AS (
    SELECT k.key, k.lane_claim AS claim, k.event_seq
      FROM found_key AS k
     CROSS JOIN first_without_capacity AS w
     WHERE k.lane_claim <> $3::uuid -- if this transaction claimed the lane, the relay that closes it sees the delivery
       AND (k.late OR k.lane_claim = k.claim OR k.oldest < coalesce(w.n, k.oldest + 1)) -- the cursor moves past it now
        OR k.judged >= k.event_seq AND (k.lane_claim IS NOT NULL OR k.lane_due <= now())
    UNION ALL
    SELECT w.key, NULL, w.event_seq FROM lane_to_make_due AS w WHERE w.key NOT IN (SELECT key FROM lane_made_due)
)
SELECT ARRAY(SELECT key FROM opened_lane WHERE claim IS NOT NULL) AS keys,
       pg_current_snapshot()::text AS snapshot,
       (SELECT d.changed_in::text FROM found_delivery AS d WHERE d.source = 1 AND d.n < coalesce(w.n, d.n + 1) ORDER BY d.n DESC LIMIT 1) AS cursor_change,
       (SELECT d.event_seq FROM found_delivery AS d WHERE d.source = 1 AND d.n < coalesce(w.n, d.n + 1) ORDER BY d.n DESC LIMIT 1) AS cursor_seq,
       w.n IS NOT NULL OR (SELECT count(*) FROM found_delivery AS d WHERE d.source = 1) >= CASE WHEN '' IN (SELECT scope FROM scope_on_hold) THEN 1 ELSE $14::bigint END AS is_behind,
       w.n IS NULL AS has_capacity_left,
       (SELECT d.changed_in::text FROM found_delivery AS d WHERE d.source = 3 AND d.n >= $18::bigint ORDER BY d.changed_in LIMIT 1) AS large_transaction,
       c.keys, c.claims, c.event_seqs,
       set_config('lockstep.opened', (SELECT count(*) FROM opened_lane WHERE claim IS NOT NULL)::text, true)
  FROM first_without_capacity AS w
 CROSS JOIN (SELECT array_agg(key) AS keys, array_agg(claim) AS claims, array_agg(event_seq) AS event_seqs FROM key_to_check) AS c`

// claimLanes claims due lanes, those that have been due longest first. It claims at most
// $6, and no more than $9 less the lanes that openLanes has opened claimed in this
// transaction. It skips locked lanes: the next poll finds them.
const claimLanes = `-- lockstep: claim lanes
-- $1 sync, $2 true: claim in spite of an auth or breaker hold, $3 claim, $4 relay, $5 lease, $6 most due lanes to claim, $7 scopes,
-- $8 earliest due_at of a lane, $9 most lanes to claim; the setting lockstep.opened: number of lanes that openLanes has opened claimed
WITH ` + claimableScopes + `, capacity AS MATERIALIZED (
    SELECT least($6::bigint, $9::bigint - current_setting('lockstep.opened')::bigint) AS n
), picked_lane AS MATERIALIZED ( -- reads twice as many, since some may be locked, and locks only those that it claims
    SELECT l.ctid AS tid
      FROM (SELECT l.tid
              FROM claimable_scope AS s
             CROSS JOIN LATERAL (` + dueLanes + `
                      LIMIT (SELECT 2 * n FROM capacity)) AS l
             ORDER BY l.due_at
             LIMIT (SELECT 2 * n FROM capacity)) AS o
      JOIN outbox.lane AS l ON l.ctid = o.tid
     WHERE l.sync = $1 AND l.due_at <= now() AND ` + notSuspect + `
     ORDER BY l.due_at
     LIMIT (SELECT n FROM capacity)
       FOR UPDATE OF l SKIP LOCKED
)` + claimPicked + `
SELECT ARRAY(SELECT key FROM claimed_lane) AS keys,` + claimAnswer + `,
       EXISTS (SELECT FROM claimable_scope AS s
                CROSS JOIN LATERAL (` + dueLanes + `
                      OFFSET (SELECT count(*) FROM picked_lane)
                       LIMIT 1) AS l) AS more_are_due`

// claimKey claims the lane of a key if it is due. If the key has no lane, it opens one.
const claimKey = `-- lockstep: claim the lane of a key
-- $1 sync, $2 true: claim in spite of an auth or breaker hold, $3 claim, $4 relay, $5 lease, $6 key
WITH ` + scopesOnHold + `, picked_lane AS MATERIALIZED (
    SELECT l.ctid AS tid
      FROM outbox.lane AS l
     WHERE l.sync = $1 AND l.key = $6 AND l.due_at <= now() AND ` + notSuspect + `
       AND ` + isClaimable + `
       FOR UPDATE SKIP LOCKED
), opened_lane AS (
    INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
    SELECT $1, $6, now() + $5::interval, $3, $4
     WHERE '' NOT IN (SELECT scope FROM scope_on_hold)
       AND NOT EXISTS (SELECT FROM outbox.lane AS l WHERE l.sync = $1 AND l.key = $6)
       AND EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = $6 AND d.due_at <= now())
    ON CONFLICT DO NOTHING
    RETURNING key
)` + claimPicked + `
SELECT ARRAY(SELECT key FROM claimed_lane UNION ALL SELECT key FROM opened_lane) AS keys,` + claimAnswer

// claimSuspect claims the suspect that has been due longest.
const claimSuspect = `-- lockstep: claim a suspect
-- $1 sync, $2 true: claim in spite of an auth or breaker hold, $3 claim, $4 relay, $5 lease, $6 scope, empty: any
WITH ` + scopesOnHold + `, picked_lane AS MATERIALIZED (
    SELECT l.ctid AS tid
      FROM outbox.lane AS l
     WHERE l.sync = $1 AND l.due_at <= now() AND ` + isSuspect + `
       AND ` + isClaimable + `
       AND ($6 = '' OR l.scope = $6)
     ORDER BY l.due_at
     LIMIT 1
       FOR UPDATE SKIP LOCKED
)` + claimPicked + `
SELECT ARRAY(SELECT key FROM claimed_lane) AS keys,` + claimAnswer

// claimPicked writes the claim. A lost claim stays in lost_claim until its attempt is
// logged, even if later claims are lost too: nothing was sent under the later ones.
const claimPicked = `, claimed_lane AS (
    UPDATE outbox.lane AS l
       SET due_at = now() + $5::interval, claim = $3, claimed_by = $4,
           lost_claim = coalesce(l.lost_claim, l.claim), lost_by = CASE WHEN l.lost_claim IS NULL THEN l.claimed_by ELSE l.lost_by END,
           crashes = ` + crashes + `
      FROM picked_lane AS p
     WHERE l.ctid = p.tid
    RETURNING l.key
)`

// claimAnswer has the other columns of the answer to a claim.
const claimAnswer = `
       EXISTS (SELECT FROM outbox.lane AS l
                WHERE l.sync = $1 AND l.due_at <= now() AND ` + isSuspect + `
                  AND l.scope NOT IN (SELECT scope FROM scope_on_hold)) AS has_suspects,
       EXISTS (SELECT FROM scope_on_hold WHERE scope = '') AS is_on_hold,
       (SELECT array_agg(DISTINCT scope) FROM scope_on_hold WHERE scope <> '') AS scopes_on_hold`

// unlocked is false for a row d that another transaction has locked, for example to
// discard it. The xmax of a row that was never locked is 0, so the statement seldom has to
// try a lock. A discard locks the row first. Then it waits for the transactions that may
// have read the row before, and then it checks whether the row was claimed.
const unlocked = `(d.xmax = '0' OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.ctid FOR UPDATE SKIP LOCKED))`

// settleLanes decides what happens next with each lane:
//
//   - It keeps the claim for its next delivery, if that is due.
//   - It waits until its next delivery is due.
//   - It is closed, if it has no delivery left.
//   - It waits for an operator, if its first delivery has failed. If the sync supersedes
//     failed deliveries, the lane is due while deliveries behind the first were not judged.
//   - It is due again soon, if a transaction has locked the first delivery. A discard that
//     began before the lane was opened does not make it due.
//
// The argument $5 has three kinds of value. Above 0 it is the event_seq of a finished
// delivery: the lane is settled only if that delivery is removed. It is 0 if the delivery
// is retried later or was released. It is -1 if the lane was released before its first
// delivery was read: then the attempt of a lost claim is still to be logged.
const settleLanes = `-- lockstep: settle lanes
-- $1 sync, $2 false, $3 keys, $4 their claims, $5 event_seq of the finished delivery, 0 or -1: none, $6 whether the claim is kept,
-- $7 scope of the lane, null: as it is, $8 ctid of the lane, null: not known
WITH ` + scopesOnHold + `, given_lane AS MATERIALIZED (
    SELECT i.*, l.lane, l.crashes, l.lost_claim, l.lane_scope, l.judged,
           i.stays AND l.crashes < 2 AND NOT EXISTS (SELECT FROM scope_on_hold AS h WHERE h.scope IN ('', l.lane_scope)) AS may_stay
      FROM unnest($3::text[], $4::uuid[], $5::bigint[], $6::boolean[], $7::text[], $8::tid[]) AS i (key, claim, finished_seq, stays, scope, tid)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS lane, l.crashes, l.lost_claim, l.scope AS lane_scope, CASE WHEN i.finished_seq > 0 THEN 0 ELSE l.judged END AS judged
             FROM outbox.lane AS l
            WHERE l.ctid = coalesce(i.tid, (SELECT o.ctid FROM outbox.lane AS o WHERE o.sync = $1 AND o.key = i.key AND i.tid IS NULL))
              AND l.sync = $1 AND l.key = i.key AND l.claim = i.claim
              FOR UPDATE SKIP LOCKED) AS l
), first_delivery AS MATERIALIZED (
    SELECT g.key, g.finished_seq, g.scope, g.lane, g.crashes, g.lane_scope, g.judged, g.may_stay, f.tid, f.state, f.due_at, f.event_seq, f.touched
      FROM given_lane AS g
      LEFT JOIN LATERAL (
           SELECT d.ctid AS tid, d.state, d.due_at, d.event_seq, d.xmax <> '0' AS touched
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.key = g.key
            ORDER BY d.event_seq
            LIMIT 1) AS f ON true
     WHERE f.event_seq IS NULL OR f.event_seq > g.finished_seq
        OR f.event_seq < g.finished_seq AND NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = g.key AND d.event_seq = g.finished_seq OFFSET 0)
), next_delivery AS MATERIALIZED ( -- its lane keeps the claim
    SELECT f.lane AS was, f.crashes, NULL::uuid AS lost_claim, f.lane_scope AS scope, f.tid, false AS is_alone, d.*
      FROM first_delivery AS f
     CROSS JOIN LATERAL (
           SELECT d.*
             FROM outbox.delivery AS d
            WHERE f.may_stay AND f.state <> 'failed' AND f.due_at <= clock_timestamp() AND d.ctid = f.tid AND ` + unlocked + `) AS d
), locked_lane AS MATERIALIZED ( -- an operator is discarding or requeueing its first delivery
    SELECT f.lane
      FROM first_delivery AS f
     WHERE f.touched AND f.lane NOT IN (SELECT was FROM next_delivery)
       AND NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.ctid = f.tid FOR UPDATE SKIP LOCKED)
), closed_lane AS (
    DELETE FROM outbox.lane AS l
     USING first_delivery AS f
     WHERE l.ctid = f.lane AND f.tid IS NULL
), policy AS MATERIALIZED ( -- read only if a delivery has failed; if Store.Apply is changing the row, the lane is due again in a second
    SELECT s.on_failed FROM outbox.sync AS s WHERE s.name = $1 FOR KEY SHARE SKIP LOCKED
), released_lane AS (
    UPDATE outbox.lane AS l
       SET claim = NULL, claimed_by = NULL, judged = CASE WHEN f.lane IN (SELECT lane FROM locked_lane) THEN 0 ELSE f.judged END,
           lost_claim = CASE WHEN f.finished_seq < 0 THEN l.lost_claim END, lost_by = CASE WHEN f.finished_seq < 0 THEN l.lost_by END,
           scope = coalesce(f.scope, l.scope),
           crashes = CASE WHEN f.finished_seq > 0 OR f.state = 'failed' THEN 0 ELSE l.crashes END,
           due_at = CASE WHEN f.lane IN (SELECT lane FROM locked_lane) THEN clock_timestamp() + least(interval '50 milliseconds' * (1 + (SELECT count(*) FROM locked_lane) / 5), interval '5 seconds')
                         WHEN f.state <> 'failed' THEN greatest(f.due_at, clock_timestamp())
                         WHEN (SELECT on_failed FROM policy) IS NULL THEN clock_timestamp() + interval '1 second'
                         WHEN (SELECT on_failed FROM policy) = 'supersede'
                              AND EXISTS (SELECT FROM outbox.delivery AS d
                                           WHERE d.sync = $1 AND d.key = f.key AND d.event_seq > greatest(f.judged, f.event_seq)
                                             AND (d.state = 'failed' OR d.due_at < 'infinity'))
                         THEN clock_timestamp()
                         ELSE 'infinity' END
      FROM first_delivery AS f
     WHERE l.ctid = f.lane AND f.tid IS NOT NULL AND f.lane NOT IN (SELECT was FROM next_delivery)
), kept_lane AS ( -- clears what belonged to the delivery before
    UPDATE outbox.lane AS l
       SET crashes = 0, judged = 0, lost_claim = NULL, lost_by = NULL
      FROM next_delivery AS n
     WHERE l.ctid = n.was AND (l.crashes > 0 OR l.judged > 0 OR l.lost_claim IS NOT NULL)
    RETURNING n.was, l.ctid AS lane
)
SELECT c.key, c.state, ` + claimedColumns + `
  FROM (SELECT n.*, coalesce(k.lane, n.was) AS lane FROM next_delivery AS n LEFT JOIN kept_lane AS k ON k.was = n.was) AS c` + claimedTables

// lanesToSettle are the arguments of settleLanes.
type lanesToSettle struct {
	keys     []string
	claims   []pgtype.UUID
	finished []int64
	stay     []bool
	scopes   []pgtype.Text
	lanes    []pgtype.TID
}

func (l *lanesToSettle) add(key string, claim pgtype.UUID, finished int64, stay bool, scope pgtype.Text, lane pgtype.TID) {
	l.keys = append(l.keys, key)
	l.claims = append(l.claims, claim)
	l.finished = append(l.finished, finished)
	l.stay = append(l.stay, stay)
	l.scopes = append(l.scopes, scope)
	l.lanes = append(l.lanes, lane)
}

// addFinished adds the lane of a delivery that was finished.
func (l *lanesToSettle) addFinished(r *Result, lane pgtype.TID) {
	l.add(r.Delivery.Key, r.Delivery.token, r.Delivery.Position, r.Stay, r.laneScope(), lane)
}

// addUnfinished adds the lane of a delivery that is retried later or was released. The
// recording has given the lane a new claim.
func (l *lanesToSettle) addUnfinished(r *Result, recording pgtype.UUID) {
	finished := int64(0)
	if r.Delivery.Position == 0 {
		finished = -1
	}
	l.add(r.Delivery.Key, recording, finished, false, r.laneScope(), pgtype.TID{})
}

// laneScope is null if the lane keeps its scope.
func (r *Result) laneScope() pgtype.Text {
	if r.Scope == nil {
		return pgtype.Text{}
	}
	return pgtype.Text{String: *r.Scope, Valid: true}
}

// settle adds settleLanes to a batch. It appends to next the deliveries of lanes that
// keep their claim.
func (l *lanesToSettle) settle(batch *pgx.Batch, sync string, next *[]*Delivery) {
	batch.Queue(settleLanes, sync, false, l.keys, l.claims, l.finished, l.stay, l.scopes, l.lanes).Query(func(rows pgx.Rows) error {
		claims := make(map[string]pgtype.UUID, len(l.keys))
		for i, key := range l.keys {
			claims[key] = l.claims[i]
		}
		more, _, _, err := scanClaimed(rows, sync, func(key string) pgtype.UUID { return claims[key] })
		*next = append(*next, more...)
		return err
	})
}

// lanesStillClaimed returns the keys of lanes that still have the given claims.
const lanesStillClaimed = `-- lockstep: lanes still claimed
-- $1 sync, $2 keys, $3 their claims
SELECT coalesce(array_agg(l.key), '{}')
  FROM unnest($2::text[], $3::uuid[]) AS i (key, claim)
  JOIN outbox.lane AS l ON l.sync = $1 AND l.key = i.key AND l.claim = i.claim`

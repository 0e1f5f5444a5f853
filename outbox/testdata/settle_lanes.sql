-- lockstep: settle lanes
-- $1 sync, $2 false, $3 keys, $4 their claims, $5 event_seq of the finished delivery, 0 or -1: none, $6 whether the claim is kept,
-- $7 scope of the lane, null: as it is, $8 ctid of the lane, null: not known
WITH scope_on_hold AS MATERIALIZED (
    SELECT scope
      FROM outbox.hold
     WHERE sync = $1
       AND (kind IN ('auth', 'breaker') OR until IS NULL OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))
), given_lane AS MATERIALIZED (
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
            WHERE f.may_stay AND f.state <> 'failed' AND f.due_at <= clock_timestamp() AND d.ctid = f.tid AND (d.xmax = '0' OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.ctid FOR UPDATE SKIP LOCKED))) AS d
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
SELECT c.key, c.state, c.lane, c.tid, c.is_alone, c.crashes, c.scope, c.event_seq, c.event_id, c.attempts + (c.lost_claim IS NOT NULL)::int, c.total_attempts + (c.lost_claim IS NOT NULL)::int,
       c.charged, c.unclear, c.spent_ms, c.revision, c.error_class, encode(c.body, 'hex'), c.body_sha256, c.mapping_version, c.uncertain OR c.lost_claim IS NOT NULL, c.step,
       e.seq, e.type, e.version, e.payload, e.headers, e.occurred_at, r.external_id, r.etag, r.learned, r.version, r.times_set
  FROM (SELECT n.*, coalesce(k.lane, n.was) AS lane FROM next_delivery AS n LEFT JOIN kept_lane AS k ON k.was = n.was) AS c
  LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
  LEFT JOIN LATERAL (SELECT * FROM outbox.external_ref WHERE sync = c.sync AND key = c.key OFFSET 0) AS r ON true
 ORDER BY c.event_seq;

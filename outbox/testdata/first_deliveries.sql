-- lockstep: first deliveries
-- $1 sync, $2 claim, $3 keys of the claimed lanes
WITH claimed_lane AS MATERIALIZED (
    SELECT l.*, f.tid, f.is_alone, f.state,
           CASE WHEN f.state <> 'failed' AND f.due_at <= clock_timestamp() THEN f.tid END AS to_send -- only this row is locked below
      FROM unnest($3::text[]) AS k (key)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS lane, l.key, l.crashes, l.scope, l.lost_claim, l.lost_by
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key AND l.claim = $2
            OFFSET 0) AS l
      LEFT JOIN LATERAL (
           SELECT (array_agg(d.ctid))[1] AS tid, (array_agg(d.state))[1] AS state, (array_agg(d.due_at))[1] AS due_at, count(*) = 1 AS is_alone
             FROM (SELECT d.ctid, d.state, d.due_at FROM outbox.delivery AS d
                    WHERE d.sync = $1 AND d.key = l.key
                    ORDER BY d.event_seq
                    LIMIT 2) AS d) AS f ON true
), first_delivery AS MATERIALIZED (
    SELECT l.lane, l.tid AS first_tid, l.is_alone, l.key AS lane_key, l.crashes, l.scope, l.lost_claim, l.lost_by, l.state AS first_state, d.*
      FROM claimed_lane AS l
      LEFT JOIN LATERAL (
           SELECT d.*
             FROM outbox.delivery AS d
            WHERE d.ctid = l.to_send AND (d.xmax = '0' OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.ctid FOR UPDATE SKIP LOCKED))
              AND (l.lost_claim IS NULL OR EXISTS (SELECT FROM outbox.lane AS o WHERE o.ctid = l.lane FOR UPDATE SKIP LOCKED))) AS d ON true -- an operator may be discarding a delivery behind it
), counted_attempt AS (
    UPDATE outbox.delivery AS d
       SET attempts = d.attempts + 1, total_attempts = d.total_attempts + 1, uncertain = true
      FROM first_delivery AS f
     WHERE f.lost_claim IS NOT NULL AND d.sync = f.sync AND d.key = f.key AND d.event_seq = f.event_seq
    RETURNING d.*, f.lane, f.lost_claim, f.lost_by, d.ctid AS tid
), logged_attempt AS (
    INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, claim, relay)
    SELECT $1, a.event_id, e.type, a.key, e.version, a.total_attempts, 'unknown', 'unknown',
           'the relay that was sending it did not come back before its lease ended', a.revision, a.event_seq, a.lost_claim, a.lost_by
      FROM counted_attempt AS a
      LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = a.event_id OFFSET 0) AS e ON true
), cleared_lane AS ( -- so the attempt is logged once, even if the answer to this statement is lost
    UPDATE outbox.lane AS l
       SET lost_claim = NULL, lost_by = NULL
      FROM counted_attempt AS a
     WHERE l.ctid = a.lane
    RETURNING a.lane AS was, l.ctid AS lane, a.tid
)
SELECT c.lane_key, c.first_state, c.lane, c.tid, c.is_alone, c.crashes, c.scope, c.event_seq, c.event_id, c.attempts + (c.lost_claim IS NOT NULL)::int, c.total_attempts + (c.lost_claim IS NOT NULL)::int,
       c.charged, c.unclear, c.spent_ms, c.revision, c.error_class, encode(c.body, 'hex'), c.body_sha256, c.mapping_version, c.uncertain OR c.lost_claim IS NOT NULL, c.step,
       e.seq, e.type, e.version, e.payload, e.headers, e.occurred_at, r.external_id, r.etag, r.learned, r.version, r.times_set
  FROM (SELECT f.lane_key, f.first_state, coalesce(l.lane, f.lane) AS lane, coalesce(l.tid, f.first_tid) AS tid, f.is_alone, f.crashes, f.scope, f.lost_claim,
               f.sync, f.key, f.event_seq, f.event_id, f.attempts, f.total_attempts, f.charged, f.unclear, f.spent_ms, f.revision, f.error_class, f.body, f.body_sha256, f.mapping_version, f.uncertain, f.step
          FROM first_delivery AS f
          LEFT JOIN cleared_lane AS l ON l.was = f.lane) AS c
  LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
  LEFT JOIN LATERAL (SELECT * FROM outbox.external_ref WHERE sync = c.sync AND key = c.key OFFSET 0) AS r ON true
 ORDER BY c.event_seq;

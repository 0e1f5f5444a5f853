-- lockstep: first deliveries
WITH mine AS MATERIALIZED (
    SELECT l.*, f.tid, f.alone, f.state,
           CASE WHEN f.state <> 'failed' AND f.due_at <= clock_timestamp() THEN f.tid END AS sends -- only what is to be sent is locked below
      FROM unnest($3::text[]) AS k (key)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS lane, l.key, l.crashes, l.scope, l.lost_claim, l.lost_by
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key AND l.claim = $2
            OFFSET 0) AS l
      LEFT JOIN LATERAL (
           SELECT (array_agg(d.ctid))[1] AS tid, (array_agg(d.state))[1] AS state, (array_agg(d.due_at))[1] AS due_at, count(*) = 1 AS alone
             FROM (SELECT d.ctid, d.state, d.due_at FROM outbox.delivery AS d
                    WHERE d.sync = $1 AND d.key = l.key
                    ORDER BY d.event_seq
                    LIMIT 2) AS d) AS f ON true
), first AS MATERIALIZED (
    SELECT m.lane, m.tid AS was, m.alone, m.key AS of_key, m.crashes, m.scope, m.lost_claim, m.lost_by, m.state AS stands, d.*
      FROM mine AS m
      LEFT JOIN LATERAL (
           SELECT d.*
             FROM outbox.delivery AS d
            WHERE d.ctid = m.sends AND (d.xmax = '0' OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.ctid FOR UPDATE SKIP LOCKED))
              AND (m.lost_claim IS NULL OR EXISTS (SELECT FROM outbox.lane AS o WHERE o.ctid = m.lane FOR UPDATE SKIP LOCKED))) AS d ON true -- somebody may be discarding what is behind it
), counted AS (
    UPDATE outbox.delivery AS d
       SET attempts = d.attempts + 1, total_attempts = d.total_attempts + 1
      FROM first AS f
     WHERE f.lost_claim IS NOT NULL AND d.sync = f.sync AND d.key = f.key AND d.event_seq = f.event_seq
    RETURNING d.*, f.lane, f.lost_claim, f.lost_by, d.ctid AS tid
), logged AS (
    INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, claim, relay)
    SELECT $1, c.event_id, e.type, c.key, e.version, c.total_attempts, 'unknown', 'unknown',
           'the relay that was sending it did not come back before its lease ended', c.revision, c.event_seq, c.lost_claim, c.lost_by
      FROM counted AS c
      LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
), told AS ( -- not again, should the answer of this statement be lost
    UPDATE outbox.lane AS l
       SET lost_claim = NULL, lost_by = NULL
      FROM counted AS c
     WHERE l.ctid = c.lane
    RETURNING c.lane AS was, l.ctid AS lane, c.tid
)
SELECT c.of_key, c.stands, c.lane, c.tid, c.alone, c.crashes, c.scope, c.event_seq, c.event_id, c.attempts + (c.lost_claim IS NOT NULL)::int, c.total_attempts + (c.lost_claim IS NOT NULL)::int,
       c.charged, c.spent_ms, c.revision, c.error_class, c.body, c.body_sha256, c.mapping_version,
       e.seq, e.type, e.version, e.payload, e.headers, e.occurred_at, r.external_id, r.etag, r.version, r.event_seq
  FROM (SELECT f.of_key, f.stands, coalesce(t.lane, f.lane) AS lane, coalesce(t.tid, f.was) AS tid, f.alone, f.crashes, f.scope, f.lost_claim,
               f.sync, f.key, f.event_seq, f.event_id, f.attempts, f.total_attempts, f.charged, f.spent_ms, f.revision, f.error_class, f.body, f.body_sha256, f.mapping_version
          FROM first AS f
          LEFT JOIN told AS t ON t.was = f.lane) AS c
  LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
  LEFT JOIN LATERAL (SELECT * FROM outbox.external_ref WHERE sync = c.sync AND key = c.key OFFSET 0) AS r ON true
 ORDER BY c.event_seq;

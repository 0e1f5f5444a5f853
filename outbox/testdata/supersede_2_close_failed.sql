-- lockstep: supersede
WITH judged AS MATERIALIZED (
    SELECT j.key, j.event_seq, j.seq, l.lane, d.tid
      FROM unnest($3::text[], $4::bigint[], $5::bigint[]) AS j (key, event_seq, seq)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS lane
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = j.key AND l.claim = $6
              FOR UPDATE SKIP LOCKED) AS l
      LEFT JOIN LATERAL (
           SELECT d.ctid AS tid
             FROM outbox.delivery AS d
            WHERE j.seq > 0 AND d.sync = $1 AND d.key = j.key AND d.event_seq = j.event_seq
              FOR KEY SHARE SKIP LOCKED) AS d ON true
), newer AS MATERIALIZED (
    SELECT j.key, max(j.seq) AS seq FROM judged AS j WHERE j.tid IS NOT NULL GROUP BY j.key
), old AS MATERIALIZED (
    SELECT n.key, u.tid
      FROM newer AS n
      JOIN outbox.sync AS s ON s.name = $1 AND s.on_failed = 'supersede'
     CROSS JOIN LATERAL (
           SELECT f.ctid AS tid
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = n.key AND f.state = 'failed'
              AND coalesce((SELECT e.seq FROM outbox.event AS e WHERE e.id = f.event_id), f.event_seq) < n.seq) AS f
      LEFT JOIN LATERAL (
           SELECT o.ctid AS tid FROM outbox.delivery AS o WHERE o.ctid = f.tid FOR UPDATE SKIP LOCKED) AS u ON true
), noted AS (
    UPDATE outbox.lane AS l
       SET judged = j.last
      FROM (SELECT lane, key, max(event_seq) AS last FROM judged GROUP BY lane, key HAVING bool_and(seq = 0 OR tid IS NOT NULL)) AS j
     WHERE l.ctid = j.lane AND j.key NOT IN (SELECT o.key FROM old AS o WHERE o.tid IS NULL)
), gone AS (
    DELETE FROM outbox.delivery AS d
     USING old AS o
     WHERE d.ctid = o.tid
    RETURNING d.*
)
INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, relay, reason)
SELECT g.sync, g.event_id, e.type, g.key, e.version, g.total_attempts, 'superseded', g.error_class, g.error, g.revision, g.event_seq, $2,
       'a newer event of its key exists'
  FROM gone AS g
  LEFT JOIN outbox.event AS e ON e.id = g.event_id;

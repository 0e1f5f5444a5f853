-- lockstep: supersede
-- $1 sync, $2 relay, $3 keys, $4 event_seq of their judged deliveries, $5 seq of their events, 0: the sync does not want it, $6 claim
WITH judged_delivery AS MATERIALIZED (
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
), newest_event AS MATERIALIZED (
    SELECT j.key, max(j.seq) AS seq FROM judged_delivery AS j WHERE j.tid IS NOT NULL GROUP BY j.key
), failed_delivery AS MATERIALIZED ( -- tid is null if the row is locked
    SELECT n.key, u.tid
      FROM newest_event AS n
      JOIN outbox.sync AS s ON s.name = $1 AND s.on_failed = 'supersede'
     CROSS JOIN LATERAL (
           SELECT f.ctid AS tid
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = n.key AND f.state = 'failed'
              AND coalesce((SELECT e.seq FROM outbox.event AS e WHERE e.id = f.event_id), f.event_seq) < n.seq) AS f
      LEFT JOIN LATERAL (
           SELECT o.ctid AS tid FROM outbox.delivery AS o WHERE o.ctid = f.tid FOR UPDATE SKIP LOCKED) AS u ON true
), judged_lane AS (
    UPDATE outbox.lane AS l
       SET judged = j.last
      FROM (SELECT lane, key, max(event_seq) AS last FROM judged_delivery GROUP BY lane, key HAVING bool_and(seq = 0 OR tid IS NOT NULL)) AS j
     WHERE l.ctid = j.lane AND j.key NOT IN (SELECT f.key FROM failed_delivery AS f WHERE f.tid IS NULL)
), removed AS (
    DELETE FROM outbox.delivery AS d
     USING failed_delivery AS f
     WHERE d.ctid = f.tid
    RETURNING d.*
)
INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, relay, reason)
SELECT r.sync, r.event_id, e.type, r.key, e.version, r.total_attempts, 'superseded', r.error_class, r.error, r.revision, r.event_seq, $2,
       'a newer event of its key exists'
  FROM removed AS r
  LEFT JOIN outbox.event AS e ON e.id = r.event_id;

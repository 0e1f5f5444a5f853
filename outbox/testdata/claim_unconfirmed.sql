-- lockstep: claim unconfirmed
-- $1 sync, $2 most events
WITH due AS MATERIALIZED (
    SELECT u.ctid AS tid, u.key, u.event_id, u.event_seq, u.asked
      FROM outbox.unconfirmed AS u
     WHERE u.sync = $1 AND u.ask_at <= clock_timestamp()
     ORDER BY u.ask_at
     LIMIT $2
       FOR UPDATE SKIP LOCKED
), judged AS MATERIALIZED (
    SELECT d.*, e.id IS NULL OR EXISTS (
               SELECT FROM outbox.delivery_log AS l
                WHERE l.key = d.key AND l.sync = $1 AND l.event_seq > d.event_seq AND l.outcome IN ('delivered', 'duplicate')
               OFFSET 0) AS is_settled
      FROM due AS d
      LEFT JOIN LATERAL (SELECT o.id FROM outbox.event AS o WHERE o.id = d.event_id OFFSET 0) AS e ON true
), settled AS (
    DELETE FROM outbox.unconfirmed AS u USING judged AS j WHERE u.ctid = j.tid AND j.is_settled
), asked AS (
    UPDATE outbox.unconfirmed AS u
       SET asked = u.asked + 1, ask_at = clock_timestamp() + least(interval '10 seconds' * power(2, least(u.asked + 1, 20)), interval '1 day')
      FROM judged AS j
     WHERE u.ctid = j.tid AND NOT j.is_settled
    RETURNING u.sync, u.key, u.event_id, u.event_seq
)
SELECT a.key, a.event_seq, e.id::text, e.seq, e.type, e.version, e.payload, e.headers, e.occurred_at,
       r.external_id, r.etag, r.learned, r.version, r.times_set
  FROM asked AS a
  JOIN LATERAL (SELECT * FROM outbox.event WHERE id = a.event_id OFFSET 0) AS e ON true
  LEFT JOIN LATERAL (SELECT * FROM outbox.external_ref WHERE sync = a.sync AND key = a.key OFFSET 0) AS r ON true
 ORDER BY a.key;

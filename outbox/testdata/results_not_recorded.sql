-- lockstep: results not recorded
-- $1 sync, of each result $2 key, $3 event_seq, $4 claim, $5 event_id
SELECT i.n,
       EXISTS (SELECT FROM outbox.delivery_log AS l
                WHERE l.event_id = i.event_id AND l.claim = i.claim AND l.event_seq = i.event_seq -- a replay may be sent under the same claim
                  -- when a claim is lost, another relay logs an unknown without a duration
                  AND (l.outcome NOT IN ('unknown', 'lease_lost', 'read') OR l.outcome = 'unknown' AND l.took_ms IS NOT NULL)) AS recorded,
       (SELECT l.ctid FROM outbox.lane AS l
         WHERE l.sync = $1 AND l.key = i.key AND l.claim = i.claim) AS lane,
       (SELECT d.ctid FROM outbox.delivery AS d
         WHERE d.sync = $1 AND d.key = i.key AND d.event_seq = i.event_seq) AS tid
  FROM unnest($2::text[], $3::bigint[], $4::uuid[], $5::uuid[]) WITH ORDINALITY AS i (key, event_seq, claim, event_id, n);

-- lockstep: record reads
-- $1 sync, $2 relay, of each result $3 key, $4 event_seq, $5 claim, $6 event_type, $7 version, $8 code, $9 class, $10 error, $11 says, $12 took_ms
INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, outcome, code, error_class, error, revision, event_seq, took_ms, claim, relay, reason)
SELECT $1, d.event_id, i.event_type, i.key, i.version, 'read', i.code, i.class, i.error, d.revision, i.event_seq, i.took_ms, i.claim, $2, i.says
  FROM unnest($3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::bigint[], $8::text[], $9::text[], $10::text[], $11::text[], $12::bigint[]) WITH ORDINALITY AS i (key, event_seq, claim, event_type, version, code, class, error, says, took_ms, n)
 CROSS JOIN LATERAL (
       SELECT d.event_id, d.revision
         FROM outbox.lane AS l
         JOIN outbox.delivery AS d ON d.sync = l.sync AND d.key = l.key
        WHERE l.sync = $1 AND l.key = i.key AND l.claim = i.claim AND d.event_seq = i.event_seq
        OFFSET 0) AS d
 WHERE NOT EXISTS (SELECT FROM outbox.delivery_log AS o
                    WHERE o.event_id = d.event_id AND o.claim = i.claim AND o.event_seq = i.event_seq AND o.outcome = 'read');

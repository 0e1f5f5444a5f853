-- lockstep: lease lost
-- $1 sync, $2 relay, of each result $3 key, $4 event_seq, $5 claim, $6 outcome, $7 attempt, $8 revision, $9 sha256, $10 event_type, $11 version, $12 code, $13 answered_ms, $14 took_ms, $15 mapping_version, $16 event_id, $17 class, $18 error
WITH result AS MATERIALIZED (
    SELECT * FROM unnest($3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::boolean[], $8::bigint[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::bigint[], $14::bigint[], $15::text[], $16::uuid[], $17::text[], $18::text[]) WITH ORDINALITY AS i (key, event_seq, claim, outcome, attempt, revision, sha256, event_type, version, code, answered_ms, took_ms, mapping_version, event_id, class, error, n)
), crash_undone AS (
    UPDATE outbox.lane AS l
       SET crashes = greatest(l.crashes - 1, 0)
      FROM (SELECT o.tid
              FROM result AS i
             CROSS JOIN LATERAL (
                   SELECT o.ctid AS tid
                     FROM outbox.lane AS o
                    WHERE o.sync = $1 AND o.key = i.key AND o.crashes > 0
                      FOR UPDATE SKIP LOCKED) AS o) AS f
     WHERE l.ctid = f.tid
)
INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, outcome, code, error_class, error,
                                 request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, reason)
SELECT clock_timestamp() - i.answered_ms * interval '1 millisecond', $1, i.event_id, i.event_type, i.key, i.version,
       'lease_lost', i.code, i.class, i.error, i.sha256, i.mapping_version, i.revision, i.event_seq, i.took_ms, known.claim, $2,
       'the answer came after the lease: ' || i.outcome
       || CASE WHEN known.claim IS NULL THEN format('; this database does not know the claim %s', i.claim) ELSE '' END
  FROM result AS i
  LEFT JOIN LATERAL (
       SELECT l.claim FROM outbox.delivery_log AS l
        WHERE l.event_id = i.event_id AND l.sync = $1 AND l.claim = i.claim
        LIMIT 1) AS known ON true;

-- lockstep: record finished
-- $1 sync, $2 relay, of each result $3 key, $4 event_seq, $5 claim, $6 outcome, $7 attempt, $8 revision, $9 sha256, $10 event_type, $11 version, $12 code, $13 answered_ms, $14 took_ms, $15 mapping_version, $16 has_ref, $17 external_id, $18 etag, $19 times_set, $20 learned, $21 lane, $22 tid, $23 reason, $24 is_alone
WITH result AS MATERIALIZED (
    SELECT i.*, d.event_id, d.total_attempts,
           i.is_alone AND l.untouched AND NOT EXISTS (SELECT FROM outbox.delivery AS o WHERE o.sync = $1 AND o.key = i.key AND o.event_seq <> i.event_seq OFFSET 0) AS is_last
      FROM unnest($3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::boolean[], $8::bigint[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::bigint[], $14::bigint[], $15::text[], $16::boolean[], $17::text[], $18::text[], $19::int[], $20::text[], $21::tid[], $22::tid[], $23::text[], $24::boolean[]) WITH ORDINALITY AS i (key, event_seq, claim, outcome, attempt, revision, sha256, event_type, version, code, answered_ms, took_ms, mapping_version, has_ref, external_id, etag, times_set, learned, lane, tid, reason, is_alone, n)
     CROSS JOIN LATERAL (
           SELECT d.event_id, d.total_attempts
             FROM outbox.delivery AS d
            WHERE d.ctid = i.tid AND d.sync = $1 AND d.key = i.key AND d.event_seq = i.event_seq
              AND (d.xmax = '0' OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.ctid FOR UPDATE SKIP LOCKED))
            OFFSET 0) AS d
     CROSS JOIN LATERAL (
           SELECT l.xmax = '0' AS untouched
             FROM outbox.lane AS l
            WHERE l.ctid = i.lane AND l.sync = $1 AND l.key = i.key AND l.claim = i.claim
            OFFSET 0) AS l
), closed_lane AS (
    DELETE FROM outbox.lane AS l
     USING result AS i
     WHERE i.is_last AND l.ctid = i.lane AND l.claim = i.claim
    RETURNING i.*
), locked_lane AS MATERIALIZED (
    SELECT i.*
      FROM result AS i
     CROSS JOIN LATERAL (
           SELECT FROM outbox.lane AS l
            WHERE NOT i.is_last AND l.ctid = i.lane AND l.claim = i.claim
              FOR UPDATE SKIP LOCKED) AS l
), removed AS (
    DELETE FROM outbox.delivery AS d
     USING (SELECT * FROM closed_lane UNION ALL SELECT * FROM locked_lane) AS i
     WHERE d.ctid = i.tid
    RETURNING i.*
), logged AS (
    INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, external_id,
                                     request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, reason)
    SELECT clock_timestamp() - r.answered_ms * interval '1 millisecond', $1, r.event_id, r.event_type, r.key, r.version,
           CASE WHEN r.attempt THEN r.total_attempts + 1 END, r.outcome, r.code, r.external_id,
           r.sha256, r.mapping_version, r.revision, r.event_seq, r.took_ms, r.claim, $2, r.reason
      FROM removed AS r
), unconfirmed AS (
    INSERT INTO outbox.unconfirmed AS old (sync, key, event_id, event_seq)
    SELECT $1, r.key, r.event_id, r.event_seq
      FROM removed AS r
     WHERE r.outcome = 'accepted'
     ORDER BY r.key COLLATE "C"
    ON CONFLICT (sync, key) DO UPDATE
       SET event_id = excluded.event_id, event_seq = excluded.event_seq, accepted_at = excluded.accepted_at, ask_at = excluded.ask_at, asked = 0
     WHERE excluded.event_seq >= old.event_seq
)
SELECT n FROM removed;

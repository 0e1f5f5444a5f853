-- lockstep: record unfinished
-- $1 sync, $2 relay, $3 claim of this recording, of each result $4 key, $5 event_seq, $6 claim, $7 outcome, $8 attempt, $9 revision, $10 sha256, $11 event_type, $12 version, $13 code, $14 answered_ms, $15 took_ms, $16 mapping_version, $17 has_ref, $18 external_id, $19 etag, $20 times_set, $21 learned, $22 class, $23 error, $24 reason, $25 failed, $26 delay_ms, $27 charge, $28 unclear, $29 spend_ms, $30 body
WITH result AS MATERIALIZED (
    SELECT i.*, l.lane, d.tid, d.event_id, d.total_attempts
      FROM unnest($4::text[], $5::bigint[], $6::uuid[], $7::text[], $8::boolean[], $9::bigint[], $10::text[], $11::text[], $12::bigint[], $13::text[], $14::bigint[], $15::bigint[], $16::text[], $17::boolean[], $18::text[], $19::text[], $20::int[], $21::text[], $22::text[], $23::text[], $24::text[], $25::boolean[], $26::bigint[], $27::boolean[], $28::boolean[], $29::bigint[], $30::bytea[]) WITH ORDINALITY AS i (key, event_seq, claim, outcome, attempt, revision, sha256, event_type, version, code, answered_ms, took_ms, mapping_version, has_ref, external_id, etag, times_set, learned, class, error, reason, failed, delay_ms, charge, unclear, spend_ms, body, n)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS lane
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = i.key AND l.claim = i.claim
              FOR UPDATE SKIP LOCKED) AS l
      LEFT JOIN LATERAL (
           SELECT d.ctid AS tid, d.event_id, d.total_attempts
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.key = i.key AND d.event_seq = i.event_seq
              FOR UPDATE SKIP LOCKED) AS d ON true
     WHERE d.tid IS NOT NULL OR i.outcome = ''
), reclaimed_lane AS (
    UPDATE outbox.lane AS l SET claim = $3 FROM result AS r WHERE l.ctid = r.lane
), changed AS (
    UPDATE outbox.delivery AS d
       SET state = CASE WHEN r.failed THEN 'failed' WHEN r.outcome = 'step' THEN 'pending' WHEN r.attempt OR d.attempts > 0 THEN 'retry' ELSE 'pending' END,
           due_at = CASE WHEN r.failed THEN 'infinity' ELSE clock_timestamp() + r.delay_ms * interval '1 millisecond' END,
           attempts = d.attempts + r.attempt::int, total_attempts = d.total_attempts + r.attempt::int,
           charged = d.charged + r.charge::int, unclear = d.unclear + r.unclear::int, spent_ms = d.spent_ms + r.spend_ms,
           error_class = r.class, error = r.error,
           uncertain = r.outcome = 'unknown' OR d.uncertain AND r.outcome <> 'step' AND NOT (r.outcome = 'read' AND r.class IS NULL),
           step = d.step + (r.outcome = 'step')::int,
           body = CASE WHEN r.outcome <> 'step' THEN coalesce(r.body, d.body) END,
           body_sha256 = CASE WHEN r.outcome <> 'step' THEN coalesce(encode(sha256(r.body), 'hex'), d.body_sha256) END,
           -- These two belong to the body that was sent last, which the next attempt may send again.
           mapping_version = CASE WHEN r.outcome = 'step' THEN NULL WHEN r.body IS NULL AND d.body_sha256 IS NOT NULL THEN d.mapping_version ELSE coalesce(r.mapping_version, d.mapping_version) END,
           revision = CASE WHEN r.body IS NULL THEN d.revision ELSE r.revision END
      FROM result AS r
     WHERE d.ctid = r.tid AND r.outcome <> ''
), logged AS (
    INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, error_class, error,
                                     external_id, request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, reason)
    SELECT clock_timestamp() - r.answered_ms * interval '1 millisecond', $1, r.event_id, r.event_type, r.key, r.version,
           CASE WHEN r.attempt THEN r.total_attempts + 1 END, r.outcome, r.code, r.class, r.error,
           CASE WHEN r.outcome = 'step' THEN r.external_id END, r.sha256, r.mapping_version, r.revision, r.event_seq, r.took_ms, r.claim, $2, r.reason
      FROM result AS r
     WHERE r.outcome NOT IN ('', 'read')
), referenced AS (
    -- The relay has read the receiver's copy, or knows that there is none, or has done a step. The version of the copy is not known.
    INSERT INTO outbox.external_ref AS old (sync, key, external_id, etag, learned, event_seq, times_set)
    SELECT $1, r.key, r.external_id, r.etag, coalesce(r.learned, '{}')::jsonb, 0, r.times_set
      FROM result AS r
     WHERE r.has_ref AND r.outcome <> ''
     ORDER BY r.key COLLATE "C"
    ON CONFLICT (sync, key) DO UPDATE
       SET external_id = excluded.external_id, etag = excluded.etag, learned = excluded.learned, updated_at = clock_timestamp(),
           event_seq = 0 -- the next answer counts, also that to an earlier delivery
     WHERE excluded.times_set = old.times_set
)
SELECT n FROM result;

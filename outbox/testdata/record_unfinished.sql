-- lockstep: record unfinished
WITH held AS MATERIALIZED (
    SELECT i.*, l.lane, d.tid, d.event_id, d.total_attempts
      FROM unnest($4::text[], $5::bigint[], $6::uuid[], $7::text[], $8::boolean[], $9::bigint[], $10::text[], $11::text[], $12::bigint[], $13::text[], $14::bigint[], $15::bigint[], $16::text[], $17::boolean[], $18::text[], $19::text[], $20::bigint[], $21::text[], $22::text[], $23::boolean[], $24::bigint[], $25::boolean[], $26::bigint[], $27::bytea[]) WITH ORDINALITY AS i (key, event_seq, claim, outcome, attempt, revision, sha256, event_type, version, code, answered_ms, took_ms, mapping_version, has_ref, external_id, etag, seq, class, error, failed, delay_ms, charge, spend_ms, body, n)
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
), released AS (
    UPDATE outbox.lane AS l SET claim = $3 FROM held AS h WHERE l.ctid = h.lane
), changed AS (
    UPDATE outbox.delivery AS d
       SET state = CASE WHEN h.failed THEN 'failed' WHEN h.attempt OR d.attempts > 0 THEN 'retry' ELSE 'pending' END,
           due_at = CASE WHEN h.failed THEN 'infinity' ELSE clock_timestamp() + h.delay_ms * interval '1 millisecond' END,
           attempts = d.attempts + h.attempt::int, total_attempts = d.total_attempts + h.attempt::int,
           charged = d.charged + h.charge::int, spent_ms = d.spent_ms + h.spend_ms,
           error_class = h.class, error = h.error,
           body = coalesce(h.body, d.body),
           body_sha256 = coalesce(encode(sha256(h.body), 'hex'), d.body_sha256),
           mapping_version = coalesce(h.mapping_version, d.mapping_version),
           revision = h.revision
      FROM held AS h
     WHERE d.ctid = h.tid AND h.outcome <> ''
), logged AS (
    INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, error_class, error,
                                     request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay)
    SELECT clock_timestamp() - h.answered_ms * interval '1 millisecond', $1, h.event_id, h.event_type, h.key, h.version,
           CASE WHEN h.attempt THEN h.total_attempts + 1 END, h.outcome, h.code, h.class, h.error,
           h.sha256, h.mapping_version, h.revision, h.event_seq, h.took_ms, h.claim, $2
      FROM held AS h
     WHERE h.outcome <> ''
), referenced AS (
    -- Read back after a conflict: how to address the receiver's copy, of which the version is not known.
    INSERT INTO outbox.external_ref AS r (sync, key, external_id, etag, event_seq)
    SELECT $1, h.key, h.external_id, h.etag, 0
      FROM held AS h
     WHERE h.has_ref AND h.outcome <> ''
    ON CONFLICT (sync, key) DO UPDATE
       SET external_id = excluded.external_id, etag = excluded.etag, updated_at = clock_timestamp()
)
SELECT n FROM held;

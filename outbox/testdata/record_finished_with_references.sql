-- lockstep: record finished
WITH input AS MATERIALIZED (
    SELECT i.*, d.event_id, d.total_attempts,
           i.alone AND l.untouched AND NOT EXISTS (SELECT FROM outbox.delivery AS o WHERE o.sync = $1 AND o.key = i.key AND o.event_seq <> i.event_seq OFFSET 0) AS last
      FROM unnest($3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::boolean[], $8::bigint[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::bigint[], $14::bigint[], $15::text[], $16::boolean[], $17::text[], $18::text[], $19::bigint[], $20::tid[], $21::tid[], $22::boolean[]) WITH ORDINALITY AS i (key, event_seq, claim, outcome, attempt, revision, sha256, event_type, version, code, answered_ms, took_ms, mapping_version, has_ref, external_id, etag, seq, lane, tid, alone, n)
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
), closed AS (
    DELETE FROM outbox.lane AS l
     USING input AS i
     WHERE i.last AND l.ctid = i.lane AND l.claim = i.claim
    RETURNING i.*
), held AS MATERIALIZED (
    SELECT i.*
      FROM input AS i
     CROSS JOIN LATERAL (
           SELECT FROM outbox.lane AS l
            WHERE NOT i.last AND l.ctid = i.lane AND l.claim = i.claim
              FOR UPDATE SKIP LOCKED) AS l
), removed AS (
    DELETE FROM outbox.delivery AS d
     USING (SELECT * FROM closed UNION ALL SELECT * FROM held) AS h
     WHERE d.ctid = h.tid
    RETURNING h.*
), logged AS (
    INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, external_id,
                                     request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay)
    SELECT clock_timestamp() - h.answered_ms * interval '1 millisecond', $1, h.event_id, h.event_type, h.key, h.version,
           CASE WHEN h.attempt THEN h.total_attempts + 1 END, h.outcome, h.code, h.external_id,
           h.sha256, h.mapping_version, h.revision, h.event_seq, h.took_ms, h.claim, $2
      FROM removed AS h
), referenced AS (
    INSERT INTO outbox.external_ref AS r (sync, key, external_id, etag, version, request_sha256, event_seq)
    SELECT $1, h.key, h.external_id, h.etag, h.version, h.sha256, h.seq
      FROM removed AS h
     WHERE h.has_ref
    ON CONFLICT (sync, key) DO UPDATE
       SET external_id = excluded.external_id, etag = excluded.etag, version = excluded.version,
           request_sha256 = excluded.request_sha256, updated_at = clock_timestamp(), event_seq = excluded.event_seq
     WHERE CASE WHEN r.version IS NOT NULL AND excluded.version IS NOT NULL
                THEN excluded.version >= r.version ELSE excluded.event_seq >= r.event_seq END
)
SELECT n FROM removed;

-- lockstep: open lanes
-- $1 sync, $2 true: claim in spite of an auth or breaker hold, $3 claim, $4 relay, $5 lease, $6 most due lanes to claim, $7 scopes,
-- $8 earliest due_at of a lane, $9 most lanes to claim, $10 of these for the latest keys, -1: do not read them,
-- $11 snapshot of the last poll, $12 cursor: changed_in, $13 cursor: event_seq, $14 most deliveries to read after the cursor,
-- $15 keys to check again, $16 their claims, $17 their event_seq, $18 most deliveries to read of other sources
WITH scope_on_hold AS MATERIALIZED (
    SELECT scope
      FROM outbox.hold
     WHERE sync = $1
       AND (kind IN ('auth', 'breaker') OR until IS NULL OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))
), claimable_scope AS MATERIALIZED (
    SELECT s.name
      FROM unnest($7::text[]) AS s (name)
     WHERE s.name NOT IN (SELECT scope FROM scope_on_hold)
       AND '' NOT IN (SELECT scope FROM scope_on_hold)
), found_delivery AS MATERIALIZED (
    SELECT 1 AS source, row_number() OVER (ORDER BY d.changed_in, d.event_seq) AS n, d.*
      FROM (SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid AS claim
              FROM outbox.delivery AS d
             WHERE d.sync = $1 AND (d.changed_in, d.event_seq) > ($12::text::xid8, $13)
             ORDER BY d.changed_in, d.event_seq
             LIMIT CASE WHEN '' IN (SELECT scope FROM scope_on_hold) THEN 1 ELSE $14::bigint END) AS d
    UNION ALL
    SELECT 2, row_number() OVER (ORDER BY d.changed_in DESC, d.event_seq DESC), d.*
      FROM (SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid
              FROM outbox.delivery AS d
             WHERE d.sync = $1 AND d.changed_in >= $12::text::xid8
             ORDER BY d.changed_in DESC, d.event_seq DESC
             LIMIT CASE WHEN $10::bigint < 0 THEN 0 ELSE least(greatest(4 * $10::bigint, 200), $18::bigint) END) AS d
    UNION ALL
    SELECT 3, row_number() OVER (PARTITION BY x.xid), d.*
      FROM pg_snapshot_xip($11::text::pg_snapshot) AS x (xid)
     CROSS JOIN LATERAL (
           SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.changed_in = x.xid
            ORDER BY d.event_seq
            LIMIT $18::bigint) AS d
     WHERE pg_visible_in_snapshot(x.xid, pg_current_snapshot())
    UNION ALL
    SELECT 4, 0, u.key, u.event_seq, NULL, now(), u.claim
      FROM unnest($15::text[], $16::uuid[], $17::bigint[]) AS u (key, claim, event_seq)
), found_key AS MATERIALIZED ( -- each key once, with its lane
    SELECT k.*, l.tid, l.claim AS lane_claim, l.due_at AS lane_due, l.judged
      FROM (SELECT k.key, max(k.source) AS source, bool_or(k.source = 3) AS late, min(k.event_seq) AS event_seq, max(k.claim::text)::uuid AS claim,
                   min(k.n) FILTER (WHERE k.source = 1) AS oldest, min(k.n) FILTER (WHERE k.source = 2) AS latest -- its first position in that source
              FROM found_delivery AS k
             WHERE k.due_at < 'infinity'
             GROUP BY k.key) AS k
      LEFT JOIN LATERAL (
           SELECT l.ctid AS tid, l.claim, l.due_at, l.judged
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key
            OFFSET 0) AS l ON true
), any_failed AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.state = 'failed') AS found
), policy AS MATERIALIZED ( -- read only if a delivery has failed, see settleLanes
    SELECT s.on_failed FROM outbox.sync AS s WHERE s.name = $1 FOR KEY SHARE SKIP LOCKED
), key_without_lane AS MATERIALIZED (
    SELECT k.*, row_number() OVER (PARTITION BY k.waits, k.source > 2 ORDER BY k.oldest) AS by_oldest,
           row_number() OVER (PARTITION BY k.waits, k.source > 2 ORDER BY k.latest) AS by_latest
      FROM (SELECT k.key, k.source, k.oldest, k.latest,
                   (SELECT f.found FROM any_failed AS f) -- a key with a failed first delivery needs no capacity
                   AND coalesce((SELECT d.state = 'failed' AND (d.untouched OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.tid FOR UPDATE SKIP LOCKED))
                                   FROM (SELECT o.ctid AS tid, o.xmax = '0' AS untouched, o.state
                                           FROM outbox.delivery AS o
                                          WHERE o.sync = $1 AND o.key = k.key
                                          ORDER BY o.event_seq
                                          LIMIT 1) AS d), false) -- no transaction is discarding it
                   AND coalesce((SELECT on_failed = 'block' FROM policy), false) AS waits
              FROM found_key AS k
             WHERE k.tid IS NULL
               AND (k.source < 4 OR EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = k.key AND d.due_at < 'infinity' OFFSET 0))) AS k
), due_lane AS MATERIALIZED ( -- claimLanes will claim these
    SELECT count(*) AS n
      FROM (SELECT
              FROM claimable_scope AS s
             CROSS JOIN LATERAL (
             SELECT l.ctid AS tid, l.due_at
               FROM outbox.lane AS l
              WHERE l.sync = $1 AND l.scope = s.name AND l.due_at >= $8::text::timestamptz AND l.due_at <= now() AND l.due_at < 'infinity'
                AND l.crashes + (l.claim IS NOT NULL)::int < 2
              ORDER BY l.due_at
                      LIMIT $6::bigint) AS l
             LIMIT $6::bigint) AS l
), capacity AS MATERIALIZED ( -- keys of late transactions come first, then the share of the latest, then the oldest
    SELECT c.n, least(c.late, c.n) AS late, greatest(0, least(c.latest, c.n - c.late, greatest($10::bigint, c.n - c.late - c.old))) AS latest
      FROM (SELECT CASE WHEN '' IN (SELECT scope FROM scope_on_hold) THEN 0 ELSE $9::bigint - (SELECT n FROM due_lane) END AS n,
                   count(*) FILTER (WHERE source > 2) AS late, count(latest) FILTER (WHERE source < 3) AS latest, count(oldest) FILTER (WHERE source < 3) AS old
              FROM key_without_lane
             WHERE NOT waits) AS c
), chosen_key AS MATERIALIZED (
    SELECT m.key, m.source, m.oldest, m.waits,
           NOT m.waits AND CASE WHEN m.source > 2 THEN m.by_oldest <= c.n
                                ELSE m.oldest IS NOT NULL AND m.by_oldest <= c.n - c.late - c.latest OR m.latest IS NOT NULL AND m.by_latest <= c.latest END AS is_claimed
      FROM key_without_lane AS m
     CROSS JOIN capacity AS c
), opened_lane AS (
    INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
    SELECT $1, c.key, CASE WHEN c.is_claimed THEN now() + $5::interval WHEN c.waits THEN 'infinity' ELSE now() END, CASE WHEN c.is_claimed THEN $3::uuid END, CASE WHEN c.is_claimed THEN $4 END
      FROM chosen_key AS c
     WHERE c.is_claimed OR c.waits OR c.source > 2
     ORDER BY c.key
    ON CONFLICT DO NOTHING
    RETURNING key, claim
), lane_to_make_due AS MATERIALIZED ( -- waits without a reason
    SELECT k.key, k.event_seq, l.tid
      FROM found_key AS k
     CROSS JOIN LATERAL (
           SELECT f.state, f.due_at
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = k.key
            ORDER BY f.event_seq
            LIMIT 1) AS f
      LEFT JOIN LATERAL (
           SELECT l.ctid AS tid
             FROM outbox.lane AS l
            WHERE l.ctid = k.tid AND l.claim IS NULL AND l.due_at > now() -- the relay that claims a due lane reads its first delivery
              FOR UPDATE SKIP LOCKED) AS l ON true
     WHERE k.lane_claim IS NULL AND k.lane_due > now()
       AND (k.judged >= k.event_seq
            OR f.state <> 'failed' AND f.due_at < k.lane_due
            OR f.state = 'failed' AND (SELECT s.on_failed = 'supersede' FROM outbox.sync AS s WHERE s.name = $1)
               AND EXISTS (SELECT FROM outbox.delivery AS d
                            WHERE d.sync = $1 AND d.key = k.key AND d.event_seq > k.judged AND d.state <> 'failed' AND d.due_at < 'infinity'))
), lane_made_due AS (
    UPDATE outbox.lane AS l
       SET due_at = now(), judged = least(l.judged, w.event_seq - 1)
      FROM lane_to_make_due AS w
     WHERE l.ctid = w.tid
    RETURNING l.key
), first_without_capacity AS MATERIALIZED ( -- the cursor stops before this key
    SELECT min(c.oldest) AS n FROM chosen_key AS c WHERE c.source < 3 AND NOT c.is_claimed AND NOT c.waits
), key_to_check AS (
    SELECT k.key, k.lane_claim AS claim, k.event_seq
      FROM found_key AS k
     CROSS JOIN first_without_capacity AS w
     WHERE k.lane_claim <> $3::uuid -- if this transaction claimed the lane, the relay that closes it sees the delivery
       AND (k.late OR k.lane_claim = k.claim OR k.oldest < coalesce(w.n, k.oldest + 1)) -- the cursor moves past it now
        OR k.judged >= k.event_seq AND (k.lane_claim IS NOT NULL OR k.lane_due <= now())
    UNION ALL
    SELECT w.key, NULL, w.event_seq FROM lane_to_make_due AS w WHERE w.key NOT IN (SELECT key FROM lane_made_due)
)
SELECT ARRAY(SELECT key FROM opened_lane WHERE claim IS NOT NULL) AS keys,
       pg_current_snapshot()::text AS snapshot,
       (SELECT d.changed_in::text FROM found_delivery AS d WHERE d.source = 1 AND d.n < coalesce(w.n, d.n + 1) ORDER BY d.n DESC LIMIT 1) AS cursor_change,
       (SELECT d.event_seq FROM found_delivery AS d WHERE d.source = 1 AND d.n < coalesce(w.n, d.n + 1) ORDER BY d.n DESC LIMIT 1) AS cursor_seq,
       w.n IS NOT NULL OR (SELECT count(*) FROM found_delivery AS d WHERE d.source = 1) >= CASE WHEN '' IN (SELECT scope FROM scope_on_hold) THEN 1 ELSE $14::bigint END AS is_behind,
       w.n IS NULL AS has_capacity_left,
       (SELECT d.changed_in::text FROM found_delivery AS d WHERE d.source = 3 AND d.n >= $18::bigint ORDER BY d.changed_in LIMIT 1) AS large_transaction,
       c.keys, c.claims, c.event_seqs,
       set_config('lockstep.opened', (SELECT count(*) FROM opened_lane WHERE claim IS NOT NULL)::text, true)
  FROM first_without_capacity AS w
 CROSS JOIN (SELECT array_agg(key) AS keys, array_agg(claim) AS claims, array_agg(event_seq) AS event_seqs FROM key_to_check) AS c;

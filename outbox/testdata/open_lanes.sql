-- lockstep: open lanes
WITH held AS MATERIALIZED (
    SELECT scope
      FROM outbox.hold
     WHERE sync = $1
       AND (kind NOT IN ('throttle', 'window') OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))
), scope AS MATERIALIZED (
    SELECT s.name
      FROM unnest($7::text[]) AS s (name)
     WHERE s.name NOT IN (SELECT scope FROM held)
       AND '' NOT IN (SELECT scope FROM held)
), looked AS MATERIALIZED (
    SELECT 1 AS part, row_number() OVER (ORDER BY d.changed_in, d.event_seq) AS n, d.*
      FROM (SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid AS claim
              FROM outbox.delivery AS d
             WHERE d.sync = $1 AND (d.changed_in, d.event_seq) > ($12::text::xid8, $13)
             ORDER BY d.changed_in, d.event_seq
             LIMIT CASE WHEN '' IN (SELECT scope FROM held) THEN 1 ELSE $14::bigint END) AS d
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
    SELECT 4, 0, u.key, u.place, NULL, now(), u.claim
      FROM unnest($15::text[], $16::uuid[], $17::bigint[]) AS u (key, claim, place)
), key AS MATERIALIZED ( -- each once, with what stands about it
    SELECT k.*, l.tid, l.claim AS has, l.due_at AS lane_due, l.judged
      FROM (SELECT k.key, max(k.part) AS part, bool_or(k.part = 3) AS late, min(k.event_seq) AS place, max(k.claim::text)::uuid AS claim,
                   min(k.n) FILTER (WHERE k.part = 1) AS oldest, min(k.n) FILTER (WHERE k.part = 2) AS latest -- its first place among these
              FROM looked AS k
             WHERE k.due_at < 'infinity'
             GROUP BY k.key) AS k
      LEFT JOIN LATERAL (
           SELECT l.ctid AS tid, l.claim, l.due_at, l.judged
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key
            OFFSET 0) AS l ON true
), failing AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.state = 'failed') AS found
), policy AS MATERIALIZED ( -- read only if a delivery has failed, see settleLanes
    SELECT s.on_failed FROM outbox.sync AS s WHERE s.name = $1 FOR KEY SHARE SKIP LOCKED
), missing AS MATERIALIZED (
    SELECT k.*, row_number() OVER (PARTITION BY k.waits, k.part > 2 ORDER BY k.oldest) AS by_age,
           row_number() OVER (PARTITION BY k.waits, k.part > 2 ORDER BY k.latest) AS by_news
      FROM (SELECT k.key, k.part, k.oldest, k.latest,
                   (SELECT f.found FROM failing AS f) -- what is behind a failed one needs no room
                   AND coalesce((SELECT d.state = 'failed' AND (d.untouched OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.tid FOR UPDATE SKIP LOCKED))
                                   FROM (SELECT o.ctid AS tid, o.xmax = '0' AS untouched, o.state
                                           FROM outbox.delivery AS o
                                          WHERE o.sync = $1 AND o.key = k.key
                                          ORDER BY o.event_seq
                                          LIMIT 1) AS d), false) -- nobody is just discarding it
                   AND coalesce((SELECT on_failed = 'block' FROM policy), false) AS waits
              FROM key AS k
             WHERE k.tid IS NULL
               AND (k.part < 4 OR EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = k.key AND d.due_at < 'infinity' OFFSET 0))) AS k
), due AS MATERIALIZED ( -- claimLanes will claim them
    SELECT count(*) AS n
      FROM (SELECT
              FROM scope AS s
             CROSS JOIN LATERAL (
             SELECT l.ctid AS tid, l.due_at
               FROM outbox.lane AS l
              WHERE l.sync = $1 AND l.scope = s.name AND l.due_at >= $8::text::timestamptz AND l.due_at <= now() AND l.due_at < 'infinity'
                AND l.crashes + (l.claim IS NOT NULL)::int < 2
              ORDER BY l.due_at
                      LIMIT $6::bigint) AS l
             LIMIT $6::bigint) AS l
), room AS MATERIALIZED ( -- what transactions left and the latest have their share before the oldest
    SELECT c.n, least(c.late, c.n) AS late, greatest(0, least(c.latest, c.n - c.late, greatest($10::bigint, c.n - c.late - c.old))) AS latest
      FROM (SELECT CASE WHEN '' IN (SELECT scope FROM held) THEN 0 ELSE $9::bigint - (SELECT n FROM due) END AS n,
                   count(*) FILTER (WHERE part > 2) AS late, count(latest) FILTER (WHERE part < 3) AS latest, count(oldest) FILTER (WHERE part < 3) AS old
              FROM missing
             WHERE NOT waits) AS c
), chosen AS MATERIALIZED (
    SELECT m.key, m.part, m.oldest, m.waits,
           NOT m.waits AND CASE WHEN m.part > 2 THEN m.by_age <= r.n
                                ELSE m.oldest IS NOT NULL AND m.by_age <= r.n - r.late - r.latest OR m.latest IS NOT NULL AND m.by_news <= r.latest END AS claims
      FROM missing AS m
     CROSS JOIN room AS r
), opened AS (
    INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
    SELECT $1, c.key, CASE WHEN c.claims THEN now() + $5::interval WHEN c.waits THEN 'infinity' ELSE now() END, CASE WHEN c.claims THEN $3::uuid END, CASE WHEN c.claims THEN $4 END
      FROM chosen AS c
     WHERE c.claims OR c.waits OR c.part > 2
     ORDER BY c.key
    ON CONFLICT DO NOTHING
    RETURNING key, claim
), early AS MATERIALIZED ( -- lanes that wait, and need not
    SELECT k.key, k.place, l.tid
      FROM key AS k
     CROSS JOIN LATERAL (
           SELECT f.state, f.due_at
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = k.key
            ORDER BY f.event_seq
            LIMIT 1) AS f
      LEFT JOIN LATERAL (
           SELECT l.ctid AS tid
             FROM outbox.lane AS l
            WHERE l.ctid = k.tid AND l.claim IS NULL AND l.due_at > now() -- whoever claims one that is due sees what came in front
              FOR UPDATE SKIP LOCKED) AS l ON true
     WHERE k.has IS NULL AND k.lane_due > now()
       AND (k.judged >= k.place
            OR f.state <> 'failed' AND f.due_at < k.lane_due
            OR f.state = 'failed' AND (SELECT s.on_failed = 'supersede' FROM outbox.sync AS s WHERE s.name = $1)
               AND EXISTS (SELECT FROM outbox.delivery AS d
                            WHERE d.sync = $1 AND d.key = k.key AND d.event_seq > k.judged AND d.state <> 'failed' AND d.due_at < 'infinity'))
), woken AS (
    UPDATE outbox.lane AS l
       SET due_at = now(), judged = least(l.judged, e.place - 1)
      FROM early AS e
     WHERE l.ctid = e.tid
    RETURNING l.key
), cut AS MATERIALIZED ( -- the first key for which there was no room: the cursor stops before it
    SELECT min(c.oldest) AS n FROM chosen AS c WHERE c.part < 3 AND NOT c.claims AND NOT c.waits
), unsure AS (
    SELECT k.key, k.has AS claim, k.place
      FROM key AS k
     CROSS JOIN cut
     WHERE k.has <> $3::uuid -- what is visible here is visible to whoever closes a lane that was just claimed
       AND (k.late OR k.has = k.claim OR k.oldest < coalesce(cut.n, k.oldest + 1)) -- it is looked at for the last time
        OR k.judged >= k.place AND (k.has IS NOT NULL OR k.lane_due <= now())
    UNION ALL
    SELECT e.key, NULL, e.place FROM early AS e WHERE e.key NOT IN (SELECT key FROM woken)
)
SELECT ARRAY(SELECT key FROM opened WHERE claim IS NOT NULL) AS keys,
       pg_current_snapshot()::text AS since,
       (SELECT k.changed_in::text FROM looked AS k WHERE k.part = 1 AND k.n < coalesce(cut.n, k.n + 1) ORDER BY k.n DESC LIMIT 1) AS change,
       (SELECT k.event_seq FROM looked AS k WHERE k.part = 1 AND k.n < coalesce(cut.n, k.n + 1) ORDER BY k.n DESC LIMIT 1) AS seq,
       cut.n IS NOT NULL OR (SELECT count(*) FROM looked AS k WHERE k.part = 1) >= CASE WHEN '' IN (SELECT scope FROM held) THEN 1 ELSE $14::bigint END AS more,
       cut.n IS NULL AS starved,
       (SELECT k.changed_in::text FROM looked AS k WHERE k.part = 3 AND k.n >= $18::bigint ORDER BY k.changed_in LIMIT 1) AS more_late,
       u.keys, u.claims, u.places,
       set_config('lockstep.opened', (SELECT count(*) FROM opened WHERE claim IS NOT NULL)::text, true)
  FROM cut
 CROSS JOIN (SELECT array_agg(key) AS keys, array_agg(claim) AS claims, array_agg(place) AS places FROM unsure) AS u;

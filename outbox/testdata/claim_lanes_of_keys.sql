-- lockstep: claim lanes of keys
WITH held AS MATERIALIZED (
    SELECT scope
      FROM outbox.hold
     WHERE sync = $1
       AND (kind NOT IN ('throttle', 'window') OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))
), picked AS MATERIALIZED (
    SELECT l.tid
      FROM unnest($7::text[]) WITH ORDINALITY AS k (key, n)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS tid
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key AND l.scope NOT IN (SELECT scope FROM held) AND '' NOT IN (SELECT scope FROM held) AND l.due_at <= now()
              AND l.crashes + (l.claim IS NOT NULL)::int < 2
              FOR UPDATE SKIP LOCKED) AS l
     ORDER BY k.n
     LIMIT $6::bigint
), opened AS (
    INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
    SELECT $1, k.key, now() + $5::interval, $3, $4
      FROM unnest($7::text[]) AS k (key)
     WHERE (SELECT count(*) FROM picked) < $6::bigint
       AND '' NOT IN (SELECT scope FROM held)
       AND NOT EXISTS (SELECT FROM outbox.lane AS l WHERE l.sync = $1 AND l.key = k.key OFFSET 0)
       AND EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = k.key AND d.due_at <= now() OFFSET 0)
     LIMIT 1
    ON CONFLICT DO NOTHING
    RETURNING key
), claimed AS (
    UPDATE outbox.lane AS l
       SET due_at = now() + $5::interval, claim = $3, claimed_by = $4,
           lost_claim = coalesce(l.claim, l.lost_claim), lost_by = CASE WHEN l.claim IS NOT NULL THEN l.claimed_by ELSE l.lost_by END,
           crashes = l.crashes + (l.claim IS NOT NULL)::int
      FROM picked AS p
     WHERE l.ctid = p.tid
    RETURNING l.key
)
SELECT ARRAY(SELECT key FROM claimed UNION ALL SELECT key FROM opened) AS keys,
       EXISTS (SELECT FROM outbox.lane AS l
                WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2) AS suspects,
       EXISTS (SELECT FROM held WHERE scope = '') AS held,
       (SELECT array_agg(DISTINCT scope) FROM held WHERE scope <> '') AS scopes;

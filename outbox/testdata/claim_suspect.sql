-- lockstep: claim a suspect
WITH held AS MATERIALIZED (
    SELECT scope
      FROM outbox.hold
     WHERE sync = $1
       AND (kind NOT IN ('throttle', 'window') OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))
), picked AS MATERIALIZED (
    SELECT l.ctid AS tid
      FROM outbox.lane AS l
     WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2
       AND l.scope NOT IN (SELECT scope FROM held) AND '' NOT IN (SELECT scope FROM held)
       AND ($6 = '' OR l.scope = $6)
     ORDER BY l.due_at
     LIMIT 1
       FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE outbox.lane AS l
       SET due_at = now() + $5::interval, claim = $3, claimed_by = $4,
           lost_claim = coalesce(l.lost_claim, l.claim), lost_by = CASE WHEN l.lost_claim IS NULL THEN l.claimed_by ELSE l.lost_by END, -- while one is to be logged, nothing was sent under those after it
           crashes = l.crashes + (l.claim IS NOT NULL)::int
      FROM picked AS p
     WHERE l.ctid = p.tid
    RETURNING l.key
)
SELECT ARRAY(SELECT key FROM claimed) AS keys,
       EXISTS (SELECT FROM outbox.lane AS l
                WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2
                  AND l.scope NOT IN (SELECT scope FROM held)) AS suspects,
       EXISTS (SELECT FROM held WHERE scope = '') AS held,
       (SELECT array_agg(DISTINCT scope) FROM held WHERE scope <> '') AS scopes;

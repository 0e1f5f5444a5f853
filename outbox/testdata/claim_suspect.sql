-- lockstep: claim a suspect
WITH 
RECURSIVE listed (name) AS (
    (SELECT l.scope FROM outbox.lane AS l WHERE NULL::text[] IS NULL AND l.sync = $1 AND l.due_at < 'infinity' ORDER BY l.scope LIMIT 1)
    UNION ALL
    SELECT (SELECT l.scope FROM outbox.lane AS l WHERE l.sync = $1 AND l.due_at < 'infinity' AND l.scope > s.name ORDER BY l.scope LIMIT 1)
      FROM listed AS s
     WHERE s.name IS NOT NULL
), scope AS MATERIALIZED (
    SELECT name FROM listed WHERE name IS NOT NULL
    UNION ALL
    SELECT * FROM unnest(NULL::text[])
), held AS MATERIALIZED (
    SELECT scope
      FROM outbox.hold
     WHERE sync = $1
       AND (kind NOT IN ('throttle', 'window') OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))
), open AS MATERIALIZED (
    SELECT s.name AS scope
      FROM scope AS s
     WHERE s.name NOT IN (SELECT scope FROM held)
       AND '' NOT IN (SELECT scope FROM held)
), picked AS MATERIALIZED (
    SELECT l.ctid AS tid
      FROM outbox.lane AS l
     WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2
       AND l.scope IN (SELECT scope FROM open)
     ORDER BY l.due_at
     LIMIT 1
       FOR UPDATE SKIP LOCKED
), opened AS (
    SELECT NULL::text AS key, NULL::uuid AS claim WHERE false
), claimed AS (
    UPDATE outbox.lane AS l
       SET due_at = now() + $5::interval, claim = $3, claimed_by = $4,
           lost_claim = coalesce(l.claim, l.lost_claim), lost_by = CASE WHEN l.claim IS NOT NULL THEN l.claimed_by ELSE l.lost_by END,
           crashes = l.crashes + (l.claim IS NOT NULL)::int
      FROM picked AS p
     WHERE l.ctid = p.tid
    RETURNING l.key
)
SELECT ARRAY(SELECT key FROM claimed UNION ALL SELECT key FROM opened WHERE claim IS NOT NULL) AS keys,
       EXISTS (SELECT FROM open AS o
                CROSS JOIN LATERAL (
             SELECT l.ctid AS tid, l.due_at
               FROM outbox.lane AS l
              WHERE l.sync = $1 AND l.scope = o.scope AND l.due_at >= '-infinity' AND l.due_at <= now() AND l.due_at < 'infinity'
                AND l.crashes + (l.claim IS NOT NULL)::int < 2
                       ORDER BY l.due_at
                      OFFSET (SELECT count(*) FROM picked)
                       LIMIT 1) AS l) AS due,
       EXISTS (SELECT FROM outbox.lane AS l
                WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2) AS suspects,
       EXISTS (SELECT FROM held WHERE scope = '') AS held,
       (SELECT array_agg(DISTINCT scope) FROM held WHERE scope <> '') AS scopes;

-- lockstep: claim lanes
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
), room AS MATERIALIZED (
    SELECT least($6::bigint, $9::bigint - current_setting('lockstep.opened')::bigint) AS n
), picked AS MATERIALIZED ( -- twice as many are looked at, since others may have some locked; only those that are taken are locked
    SELECT l.ctid AS tid
      FROM (SELECT l.tid
              FROM scope AS s
             CROSS JOIN LATERAL (
             SELECT l.ctid AS tid, l.due_at
               FROM outbox.lane AS l
              WHERE l.sync = $1 AND l.scope = s.name AND l.due_at >= $8::text::timestamptz AND l.due_at <= now() AND l.due_at < 'infinity'
                AND l.crashes + (l.claim IS NOT NULL)::int < 2
              ORDER BY l.due_at
                      LIMIT (SELECT 2 * n FROM room)) AS l
             ORDER BY l.due_at
             LIMIT (SELECT 2 * n FROM room)) AS o
      JOIN outbox.lane AS l ON l.ctid = o.tid
     WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes + (l.claim IS NOT NULL)::int < 2
     ORDER BY l.due_at
     LIMIT (SELECT n FROM room)
       FOR UPDATE OF l SKIP LOCKED
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
       (SELECT array_agg(DISTINCT scope) FROM held WHERE scope <> '') AS scopes,
       EXISTS (SELECT FROM scope AS s
                CROSS JOIN LATERAL (
             SELECT l.ctid AS tid, l.due_at
               FROM outbox.lane AS l
              WHERE l.sync = $1 AND l.scope = s.name AND l.due_at >= $8::text::timestamptz AND l.due_at <= now() AND l.due_at < 'infinity'
                AND l.crashes + (l.claim IS NOT NULL)::int < 2
              ORDER BY l.due_at
                      OFFSET (SELECT count(*) FROM picked)
                       LIMIT 1) AS l) AS due;

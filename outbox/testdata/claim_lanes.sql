-- lockstep: claim lanes
-- $1 sync, $2 true: claim in spite of an auth or breaker hold, $3 claim, $4 relay, $5 lease, $6 most due lanes to claim, $7 scopes,
-- $8 earliest due_at of a lane, $9 most lanes to claim; the setting lockstep.opened: number of lanes that openLanes has opened claimed
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
), capacity AS MATERIALIZED (
    SELECT least($6::bigint, $9::bigint - current_setting('lockstep.opened')::bigint) AS n
), picked_lane AS MATERIALIZED ( -- reads twice as many, since some may be locked, and locks only those that it claims
    SELECT l.ctid AS tid
      FROM (SELECT l.tid
              FROM claimable_scope AS s
             CROSS JOIN LATERAL (
             SELECT l.ctid AS tid, l.due_at
               FROM outbox.lane AS l
              WHERE l.sync = $1 AND l.scope = s.name AND l.due_at >= $8::text::timestamptz AND l.due_at <= now() AND l.due_at < 'infinity'
                AND l.crashes + (l.claim IS NOT NULL)::int < 2
              ORDER BY l.due_at
                      LIMIT (SELECT 2 * n FROM capacity)) AS l
             ORDER BY l.due_at
             LIMIT (SELECT 2 * n FROM capacity)) AS o
      JOIN outbox.lane AS l ON l.ctid = o.tid
     WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes + (l.claim IS NOT NULL)::int < 2
     ORDER BY l.due_at
     LIMIT (SELECT n FROM capacity)
       FOR UPDATE OF l SKIP LOCKED
), claimed_lane AS (
    UPDATE outbox.lane AS l
       SET due_at = now() + $5::interval, claim = $3, claimed_by = $4,
           lost_claim = coalesce(l.lost_claim, l.claim), lost_by = CASE WHEN l.lost_claim IS NULL THEN l.claimed_by ELSE l.lost_by END,
           crashes = l.crashes + (l.claim IS NOT NULL)::int
      FROM picked_lane AS p
     WHERE l.ctid = p.tid
    RETURNING l.key
)
SELECT ARRAY(SELECT key FROM claimed_lane) AS keys,
       EXISTS (SELECT FROM outbox.lane AS l
                WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2
                  AND l.scope NOT IN (SELECT scope FROM scope_on_hold)) AS has_suspects,
       EXISTS (SELECT FROM scope_on_hold WHERE scope = '') AS is_on_hold,
       (SELECT array_agg(DISTINCT scope) FROM scope_on_hold WHERE scope <> '') AS scopes_on_hold,
       EXISTS (SELECT FROM claimable_scope AS s
                CROSS JOIN LATERAL (
             SELECT l.ctid AS tid, l.due_at
               FROM outbox.lane AS l
              WHERE l.sync = $1 AND l.scope = s.name AND l.due_at >= $8::text::timestamptz AND l.due_at <= now() AND l.due_at < 'infinity'
                AND l.crashes + (l.claim IS NOT NULL)::int < 2
              ORDER BY l.due_at
                      OFFSET (SELECT count(*) FROM picked_lane)
                       LIMIT 1) AS l) AS more_are_due;

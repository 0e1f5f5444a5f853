-- lockstep: claim the lane of a key
-- $1 sync, $2 true: claim in spite of an auth or breaker hold, $3 claim, $4 relay, $5 lease, $6 key
WITH scope_on_hold AS MATERIALIZED (
    SELECT scope
      FROM outbox.hold
     WHERE sync = $1
       AND (kind IN ('auth', 'breaker') OR until IS NULL OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))
), picked_lane AS MATERIALIZED (
    SELECT l.ctid AS tid
      FROM outbox.lane AS l
     WHERE l.sync = $1 AND l.key = $6 AND l.due_at <= now() AND l.crashes + (l.claim IS NOT NULL)::int < 2
       AND l.scope NOT IN (SELECT scope FROM scope_on_hold) AND '' NOT IN (SELECT scope FROM scope_on_hold)
       FOR UPDATE SKIP LOCKED
), opened_lane AS (
    INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
    SELECT $1, $6, now() + $5::interval, $3, $4
     WHERE '' NOT IN (SELECT scope FROM scope_on_hold)
       AND NOT EXISTS (SELECT FROM outbox.lane AS l WHERE l.sync = $1 AND l.key = $6)
       AND EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = $6 AND d.due_at <= now())
    ON CONFLICT DO NOTHING
    RETURNING key
), claimed_lane AS (
    UPDATE outbox.lane AS l
       SET due_at = now() + $5::interval, claim = $3, claimed_by = $4,
           lost_claim = coalesce(l.lost_claim, l.claim), lost_by = CASE WHEN l.lost_claim IS NULL THEN l.claimed_by ELSE l.lost_by END,
           crashes = l.crashes + (l.claim IS NOT NULL)::int
      FROM picked_lane AS p
     WHERE l.ctid = p.tid
    RETURNING l.key
)
SELECT ARRAY(SELECT key FROM claimed_lane UNION ALL SELECT key FROM opened_lane) AS keys,
       EXISTS (SELECT FROM outbox.lane AS l
                WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2
                  AND l.scope NOT IN (SELECT scope FROM scope_on_hold)) AS has_suspects,
       EXISTS (SELECT FROM scope_on_hold WHERE scope = '') AS is_on_hold,
       (SELECT array_agg(DISTINCT scope) FROM scope_on_hold WHERE scope <> '') AS scopes_on_hold;

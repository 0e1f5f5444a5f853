-- lockstep: hold
-- $1 sync, $2 true: without auth and breaker holds
    SELECT scope, kind, until, reason, coalesce(least(until, untried_at) <= clock_timestamp(), false) AS probe_due
      FROM outbox.hold
     WHERE sync = $1
       AND (kind IN ('auth', 'breaker') OR until IS NULL OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))
       AND scope = ''
     ORDER BY outbox.hold_rank(kind)
     LIMIT 1;

-- lockstep: hold
    SELECT kind, until, reason, coalesce(least(until, untried_at) <= clock_timestamp(), false)
      FROM outbox.hold
     WHERE sync = $1
       AND (kind NOT IN ('throttle', 'window') OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))
       AND scope = ''
     ORDER BY array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind::text)
     LIMIT 1;

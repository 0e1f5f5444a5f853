-- lockstep: list scopes
-- $1 sync, $2 how long a transaction that makes a lane due may take
WITH RECURSIVE listed (name) AS (
    (SELECT l.scope FROM outbox.lane AS l WHERE l.sync = $1 AND l.due_at < 'infinity' ORDER BY l.scope LIMIT 1)
    UNION ALL
    SELECT (SELECT l.scope FROM outbox.lane AS l WHERE l.sync = $1 AND l.due_at < 'infinity' AND l.scope > s.name ORDER BY l.scope LIMIT 1)
      FROM listed AS s
     WHERE s.name IS NOT NULL
), scope AS MATERIALIZED (
    SELECT name FROM listed WHERE name IS NOT NULL
)
SELECT ARRAY(SELECT name FROM scope UNION SELECT '') AS scopes,
       least(now() - $2::interval, (SELECT min(l.due_at)
                                      FROM scope AS s
                                     CROSS JOIN LATERAL (
                                           SELECT l.due_at FROM outbox.lane AS l
                                            WHERE l.sync = $1 AND l.scope = s.name AND l.due_at < 'infinity'
                                            ORDER BY l.due_at
                                            LIMIT 1) AS l))::text AS due_since;

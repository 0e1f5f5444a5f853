-- +goose Up
SET LOCAL lock_timeout = '1s';

-- outbox.alert also tells of transactions that are open for long. Its other parts are as before.
--
-- Nothing is counted beyond a thousand: a reader waits for it while a million deliveries are open.
CREATE OR REPLACE VIEW outbox.alert AS
SELECT 'escalated' COLLATE "C" AS name, 'critical' COLLATE "C" AS severity, e.since,
       format('sync "%s" has %s escalated %s: not delivered although needed soon, or not delivered for long; %s', s.name,
              CASE WHEN e.n > 1000 THEN 'more than 1000' ELSE e.n::text END, CASE e.n WHEN 1 THEN 'event' ELSE 'events' END,
              CASE WHEN f.needed_by IS NULL THEN format('the first is of key %s', f.key) ELSE format('the soonest is of key %s, needed by %s', f.key, f.needed_by) END) AS says,
       format('Ask what it waits for: lockstep explain %s', f.event_id) AS remedy,
       s.name AS sync, f.key, f.event_id
  FROM outbox.sync AS s
 CROSS JOIN LATERAL (
       SELECT count(*) AS n, min(c.escalates_at) AS since
         FROM ((SELECT d.escalates_at FROM outbox.delivery AS d
                 WHERE d.sync = s.name AND d.escalated AND d.escalates_at IS NOT NULL ORDER BY d.escalates_at LIMIT 1001)
                UNION ALL
               (SELECT d.escalates_at FROM outbox.delivery AS d
                 WHERE d.sync = s.name AND NOT d.escalated AND d.escalates_at <= statement_timestamp() ORDER BY d.escalates_at LIMIT 1001)) AS c) AS e
 CROSS JOIN LATERAL (
       SELECT o.key, o.event_id, o.needed_by
         FROM ((SELECT 1 AS choice, n.* FROM (
                       SELECT d.key, d.event_id, d.needed_by, d.escalates_at FROM outbox.delivery AS d
                        WHERE d.sync = s.name AND d.needed_by >= statement_timestamp() ORDER BY d.needed_by LIMIT 100) AS n
                 WHERE n.escalates_at <= statement_timestamp() ORDER BY n.needed_by LIMIT 1)
                UNION ALL
               (SELECT 2, d.key, d.event_id, d.needed_by, d.escalates_at FROM outbox.delivery AS d
                 WHERE d.sync = s.name AND d.escalated AND d.escalates_at IS NOT NULL ORDER BY d.escalates_at LIMIT 1)
                UNION ALL
               (SELECT 3, d.key, d.event_id, d.needed_by, d.escalates_at FROM outbox.delivery AS d
                 WHERE d.sync = s.name AND NOT d.escalated AND d.escalates_at <= statement_timestamp() ORDER BY d.escalates_at LIMIT 1)) AS o
        ORDER BY o.choice LIMIT 1) AS f
 WHERE e.n > 0
UNION ALL
SELECT 'failed', 'warning', c.since,
       format('sync "%s" has %s failed %s; %s, with %s: %s', s.name,
              CASE WHEN c.n > 1000 THEN 'more than 1000' ELSE c.n::text END, CASE c.n WHEN 1 THEN 'delivery' ELSE 'deliveries' END,
              CASE WHEN f.needed_by IS NULL THEN format('one is of key %s', f.key) ELSE format('the soonest is of key %s, needed by %s', f.key, f.needed_by) END,
              coalesce(f.error_class, 'unknown'), coalesce(left(f.error, 300), 'no reason recorded')),
       format('Correct the cause, then: lockstep requeue --sync %s --all --reason …; or give them up with lockstep discard', s.name),
       s.name, f.key, f.event_id
  FROM outbox.sync AS s
 CROSS JOIN LATERAL (
       SELECT count(*) AS n, min(o.created_at) AS since
         FROM (SELECT d.created_at FROM outbox.delivery AS d
                WHERE d.sync = s.name AND d.state = 'failed' ORDER BY d.key LIMIT 1001) AS o) AS c
 CROSS JOIN LATERAL (
       SELECT o.key, o.event_id, o.needed_by, o.error_class, o.error
         FROM ((SELECT 1 AS choice, n.* FROM (
                       SELECT d.key, d.event_id, d.needed_by, d.error_class, d.error, d.state FROM outbox.delivery AS d
                        WHERE d.sync = s.name AND d.needed_by >= statement_timestamp() ORDER BY d.needed_by LIMIT 100) AS n
                 WHERE n.state = 'failed' ORDER BY n.needed_by LIMIT 1)
                UNION ALL
               (SELECT 2, d.key, d.event_id, d.needed_by, d.error_class, d.error, d.state FROM outbox.delivery AS d
                 WHERE d.sync = s.name AND d.state = 'failed' ORDER BY d.key LIMIT 1)) AS o
        ORDER BY o.choice LIMIT 1) AS f
 WHERE c.n > 0
UNION ALL
SELECT 'held', h.severity, h.since, format('%s on hold (%s) by %s: %s', h.subject, h.kind, h.by, h.reason),
       h.remedy,
       h.sync, NULL, NULL
  FROM (SELECT a.sync, a.kind, a.severity, (array_agg(a.remedy ORDER BY a.scope))[1] AS remedy, min(a.since) AS since, (array_agg(a.by ORDER BY a.since, a.scope))[1] AS by,
               (array_agg(a.reason ORDER BY a.since, a.scope))[1] AS reason,
               -- Not outbox.held_subject: whoever may read a view would need EXECUTE on each function in it.
               CASE WHEN bool_or(a.scope = '') THEN format('sync "%s" is', a.sync)
                    WHEN count(*) = 1 THEN format('destination %s of sync "%s" is', min(a.scope), a.sync)
                    ELSE format('%s destinations of sync "%s", such as %s, are', count(*), a.sync, min(a.scope)) END AS subject
          FROM outbox.alerting_hold AS a
         GROUP BY a.sync, a.kind, a.severity) AS h
UNION ALL
SELECT 'no_relay', 'critical', (SELECT max(r.seen_at) FROM outbox.relay AS r), 'no relay is running: nothing is delivered',
       'Start one: docs/operators.md, "Relay down"', NULL, NULL, NULL
 WHERE EXISTS (SELECT FROM outbox.sync AS s WHERE s.retired_at IS NULL) AND NOT EXISTS (SELECT FROM outbox.relay AS r WHERE r.running)
UNION ALL
SELECT 'not_served', 'warning', NULL, format('no running relay serves sync "%s": its events are not delivered', s.name),
       format('Add it to the configuration of a relay; or, if it is not needed any more: lockstep retire %s', s.name), s.name, NULL, NULL
  FROM outbox.sync AS s
 WHERE s.retired_at IS NULL AND EXISTS (SELECT FROM outbox.relay AS r WHERE r.running)
   AND NOT EXISTS (SELECT FROM outbox.relay AS r WHERE r.running AND s.name = ANY (r.syncs))
UNION ALL
SELECT 'missed', 'critical', m.since, format('%s %s no delivery: written with triggers off', CASE WHEN m.n > 1000 THEN 'more than 1000' ELSE m.n::text END,
              CASE m.n WHEN 1 THEN 'event has' ELSE 'events have' END),
       'Add the deliveries: lockstep repair', NULL, NULL, NULL
  FROM (SELECT count(*) AS n, min(o.found_at) AS since FROM (SELECT found_at FROM outbox.missed ORDER BY event_seq LIMIT 1001) AS o) AS m
 WHERE m.n > 0
UNION ALL
SELECT 'unmatched', 'info', u.since, format('%s %s to no sync; the latest type is %s', CASE WHEN u.n > 1000 THEN 'more than 1000' ELSE u.n::text END,
              CASE u.n WHEN 1 THEN 'event went' ELSE 'events went' END, u.latest_type),
       'List the types: SELECT * FROM outbox.unmatched_type', NULL, NULL, NULL
  FROM (SELECT count(*) AS n, (SELECT f.inserted_at FROM outbox.unmatched AS f ORDER BY f.event_seq LIMIT 1) AS since,
               (SELECT l.type FROM outbox.unmatched AS l ORDER BY l.event_seq DESC LIMIT 1) AS latest_type
          FROM (SELECT FROM outbox.unmatched LIMIT 1001) AS o) AS u
 WHERE u.n > 0
UNION ALL
SELECT 'no_partition', 'warning', NULL, 'the delivery log has no partition for next month: rows would go to outbox.delivery_log_default',
       'As the owner: SELECT * FROM outbox.maintain() says what is in the way', NULL, NULL, NULL
 WHERE NOT EXISTS (
       SELECT FROM pg_inherits AS i
         JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'outbox.delivery_log'::regclass
          AND c.relname = 'delivery_log_' || to_char(date_trunc('month', statement_timestamp() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY_MM'))
UNION ALL
-- The times of other logins are visible only to members of pg_read_all_stats.
SELECT 'old_transaction', 'warning', t.since,
       format('%s %s been open for longer than 15 minutes, the oldest one of pid %s (user %s, application %s, %s): dead rows stay, and a changed sync waits for it',
              t.n, CASE t.n WHEN 1 THEN 'transaction has' ELSE 'transactions have' END, t.pid, t.login, coalesce(nullif(t.application, ''), 'unknown'), t.state),
       format('If nobody needs it: SELECT pg_terminate_backend(%s)', t.pid), NULL, NULL, NULL
  FROM (SELECT count(*) AS n, min(a.xact_start) AS since, (array_agg(a.pid ORDER BY a.xact_start))[1] AS pid, (array_agg(a.usename ORDER BY a.xact_start))[1] AS login,
               (array_agg(a.application_name ORDER BY a.xact_start))[1] AS application, (array_agg(a.state ORDER BY a.xact_start))[1] AS state
          FROM pg_stat_activity AS a
         WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.xact_start < statement_timestamp() - interval '15 minutes') AS t
 WHERE t.n > 0;

-- +goose Down
SET LOCAL lock_timeout = '1s';
-- The view stays: it serves version 1 too, and the migration before this one drops it.

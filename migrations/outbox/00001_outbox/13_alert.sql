-- Holds that people are told of. A short hold of a receiver that is busy or down for a moment is not one of them, and a
-- backfill or a change window is planned.
CREATE VIEW outbox.alerting_hold AS
SELECT h.sync, h.scope, h.kind, h.until, h.reason, h.by, h.since,
       CASE h.kind WHEN 'auth' THEN 'critical' WHEN 'operator' THEN 'info' ELSE 'warning' END COLLATE "C" AS severity,
       CASE h.kind WHEN 'auth' THEN 'Renew the credentials: docs/operators.md, "Credentials expired"'
                   WHEN 'operator' THEN format('Resume it when the reason has passed: lockstep resume %s', h.sync)
                                        -- The destination is quoted for a shell.
                                        || CASE h.scope WHEN '' THEN '' ELSE format(' --scope ''%s''', replace(h.scope, '''', '''\''''')) END
                   WHEN 'throttle' THEN 'The receiver limits the rate. If it lasts, lower limits.rate: docs/operators.md, "Throttled"'
                   ELSE 'The receiver is down or answers with errors. The relay probes it and resumes by itself: docs/operators.md, "The court is down"' END AS remedy
  FROM outbox.hold AS h
 WHERE h.kind = 'auth'
    OR h.kind = 'operator' AND (h.until IS NULL OR h.until > statement_timestamp())
    OR h.kind = 'breaker' AND h.since <= statement_timestamp() - interval '1 minute'
    OR h.kind = 'throttle' AND h.since <= statement_timestamp() - interval '5 minutes' AND h.until > statement_timestamp();
COMMENT ON VIEW outbox.alerting_hold IS 'The holds of outbox.alert: auth and operator at once, breaker after a minute, throttle after five.';

-- Nothing is counted beyond a thousand: a reader waits for it while a million deliveries are open.
CREATE VIEW outbox.alert AS
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
          AND c.relname = 'delivery_log_' || to_char(date_trunc('month', statement_timestamp() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY_MM'));
COMMENT ON VIEW outbox.alert IS 'What people must know now, one row for each name and sync. since is null if it is not known. says and remedy are sentences, key and event_id show one example. Counts end at a thousand.';

-- What outbox.raise_alerts has told.
CREATE TABLE outbox.told (
    sync    text        COLLATE "C" NOT NULL,
    name    text        COLLATE "C" NOT NULL,
    scope   text        COLLATE "C" NOT NULL DEFAULT '',
    kind    text        COLLATE "C" NOT NULL DEFAULT '',
    told_at timestamptz,
    untold  bigint      NOT NULL DEFAULT 0,
    CONSTRAINT told_pkey PRIMARY KEY (sync, name, scope, kind),
    CONSTRAINT told_sync_fkey FOREIGN KEY (sync) REFERENCES outbox.sync (name) ON DELETE CASCADE,
    CONSTRAINT told_name_known CHECK (name IN ('failed', 'escalated', 'held'))
);
COMMENT ON TABLE outbox.told IS 'What outbox.raise_alerts has told: a row for each hold that lasts, and for each sync that had failed or escalated deliveries.';
COMMENT ON COLUMN outbox.told.untold IS 'Deliveries (failed) or keys (escalated) that the next operator event of this name will count.';

-- The subject and the verb of a sentence about holds of one kind: of a whole sync, or of n of its destinations.
CREATE FUNCTION outbox.held_subject(sync text, whole boolean, n bigint, destination text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN whole THEN format('sync "%s" is', sync)
            WHEN n = 1 THEN format('destination %s of sync "%s" is', destination, sync)
            ELSE format('%s destinations of sync "%s", such as %s, are', n, sync, destination) END;

-- Writes an operator event if a sync takes it. Null: none does.
-- +goose StatementBegin
CREATE FUNCTION outbox.write_operator_event(type text, sync text, payload jsonb) RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    written uuid;
BEGIN
    PERFORM set_config('lockstep.raises_alerts', 'on', true);
    INSERT INTO outbox.event AS e (type, key, payload)
    SELECT write_operator_event.type, write_operator_event.sync, jsonb_strip_nulls(write_operator_event.payload)
     WHERE EXISTS (SELECT FROM outbox.sync AS t
                    WHERE t.retired_at IS NULL
                      AND outbox.takes(t.name, t.likes, t.operator_likes, write_operator_event.type, write_operator_event.sync))
    RETURNING e.id INTO written;
    PERFORM set_config('lockstep.raises_alerts', '', true);
    RETURN written;
END
$$;
-- +goose StatementEnd

-- Tells each change of state once: a row for each, and an operator event if a sync takes it. Relays call it every few seconds.
-- One call at a time does something, and a call that is cut off has told nothing. Failures and escalations of a sync are told
-- as one, and after that not again for five minutes. A row without a type says that there is more to do: call it again.
--
--   failed     deliveries have failed since the last time: those whose failure_told is false. A requeue makes it false again.
--   escalated  keys have an escalated delivery since the last time. A key that has one already is not told again.
--   held       a sync or a destination is in outbox.alerting_hold, and was not.
--   resumed    it is not any more.
--
-- Deliveries of operator events tell nothing: two syncs that carry the events about each other would never be silent.
-- +goose StatementBegin
CREATE FUNCTION outbox.raise_alerts()
RETURNS TABLE (type text, severity text, sync text, says text, n bigint, event_id uuid)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_sort = off
SET timezone = 'UTC' SET datestyle = 'ISO, MDY' AS $$
#variable_conflict use_column
DECLARE
    page_size CONSTANT int := 10000; -- the rows of a page are locked until the end of the transaction
    pause     CONSTANT interval := '5 minutes';
    place     record; -- a sync
    change    record;
    counted   record; -- the rows of a page, and what they add to outbox.told.untold
    now_true  outbox.alert;
    full_page boolean := false;
BEGIN
    IF NOT pg_try_advisory_xact_lock(1869967994) THEN
        RETURN;
    END IF;
    FOR place IN SELECT s.name, s.operator_likes FROM outbox.sync AS s ORDER BY s.name LOOP
        -- Holds: what has ended comes first.
        FOR change IN
            WITH ended AS (
                DELETE FROM outbox.told AS t
                 WHERE t.sync = place.name AND t.name = 'held'
                   AND NOT EXISTS (SELECT FROM outbox.alerting_hold AS h WHERE h.sync = t.sync AND h.scope = t.scope AND h.kind = t.kind)
                RETURNING t.scope, t.kind, t.told_at
            ), begun AS (
                INSERT INTO outbox.told AS t (sync, name, scope, kind, told_at)
                SELECT h.sync, 'held', h.scope, h.kind, statement_timestamp()
                  FROM outbox.alerting_hold AS h
                 WHERE h.sync = place.name
                ON CONFLICT DO NOTHING
                RETURNING t.scope, t.kind
            )
            SELECT 'lockstep:resumed' AS type, 'info' AS severity, e.kind, count(*) AS n, bool_or(e.scope = '') AS whole, min(e.scope) AS scope,
                   NULL::timestamptz AS since, NULL::timestamptz AS until, NULL AS reason, NULL AS held_by, NULL AS remedy
              FROM ended AS e
             GROUP BY e.kind
            UNION ALL
            SELECT 'lockstep:held', min(h.severity), h.kind, count(*), bool_or(h.scope = ''), min(h.scope),
                   min(h.since), min(h.until), (array_agg(h.reason ORDER BY h.scope))[1], (array_agg(h.by ORDER BY h.scope))[1], (array_agg(h.remedy ORDER BY h.scope))[1]
              FROM begun AS b
              JOIN outbox.alerting_hold AS h ON h.sync = place.name AND h.scope = b.scope AND h.kind = b.kind
             GROUP BY h.kind
             ORDER BY 1 DESC, 3
        LOOP
            type := change.type; severity := change.severity; sync := place.name; n := change.n;
            says := outbox.held_subject(sync, change.whole, n, change.scope)
                 || CASE WHEN type = 'lockstep:held' THEN format(' on hold (%s) by %s: %s', change.kind, change.held_by, change.reason)
                         ELSE format(' not on hold (%s) any more', change.kind) || coalesce((
                              SELECT format(', but the sync is still on hold (%s): %s', h.kind, h.reason) FROM outbox.hold AS h
                               WHERE h.sync = place.name AND h.scope = ''
                                 AND (h.kind IN ('auth', 'breaker') OR h.until IS NULL OR h.until > statement_timestamp())
                               ORDER BY outbox.hold_rank(h.kind) LIMIT 1), '') END;
            event_id := outbox.write_operator_event(type, sync, jsonb_build_object(
                'sync', sync, 'severity', severity, 'says', says, 'remedy', change.remedy, 'kind', change.kind, 'destinations', CASE WHEN change.whole THEN NULL ELSE n END,
                'destination', CASE WHEN NOT change.whole THEN change.scope END,
                'since', change.since, 'until', change.until, 'reason', change.reason, 'by', change.held_by));
            RETURN NEXT;
        END LOOP;

        -- Failures and escalations are marked and counted. A row that an operator or a relay has locked is left for the next
        -- call: this call must not wait.
        WITH found AS MATERIALIZED (
            SELECT d.key, d.event_seq, d.event_id
              FROM outbox.delivery AS d
             WHERE d.sync = place.name AND d.state = 'failed' AND NOT d.failure_told
             ORDER BY d.event_seq LIMIT page_size
               FOR NO KEY UPDATE SKIP LOCKED
        ), marked AS (
            UPDATE outbox.delivery AS d
               SET failure_told = true
              FROM found AS f
             WHERE d.sync = place.name AND d.key = f.key AND d.event_seq = f.event_seq
        )
        SELECT count(*) AS rows,
               count(*) FILTER (WHERE place.operator_likes = '{}' OR NOT EXISTS (
                   SELECT FROM outbox.event AS e WHERE e.id = f.event_id AND starts_with(e.type, 'lockstep:'))) AS fresh
          INTO counted
          FROM found AS f;
        full_page := full_page OR counted.rows = page_size;
        IF counted.fresh > 0 THEN
            INSERT INTO outbox.told AS t (sync, name, untold) VALUES (place.name, 'failed', counted.fresh)
            ON CONFLICT ON CONSTRAINT told_pkey DO UPDATE SET untold = t.untold + excluded.untold;
        END IF;

        WITH found AS MATERIALIZED (
            SELECT d.key, d.event_seq
              FROM outbox.delivery AS d
             WHERE d.sync = place.name AND NOT d.escalated AND d.escalates_at <= statement_timestamp()
             ORDER BY d.escalates_at LIMIT page_size
               FOR NO KEY UPDATE SKIP LOCKED
        ), marked AS (
            UPDATE outbox.delivery AS d
               SET escalated = true
              FROM found AS f
             WHERE d.sync = place.name AND d.key = f.key AND d.event_seq = f.event_seq
        )
        SELECT count(*) AS rows,
               count(DISTINCT f.key) FILTER (WHERE NOT EXISTS (
                   SELECT FROM outbox.delivery AS o WHERE o.sync = place.name AND o.key = f.key AND o.escalated)) AS fresh
          INTO counted
          FROM found AS f;
        full_page := full_page OR counted.rows = page_size;
        IF counted.fresh > 0 THEN
            INSERT INTO outbox.told AS t (sync, name, untold) VALUES (place.name, 'escalated', counted.fresh)
            ON CONFLICT ON CONSTRAINT told_pkey DO UPDATE SET untold = t.untold + excluded.untold;
        END IF;
    END LOOP;

    IF full_page THEN -- the rest of the deliveries belongs to the same event
        type := NULL; severity := NULL; sync := NULL; says := NULL; n := NULL; event_id := NULL;
        RETURN NEXT;
        RETURN;
    END IF;
    -- Failures and escalations.
    FOR change IN
        WITH due AS (
            UPDATE outbox.told AS t
               SET untold = 0
              FROM outbox.told AS was
             WHERE was.untold > 0 AND (was.told_at IS NULL OR was.told_at NOT BETWEEN statement_timestamp() - pause AND statement_timestamp())
               AND t.sync = was.sync AND t.name = was.name AND t.scope = '' AND t.kind = ''
            RETURNING t.sync, t.name, was.untold
        )
        SELECT d.* FROM due AS d ORDER BY d.sync, d.name DESC
    LOOP
        SELECT * INTO now_true FROM outbox.alert AS a WHERE a.sync = change.sync AND a.name = change.name;
        CONTINUE WHEN NOT FOUND; -- the deliveries have been corrected meanwhile, so the next failure is told at once
        UPDATE outbox.told AS t SET told_at = statement_timestamp() WHERE t.sync = change.sync AND t.name = change.name AND t.scope = '' AND t.kind = '';
        type := 'lockstep:' || change.name; severity := now_true.severity; sync := change.sync; n := change.untold; says := now_true.says;
        event_id := outbox.write_operator_event(type, sync, jsonb_build_object(
            'sync', sync, 'severity', severity, 'says', says, 'remedy', now_true.remedy, 'since', now_true.since, 'new', n,
            'key', now_true.key, 'event_id', now_true.event_id,
            'needed_by', (SELECT d.needed_by FROM outbox.delivery AS d WHERE d.sync = change.sync AND d.key = now_true.key AND d.event_id = now_true.event_id LIMIT 1)));
        RETURN NEXT;
    END LOOP;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.raise_alerts() IS 'Tells what has changed since the last call: one row for each change, and an operator event lockstep:failed, lockstep:held, lockstep:resumed or lockstep:escalated if a sync takes it. event_id is null if none takes it. Relays call it.';

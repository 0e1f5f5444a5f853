CREATE TABLE outbox.retention (
    what text     NOT NULL,
    keep interval NOT NULL,
    CONSTRAINT retention_pkey PRIMARY KEY (what),
    CONSTRAINT retention_what_known CHECK (what IN ('events', 'log')),
    CONSTRAINT retention_bounds CHECK (keep BETWEEN CASE what WHEN 'log' THEN interval '1 month' ELSE interval '1 hour' END AND interval '1200 months')
);
INSERT INTO outbox.retention (what, keep) VALUES ('events', '90 days'), ('log', '84 months');
COMMENT ON TABLE outbox.retention IS 'How long finished events and the delivery log are kept at least. Only the owner changes it: UPDATE outbox.retention SET keep = ''120 months'' WHERE what = ''log''.';

-- Names the sessions that have an advisory lock, for the messages of sessions that wait for it. It runs with the rights of
-- its owner, because a plain role does not see the sessions of other users.
-- +goose StatementBegin
CREATE FUNCTION outbox.lock_holder(lock bigint) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(CASE WHEN l.pid IS NULL THEN 'a prepared transaction (see pg_prepared_xacts)'
                           ELSE format('pid %s%s%s', l.pid, ' of ' || a.usename,
                                       coalesce(' (' || outbox.clean(nullif(a.application_name, '')) || ')', '')) END, ', ' ORDER BY l.pid)
      FROM pg_locks AS l
      LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
     WHERE l.locktype = 'advisory' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND l.objsubid = 1 AND (l.classid::bigint << 32 | l.objid::bigint) = lock_holder.lock
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.lock_holder(bigint) IS 'Names the holders of an advisory lock: 1869967988 is the lock of outbox.maintain, 1869967989 of retention, 1869967990 of registrations.';

-- Says why new events would get wrong numbers, and what to do. Null if they do not. A number that is used already makes a
-- writer fail, and a lower one brings an event before earlier events of its key. The tables are those where a number is
-- unique, or decides which of two events of a key is newer.
-- +goose StatementBegin
CREATE FUNCTION outbox.sequence_trouble() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = on AS $$
DECLARE
    highest bigint := greatest((SELECT max(e.seq) FROM outbox.event AS e), (SELECT max(u.event_seq) FROM outbox.unmatched AS u),
                               (SELECT max(d.event_seq) FROM outbox.delivery AS d), (SELECT max(r.event_seq) FROM outbox.external_ref AS r), 0);
    next    bigint := (SELECT CASE WHEN s.is_called THEN s.last_value + 1 ELSE s.last_value END FROM outbox.event_seq_seq AS s); -- read last
    kind    record;
BEGIN
    SELECT * INTO kind FROM pg_sequence AS s WHERE s.seqrelid = 'outbox.event_seq_seq'::regclass;
    IF kind.seqcache > 1 OR kind.seqincrement < 1 OR kind.seqcycle THEN
        RETURN 'the sequence outbox.event_seq_seq has a cache, counts down or cycles, so its numbers do not rise in the order of the inserts; '
            || 'as the owner: ALTER SEQUENCE outbox.event_seq_seq INCREMENT BY 1 NO CYCLE CACHE 1';
    ELSIF next <= highest THEN
        RETURN format('the next event would get number %s, but numbers up to %s were used: the sequence was begun anew, as by RESTART or an upgrade by '
            'logical replication; as the owner: SELECT setval(''outbox.event_seq_seq'', %s)', next, highest, highest);
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.sequence_trouble() IS 'Says why new events would get numbers that are not in the order of the inserts, and what to do. Null if all is well.';

-- +goose StatementBegin
CREATE FUNCTION outbox.maintain(keep_events interval DEFAULT '1 hour', keep_log interval DEFAULT '1 month')
RETURNS TABLE (done text, n bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
    -- The function writes and reads bounds and patterns as text: settings of the caller must not change their form.
    SET timezone = 'UTC' SET datestyle = 'ISO, MDY' SET standard_conforming_strings = on AS $$
DECLARE
    -- The longer retention applies. If the row was deleted, the default of this migration applies.
    log_kept interval := greatest(keep_log, coalesce((SELECT r.keep FROM outbox.retention AS r WHERE r.what = 'log'), '84 months'));
    -- A constant for the planner: with it, old partitions of the log are not read.
    recent timestamptz := clock_timestamp() - greatest(keep_events, coalesce((SELECT r.keep FROM outbox.retention AS r WHERE r.what = 'events'), '90 days'));
    expired timestamptz := clock_timestamp() - log_kept;
    -- No row of the log can belong to a month before or after these.
    first_month timestamptz := (date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') - interval '1200 months') AT TIME ZONE 'UTC';
    after_last  timestamptz := (date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') + interval '4 months') AT TIME ZONE 'UTC';
    months timestamp[];
    month  timestamp;
    begins timestamptz;
    ends   timestamptz;
    part   text;
    old    record;
    page   bigint[];
    last   bigint := 0;
    gone   bigint;
    total  bigint := 0;
    blocks bigint;
    block  bigint;
BEGIN
    IF keep_events < interval '1 hour' OR keep_log < interval '1 month' THEN
        RAISE EXCEPTION 'retention too short: events % (at least 1 hour), log % (at least 1 month)', keep_events, keep_log
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_try_advisory_xact_lock(1869967988) THEN
        done := 'held: maintenance waits for ' || coalesce(outbox.lock_holder(1869967988), 'a session that has just ended'); n := 0;
        RETURN NEXT;
        RETURN;
    END IF;

    -- Each step catches its own errors, so that next month's partition is made anyway.
    -- First events are removed, if nothing about them is open and nothing was logged about them recently. A page is locked
    -- in a statement of its own, so that the next statement sees a replay that was faster. During a backfill no event is
    -- removed. Partitions come later, because relays must wait for their locks.
    IF NOT pg_try_advisory_xact_lock(1869967989) THEN
        done := 'held: the removal of events waits for ' || coalesce(outbox.lock_holder(1869967989), 'a session that has just ended'); n := 0;
        RETURN NEXT;
    ELSIF NOT EXISTS (SELECT FROM outbox.sync AS s WHERE s.backfill_seq IS NOT NULL AND s.retired_at IS NULL) THEN
        BEGIN
            -- Bounded, because old events that cannot be removed yet must not delay the partitions.
            WHILE total < 20000 AND clock_timestamp() < now() + interval '5 seconds' LOOP
                SELECT array_agg(p.seq) FILTER (WHERE p.inserted_at < recent), max(p.seq)
                  INTO page, last
                  FROM (SELECT e.seq, e.inserted_at FROM outbox.event AS e
                         WHERE e.seq > last ORDER BY e.seq LIMIT 2000) AS p;
                EXIT WHEN page IS NULL;
                SELECT array_agg(p.seq) INTO page
                  FROM (SELECT e.seq FROM outbox.event AS e WHERE e.seq = ANY (page) FOR UPDATE SKIP LOCKED) AS p;
                DELETE FROM outbox.event AS e
                 WHERE e.seq = ANY (page)
                   AND NOT EXISTS (SELECT FROM outbox.sync AS s
                                     JOIN outbox.delivery AS d ON d.sync = s.name AND d.key = e.key AND d.event_seq = e.seq)
                   AND NOT EXISTS (SELECT FROM outbox.delivery_log AS l
                                    WHERE l.event_id = e.id AND l.at >= recent)
                   AND NOT EXISTS (SELECT FROM outbox.missed AS m WHERE m.event_seq = e.seq)
                   -- An open replay has another event_seq.
                   AND NOT EXISTS (SELECT FROM outbox.delivery_log AS l
                                     JOIN outbox.delivery AS d ON d.sync = l.sync AND d.key = e.key AND d.event_id = e.id
                                    WHERE l.event_id = e.id AND l.outcome = 'replayed');
                GET DIAGNOSTICS gone = ROW_COUNT;
                DELETE FROM outbox.unmatched AS u
                 WHERE u.event_seq = ANY (page) AND NOT EXISTS (SELECT FROM outbox.event AS e WHERE e.seq = u.event_seq);
                total := total + gone;
            END LOOP;
            done := 'events removed'; n := total;
        EXCEPTION WHEN OTHERS THEN
            done := 'trouble: events were not removed: ' || SQLERRM; n := 0;
        END;
        RETURN NEXT;
    END IF;

    -- A reference is removed if its key has no open delivery, and no log row for as long as the log is kept. Then the
    -- database has no other row about the key. A call reads a random range of the table. This bounds the call, and needs no
    -- index that each recording would have to update.
    BEGIN
        blocks := pg_relation_size('outbox.external_ref') / current_setting('block_size')::bigint;
        block := floor(random() * ceil(blocks / 1000.0)) * 1000;
        DELETE FROM outbox.external_ref AS r
         WHERE r.ctid = ANY (ARRAY(
               SELECT o.ctid FROM outbox.external_ref AS o
                WHERE o.ctid >= format('(%s,0)', block)::tid AND o.ctid < format('(%s,0)', block + 1000)::tid
                  AND o.updated_at < expired
                LIMIT 2000
                  FOR UPDATE SKIP LOCKED))
           AND NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = r.sync AND d.key = r.key)
           AND NOT EXISTS (SELECT FROM outbox.delivery_log AS l WHERE l.key = r.key AND l.sync = r.sync AND l.at >= expired);
        GET DIAGNOSTICS gone = ROW_COUNT;
        IF gone > 0 THEN
            done := 'references removed'; n := gone;
            RETURN NEXT;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        done := 'trouble: references were not removed: ' || SQLERRM; n := 0;
        RETURN NEXT;
    END;

    FOR old IN DELETE FROM outbox.heartbeat AS h
                WHERE h.ctid = ANY (ARRAY(
                      SELECT o.ctid FROM outbox.heartbeat AS o
                       WHERE o.seen_at NOT BETWEEN clock_timestamp() - interval '1 hour' AND clock_timestamp() + interval '1 hour'
                         FOR UPDATE SKIP LOCKED))
               RETURNING h.name, h.seen_at LOOP
        done := format('relay removed: %s, not seen since %s', outbox.clean(old.name), old.seen_at); n := 1;
        RETURN NEXT;
    END LOOP;

    -- Events that were written with triggers off: the latest events are checked, and after that the next 20,000 after those
    -- of the last call. This bounds the call.
    BEGIN
        PERFORM outbox.find_missed(coalesce((SELECT o.seq FROM outbox.event AS o ORDER BY o.seq DESC OFFSET 2000 LIMIT 1), 0), 2000);
        last := coalesce((SELECT s.after_seq FROM outbox.missed_scan AS s), 0);
        FOR i IN 1..10 LOOP
            last := outbox.find_missed(last, 2000);
            EXIT WHEN last IS NULL OR clock_timestamp() > now() + interval '7 seconds';
        END LOOP;
        DELETE FROM outbox.missed_scan;
        INSERT INTO outbox.missed_scan SELECT last WHERE last IS NOT NULL; -- at the end, the next call begins anew
    EXCEPTION WHEN OTHERS THEN
        done := 'trouble: events that were written with triggers off were not looked for: ' || SQLERRM; n := 0;
        RETURN NEXT;
    END;

    -- A restore with triggers off makes a guard an ordinary trigger, which does not fire in the session of a replica.
    FOR old IN SELECT c.oid::regclass AS name
                 FROM pg_class AS c
                 LEFT JOIN pg_trigger AS t ON t.tgrelid = c.oid AND t.tgname = 'append_only'
                WHERE (c.oid = 'outbox.delivery_log'::regclass
                       OR c.oid IN (SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = 'outbox.delivery_log'::regclass))
                  AND t.tgenabled IS DISTINCT FROM 'A'
                ORDER BY c.oid LOOP
        BEGIN
            PERFORM outbox.guard_log_partition(old.name);
            done := 'guard put back: ' || old.name; n := 1;
        EXCEPTION
            WHEN lock_not_available THEN
                done := 'guard deferred, the log is in use: ' || old.name; n := 0;
            WHEN OTHERS THEN
                done := format('trouble: the guard of %s is missing: %s', old.name, SQLERRM); n := 0;
        END;
        RETURN NEXT;
    END LOOP;

    -- Partitions for this month and the next three, in UTC, and for rows that are in the default partition because nobody
    -- called this function in time. A partition is filled and guarded before it is attached. ATTACH waits at most
    -- lock_timeout for the query of an auditor, and the next call tries again.
    SELECT array_agg(m.first ORDER BY m.first) INTO months
      FROM (SELECT date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') + make_interval(months => i)
              FROM generate_series(0, 3) AS i
             UNION
            SELECT date_trunc('month', l.at AT TIME ZONE 'UTC') FROM outbox.delivery_log_default AS l
             WHERE l.at >= first_month AND l.at < after_last) AS m (first);
    FOREACH month IN ARRAY months LOOP
        begins := month AT TIME ZONE 'UTC';
        ends := (month + interval '1 month') AT TIME ZONE 'UTC';
        part := 'delivery_log_' || to_char(month, 'YYYY_MM');
        CONTINUE WHEN to_regclass('outbox.' || part) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE TABLE outbox.%I (LIKE outbox.delivery_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', part);
            PERFORM outbox.guard_log_partition(('outbox.' || part)::regclass);
            IF EXISTS (SELECT FROM outbox.delivery_log_default AS l WHERE l.at >= begins AND l.at < ends) THEN
                ALTER TABLE outbox.delivery_log_default DISABLE TRIGGER append_only;
                EXECUTE format('WITH moved AS (DELETE FROM outbox.delivery_log_default WHERE at >= %L AND at < %L RETURNING *)
                                INSERT INTO outbox.%I SELECT * FROM moved', begins, ends, part);
                ALTER TABLE outbox.delivery_log_default ENABLE ALWAYS TRIGGER append_only;
            END IF;
            EXECUTE format('ALTER TABLE outbox.delivery_log ATTACH PARTITION outbox.%I FOR VALUES FROM (%L) TO (%L)',
                           part, begins, ends);
            done := 'partition created: ' || part; n := 1;
            RETURN NEXT;
        EXCEPTION
            WHEN lock_not_available OR check_violation THEN -- check_violation: a row came into the default partition meanwhile
                done := 'partition deferred, the log is in use: ' || part; n := 0;
                RETURN NEXT;
                EXIT;
            WHEN OTHERS THEN
                done := format('trouble: partition %s could not be made: %s', part, SQLERRM); n := 0;
                RETURN NEXT;
        END;
    END LOOP;

    FOR old IN SELECT c.relname AS name
                 FROM pg_inherits AS i
                 JOIN pg_class AS c ON c.oid = i.inhrelid
                WHERE i.inhparent = 'outbox.delivery_log'::regclass AND c.relname ~ '^delivery_log_\d{4}_(0[1-9]|1[0-2])$'
                  AND to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' < (clock_timestamp() AT TIME ZONE 'UTC') - log_kept
                ORDER BY c.relname LOOP
        BEGIN
            EXECUTE format('DROP TABLE outbox.%I', old.name);
            done := 'partition dropped: ' || old.name; n := 1;
            RETURN NEXT;
        EXCEPTION
            WHEN lock_not_available THEN
                done := 'drop deferred, the log is in use: ' || old.name; n := 0;
                RETURN NEXT;
                EXIT;
            WHEN OTHERS THEN
                done := format('trouble: %s could not be dropped: %s', old.name, SQLERRM); n := 0;
                RETURN NEXT;
        END;
    END LOOP;

    FOR old IN SELECT count(*) AS rows, min(l.at) AS first, max(l.at) AS last FROM outbox.delivery_log_default AS l
                WHERE l.at < first_month OR l.at >= after_last HAVING count(*) > 0 LOOP
        done := format('trouble: %s row(s) of the log have no possible time, from %s to %s, and stay in delivery_log_default', old.rows, old.first, old.last); n := old.rows;
        RETURN NEXT;
    END LOOP;

    FOR old IN SELECT count(*) AS events, min(m.inserted_at) AS first, max(m.inserted_at) AS last FROM outbox.missed AS m HAVING count(*) > 0 LOOP
        done := format('trouble: %s event(s) inserted from %s to %s have no delivery: they were written with triggers off; add them with: lockstep repair',
                       old.events, old.first, old.last); n := old.events;
        RETURN NEXT;
    END LOOP;

    done := outbox.sequence_trouble(); n := 1;
    IF done IS NOT NULL THEN
        done := 'trouble: ' || done;
        RETURN NEXT;
    END IF;

    -- Row-level security that is forced applies to the owner too, whose functions then do not see every row.
    FOR old IN SELECT c.oid::regclass AS place
                 FROM pg_class AS c
                WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p') AND row_security_active(c.oid)
                ORDER BY 1 LOOP
        done := format('trouble: row-level security of %s may hide rows from its owner; turn it off with: ALTER TABLE %1$s NO FORCE ROW LEVEL SECURITY', old.place); n := 1;
        RETURN NEXT;
    END LOOP;

    -- Triggers that are off, for instance after a restore that was interrupted: events would get no deliveries.
    FOR old IN SELECT t.tgname AS name, t.tgrelid::regclass AS place
                 FROM pg_trigger AS t
                 JOIN pg_class AS c ON c.oid = t.tgrelid
                WHERE c.relnamespace = 'outbox'::regnamespace AND t.tgenabled NOT IN ('O', 'A')
                ORDER BY 2, 1 LOOP
        done := format('trouble: trigger %s of %s is off; put it back with: ALTER TABLE %2$s ENABLE TRIGGER %1$I', old.name, old.place); n := 1;
        RETURN NEXT;
    END LOOP;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.maintain(interval, interval) IS 'Makes the log''s partitions three months ahead, drops those past retention, removes finished events and references. Arguments that are shorter than outbox.retention have no effect. Relays call it. It may be called at any time.';

SELECT * FROM outbox.maintain();

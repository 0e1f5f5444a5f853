-- +goose StatementBegin
CREATE FUNCTION outbox.check_sync(wanted text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF wanted IS NULL OR NOT EXISTS (SELECT FROM outbox.sync WHERE name = wanted) THEN
        RAISE EXCEPTION 'sync "%" is not registered', coalesce(wanted, '(null)')
            USING ERRCODE = 'no_data_found',
                  HINT = coalesce('Registered: ' || (SELECT string_agg(name, ', ' ORDER BY name) FROM outbox.sync), 'No sync is registered yet; lockstep run registers those of its file.');
    END IF;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION outbox.check_reason(reason text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF coalesce(btrim(reason), '') = '' THEN
        RAISE EXCEPTION 'a reason is required: it goes into the delivery log' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    RETURN left(outbox.clean(reason), 1000);
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION outbox.check_scope(scope text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
BEGIN
    IF length(scope) > 200 OR scope ~ '[\u0001-\u001F\u007F-\u009F]' THEN
        RAISE EXCEPTION 'a scope has at most 200 characters and no control characters'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It is a host, or what limits.per of the sync says, such as a court''s code.';
    END IF;
    RETURN coalesce(scope, '');
END
$$;
-- +goose StatementEnd

-- Logs the action of a person on one delivery.
-- +goose StatementBegin
CREATE FUNCTION outbox.log_action(d outbox.delivery, outcome text, reason text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, actor, reason)
    SELECT d.sync, d.event_id, e.type, d.key, e.version, d.total_attempts, log_action.outcome, d.error_class, d.error, d.revision, d.event_seq, outbox.actor(), log_action.reason
      FROM (SELECT 1) AS always
      LEFT JOIN outbox.event AS e ON e.id = d.event_id
$$;
-- +goose StatementEnd

-- A relay changes due_at together with state. An UPDATE of state alone was made by hand, and so was every UPDATE of a
-- failed row.
-- +goose StatementBegin
CREATE FUNCTION outbox.complete_requeue() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_state text;
BEGIN
    IF OLD.state <> 'failed' OR NEW.state <> 'pending' THEN
        SELECT o.state INTO found_state FROM outbox.open_delivery AS o
         WHERE o.sync = OLD.sync AND o.key = OLD.key AND o.event_seq = OLD.event_seq;
        RAISE EXCEPTION 'delivery of event % to "%" is %: it cannot be set to "%" by hand', OLD.event_id, OLD.sync, coalesce(found_state, OLD.state), NEW.state
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Only failed deliveries can be requeued: UPDATE outbox.delivery SET state = ''pending'' WHERE state = ''failed'' AND … . To give one up, use outbox.discard; to stop a sync, outbox.pause.';
    END IF;
    NEW.changed_in := pg_current_xact_id(); -- relays find it by this, and make its lane due
    NEW.due_at := clock_timestamp();
    NEW.attempts := 0;
    NEW.charged := 0;
    NEW.unclear := 0;
    NEW.spent_ms := 0;
    NEW.error_class := NULL;
    NEW.error := NULL;
    NEW.failure_told := false;
    NEW.body := NULL; -- it is rendered again, because the mapping may have been repaired; mapping_version keeps the route of the last attempt
    PERFORM outbox.log_action(OLD, 'requeued', left(outbox.clean(nullif(current_setting('lockstep.reason', true), '')), 1000));
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER complete_requeue BEFORE UPDATE OF state ON outbox.delivery
    FOR EACH ROW
    WHEN (OLD.state = 'failed' OR NEW.due_at IS NOT DISTINCT FROM OLD.due_at)
    EXECUTE FUNCTION outbox.complete_requeue();

-- +goose StatementBegin
CREATE FUNCTION outbox.requeue(sync text, key text DEFAULT NULL, event_id uuid DEFAULT NULL, reason text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    requeued bigint;
    found_state text;
    before text := coalesce(current_setting('lockstep.reason', true), '');
BEGIN
    PERFORM outbox.check_sync(requeue.sync);
    PERFORM set_config('lockstep.reason', left(coalesce(requeue.reason, ''), 1000), true);
    UPDATE outbox.delivery AS d
       SET state = 'pending'
     WHERE d.sync = requeue.sync AND d.state = 'failed'
       AND (requeue.key IS NULL OR d.key = requeue.key)
       AND (requeue.event_id IS NULL OR d.event_id = requeue.event_id);
    GET DIAGNOSTICS requeued = ROW_COUNT;
    PERFORM set_config('lockstep.reason', before, true);
    IF requeued = 0 AND requeue.event_id IS NOT NULL THEN
        SELECT CASE WHEN requeue.key <> d.key THEN format('it is not of key "%s"', requeue.key) ELSE 'it is ' || d.state END
          INTO found_state
          FROM outbox.open_delivery AS d
         WHERE d.sync = requeue.sync AND d.event_id = requeue.event_id LIMIT 1;
        RAISE EXCEPTION 'event % has no failed delivery to "%": %', requeue.event_id, requeue.sync,
                coalesce(found_state, 'it has no open delivery')
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Ask outbox.why_not_delivered; a delivered event is sent again with outbox.replay.';
    END IF;
    RETURN requeued;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.requeue(text, text, uuid, text) IS 'Gives failed deliveries of a sync (of one key, of one event) a new life. Returns how many.';

-- +goose StatementBegin
CREATE FUNCTION outbox.check_sees_claims(caller text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION '% cannot see in a % transaction what a relay has claimed since the transaction began', caller, current_setting('transaction_isolation')
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Use it in a transaction of its own: BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;
END
$$;
-- +goose StatementEnd

-- The caller has locked deliveries. A relay does not send a first delivery that is locked. But a relay that read it before it
-- was locked may not have committed its claim yet. Until it commits, it has a lock on outbox.lane. So wait for the
-- transactions that have such a lock now: afterwards either their claim is visible, or none of them sends these deliveries.
-- Other transactions that discard claim nothing. Their advisory lock tells them apart.
-- +goose StatementBegin
CREATE FUNCTION outbox.wait_for_claims() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    discards CONSTANT bigint := 1869967991; -- advisory lock of transactions that claim nothing
    others   text[];
    deadline timestamptz := clock_timestamp() + interval '2 seconds';
BEGIN
    PERFORM pg_try_advisory_xact_lock_shared(discards);
    LOOP
        SELECT coalesce(array_agg(l.virtualtransaction), '{}') INTO others
          FROM pg_locks AS l
         WHERE l.locktype = 'relation' AND l.relation = 'outbox.lane'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
           AND l.database = (SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database())
           AND l.pid IS DISTINCT FROM pg_backend_pid()
           AND (others IS NULL OR l.virtualtransaction = ANY (others))
           AND NOT EXISTS (SELECT FROM pg_locks AS a
                            WHERE a.locktype = 'advisory' AND a.database = l.database AND a.virtualtransaction = l.virtualtransaction
                              AND (a.classid::bigint << 32 | a.objid::bigint) = discards AND a.objsubid = 1);
        EXIT WHEN others = '{}';
        IF clock_timestamp() > deadline THEN
            RAISE EXCEPTION 'nothing can be discarded now: another transaction has been changing lanes for two seconds'
                USING ERRCODE = 'lock_not_available', HINT = 'Try again. See pg_locks for relation outbox.lane.';
        END IF;
        PERFORM pg_sleep(0.002);
    END LOOP;
END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION outbox.discard(sync text, event_id uuid, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
    d outbox.delivery;
    c record;
    leads boolean;
BEGIN
    PERFORM outbox.check_sync(discard.sync);
    PERFORM outbox.check_reason(discard.reason);
    PERFORM outbox.check_sees_claims('outbox.discard');
    SELECT * INTO d FROM outbox.delivery AS o
     WHERE o.sync = discard.sync AND o.event_id = discard.event_id
       AND o.key = (SELECT e.key FROM outbox.event AS e WHERE e.id = discard.event_id)
       FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'event % has no open delivery to "%"', discard.event_id, discard.sync
            USING ERRCODE = 'no_data_found', HINT = 'Ask outbox.why_not_delivered what became of it.';
    END IF;
    FOR pass IN 1..2 LOOP -- before and after the wait
        SELECT o.claimed_by, o.lease_until INTO c FROM outbox.open_delivery AS o
         WHERE o.sync = d.sync AND o.key = d.key AND o.event_seq = d.event_seq AND o.state = 'sending';
        IF FOUND THEN
            RAISE EXCEPTION 'event % is being sent to "%" by % until %: it cannot be discarded now', d.event_id, d.sync, c.claimed_by, c.lease_until
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Pause the sync with outbox.pause, wait for the answer, then discard.';
        END IF;
        EXIT WHEN pass = 2;
        PERFORM outbox.wait_for_claims();
    END LOOP;
    leads := NOT EXISTS (SELECT FROM outbox.delivery AS o WHERE o.sync = d.sync AND o.key = d.key AND o.event_seq < d.event_seq);
    PERFORM outbox.log_action(d, 'discarded', outbox.check_reason(discard.reason));
    DELETE FROM outbox.delivery AS o WHERE o.sync = d.sync AND o.key = d.key AND o.event_seq = d.event_seq;
    -- The delivery behind it may be sent now. If a relay has the claim, it reads the lane again when it records. It cannot
    -- record before this transaction ends.
    UPDATE outbox.lane AS l
       SET due_at = CASE WHEN l.claim IS NULL THEN clock_timestamp() ELSE l.due_at END,
           crashes = CASE WHEN l.claim IS NULL AND leads THEN 0 ELSE l.crashes END,
           judged = 0
     WHERE l.sync = d.sync AND l.key = d.key;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.discard(text, uuid, text) IS 'Gives a delivery up for good; refused while it is being sent.';

-- A retired sync gets no new events, but its open deliveries stay until a relay sends them. This function is for a sync that
-- no relay serves any more. A relay that died may have sent the first delivery of a lane that it had claimed: the log says
-- so, as it does when another relay takes over.
-- +goose StatementBegin
CREATE FUNCTION outbox.discard_all(sync text, reason text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
    is_retired boolean;
    relays text;
    discarded bigint;
BEGIN
    PERFORM outbox.check_sync(discard_all.sync);
    PERFORM outbox.check_reason(discard_all.reason);
    PERFORM outbox.check_sees_claims('outbox.discard_all');
    SELECT s.retired_at IS NOT NULL INTO is_retired FROM outbox.sync AS s WHERE s.name = discard_all.sync FOR NO KEY UPDATE;
    IF NOT is_retired THEN
        RAISE EXCEPTION 'sync "%" still gets events: what comes after this call would stay open', discard_all.sync
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Retire it first, with outbox.retire or lockstep retire.';
    END IF;
    SELECT string_agg(r.name, ', ' ORDER BY r.name) INTO relays FROM outbox.relay AS r WHERE r.running AND discard_all.sync = ANY (r.syncs);
    IF relays IS NOT NULL THEN
        RAISE EXCEPTION 'sync "%" is served by % and not orphaned: its open deliveries are being sent', discard_all.sync, relays
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Take the sync out of the configuration and restart the relay, or discard single events with outbox.discard.';
    END IF;
    PERFORM FROM outbox.delivery AS d WHERE d.sync = discard_all.sync FOR UPDATE;
    PERFORM outbox.wait_for_claims();
    SELECT l.claimed_by INTO relays FROM outbox.lane AS l WHERE l.sync = discard_all.sync AND l.claim IS NOT NULL AND l.due_at > clock_timestamp() LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'deliveries of sync "%" are claimed by %', discard_all.sync, relays
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Wait until its leases have ended, which is a minute by default, or stop it.';
    END IF;
    INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, claim, relay)
    SELECT d.sync, d.event_id, e.type, d.key, e.version, d.total_attempts + 1, 'unknown', 'unknown',
           'the relay that was sending it did not come back before its lease ended', d.revision, d.event_seq,
           coalesce(l.lost_claim, l.claim), coalesce(l.lost_by, l.claimed_by)
      FROM outbox.lane AS l
     CROSS JOIN LATERAL (SELECT * FROM outbox.delivery AS o WHERE o.sync = l.sync AND o.key = l.key ORDER BY o.event_seq LIMIT 1) AS d
      LEFT JOIN outbox.event AS e ON e.id = d.event_id
     WHERE l.sync = discard_all.sync AND (l.claim IS NOT NULL OR l.lost_claim IS NOT NULL) AND d.state <> 'failed';
    -- One statement, so that it logs what it removes: a writer that sees the sync not retired may commit at any time.
    WITH removed AS (
        DELETE FROM outbox.delivery AS d WHERE d.sync = discard_all.sync RETURNING d
    )
    SELECT count(*) INTO discarded
      FROM (SELECT outbox.log_action(r.d, 'discarded', outbox.check_reason(discard_all.reason))
              FROM (SELECT d FROM removed ORDER BY (d).event_seq) AS r) AS logged;
    DELETE FROM outbox.lane AS l WHERE l.sync = discard_all.sync;
    RETURN discarded;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.discard_all(text, text) IS 'Gives up all open deliveries of a retired sync that no running relay serves. Returns how many.';

-- +goose StatementBegin
CREATE FUNCTION outbox.replay(sync text, event_id uuid, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    e outbox.event;
    d outbox.delivery;
    found_state text;
    replay_at timestamptz := clock_timestamp();
BEGIN
    PERFORM outbox.check_sync(replay.sync);
    PERFORM outbox.check_reason(replay.reason);
    -- The lock prevents that retention removes the event, and that another replay gets the same revision. It is an update
    -- that changes nothing, so that a transaction whose snapshot hides an earlier replay is refused.
    UPDATE outbox.event AS o SET headers = o.headers WHERE o.id = replay.event_id RETURNING * INTO e;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'event % does not exist or is past its retention', replay.event_id USING ERRCODE = 'no_data_found';
    END IF;
    SELECT o.state INTO found_state FROM outbox.open_delivery AS o
     WHERE o.sync = replay.sync AND o.key = e.key AND o.event_id = e.id LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'event % is still % for "%": there is nothing to replay yet', e.id, found_state, replay.sync
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'A failed delivery is sent again with outbox.requeue.';
    END IF;
    -- A new revision may have a new body: the digest of the old one is left out.
    SELECT max(l.attempt), max(l.revision) + 1
      INTO d.total_attempts, d.revision
      FROM outbox.delivery_log AS l
     WHERE l.sync = replay.sync AND l.event_id = e.id;
    IF d.revision IS NULL THEN
        RAISE EXCEPTION 'event % was never delivered to "%"', e.id, replay.sync
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Ask outbox.why_not_delivered what became of it.';
    END IF;
    INSERT INTO outbox.delivery (sync, key, event_seq, event_id, total_attempts, revision, created_at, needed_by, escalates_at)
    SELECT s.name, e.key, nextval(pg_get_serial_sequence('outbox.event', 'seq')), e.id, coalesce(d.total_attempts, 0), d.revision,
           replay_at, n.needed_by, outbox.escalates_at(e.type, n.needed_by, replay_at, s.escalate_before, s.escalate_after)
      FROM outbox.sync AS s
     CROSS JOIN LATERAL (SELECT outbox.needed_by(e.type, e.payload, s.escalate_at, s.escalate_zone) AS needed_by) AS n
     WHERE s.name = replay.sync
    RETURNING * INTO d;
    PERFORM outbox.log_action(d, 'replayed', outbox.check_reason(replay.reason));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.replay(text, uuid, text) IS 'Sends a finished event to a sync once more, at the end of its key''s lane, with the Idempotency-Key "<id>:<n>".';

-- +goose StatementBegin
CREATE FUNCTION outbox.pause(sync text, reason text, until timestamptz DEFAULT NULL, scope text DEFAULT '') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    part text := outbox.check_scope(pause.scope);
BEGIN
    PERFORM outbox.check_sync(pause.sync);
    PERFORM outbox.check_reason(pause.reason);
    IF pause.until <= clock_timestamp() OR pause.until = 'infinity' THEN
        RAISE EXCEPTION 'a pause of sync "%" cannot end at %', pause.sync, pause.until
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = format('By the database''s clock it is %s. Give a later time, or none: then the pause ends with outbox.resume.', clock_timestamp());
    END IF;
    INSERT INTO outbox.hold AS h (sync, scope, kind, until, reason, by)
    VALUES (pause.sync, part, 'operator', pause.until, outbox.check_reason(pause.reason), outbox.actor())
    ON CONFLICT ON CONSTRAINT hold_pkey DO UPDATE
       SET until = excluded.until, reason = excluded.reason, by = excluded.by,
           since = CASE WHEN h.until <= clock_timestamp() THEN excluded.since ELSE h.since END; -- the earlier pause had ended
    INSERT INTO outbox.delivery_log (sync, outcome, actor, reason)
    VALUES (pause.sync, 'paused', outbox.actor(),
            left(concat(CASE WHEN part <> '' THEN format('scope %s: ', part) END, to_char(pause.until AT TIME ZONE 'UTC', '"until "YYYY-MM-DD"T"HH24:MI:SS"Z: "'),
                        outbox.check_reason(pause.reason)), 1000));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.pause(text, text, timestamptz, text) IS 'Puts a sync, or one scope of it, on the operator''s hold: nothing more is sent until the given time, or until outbox.resume.';

-- +goose StatementBegin
CREATE FUNCTION outbox.resume(sync text, scope text DEFAULT '', reason text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    part   text := outbox.check_scope(resume.scope);
    paused text;
    lifted boolean;
BEGIN
    PERFORM outbox.check_sync(resume.sync);
    DELETE FROM outbox.hold AS h WHERE h.sync = resume.sync AND h.scope = part AND h.kind = 'operator'
    RETURNING h.until IS NULL OR h.until > clock_timestamp() INTO lifted;
    IF lifted IS NOT TRUE THEN -- there was no pause, or it had ended
        SELECT string_agg(CASE h.scope WHEN '' THEN 'the whole sync' ELSE format('scope %s', h.scope) END, ', ' ORDER BY h.scope) INTO paused
          FROM (SELECT o.scope FROM outbox.hold AS o
                 WHERE o.sync = resume.sync AND o.kind = 'operator' AND (o.until IS NULL OR o.until > clock_timestamp()) ORDER BY o.scope LIMIT 10) AS h;
        RAISE NOTICE 'sync "%"% was not paused by an operator%', resume.sync, CASE part WHEN '' THEN '' ELSE format(', scope %s', part) END,
            coalesce(', but this was: ' || paused || CASE part WHEN '' THEN '; name the scope to resume it (--scope, or scope => in SQL)' ELSE '' END, '');
        RETURN;
    END IF;
    INSERT INTO outbox.delivery_log (sync, outcome, actor, reason)
    VALUES (resume.sync, 'resumed', outbox.actor(),
            nullif(left(concat_ws(': ', CASE WHEN part <> '' THEN format('scope %s', part) END, nullif(btrim(outbox.clean(resume.reason)), '')), 1000), ''));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.resume(text, text, text) IS 'Lifts the operator''s hold of a sync, or of one scope of it, and no other.';

-- +goose StatementBegin
CREATE FUNCTION outbox.retire(sync text, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    before text := coalesce(current_setting('lockstep.reason', true), '');
BEGIN
    PERFORM outbox.check_sync(retire.sync);
    PERFORM set_config('lockstep.reason', outbox.check_reason(retire.reason), true); -- log_sync_change writes it to the log
    UPDATE outbox.sync AS s SET retired_at = clock_timestamp() WHERE s.name = retire.sync AND s.retired_at IS NULL;
    IF NOT FOUND THEN
        RAISE NOTICE 'sync "%" is retired already', retire.sync;
    END IF;
    PERFORM set_config('lockstep.reason', before, true);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.retire(text, text) IS 'Ends the fan-out of new events to a sync; its open work stays and is still delivered.';

-- Undoes outbox.retire as if it had not been called: a backfill adds the events that were written meanwhile. Its plan is
-- that of outbox.Store.Apply in Go. Events are not sent before it has waited for the transactions that see the sync retired.
-- +goose StatementBegin
CREATE FUNCTION outbox.resume_retired(sync text, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
    retired timestamptz;
    before  text := coalesce(current_setting('lockstep.reason', true), '');
BEGIN
    PERFORM outbox.check_sync(resume_retired.sync);
    PERFORM outbox.check_reason(resume_retired.reason);
    PERFORM pg_advisory_xact_lock(1869967990); -- changes of syncs are made one after the other
    SELECT s.retired_at INTO retired FROM outbox.sync AS s WHERE s.name = resume_retired.sync FOR UPDATE;
    IF retired IS NULL THEN
        RAISE NOTICE 'sync "%" is not retired', resume_retired.sync;
        RETURN;
    END IF;
    PERFORM set_config('lockstep.reason', outbox.check_reason(resume_retired.reason), true); -- log_sync_change writes it to the log
    UPDATE outbox.sync AS s
       SET retired_at = NULL,
           settled = CASE WHEN s.backfill_seq IS NOT NULL AND s.settled IS NULL THEN NULL ELSE '{}'::text[] END
     WHERE s.name = resume_retired.sync;
    PERFORM set_config('lockstep.reason', before, true);
    PERFORM outbox.begin_backfill(resume_retired.sync, retired, true);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.resume_retired(text, text) IS 'Undoes outbox.retire: the sync takes events again, and gets those that were written while it was retired.';

-- Sets what the receiver knows a key by, such as an id that the receiver gave before the sync was there. Relays may be sending
-- to this key. The claim reads times_set with the reference, and the recording changes the reference only if times_set is
-- still the same:
--
--   relay     claims, reads times_set 0 …  sends with the old reference …  records: the reference stays as set here
--   operator                              sets the id, times_set 1
--   relay                                                                  claims, reads the new id and times_set 1 …  records its answer
--
-- A recording that comes between this function and its COMMIT waits for the row, alone, and then finds times_set 1.
-- +goose StatementBegin
CREATE FUNCTION outbox.set_reference(sync text, key text, external_id text, etag text, reason text, learned jsonb DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
    most        CONSTANT int := 512; -- bytes; adapters.MaxRef in Go
    most_values CONSTANT int := 16;  -- adapters.MaxLearned in Go
    new_id      CONSTANT text := nullif(set_reference.external_id, '');
    new_values  CONSTANT jsonb := nullif(set_reference.learned, 'null');
    given text;
BEGIN
    PERFORM outbox.check_sync(set_reference.sync);
    PERFORM outbox.check_reason(set_reference.reason);
    IF coalesce(set_reference.key, '') = '' OR octet_length(set_reference.key) > 512 THEN
        RAISE EXCEPTION 'a reference needs a key of at most 512 bytes: the key of the events, such as the hearing''s id'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF jsonb_typeof(new_values) <> 'object' OR jsonb_path_exists(new_values, 'strict $.* ? (@.type() != "string")') THEN
        RAISE EXCEPTION 'the learned values of key "%" must be an object of texts, such as {"versionNumber": "4"}', set_reference.key
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (SELECT count(*) > most_values OR bool_or('' IN (v.name, v.value)) FROM jsonb_each_text(new_values) AS v (name, value)) THEN
        RAISE EXCEPTION 'the reference of key "%" has at most % learned values, and no empty name or value', set_reference.key, most_values
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR given IN
        SELECT unnest(ARRAY[new_id, set_reference.etag])
        UNION ALL
        SELECT unnest(ARRAY[v.name, v.value]) FROM jsonb_each_text(new_values) AS v (name, value)
    LOOP
        IF octet_length(given) > most OR given <> outbox.clean(given) THEN
            RAISE EXCEPTION 'the reference of key "%" cannot be kept: an external id, ETag or learned value has at most % bytes, and only characters that print', set_reference.key, most
                USING ERRCODE = 'invalid_parameter_value', HINT = 'A changed id would address another record of the receiver.';
        END IF;
    END LOOP;
    IF set_reference.etag <> '' AND set_reference.etag !~ '^(W/)?"[!#-~]*"$' THEN -- RFC 9110, 8.8.3, ASCII only
        RAISE EXCEPTION 'the ETag of key "%" cannot be sent: write it with its quotes, ''"v2"'' or ''W/"v2"''', set_reference.key
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO outbox.external_ref AS r (sync, key, external_id, etag, event_seq, times_set, learned)
    VALUES (set_reference.sync, set_reference.key, new_id, nullif(set_reference.etag, ''), 0, 1, coalesce(new_values, '{}'))
    ON CONFLICT ON CONSTRAINT external_ref_pkey DO UPDATE
       SET external_id = excluded.external_id, etag = excluded.etag, version = NULL, request_sha256 = NULL,
           learned = CASE WHEN new_values IS NULL AND r.external_id IS NOT DISTINCT FROM new_id THEN r.learned ELSE excluded.learned END,
           updated_at = clock_timestamp(), event_seq = 0, times_set = r.times_set + 1;
    INSERT INTO outbox.delivery_log (sync, key, outcome, external_id, actor, reason)
    VALUES (set_reference.sync, set_reference.key, 'reference_set', new_id, outbox.actor(), outbox.check_reason(set_reference.reason));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.set_reference(text, text, text, text, text, jsonb) IS 'Sets the external id, ETag and learned values by which the receiver knows a key, for the next delivery of that key. An external id or ETag that is null is not known. If learned is null, the learned values stay while the external id stays the same, and are emptied when it changes.';

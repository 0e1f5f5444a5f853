-- Adds a delivery for each sync that takes the event. It only inserts, and locks nothing: writers never wait for relays.
-- While types are being added to a running sync, their deliveries wait: transactions that do not see the change may still
-- write earlier events of these types.
-- +goose StatementBegin
CREATE FUNCTION outbox.fan_out() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    written_at timestamptz := clock_timestamp(); -- not now(), which is when the transaction began
    matched    boolean;
    several    boolean;
    listening  boolean;
BEGIN
    INSERT INTO outbox.delivery (sync, key, event_seq, event_id, due_at, created_at, error_class, error, needed_by, escalates_at)
    SELECT s.name, e.key, e.seq, e.id, CASE WHEN w.waits THEN 'infinity' ELSE written_at END, written_at,
           CASE WHEN w.waits THEN 'backfill' END, CASE WHEN w.waits THEN 'its type was added to the sync, and earlier events of it may still be missing' END,
           n.needed_by, outbox.escalates_at(e.type, n.needed_by, written_at, s.escalate_before, s.escalate_after)
      FROM new_event AS e
      JOIN outbox.sync AS s ON s.retired_at IS NULL AND outbox.takes(s.name, s.likes, s.operator_likes, e.type, e.key)
     CROSS JOIN LATERAL (SELECT s.backfill_seq IS NOT NULL AND s.settled IS NOT NULL AND NOT outbox.takes(s.name, s.settled_likes, s.settled_operator_likes, e.type, e.key) AS waits) AS w
     CROSS JOIN LATERAL (SELECT CASE WHEN s.escalate_at <> '{}' THEN outbox.needed_by(e.type, e.payload, s.escalate_at, s.escalate_zone) END AS needed_by OFFSET 0) AS n;
    matched := FOUND;
    -- Every writer waits for this function, and each statement in it costs time. So the INSERT below runs only if events
    -- may be unmatched: a single event with a delivery is matched, but some of several events may not be.
    SELECT EXISTS (SELECT FROM new_event OFFSET 1), EXISTS (SELECT FROM outbox.sync AS s WHERE s.notify AND s.retired_at IS NULL)
      INTO several, listening;
    IF several OR NOT matched THEN
        INSERT INTO outbox.unmatched (event_seq, event_id, type, inserted_at)
        SELECT e.seq, e.id, e.type, e.inserted_at
          FROM new_event AS e
         WHERE NOT starts_with(e.type, 'lockstep:')
           AND NOT EXISTS (SELECT FROM outbox.sync AS s WHERE s.retired_at IS NULL AND outbox.takes(s.name, s.likes, s.operator_likes, e.type, e.key));
    END IF;
    IF matched AND listening THEN
        PERFORM pg_notify('outbox', s.name)
           FROM outbox.sync AS s
          WHERE s.notify AND s.retired_at IS NULL
            AND EXISTS (SELECT FROM new_event AS e WHERE outbox.takes(s.name, s.likes, s.operator_likes, e.type, e.key));
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER fan_out AFTER INSERT ON outbox.event
    REFERENCING NEW TABLE AS new_event
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.fan_out();

-- +goose StatementBegin
CREATE FUNCTION outbox.emit(type text, key text, payload jsonb, version bigint DEFAULT NULL, headers jsonb DEFAULT '{}', id uuid DEFAULT NULL)
RETURNS uuid LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    lock_space CONSTANT int := 1869967987; -- ours alone: the bytes of 'outs'
    most       CONSTANT int := 1000;
    calls      int := coalesce(nullif(current_setting('lockstep.emit_calls', true), ''), '0')::int;
    held       int;
    known      boolean;
    written    uuid;
BEGIN
    -- Count the locks only if there may be too many, because a read of pg_locks is slow.
    IF calls >= most THEN
        SELECT count(*), coalesce(bool_or(l.objid::bigint = (hashtext(emit.key)::bigint & 4294967295)), false)
          INTO held, known
          FROM pg_locks AS l
         WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid() AND l.classid = lock_space::oid AND l.objsubid = 2;
        IF held >= most AND NOT known THEN
            RAISE EXCEPTION 'outbox.emit refuses more than % keys in one transaction', most
                USING ERRCODE = 'program_limit_exceeded',
                      HINT = 'Each key takes a lock. Use several transactions, or lock your own rows of these keys first and INSERT INTO outbox.event directly.';
        END IF;
        calls := least(held, most - 1);
    END IF;
    PERFORM set_config('lockstep.emit_calls', (calls + 1)::text, true);
    PERFORM pg_advisory_xact_lock(lock_space, hashtext(emit.key)); -- before the sequence number is drawn
    IF emit.id IS NULL THEN
        INSERT INTO outbox.event (type, key, version, payload, headers)
        VALUES (emit.type, emit.key, emit.version, emit.payload, coalesce(emit.headers, '{}'))
        RETURNING event.id INTO written;
    ELSE
        INSERT INTO outbox.event (id, type, key, version, payload, headers)
        VALUES (emit.id, emit.type, emit.key, emit.version, emit.payload, coalesce(emit.headers, '{}'))
        RETURNING event.id INTO written;
    END IF;
    RETURN written;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.emit(text, text, jsonb, bigint, jsonb, uuid) IS 'Writes an event, for writers without a row of the key to lock. The order of a key is the order of these calls.';

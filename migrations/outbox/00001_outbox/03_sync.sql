-- The patterns that begin so, as LIKE takes them.
-- +goose StatementBegin
CREATE FUNCTION outbox.like_patterns(patterns text[], beginning text DEFAULT '') RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
    SELECT coalesce(array_agg(replace(regexp_replace(p, '([\\%_])', '\\\1', 'g'), '*', '%')), '{}')
      FROM unnest(patterns) AS p
     WHERE starts_with(p, beginning)
$$;
-- +goose StatementEnd

-- Whether a sync takes an event. The first list has all patterns of the sync, the second those that begin with lockstep: .
-- Only the latter match operator events, which outbox.raise_alerts writes. Their key is the name of the sync that they are
-- about, and that sync does not take them.
CREATE FUNCTION outbox.takes(sync text, likes text[], operator_likes text[], type text, key text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN type LIKE ANY (CASE WHEN NOT starts_with(type, 'lockstep:') THEN likes WHEN key <> sync THEN operator_likes ELSE '{}' END);

CREATE TABLE outbox.sync (
    name              text        COLLATE "C" NOT NULL,
    patterns          text[]      NOT NULL,
    on_failed         text        NOT NULL DEFAULT 'block',
    hold_kind         text,
    hold_until        timestamptz,
    hold_reason       text,
    hold_by           text,
    notify            boolean     NOT NULL DEFAULT false,
    registered_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    registered_by     text        NOT NULL DEFAULT session_user,
    retired_at        timestamptz,
    last_delivered_at timestamptz,
    -- When an open delivery is escalated: shortly before the time in the payload, or when the delivery is old.
    escalate_at       text[]      NOT NULL DEFAULT '{}',
    escalate_zone     text        NOT NULL DEFAULT 'UTC',
    escalate_before   interval,
    escalate_after    interval,
    -- The policy was changed, and open deliveries after this key still have times of the old policy. Null: none has.
    escalate_recount  text        COLLATE "C",
    -- The events that a backfill has not added yet; null without a backfill. They are retained events with a seq above
    -- backfill_seq that were inserted at or after backfill_from, or whose seq is in backfill_unseen.
    backfill_from     timestamptz,
    backfill_unseen   int8multirange,
    backfill_seq      bigint,
    -- Whether the backfill still waits for transactions that may not see the latest change of the patterns.
    backfill_waits    boolean     NOT NULL DEFAULT false,
    backfill_round    int         NOT NULL DEFAULT 0,
    backfill_reason   text,
    -- The patterns that every open transaction sees, while patterns are added to a running sync. Deliveries of other types
    -- wait. Null if no patterns are being added, or if the whole sync is on hold meanwhile.
    settled           text[],
    likes             text[]      NOT NULL GENERATED ALWAYS AS (outbox.like_patterns(patterns)) STORED,
    settled_likes     text[]      NOT NULL GENERATED ALWAYS AS (outbox.like_patterns(settled)) STORED,
    operator_likes         text[] NOT NULL GENERATED ALWAYS AS (outbox.like_patterns(patterns, 'lockstep:')) STORED,
    settled_operator_likes text[] NOT NULL GENERATED ALWAYS AS (outbox.like_patterns(settled, 'lockstep:')) STORED,
    CONSTRAINT sync_pkey PRIMARY KEY (name),
    CONSTRAINT sync_name_form CHECK (name ~ '^[A-Za-z0-9_.-]{1,63}$'),
    CONSTRAINT sync_patterns_not_empty CHECK (cardinality(patterns) > 0),
    CONSTRAINT sync_on_failed_known CHECK (on_failed IN ('block', 'supersede')),
    CONSTRAINT sync_escalate_paths CHECK (cardinality(escalate_at) <= 8 AND array_position(escalate_at, NULL) IS NULL),
    CONSTRAINT sync_escalate_before CHECK (escalate_before IS NULL OR escalate_before >= '0' AND escalate_at <> '{}'),
    CONSTRAINT sync_escalate_after CHECK (escalate_after >= '0')
);
COMMENT ON TABLE outbox.sync IS 'Registered connections, each with its strongest hold: the reason why it sends nothing for now.';
COMMENT ON COLUMN outbox.sync.escalate_at IS 'Where the payload has the time by which the receiver needs the event, such as scheduledAt: the earliest of these paths counts.';
COMMENT ON COLUMN outbox.sync.escalate_zone IS 'The zone of times without an offset.';
COMMENT ON COLUMN outbox.sync.escalate_before IS 'An open delivery is escalated when its time is nearer than this.';
COMMENT ON COLUMN outbox.sync.escalate_after IS 'An open delivery is escalated when it is older than this.';
COMMENT ON COLUMN outbox.sync.backfill_reason IS 'What the backfill does or waits for, such as the pid of the oldest transaction; null without a backfill.';
COMMENT ON COLUMN outbox.sync.backfill_round IS 'Counts the changes of the patterns. A relay that waits for transactions begins again after another change.';

-- Relays and commands change outbox.sync directly. The log has rows about each change that affects what a receiver gets.
-- +goose StatementBegin
CREATE FUNCTION outbox.log_sync_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO, MDY' AS $$ -- for the times in its text
BEGIN
    -- One row for each pattern and each attribute, because the text of a row is bounded.
    INSERT INTO outbox.delivery_log (sync, outcome, actor, reason)
    SELECT NEW.name, 'sync_changed', outbox.actor(), left(outbox.clean(c.said), 1000)
      FROM (SELECT format('events: %s removed', p.pattern) AS said, 1 AS part, p.pattern
              FROM unnest(OLD.patterns) AS p (pattern) WHERE p.pattern <> ALL (NEW.patterns)
             UNION ALL
            SELECT format('events: %s added', p.pattern), 2, p.pattern
              FROM unnest(NEW.patterns) AS p (pattern) WHERE p.pattern <> ALL (OLD.patterns)
             UNION ALL
            SELECT format('on_failed: %s to %s', OLD.on_failed, NEW.on_failed), 3, '' WHERE NEW.on_failed <> OLD.on_failed
             UNION ALL
            SELECT format('notify: %s to %s', OLD.notify, NEW.notify), 4, '' WHERE NEW.notify <> OLD.notify
             UNION ALL
            SELECT format('escalate: at %s in %s, before %s, after %s', coalesce(nullif(array_to_string(NEW.escalate_at, ', '), ''), 'nothing'), NEW.escalate_zone,
                          coalesce(NEW.escalate_before::text, 'none'), coalesce(NEW.escalate_after::text, 'none')), 6, ''
             WHERE (NEW.escalate_at, NEW.escalate_zone, NEW.escalate_before, NEW.escalate_after)
                   IS DISTINCT FROM (OLD.escalate_at, OLD.escalate_zone, OLD.escalate_before, OLD.escalate_after)
             UNION ALL
            SELECT concat(format('retired: since %s to %s', OLD.retired_at, coalesce('since ' || NEW.retired_at, 'no')), ': ' || nullif(current_setting('lockstep.reason', true), '')), 5, ''
             WHERE OLD.retired_at IS NOT NULL AND NEW.retired_at IS DISTINCT FROM OLD.retired_at) AS c
     ORDER BY c.part, c.pattern;
    IF OLD.retired_at IS NULL AND NEW.retired_at IS NOT NULL THEN
        INSERT INTO outbox.delivery_log (sync, outcome, actor, reason)
        VALUES (NEW.name, 'retired', outbox.actor(), left(outbox.clean(nullif(current_setting('lockstep.reason', true), '')), 1000));
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER log_change AFTER UPDATE ON outbox.sync
    FOR EACH ROW
    WHEN (NEW.patterns IS DISTINCT FROM OLD.patterns OR NEW.on_failed IS DISTINCT FROM OLD.on_failed
          OR NEW.notify IS DISTINCT FROM OLD.notify OR NEW.retired_at IS DISTINCT FROM OLD.retired_at
          OR NEW.escalate_at IS DISTINCT FROM OLD.escalate_at OR NEW.escalate_zone IS DISTINCT FROM OLD.escalate_zone
          OR NEW.escalate_before IS DISTINCT FROM OLD.escalate_before OR NEW.escalate_after IS DISTINCT FROM OLD.escalate_after)
    EXECUTE FUNCTION outbox.log_sync_change();


-- The row of a sync says when and by whom it was registered. This cannot be changed.
-- +goose StatementBegin
CREATE FUNCTION outbox.keep_registration() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.registered_at := clock_timestamp();
        NEW.registered_by := session_user;
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'sync "%": its name, and when and by whom it was registered, cannot be changed', OLD.name
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Retire it and register another one.';
END
$$;
-- +goose StatementEnd
CREATE TRIGGER sign_registration BEFORE INSERT ON outbox.sync
    FOR EACH ROW EXECUTE FUNCTION outbox.keep_registration();
CREATE TRIGGER keep_registration BEFORE UPDATE ON outbox.sync
    FOR EACH ROW
    WHEN (NEW.name <> OLD.name OR NEW.registered_at IS DISTINCT FROM OLD.registered_at OR NEW.registered_by IS DISTINCT FROM OLD.registered_by)
    EXECUTE FUNCTION outbox.keep_registration();

-- Transactions that may still insert events without seeing a sync that was committed before this call: those with a
-- snapshot, or with a lock on outbox.event. The latter may be prepared. It runs with the rights of its owner, because a
-- plain role does not see the snapshots of other users.
-- +goose StatementBegin
CREATE FUNCTION outbox.older_writers() RETURNS TABLE (transaction text, pid int, since timestamptz)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT l.virtualtransaction, l.pid, a.xact_start
      FROM pg_locks AS l
      LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
     WHERE l.locktype = 'virtualxid' AND l.pid <> pg_backend_pid()
       AND a.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND coalesce(a.backend_type, 'client backend') NOT IN ('autovacuum worker', 'autovacuum launcher', 'walsender')
       -- Without pg_read_all_stats the owner does not see the snapshot of another user's session: then wait for that session.
       AND (a.backend_xmin IS NOT NULL OR a.xact_start IS NULL)
    UNION
    SELECT l.virtualtransaction, l.pid, a.xact_start
      FROM pg_locks AS l
      LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
     WHERE l.locktype = 'relation' AND l.relation = 'outbox.event'::regclass
       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND l.mode = 'RowExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid()
$$;
-- +goose StatementEnd

-- Writes to the sync's row which events a backfill is to add: events inserted at or after since, and events whose seq no
-- visible event has. The latter belong to transactions that are open now and may never see the sync's new row. Whenever they
-- commit, their events are known by their seq. With waits, the backfill first waits for transactions that may not see that
-- row.
-- +goose StatementBegin
CREATE FUNCTION outbox.begin_backfill(sync text, since timestamptz, waits boolean) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE outbox.sync AS s
       SET backfill_seq = 0,
           backfill_from = least(s.backfill_from, begin_backfill.since),
           backfill_unseen = coalesce(s.backfill_unseen, '{}') + (
               SELECT coalesce(range_agg(int8range(g.before + 1, g.seq)) FILTER (WHERE g.seq > g.before + 1), '{}')
                      + int8multirange(int8range(coalesce(max(g.seq), 0) + 1, NULL))
                 FROM (SELECT e.seq, lag(e.seq, 1, 0::bigint) OVER (ORDER BY e.seq) AS before FROM outbox.event AS e) AS g),
           backfill_waits = s.backfill_waits OR begin_backfill.waits,
           backfill_round = s.backfill_round + begin_backfill.waits::int,
           backfill_reason = CASE WHEN begin_backfill.waits THEN 'waits for transactions that began before the change'
                                  ELSE coalesce(s.backfill_reason, 'retained events are being added') END
     WHERE s.name = begin_backfill.sync
$$;
-- +goose StatementEnd

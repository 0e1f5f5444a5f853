-- +goose Up
SET LOCAL lock_timeout = '1s';

-- Roles ----------------------------------------------------------------------
-- Group roles are cluster-wide, so another database may have made them already.
-- +goose StatementBegin
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['outbox_writer', 'outbox_relay', 'outbox_operator', 'outbox_auditor'] LOOP
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            CONTINUE;
        END IF;
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL; -- another database's migration was faster
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'role "%" does not exist and "%" may not create roles', wanted, current_user
                    USING HINT = 'Let an administrator run the output of: lockstep migrate sql --roles';
        END;
    END LOOP;
END
$$;
-- +goose StatementEnd

CREATE SCHEMA IF NOT EXISTS outbox;
GRANT USAGE ON SCHEMA outbox TO outbox_writer, outbox_relay, outbox_operator, outbox_auditor;

-- A migration that older programs cannot work with replaces this function: CREATE OR REPLACE keeps its privileges.
-- STABLE, not IMMUTABLE: a prepared statement must not keep the answer.
-- +goose StatementBegin
CREATE FUNCTION outbox.oldest_relay() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 1::bigint
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.oldest_relay() IS 'The oldest schema version whose programs work with this schema. Programs made for an older one refuse to.';

-- Events ---------------------------------------------------------------------
CREATE TABLE outbox.event (
    -- A time-ordered UUID (version 7, RFC 9562): random ones touch a random index page per insert.
    id          uuid        NOT NULL DEFAULT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
                                placing substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                                FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid,
    seq         bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    type        text        COLLATE "C" NOT NULL,
    key         text        COLLATE "C" NOT NULL,
    version     bigint,
    payload     jsonb       NOT NULL,
    headers     jsonb       NOT NULL DEFAULT '{}',
    occurred_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    inserted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT event_pkey PRIMARY KEY (id),
    CONSTRAINT event_seq_key UNIQUE (seq),
    CONSTRAINT event_type_not_empty CHECK (type <> ''),
    CONSTRAINT event_type_size CHECK (octet_length(type) <= 200),
    CONSTRAINT event_key_not_empty CHECK (key <> ''),
    CONSTRAINT event_key_size CHECK (octet_length(key) <= 512),
    CONSTRAINT event_payload_is_object CHECK (jsonb_typeof(payload) = 'object'),
    -- By its text, which is what relays read: a stored form of some bytes may write out to a megabyte (1e131071).
    CONSTRAINT event_payload_size CHECK (octet_length(payload::text) <= 1048576),
    CONSTRAINT event_headers_is_object CHECK (jsonb_typeof(headers) = 'object'),
    CONSTRAINT event_headers_size CHECK (octet_length(headers::text) <= 16384)
);
COMMENT ON TABLE outbox.event IS 'Facts, insert-only. INSERT INTO outbox.event (type, key, payload) in your own transaction is a complete integration.';
COMMENT ON COLUMN outbox.event.key IS 'What the event is about; events of one key are delivered in order.';
COMMENT ON COLUMN outbox.event.version IS 'Rising per key, from the writer''s own row.';
COMMENT ON COLUMN outbox.event.inserted_at IS 'Database clock at insertion; occurred_at may be given by the writer.';

-- Writers cannot give inserted_at. A row that brings another time comes from a backup of the data alone, and each such
-- event would be sent again. The WHEN clause costs a writer next to nothing. It is judged row by row, right after the default.
-- +goose StatementBegin
CREATE FUNCTION outbox.refuse_restored_event() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'event % was inserted at %: rows of a backup must not be inserted as new events, each would be sent again', NEW.id, NEW.inserted_at
        USING ERRCODE = 'object_not_in_prerequisite_state',
              HINT = 'Restore the schema and the data together into a database without the schema outbox, or load the data with triggers off: PGOPTIONS="-c session_replication_role=replica", or pg_restore --disable-triggers. docs/operators.md describes both.';
END
$$;
-- +goose StatementEnd
CREATE TRIGGER refuse_restored BEFORE INSERT ON outbox.event
    FOR EACH ROW
    WHEN (NEW.inserted_at < clock_timestamp() - interval '1 minute' OR NEW.inserted_at > clock_timestamp() + interval '1 minute')
    EXECUTE FUNCTION outbox.refuse_restored_event();

-- Events that no sync took, kept apart so that outbox.status can count them without reading every event.
CREATE TABLE outbox.unmatched (
    event_seq bigint NOT NULL,
    event_id  uuid   NOT NULL,
    CONSTRAINT unmatched_pkey PRIMARY KEY (event_seq)
);

-- Syncs and holds ------------------------------------------------------------
-- +goose StatementBegin
CREATE FUNCTION outbox.like_patterns(patterns text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
    SELECT coalesce(array_agg(replace(regexp_replace(p, '([\\%_])', '\\\1', 'g'), '*', '%')), '{}')
      FROM unnest(patterns) AS p
$$;
-- +goose StatementEnd

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
    -- Work list of a registration that is still adding retained events, null when there is none:
    -- events inserted at or after backfill_from, or numbered in backfill_unseen, above backfill_seq.
    backfill_from     timestamptz,
    backfill_unseen   int8multirange,
    backfill_seq      bigint,
    -- It begins when the transactions have ended that may not see the latest change of the patterns.
    backfill_waits    boolean     NOT NULL DEFAULT false,
    backfill_round    int         NOT NULL DEFAULT 0,
    backfill_reason   text,
    -- While patterns are being added to a running sync: those of which every open transaction knows. Deliveries of
    -- other types wait. Null when none are being added, or when a hold keeps back everything.
    settled           text[],
    likes             text[]      NOT NULL GENERATED ALWAYS AS (outbox.like_patterns(patterns)) STORED,
    settled_likes     text[]      NOT NULL GENERATED ALWAYS AS (outbox.like_patterns(settled)) STORED,
    CONSTRAINT sync_pkey PRIMARY KEY (name),
    CONSTRAINT sync_name_form CHECK (name ~ '^[A-Za-z0-9_.-]{1,63}$'),
    CONSTRAINT sync_patterns_not_empty CHECK (cardinality(patterns) > 0),
    CONSTRAINT sync_on_failed_known CHECK (on_failed IN ('block', 'supersede'))
);
COMMENT ON TABLE outbox.sync IS 'Registered connections and the strongest reason why each sends nothing for now.';
COMMENT ON COLUMN outbox.sync.backfill_reason IS 'What the addition of events waits for or does, such as the oldest transaction''s pid; null when none is under way.';
COMMENT ON COLUMN outbox.sync.backfill_round IS 'Counts the changes of the patterns whose end is waited for: a relay that waits for an older one begins anew.';

CREATE TABLE outbox.hold (
    sync   text        COLLATE "C" NOT NULL,
    scope  text        COLLATE "C" NOT NULL DEFAULT '',
    kind   text        COLLATE "C" NOT NULL,
    until  timestamptz,
    reason text        NOT NULL,
    by     text        NOT NULL,
    since  timestamptz NOT NULL DEFAULT clock_timestamp(),
    probes int         NOT NULL DEFAULT 0,
    untried_at     timestamptz,
    untried_probes int NOT NULL DEFAULT 0,
    CONSTRAINT hold_pkey PRIMARY KEY (sync, scope, kind),
    CONSTRAINT hold_scope_form CHECK (length(scope) <= 200 AND scope !~ '[\u0001-\u001F\u007F-\u009F]'),
    -- These are for the whole sync.
    CONSTRAINT hold_scope_of_kind CHECK (scope = '' OR kind NOT IN ('backfill', 'window')),
    CONSTRAINT hold_sync_fkey FOREIGN KEY (sync) REFERENCES outbox.sync (name) ON DELETE CASCADE,
    CONSTRAINT hold_kind_known CHECK (kind IN ('operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'))
);
COMMENT ON TABLE outbox.hold IS 'One row per sync, scope and kind of hold, so that one that ends never lifts another. outbox.sync shows the strongest of the whole sync.';
COMMENT ON COLUMN outbox.hold.scope IS 'The destination that gets nothing for now: a host, or what limits.per of the sync says. Empty: the whole sync.';
COMMENT ON COLUMN outbox.hold.until IS 'End of a throttle or window; next probe of an auth or breaker hold; null until somebody lifts it.';
COMMENT ON COLUMN outbox.hold.untried_at IS 'When an auth hold may be probed with a delivery that was not tried yet, which may be before until; null for other kinds.';
COMMENT ON COLUMN outbox.hold.untried_probes IS 'Probes with such deliveries; the pause between them grows with it.';

-- +goose StatementBegin
CREATE FUNCTION outbox.show_strongest_hold() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed text := coalesce(NEW.sync, OLD.sync);
BEGIN
    IF coalesce(NEW.scope, OLD.scope) <> '' THEN
        RETURN NULL;
    END IF;
    -- The sync's row is locked first: two holds that change at once must not each overlook the other.
    PERFORM FROM outbox.sync WHERE name = changed FOR NO KEY UPDATE;
    UPDATE outbox.sync s
       SET hold_kind = h.kind, hold_until = h.until, hold_reason = h.reason, hold_by = h.by
      FROM (SELECT 1) AS always
      LEFT JOIN (SELECT * FROM outbox.hold
                  WHERE sync = changed AND scope = ''
                  ORDER BY array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind::text)
                  LIMIT 1) AS h ON true
     WHERE s.name = changed;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER show_strongest AFTER INSERT OR UPDATE OR DELETE ON outbox.hold
    FOR EACH ROW EXECUTE FUNCTION outbox.show_strongest_hold();

-- An operator's hold is put and lifted by outbox.pause and outbox.resume, which log it; relays have their own kinds.
-- +goose StatementBegin
CREATE FUNCTION outbox.keep_operators_hold() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT (SELECT pg_has_role(current_user, c.relowner, 'USAGE') FROM pg_class AS c WHERE c.oid = TG_RELID) THEN
        RAISE EXCEPTION 'the operator''s hold of sync "%" is not changed by hand', coalesce(NEW.sync, OLD.sync)
            USING ERRCODE = 'insufficient_privilege', HINT = 'Use outbox.pause and outbox.resume, which log it.';
    END IF;
    RETURN coalesce(NEW, OLD);
END
$$;
-- +goose StatementEnd
CREATE TRIGGER keep_operators_put BEFORE INSERT OR UPDATE ON outbox.hold
    FOR EACH ROW WHEN (NEW.kind = 'operator') EXECUTE FUNCTION outbox.keep_operators_hold();
CREATE TRIGGER keep_operators_lifted BEFORE UPDATE OR DELETE ON outbox.hold
    FOR EACH ROW WHEN (OLD.kind = 'operator') EXECUTE FUNCTION outbox.keep_operators_hold();

-- Deliveries and lanes -------------------------------------------------------
CREATE TABLE outbox.delivery (
    sync            text        COLLATE "C" NOT NULL,
    event_seq       bigint      NOT NULL,
    event_id        uuid        NOT NULL,
    key             text        COLLATE "C" NOT NULL,
    state           text        COLLATE "C" NOT NULL DEFAULT 'pending',
    attempts        int         NOT NULL DEFAULT 0,
    due_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    error_class     text,
    error           text,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The relay's own book-keeping.
    changed_in      xid8        NOT NULL DEFAULT pg_current_xact_id(),
    total_attempts  int         NOT NULL DEFAULT 0,
    charged         int         NOT NULL DEFAULT 0,
    spent_ms        bigint      NOT NULL DEFAULT 0,
    revision        int         NOT NULL DEFAULT 1,
    body            bytea,
    body_sha256     text,
    mapping_version text,
    CONSTRAINT delivery_pkey PRIMARY KEY (sync, key, event_seq),
    -- A list is written as one constant, here and in the log: every statement reads its table's CHECKs anew.
    CONSTRAINT delivery_state_known CHECK (state = ANY ('{pending, retry, failed}'::text[])),
    CONSTRAINT delivery_failed_is_never_due CHECK (state <> 'failed' OR due_at = 'infinity')
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0.05,
        autovacuum_vacuum_cost_delay = 0);
COMMENT ON TABLE outbox.delivery IS 'Open work only: a finished delivery leaves this table, its history is in outbox.delivery_log. outbox.open_delivery says also what is being sent and what waits behind another.';
COMMENT ON COLUMN outbox.delivery.event_seq IS 'Place in the key''s lane: the event''s seq or, for a replay, a new number of that sequence. Join events by event_id.';
COMMENT ON COLUMN outbox.delivery.due_at IS 'Not sent before. Infinity: failed, or its type is still being added to the sync (error_class "backfill").';
COMMENT ON COLUMN outbox.delivery.error_class IS 'Of the last attempt, or "backfill": waits until its type is fully added to the sync.';
COMMENT ON COLUMN outbox.delivery.changed_in IS 'The transaction that made it ready to be sent. Relays look for what transactions have committed since they last looked.';
COMMENT ON COLUMN outbox.delivery.attempts IS 'Recorded attempts of this life; a requeue starts a new one. total_attempts is never reset.';
COMMENT ON COLUMN outbox.delivery.charged IS 'Attempts of this life that count for the retry budget (throttle, auth and own faults do not).';
COMMENT ON COLUMN outbox.delivery.spent_ms IS 'Retry budget used in this life, in milliseconds: attempts and the delays between them, holds excluded.';
COMMENT ON COLUMN outbox.delivery.revision IS 'n of the Idempotency-Key "<id>:<n>"; 1 is the bare id.';

-- What has become ready to be sent since a relay last looked, by the transaction that made it so.
CREATE INDEX delivery_changed ON outbox.delivery (sync, changed_in, event_seq);

-- What waits for an operator, or for a newer event.
CREATE INDEX delivery_failed ON outbox.delivery (sync, key) WHERE state = 'failed';

-- What waits for the end of a backfill: nothing, mostly.
CREATE INDEX delivery_backfill ON outbox.delivery (sync, event_seq) WHERE error_class = 'backfill';

-- One row per sync and key with open deliveries that a relay knows of. Only the relay that has its claim may send the
-- first of them. Relays open lanes and close them. Writers never touch one, and of people only outbox.discard does.
CREATE TABLE outbox.lane (
    sync        text        COLLATE "C" NOT NULL,
    key         text        COLLATE "C" NOT NULL,
    scope       text        COLLATE "C" NOT NULL DEFAULT '',
    due_at      timestamptz NOT NULL,
    claim       uuid,
    claimed_by  text,
    lost_claim  uuid,
    lost_by     text,
    crashes     int         NOT NULL DEFAULT 0,
    judged      bigint      NOT NULL DEFAULT 0,
    CONSTRAINT lane_pkey PRIMARY KEY (sync, key),
    CONSTRAINT lane_claim_ends CHECK (claim IS NULL OR due_at < 'infinity')
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0.05,
        autovacuum_vacuum_cost_delay = 0);
COMMENT ON TABLE outbox.lane IS 'The queue of one key in one sync: who may send its first delivery, and when somebody may.';
COMMENT ON COLUMN outbox.lane.scope IS 'The destination of its first delivery, as far as a relay has found it out: it is written when the delivery is put off or given back for a hold. Empty: not known, or the sync has one destination.';
COMMENT ON COLUMN outbox.lane.due_at IS 'When it may be claimed: of a claimed lane, when the lease ends. Infinity: its first delivery has failed, or waits for a backfill.';
COMMENT ON COLUMN outbox.lane.lost_claim IS 'An earlier claim whose lease ended without a word; null otherwise.';
COMMENT ON COLUMN outbox.lane.crashes IS 'Claims in a row whose relay never came back. From the second on the lane is sent while nothing else of its sync is in flight; after five its first delivery fails.';
COMMENT ON COLUMN outbox.lane.judged IS 'Where failed deliveries are superseded: the last place that was found not to supersede the failed one in front.';

CREATE INDEX lane_due ON outbox.lane (sync, scope, due_at) WHERE due_at < 'infinity';

-- Lanes during whose claims relays died: few, and found without reading what is due.
CREATE INDEX lane_crashed ON outbox.lane (sync, due_at) WHERE crashes > 0;

-- Log ------------------------------------------------------------------------
CREATE SEQUENCE outbox.delivery_log_id_seq AS bigint;
CREATE TABLE outbox.delivery_log (
    id              bigint      NOT NULL DEFAULT nextval('outbox.delivery_log_id_seq'),
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    answered_at     timestamptz,
    sync            text        COLLATE "C" NOT NULL,
    event_id        uuid,
    event_type      text        COLLATE "C",
    key             text        COLLATE "C",
    version         bigint,
    attempt         int,
    outcome         text        COLLATE "C" NOT NULL,
    code            text,
    error_class     text,
    error           text,
    external_id     text,
    request_sha256  text,
    mapping_version text,
    revision        int,
    event_seq       bigint,
    took_ms         int,
    claim           uuid,
    relay           text,
    actor           text,
    reason          text,
    CONSTRAINT delivery_log_outcome_known CHECK (outcome = ANY (
        '{delivered, duplicate, accepted, filtered, retry, failed, unknown, lease_lost, superseded,
          requeued, replayed, discarded, paused, resumed, retired, sync_changed}'::text[])),
    -- A relay that could not reach the database for longer leaves answered_at out.
    CONSTRAINT delivery_log_answered_before CHECK (answered_at BETWEEN at - interval '7 days' AND at + interval '1 minute'),
    -- Every row names the claim that it was recorded with, or who wrote it. A relay closes superseded deliveries, which
    -- nobody claims, and may come back to a database that does not know its claim (lease_lost).
    CONSTRAINT delivery_log_claim_or_actor CHECK (
        CASE WHEN claim IS NULL THEN actor IS NOT NULL OR relay IS NOT NULL AND outcome = ANY ('{superseded, lease_lost}'::text[])
             ELSE actor IS NULL AND outcome <> ALL ('{requeued, replayed, discarded, paused, resumed, retired, sync_changed}'::text[]) END)
) PARTITION BY RANGE (at);
ALTER SEQUENCE outbox.delivery_log_id_seq OWNED BY outbox.delivery_log.id;
CREATE INDEX delivery_log_event ON outbox.delivery_log (event_id);
CREATE INDEX delivery_log_key ON outbox.delivery_log (key);
-- For those who ship the log: what is new since a row.
CREATE INDEX delivery_log_id ON outbox.delivery_log (id);
CREATE INDEX delivery_log_at ON outbox.delivery_log USING brin (at);
COMMENT ON TABLE outbox.delivery_log IS 'Append-only. Every request that a receiver may have seen has a row; no payload, secret or party name is in it.';
COMMENT ON COLUMN outbox.delivery_log.at IS 'When this row was recorded; answered_at is when the receiver answered, both by the database clock.';
COMMENT ON COLUMN outbox.delivery_log.attempt IS 'Number of the attempt for this event and sync; never reset.';
COMMENT ON COLUMN outbox.delivery_log.request_sha256 IS 'SHA-256 of the request body, in hexadecimal.';
COMMENT ON COLUMN outbox.delivery_log.event_seq IS 'Place of the delivery in its key''s lane, as in outbox.delivery.';
COMMENT ON COLUMN outbox.delivery_log.actor IS 'Who wrote the row, set by the database: the login, or login/name; null for what relays record.';

-- +goose StatementBegin
CREATE FUNCTION outbox.refuse_log_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% of %.% is refused: the delivery log is append-only', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'Corrections are new rows; retention drops whole partitions (outbox.maintain).';
END
$$;
-- +goose StatementEnd
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox.delivery_log
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.refuse_log_change();
ALTER TABLE outbox.delivery_log ENABLE ALWAYS TRIGGER append_only;

-- Statement triggers of the parent do not guard a partition that is addressed directly.
-- +goose StatementBegin
CREATE FUNCTION outbox.guard_log_partition(partition regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s
                        FOR EACH STATEMENT EXECUTE FUNCTION outbox.refuse_log_change()', partition);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER append_only', partition);
    EXECUTE format('GRANT SELECT ON %s TO outbox_relay, outbox_operator, outbox_auditor', partition);
END
$$;
-- +goose StatementEnd

-- Text from people, fit for one line: no control characters, none that turns the direction of what follows or hides.
-- +goose StatementBegin
CREATE FUNCTION outbox.clean(said text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT regexp_replace(regexp_replace(said, '[\t\n\r]', ' ', 'g'),
                          '[\u0001-\u001F\u007F-\u009F\u00AD\u061C\u180E\u200B-\u200F\u2028-\u202E\u2060-\u206F\uFEFF\uFFF9-\uFFFB]', '?', 'g')
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION outbox.actor() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT session_user || coalesce('/' || outbox.clean(left(nullif(current_setting('lockstep.actor', true), ''), 100)), '')
$$;
-- +goose StatementEnd

-- The database sets at and actor, whoever inserts. A row that a relay records with its claim needs no look, and the WHEN
-- clause keeps it from the function; at is what the default gave.
-- What people do is logged by the functions they do it with, which run as the owner.
-- +goose StatementBegin
CREATE FUNCTION outbox.sign_log_row() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner     boolean := (SELECT pg_has_role(current_user, c.relowner, 'USAGE') FROM pg_class AS c WHERE c.oid = TG_RELID);
    by_people boolean := NEW.outcome = ANY ('{requeued, replayed, discarded, paused, resumed, retired, sync_changed}'::text[]);
BEGIN
    IF NEW.at NOT BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() + interval '1 minute' THEN -- perhaps of another partition
        RAISE EXCEPTION 'a row of the delivery log cannot be dated %: the database sets at', NEW.at
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Leave at out. To load a backup, see docs/operators.md: with session_replication_role = replica the rows keep their time.';
    END IF;
    IF by_people AND NOT owner THEN
        RAISE EXCEPTION 'a row that says "%" is written by the function that does it, not by "%"', NEW.outcome, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Use outbox.requeue, replay, discard, pause, resume or retire, or lockstep sync apply.';
    END IF;
    IF NOT owner AND NEW.claim IS NULL AND (NEW.relay IS NULL OR NEW.outcome <> ALL ('{superseded, lease_lost}'::text[])) THEN
        RAISE EXCEPTION 'a row that says "%" needs the claim that it is recorded with', NEW.outcome
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'A relay records what it has claimed, in the statement that ends the claim.';
    END IF;
    IF NEW.at < statement_timestamp() OR NEW.at > clock_timestamp() THEN -- else the default: at a month's end the row stays in its partition
        NEW.at := clock_timestamp();
    END IF;
    NEW.actor := NULL;
    IF by_people OR owner AND NEW.claim IS NULL AND (NEW.relay IS NULL OR NEW.outcome <> ALL ('{superseded, lease_lost}'::text[])) THEN
        NEW.actor := outbox.actor();
    END IF;
    NEW.reason := left(outbox.clean(NEW.reason), 1000);
    NEW.relay := outbox.clean(NEW.relay);
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER sign BEFORE INSERT ON outbox.delivery_log
    FOR EACH ROW
    WHEN (NEW.claim IS NULL OR NEW.actor IS NOT NULL OR NEW.at < statement_timestamp() OR NEW.at > clock_timestamp())
    EXECUTE FUNCTION outbox.sign_log_row();

-- What a relay records is about a delivery that its claim was on when the statement began. STABLE is what makes that
-- possible: the function sees the tables as they were before the statement, so what it removed is still there.
-- The owner may write corrections without a claim. They bear the owner's name.
-- +goose StatementBegin
CREATE FUNCTION outbox.check_log_claims() RETURNS trigger
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    wrong record;
BEGIN
    -- The rule, and nothing else: a relay waits for it at each recording.
    PERFORM FROM new_row AS n
      WHERE NOT EXISTS (SELECT FROM outbox.lane AS l
                         JOIN outbox.delivery AS d ON d.sync = l.sync AND d.key = l.key
                        WHERE l.sync = n.sync AND l.key = n.key AND n.claim IN (l.claim, l.lost_claim)
                          AND d.event_seq = n.event_seq AND d.event_id = n.event_id AND n.revision <= d.revision + 1
                       OFFSET 0)
      LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT n.outcome, n.event_id, n.sync, n.claim INTO wrong
      FROM new_row AS n
     WHERE NOT EXISTS (SELECT FROM outbox.lane AS l
                         JOIN outbox.delivery AS d ON d.sync = l.sync AND d.key = l.key
                        WHERE l.sync = n.sync AND l.key = n.key AND n.claim IN (l.claim, l.lost_claim)
                          AND d.event_seq = n.event_seq AND d.event_id = n.event_id AND n.revision <= d.revision + 1
                       OFFSET 0)
       AND CASE n.outcome
           WHEN 'superseded' THEN NOT EXISTS (SELECT FROM outbox.delivery AS d
                                               WHERE d.sync = n.sync AND d.key = n.key AND d.event_id = n.event_id AND d.state = 'failed'
                                              OFFSET 0)
           -- The relay that took the claim over logged it. A database that was restored or has failed over may not know
           -- the claim; then it is null.
           WHEN 'lease_lost' THEN n.event_id IS NULL OR NOT EXISTS (SELECT FROM outbox.sync AS s WHERE s.name = n.sync)
                                  OR n.claim IS NOT NULL
                                     AND NOT EXISTS (SELECT FROM outbox.delivery_log AS l
                                                      WHERE l.event_id = n.event_id AND l.sync = n.sync AND l.claim = n.claim
                                                     OFFSET 0)
           ELSE n.event_seq IS NOT NULL
                OR NOT EXISTS (SELECT FROM outbox.lane AS l
                                 JOIN outbox.delivery AS d ON d.sync = l.sync AND d.key = l.key
                                WHERE l.sync = n.sync AND l.key = n.key AND n.claim IN (l.claim, l.lost_claim) AND d.event_id = n.event_id
                               OFFSET 0)
           END
     LIMIT 1;
    IF FOUND AND NOT (SELECT pg_has_role(current_user, c.relowner, 'USAGE') FROM pg_class AS c WHERE c.oid = TG_RELID) THEN
        RAISE EXCEPTION 'no row of the delivery log can say "%" of event % for "%": the delivery is not claimed with %',
                wrong.outcome, coalesce(wrong.event_id::text, '(null)'), wrong.sync, coalesce(wrong.claim::text, 'any claim')
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'A relay records what it has claimed, in the statement that ends the claim.';
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER check_claims AFTER INSERT ON outbox.delivery_log
    REFERENCING NEW TABLE AS new_row
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.check_log_claims();

CREATE TABLE outbox.delivery_log_default PARTITION OF outbox.delivery_log DEFAULT;
SELECT outbox.guard_log_partition('outbox.delivery_log_default');
COMMENT ON TABLE outbox.delivery_log_default IS 'Stays empty while outbox.maintain runs; rows here mean that a month''s partition was missing.';

CREATE TABLE outbox.external_ref (
    sync           text        COLLATE "C" NOT NULL,
    key            text        COLLATE "C" NOT NULL,
    external_id    text,
    etag           text,
    version        bigint,
    request_sha256 text,
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    event_seq      bigint      NOT NULL,
    CONSTRAINT external_ref_pkey PRIMARY KEY (sync, key)
) WITH (fillfactor = 80);
COMMENT ON TABLE outbox.external_ref IS 'What the external system answered last for a key; never goes back to an older version.';
COMMENT ON COLUMN outbox.external_ref.event_seq IS 'seq of the event that was answered; decides which is newer where the writer gives no version.';

-- Fan-out --------------------------------------------------------------------
-- It only inserts: it decides nothing about order and locks nothing, so writers never meet the relay.
-- While types are being added to a running sync, their deliveries wait in their lanes: transactions that do not know of
-- the change may still write earlier events of them.
-- +goose StatementBegin
CREATE FUNCTION outbox.fan_out() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    written_at timestamptz := clock_timestamp(); -- not now(), which is when the transaction began
    matched    boolean;
    several    boolean;
    listening  boolean;
BEGIN
    INSERT INTO outbox.delivery (sync, key, event_seq, event_id, due_at, created_at, error_class, error)
    SELECT s.name, e.key, e.seq, e.id, CASE WHEN w.waits THEN 'infinity' ELSE written_at END, written_at,
           CASE WHEN w.waits THEN 'backfill' END, CASE WHEN w.waits THEN 'its type was added to the sync, and earlier events of it may still be missing' END
      FROM new_event AS e
      JOIN outbox.sync AS s ON s.retired_at IS NULL AND e.type LIKE ANY (s.likes)
     CROSS JOIN LATERAL (SELECT s.backfill_seq IS NOT NULL AND s.settled IS NOT NULL AND NOT e.type LIKE ANY (s.settled_likes) AS waits) AS w;
    matched := FOUND;
    -- Every writer waits for this function, and starting a statement is most of its cost. One event that went
    -- somewhere is not unmatched; only several may be mixed.
    SELECT EXISTS (SELECT FROM new_event OFFSET 1), EXISTS (SELECT FROM outbox.sync AS s WHERE s.notify AND s.retired_at IS NULL)
      INTO several, listening;
    IF several OR NOT matched THEN
        INSERT INTO outbox.unmatched (event_seq, event_id)
        SELECT e.seq, e.id
          FROM new_event AS e
         WHERE NOT EXISTS (SELECT FROM outbox.sync AS s WHERE s.retired_at IS NULL AND e.type LIKE ANY (s.likes));
    END IF;
    IF matched AND listening THEN
        PERFORM pg_notify('outbox', s.name)
           FROM outbox.sync AS s
          WHERE s.notify AND s.retired_at IS NULL
            AND EXISTS (SELECT FROM new_event AS e WHERE e.type LIKE ANY (s.likes));
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER fan_out AFTER INSERT ON outbox.event
    REFERENCING NEW TABLE AS new_event
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.fan_out();

-- Writers' function ----------------------------------------------------------
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
    -- Locks are counted only when there may be too many of them: reading pg_locks on each call is slow.
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
COMMENT ON FUNCTION outbox.emit(text, text, jsonb, bigint, jsonb, uuid) IS 'Writes an event for writers that have no row of the key to lock: the key''s order is the order of these calls.';

-- Operators ------------------------------------------------------------------
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
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF length(scope) > 200 OR scope ~ '[\u0001-\u001F\u007F-\u009F]' THEN
        RAISE EXCEPTION 'a scope has at most 200 characters and no control characters'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It is a host, or what limits.per of the sync says, such as a court''s code.';
    END IF;
    RETURN coalesce(scope, '');
END
$$;
-- +goose StatementEnd

-- Logs what a person did to one delivery.
-- +goose StatementBegin
CREATE FUNCTION outbox.log_action(d outbox.delivery, outcome text, reason text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, actor, reason)
    SELECT d.sync, d.event_id, e.type, d.key, e.version, d.total_attempts, log_action.outcome, d.error_class, d.error, d.revision, d.event_seq, outbox.actor(), log_action.reason
      FROM (SELECT 1) AS always
      LEFT JOIN outbox.event AS e ON e.id = d.event_id
$$;
-- +goose StatementEnd

-- The relay changes due_at together with state; an UPDATE that changes state alone is hand-made, and so is every
-- UPDATE of a failed row.
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
    NEW.changed_in := pg_current_xact_id(); -- relays find it by this, and then its lane is due
    NEW.due_at := clock_timestamp();
    NEW.attempts := 0;
    NEW.charged := 0;
    NEW.spent_ms := 0;
    NEW.error_class := NULL;
    NEW.error := NULL;
    NEW.body := NULL; -- rendered anew: the mapping may have been repaired
    NEW.mapping_version := NULL;
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
CREATE FUNCTION outbox.discard(sync text, event_id uuid, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
    discards CONSTANT bigint := 1869967991; -- an advisory lock that says: this transaction claims nothing
    d outbox.delivery;
    c record;
    leads boolean;
    others text[];
    deadline timestamptz;
BEGIN
    PERFORM outbox.check_sync(discard.sync);
    PERFORM outbox.check_reason(discard.reason);
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'outbox.discard cannot see in a % transaction what a relay has claimed since the transaction began', current_setting('transaction_isolation')
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Use it in a transaction of its own: BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;
    SELECT * INTO d FROM outbox.delivery AS o
     WHERE o.sync = discard.sync AND o.event_id = discard.event_id
       AND o.key = (SELECT e.key FROM outbox.event AS e WHERE e.id = discard.event_id)
       FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'event % has no open delivery to "%"', discard.event_id, discard.sync
            USING ERRCODE = 'no_data_found', HINT = 'Ask outbox.why_not_delivered what became of it.';
    END IF;
    -- A relay that claims a lane leaves a first delivery that is locked. One that read it before it was locked here has
    -- not committed its claim yet, perhaps. It keeps a lock on outbox.lane until it has, so wait until those are gone who
    -- have one now: then either the claim is seen, or nobody sends what is discarded. Other calls of this function claim
    -- nothing, and are known by their advisory lock.
    PERFORM pg_try_advisory_xact_lock_shared(discards);
    deadline := clock_timestamp() + interval '2 seconds';
    LOOP
        SELECT o.claimed_by, o.lease_until INTO c FROM outbox.open_delivery AS o
         WHERE o.sync = d.sync AND o.key = d.key AND o.event_seq = d.event_seq AND o.state = 'sending';
        IF FOUND THEN
            RAISE EXCEPTION 'event % is being sent to "%" by % until %: it cannot be discarded now', d.event_id, d.sync, c.claimed_by, c.lease_until
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Pause the sync with outbox.pause, wait for the answer, then discard.';
        END IF;
        EXIT WHEN others = '{}';
        SELECT coalesce(array_agg(l.virtualtransaction), '{}') INTO others
          FROM pg_locks AS l
         WHERE l.locktype = 'relation' AND l.relation = 'outbox.lane'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
           AND l.database = (SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database())
           AND l.pid IS DISTINCT FROM pg_backend_pid()
           AND (others IS NULL OR l.virtualtransaction = ANY (others))
           AND NOT EXISTS (SELECT FROM pg_locks AS a
                            WHERE a.locktype = 'advisory' AND a.database = l.database AND a.virtualtransaction = l.virtualtransaction
                              AND (a.classid::bigint << 32 | a.objid::bigint) = discards AND a.objsubid = 1);
        CONTINUE WHEN others = '{}'; -- and look at the claims once more
        IF clock_timestamp() > deadline THEN
            RAISE EXCEPTION 'event % cannot be discarded now: another transaction has been at work on the lanes for two seconds', d.event_id
                USING ERRCODE = 'lock_not_available', HINT = 'Try again. See pg_locks for relation outbox.lane.';
        END IF;
        PERFORM pg_sleep(0.002);
    END LOOP;
    leads := NOT EXISTS (SELECT FROM outbox.delivery AS o WHERE o.sync = d.sync AND o.key = d.key AND o.event_seq < d.event_seq);
    PERFORM outbox.log_action(d, 'discarded', outbox.check_reason(discard.reason));
    DELETE FROM outbox.delivery AS o WHERE o.sync = d.sync AND o.key = d.key AND o.event_seq = d.event_seq;
    -- What stands behind it may be sent now. A relay that has the lane looks again when it records: it cannot do that
    -- before this transaction ends.
    UPDATE outbox.lane AS l
       SET due_at = CASE WHEN l.claim IS NULL THEN clock_timestamp() ELSE l.due_at END,
           crashes = CASE WHEN l.claim IS NULL AND leads THEN 0 ELSE l.crashes END,
           judged = 0
     WHERE l.sync = d.sync AND l.key = d.key;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.discard(text, uuid, text) IS 'Gives a delivery up for good; refused while it is being sent.';

-- +goose StatementBegin
CREATE FUNCTION outbox.replay(sync text, event_id uuid, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    e outbox.event;
    d outbox.delivery;
    found_state text;
BEGIN
    PERFORM outbox.check_sync(replay.sync);
    PERFORM outbox.check_reason(replay.reason);
    -- The lock keeps retention from removing the event meanwhile, and a second replay from the same revision. It is
    -- an update that changes nothing, so that a transaction whose snapshot hides an earlier replay is refused.
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
    -- The new revision stands for whatever body is sent now, so no digest of an older one goes with it.
    SELECT max(l.attempt), max(l.revision) + 1
      INTO d.total_attempts, d.revision
      FROM outbox.delivery_log AS l
     WHERE l.sync = replay.sync AND l.event_id = e.id;
    IF d.revision IS NULL THEN
        RAISE EXCEPTION 'event % was never delivered to "%"', e.id, replay.sync
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Ask outbox.why_not_delivered what became of it.';
    END IF;
    INSERT INTO outbox.delivery (sync, key, event_seq, event_id, total_attempts, revision)
    VALUES (replay.sync, e.key, nextval(pg_get_serial_sequence('outbox.event', 'seq')), e.id, coalesce(d.total_attempts, 0), d.revision)
    RETURNING * INTO d;
    PERFORM outbox.log_action(d, 'replayed', outbox.check_reason(replay.reason));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.replay(text, uuid, text) IS 'Sends a finished event to a sync once more, at the end of its key''s lane, with the Idempotency-Key "<id>:<n>".';

-- +goose StatementBegin
CREATE FUNCTION outbox.pause(sync text, reason text, scope text DEFAULT '') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    part text := outbox.check_scope(pause.scope);
BEGIN
    PERFORM outbox.check_sync(pause.sync);
    INSERT INTO outbox.hold (sync, scope, kind, reason, by)
    VALUES (pause.sync, part, 'operator', outbox.check_reason(pause.reason), outbox.actor())
    ON CONFLICT ON CONSTRAINT hold_pkey DO UPDATE SET reason = excluded.reason, by = excluded.by;
    INSERT INTO outbox.delivery_log (sync, outcome, actor, reason)
    VALUES (pause.sync, 'paused', outbox.actor(), left(CASE part WHEN '' THEN '' ELSE format('scope %s: ', part) END || outbox.check_reason(pause.reason), 1000));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.pause(text, text, text) IS 'Puts a sync, or one scope of it, on the operator''s hold: nothing more is sent until outbox.resume.';

-- +goose StatementBegin
CREATE FUNCTION outbox.resume(sync text, scope text DEFAULT '') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    part   text := outbox.check_scope(resume.scope);
    paused text;
BEGIN
    PERFORM outbox.check_sync(resume.sync);
    DELETE FROM outbox.hold AS h WHERE h.sync = resume.sync AND h.scope = part AND h.kind = 'operator';
    IF NOT FOUND THEN
        SELECT string_agg(CASE h.scope WHEN '' THEN 'the whole sync' ELSE format('scope %s', h.scope) END, ', ' ORDER BY h.scope) INTO paused
          FROM (SELECT o.scope FROM outbox.hold AS o WHERE o.sync = resume.sync AND o.kind = 'operator' ORDER BY o.scope LIMIT 10) AS h;
        RAISE NOTICE 'sync "%"% was not paused by an operator%', resume.sync, CASE part WHEN '' THEN '' ELSE format(', scope %s', part) END,
            coalesce(', but this was: ' || paused, '');
        RETURN;
    END IF;
    INSERT INTO outbox.delivery_log (sync, outcome, actor, reason)
    VALUES (resume.sync, 'resumed', outbox.actor(), CASE WHEN part <> '' THEN format('scope %s', part) END);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.resume(text, text) IS 'Lifts the operator''s hold of a sync, or of one scope of it, and no other.';

-- +goose StatementBegin
CREATE FUNCTION outbox.retire(sync text, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    before text := coalesce(current_setting('lockstep.reason', true), '');
BEGIN
    PERFORM outbox.check_sync(retire.sync);
    PERFORM set_config('lockstep.reason', outbox.check_reason(retire.reason), true); -- log_sync_change writes it down
    UPDATE outbox.sync AS s SET retired_at = clock_timestamp() WHERE s.name = retire.sync AND s.retired_at IS NULL;
    IF NOT FOUND THEN
        RAISE NOTICE 'sync "%" is retired already', retire.sync;
    END IF;
    PERFORM set_config('lockstep.reason', before, true);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.retire(text, text) IS 'Ends the fan-out of new events to a sync; its open work stays and is still delivered.';

-- Relays' logins and commands change outbox.sync directly. Each change of what a receiver is told gets a row in the log.
-- +goose StatementBegin
CREATE FUNCTION outbox.log_sync_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A row for each type and attribute: none is cut off, however many there are.
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
            SELECT format('retired: since %s to %s', OLD.retired_at, coalesce('since ' || NEW.retired_at, 'no')), 5, ''
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
          OR NEW.notify IS DISTINCT FROM OLD.notify OR NEW.retired_at IS DISTINCT FROM OLD.retired_at)
    EXECUTE FUNCTION outbox.log_sync_change();

-- The row of a sync says who registered it, and when. That cannot be changed.
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

-- Views ----------------------------------------------------------------------
CREATE VIEW outbox.open_delivery AS
SELECT d.sync, d.event_seq, d.event_id, d.key,
       CASE WHEN d.state = 'failed' THEN 'failed'
            WHEN NOT f.leads OR d.error_class = 'backfill' THEN 'queued'
            WHEN l.claim IS NOT NULL THEN 'sending'
            ELSE d.state END COLLATE "C" AS state,
       d.attempts, d.due_at, CASE WHEN s.sends THEN l.claim END AS claim, CASE WHEN s.sends THEN l.claimed_by END AS claimed_by,
       CASE WHEN s.sends THEN l.due_at END AS lease_until, d.error_class, d.error, d.created_at, d.total_attempts, d.charged, d.spent_ms,
       CASE WHEN f.leads THEN coalesce(l.crashes, 0) ELSE 0 END AS crashes, d.revision, d.body_sha256, d.mapping_version
  FROM outbox.delivery AS d
 CROSS JOIN LATERAL (
       SELECT NOT EXISTS (SELECT FROM outbox.delivery AS o
                           WHERE o.sync = d.sync AND o.key = d.key AND o.event_seq < d.event_seq) AS leads
       OFFSET 0) AS f
  LEFT JOIN outbox.lane AS l ON l.sync = d.sync AND l.key = d.key
 CROSS JOIN LATERAL (SELECT f.leads AND d.state <> 'failed' AND l.claim IS NOT NULL AS sends) AS s;
COMMENT ON VIEW outbox.open_delivery IS 'Open deliveries as they stand: sending is the first of a lane that a relay has claimed, queued waits behind another of its key or for a backfill. Bodies are in outbox.delivery only.';

CREATE VIEW outbox.failed AS
SELECT d.sync, d.key, d.event_id, e.type AS event_type, e.version, d.attempts, d.total_attempts, d.error_class, d.error,
       d.created_at, clock_timestamp() - d.created_at AS age
  FROM outbox.delivery AS d
  LEFT JOIN outbox.event AS e ON e.id = d.event_id
 WHERE d.state = 'failed';
COMMENT ON VIEW outbox.failed IS 'Deliveries that wait for an operator.';

CREATE VIEW outbox.blocked_key AS
SELECT d.sync, d.key, d.event_id, d.event_seq, d.state, behind.behind, d.attempts, d.due_at, d.error_class, d.error
  FROM outbox.delivery AS d
 CROSS JOIN LATERAL (
       SELECT count(*) AS behind FROM outbox.delivery AS b
        WHERE b.sync = d.sync AND b.key = d.key AND b.event_seq > d.event_seq) AS behind
 WHERE d.state IN ('failed', 'retry')
   AND behind.behind > 0
   AND NOT EXISTS (SELECT FROM outbox.delivery AS f
                    WHERE f.sync = d.sync AND f.key = d.key AND f.event_seq < d.event_seq);
COMMENT ON VIEW outbox.blocked_key IS 'Keys whose first unfinished event is failed or in retry, and how many events wait behind it.';

CREATE VIEW outbox.status AS
WITH delivery AS ( -- what outbox.open_delivery and outbox.blocked_key say, for all deliveries at once
    SELECT d.sync, d.created_at, d.due_at, d.state AS stored, d.first AND d.next_seq IS NOT NULL AS blocks,
           CASE WHEN d.state = 'failed' THEN 'failed'
                WHEN NOT d.first OR d.error_class = 'backfill' THEN 'queued'
                WHEN l.claim IS NOT NULL THEN 'sending'
                ELSE d.state END AS state
      FROM (SELECT sync, key, state, error_class, due_at, created_at,
                   lag(event_seq) OVER lane IS NULL AS first, lead(event_seq) OVER lane AS next_seq
              FROM outbox.delivery
            WINDOW lane AS (PARTITION BY sync, key ORDER BY event_seq)) AS d
      LEFT JOIN outbox.lane AS l ON d.first AND l.sync = d.sync AND l.key = d.key
), open AS (
    SELECT sync,
           count(*) FILTER (WHERE state IN ('pending', 'retry') AND due_at <= clock_timestamp()) AS due_now,
           count(*) FILTER (WHERE state = 'pending') AS pending,
           count(*) FILTER (WHERE state = 'queued')  AS queued,
           count(*) FILTER (WHERE state = 'retry')   AS retry,
           count(*) FILTER (WHERE state = 'sending') AS sending,
           count(*) FILTER (WHERE state = 'failed')  AS failed,
           count(*) FILTER (WHERE blocks AND stored IN ('failed', 'retry')) AS blocked_keys,
           clock_timestamp() - min(created_at) FILTER (WHERE state <> 'failed') AS oldest_pending_age
      FROM delivery
     GROUP BY sync
), held AS (
    SELECT DISTINCT ON (sync, scope) sync, scope, kind, until, reason, by
      FROM outbox.hold
     WHERE kind NOT IN ('throttle', 'window') OR until IS NULL OR until > clock_timestamp()
     ORDER BY sync, scope, array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind::text)
), held_scope AS (
    SELECT sync, jsonb_agg(jsonb_build_object('scope', scope, 'hold', kind, 'until', until, 'reason', reason, 'by', by) ORDER BY scope) AS holds
      FROM held
     WHERE scope <> ''
     GROUP BY sync
)
SELECT s.name AS sync, h.kind AS hold,
       coalesce(o.due_now, 0) AS due_now, coalesce(o.pending, 0) AS pending, coalesce(o.queued, 0) AS queued,
       coalesce(o.retry, 0) AS retry, coalesce(o.sending, 0) AS sending, coalesce(o.failed, 0) AS failed,
       coalesce(o.blocked_keys, 0) AS blocked_keys, o.oldest_pending_age, s.last_delivered_at,
       h.until AS hold_until, h.reason AS hold_reason, h.by AS hold_by, s.retired_at, s.backfill_reason AS backfill,
       coalesce(c.holds, '[]') AS scope_holds
  FROM outbox.sync AS s
  LEFT JOIN held AS h ON h.sync = s.name AND h.scope = ''
  LEFT JOIN held_scope AS c ON c.sync = s.name
  LEFT JOIN open AS o ON o.sync = s.name
UNION ALL
SELECT NULL, NULL, 0, (SELECT count(*) FROM outbox.unmatched), 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '[]';
COMMENT ON VIEW outbox.status IS 'One row per sync; hold is about the whole sync, scope_holds lists its scopes that are on hold; backfill says what the addition of events waits for or does. In the row without a sync, pending counts the events that no sync matched.';

-- Says in one sentence what an open delivery waits for, apart from its key and its sync's holds.
-- +goose StatementBegin
CREATE FUNCTION outbox.describe(d outbox.open_delivery) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE d.state
           WHEN 'sending' THEN
                CASE WHEN d.lease_until > clock_timestamp()
                     THEN format('being sent by %s until %s', d.claimed_by, d.lease_until)
                     ELSE format('was being sent by %s, whose lease ended at %s; a running relay takes it over', d.claimed_by, d.lease_until) END
           WHEN 'failed' THEN format('failed with %s after %s attempt(s): %s; waits for an operator (outbox.requeue or outbox.discard)',
                coalesce(d.error_class, 'unknown'), d.attempts, coalesce(d.error, 'no reason recorded'))
           WHEN 'retry' THEN
                CASE WHEN d.due_at > clock_timestamp() THEN format('not due until %s', d.due_at) ELSE 'due now for its next attempt' END
                || format(' after %s attempt(s), the last one: %s: %s', d.attempts, coalesce(d.error_class, 'transient'), coalesce(d.error, 'no reason recorded'))
           WHEN 'queued' THEN CASE WHEN d.error_class = 'backfill' THEN 'held back: ' || d.error ELSE 'waits behind an earlier event of its key' END
           ELSE CASE WHEN d.due_at > clock_timestamp() THEN format('not due until %s', d.due_at) ELSE format('due since %s, waits for a relay to claim it', d.due_at) END
           END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION outbox.why_not_delivered(event_id uuid, sync text DEFAULT NULL) RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    e     outbox.event;
    s     record;
    d     outbox.open_delivery;
    front outbox.open_delivery;
    l     record;
    h     record;
    said  text;
    known boolean := false;
BEGIN
    IF why_not_delivered.sync IS NOT NULL THEN
        PERFORM outbox.check_sync(why_not_delivered.sync);
    END IF;
    SELECT * INTO e FROM outbox.event AS o WHERE o.id = why_not_delivered.event_id;
    IF NOT FOUND AND NOT EXISTS (SELECT FROM outbox.delivery_log AS g WHERE g.event_id = why_not_delivered.event_id) THEN
        RETURN NEXT format('event %s does not exist: its transaction did not commit, or it is past its retention', why_not_delivered.event_id);
        RETURN;
    END IF;
    FOR s IN SELECT r.*, coalesce(e.type LIKE ANY (r.likes), false) AS matches
               FROM outbox.sync AS r
              WHERE why_not_delivered.sync IS NULL OR r.name = why_not_delivered.sync
              ORDER BY r.name LOOP
        SELECT * INTO d FROM outbox.open_delivery AS o
         WHERE o.sync = s.name AND o.key = e.key AND o.event_id = e.id
         LIMIT 1;
        IF FOUND THEN
            known := true;
            SELECT * INTO front FROM outbox.open_delivery AS f
             WHERE f.sync = d.sync AND f.key = d.key AND f.event_seq < d.event_seq
             ORDER BY f.event_seq LIMIT 1;
            IF FOUND THEN
                said := format('waits behind event %s of key %s, which is %s', front.event_id, front.key, outbox.describe(front));
                IF d.error_class = 'backfill' THEN
                    said := said || '; ' || d.error;
                ELSIF s.on_failed = 'supersede' AND front.state = 'failed'
                      AND d.event_seq <= (SELECT n.judged FROM outbox.lane AS n WHERE n.sync = d.sync AND n.key = d.key) THEN
                    said := said || '; it does not supersede that one: its event is older, or the sync''s "when" does not match it';
                END IF;
            ELSE
                front := d;
                said := outbox.describe(d);
            END IF;
            IF s.backfill_reason IS NOT NULL AND 'backfill' IN (front.error_class, d.error_class) THEN
                said := said || '; ' || s.backfill_reason;
            END IF;
            FOR h IN SELECT * FROM outbox.hold AS o
                      WHERE o.sync = s.name AND (o.kind NOT IN ('throttle', 'window') OR o.until IS NULL OR o.until > clock_timestamp())
                        AND (o.scope = '' OR o.scope = (SELECT n.scope FROM outbox.lane AS n WHERE n.sync = d.sync AND n.key = d.key))
                      ORDER BY o.scope, array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], o.kind::text) LOOP
                said := said || format('; %s is on hold (%s) by %s since %s%s: %s',
                    CASE h.scope WHEN '' THEN 'the sync' ELSE format('destination %s of sync %s', h.scope, s.name) END, h.kind, h."by", h.since,
                    CASE WHEN h.until IS NULL THEN CASE h.kind WHEN 'operator' THEN ' until outbox.resume' || CASE h.scope WHEN '' THEN '' ELSE ' of that scope' END ELSE '' END
                         WHEN h.kind IN ('auth', 'breaker') THEN format(', next probe at %s', h.until)
                         ELSE format(' until %s', h.until) END, h.reason);
            END LOOP;
            IF s.retired_at IS NOT NULL THEN
                said := said || format('; the sync was retired at %s and takes no new events', s.retired_at);
            END IF;
            RETURN NEXT s.name || ': ' || said;
            CONTINUE;
        END IF;
        SELECT g.* INTO l FROM outbox.delivery_log AS g
         WHERE g.event_id = why_not_delivered.event_id AND g.sync = s.name
           AND g.outcome IN ('delivered', 'duplicate', 'accepted', 'filtered', 'superseded', 'discarded')
         ORDER BY g.id DESC LIMIT 1;
        IF FOUND THEN
            known := true;
            RETURN NEXT s.name || ': ' || CASE l.outcome
                WHEN 'delivered'  THEN format('delivered at %s (%s)', coalesce(l.answered_at, l.at), coalesce(l.code, 'no code'))
                WHEN 'duplicate'  THEN format('delivered: at %s the receiver said that it already had it (%s)', coalesce(l.answered_at, l.at), coalesce(l.code, 'no code'))
                WHEN 'accepted'   THEN format('delivered: accepted for later processing at %s (%s)', coalesce(l.answered_at, l.at), coalesce(l.code, 'no code'))
                WHEN 'filtered'   THEN format('filtered at %s: the sync''s "when" did not match', l.at)
                WHEN 'superseded' THEN format('superseded at %s: %s', l.at, coalesce(l.reason, 'a newer event of its key exists'))
                ELSE format('discarded at %s by %s: %s', l.at, l.actor, l.reason) END;
        ELSIF e.id IS NULL THEN
            IF why_not_delivered.sync IS NOT NULL THEN
                known := true;
                RETURN NEXT format('%s: the event is past its retention, and the log has no end of it for this sync', s.name);
            END IF;
        ELSIF s.matches AND s.retired_at <= e.inserted_at THEN
            known := true;
            RETURN NEXT format('%s: not sent: the sync was retired at %s, before the event was written at %s', s.name, s.retired_at, e.inserted_at);
        ELSIF s.matches AND s.backfill_seq IS NOT NULL THEN
            known := true;
            RETURN NEXT format('%s: events are still being added to the sync%s', s.name, coalesce(' (' || s.backfill_reason || ')', ''));
        ELSIF s.matches THEN
            known := true;
            RETURN NEXT format('%s: not sent: written at %s, before the sync took events of type %s (registered at %s; lockstep sync apply with from: adds older events)',
                s.name, e.inserted_at, e.type, s.registered_at);
        ELSIF why_not_delivered.sync IS NOT NULL THEN
            known := true;
            RETURN NEXT format('%s: its patterns %s do not match type %s', s.name, s.patterns::text, e.type);
        END IF;
    END LOOP;
    IF NOT known THEN
        RETURN NEXT CASE WHEN e.id IS NULL THEN format('event %s is past its retention, and the log has no end of it', why_not_delivered.event_id)
                         ELSE format('no sync matches type %s', e.type) END;
    END IF;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.why_not_delivered(uuid, text) IS 'A sentence per sync: delivered when, or what the event waits for.';

-- Registration ---------------------------------------------------------------
-- Transactions that may still insert events without seeing a sync that was committed before this call:
-- those that hold a snapshot, or a lock on outbox.event (prepared ones included). It is a definer's function
-- because other users' snapshots are hidden from a plain role.
-- +goose StatementBegin
CREATE FUNCTION outbox.older_writers() RETURNS TABLE (transaction text, pid int, since timestamptz)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT l.virtualtransaction, l.pid, a.xact_start
      FROM pg_locks AS l
      LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
     WHERE l.locktype = 'virtualxid' AND l.pid <> pg_backend_pid()
       AND a.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND coalesce(a.backend_type, 'client backend') NOT IN ('autovacuum worker', 'autovacuum launcher', 'walsender')
       -- Without pg_read_all_stats the snapshot of another user's backend cannot be seen: then wait for it.
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

-- Maintenance ----------------------------------------------------------------
CREATE TABLE outbox.retention (
    what text     NOT NULL,
    keep interval NOT NULL,
    CONSTRAINT retention_pkey PRIMARY KEY (what),
    CONSTRAINT retention_what_known CHECK (what IN ('events', 'log')),
    CONSTRAINT retention_bounds CHECK (keep BETWEEN CASE what WHEN 'log' THEN interval '1 month' ELSE interval '1 hour' END AND interval '1200 months')
);
INSERT INTO outbox.retention (what, keep) VALUES ('events', '90 days'), ('log', '84 months');
COMMENT ON TABLE outbox.retention IS 'How long finished events and the delivery log are kept at least. Only the owner changes it: UPDATE outbox.retention SET keep = ''120 months'' WHERE what = ''log''.';

-- Names the sessions that hold an advisory lock, for messages of those that wait for it. It is a definer's function
-- because other users' sessions are hidden from a plain role.
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
COMMENT ON FUNCTION outbox.lock_holder(bigint) IS 'Names the holders of an advisory lock: 1869967988 is that of outbox.maintain, 1869967989 that of retention, 1869967990 that of registrations.';

-- +goose StatementBegin
CREATE FUNCTION outbox.maintain(keep_events interval DEFAULT '1 hour', keep_log interval DEFAULT '1 month')
RETURNS TABLE (done text, n bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms'
    -- Bounds of partitions are written as text and patterns are read as text: the caller's settings must not change them.
    SET timezone = 'UTC' SET datestyle = 'ISO, MDY' SET standard_conforming_strings = on AS $$
DECLARE
    -- The longer one counts. A retention that somebody deleted is the one that this migration set.
    log_kept interval := greatest(keep_log, coalesce((SELECT r.keep FROM outbox.retention AS r WHERE r.what = 'log'), '84 months'));
    -- Read once: a bound that may change keeps the planner from leaving out the log's old partitions.
    recent timestamptz := clock_timestamp() - greatest(keep_events, coalesce((SELECT r.keep FROM outbox.retention AS r WHERE r.what = 'events'), '90 days'));
    expired timestamptz := clock_timestamp() - log_kept;
    -- Months before and after these are no months that this database lived through.
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

    -- Each step fails alone, so that trouble in one does not keep next month's partition from being made.
    -- Events go when nothing about them is open and nothing was recorded about them since. A page is locked first and
    -- judged in a statement of its own, so that a replay that was faster is seen. While retained events are being
    -- added to a sync, none is removed. The partitions come after it: their locks would keep relays from the log.
    IF NOT pg_try_advisory_xact_lock(1869967989) THEN
        done := 'held: the removal of events waits for ' || coalesce(outbox.lock_holder(1869967989), 'a session that has just ended'); n := 0;
        RETURN NEXT;
    ELSIF NOT EXISTS (SELECT FROM outbox.sync AS s WHERE s.backfill_seq IS NOT NULL AND s.retired_at IS NULL) THEN
        BEGIN
            -- Bounded: a line of old events that cannot go yet must not keep the partitions from being made.
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
                   -- An open replay stands at another place of its key's lane.
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

    -- References go when nothing of their key is open and nothing was logged about it for as long as the log is kept:
    -- then nothing in this database knows the key any more. A call looks at some blocks of the table, chosen by chance, so
    -- that it is bounded and needs no index that each recording would have to keep.
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

    -- A restore with triggers off puts a guard back as an ordinary trigger, which a replica's session passes by.
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

    -- This month and three ahead, by UTC, and those of rows that fell into the default partition while nobody called.
    -- A partition is filled and guarded before it is attached; the attach waits at most lock_timeout for an auditor's
    -- query, and the next call tries again.
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
            WHEN lock_not_available OR check_violation THEN -- the latter: a row came into the default partition meanwhile
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

    -- Events that the trigger did not see, written with triggers off or by a logical subscription, have no trace: no
    -- delivery, no row of the log, and they do not count as unmatched. The latest are looked at.
    FOR old IN SELECT count(*) AS events, min(e.inserted_at) AS first, max(e.inserted_at) AS last
                 FROM (SELECT o.seq, o.id, o.key, o.type, o.inserted_at FROM outbox.event AS o ORDER BY o.seq DESC LIMIT 2000) AS e
                WHERE e.inserted_at >= expired AND e.inserted_at < clock_timestamp() - interval '1 minute'
                  AND EXISTS (SELECT FROM outbox.sync AS s
                               WHERE s.retired_at IS NULL AND s.backfill_seq IS NULL AND e.type LIKE ANY (s.likes))
                  AND NOT EXISTS (SELECT FROM outbox.unmatched AS u WHERE u.event_seq = e.seq)
                  AND NOT EXISTS (SELECT FROM outbox.delivery_log AS l WHERE l.event_id = e.id AND l.at >= e.inserted_at - interval '1 minute')
                  AND NOT EXISTS (SELECT FROM outbox.sync AS s
                                    JOIN outbox.delivery AS d ON d.sync = s.name AND d.key = e.key AND d.event_id = e.id)
               HAVING count(*) > 0 LOOP
        done := format('trouble: %s event(s) inserted from %s to %s have no delivery: they were written with triggers off; add them with: lockstep sync apply NAME --from TIME',
                       old.events, old.first, old.last); n := old.events;
        RETURN NEXT;
    END LOOP;

    -- Triggers that are switched off, for instance after a restore that broke off: events would get no deliveries.
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
COMMENT ON FUNCTION outbox.maintain(interval, interval) IS 'Makes the log''s partitions three months ahead, drops those past retention, removes finished events and references. What is kept longer counts: the arguments or outbox.retention. Relays call it; it may be called at any time.';

SELECT * FROM outbox.maintain();

-- Privileges -----------------------------------------------------------------
-- +goose StatementBegin
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT p.oid::regprocedure FROM pg_proc AS p WHERE p.pronamespace = 'outbox'::regnamespace LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
    END LOOP;
END
$$;
-- +goose StatementEnd

GRANT INSERT (id, type, key, version, payload, headers, occurred_at), SELECT (id, seq) ON outbox.event TO outbox_writer;
GRANT EXECUTE ON FUNCTION outbox.emit(text, text, jsonb, bigint, jsonb, uuid) TO outbox_writer;

GRANT SELECT ON outbox.event, outbox.unmatched, outbox.sync, outbox.hold, outbox.delivery, outbox.lane, outbox.open_delivery, outbox.delivery_log, outbox.external_ref, outbox.retention,
    outbox.status, outbox.failed, outbox.blocked_key, outbox.goose_db_version TO outbox_relay, outbox_operator, outbox_auditor;
GRANT EXECUTE ON FUNCTION outbox.oldest_relay(), outbox.why_not_delivered(uuid, text), outbox.describe(outbox.open_delivery), outbox.check_sync(text)
    TO outbox_relay, outbox_operator, outbox_auditor;

GRANT INSERT, UPDATE, DELETE ON outbox.delivery, outbox.lane TO outbox_relay;
-- Not id, at and actor: the database sets them.
GRANT INSERT (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, error_class, error, external_id,
    request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, reason) ON outbox.delivery_log TO outbox_relay;
GRANT USAGE ON SEQUENCE outbox.delivery_log_id_seq TO outbox_relay;
GRANT INSERT, UPDATE ON outbox.sync TO outbox_relay;
GRANT INSERT, UPDATE, DELETE ON outbox.hold, outbox.external_ref TO outbox_relay;
GRANT DELETE ON outbox.unmatched TO outbox_relay;
GRANT EXECUTE ON FUNCTION outbox.like_patterns(text[]), outbox.older_writers(), outbox.maintain(interval, interval), outbox.lock_holder(bigint), outbox.clean(text) TO outbox_relay;

GRANT UPDATE (state) ON outbox.delivery TO outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.requeue(text, text, uuid, text), outbox.discard(text, uuid, text), outbox.replay(text, uuid, text),
    outbox.pause(text, text, text), outbox.resume(text, text), outbox.retire(text, text) TO outbox_operator;

-- +goose Down
SET LOCAL lock_timeout = '1s';
-- +goose StatementBegin
DO $$
BEGIN
    IF coalesce(current_setting('lockstep.force', true), '') <> 'on' AND EXISTS (SELECT FROM outbox.delivery_log) THEN
        RAISE EXCEPTION 'outbox.delivery_log is not empty: it is the proof of what was delivered'
            USING HINT = 'Back it up, then: lockstep migrate down --force';
    END IF;
    IF coalesce(current_setting('lockstep.force', true), '') <> 'on'
       AND (EXISTS (SELECT FROM outbox.delivery) OR EXISTS (SELECT FROM outbox.unmatched)) THEN
        RAISE EXCEPTION 'there are events in outbox.event that were not delivered yet'
            USING HINT = 'Let a relay deliver them, or give them up with: lockstep migrate down --force';
    END IF;
END
$$;
-- +goose StatementEnd
DROP FUNCTION outbox.describe;
DROP VIEW outbox.status, outbox.blocked_key, outbox.failed, outbox.open_delivery;
DROP TABLE outbox.delivery_log, outbox.external_ref, outbox.retention, outbox.hold, outbox.unmatched, outbox.event CASCADE;
DROP FUNCTION outbox.oldest_relay, outbox.log_action, outbox.why_not_delivered, outbox.maintain, outbox.older_writers, outbox.requeue,
    outbox.discard, outbox.replay, outbox.pause, outbox.resume, outbox.retire, outbox.emit, outbox.actor, outbox.check_sync,
    outbox.check_reason, outbox.check_scope, outbox.guard_log_partition, outbox.refuse_log_change, outbox.fan_out, outbox.show_strongest_hold;
DROP TABLE outbox.delivery, outbox.lane, outbox.sync CASCADE;
DROP FUNCTION outbox.complete_requeue, outbox.like_patterns, outbox.clean, outbox.sign_log_row, outbox.check_log_claims,
    outbox.log_sync_change, outbox.keep_registration, outbox.refuse_restored_event, outbox.keep_operators_hold, outbox.lock_holder;

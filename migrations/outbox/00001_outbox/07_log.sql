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
          requeued, replayed, discarded, paused, resumed, retired, sync_changed, reference_set}'::text[])),
    -- If the database was away for longer, the relay leaves answered_at out.
    CONSTRAINT delivery_log_answered_before CHECK (answered_at BETWEEN at - interval '7 days' AND at + interval '1 minute'),
    -- Every row has a claim or an actor. Two kinds of rows of relays have no claim: superseded, and lease_lost if the
    -- database does not know the claim.
    CONSTRAINT delivery_log_claim_or_actor CHECK (
        CASE WHEN claim IS NULL THEN actor IS NOT NULL OR relay IS NOT NULL AND outcome = ANY ('{superseded, lease_lost}'::text[])
             ELSE actor IS NULL AND outcome <> ALL ('{requeued, replayed, discarded, paused, resumed, retired, sync_changed, reference_set}'::text[]) END)
) PARTITION BY RANGE (at);
ALTER SEQUENCE outbox.delivery_log_id_seq OWNED BY outbox.delivery_log.id;
CREATE INDEX delivery_log_event ON outbox.delivery_log (event_id);
-- With the id, the newest rows of a key are found without reading all of its rows.
CREATE INDEX delivery_log_key ON outbox.delivery_log (key, id);
-- For programs that copy the log: they read the rows after the last one that they have.
CREATE INDEX delivery_log_id ON outbox.delivery_log (id);
-- Few rows: what people did, the newest first.
CREATE INDEX delivery_log_actor ON outbox.delivery_log (id) WHERE actor IS NOT NULL;
CREATE INDEX delivery_log_at ON outbox.delivery_log USING brin (at);
COMMENT ON TABLE outbox.delivery_log IS 'Append only. Every request that a receiver may have seen has a row. It contains no payload, secret or name of a party.';
COMMENT ON COLUMN outbox.delivery_log.at IS 'When this row was recorded; answered_at is when the receiver answered, both by the database clock.';
COMMENT ON COLUMN outbox.delivery_log.attempt IS 'Number of the attempt for this event and sync; never reset.';
COMMENT ON COLUMN outbox.delivery_log.request_sha256 IS 'SHA-256 of the request body, in hexadecimal.';
COMMENT ON COLUMN outbox.delivery_log.event_seq IS 'Place of the delivery in its key''s lane, as in outbox.delivery.';
COMMENT ON COLUMN outbox.delivery_log.actor IS 'Who wrote the row: the login, or login/name. The database sets it. Null for rows of relays.';

-- Whether a row with this outcome is the end of its delivery.
CREATE FUNCTION outbox.ends_delivery(outcome text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN outcome = ANY ('{delivered, duplicate, accepted, filtered, superseded, discarded}'::text[]);

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

-- The trigger of the parent does not fire for a statement on a partition: each partition has its own.
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

-- Makes one line of a text from a person: without control characters, and without characters that are invisible or change
-- the direction of text.
-- +goose StatementBegin
CREATE FUNCTION outbox.clean(said text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
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

-- The database sets at and actor in every row. A row that a relay records with its claim is correct already: the WHEN
-- clause of the trigger skips the function. Functions such as outbox.requeue log the actions of people, and run as the
-- owner.
-- +goose StatementBegin
CREATE FUNCTION outbox.sign_log_row() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner     boolean := (SELECT pg_has_role(current_user, c.relowner, 'USAGE') FROM pg_class AS c WHERE c.oid = TG_RELID);
    by_people boolean := NEW.outcome = ANY ('{requeued, replayed, discarded, paused, resumed, retired, sync_changed, reference_set}'::text[]);
BEGIN
    IF NEW.at NOT BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() + interval '1 minute' THEN -- it may belong to another partition
        RAISE EXCEPTION 'a row of the delivery log cannot be dated %: the database sets at', NEW.at
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Leave at out. To load a backup, see docs/operators.md: with session_replication_role = replica the rows keep their time.';
    END IF;
    IF by_people AND NOT owner THEN
        RAISE EXCEPTION 'a row that says "%" is written by the function that does it, not by "%"', NEW.outcome, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Use outbox.requeue, replay, discard, pause, resume, retire or set_reference, or lockstep sync apply.';
    END IF;
    IF NOT owner AND NEW.claim IS NULL AND (NEW.relay IS NULL OR NEW.outcome <> ALL ('{superseded, lease_lost}'::text[])) THEN
        RAISE EXCEPTION 'a row that says "%" needs the claim that it is recorded with', NEW.outcome
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'A relay records what it has claimed, in the statement that ends the claim.';
    END IF;
    IF NEW.at < statement_timestamp() OR NEW.at > clock_timestamp() THEN -- the default may stay: a new time may belong to the next month's partition
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

-- A relay may only record deliveries that its claim was on when the statement began. The function is STABLE, so it sees the
-- tables as they were before the statement, which may have removed the delivery. The owner may write corrections without a
-- claim. The log names the owner as their actor.
-- +goose StatementBegin
CREATE FUNCTION outbox.check_log_claims() RETURNS trigger
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    wrong record;
BEGIN
    -- Fast path: every recording of a relay waits for this check.
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
           -- The relay that took over the lane has logged the claim. After a restore or a failover, the database may not know
           -- the claim: then it is null.
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
-- outbox.maintain moves rows out of it. A publication FOR ALL TABLES would refuse the DELETE, because the log has no key.
ALTER TABLE outbox.delivery_log_default REPLICA IDENTITY FULL;
COMMENT ON TABLE outbox.delivery_log_default IS 'Stays empty while outbox.maintain runs; rows here mean that a month''s partition was missing.';

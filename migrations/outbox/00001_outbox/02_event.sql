CREATE TABLE outbox.event (
    -- A UUID in the order of time (version 7, RFC 9562). Each random UUID would change another page of the index.
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
    -- The size of the text, because relays read the text. A few stored bytes may have a text of a megabyte (1e131071).
    CONSTRAINT event_payload_size CHECK (octet_length(payload::text) <= 1048576),
    CONSTRAINT event_headers_is_object CHECK (jsonb_typeof(headers) = 'object'),
    CONSTRAINT event_headers_size CHECK (octet_length(headers::text) <= 16384)
);
COMMENT ON TABLE outbox.event IS 'Facts, insert only. INSERT INTO outbox.event (type, key, payload) in your own transaction is a complete integration.';
COMMENT ON COLUMN outbox.event.key IS 'What the event is about; events of one key are delivered in order.';
COMMENT ON COLUMN outbox.event.version IS 'Rising per key, from the writer''s own row.';
COMMENT ON COLUMN outbox.event.inserted_at IS 'Database clock at insertion; occurred_at may be given by the writer.';

-- Writers cannot set inserted_at. A row with another time comes from a backup of the data alone, and its event would be
-- sent again. The WHEN clause of the trigger costs a writer very little, because it runs right after the default.
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

-- Operator events begin with lockstep: , and outbox.raise_alerts alone writes them: receivers rely on what they say.
-- +goose StatementBegin
CREATE FUNCTION outbox.refuse_operator_event() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF coalesce(current_setting('lockstep.raises_alerts', true), '') <> 'on'
       OR NOT (SELECT pg_has_role(current_user, c.relowner, 'USAGE') FROM pg_class AS c WHERE c.oid = TG_RELID) THEN
        RAISE EXCEPTION 'event type "%" begins with lockstep: , and only outbox.raise_alerts() writes such events', NEW.type
            USING ERRCODE = 'insufficient_privilege', HINT = 'Name your own event type differently, such as scheduling:updated.';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
-- After refuse_restored, in the order of their names: what it says fits all rows of a backup.
CREATE TRIGGER refuse_type BEFORE INSERT ON outbox.event
    FOR EACH ROW WHEN (starts_with(NEW.type, 'lockstep:'))
    EXECUTE FUNCTION outbox.refuse_operator_event();

-- Events that no sync takes: outbox.status and outbox.unmatched_type count them without reading all events.
CREATE TABLE outbox.unmatched (
    event_seq   bigint      NOT NULL,
    event_id    uuid        NOT NULL,
    type        text        COLLATE "C" NOT NULL,
    inserted_at timestamptz NOT NULL,
    CONSTRAINT unmatched_pkey PRIMARY KEY (event_seq)
);

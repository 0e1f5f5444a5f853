CREATE TABLE outbox.external_ref (
    sync           text        COLLATE "C" NOT NULL,
    key            text        COLLATE "C" NOT NULL,
    external_id    text,
    etag           text,
    version        bigint,
    request_sha256 text,
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    event_seq      bigint      NOT NULL,
    times_set      int         NOT NULL DEFAULT 0,
    learned        jsonb       NOT NULL DEFAULT '{}',
    CONSTRAINT external_ref_pkey PRIMARY KEY (sync, key),
    CONSTRAINT external_ref_learned_object CHECK (jsonb_typeof(learned) = 'object')
) WITH (fillfactor = 80);
COMMENT ON TABLE outbox.external_ref IS 'What the external system answered last for a key. The order of the key''s lane decides which answer is the last one, not the version: the version of a key that was deleted and created again begins anew.';
COMMENT ON COLUMN outbox.external_ref.version IS 'Version of the event that was answered.';
COMMENT ON COLUMN outbox.external_ref.event_seq IS 'Place in the key''s lane of the delivery that was answered, as in outbox.delivery. 0: none, it was set by a person or read from the receiver.';
COMMENT ON COLUMN outbox.external_ref.times_set IS 'How often outbox.set_reference has set it. The answer to an attempt that was claimed before the last time does not change the row.';
COMMENT ON COLUMN outbox.external_ref.learned IS 'Other values of the answer that the next request needs, by the names that the configuration gives them.';

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
COMMENT ON TABLE outbox.external_ref IS 'What the external system answered last for a key. It never goes back to an older version.';
COMMENT ON COLUMN outbox.external_ref.event_seq IS 'seq of the event that was answered. It decides which answer is newer if the writer gives no version.';

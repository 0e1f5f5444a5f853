-- +goose Up
SET LOCAL lock_timeout = '1s';

-- Tables of the reference scheduling module. They are a separate set: an adopter with another module applies only the
-- outbox. The roles of the outbox get no privileges here.
-- Numbers for hearings that are booked without an id.
CREATE SEQUENCE scheduling.hearing_number AS bigint;

CREATE TABLE scheduling.hearing (
    id               text        COLLATE "C" NOT NULL,
    case_number      text        NOT NULL,
    case_name        text        NOT NULL DEFAULT '',
    hearing_type     text        NOT NULL,
    status           text        NOT NULL DEFAULT 'booked',
    cancel_reason    text,
    courthouse       text        NOT NULL,
    courtroom        text        NOT NULL,
    local_start      timestamp   NOT NULL,
    zone             text        NOT NULL,
    starts_at        timestamptz NOT NULL,
    duration_minutes int         NOT NULL,
    version          bigint      NOT NULL DEFAULT 1,
    event_id         uuid        NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT hearing_pkey PRIMARY KEY (id),
    -- The id appears in URLs, in logs and in the calendars of courts, so it must not contain a name.
    CONSTRAINT hearing_id_form CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'),
    CONSTRAINT hearing_case_number_size CHECK (char_length(case_number) BETWEEN 1 AND 200),
    CONSTRAINT hearing_case_name_size CHECK (char_length(case_name) <= 500),
    CONSTRAINT hearing_type_size CHECK (char_length(hearing_type) BETWEEN 1 AND 200),
    CONSTRAINT hearing_status_known CHECK (status IN ('booked', 'cancelled')),
    -- Courts refuse a cancellation without a reason. A hearing that is not cancelled has none.
    CONSTRAINT hearing_cancelled_with_reason CHECK ((status = 'cancelled') = (cancel_reason IS NOT NULL)),
    -- A code, because free text may contain names, which every receiver would get.
    CONSTRAINT hearing_cancel_reason_is_code CHECK (cancel_reason ~ '^[A-Za-z][A-Za-z0-9_-]{0,39}$'),
    CONSTRAINT hearing_courthouse_size CHECK (char_length(courthouse) BETWEEN 1 AND 200),
    CONSTRAINT hearing_courtroom_size CHECK (char_length(courtroom) BETWEEN 1 AND 200),
    CONSTRAINT hearing_zone_size CHECK (char_length(zone) BETWEEN 1 AND 64),
    CONSTRAINT hearing_duration_bounds CHECK (duration_minutes BETWEEN 1 AND 10080),
    CONSTRAINT hearing_version_positive CHECK (version > 0)
    -- No CHECK ties starts_at to local_start and zone: zone rules change, and a dump must load
    -- on a server with newer ones.
);
COMMENT ON TABLE scheduling.hearing IS 'Hearings of the reference scheduling module. Each change raises version and inserts one outbox.event in the same transaction.';
COMMENT ON COLUMN scheduling.hearing.case_name IS 'May hold names of parties: never in events, logs or URLs.';
COMMENT ON COLUMN scheduling.hearing.local_start IS 'Wall time at the courthouse, in zone; what was agreed with the parties.';
COMMENT ON COLUMN scheduling.hearing.zone IS 'IANA name, such as America/New_York.';
COMMENT ON COLUMN scheduling.hearing.starts_at IS 'The instant that local_start meant in zone when it was written.';
COMMENT ON COLUMN scheduling.hearing.event_id IS 'outbox.event that told of this version: where it got to is looked up by it.';

CREATE INDEX hearing_starts ON scheduling.hearing (starts_at, id);
-- For the list of one courtroom, and for the list of one day in local time.
CREATE INDEX hearing_room ON scheduling.hearing (courtroom, starts_at, id);
CREATE INDEX hearing_case_number ON scheduling.hearing (case_number, starts_at, id);
CREATE INDEX hearing_local_start ON scheduling.hearing (local_start);

-- +goose Down
SET LOCAL lock_timeout = '1s';
-- The schema stays, because goose's version table is in it.
DROP TABLE scheduling.hearing;
DROP SEQUENCE scheduling.hearing_number;

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
    needed_by       timestamptz,
    -- Relays write and read these.
    changed_in      xid8        NOT NULL DEFAULT pg_current_xact_id(),
    total_attempts  int         NOT NULL DEFAULT 0,
    charged         int         NOT NULL DEFAULT 0,
    unclear         int         NOT NULL DEFAULT 0,
    spent_ms        bigint      NOT NULL DEFAULT 0,
    revision        int         NOT NULL DEFAULT 1,
    body            bytea,
    body_sha256     text,
    mapping_version text,
    escalates_at    timestamptz,
    escalated       boolean     NOT NULL DEFAULT false,
    failure_told    boolean     NOT NULL DEFAULT false,
    CONSTRAINT delivery_pkey PRIMARY KEY (sync, key, event_seq),
    -- One constant instead of a list, as in the log: every statement parses the CHECKs of its table.
    CONSTRAINT delivery_state_known CHECK (state = ANY ('{pending, retry, failed}'::text[])),
    CONSTRAINT delivery_failed_is_never_due CHECK (state <> 'failed' OR due_at = 'infinity')
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0.05,
        autovacuum_vacuum_cost_delay = 0);
COMMENT ON TABLE outbox.delivery IS 'Open work only: a finished delivery leaves this table, its history is in outbox.delivery_log. outbox.open_delivery also shows what is being sent and what is queued.';
COMMENT ON COLUMN outbox.delivery.event_seq IS 'Place in the key''s lane: the event''s seq or, for a replay, a new number of that sequence. Join events by event_id.';
COMMENT ON COLUMN outbox.delivery.due_at IS 'Not sent before this time. Infinity: failed, or its type is still being added to the sync (error_class "backfill").';
COMMENT ON COLUMN outbox.delivery.error_class IS 'Error class of the last attempt, or "backfill": it waits until its type is fully added to the sync.';
COMMENT ON COLUMN outbox.delivery.needed_by IS 'The time of the hearing or the like: the earliest time that the payload has at outbox.sync.escalate_at. Null: none, or it cannot be read.';
COMMENT ON COLUMN outbox.delivery.escalates_at IS 'From this time on an open delivery is escalated, by the policy of its sync. Null: never.';
COMMENT ON COLUMN outbox.delivery.escalated IS 'outbox.raise_alerts has told that it is escalated.';
COMMENT ON COLUMN outbox.delivery.failure_told IS 'outbox.raise_alerts has told that it failed. A requeue takes it back.';
COMMENT ON COLUMN outbox.delivery.changed_in IS 'The transaction that made it ready to be sent. Relays read the deliveries of transactions that have committed since their last look.';
COMMENT ON COLUMN outbox.delivery.attempts IS 'Recorded attempts of this life; a requeue starts a new one. total_attempts is never reset.';
COMMENT ON COLUMN outbox.delivery.charged IS 'Attempts of this life that count for the retry budget. Throttles, auth errors and faults of our own side do not count.';
COMMENT ON COLUMN outbox.delivery.unclear IS 'Answers of this life that do not say whether the receiver has the message. With the fifth the delivery fails.';
COMMENT ON COLUMN outbox.delivery.spent_ms IS 'Retry budget used in this life, in milliseconds: attempts and the delays between them, holds excluded.';
COMMENT ON COLUMN outbox.delivery.revision IS 'n of the Idempotency-Key "<id>:<n>"; 1 is the bare id.';

-- Relays read deliveries that have become ready since their last poll.
CREATE INDEX delivery_changed ON outbox.delivery (sync, changed_in, event_seq);

-- Few rows: failed deliveries wait for an operator, or for a newer event.
CREATE INDEX delivery_failed ON outbox.delivery (sync, key) WHERE state = 'failed';

-- Mostly empty: deliveries that wait for the end of a backfill.
CREATE INDEX delivery_backfill ON outbox.delivery (sync, event_seq) WHERE error_class = 'backfill';

-- Only deliveries of syncs that escalate are in these: those that are needed soonest, and those that are escalated.
CREATE INDEX delivery_needed ON outbox.delivery (sync, needed_by) WHERE needed_by IS NOT NULL;
CREATE INDEX delivery_escalates ON outbox.delivery (sync, escalated, escalates_at) WHERE escalates_at IS NOT NULL;

-- Mostly empty: failures that outbox.raise_alerts has not told yet.
CREATE INDEX delivery_failed_untold ON outbox.delivery (sync, event_seq) WHERE state = 'failed' AND NOT failure_told;

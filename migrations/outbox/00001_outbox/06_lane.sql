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

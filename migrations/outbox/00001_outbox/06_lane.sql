-- One row per sync and key with open deliveries that a relay knows of. Only the relay with its claim may send the first
-- of them. Relays open and close lanes. Writers never touch a lane, and operators only through outbox.discard.
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
COMMENT ON TABLE outbox.lane IS 'The queue of one key in one sync: which relay may send its first delivery, and when it may be claimed.';
COMMENT ON COLUMN outbox.lane.scope IS 'The destination of its first delivery, once a relay knows it: written when the delivery is put off, or given back because of a hold. Empty: not known, or the sync has one destination.';
COMMENT ON COLUMN outbox.lane.due_at IS 'When it may be claimed. If it is claimed: the end of the lease. Infinity: its first delivery has failed, or waits for a backfill.';
COMMENT ON COLUMN outbox.lane.lost_claim IS 'An earlier claim whose lease ended without a result, until that is logged.';
COMMENT ON COLUMN outbox.lane.crashes IS 'Claims in a row whose relay did not come back. From the second on, the lane is sent while nothing else of its sync is in flight. After five its first delivery fails.';
COMMENT ON COLUMN outbox.lane.judged IS 'Where failed deliveries are superseded: the event_seq up to which no delivery supersedes the failed first one.';

CREATE INDEX lane_due ON outbox.lane (sync, scope, due_at) WHERE due_at < 'infinity';

-- Few rows: relays find lanes with crashes without reading all due lanes.
CREATE INDEX lane_crashed ON outbox.lane (sync, due_at) WHERE crashes > 0;

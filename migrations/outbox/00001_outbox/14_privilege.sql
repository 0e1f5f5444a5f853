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
    outbox.heartbeat, outbox.relay, outbox.status, outbox.failed, outbox.blocked_key, outbox.unmatched_type, outbox.missed, outbox.alert, outbox.alerting_hold, outbox.told, outbox.goose_db_version TO outbox_relay, outbox_operator, outbox_auditor;
GRANT EXECUTE ON FUNCTION outbox.oldest_relay(), outbox.hold_rank(text), outbox.ends_delivery(text), outbox.why_not_delivered(uuid, text), outbox.describe(outbox.open_delivery, boolean), outbox.check_sync(text),
    outbox.takes(text, text[], text[], text, text)
    TO outbox_relay, outbox_operator, outbox_auditor;

GRANT INSERT, UPDATE, DELETE ON outbox.delivery, outbox.lane TO outbox_relay;
-- The database sets id, at and actor.
GRANT INSERT (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, error_class, error, external_id,
    request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, reason) ON outbox.delivery_log TO outbox_relay;
GRANT USAGE ON SEQUENCE outbox.delivery_log_id_seq TO outbox_relay;
GRANT INSERT, UPDATE ON outbox.sync TO outbox_relay;
GRANT INSERT, UPDATE, DELETE ON outbox.hold, outbox.external_ref, outbox.heartbeat TO outbox_relay;
GRANT DELETE ON outbox.unmatched, outbox.missed TO outbox_relay;
GRANT EXECUTE ON FUNCTION outbox.like_patterns(text[], text), outbox.older_writers(), outbox.maintain(interval, interval), outbox.sequence_trouble(), outbox.raise_alerts(), outbox.lock_holder(bigint), outbox.clean(text),
    outbox.begin_backfill(text, timestamptz, boolean), outbox.read_time(jsonb, text), outbox.needed_by(text, jsonb, text[], text),
    outbox.escalates_at(text, timestamptz, timestamptz, interval, interval) TO outbox_relay;

GRANT UPDATE (state) ON outbox.delivery TO outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.find_missed(bigint, int), outbox.repair(int, text), outbox.read_time(jsonb, text), outbox.needed_by(text, jsonb, text[], text) TO outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.requeue(text, text, uuid, text), outbox.discard(text, uuid, text), outbox.discard_all(text, text), outbox.replay(text, uuid, text),
    outbox.pause(text, text, timestamptz, text), outbox.resume(text, text, text), outbox.retire(text, text), outbox.resume_retired(text, text), outbox.set_reference(text, text, text, text, text, jsonb) TO outbox_operator;

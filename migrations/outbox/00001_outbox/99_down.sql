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
       AND (EXISTS (SELECT FROM outbox.delivery) OR EXISTS (SELECT FROM outbox.unmatched) OR EXISTS (SELECT FROM outbox.missed)) THEN
        RAISE EXCEPTION 'there are events in outbox.event that were not delivered yet'
            USING HINT = 'Let a relay deliver them, or give them up with: lockstep migrate down --force';
    END IF;
END
$$;
-- +goose StatementEnd
DROP FUNCTION outbox.describe, outbox.was_missed, outbox.find_missed, outbox.repair;
DROP FUNCTION outbox.raise_alerts, outbox.write_operator_event;
DROP VIEW outbox.alert, outbox.alerting_hold, outbox.status, outbox.relay, outbox.unmatched_type, outbox.blocked_key, outbox.failed, outbox.open_delivery;
DROP TABLE outbox.delivery_log, outbox.external_ref, outbox.retention, outbox.hold, outbox.told, outbox.heartbeat, outbox.unmatched, outbox.missed, outbox.missed_scan, outbox.event CASCADE;
DROP FUNCTION outbox.oldest_relay, outbox.log_action, outbox.why_not_delivered, outbox.maintain, outbox.older_writers, outbox.requeue,
    outbox.discard, outbox.discard_all, outbox.check_sees_claims, outbox.wait_for_claims, outbox.replay, outbox.pause, outbox.resume, outbox.retire, outbox.resume_retired, outbox.set_reference, outbox.emit, outbox.actor, outbox.check_sync,
    outbox.check_reason, outbox.check_scope, outbox.guard_log_partition, outbox.refuse_log_change, outbox.fan_out, outbox.show_strongest_hold,
    outbox.sequence_trouble;
DROP TABLE outbox.delivery, outbox.lane, outbox.sync CASCADE;
DROP FUNCTION outbox.complete_requeue, outbox.like_patterns, outbox.takes, outbox.refuse_operator_event, outbox.clean, outbox.sign_log_row, outbox.check_log_claims,
    outbox.log_sync_change, outbox.keep_registration, outbox.refuse_restored_event, outbox.keep_operators_hold, outbox.lock_holder, outbox.begin_backfill;
DROP FUNCTION outbox.held_subject, outbox.needed_by, outbox.read_time, outbox.escalates_at;
DROP FUNCTION IF EXISTS outbox.hold_rank, outbox.ends_delivery; -- schemas made before they were added have none

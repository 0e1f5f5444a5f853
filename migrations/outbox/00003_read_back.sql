-- +goose Up
SET LOCAL lock_timeout = '1s';

-- A relay looks at what the receiver has before it sends an uncertain delivery again. A delivery may need several
-- requests, its steps.
ALTER TABLE outbox.delivery
    ADD COLUMN IF NOT EXISTS uncertain boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS step      int     NOT NULL DEFAULT 0;
COMMENT ON COLUMN outbox.delivery.uncertain IS 'An attempt ended without a clear answer, and nobody has looked since whether the receiver has the message. A requeue keeps it.';
COMMENT ON COLUMN outbox.delivery.step IS 'How many steps of the event are done. Most events have a single step. A requeue keeps it.';

-- The constraint is not validated: each row met the one before, which allowed less.
ALTER TABLE outbox.delivery_log
    DROP CONSTRAINT delivery_log_outcome_known,
    DROP CONSTRAINT delivery_log_claim_or_actor,
    ADD CONSTRAINT delivery_log_outcome_known CHECK (outcome = ANY (
        '{delivered, duplicate, accepted, filtered, retry, failed, unknown, lease_lost, superseded, read, step,
          requeued, replayed, discarded, paused, resumed, retired, sync_changed, reference_set, confirmed, reconciled}'::text[])) NOT VALID,
    ADD CONSTRAINT delivery_log_claim_or_actor CHECK (
        CASE WHEN claim IS NULL THEN actor IS NOT NULL OR relay IS NOT NULL AND outcome = ANY ('{superseded, lease_lost}'::text[])
             ELSE actor IS NULL AND outcome <> ALL ('{requeued, replayed, discarded, paused, resumed, retired, sync_changed, reference_set, confirmed, reconciled}'::text[]) END) NOT VALID;

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION outbox.sign_log_row() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    owner     boolean := (SELECT pg_has_role(current_user, c.relowner, 'USAGE') FROM pg_class AS c WHERE c.oid = TG_RELID);
    by_people boolean := NEW.outcome = ANY ('{requeued, replayed, discarded, paused, resumed, retired, sync_changed, reference_set, confirmed, reconciled}'::text[]);
BEGIN
    IF NEW.at NOT BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() + interval '1 minute' THEN -- it may belong to another partition
        RAISE EXCEPTION 'a row of the delivery log cannot be dated %: the database sets at', NEW.at
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Leave at out. To load a backup, see docs/operators.md: with session_replication_role = replica the rows keep their time.';
    END IF;
    IF by_people AND NOT owner THEN
        RAISE EXCEPTION 'a row that says "%" is written by the function that does it, not by "%"', NEW.outcome, current_user
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Use outbox.requeue, replay, discard, pause, resume, retire, set_reference or confirm, or lockstep sync apply or reconcile.';
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

-- What receivers took for later processing, such as with HTTP 202. Relays ask about it where they can read it back.
CREATE TABLE outbox.unconfirmed (
    sync        text        COLLATE "C" NOT NULL,
    key         text        COLLATE "C" NOT NULL,
    event_id    uuid        NOT NULL,
    event_seq   bigint      NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ask_at      timestamptz NOT NULL DEFAULT clock_timestamp() + interval '10 seconds',
    asked       int         NOT NULL DEFAULT 0,
    CONSTRAINT unconfirmed_pkey PRIMARY KEY (sync, key)
);
CREATE INDEX unconfirmed_ask ON outbox.unconfirmed (sync, ask_at);
COMMENT ON TABLE outbox.unconfirmed IS 'The last event of each key that its receiver took for later processing and has not confirmed since. A later event that is delivered, a read or outbox.confirm settles it.';
COMMENT ON COLUMN outbox.unconfirmed.ask_at IS 'When a relay looks at it next.';

-- +goose StatementBegin
CREATE FUNCTION outbox.confirm(sync text, event_id uuid, reason text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    u outbox.unconfirmed;
BEGIN
    PERFORM outbox.check_sync(confirm.sync);
    DELETE FROM outbox.unconfirmed AS o
     USING outbox.event AS e
     WHERE e.id = confirm.event_id AND o.sync = confirm.sync AND o.key = e.key AND o.event_id = e.id
    RETURNING o.* INTO u;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, event_seq, outcome, actor, reason)
    SELECT u.sync, e.id, e.type, e.key, e.version, u.event_seq, 'confirmed', outbox.actor(), outbox.check_reason(confirm.reason)
      FROM outbox.event AS e
     WHERE e.id = u.event_id;
    RETURN true;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.confirm(text, uuid, text) IS 'Says that the receiver has processed an event that it had only accepted. Returns false if this event is not in outbox.unconfirmed: it was settled before, or a later event of its key was accepted.';

CREATE OR REPLACE VIEW outbox.open_delivery AS
SELECT d.sync, d.event_seq, d.event_id, d.key,
       CASE WHEN d.state = 'failed' THEN 'failed'
            WHEN NOT f.leads OR d.error_class = 'backfill' THEN 'queued'
            WHEN l.claim IS NOT NULL THEN 'sending'
            ELSE d.state END COLLATE "C" AS state,
       d.attempts, d.due_at, CASE WHEN s.sends THEN l.claim END AS claim, CASE WHEN s.sends THEN l.claimed_by END AS claimed_by,
       CASE WHEN s.sends THEN l.due_at END AS lease_until, d.error_class, d.error, d.created_at, d.total_attempts, d.charged, d.unclear, d.spent_ms,
       CASE WHEN f.leads THEN coalesce(l.crashes, 0) ELSE 0 END AS crashes, d.revision, d.body_sha256, d.mapping_version,
       d.needed_by, d.escalates_at, d.step, d.uncertain
  FROM outbox.delivery AS d
 CROSS JOIN LATERAL (
       SELECT NOT EXISTS (SELECT FROM outbox.delivery AS o
                           WHERE o.sync = d.sync AND o.key = d.key AND o.event_seq < d.event_seq) AS leads
       OFFSET 0) AS f
  LEFT JOIN outbox.lane AS l ON l.sync = d.sync AND l.key = d.key
 CROSS JOIN LATERAL (SELECT f.leads AND d.state <> 'failed' AND l.claim IS NOT NULL AS sends) AS s;

CREATE OR REPLACE VIEW outbox.status AS
WITH delivery AS ( -- the states of outbox.open_delivery and the keys of outbox.blocked_key, in one scan
    SELECT d.sync, d.created_at, d.due_at, d.state AS stored, d.first AND d.next_seq IS NOT NULL AS blocks,
           CASE WHEN d.state = 'failed' THEN 'failed'
                WHEN NOT d.first OR d.error_class = 'backfill' THEN 'queued'
                WHEN l.claim IS NOT NULL THEN 'sending'
                ELSE d.state END AS state
      FROM (SELECT sync, key, state, error_class, due_at, created_at,
                   lag(event_seq) OVER lane IS NULL AS first, lead(event_seq) OVER lane AS next_seq
              FROM outbox.delivery
            WINDOW lane AS (PARTITION BY sync, key ORDER BY event_seq)) AS d
      LEFT JOIN outbox.lane AS l ON d.first AND l.sync = d.sync AND l.key = d.key
), open AS (
    SELECT sync,
           count(*) FILTER (WHERE state IN ('pending', 'retry') AND due_at <= clock_timestamp()) AS due_now,
           count(*) FILTER (WHERE state = 'pending') AS pending,
           count(*) FILTER (WHERE state = 'queued')  AS queued,
           count(*) FILTER (WHERE state = 'retry')   AS retry,
           count(*) FILTER (WHERE state = 'sending') AS sending,
           count(*) FILTER (WHERE state = 'failed')  AS failed,
           count(*) FILTER (WHERE blocks AND stored IN ('failed', 'retry')) AS blocked_keys,
           clock_timestamp() - min(created_at) FILTER (WHERE state <> 'failed') AS oldest_pending_age
      FROM delivery
     GROUP BY sync
), held AS (
    SELECT DISTINCT ON (sync, scope) sync, scope, kind, until, reason, by
      FROM outbox.hold
     WHERE kind IN ('auth', 'breaker') OR until IS NULL OR until > clock_timestamp()
     -- Not outbox.hold_rank: whoever may read a view would need EXECUTE on each function in it.
     ORDER BY sync, scope, array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind)
), held_scope AS (
    SELECT sync, jsonb_agg(jsonb_build_object('scope', scope, 'hold', kind, 'until', until, 'reason', reason, 'by', by) ORDER BY scope) AS holds
      FROM held
     WHERE scope <> ''
     GROUP BY sync
), known_relay AS (
    SELECT syncs, jsonb_build_object('name', name, 'host', host, 'version', version, 'started_at', started_at, 'seen_at', seen_at, 'running', running) AS relay
      FROM outbox.relay
     ORDER BY name, started_at
), serving AS (
    SELECT served.sync, jsonb_agg(r.relay) AS relays FROM known_relay AS r CROSS JOIN unnest(r.syncs) AS served (sync) GROUP BY served.sync
)
SELECT s.name AS sync, h.kind AS hold,
       coalesce(o.due_now, 0) AS due_now, coalesce(o.pending, 0) AS pending, coalesce(o.queued, 0) AS queued,
       coalesce(o.retry, 0) AS retry, coalesce(o.sending, 0) AS sending, coalesce(o.failed, 0) AS failed,
       coalesce(o.blocked_keys, 0) AS blocked_keys, o.oldest_pending_age, s.last_delivered_at,
       h.until AS hold_until, h.reason AS hold_reason, h.by AS hold_by, s.retired_at, s.backfill_reason AS backfill,
       coalesce(c.holds, '[]') AS scope_holds, coalesce(r.relays, '[]') AS relays,
       CASE WHEN s.retired_at IS NULL THEN (SELECT count(*) FROM outbox.missed AS m WHERE m.type LIKE ANY (s.likes)) ELSE 0 END AS missed,
       (SELECT count(*) FROM outbox.unconfirmed AS u WHERE u.sync = s.name) AS unconfirmed
  FROM outbox.sync AS s
  LEFT JOIN held AS h ON h.sync = s.name AND h.scope = ''
  LEFT JOIN held_scope AS c ON c.sync = s.name
  LEFT JOIN open AS o ON o.sync = s.name
  LEFT JOIN serving AS r ON r.sync = s.name
UNION ALL
SELECT NULL, NULL, 0, (SELECT count(*) FROM outbox.unmatched), 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '[]',
       (SELECT coalesce(jsonb_agg(relay), '[]') FROM known_relay),
       (SELECT count(*) FROM outbox.missed AS m WHERE NOT EXISTS (SELECT FROM outbox.sync AS s WHERE s.retired_at IS NULL AND m.type LIKE ANY (s.likes))), 0;

-- What lockstep reconcile found last, for each sync.
CREATE TABLE outbox.reconciliation (
    sync  text        COLLATE "C" NOT NULL,
    at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    by    text        NOT NULL,
    found jsonb       NOT NULL,
    says  text        NOT NULL,
    CONSTRAINT reconciliation_pkey PRIMARY KEY (sync)
);
COMMENT ON TABLE outbox.reconciliation IS 'The last comparison of what was delivered with what the receiver has, for each sync. Earlier ones are in outbox.delivery_log, with outcome reconciled.';
COMMENT ON COLUMN outbox.reconciliation.found IS 'How many differences there are of each kind, such as {"missing": 2}. Empty: both calendars are equal.';

-- +goose StatementBegin
CREATE FUNCTION outbox.reconciled(sync text, differences jsonb, says text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM outbox.check_sync(reconciled.sync);
    IF jsonb_typeof(reconciled.differences) IS DISTINCT FROM 'object' OR jsonb_path_exists(reconciled.differences, 'strict $.* ? (@.type() != "number")') THEN
        RAISE EXCEPTION 'what was found must be an object of numbers, such as {"missing": 2}' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO outbox.reconciliation AS r (sync, by, found, says)
    VALUES (reconciled.sync, outbox.actor(), reconciled.differences, outbox.check_reason(reconciled.says))
    ON CONFLICT ON CONSTRAINT reconciliation_pkey DO UPDATE
       SET at = excluded.at, by = excluded.by, found = excluded.found, says = excluded.says;
    INSERT INTO outbox.delivery_log (sync, outcome, actor, reason)
    VALUES (reconciled.sync, 'reconciled', outbox.actor(), outbox.check_reason(reconciled.says));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.reconciled(text, jsonb, text) IS 'Logs what a comparison with the receiver found. lockstep reconcile calls it.';

-- The first migration refuses only after the later ones were taken back. With this they refuse too.
-- +goose StatementBegin
CREATE FUNCTION outbox.check_down() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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

REVOKE ALL ON FUNCTION outbox.confirm(text, uuid, text), outbox.reconciled(text, jsonb, text), outbox.check_down() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.confirm(text, uuid, text) TO outbox_operator, outbox_relay;
GRANT EXECUTE ON FUNCTION outbox.reconciled(text, jsonb, text) TO outbox_operator;
GRANT SELECT ON outbox.unconfirmed, outbox.reconciliation TO outbox_relay, outbox_operator, outbox_auditor;
GRANT INSERT, UPDATE, DELETE ON outbox.unconfirmed TO outbox_relay;

-- +goose Down
SET LOCAL lock_timeout = '1s';
SELECT outbox.check_down();
-- The new columns and outcomes stay: version 2 can live with them.
DROP VIEW outbox.status;
CREATE VIEW outbox.status AS
WITH delivery AS ( -- the states of outbox.open_delivery and the keys of outbox.blocked_key, in one scan
    SELECT d.sync, d.created_at, d.due_at, d.state AS stored, d.first AND d.next_seq IS NOT NULL AS blocks,
           CASE WHEN d.state = 'failed' THEN 'failed'
                WHEN NOT d.first OR d.error_class = 'backfill' THEN 'queued'
                WHEN l.claim IS NOT NULL THEN 'sending'
                ELSE d.state END AS state
      FROM (SELECT sync, key, state, error_class, due_at, created_at,
                   lag(event_seq) OVER lane IS NULL AS first, lead(event_seq) OVER lane AS next_seq
              FROM outbox.delivery
            WINDOW lane AS (PARTITION BY sync, key ORDER BY event_seq)) AS d
      LEFT JOIN outbox.lane AS l ON d.first AND l.sync = d.sync AND l.key = d.key
), open AS (
    SELECT sync,
           count(*) FILTER (WHERE state IN ('pending', 'retry') AND due_at <= clock_timestamp()) AS due_now,
           count(*) FILTER (WHERE state = 'pending') AS pending,
           count(*) FILTER (WHERE state = 'queued')  AS queued,
           count(*) FILTER (WHERE state = 'retry')   AS retry,
           count(*) FILTER (WHERE state = 'sending') AS sending,
           count(*) FILTER (WHERE state = 'failed')  AS failed,
           count(*) FILTER (WHERE blocks AND stored IN ('failed', 'retry')) AS blocked_keys,
           clock_timestamp() - min(created_at) FILTER (WHERE state <> 'failed') AS oldest_pending_age
      FROM delivery
     GROUP BY sync
), held AS (
    SELECT DISTINCT ON (sync, scope) sync, scope, kind, until, reason, by
      FROM outbox.hold
     WHERE kind IN ('auth', 'breaker') OR until IS NULL OR until > clock_timestamp()
     -- Not outbox.hold_rank: whoever may read a view would need EXECUTE on each function in it.
     ORDER BY sync, scope, array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind)
), held_scope AS (
    SELECT sync, jsonb_agg(jsonb_build_object('scope', scope, 'hold', kind, 'until', until, 'reason', reason, 'by', by) ORDER BY scope) AS holds
      FROM held
     WHERE scope <> ''
     GROUP BY sync
), known_relay AS (
    SELECT syncs, jsonb_build_object('name', name, 'host', host, 'version', version, 'started_at', started_at, 'seen_at', seen_at, 'running', running) AS relay
      FROM outbox.relay
     ORDER BY name, started_at
), serving AS (
    SELECT served.sync, jsonb_agg(r.relay) AS relays FROM known_relay AS r CROSS JOIN unnest(r.syncs) AS served (sync) GROUP BY served.sync
)
SELECT s.name AS sync, h.kind AS hold,
       coalesce(o.due_now, 0) AS due_now, coalesce(o.pending, 0) AS pending, coalesce(o.queued, 0) AS queued,
       coalesce(o.retry, 0) AS retry, coalesce(o.sending, 0) AS sending, coalesce(o.failed, 0) AS failed,
       coalesce(o.blocked_keys, 0) AS blocked_keys, o.oldest_pending_age, s.last_delivered_at,
       h.until AS hold_until, h.reason AS hold_reason, h.by AS hold_by, s.retired_at, s.backfill_reason AS backfill,
       coalesce(c.holds, '[]') AS scope_holds, coalesce(r.relays, '[]') AS relays,
       CASE WHEN s.retired_at IS NULL THEN (SELECT count(*) FROM outbox.missed AS m WHERE m.type LIKE ANY (s.likes)) ELSE 0 END AS missed
  FROM outbox.sync AS s
  LEFT JOIN held AS h ON h.sync = s.name AND h.scope = ''
  LEFT JOIN held_scope AS c ON c.sync = s.name
  LEFT JOIN open AS o ON o.sync = s.name
  LEFT JOIN serving AS r ON r.sync = s.name
UNION ALL
SELECT NULL, NULL, 0, (SELECT count(*) FROM outbox.unmatched), 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '[]',
       (SELECT coalesce(jsonb_agg(relay), '[]') FROM known_relay),
       (SELECT count(*) FROM outbox.missed AS m WHERE NOT EXISTS (SELECT FROM outbox.sync AS s WHERE s.retired_at IS NULL AND m.type LIKE ANY (s.likes)));
COMMENT ON VIEW outbox.status IS 'One row per sync. hold is about the whole sync, scope_holds lists its scopes on hold, backfill says what a backfill does or waits for. In the row without a sync, pending counts the events that no sync matched, and relays has all relays of the database. missed counts the events of the sync that have no delivery because they were written with triggers off.';

GRANT SELECT ON outbox.status TO outbox_relay, outbox_operator, outbox_auditor;
DROP TABLE outbox.unconfirmed, outbox.reconciliation;
DROP FUNCTION outbox.confirm, outbox.reconciled, outbox.check_down;

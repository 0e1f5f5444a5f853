-- Returns a sentence about the state of an open delivery. It leaves out holds and the deliveries before it.
-- +goose StatementBegin
CREATE FUNCTION outbox.describe(d outbox.open_delivery, held boolean) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE d.state
           WHEN 'sending' THEN
                CASE WHEN d.lease_until > clock_timestamp()
                     THEN format('being sent by %s until %s', d.claimed_by, d.lease_until)
                     ELSE format('was being sent by %s, whose lease ended at %s; a running relay takes it over', d.claimed_by, d.lease_until) END
           WHEN 'failed' THEN format('failed with %s after %s attempt(s): %s; waits for an operator (outbox.requeue or outbox.discard)',
                coalesce(d.error_class, 'unknown'), d.attempts, coalesce(d.error, 'no reason recorded'))
           WHEN 'retry' THEN
                CASE WHEN d.due_at > clock_timestamp() THEN format('not due until %s', d.due_at) ELSE 'due now for its next attempt' END
                || format(' after %s attempt(s), the last one: %s: %s', d.attempts, coalesce(d.error_class, 'transient'), coalesce(d.error, 'no reason recorded'))
           WHEN 'queued' THEN CASE WHEN d.error_class = 'backfill' THEN 'held back: ' || d.error ELSE 'waits behind an earlier event of its key' END
           ELSE CASE WHEN d.due_at > clock_timestamp() THEN format('not due until %s', d.due_at) ELSE format('due since %s', d.due_at) || CASE WHEN held THEN '' ELSE ', waits for a relay to claim it' END END
           END
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION outbox.why_not_delivered(event_id uuid, sync text DEFAULT NULL) RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    e     outbox.event;
    s     record;
    d     outbox.open_delivery;
    first_delivery outbox.open_delivery;
    l     record;
    h     record;
    held  text;
    said  text;
    idle  text;
    missed boolean := false;
    known boolean := false;
BEGIN
    IF why_not_delivered.sync IS NOT NULL THEN
        PERFORM outbox.check_sync(why_not_delivered.sync);
    END IF;
    SELECT * INTO e FROM outbox.event AS o WHERE o.id = why_not_delivered.event_id;
    IF NOT FOUND AND NOT EXISTS (SELECT FROM outbox.delivery_log AS g WHERE g.event_id = why_not_delivered.event_id) THEN
        RETURN NEXT format('event %s does not exist: its transaction did not commit, or it is past its retention', why_not_delivered.event_id);
        RETURN;
    END IF;
    IF e.id IS NOT NULL THEN
        missed := outbox.was_missed(e);
    END IF;
    FOR s IN SELECT r.*, coalesce(outbox.takes(r.name, r.likes, r.operator_likes, e.type, e.key), false) AS matches
               FROM outbox.sync AS r
              WHERE why_not_delivered.sync IS NULL OR r.name = why_not_delivered.sync
              ORDER BY r.name LOOP
        idle := CASE WHEN NOT EXISTS (SELECT FROM outbox.relay AS r WHERE r.running) THEN '; no relay is running'
                     WHEN NOT EXISTS (SELECT FROM outbox.relay AS r WHERE r.running AND s.name = ANY (r.syncs)) THEN '; no running relay serves this sync'
                     ELSE '' END;
        SELECT * INTO d FROM outbox.open_delivery AS o
         WHERE o.sync = s.name AND o.key = e.key AND o.event_id = e.id
         LIMIT 1;
        IF FOUND THEN
            known := true;
            held := '';
            FOR h IN SELECT * FROM outbox.hold AS o
                      WHERE o.sync = s.name AND (o.kind IN ('auth', 'breaker') OR o.until IS NULL OR o.until > clock_timestamp())
                        AND (o.scope = '' OR o.scope = (SELECT n.scope FROM outbox.lane AS n WHERE n.sync = d.sync AND n.key = d.key))
                      ORDER BY o.scope, outbox.hold_rank(o.kind) LOOP
                held := held || format('; %s is on hold (%s) by %s since %s%s: %s',
                    CASE h.scope WHEN '' THEN 'the sync' ELSE format('destination %s of sync %s', h.scope, s.name) END, h.kind, h."by", h.since,
                    CASE WHEN h.until IS NULL THEN CASE h.kind WHEN 'operator' THEN ' until outbox.resume' || CASE h.scope WHEN '' THEN '' ELSE ' of that scope' END ELSE '' END
                         WHEN h.kind IN ('auth', 'breaker') THEN format(', next probe at %s', h.until)
                         ELSE format(' until %s', h.until) END, h.reason);
            END LOOP;
            SELECT * INTO first_delivery FROM outbox.open_delivery AS f
             WHERE f.sync = d.sync AND f.key = d.key AND f.event_seq < d.event_seq
             ORDER BY f.event_seq LIMIT 1;
            IF FOUND THEN
                said := format('waits behind event %s of key %s, which is %s', first_delivery.event_id, first_delivery.key, outbox.describe(first_delivery, held <> ''));
                IF d.error_class = 'backfill' THEN
                    said := said || '; ' || d.error;
                ELSIF s.on_failed = 'supersede' AND first_delivery.state = 'failed'
                      AND d.event_seq <= (SELECT n.judged FROM outbox.lane AS n WHERE n.sync = d.sync AND n.key = d.key) THEN
                    said := said || '; it does not supersede that one: its event is older, or the sync''s "when" does not match it';
                END IF;
            ELSE
                first_delivery := d;
                said := outbox.describe(d, held <> '');
            END IF;
            IF s.backfill_reason IS NOT NULL AND 'backfill' IN (first_delivery.error_class, d.error_class) THEN
                said := said || '; ' || s.backfill_reason;
            END IF;
            said := said || held;
            IF s.retired_at IS NOT NULL THEN
                said := said || format('; the sync was retired at %s and takes no new events', s.retired_at);
            END IF;
            IF first_delivery.state <> 'failed' AND (first_delivery.state <> 'sending' OR first_delivery.lease_until <= clock_timestamp()) THEN
                said := said || idle;
            END IF;
            RETURN NEXT s.name || ': ' || said;
            CONTINUE;
        END IF;
        SELECT g.* INTO l FROM outbox.delivery_log AS g
         WHERE g.event_id = why_not_delivered.event_id AND g.sync = s.name
           AND outbox.ends_delivery(g.outcome)
         ORDER BY g.id DESC LIMIT 1;
        IF FOUND THEN
            known := true;
            RETURN NEXT s.name || ': ' || CASE l.outcome
                WHEN 'delivered'  THEN format('delivered at %s (%s)', coalesce(l.answered_at, l.at), coalesce(l.code, 'no code'))
                WHEN 'duplicate'  THEN format('delivered: at %s the receiver said that it already had it (%s)', coalesce(l.answered_at, l.at), coalesce(l.code, 'no code'))
                WHEN 'accepted'   THEN format('delivered: accepted for later processing at %s (%s)', coalesce(l.answered_at, l.at), coalesce(l.code, 'no code'))
                WHEN 'filtered'   THEN format('filtered at %s: %s', l.at, coalesce(l.reason, 'the sync''s "when" did not match'))
                WHEN 'superseded' THEN format('superseded at %s: %s', l.at, coalesce(l.reason, 'a newer event of its key exists'))
                ELSE format('discarded at %s by %s: %s', l.at, l.actor, l.reason) END;
        ELSIF e.id IS NULL THEN
            IF why_not_delivered.sync IS NOT NULL THEN
                known := true;
                RETURN NEXT format('%s: the event is past its retention, and the log has no end of it for this sync', s.name);
            END IF;
        ELSIF s.matches AND s.retired_at <= e.inserted_at THEN
            known := true;
            RETURN NEXT format('%s: not sent: the sync was retired at %s, before the event was written at %s', s.name, s.retired_at, e.inserted_at);
        ELSIF s.matches AND missed THEN
            known := true;
            RETURN NEXT format('%s: not sent: the event was written with triggers off (session_replication_role, DISABLE TRIGGER or a logical subscription), so it has no delivery; %s',
                s.name, CASE WHEN s.retired_at IS NULL THEN 'add it with: lockstep repair' ELSE format('the sync was retired at %s', s.retired_at) END);
        ELSIF s.matches AND s.backfill_seq IS NOT NULL THEN
            known := true;
            RETURN NEXT format('%s: events are still being added to the sync%s%s', s.name, coalesce(' (' || s.backfill_reason || ')', ''), idle);
        ELSIF s.matches THEN
            known := true;
            RETURN NEXT format('%s: not sent: written at %s, before the sync took events of type %s (registered at %s; lockstep sync apply with from: adds older events)',
                s.name, e.inserted_at, e.type, s.registered_at);
        ELSIF why_not_delivered.sync IS NOT NULL THEN
            known := true;
            RETURN NEXT s.name || ': ' || CASE WHEN starts_with(e.type, 'lockstep:') AND e.key = s.name
                THEN 'not sent: an operator event is not sent to the sync that it is about'
                ELSE format('its patterns %s do not match type %s', s.patterns::text, e.type) END;
        END IF;
    END LOOP;
    IF NOT known THEN
        RETURN NEXT CASE WHEN e.id IS NULL THEN format('event %s is past its retention, and the log has no end of it', why_not_delivered.event_id)
                         ELSE format('no sync matches type %s', e.type) END;
    END IF;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.why_not_delivered(uuid, text) IS 'A sentence per sync: delivered when, or what the event waits for.';

-- Events that the trigger fan_out did not see: they were written with triggers off, or by a logical subscription.
-- outbox.maintain finds them and outbox.repair adds their deliveries.
CREATE TABLE outbox.missed (
    event_seq   bigint      NOT NULL,
    event_id    uuid        NOT NULL,
    type        text        COLLATE "C" NOT NULL,
    inserted_at timestamptz NOT NULL,
    found_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT missed_pkey PRIMARY KEY (event_seq)
);
COMMENT ON TABLE outbox.missed IS 'Events that were found to have no delivery although no delivery of them was ever made, because triggers were off. lockstep repair adds the deliveries.';

-- Where the last call of outbox.maintain stopped. Without a row the next call begins with the first event.
CREATE TABLE outbox.missed_scan (after_seq bigint CONSTRAINT missed_scan_pkey PRIMARY KEY); -- a publication FOR ALL TABLES needs a key

-- Whether no trigger saw an event: it has no delivery, was not unmatched, and the log knows nothing of it. A recording
-- removes the delivery and writes the log row in one transaction, so the snapshot of the calling statement sees one of the
-- two. If the log may have been dropped, the answer is no. Operator events do not count: they would be told too late.
-- +goose StatementBegin
CREATE FUNCTION outbox.was_missed(e outbox.event) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    RETURN NOT starts_with(e.type, 'lockstep:')
       AND NOT EXISTS (SELECT FROM outbox.unmatched AS u WHERE u.event_seq = e.seq)
       AND NOT EXISTS (SELECT FROM outbox.sync AS s
                         JOIN outbox.delivery AS d ON d.sync = s.name AND d.key = e.key AND d.event_seq = e.seq)
       -- A replay has another event_seq, but a row in the log. A clock that is set back may date log rows before the event.
       -- Older partitions are not read.
       AND NOT EXISTS (SELECT FROM outbox.delivery_log AS l WHERE l.event_id = e.id AND l.at >= e.inserted_at - interval '31 days')
       AND e.inserted_at >= clock_timestamp() - coalesce((SELECT r.keep FROM outbox.retention AS r WHERE r.what = 'log'), '84 months');
END
$$;
-- +goose StatementEnd

-- Checks the next events after a number, and returns the last number that it checked. Null: there are no more events.
-- +goose StatementBegin
CREATE FUNCTION outbox.find_missed(after bigint, most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    last bigint := (SELECT max(p.seq) FROM (SELECT e.seq FROM outbox.event AS e WHERE e.seq > after ORDER BY e.seq LIMIT most) AS p);
BEGIN
    DELETE FROM outbox.missed AS m
     WHERE m.event_seq > after AND (last IS NULL OR m.event_seq <= last)
       AND NOT EXISTS (SELECT FROM outbox.event AS e WHERE e.seq = m.event_seq AND outbox.was_missed(e));
    INSERT INTO outbox.missed (event_seq, event_id, type, inserted_at)
    SELECT e.seq, e.id, e.type, e.inserted_at
      FROM outbox.event AS e
     WHERE e.seq > after AND e.seq <= last AND outbox.was_missed(e)
    ON CONFLICT DO NOTHING;
    RETURN last;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.find_missed(bigint, int) IS 'Looks for events that were written with triggers off, among the next events after a number, and adds them to outbox.missed. Returns the last number that it checked, null at the end.';

-- Adds what the trigger would have added, for at most most events, to syncs that are not retired. Events that a backfill
-- may be about to add are left for a later call. The result has a row for each delivery, and one for each event that no
-- sync takes.
-- +goose StatementBegin
CREATE FUNCTION outbox.repair(most int DEFAULT 1000, reason text DEFAULT NULL)
RETURNS TABLE (sync text, event_seq bigint, event_id uuid, event_type text, key text, inserted_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    page  bigint[];
    stale bigint[];
    repaired_at timestamptz := clock_timestamp();
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1869967989); -- retention must not remove an event that is about to get a delivery
    LOOP
        SELECT array_agg(p.event_seq) INTO page
          FROM (SELECT m.event_seq
                  FROM outbox.missed AS m
                 WHERE NOT EXISTS (SELECT FROM outbox.sync AS s
                                    WHERE s.retired_at IS NULL AND s.backfill_seq IS NOT NULL AND m.type LIKE ANY (s.likes))
                 ORDER BY m.event_seq
                 LIMIT repair.most
                   FOR UPDATE SKIP LOCKED) AS p;
        EXIT WHEN page IS NULL;
        SELECT array_agg(p.seq) INTO stale
          FROM unnest(page) AS p (seq)
         WHERE NOT EXISTS (SELECT FROM outbox.event AS e WHERE e.seq = p.seq AND outbox.was_missed(e));
        DELETE FROM outbox.missed AS m WHERE m.event_seq = ANY (stale);
        EXIT WHEN stale IS NULL OR cardinality(stale) < cardinality(page);
    END LOOP;
    RETURN QUERY
    WITH repaired AS (
        DELETE FROM outbox.missed AS m WHERE m.event_seq = ANY (page)
        RETURNING m.event_seq
    ), missed_event AS MATERIALIZED (
        SELECT e.seq, e.id, e.type, e.key, e.inserted_at, e.payload
          FROM outbox.event AS e
         WHERE e.seq = ANY (ARRAY(SELECT r.event_seq FROM repaired AS r))
    ), live AS MATERIALIZED (
        SELECT s.name, m.seq, s.escalate_before, s.escalate_after,
               CASE WHEN s.escalate_at <> '{}' THEN outbox.needed_by(m.type, m.payload, s.escalate_at, s.escalate_zone) END AS needed_by
          FROM missed_event AS m
          JOIN outbox.sync AS s ON s.retired_at IS NULL AND m.type LIKE ANY (s.likes)
    ), added AS (
        INSERT INTO outbox.delivery (sync, key, event_seq, event_id, created_at, needed_by, escalates_at)
        SELECT l.name, m.key, m.seq, m.id, repaired_at, l.needed_by, outbox.escalates_at(m.type, l.needed_by, repaired_at, l.escalate_before, l.escalate_after)
          FROM live AS l
          JOIN missed_event AS m ON m.seq = l.seq
         ORDER BY m.seq
        ON CONFLICT DO NOTHING
    ), unmatched AS (
        INSERT INTO outbox.unmatched (event_seq, event_id, type, inserted_at)
        SELECT m.seq, m.id, m.type, m.inserted_at FROM missed_event AS m WHERE m.seq NOT IN (SELECT l.seq FROM live AS l)
        ON CONFLICT DO NOTHING
    ), logged AS (
        INSERT INTO outbox.delivery_log (sync, outcome, actor, reason)
        SELECT l.name, 'sync_changed', outbox.actor(),
               left(outbox.clean(format('%s event(s) that were written with triggers off were added%s', count(*), ': ' || nullif(repair.reason, ''))), 1000)
          FROM live AS l
         GROUP BY l.name
    )
    SELECT l.name, m.seq, m.id, m.type, m.key, m.inserted_at
      FROM missed_event AS m
      LEFT JOIN live AS l ON l.seq = m.seq
     ORDER BY m.seq, l.name;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.repair(int, text) IS 'Adds the deliveries of events in outbox.missed, at most for so many events. Call it until it returns no row.';

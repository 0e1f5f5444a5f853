CREATE TABLE outbox.hold (
    sync   text        COLLATE "C" NOT NULL,
    scope  text        COLLATE "C" NOT NULL DEFAULT '',
    kind   text        COLLATE "C" NOT NULL,
    until  timestamptz,
    reason text        NOT NULL,
    by     text        NOT NULL,
    since  timestamptz NOT NULL DEFAULT clock_timestamp(),
    probes int         NOT NULL DEFAULT 0,
    untried_at     timestamptz,
    untried_probes int NOT NULL DEFAULT 0,
    CONSTRAINT hold_pkey PRIMARY KEY (sync, scope, kind),
    CONSTRAINT hold_scope_form CHECK (length(scope) <= 200 AND scope !~ '[\u0001-\u001F\u007F-\u009F]'),
    -- These kinds hold the whole sync.
    CONSTRAINT hold_scope_of_kind CHECK (scope = '' OR kind NOT IN ('backfill', 'window')),
    CONSTRAINT hold_sync_fkey FOREIGN KEY (sync) REFERENCES outbox.sync (name) ON DELETE CASCADE,
    CONSTRAINT hold_kind_known CHECK (kind IN ('operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'))
);
COMMENT ON TABLE outbox.hold IS 'One row per sync, scope and kind, so that a hold that ends never lifts another. outbox.sync shows the strongest hold of the whole sync.';
COMMENT ON COLUMN outbox.hold.scope IS 'The destination that gets nothing for now: a host, or the value of limits.per of the sync. Empty: the whole sync.';
COMMENT ON COLUMN outbox.hold.until IS 'End of a pause, throttle or window; next probe of an auth or breaker hold; null: until it is lifted.';
COMMENT ON COLUMN outbox.hold.untried_at IS 'When an auth hold may be probed with a delivery that was not tried yet, perhaps before until; null for other kinds.';
COMMENT ON COLUMN outbox.hold.untried_probes IS 'Probes with such deliveries; the pause between them grows with it.';

-- The strongest kind of hold has rank 1. Go has the same order: outbox.HoldKind.
CREATE FUNCTION outbox.hold_rank(kind text) RETURNS int
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind);

-- +goose StatementBegin
CREATE FUNCTION outbox.show_strongest_hold() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    changed text := coalesce(NEW.sync, OLD.sync);
BEGIN
    IF coalesce(NEW.scope, OLD.scope) <> '' THEN
        RETURN NULL;
    END IF;
    -- Lock the sync's row first: two holds that change at the same time must not overlook each other.
    PERFORM FROM outbox.sync WHERE name = changed FOR NO KEY UPDATE;
    UPDATE outbox.sync s
       SET hold_kind = h.kind, hold_until = h.until, hold_reason = h.reason, hold_by = h.by
      FROM (SELECT 1) AS always
      LEFT JOIN (SELECT * FROM outbox.hold
                  WHERE sync = changed AND scope = ''
                  ORDER BY outbox.hold_rank(kind)
                  LIMIT 1) AS h ON true
     WHERE s.name = changed;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER show_strongest AFTER INSERT OR UPDATE OR DELETE ON outbox.hold
    FOR EACH ROW EXECUTE FUNCTION outbox.show_strongest_hold();

-- Only outbox.pause and outbox.resume change the operator's hold, because they log it. Relays change the other kinds, and
-- remove a pause that has ended.
-- +goose StatementBegin
CREATE FUNCTION outbox.keep_operators_hold() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.until <= clock_timestamp() THEN
        RETURN OLD;
    END IF;
    IF NOT (SELECT pg_has_role(current_user, c.relowner, 'USAGE') FROM pg_class AS c WHERE c.oid = TG_RELID) THEN
        RAISE EXCEPTION 'the operator''s hold of sync "%" cannot be changed by hand', coalesce(NEW.sync, OLD.sync)
            USING ERRCODE = 'insufficient_privilege', HINT = 'Use outbox.pause and outbox.resume, which log it.';
    END IF;
    RETURN coalesce(NEW, OLD);
END
$$;
-- +goose StatementEnd
CREATE TRIGGER keep_operators_put BEFORE INSERT OR UPDATE ON outbox.hold
    FOR EACH ROW WHEN (NEW.kind = 'operator') EXECUTE FUNCTION outbox.keep_operators_hold();
CREATE TRIGGER keep_operators_lifted BEFORE UPDATE OR DELETE ON outbox.hold
    FOR EACH ROW WHEN (OLD.kind = 'operator') EXECUTE FUNCTION outbox.keep_operators_hold();

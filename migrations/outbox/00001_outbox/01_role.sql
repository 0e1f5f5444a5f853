-- +goose Up
SET LOCAL lock_timeout = '1s';

-- Group roles are cluster-wide, so another database may have made them already.
-- +goose StatementBegin
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['outbox_writer', 'outbox_relay', 'outbox_operator', 'outbox_auditor'] LOOP
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            CONTINUE;
        END IF;
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL; -- another database's migration was faster
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'role "%" does not exist and "%" may not create roles', wanted, current_user
                    USING HINT = 'Let an administrator run the output of: lockstep migrate sql --roles';
        END;
    END LOOP;
END
$$;
-- +goose StatementEnd

CREATE SCHEMA IF NOT EXISTS outbox;
GRANT USAGE ON SCHEMA outbox TO outbox_writer, outbox_relay, outbox_operator, outbox_auditor;

-- A migration that older programs cannot work with replaces this function: CREATE OR REPLACE keeps its privileges.
-- STABLE, not IMMUTABLE: a prepared statement must not keep the answer.
-- +goose StatementBegin
CREATE FUNCTION outbox.oldest_relay() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 1::bigint
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.oldest_relay() IS 'The oldest schema version whose programs work with this schema. Programs made for an older one refuse to.';

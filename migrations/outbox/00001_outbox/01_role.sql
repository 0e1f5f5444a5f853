-- +goose Up
SET LOCAL lock_timeout = '1s';

-- outbox.CheckServer has the same rule for programs.
-- +goose StatementBegin
DO $$
BEGIN
    IF current_setting('server_version_num')::int < 150000 THEN
        RAISE EXCEPTION 'Lockstep needs PostgreSQL 15 or newer, and this server is PostgreSQL %', current_setting('server_version')
            USING ERRCODE = 'feature_not_supported';
    END IF;
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'Lockstep needs a database in the encoding UTF8, and this one is in %', current_setting('server_encoding')
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Create another one: CREATE DATABASE agency TEMPLATE template0 ENCODING ''UTF8''';
    END IF;
END
$$;
-- +goose StatementEnd

-- Group roles belong to the whole cluster: the migration of another database may have made them.
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
                NULL; -- the migration of another database was faster
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'role "%" does not exist and "%" may not create roles', wanted, current_user
                    USING HINT = 'Let an administrator run the output of: lockstep migrate sql --roles';
        END;
    END LOOP;
END
$$;
-- +goose StatementEnd

GRANT USAGE ON SCHEMA outbox TO outbox_writer, outbox_relay, outbox_operator, outbox_auditor;

-- A later migration replaces this function if older programs cannot work with it: CREATE OR REPLACE keeps the privileges.
-- It is STABLE, since a prepared statement must not keep the result of an IMMUTABLE one.
-- +goose StatementBegin
CREATE FUNCTION outbox.oldest_relay() RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 1::bigint
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.oldest_relay() IS 'The oldest schema version whose programs work with this schema. A program made for an older version refuses to run.';

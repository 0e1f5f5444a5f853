-- Reads a time of a payload: a text with an offset (RFC 3339, with or without seconds and fraction), without one (a time of
-- the zone), a date alone (the start of that day in the zone), or a number of seconds or milliseconds since 1970. Anything
-- else is null. It never fails and its cost is bounded, because a writer waits for it and must not be refused. A time that a
-- change to summer time skips counts as if the clock had not changed yet, and one that occurs twice is the second.
-- +goose StatementBegin
CREATE FUNCTION outbox.read_time(value jsonb, zone text) RETURNS timestamptz
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given text;
    part  text[];
    y     int;
    m     int;
    local timestamp;
BEGIN
    IF jsonb_typeof(value) = 'number' THEN
        -- The bounds exclude a date that is written as a number, 20270131. From 100,000,000,000 on it is milliseconds.
        IF value >= '100000000'::jsonb AND value < '100000000000'::jsonb THEN
            RETURN to_timestamp((value #>> '{}')::double precision);
        ELSIF value >= '100000000000'::jsonb AND value <= '253402300799999'::jsonb THEN
            RETURN to_timestamp((value #>> '{}')::double precision / 1000);
        END IF;
        RETURN NULL;
    ELSIF jsonb_typeof(value) IS DISTINCT FROM 'string' THEN
        RETURN NULL;
    END IF;
    given := value #>> '{}';
    IF octet_length(given) > 40 THEN
        RETURN NULL;
    END IF;
    part := regexp_match(given, '^(\d{4})-(\d{2})-(\d{2})(?:[Tt ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d|60)(?:[.,](\d{1,9}))?)?(?:([Zz])|([+-])([01]\d|2[0-3])(?::?([0-5]\d))?)?)?$');
    IF part IS NULL THEN
        RETURN NULL;
    END IF;
    y := part[1]::int;
    m := part[2]::int;
    IF y < 1 OR m NOT BETWEEN 1 AND 12 OR part[3]::int NOT BETWEEN 1 AND extract(day FROM make_date(y, m, 1) + interval '1 month - 1 day') THEN
        RETURN NULL;
    END IF;
    local := make_timestamp(y, m, part[3]::int, coalesce(part[4], '0')::int, coalesce(part[5], '0')::int,
                            coalesce(part[6] || '.' || coalesce(part[7], '0'), '0')::double precision);
    IF part[8] IS NOT NULL THEN
        RETURN local AT TIME ZONE 'UTC';
    ELSIF part[9] IS NOT NULL THEN
        RETURN (local AT TIME ZONE 'UTC') - (part[9] || '1')::int * make_interval(hours => part[10]::int, mins => coalesce(part[11], '0')::int);
    END IF;
    RETURN local AT TIME ZONE zone;
EXCEPTION
    WHEN OTHERS THEN -- such as a zone that the server does not know any more
        RETURN NULL;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.read_time(jsonb, text) IS 'Reads a time of a payload. Null if it is none: it never fails.';

-- The time by which the receiver needs the event: the earliest time at the paths. An operator event has none.
-- +goose StatementBegin
CREATE FUNCTION outbox.needed_by(type text, payload jsonb, paths text[], zone text) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT min(outbox.read_time(needed_by.payload #> string_to_array(p.path, '.'), needed_by.zone))
      FROM unnest(needed_by.paths) AS p (path)
     WHERE NOT starts_with(needed_by.type, 'lockstep:')
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION outbox.needed_by(text, jsonb, text[], text) IS 'The earliest time that the payload has at the paths; null if there is none.';

-- When an open delivery is escalated by the policy of its sync. A minute is left for the first attempts, also if the time has
-- passed already.
CREATE FUNCTION outbox.escalates_at(type text, needed_by timestamptz, created_at timestamptz, before interval, after interval) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN NOT starts_with(type, 'lockstep:') AND coalesce(needed_by - before, created_at + after) IS NOT NULL
            THEN greatest(least(needed_by - before, created_at + after), created_at + interval '1 minute') END;
COMMENT ON FUNCTION outbox.escalates_at(text, timestamptz, timestamptz, interval, interval) IS 'When an open delivery is escalated; null: never.';

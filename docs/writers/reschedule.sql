-- Moves a hearing to another room, and writes the event in the same transaction:
--
--   psql "$DATABASE_URL" -v id=UUID -v hearing=H-2027-000007 -v room=4B -v traceparent=00-… -f reschedule.sql
--
-- id names the request. A second run with the same id fails with 23505 and changes nothing.
\set ON_ERROR_STOP on
\set VERBOSITY verbose
BEGIN;
-- First your own row: its lock gives the events of one hearing the order of the commits.
WITH moved AS (
    UPDATE hearing SET room = :'room', version = version + 1
     WHERE id = :'hearing'
    RETURNING id, version, scheduled_at, room
)
INSERT INTO outbox.event (id, type, key, version, payload, headers)
SELECT (:'id')::uuid, 'scheduling:updated', id, version,
       jsonb_build_object('hearingId', id, 'scheduledAt', scheduled_at, 'location', room),
       jsonb_build_object('traceparent', :'traceparent')
  FROM moved;
COMMIT;

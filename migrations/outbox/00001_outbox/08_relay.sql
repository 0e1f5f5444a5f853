-- Each relay writes its row every five seconds, and deletes it when it stops. outbox.maintain removes the rows of relays that
-- died. Two processes may have the same name, so each has a random number.
CREATE TABLE outbox.heartbeat (
    instance   uuid        NOT NULL,
    name       text        NOT NULL,
    host       text,
    version    text,
    syncs      text[]      COLLATE "C" NOT NULL,
    started_at timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL,
    CONSTRAINT heartbeat_pkey PRIMARY KEY (instance)
) WITH (fillfactor = 50);
COMMENT ON TABLE outbox.heartbeat IS 'The relays of this database. Read outbox.relay, which says whether they are running.';

CREATE VIEW outbox.relay AS
SELECT name, host, version, syncs, started_at, seen_at,
       -- A time in the future is from before the clock was set back.
       seen_at BETWEEN clock_timestamp() - interval '30 seconds' AND clock_timestamp() + interval '30 seconds' AS running
  FROM outbox.heartbeat;
COMMENT ON VIEW outbox.relay IS 'The relays of this database, by its clock: running is false if nothing was seen of a relay for 30 seconds. A relay that stops in an orderly way is not listed any more, one that died or hangs is listed for an hour.';

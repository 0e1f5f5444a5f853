-- lockstep: release backfilled
-- $1 sync, $2 most deliveries
WITH waiting_delivery AS MATERIALIZED (
    SELECT d.ctid AS tid
      FROM outbox.delivery AS d
     WHERE d.sync = $1 AND d.error_class = 'backfill'
       AND (SELECT s.settled IS NULL OR s.backfill_seq IS NULL FROM outbox.sync AS s WHERE s.name = $1)
     ORDER BY d.event_seq
     LIMIT $2
       FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE outbox.delivery AS d
   SET due_at = clock_timestamp(), changed_in = pg_current_xact_id(), error_class = NULL, error = NULL
  FROM waiting_delivery AS w
 WHERE d.ctid = w.tid;

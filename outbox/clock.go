package outbox

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// ClockOffset measures by how much the database's clock is ahead of this machine's. It is
// negative if the database's clock is behind. The second result bounds the error of the
// first.
func (s *Store) ClockOffset(ctx context.Context) (ahead, within time.Duration, err error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	conn, err := s.pool.Acquire(ctx) // not timed: it may take long
	if err != nil {
		return 0, 0, s.judge(ctx, err)
	}
	defer conn.Release()
	var database time.Time
	asked := time.Now()
	if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&database); err != nil {
		return 0, 0, s.judge(ctx, err)
	}
	within = time.Since(asked) / 2
	return database.Sub(asked.Add(within).Round(0)), within, nil
}

// repairTimes makes deliveries and lanes due that wait only because the database's clock
// was set back. Such deliveries were created in the future, or are pending until a future
// time. The first delivery of such lanes is due, or its last attempt was in the future. A
// claimed lane is not changed: its lease ends it.
var repairTimes = `-- lockstep: repair times
-- $1 sync, $2 key after which to begin, $3 most lanes
WITH page AS MATERIALIZED (
    SELECT l.ctid AS tid, l.key, l.claim IS NULL AND l.due_at > clock_timestamp() + interval '1 minute' AND l.due_at < 'infinity' AS waits
      FROM outbox.lane AS l
     WHERE l.sync = $1 AND l.key > $2
     ORDER BY l.key
     LIMIT $3
), early_lane AS MATERIALIZED (
    SELECT p.key, l.tid
      FROM page AS p
     CROSS JOIN LATERAL (
           SELECT f.*
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = p.key
            ORDER BY f.event_seq
            LIMIT 1) AS f
     CROSS JOIN LATERAL (
           SELECT l.ctid AS tid
             FROM outbox.lane AS l
            WHERE l.ctid = p.tid AND l.claim IS NULL
              FOR UPDATE SKIP LOCKED) AS l
     WHERE p.waits
       AND (f.due_at <= clock_timestamp()
            OR ` + isAhead("f") + `)
), repaired_delivery AS (
    UPDATE outbox.delivery AS d
       SET due_at = least(d.due_at, clock_timestamp()), created_at = least(d.created_at, clock_timestamp())
      FROM (SELECT o.tid
              FROM early_lane AS l
             CROSS JOIN LATERAL (
                   SELECT o.ctid AS tid
                     FROM outbox.delivery AS o
                    WHERE o.sync = $1 AND o.key = l.key AND o.state <> 'failed' AND o.due_at < 'infinity'
                      AND ` + isAhead("o") + `
                    LIMIT $3
                      FOR NO KEY UPDATE SKIP LOCKED) AS o) AS o
     WHERE d.ctid = o.tid
), repaired_lane AS (
    UPDATE outbox.lane AS l
       SET due_at = clock_timestamp()
      FROM early_lane AS o
     WHERE l.ctid = o.tid
)
SELECT max(key) FROM page HAVING count(*) = $3`

// isAhead is a condition: the delivery was created, becomes due or was last tried in the
// future.
func isAhead(d string) string {
	return strings.ReplaceAll(`CASE d.state
                      WHEN 'pending' THEN d.due_at
                      ELSE greatest(d.created_at, (SELECT g.at FROM outbox.delivery_log AS g WHERE g.event_id = d.event_id AND g.sync = d.sync ORDER BY g.id DESC LIMIT 1))
                      END > clock_timestamp() + interval '1 minute'`, "d.", d+".")
}

// RepairTimes makes deliveries and lanes due that wait only because the database's clock
// was set back. It checks up to page lanes of a sync, in the order of their keys, from the
// first key behind after. It returns the key to pass as after in the next call, empty at
// the end.
func (s *Store) RepairTimes(ctx context.Context, sync, after string, page int) (next string, err error) {
	err = s.scan(ctx, []any{&next}, repairTimes, sync, after, page)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return next, err
}

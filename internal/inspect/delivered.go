package inspect

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// mostNewest is how many of the newest rows of the log [ReadDelivered] reads.
const mostNewest = 50_000

// Delivered is how much was delivered lately.
type Delivered struct {
	At      time.Time
	Last    int64       // id of the newest row of the log; 0: the log is empty
	Minutes []PerMinute // of the last hour
}

// PerMinute is how much a sync delivered in one minute.
type PerMinute struct {
	Sync   string
	Minute time.Time
	Count  int
}

// ReadDelivered counts the deliveries of the last hour in the rows of the log after an id: in
// the newest 50,000 of them at most. Rows whose transaction commits later than that of the
// next row may be missed, so the numbers are for a picture.
func ReadDelivered(ctx context.Context, db Beginner, after int64) (d Delivered, err error) {
	// No condition on at among the newest rows: if all rows are old, it would search the whole
	// log. Old rows are in one group.
	const newest = `-- lockstep overview: delivered lately
SELECT CASE WHEN n.at > $3 THEN n.sync END AS sync, CASE WHEN n.at > $3 THEN date_trunc('minute', n.at) END AS minute,
       count(*) FILTER (WHERE n.outcome IN ('delivered', 'duplicate', 'accepted')) AS delivered, max(n.id) AS last
  FROM (SELECT l.id, l.at, l.sync, l.outcome
          FROM outbox.delivery_log AS l
         WHERE l.id > $1
         ORDER BY l.id DESC
         LIMIT $2) AS n
 GROUP BY 1, 2`
	type row struct {
		Sync      *string
		Minute    *time.Time
		Delivered int
		Last      int64
	}
	d.Last = after
	err = read(ctx, db, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&d.At); err != nil {
			return err
		}
		rows, err := collect[row](ctx, tx, newest, after, mostNewest, d.At.Add(-time.Hour))
		for _, r := range rows {
			d.Last = max(d.Last, r.Last)
			if r.Sync != nil && r.Delivered > 0 {
				d.Minutes = append(d.Minutes, PerMinute{*r.Sync, *r.Minute, r.Delivered})
			}
		}
		return err
	})
	return d, err
}

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
	Since   time.Time   // older rows were left out; zero: none were
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
	// No condition on at among the newest rows: if all rows are old, it would search the whole log.
	const newest = `-- lockstep overview: delivered lately
WITH newest AS MATERIALIZED (
    SELECT l.id, l.at, l.sync, l.outcome
      FROM outbox.delivery_log AS l
     WHERE l.id > $1
     ORDER BY l.id DESC
     LIMIT $2
), bounds AS (
    SELECT max(n.id) AS last, CASE WHEN count(*) = $2 THEN min(n.at) END AS since FROM newest AS n
)
SELECT b.last, b.since, n.sync, n.minute, n.delivered
  FROM bounds AS b
  LEFT JOIN (SELECT sync, date_trunc('minute', at) AS minute, count(*) AS delivered
               FROM newest
              WHERE outcome IN ('delivered', 'duplicate', 'accepted') AND at > $3
              GROUP BY sync, date_trunc('minute', at)) AS n ON true`
	type row struct {
		Last      *int64
		Since     *time.Time
		Sync      *string
		Minute    *time.Time
		Delivered *int
	}
	err = read(ctx, db, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&d.At); err != nil {
			return err
		}
		rows, err := collect[row](ctx, tx, newest, after, mostNewest, d.At.Add(-time.Hour))
		for _, r := range rows {
			if r.Last != nil {
				d.Last = *r.Last
			}
			if r.Since != nil {
				d.Since = *r.Since
			}
			if r.Sync != nil {
				d.Minutes = append(d.Minutes, PerMinute{*r.Sync, *r.Minute, *r.Delivered})
			}
		}
		return err
	})
	d.Last = max(d.Last, after)
	return d, err
}

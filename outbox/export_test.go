package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// CheckAgainNow makes the next poll check all keys that are to be checked, without the pause.
func (a *Arrivals) CheckAgainNow() { a.checked = time.Time{} }

// ArrivalPage is how many deliveries one poll reads.
const ArrivalPage = largestPage

// BrokenLanes returns a row for each lane, or key without a lane, that breaks a rule. Rule 2
// holds at any time. The others hold after a relay has read everything that is committed, for
// keys of which no row is locked.
//
//   - Rule 1: a key with an open delivery that may become due has a lane.
//   - Rule 2: the claim on a lane ends.
//   - Rule 3: a lane is due no later than its first delivery, unless that delivery has
//     failed or waits for a backfill.
//   - Rule 4: a lane without deliveries is claimed or due, so that a relay closes it.
const BrokenLanes = `
SELECT 1 AS rule, d.sync, d.key, 'has open deliveries and no lane' AS says
  FROM outbox.delivery AS d
  LEFT JOIN outbox.lane AS l ON l.sync = d.sync AND l.key = d.key
 WHERE d.due_at < 'infinity' AND l.key IS NULL
 GROUP BY d.sync, d.key
 UNION ALL
SELECT CASE WHEN l.claim IS NOT NULL THEN 2 WHEN f.state IS NULL THEN 4 ELSE 3 END, l.sync, l.key,
       format('is due at %s and claimed by %s; its first delivery is %s and due at %s',
              l.due_at, coalesce(l.claimed_by, 'nobody'), coalesce(f.state, 'gone'), f.due_at)
  FROM outbox.lane AS l
  LEFT JOIN LATERAL (
       SELECT d.state, d.due_at, d.error_class
         FROM outbox.delivery AS d
        WHERE d.sync = l.sync AND d.key = l.key
        ORDER BY d.event_seq
        LIMIT 1) AS f ON true
 WHERE CASE WHEN l.claim IS NOT NULL THEN l.due_at = 'infinity'
            WHEN f.state IS NULL THEN l.due_at > clock_timestamp()
            WHEN f.state = 'failed' OR f.error_class = 'backfill' THEN false
            ELSE l.due_at > greatest(f.due_at, clock_timestamp()) END
 ORDER BY 1, 2, 3`

// ClaimIn claims in a transaction that the caller ends.
func (s *Store) ClaimIn(ctx context.Context, tx pgx.Tx, r ClaimRequest, a *Arrivals) ([]*Delivery, error) {
	c := claim{store: s, sync: r.Sync, token: newToken(), wanted: r.Wanted}
	keys, err := c.lanes(ctx, tx, r, a)
	if err == nil {
		_, err = c.first(ctx, tx, keys)
	}
	return c.Deliveries, err
}

// ClaimWithoutAnswer claims, and then loses the answer with the deliveries. It returns results
// that release the lanes.
func (s *Store) ClaimWithoutAnswer(ctx context.Context, r ClaimRequest, a *Arrivals) ([]Result, error) {
	c := claim{store: s, sync: r.Sync, token: newToken()}
	keys, err := c.lanes(ctx, s.pool, r, a)
	if err == nil {
		_, err = s.pool.Exec(ctx, firstDeliveries, r.Sync, c.token, keys)
	}
	c.release(keys...)
	return c.Idle, err
}

// RecordIn records in a transaction that the caller ends.
func (s *Store) RecordIn(ctx context.Context, tx pgx.Tx, sync string, results []Result) (Recorded, error) {
	r := Recorded{Done: make([]bool, len(results)), Lost: make([]bool, len(results))}
	err := s.recordBatch(ctx, tx, sync, results, &r)
	return r, err
}

// ClaimLanes claims lanes and returns the rest of the claim as a function.
func (s *Store) ClaimLanes(ctx context.Context, r ClaimRequest, a *Arrivals) (func(context.Context) (Claims, error), error) {
	c := claim{store: s, sync: r.Sync, token: newToken(), wanted: r.Wanted}
	keys, err := c.lanes(ctx, s.pool, r, a)
	return func(ctx context.Context) (Claims, error) { return c.finish(ctx, keys, err) }, err
}

// JudgeServer judges version() and server_encoding, as CheckServer does.
var JudgeServer = judgeServer

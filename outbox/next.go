package outbox

import (
	"context"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// claimNext claims the first unfinished delivery of the given keys, whatever walk it
// would wait for: the pipeline that finished the one before goes on with the key
// at once. What it may not claim (beyond the budget, on hold, a replay under way) is
// made due now, if it is parked or the walk has passed it. It runs after the
// recording, in its transaction: it sees what was parked meanwhile.
//
// Keys with an open replay are left to the walk, which takes care that nothing is
// under way behind the first. Asleep are keys whose first is parked and locked
// against changes, or failed with something behind that may supersede it: they are
// to be given again. A row that is due and locked needs no more care, since a walk
// finds it, and one that waits for a backfill is left to the end of that.
const claimNext = `-- lockstep: claim next of key
WITH next AS MATERIALIZED (
    SELECT k.key, k.n, f.tid, f.event_seq, f.state, f.passed
      FROM unnest($6::text[]) WITH ORDINALITY AS k (key, n)
     CROSS JOIN LATERAL (
           SELECT f.ctid AS tid, f.event_seq, f.state, f.state = 'queued' AND f.error_class = 'backfill' AS waits,
                  f.state = 'queued' OR (f.due_at, f.event_seq) < ($8, $9) AS passed
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = k.key
            ORDER BY f.event_seq
            LIMIT 1) AS f
     WHERE f.state IN ('pending', 'queued') AND (f.passed OR k.n <= $7) AND f.waits IS NOT TRUE
        OR f.state = 'failed' AND (SELECT s.on_failed = 'supersede' FROM outbox.sync AS s WHERE s.name = $1)
), free AS MATERIALIZED (
    SELECT coalesce(c.tid, w.tid) AS tid, n.passed,
           c.tid IS NOT NULL AND n.n <= $7 AND NOT c.suspect AND c.error_class IS DISTINCT FROM 'added'
           AND NOT EXISTS (SELECT` + holdsInForce + `)
           AND NOT EXISTS (SELECT FROM outbox.delivery AS r
                            WHERE r.sync = $1 AND r.key = n.key AND r.revision > 1
                           OFFSET 0) AS claims
      FROM next AS n
      LEFT JOIN LATERAL (
           SELECT d.ctid AS tid, d.suspect, d.error_class
             FROM outbox.delivery AS d
            WHERE d.ctid = n.tid AND d.state = n.state AND d.state IN ('pending', 'queued')
              FOR UPDATE SKIP LOCKED) AS c ON true
      LEFT JOIN LATERAL ( -- who parks or discards the one behind it may keep it from being claimed, not from being woken
           SELECT d.ctid AS tid
             FROM outbox.delivery AS d
            WHERE c.tid IS NULL AND n.passed AND d.ctid = n.tid AND d.state = n.state AND d.state IN ('pending', 'queued')
              FOR NO KEY UPDATE SKIP LOCKED) AS w ON true
     WHERE c.tid IS NOT NULL OR w.tid IS NOT NULL
), moved AS (
    UPDATE outbox.delivery AS d
       SET state = CASE WHEN f.claims THEN 'sending' ELSE 'pending' END,
           due_at = CASE WHEN d.state = 'queued' OR NOT f.claims THEN clock_timestamp() ELSE d.due_at END,
           claim = CASE WHEN f.claims THEN $3::uuid END,
           claimed_by = CASE WHEN f.claims THEN $4 END,
           lease_until = CASE WHEN f.claims THEN clock_timestamp() + $5::interval END,
           crashes = d.crashes + f.claims::int,
           error_class = nullif(d.error_class, 'not_newer'), error = CASE WHEN d.error_class = 'not_newer' THEN NULL ELSE d.error END
      FROM free AS f
     WHERE d.ctid = f.tid AND (f.claims OR f.passed)
    RETURNING d.*, d.ctid AS tid
)
SELECT a.asleep, a.superseding, a.woken, ` + claimedColumns + `
  FROM (SELECT array_agg(n.key) FILTER (WHERE n.state = 'queued' AND n.key NOT IN (SELECT key FROM moved)
                                           OR n.state = 'failed' AND EXISTS (SELECT` + behindFailed + ` AND b.state <> ALL ('{failed, sending}'))) AS asleep,
               array_agg(n.key) FILTER (WHERE n.state = 'failed' AND EXISTS (SELECT` + behindFailed + `)) AS superseding,
               EXISTS (SELECT FROM moved WHERE claim IS NULL) AS woken
          FROM next AS n) AS a
  LEFT JOIN moved AS c ON c.claim IS NOT NULL` + claimedTables

// behindFailed are deliveries behind the failed n that may supersede it, unless
// they were found not to, or wait for a backfill.
const behindFailed = `
      FROM outbox.delivery AS b
     WHERE b.sync = $1 AND b.key = n.key AND b.event_seq > n.event_seq
       AND (b.state = 'queued' AND b.error_class = ANY ('{backfill, not_newer}')) IS NOT TRUE`

// ClaimNext claims the first unfinished deliveries of r.Keys, those of which the one
// before was just finished, as far as the request's budget goes, and wakes those
// of the others that a walk from r.From on would not find. A failed one that a
// newer event supersedes is closed before.
func (s *Store) ClaimNext(ctx context.Context, r ClaimRequest) (Claims, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	token := uuid.New()
	rows, err := s.pool.Query(ctx, claimNext, s.nextArgs(r, token)...)
	if err != nil {
		return Claims{}, s.judge(ctx, err)
	}
	c, err := scanNext(rows, r.Sync, token)
	if err == nil {
		err = s.supersedeNext(ctx, r, &c)
	}
	return c.Claims, s.judge(ctx, err)
}

// supersedeNext makes way for newer events where claimNext has met a failed one.
func (s *Store) supersedeNext(ctx context.Context, r ClaimRequest, c *scanned) error {
	if len(c.superseding) == 0 {
		return nil
	}
	r.Keys, r.Budget = c.superseding, r.Budget-len(c.Deliveries)
	more, err := s.supersede(ctx, r)
	c.Asleep = append(slices.DeleteFunc(c.Asleep, func(key string) bool { return slices.Contains(r.Keys, key) }), more.Asleep...)
	c.Deliveries = append(c.Deliveries, more.Deliveries...)
	c.Woken = c.Woken || more.Woken
	return err
}

func (s *Store) nextArgs(r ClaimRequest, token uuid.UUID) []any {
	return []any{r.Sync, r.Probe, token, s.relay, r.Lease, r.Keys, max(r.Budget, 0), r.From.due, r.From.seq}
}

func scanNext(rows pgx.Rows, sync string, token uuid.UUID) (scanned, error) {
	var c scanned
	defer rows.Close()
	d := newClaimedRow(sync, token)
	fields := append([]any{&c.Asleep, &c.superseding, &c.Woken}, d.fields()...)
	for rows.Next() {
		if err := rows.Scan(fields...); err != nil {
			return scanned{}, err
		}
		if d.key.Valid {
			c.Deliveries = append(c.Deliveries, d.delivery())
		}
	}
	return c, rows.Err()
}

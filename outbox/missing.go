package outbox

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// resultsNotRecorded reads the state of results that a recording did not take. There are
// three cases: the result was recorded before and that answer was lost, the lane is still
// claimed because a row was locked, or the claim is lost.
var resultsNotRecorded = `-- lockstep: results not recorded
-- $1 sync, of each result ` + namesOf(missingColumns, 2) + `
SELECT i.n,
       EXISTS (SELECT FROM outbox.delivery_log AS l
                WHERE l.event_id = i.event_id AND l.claim = i.claim AND l.event_seq = i.event_seq -- a replay may be sent under the same claim
                  -- when a claim is lost, another relay logs an unknown without a duration
                  AND (l.outcome NOT IN ('unknown', 'lease_lost', 'read') OR l.outcome = 'unknown' AND l.took_ms IS NOT NULL)) AS recorded,
       (SELECT l.ctid FROM outbox.lane AS l
         WHERE l.sync = $1 AND l.key = i.key AND l.claim = i.claim) AS lane,
       (SELECT d.ctid FROM outbox.delivery AS d
         WHERE d.sync = $1 AND d.key = i.key AND d.event_seq = i.event_seq) AS tid
  FROM ` + rowsOf(missingColumns, 2)

// recordLost logs attempts whose claim was lost. Another relay may have the lane now. The
// statement changes only its count of crashes, since this relay did not crash. After a
// failover or a restore, the log may not know the claim. The column claim of the log has
// only known claims, so then the claim is a part of the reason.
var recordLost = `-- lockstep: lease lost
-- $1 sync, $2 relay, of each result ` + namesOf(lostColumns, 3) + `
WITH result AS MATERIALIZED (
    SELECT * FROM ` + rowsOf(lostColumns, 3) + `
), crash_undone AS (
    UPDATE outbox.lane AS l
       SET crashes = greatest(l.crashes - 1, 0)
      FROM (SELECT o.tid
              FROM result AS i
             CROSS JOIN LATERAL (
                   SELECT o.ctid AS tid
                     FROM outbox.lane AS o
                    WHERE o.sync = $1 AND o.key = i.key AND o.crashes > 0
                      FOR UPDATE SKIP LOCKED) AS o) AS f
     WHERE l.ctid = f.tid
)
INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, outcome, code, error_class, error,
                                 request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, reason)
SELECT clock_timestamp() - i.answered_ms * interval '1 millisecond', $1, i.event_id, i.event_type, i.key, i.version,
       'lease_lost', i.code, i.class, i.error, i.sha256, i.mapping_version, i.revision, i.event_seq, i.took_ms, known.claim, $2,
       'the answer came after the lease: ' || i.outcome
       || CASE WHEN known.claim IS NULL THEN format('; this database does not know the claim %s', i.claim) ELSE '' END
  FROM result AS i
  LEFT JOIN LATERAL (
       SELECT l.claim FROM outbox.delivery_log AS l
        WHERE l.event_id = i.event_id AND l.sync = $1 AND l.claim = i.claim
        LIMIT 1) AS known ON true`

// findMissing finds out about results that the recording did not take, and logs those
// whose claim was lost.
func (s *Store) findMissing(ctx context.Context, sync string, results []Result, missing []int, r *Recorded) error {
	found, err := s.pool.Query(ctx, resultsNotRecorded, rows([]any{sync}, missingColumns, results, missing)...)
	if err != nil {
		return err
	}
	hasNext := func(i int) bool {
		return slices.ContainsFunc(r.Next, func(next *Delivery) bool { return next.Key == results[i].Delivery.Key })
	}
	var n int
	var recorded bool
	var lane, tid pgtype.TID
	var lost, settled []int
	var lanes lanesToSettle
	_, err = pgx.ForEachRow(found, []any{&n, &recorded, &lane, &tid}, func() error {
		i := missing[n-1]
		result := &results[i]
		d := result.Delivery
		stillOurs := lane.Valid && !hasNext(i)
		switch {
		case recorded && stillOurs && result.Outcome.Finished(): // the lost answer kept the lane
			lanes.addFinished(result, lane)
			settled = append(settled, i)
		case recorded:
			r.Done[i] = true
		case lane.Valid && (tid.Valid || result.Outcome == ""):
			d.lane, d.tid = lane, tid
		case result.Outcome == "":
			r.Done[i] = true // it was released, or another relay has the lane: nothing was sent
		case !result.Attempt:
			r.Lost[i] = true // nothing was sent: nothing to log
		default:
			lost = append(lost, i)
		}
		if !recorded && stillOurs && !tid.Valid && d.Position > 0 { // it was discarded, after an earlier delivery came before it
			lanes.addFinished(result, lane)
		}
		return nil
	})
	var claimed []string // lanes that were not settled, because they are locked
	if err == nil && len(lanes.keys) > 0 {
		var next []*Delivery
		batch := &pgx.Batch{}
		lanes.settle(batch, sync, &next)
		batch.Queue(lanesStillClaimed, sync, lanes.keys, lanes.claims).QueryRow(func(row pgx.Row) error { return row.Scan(&claimed) })
		if err = s.pool.SendBatch(ctx, batch).Close(); err == nil {
			r.Next = append(r.Next, next...)
			for _, i := range settled { // a result that is not done is recorded again
				r.Done[i] = hasNext(i) || !slices.Contains(claimed, results[i].Delivery.Key)
			}
		}
	}
	if err != nil {
		return err
	}
	lost = slices.DeleteFunc(lost, func(i int) bool { // these are recorded again
		return slices.Contains(claimed, results[i].Delivery.Key) && !hasNext(i)
	})
	if len(lost) == 0 {
		return nil
	}
	if _, err = s.pool.Exec(ctx, recordLost, rows([]any{sync, s.relay}, lostColumns, results, lost)...); err != nil {
		return err
	}
	for _, i := range lost {
		r.Lost[i] = true
	}
	return nil
}

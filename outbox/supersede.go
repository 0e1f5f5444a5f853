package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A sync with on_failed: supersede closes a failed delivery when a newer event of its key is
// to be sent. The newer event is the one with the higher outbox.event.seq, at any position
// in the lane: the replay of an older event has a later position. The filter of the sync
// must accept the newer event. If the filter leaves it out, nothing replaces the failed
// one. A newer event that was sent before does not count. In that case the failed delivery
// is a replay, and one of its attempts may have put the receiver back to the older state.
//
// A lane whose first delivery has failed is due as long as a delivery behind it was not
// judged. The relay that claims the lane reads the deliveries behind the first, applies the
// filter to them, and closes superseded deliveries. No other relay can change the lane
// meanwhile.

// newerCandidates reads the deliveries of some keys that were not judged yet.
const newerCandidates = `-- lockstep: read newer events
-- $1 sync, $2 keys, $3 whether the filter needs the payloads, $4 most deliveries per key
SELECT k.key, d.event_seq, d.rendered, e.id, coalesce(e.seq, d.event_seq), e.type, e.version, e.occurred_at,
       CASE WHEN $3 THEN e.payload END, CASE WHEN $3 THEN e.headers END
  FROM unnest($2::text[]) AS k (key)
 CROSS JOIN LATERAL (
       SELECT d.event_seq, d.event_id, d.body IS NOT NULL AS rendered
         FROM outbox.delivery AS d
        WHERE d.sync = $1 AND d.key = k.key AND (d.state = 'failed' OR d.due_at < 'infinity')
          AND d.event_seq > (SELECT l.judged FROM outbox.lane AS l WHERE l.sync = $1 AND l.key = k.key)
          AND d.event_seq > (SELECT min(f.event_seq) FROM outbox.delivery AS f WHERE f.sync = $1 AND f.key = k.key)
        ORDER BY d.event_seq
        LIMIT $4) AS d
  LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = d.event_id OFFSET 0) AS e ON true`

// supersedeFailed closes failed deliveries that are older than one of the given deliveries
// which the sync wants. It writes to the lane up to which event_seq it was judged. It locks
// each wanted delivery, so that no operator discards it at the same time. It skips
// deliveries that are locked, to be discarded or requeued: then the lane is judged again.
const supersedeFailed = `-- lockstep: supersede
-- $1 sync, $2 relay, $3 keys, $4 event_seq of their judged deliveries, $5 seq of their events, 0: the sync does not want it, $6 claim
WITH judged_delivery AS MATERIALIZED (
    SELECT j.key, j.event_seq, j.seq, l.lane, d.tid
      FROM unnest($3::text[], $4::bigint[], $5::bigint[]) AS j (key, event_seq, seq)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS lane
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = j.key AND l.claim = $6
              FOR UPDATE SKIP LOCKED) AS l
      LEFT JOIN LATERAL (
           SELECT d.ctid AS tid
             FROM outbox.delivery AS d
            WHERE j.seq > 0 AND d.sync = $1 AND d.key = j.key AND d.event_seq = j.event_seq
              FOR KEY SHARE SKIP LOCKED) AS d ON true
), newest_event AS MATERIALIZED (
    SELECT j.key, max(j.seq) AS seq FROM judged_delivery AS j WHERE j.tid IS NOT NULL GROUP BY j.key
), failed_delivery AS MATERIALIZED ( -- tid is null if the row is locked
    SELECT n.key, u.tid
      FROM newest_event AS n
      JOIN outbox.sync AS s ON s.name = $1 AND s.on_failed = 'supersede'
     CROSS JOIN LATERAL (
           SELECT f.ctid AS tid
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = n.key AND f.state = 'failed'
              AND coalesce((SELECT e.seq FROM outbox.event AS e WHERE e.id = f.event_id), f.event_seq) < n.seq) AS f
      LEFT JOIN LATERAL (
           SELECT o.ctid AS tid FROM outbox.delivery AS o WHERE o.ctid = f.tid FOR UPDATE SKIP LOCKED) AS u ON true
), judged_lane AS (
    UPDATE outbox.lane AS l
       SET judged = j.last
      FROM (SELECT lane, key, max(event_seq) AS last FROM judged_delivery GROUP BY lane, key HAVING bool_and(seq = 0 OR tid IS NOT NULL)) AS j
     WHERE l.ctid = j.lane AND j.key NOT IN (SELECT f.key FROM failed_delivery AS f WHERE f.tid IS NULL)
), removed AS (
    DELETE FROM outbox.delivery AS d
     USING failed_delivery AS f
     WHERE d.ctid = f.tid
    RETURNING d.*
)
INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, relay, reason)
SELECT r.sync, r.event_id, e.type, r.key, e.version, r.total_attempts, 'superseded', r.error_class, r.error, r.revision, r.event_seq, $2,
       'a newer event of its key exists'
  FROM removed AS r
  LEFT JOIN outbox.event AS e ON e.id = r.event_id`

const (
	candidatesPerKey = 20          // most deliveries of a key that are judged at once
	filteredKeys     = 16          // most keys whose payloads are read at once
	unfilteredKeys   = 500         // most keys at once where no payload is needed
	judgingLimit     = time.Second // most time for the filter, over all keys of a call
)

// supersede closes failed first deliveries of claimed lanes if there are newer events that
// wanted accepts, and settles the lanes. It returns the deliveries to send now. With an
// error it also returns the keys of lanes that are not settled. If its time ends, the other
// deliveries are judged when the lane is claimed again.
func (s *Store) supersede(ctx context.Context, sync string, keys []string, token pgtype.UUID, wanted func(Event) bool) (next []*Delivery, left []string, err error) {
	until := time.Now().Add(judgingLimit)
	size := unfilteredKeys
	if wanted != nil {
		size = filteredKeys
	}
	for len(keys) > 0 {
		some := keys[:min(size, len(keys))]
		var j judged
		if !time.Now().After(until) {
			if j, err = s.judgeNewer(ctx, sync, some, wanted, until); err != nil {
				return next, keys, err
			}
		}
		var lanes lanesToSettle
		for _, key := range some {
			lanes.add(key, token, 0, true, pgtype.Text{}, pgtype.TID{})
		}
		batch := &pgx.Batch{}
		if len(j.keys) > 0 {
			batch.Queue(supersedeFailed, sync, s.relay, j.keys, j.seqs, j.events, token)
		}
		var more []*Delivery
		lanes.settle(batch, sync, &more)
		if err := s.pool.SendBatch(ctx, batch).Close(); err != nil {
			return next, keys, err
		}
		next, keys = append(next, more...), keys[len(some):]
	}
	return next, nil, nil
}

// judged are arguments of supersedeFailed.
type judged struct {
	keys   []string
	seqs   []int64 // event_seq of the deliveries
	events []int64 // seq of their events; 0 if the sync does not want the event
}

// judgeNewer reads the deliveries that may supersede a failed one, and calls wanted for
// each. It stops when its time ends. It has one payload in memory at a time.
func (s *Store) judgeNewer(ctx context.Context, sync string, keys []string, wanted func(Event) bool, until time.Time) (judged, error) {
	var j judged
	rows, err := s.pool.Query(ctx, newerCandidates, sync, keys, wanted != nil, candidatesPerKey)
	if err != nil {
		return j, err
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		var position, seq int64
		var rendered bool
		var id, typ pgtype.Text
		var version pgtype.Int8
		var occurred pgtype.Timestamptz
		var payload, headers []byte
		if err := rows.Scan(&key, &position, &rendered, &id, &seq, &typ, &version, &occurred, &payload, &headers); err != nil {
			return j, err
		}
		// A delivery that was rendered before is sent unchanged. A delivery without its event will fail, which operators see.
		if wanted != nil && !rendered && id.Valid {
			if time.Now().After(until) {
				break
			}
			event := Event{
				ID: id.String, Seq: seq, Type: typ.String, Key: key, Version: number(version),
				Payload: payload, Headers: texts(headers), OccurredAt: occurred.Time,
			}
			if !wanted(event) {
				seq = 0
			}
		}
		j.keys, j.seqs, j.events = append(j.keys, key), append(j.seqs, position), append(j.events, seq)
	}
	return j, rows.Err()
}

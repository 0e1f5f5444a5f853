package outbox

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A sync that says on_failed: supersede closes a failed delivery once a newer
// event of its key is to be sent. Newer is the event that was written later
// (outbox.event.seq), wherever it is in the lane: a replay of an older event has
// a later place. And the sync must want it: what its filter leaves out is never
// sent, so it makes nothing superfluous. A newer event that was sent before does
// not count either. The failed delivery is a replay then, and an attempt of it
// may have put the receiver back to the older state.
//
// A lane whose first delivery has failed is due as long as something behind it was not
// judged. Who claims it reads what stands behind, has the relay's filter judge it,
// and closes what is superseded. Nobody else can send or close anything of the lane meanwhile.

// newerCandidates reads deliveries of some keys that were not judged yet.
const newerCandidates = `-- lockstep: read newer events
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

// supersedeFailed closes what failed and is older than one of the given deliveries,
// which the sync wants (a sequence number above 0), and notes which were judged.
// Each wanted one is locked against being removed, so that it is not discarded at the
// same time. What somebody has locked, since it is being discarded or requeued, is
// left. Then the lane is judged again.
const supersedeFailed = `-- lockstep: supersede
WITH judged AS MATERIALIZED (
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
), newer AS MATERIALIZED (
    SELECT j.key, max(j.seq) AS seq FROM judged AS j WHERE j.tid IS NOT NULL GROUP BY j.key
), old AS MATERIALIZED (
    SELECT n.key, u.tid
      FROM newer AS n
      JOIN outbox.sync AS s ON s.name = $1 AND s.on_failed = 'supersede'
     CROSS JOIN LATERAL (
           SELECT f.ctid AS tid
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = n.key AND f.state = 'failed'
              AND coalesce((SELECT e.seq FROM outbox.event AS e WHERE e.id = f.event_id), f.event_seq) < n.seq) AS f
      LEFT JOIN LATERAL (
           SELECT o.ctid AS tid FROM outbox.delivery AS o WHERE o.ctid = f.tid FOR UPDATE SKIP LOCKED) AS u ON true
), noted AS (
    UPDATE outbox.lane AS l
       SET judged = j.last
      FROM (SELECT lane, key, max(event_seq) AS last FROM judged GROUP BY lane, key HAVING bool_and(seq = 0 OR tid IS NOT NULL)) AS j
     WHERE l.ctid = j.lane AND j.key NOT IN (SELECT o.key FROM old AS o WHERE o.tid IS NULL)
), gone AS (
    DELETE FROM outbox.delivery AS d
     USING old AS o
     WHERE d.ctid = o.tid
    RETURNING d.*
)
INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, relay, reason)
SELECT g.sync, g.event_id, e.type, g.key, e.version, g.total_attempts, 'superseded', g.error_class, g.error, g.revision, g.event_seq, $2,
       'a newer event of its key exists'
  FROM gone AS g
  LEFT JOIN outbox.event AS e ON e.id = g.event_id`

const (
	candidatesPerKey = 20          // the most rows of a key that one look judges
	filteredKeys     = 16          // the most keys whose payloads are read at once
	unfilteredKeys   = 500         // the most keys at once where no payload is needed
	judgingLimit     = time.Second // for the filter, over all keys of a call
)

// supersede closes failed deliveries at the front of claimed lanes in favour of newer
// events that wanted accepts, and settles the lanes. It returns what is to be sent
// now, and with an error the keys whose lanes are still claimed. What there was no
// time to judge is judged when the lane is claimed again.
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
		lanes, tokens := lanesToSettle{}, make(map[string]pgtype.UUID, len(some))
		for _, key := range some {
			tokens[key] = token
			lanes.keys, lanes.claims, lanes.places = append(lanes.keys, key), append(lanes.claims, token), append(lanes.places, 0)
			lanes.stay, lanes.scopes, lanes.lanes = append(lanes.stay, true), append(lanes.scopes, pgtype.Text{}), append(lanes.lanes, pgtype.TID{})
		}
		batch := &pgx.Batch{}
		if len(j.keys) > 0 {
			batch.Queue(supersedeFailed, sync, s.relay, j.keys, j.places, j.seqs, token)
		}
		var more []*Delivery
		batch.Queue(settleLanes, lanes.args(sync)...).Query(func(rows pgx.Rows) (err error) {
			more, err = scanNext(rows, sync, tokens)
			return err
		})
		if err := s.pool.SendBatch(ctx, batch).Close(); err != nil {
			return next, keys, err
		}
		next, keys = append(next, more...), keys[len(some):]
	}
	return next, nil, nil
}

// judged are deliveries that were looked at: key, place, and the sequence number
// of the event, 0 where the sync does not want it.
type judged struct {
	keys   []string
	places []int64
	seqs   []int64
}

// judgeNewer reads what may supersede a failed delivery, and asks wanted. Rows for
// which the time does not suffice are left out. One payload is kept at a time.
func (s *Store) judgeNewer(ctx context.Context, sync string, keys []string, wanted func(Event) bool, until time.Time) (judged, error) {
	var j judged
	rows, err := s.pool.Query(ctx, newerCandidates, sync, keys, wanted != nil, candidatesPerKey)
	if err != nil {
		return j, err
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		var place, seq int64
		var rendered bool
		var id, typ pgtype.Text
		var version pgtype.Int8
		var occurred pgtype.Timestamptz
		var payload, headers []byte
		if err := rows.Scan(&key, &place, &rendered, &id, &seq, &typ, &version, &occurred, &payload, &headers); err != nil {
			return j, err
		}
		// What was rendered goes out as it is, and an event that is gone fails visibly.
		if wanted != nil && !rendered && id.Valid {
			if time.Now().After(until) {
				break
			}
			event := Event{
				ID: id.String, Seq: seq, Type: typ.String, Key: key, Version: number(version),
				Payload: payload, Headers: readHeaders(headers), OccurredAt: occurred.Time,
			}
			if !wanted(event) {
				seq = 0
			}
		}
		j.keys, j.places, j.seqs = append(j.keys, key), append(j.places, place), append(j.seqs, seq)
	}
	return j, rows.Err()
}

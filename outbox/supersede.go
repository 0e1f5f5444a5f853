package outbox

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A sync that says on_failed: supersede closes a failed delivery once a newer
// event of its key is to be sent. Newer is the event that was written later
// (outbox.event.seq), wherever it is in the line: a replay of an older event has
// a later place. And the sync must want it: what its filter leaves out is never
// sent, so it makes nothing superfluous. A newer event that was sent before does
// not count either. The failed delivery is a replay then, and an attempt of it
// may have put the receiver back to the older state.
//
// The filter is the relay's, so the rows are read first, judged here, and closed
// by a statement that tests again what may have changed meanwhile.

// newerCandidates reads the last deliveries of some keys that were not judged yet.
const newerCandidates = `-- lockstep: read newer events
SELECT k.key, d.event_seq, d.rendered, e.id, coalesce(e.seq, d.event_seq), e.type, e.version, e.occurred_at,
       CASE WHEN $3 THEN e.payload END, CASE WHEN $3 THEN e.headers END
  FROM unnest($2::text[]) AS k (key)
 CROSS JOIN LATERAL (
       SELECT d.event_seq, d.event_id, d.body IS NOT NULL AS rendered
         FROM outbox.delivery AS d
        WHERE d.sync = $1 AND d.key = k.key
          AND (d.state = 'queued' AND d.error_class = ANY ('{backfill, not_newer}')) IS NOT TRUE
        ORDER BY d.event_seq DESC
        LIMIT $4) AS d
  LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = d.event_id OFFSET 0) AS e ON true`

// supersedeFailed closes what failed and is older than one of the given
// deliveries, which the sync wants. Each of these is locked against being
// removed, so that none is discarded at the same time. A failed one that
// somebody is just requeueing is left.
const supersedeFailed = `-- lockstep: supersede
WITH newer AS MATERIALIZED (
    SELECT w.key, max(w.seq) AS seq
      FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS w (key, event_seq, seq)
     CROSS JOIN LATERAL (
           SELECT FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.key = w.key AND d.event_seq = w.event_seq
              FOR KEY SHARE SKIP LOCKED) AS d
     GROUP BY w.key
), gone AS (
    DELETE FROM outbox.delivery AS d
     USING (SELECT f.tid
              FROM newer AS n
              JOIN outbox.sync AS s ON s.name = $1 AND s.on_failed = 'supersede'
             CROSS JOIN LATERAL (
                   SELECT f.ctid AS tid
                     FROM outbox.delivery AS f
                    WHERE f.sync = $1 AND f.key = n.key AND f.state = 'failed'
                      AND coalesce((SELECT e.seq FROM outbox.event AS e WHERE e.id = f.event_id), f.event_seq) < n.seq
                      FOR UPDATE SKIP LOCKED) AS f) AS old
     WHERE d.ctid = old.tid
    RETURNING d.*
)
INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, relay, reason)
SELECT g.sync, g.event_id, e.type, g.key, e.version, g.total_attempts, 'superseded', g.error_class, g.error, g.revision, g.event_seq, $5,
       'a newer event of its key exists'
  FROM gone AS g
  LEFT JOIN outbox.event AS e ON e.id = g.event_id`

// parkBehindFailed parks deliveries that do not supersede the failed one in
// front of them, and notes that, so that nobody looks at them again before it is
// gone. The sequence number is that of the event, 0 where the sync does not want
// it. The one in front is locked for the reason given at claimDue.
const parkBehindFailed = `-- lockstep: park behind failed
WITH behind AS MATERIALIZED (
    SELECT d.tid, d.state
      FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS j (key, event_seq, seq)
      JOIN outbox.sync AS s ON s.name = $1 AND s.on_failed = 'supersede'
     CROSS JOIN LATERAL (
           SELECT f.ctid AS tid, f.event_seq, f.event_id, f.state
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = j.key
            ORDER BY f.event_seq
            LIMIT 1) AS first
     CROSS JOIN LATERAL (
           SELECT FROM outbox.delivery AS f
            WHERE first.state = 'failed' AND first.event_seq < j.event_seq
              AND (SELECT e.seq FROM outbox.event AS e WHERE e.id = first.event_id) >= j.seq
              AND f.ctid = first.tid
              FOR KEY SHARE SKIP LOCKED) AS f
     CROSS JOIN LATERAL (
           SELECT d.ctid AS tid, d.state
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.key = j.key AND d.event_seq = j.event_seq AND d.state IN ('pending', 'retry', 'queued')
              FOR NO KEY UPDATE SKIP LOCKED) AS d
), parked AS (
    UPDATE outbox.delivery AS d
       SET state = 'queued', due_at = 'infinity', error_class = 'not_newer', error = $5
      FROM behind AS b
     WHERE d.ctid = b.tid AND b.state <> 'queued'
)
UPDATE outbox.delivery AS d
   SET error_class = 'not_newer', error = $5
  FROM behind AS b
 WHERE d.ctid = b.tid AND b.state = 'queued'`

// notNewer is what outbox.why_not_delivered adds for such a delivery.
const notNewer = `it does not supersede that one: its event is older, or the sync's "when" does not match it`

const (
	candidatesPerKey = 20          // the most rows of a key that one look judges
	newerPerKey      = 3           // of these, the most that are tried to be locked
	filteredKeys     = 16          // the most keys whose payloads are read at once
	unfilteredKeys   = 500         // the most keys at once where no payload is needed
	judgingLimit     = time.Second // for the filter, over all keys of a call
)

// judged is what is known of a delivery that may supersede a failed one.
type judged struct {
	key        string
	place, seq int64 // seq is 0 where the sync does not want the event
}

// supersede closes failed deliveries of r.Keys in favour of newer events that
// r.Wanted accepts, parks what cannot take their place, and claims the
// first of the keys as [Store.ClaimNext] does. Keys for which there was no time are asleep.
func (s *Store) supersede(ctx context.Context, r ClaimRequest) (Claims, error) {
	var all Claims
	until := time.Now().Add(judgingLimit)
	size := unfilteredKeys
	if r.Wanted != nil {
		size = filteredKeys
	}
	for left := r.Keys; len(left) > 0; left = left[len(r.Keys):] {
		r.Keys = left[:min(size, len(left))]
		claims, err := s.supersedeSome(ctx, r, until)
		if err != nil {
			all.Asleep = append(all.Asleep, left...)
			return all, err
		}
		r.Budget -= len(claims.Deliveries)
		all.Deliveries = append(all.Deliveries, claims.Deliveries...)
		all.Asleep = append(all.Asleep, claims.Asleep...)
		all.Woken = all.Woken || claims.Woken
		if time.Now().After(until) {
			all.Asleep = append(all.Asleep, left[len(r.Keys):]...)
			return all, nil
		}
	}
	return all, nil
}

func (s *Store) supersedeSome(ctx context.Context, r ClaimRequest, until time.Time) (Claims, error) {
	candidates, err := s.judgeNewer(ctx, r, until)
	if err != nil {
		return Claims{}, err
	}
	var newer, rest struct {
		keys        []string
		places, seq []int64
	}
	slices.SortFunc(candidates, func(a, b judged) int { return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(b.seq, a.seq)) })
	of, n := "", 0
	for _, c := range candidates {
		if c.key != of {
			of, n = c.key, 0
		}
		if n++; c.seq > 0 && n <= newerPerKey {
			newer.keys, newer.places, newer.seq = append(newer.keys, c.key), append(newer.places, c.place), append(newer.seq, c.seq)
		}
		rest.keys, rest.places, rest.seq = append(rest.keys, c.key), append(rest.places, c.place), append(rest.seq, c.seq)
	}
	token := uuid.New()
	batch := &pgx.Batch{}
	if len(newer.keys) > 0 {
		batch.Queue(supersedeFailed, r.Sync, newer.keys, newer.places, newer.seq, s.relay)
	}
	if len(rest.keys) > 0 {
		batch.Queue(parkBehindFailed, r.Sync, rest.keys, rest.places, rest.seq, notNewer)
	}
	var claims scanned
	batch.Queue(claimNext, s.nextArgs(r, token)...).Query(func(rows pgx.Rows) (err error) {
		claims, err = scanNext(rows, r.Sync, token)
		return err
	})
	err = s.pool.SendBatch(ctx, batch).Close()
	return claims.Claims, err
}

// judgeNewer reads what may supersede a failed delivery, and asks r.Wanted. Rows
// for which the time does not suffice are left out. One payload is kept at a time.
func (s *Store) judgeNewer(ctx context.Context, r ClaimRequest, until time.Time) ([]judged, error) {
	rows, err := s.pool.Query(ctx, newerCandidates, r.Sync, r.Keys, r.Wanted != nil, candidatesPerKey)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []judged
	for rows.Next() {
		var c judged
		var rendered bool
		var id, typ pgtype.Text
		var version pgtype.Int8
		var occurred pgtype.Timestamptz
		var payload, headers []byte
		if err := rows.Scan(&c.key, &c.place, &rendered, &id, &c.seq, &typ, &version, &occurred, &payload, &headers); err != nil {
			return nil, err
		}
		// What was rendered goes out as it is, and an event that is gone fails visibly.
		if r.Wanted != nil && !rendered && id.Valid {
			if time.Now().After(until) {
				continue
			}
			event := Event{
				ID: id.String, Seq: c.seq, Type: typ.String, Key: c.key, Version: number(version),
				Payload: payload, Headers: readHeaders(headers), OccurredAt: occurred.Time,
			}
			if !r.Wanted(event) {
				c.seq = 0
			}
		}
		list = append(list, c)
	}
	return list, rows.Err()
}

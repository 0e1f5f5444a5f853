package outbox

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// claimUnconfirmed returns events of a sync that their receiver has accepted and not
// confirmed, and sets when each is looked at again: after ten seconds, then after twice as
// long each time, at most after a day. So no other relay looks at them meanwhile. What a later
// delivery of the key has settled is removed, and what nobody can look at any more, because
// its event is past its retention.
const claimUnconfirmed = `-- lockstep: claim unconfirmed
-- $1 sync, $2 most events
WITH due AS MATERIALIZED (
    SELECT u.ctid AS tid, u.key, u.event_id, u.event_seq, u.asked
      FROM outbox.unconfirmed AS u
     WHERE u.sync = $1 AND u.ask_at <= clock_timestamp()
     ORDER BY u.ask_at
     LIMIT $2
       FOR UPDATE SKIP LOCKED
), judged AS MATERIALIZED (
    SELECT d.*, e.id IS NULL OR EXISTS (
               SELECT FROM outbox.delivery_log AS l
                WHERE l.key = d.key AND l.sync = $1 AND l.event_seq > d.event_seq AND l.outcome IN ('delivered', 'duplicate')
               OFFSET 0) AS is_settled
      FROM due AS d
      LEFT JOIN LATERAL (SELECT o.id FROM outbox.event AS o WHERE o.id = d.event_id OFFSET 0) AS e ON true
), settled AS (
    DELETE FROM outbox.unconfirmed AS u USING judged AS j WHERE u.ctid = j.tid AND j.is_settled
), asked AS (
    UPDATE outbox.unconfirmed AS u
       SET asked = u.asked + 1, ask_at = clock_timestamp() + least(interval '10 seconds' * power(2, least(u.asked + 1, 20)), interval '1 day')
      FROM judged AS j
     WHERE u.ctid = j.tid AND NOT j.is_settled
    RETURNING u.sync, u.key, u.event_id, u.event_seq
)
SELECT a.key, a.event_seq, e.id::text, e.seq, e.type, e.version, e.payload, e.headers, e.occurred_at,
       r.external_id, r.etag, r.learned, r.version, r.times_set
  FROM asked AS a
  JOIN LATERAL (SELECT * FROM outbox.event WHERE id = a.event_id OFFSET 0) AS e ON true
  LEFT JOIN LATERAL (SELECT * FROM outbox.external_ref WHERE sync = a.sync AND key = a.key OFFSET 0) AS r ON true
 ORDER BY a.key`

// Unconfirmed returns events that the receiver of a sync has accepted and not confirmed, and
// that are to be looked at now. They are finished deliveries without a claim, at most n.
func (s *Store) Unconfirmed(ctx context.Context, sync string, n int) ([]*Delivery, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	rows, err := s.pool.Query(ctx, claimUnconfirmed, sync, n)
	if err != nil {
		return nil, s.judge(ctx, err)
	}
	var r claimedRow
	var key string
	var found []*Delivery
	_, err = pgx.ForEachRow(rows, []any{
		&key, &r.position, &r.id, &r.seq, &r.typ, &r.version, &r.payload, &r.headers, &r.occurred, &r.externalID, &r.etag, &r.learned, &r.refVersion, &r.refTimesSet,
	}, func() error {
		r.sync = sync
		d, err := r.delivery(key, pgtype.UUID{})
		found = append(found, d)
		return err
	})
	return found, s.judge(ctx, err)
}

// Confirm notes that the receiver has processed an event that it had accepted, with a reason
// for the log. It does nothing if the event is settled already.
func (s *Store) Confirm(ctx context.Context, sync, eventID, reason string) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	_, err := s.pool.Exec(ctx, `SELECT outbox.confirm($1, $2, $3)`, sync, eventID, reason)
	return s.judge(ctx, err)
}

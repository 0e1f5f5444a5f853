package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Escalation says when an open delivery of a sync is escalated: people are told that the
// receiver does not have the event yet. The zero value escalates nothing.
type Escalation struct {
	At     []string      // paths into the payload, such as hearing.scheduledAt, at most 8: the earliest time there is when the receiver needs the event
	Zone   string        // IANA zone of times without an offset; default UTC
	Before time.Duration // escalated when the time is nearer than this; needs At; 0: never
	After  time.Duration // escalated when it is older than this; 0: never
}

// Equal reports whether two policies are the same.
func (e Escalation) Equal(o Escalation) bool {
	return slices.Equal(e.At, o.At) && cmp.Or(e.Zone, "UTC") == cmp.Or(o.Zone, "UTC") && e.Before == o.Before && e.After == o.After
}

func (e Escalation) String() string {
	var parts []string
	if len(e.At) > 0 {
		parts = append(parts, "at "+strings.Join(e.At, ", ")+" in "+cmp.Or(e.Zone, "UTC"))
	}
	if e.Before > 0 {
		parts = append(parts, "before "+e.Before.String())
	}
	if e.After > 0 {
		parts = append(parts, "after "+e.After.String())
	}
	return cmp.Or(strings.Join(parts, ", "), "none")
}

// ErrZone reports a time zone that the database server does not know.
var ErrZone = errors.New("is not a time zone of the database server")

// setEscalation writes the policy to the sync's row. With recount, the times of open
// deliveries follow, see recountEscalations.
func setEscalation(ctx context.Context, tx pgx.Tx, r Registration, recount bool) error {
	e := r.Escalate
	zone := cmp.Or(e.Zone, "UTC")
	// Not by pg_timezone_names, which fails if any file of the server's zones cannot be read.
	_, err := tx.Exec(ctx, `SELECT now() AT TIME ZONE $1`, zone)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "22023" { // invalid_parameter_value
		return fmt.Errorf("sync %q: escalate.zone %q %w: write an IANA name such as America/New_York", r.Name, zone, ErrZone)
	}
	if err != nil {
		return err
	}
	const update = `
UPDATE outbox.sync
   SET escalate_at = coalesce($2::text[], '{}'), escalate_zone = $3, escalate_before = nullif($4::interval, '0'), escalate_after = nullif($5::interval, '0'),
       escalate_recount = CASE WHEN $6 THEN '' END
 WHERE name = $1`
	_, err = tx.Exec(ctx, update, r.Name, e.At, zone, e.Before, e.After, recount)
	if err != nil {
		return fmt.Errorf("sync %q: escalate: %w", r.Name, err)
	}
	return nil
}

// writersTimeout bounds the wait of [Store.Apply] for transactions that may not have seen a
// changed policy.
const writersTimeout = 5 * time.Second

// recountEscalations gives open deliveries the times of a changed policy. Transactions that
// may not have seen the change add deliveries with times of the old policy. So deliveries are
// counted once more when these transactions have ended. If it is interrupted, or if they last
// too long, the next Apply continues.
func (s *Store) recountEscalations(ctx context.Context, sync string) error {
	var after *string
	if err := s.scan(ctx, []any{&after}, `SELECT escalate_recount FROM outbox.sync WHERE name = $1`, sync); err != nil || after == nil {
		return err
	}
	writers, err := s.olderWriters(ctx)
	if err != nil {
		return err
	}
	if *after != "" || len(writers) > 0 {
		if err := s.recountPages(ctx, sync, true); err != nil {
			return err
		}
	}
	for began := time.Now(); len(writers) > 0; {
		if time.Since(began) > writersTimeout {
			return fmt.Errorf("sync %q: escalate: %d transaction(s) are open that may not have seen the change, the oldest: pid %d since %s: their events may have times of the old policy; run lockstep sync apply again when they have ended",
				sync, len(writers), writers[0].PID, writers[0].Since.UTC().Format(time.RFC3339))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
		open, err := s.olderWriters(ctx)
		if err != nil {
			return err
		}
		writers = slices.DeleteFunc(writers, func(w writer) bool {
			return !slices.ContainsFunc(open, func(o writer) bool { return o.Transaction == w.Transaction })
		})
	}
	return s.recountPages(ctx, sync, false)
}

// recountPages recounts in pages, so that relays and writers are not delayed. With again, all
// deliveries are to be counted once more afterwards.
func (s *Store) recountPages(ctx context.Context, sync string, again bool) error {
	const page = `-- lockstep: recount escalations
WITH last_key AS MATERIALIZED (
    SELECT max(p.key) AS key, count(*) = 2000 AS more
      FROM (SELECT d.key FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key > $2 ORDER BY d.key LIMIT 2000) AS p
), counted AS MATERIALIZED (
    SELECT d.key, d.event_seq, n.needed_by, outbox.escalates_at(e.type, n.needed_by, d.created_at, s.escalate_before, s.escalate_after) AS escalates_at
      FROM outbox.delivery AS d
      JOIN outbox.event AS e ON e.id = d.event_id
      JOIN outbox.sync AS s ON s.name = $1
     CROSS JOIN LATERAL (SELECT outbox.needed_by(e.type, e.payload, s.escalate_at, s.escalate_zone) AS needed_by OFFSET 0) AS n
     WHERE d.sync = $1 AND d.key > $2 AND d.key <= (SELECT l.key FROM last_key AS l)
), updated AS (
    UPDATE outbox.delivery AS d
       SET needed_by = c.needed_by, escalates_at = c.escalates_at, escalated = false
      FROM counted AS c
     WHERE d.sync = $1 AND d.key = c.key AND d.event_seq = c.event_seq
       AND (d.needed_by, d.escalates_at) IS DISTINCT FROM (c.needed_by, c.escalates_at)
)
UPDATE outbox.sync AS s
   SET escalate_recount = CASE WHEN l.more THEN l.key WHEN $3 THEN '' END
  FROM last_key AS l
 WHERE s.name = $1
RETURNING l.more`
	for more := true; more; {
		err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
			var after *string
			err := tx.QueryRow(ctx, `SELECT escalate_recount FROM outbox.sync WHERE name = $1 FOR NO KEY UPDATE`, sync).Scan(&after)
			if more = err == nil && after != nil; !more {
				return err
			}
			return tx.QueryRow(ctx, page, sync, *after, again).Scan(&more)
		})
		if err != nil {
			return s.judge(ctx, err)
		}
	}
	return nil
}

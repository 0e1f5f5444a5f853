package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Cursor is where a walk over due deliveries goes on. The zero value is the
// beginning. It is a hint: what commits late behind it is found by a walk from
// the beginning.
type Cursor struct {
	due time.Time
	seq int64
}

// Before reports whether c lies before other.
func (c Cursor) Before(other Cursor) bool {
	if !c.due.Equal(other.due) {
		return c.due.Before(other.due)
	}
	return c.seq < other.seq
}

// Behind is how much later the deliveries at other became due.
func (c Cursor) Behind(other Cursor) time.Duration { return other.due.Sub(c.due) }

// End is behind everything that is due.
func End() Cursor { return Cursor{due: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)} }

func earlier(a, b Cursor) Cursor {
	if b.Before(a) {
		return b
	}
	return a
}

// ClaimRequest asks for due deliveries of one sync.
type ClaimRequest struct {
	Sync   string
	From   Cursor
	Budget int           // most deliveries to claim
	Page   int           // most rows to look at; those found behind an earlier one are parked
	Pass   bool          // or passed by, if that one is due or under way, and they are pending and older than a second
	Lease  time.Duration // how long the claims hold
	Solo   bool          // claim suspects, and nothing else: deliveries during which two or more relays died
	Fresh  bool          // look only at what was written, requeued or replayed lately, not at what waited or failed before
	Probe  bool          // claim in spite of an auth or breaker hold
	Keys   []string      // to go on with: their first deliveries are claimed, or woken beyond the budget; not for Claim

	// Wanted reports whether the sync sends an event, which its filter decides:
	// only such an event supersedes a failed one. Nil means all. It is called by
	// one goroutine and must not panic.
	Wanted func(Event) bool
}

// Claims is the answer to a [ClaimRequest].
type Claims struct {
	Deliveries []*Delivery
	Seen       int      // rows looked at
	Parked     int      // of these
	More       bool     // there may be more to look at, from Next on
	Suspects   int      // heads left because two or more relays died while sending them
	Next       Cursor   // where the next walk starts
	Settled    Cursor   // a second ago: what is due earlier has committed, but for long transactions
	Hold       *Hold    // strongest hold in force; then nothing was read
	Asleep     []string // keys with a parked first delivery that could not be woken yet, to be given again
	Woken      bool     // some of the keys were woken and not claimed: a walk finds them now
}

// holdsInForce are those that keep a claim from being made: an operator's and a
// backfill's always do, a throttle ends by time, auth and breaker let a probe
// through.
const holdsInForce = `
      FROM outbox.hold
     WHERE sync = $1
       AND (kind NOT IN ('throttle', 'window') OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))`

// strongestHold tells about the one that counts most.
const strongestHold = `-- lockstep: hold
    SELECT kind, until, reason, coalesce(least(until, untried_at) <= clock_timestamp(), false)` + holdsInForce + `
     ORDER BY array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind::text)
     LIMIT 1`

// Rows are addressed by tid, and tables are looked up laterally, wherever the
// planner could else turn a join around. An outbox is analyzed while it is
// empty, mostly: then reading all of it looks as cheap as reading one row, also
// when a long transaction keeps a million dead rows in it. A row that was
// changed between the statement's snapshot and its lock is left for the next
// look.

// firstOfKey is what stands in front of row p, or p itself. It goes over all that a
// long transaction keeps of the key's finished rows: once for a key and page.
const firstOfKey = `
    SELECT f.ctid AS tid, f.due_at > now() AS waits, f.state = 'failed' AS failed
      FROM outbox.delivery AS f
     WHERE f.sync = $1 AND f.key = p.key
     ORDER BY f.event_seq
     LIMIT 1`

// claimDue examines due rows in the order of their due times. The first of its key
// is claimed, a row behind it is parked out of the walk; with Pass it is left as it
// is, if what is in front is due or under way: who finishes that one goes on with it.
//
// What a row is parked behind is locked against being removed, and the row is left
// for the next look when that lock cannot be had: otherwise it could be parked
// behind one that is just being finished, and sleep for ever. The lock is the
// weakest that keeps the row, so that it stands in no promotion's way.
//
// A replay draws its place before it commits. An event that was written meanwhile
// has a later place, and may be in flight when the replay is first seen; or a
// writer commits what has a place in front of a replay in flight. Then the one
// that came late waits for the other's end. Else the later one is parked at
// once, which also refuses it to a claim that does not see the earlier one yet.
const claimDue = `-- lockstep: claim` + claimStart + dueRows + claimEnd

// claimSuspects does the same with suspects, which it finds by an index of their
// own: behind a backlog a walk would take too long.
const claimSuspects = `-- lockstep: claim suspects` + claimStart + suspectRows + claimEnd

const claimStart = `
WITH free AS MATERIALIZED (
    SELECT WHERE NOT EXISTS (SELECT` + holdsInForce + `)
), page AS MATERIALIZED (
    SELECT p.*, row_number() OVER (ORDER BY p.due_at, p.event_seq) AS n,
           row_number() OVER (PARTITION BY p.key ORDER BY p.event_seq) = 1 AS leads
      FROM (
           SELECT d.ctid AS tid, d.key, d.event_seq, d.due_at, d.state, d.suspect, d.revision, d.error_class
             FROM outbox.delivery AS d
            WHERE d.sync = $1
              AND d.due_at < 'infinity'
              AND d.due_at <= now()
              AND (d.due_at, d.event_seq) >= ($6, $7)
              AND (d.state IN ('pending', 'retry') OR d.lease_until < now())
              AND EXISTS (SELECT FROM free)`

// dueRows are what a walk looks at. A delivery is fresh in its first life while it
// was never put aside, and in each later one: a requeue or a replay is somebody's wish.
const dueRows = `
              AND (NOT $12 OR d.state = 'pending' AND (d.due_at < d.created_at + interval '1 second' OR d.attempts < d.total_attempts))
            ORDER BY d.due_at, d.event_seq
            LIMIT $8`

const suspectRows = `
              AND d.suspect
              AND NOT $12
            ORDER BY d.event_seq
            LIMIT $8`

const claimEnd = `) AS p
), taken AS MATERIALIZED ( -- one by one, until the budget is used up; without a budget up to the first that could be claimed
    SELECT p.*, c.was, c.claim, c.claimed_by, l.later
      FROM (SELECT * FROM page WHERE leads ORDER BY n) AS p
     CROSS JOIN LATERAL (` + firstOfKey + `) AS f
     CROSS JOIN LATERAL (
           SELECT d.state AS was, d.claim, d.claimed_by
             FROM outbox.delivery AS d
            WHERE f.tid = p.tid AND p.suspect = $10
              AND d.ctid = p.tid AND d.due_at <= now() AND (d.state IN ('pending', 'retry') OR d.lease_until < now())
              FOR UPDATE SKIP LOCKED) AS c
     CROSS JOIN LATERAL ( -- looked at once the head is locked, hence the reference to c
           SELECT coalesce(bool_and(o.tid IS NOT NULL AND (o.state <> 'sending' OR o.lease_until < now())), true) AS may,
                  array_agg(o.tid) FILTER (WHERE o.tid IS NOT NULL) AS later
             FROM (SELECT l.event_seq
                     FROM outbox.delivery AS l
                    WHERE (p.revision > 1 OR p.error_class = 'added') AND l.sync = $1 AND l.key = p.key AND l.event_seq > p.event_seq
                      AND l.state IN ('pending', 'retry', 'sending') AND l.revision = 1
                   UNION ALL
                   SELECT l.event_seq
                     FROM outbox.delivery AS l
                    WHERE l.sync = $1 AND l.key = p.key AND l.event_seq > p.event_seq
                      AND l.state IN ('pending', 'retry', 'sending') AND l.revision > 1) AS l
             LEFT JOIN LATERAL (
                   SELECT d.ctid AS tid, d.state, d.lease_until
                     FROM outbox.delivery AS d
                    WHERE d.sync = $1 AND d.key = p.key AND d.event_seq = l.event_seq AND c.was IS NOT NULL
                      FOR NO KEY UPDATE SKIP LOCKED) AS o ON true) AS l
     WHERE l.may
     LIMIT greatest($9, 1)
), stopped AS MATERIALIZED (
    SELECT t.early, t.n AS taken, CASE WHEN t.early THEN t.last ELSE p.n END AS at
      FROM (SELECT count(*) AS n, max(n) AS last, count(*) >= greatest($9, 1) AS early FROM taken) AS t
     CROSS JOIN (SELECT count(*) AS n FROM page) AS p
), rest AS MATERIALIZED ( -- what was looked at and not taken, beside the first of its key
    SELECT r.*
      FROM (SELECT p.*, first_value(f.tid) OVER of_key AS first, first_value(f.waits) OVER of_key AS waits,
                   first_value(f.failed) OVER of_key AS failed
              FROM (SELECT p.*, bool_or(p.looked) OVER (PARTITION BY p.key) AS key_looked
                      FROM (SELECT p.*, p.n <= s.at AND p.tid NOT IN (SELECT tid FROM taken) AS looked
                              FROM page AS p
                              JOIN stopped AS s ON s.at > s.taken) AS p) AS p
              LEFT JOIN LATERAL (SELECT * FROM (` + firstOfKey + `) AS f WHERE p.leads AND p.key_looked OFFSET 0) AS f ON true
            WINDOW of_key AS (PARTITION BY p.key ORDER BY p.event_seq)) AS r
     WHERE r.looked
), later AS MATERIALIZED (
    SELECT unnest(t.later) AS tid
      FROM taken AS t
     WHERE t.later IS NOT NULL
), behind AS MATERIALIZED (
    SELECT r.tid
      FROM (SELECT r.*
              FROM rest AS r
              JOIN outbox.sync AS s ON s.name = $1
             WHERE r.first <> r.tid AND r.state <> 'sending' AND NOT (r.failed AND s.on_failed = 'supersede')
               AND (r.waits OR NOT $11 OR r.state = 'retry' OR r.due_at > now() - interval '1 second')
               AND r.tid NOT IN (SELECT tid FROM later)) AS r
     CROSS JOIN LATERAL (
           SELECT FROM outbox.delivery AS f
            WHERE f.ctid = r.first
              FOR KEY SHARE SKIP LOCKED) AS f
     CROSS JOIN LATERAL (
           SELECT FROM outbox.delivery AS d
            WHERE d.ctid = r.tid AND d.state IN ('pending', 'retry')
              FOR NO KEY UPDATE SKIP LOCKED) AS d
), parked AS (
    UPDATE outbox.delivery AS d
       SET state = 'queued', due_at = 'infinity'
      FROM (SELECT tid FROM behind UNION ALL SELECT tid FROM later) AS b
     WHERE d.ctid = b.tid AND d.state <> 'sending'
    RETURNING 1
), touched AS ( -- a claim of a dead relay behind: changed, so that who does not see the row in front is refused it too
    UPDATE outbox.delivery AS d
       SET lease_until = d.lease_until
      FROM later AS l
     WHERE d.ctid = l.tid AND d.state = 'sending'
), meta AS MATERIALIZED (
    SELECT s.at AS seen, (SELECT count(*) FROM parked) AS parked, r.suspects, r.superseding, s.early OR s.at >= $8 AS more,
           p.due_at AS last_due, p.event_seq AS last_seq, now() - interval '1 second' AS settled, NOT EXISTS (SELECT FROM free) AS held
      FROM stopped AS s
      LEFT JOIN page AS p ON p.n = s.at
     CROSS JOIN (SELECT count(*) FILTER (WHERE r.first = r.tid AND r.suspect) AS suspects,
                        array_agg(DISTINCT r.key) FILTER (WHERE r.failed AND s.on_failed = 'supersede') AS superseding
                   FROM rest AS r
                   JOIN outbox.sync AS s ON s.name = $1) AS r
), claimed AS (
    UPDATE outbox.delivery AS d
       SET state = 'sending', claim = $3, claimed_by = $4, lease_until = clock_timestamp() + $5::interval,
           crashes = d.crashes + 1,
           attempts = d.attempts + (c.was = 'sending')::int,
           total_attempts = d.total_attempts + (c.was = 'sending')::int
      FROM taken AS c
     WHERE $9 > 0 AND d.ctid = c.tid
    RETURNING d.*, d.ctid AS tid, c.was, c.claim AS claim_before, c.claimed_by AS claimed_before
), taken_over AS ( -- earlier claims that ended without a word
    INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, claim, relay)
    SELECT $1, c.event_id, e.type, c.key, e.version, c.total_attempts, 'unknown', 'unknown',
           'the relay that was sending it did not come back before its lease ended', c.revision, c.event_seq, c.claim_before, c.claimed_before
      FROM claimed AS c
      LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
     WHERE c.was = 'sending'
)
SELECT m.*, ` + claimedColumns + `
  FROM meta AS m
  LEFT JOIN claimed AS c ON true` + claimedTables

// claimedColumns are what a relay is told of a claimed delivery c.
const claimedColumns = `c.key, c.event_seq, c.event_id, c.attempts, c.total_attempts, c.charged, c.spent_ms, c.crashes, c.revision,
       nullif(c.error_class, 'added'), c.body, c.body_sha256, c.mapping_version,
       e.seq, e.type, e.version, e.payload, e.headers, e.occurred_at, r.external_id, r.etag, r.version, r.event_seq, c.tid`

const claimedTables = `
  LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
  LEFT JOIN LATERAL (SELECT * FROM outbox.external_ref WHERE sync = c.sync AND key = c.key OFFSET 0) AS r ON true
 ORDER BY c.event_seq`

// Claim takes up to Budget due deliveries that are the first unfinished of
// their key. The relay that holds them sends them before the lease ends, or
// releases them.
func (s *Store) Claim(ctx context.Context, r ClaimRequest) (Claims, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	token := uuid.New()
	statement := claimDue
	if r.Solo {
		statement = claimSuspects
	}
	rows, err := s.pool.Query(ctx, statement, r.Sync, r.Probe, token, s.relay, r.Lease,
		r.From.due, r.From.seq, r.Page, r.Budget, r.Solo, r.Pass, r.Fresh)
	if err != nil {
		return Claims{}, s.judge(ctx, err)
	}
	c, err := scanClaims(rows, r.Sync, token)
	if err != nil {
		return Claims{}, s.judge(ctx, err)
	}
	if c.held {
		if c.Hold, err = s.strongestHold(ctx, r.Sync, r.Probe); err != nil {
			return Claims{}, s.judge(ctx, err)
		}
	}
	if c.held || r.Page == 0 {
		c.next = r.From // nothing was read
	}
	c.Next = c.next
	if len(c.superseding) > 0 {
		// The newer rows were left as they are: should this fail, the next walk from the beginning finds them again.
		more, err := s.supersede(ctx, ClaimRequest{
			Sync: r.Sync, From: End(), Lease: r.Lease, Budget: r.Budget - len(c.Deliveries), Keys: c.superseding, Wanted: r.Wanted,
		})
		c.Deliveries = append(c.Deliveries, more.Deliveries...)
		c.Asleep = more.Asleep
		return c.Claims, s.judge(ctx, err)
	}
	return c.Claims, nil
}

// strongestHold is nil when the hold has ended meanwhile.
func (s *Store) strongestHold(ctx context.Context, sync string, probe bool) (*Hold, error) {
	var h Hold
	var until *time.Time
	err := s.pool.QueryRow(ctx, strongestHold, sync, probe).Scan(&h.Kind, &until, &h.Reason, &h.ProbeDue)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if until != nil {
		h.Until = *until
	}
	return &h, err
}

// recheckParked wakes parked rows that have nothing in front. There are none
// unless an operator's transaction held the row while the one before it was
// discarded, or looked through an old snapshot, or a relay died before it could
// wake the row.
//
// Where failed ones are superseded, a row behind failed ones only is woken too: a
// claim that meets it closes them, or parks it with the note that it is not
// newer. A row with that note waits until nothing is in front. One that waits for
// a backfill is left to the end of that.
//
// It also makes due what was created in the future, or is pending and not due:
// the database's clock was set back since, and the row would wait until it has
// caught up. What was in retry before waits for that: nobody knows any more for
// how long it was put off.
const recheckParked = `-- lockstep: check parked
WITH page AS MATERIALIZED (
    SELECT d.key, d.event_seq, d.state,
           CASE d.state WHEN 'pending' THEN d.due_at ELSE d.created_at END > clock_timestamp() + interval '1 minute' AS ahead,
           (SELECT s.on_failed = 'supersede' FROM outbox.sync AS s WHERE s.name = $1) AS supersede
      FROM outbox.delivery AS d
     WHERE d.sync = $1 AND (d.key, d.event_seq) > ($2, $3)
     ORDER BY d.key, d.event_seq
     LIMIT $4
), asleep AS (
    SELECT d.tid
      FROM page AS p
     CROSS JOIN LATERAL (
           SELECT d.ctid AS tid
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.key = p.key AND d.event_seq = p.event_seq
              AND (d.state = 'queued' AND d.error_class IS DISTINCT FROM 'backfill'
                   AND NOT EXISTS (SELECT FROM outbox.delivery AS f
                                    WHERE f.sync = $1 AND f.key = p.key AND f.event_seq < p.event_seq
                                      AND NOT (f.state = 'failed' AND p.supersede AND d.error_class IS DISTINCT FROM 'not_newer')
                                   OFFSET 0)
                   OR p.ahead AND d.state IN ('pending', 'retry') AND d.due_at > clock_timestamp())
              FOR NO KEY UPDATE SKIP LOCKED) AS d
     WHERE p.state = 'queued' OR p.ahead
), woken AS (
    UPDATE outbox.delivery AS d
       SET state = CASE d.state WHEN 'queued' THEN 'pending' ELSE d.state END,
           due_at = clock_timestamp(), created_at = least(d.created_at, clock_timestamp()),
           error_class = nullif(d.error_class, 'not_newer'), error = CASE WHEN d.error_class = 'not_newer' THEN NULL ELSE d.error END
      FROM asleep AS a
     WHERE d.ctid = a.tid
    RETURNING 1
)
SELECT (SELECT count(*) FROM woken), p.key, p.event_seq
  FROM (SELECT 1) AS always
  LEFT JOIN (SELECT key, event_seq FROM page ORDER BY key DESC, event_seq DESC LIMIT 1) AS p ON true`

// ParkedCursor is where [Store.RecheckParked] goes on; zero is the beginning.
type ParkedCursor struct {
	key   string
	place int64
}

// RecheckParked looks at up to page deliveries of a sync from a cursor on, wakes
// those that are parked with nothing in front of them or whose due time is of a
// clock that was set back, and returns where to go on: the zero cursor once the
// end was reached. Every time it also wakes what a complete backfill has left.
func (s *Store) RecheckParked(ctx context.Context, sync string, from ParkedCursor, page int) (woken int, next ParkedCursor, err error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	var key *string
	var place *int64
	batch := &pgx.Batch{}
	batch.Queue(recheckParked, sync, from.key, from.place, page).QueryRow(func(row pgx.Row) error { return row.Scan(&woken, &key, &place) })
	batch.Queue(releaseBackfilled, sync, page).Exec(func(tag pgconn.CommandTag) error {
		woken += int(tag.RowsAffected())
		return nil
	})
	if err := s.pool.SendBatch(ctx, batch).Close(); err != nil {
		return 0, from, s.judge(ctx, err)
	}
	if key == nil {
		return woken, ParkedCursor{}, nil
	}
	return woken, ParkedCursor{key: *key, place: *place}, nil
}

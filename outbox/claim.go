package outbox

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
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
	Pass   bool          // or passed by, if that one is due or under way and they are older than a second
	Lease  time.Duration // how long the claims hold
	Solo   bool          // claim one delivery during which a relay died, and nothing else
	Probe  bool          // claim in spite of an auth or breaker hold
	Keys   []string      // to go on with: their first deliveries are claimed, or woken beyond the budget; not for Claim
}

// Claims is the answer to a [ClaimRequest].
type Claims struct {
	Deliveries []*Delivery
	Seen       int      // rows looked at; a full page means that there may be more
	Parked     int      // of these
	Suspects   int      // heads left because a relay died while sending them
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
    SELECT kind, until, reason, coalesce(until <= clock_timestamp(), false)` + holdsInForce + `
     ORDER BY array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind::text)
     LIMIT 1`

// Rows are addressed by tid, and tables are looked up laterally, wherever the
// planner could else turn a join around. An outbox is analyzed while it is
// empty, mostly: then reading all of it looks as cheap as reading one row, also
// when a long transaction keeps a million dead rows in it. A row that was
// changed between the statement's snapshot and its lock is left for the next
// look.

// claimDue examines due rows in the order of their due times. The first of its key
// is claimed, a row behind it is parked out of the walk. A walk that does not come
// back may pass a row by instead, which is cheaper twice, if what is in front of it
// is due or under way: who finishes that one goes on with it.
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
const claimDue = `-- lockstep: claim
WITH free AS MATERIALIZED (
    SELECT WHERE NOT EXISTS (SELECT` + holdsInForce + `)
), page AS MATERIALIZED (
    SELECT d.ctid AS tid, d.key, d.event_seq, d.due_at, d.state, d.crashes, d.revision
      FROM outbox.delivery AS d
     WHERE d.sync = $1
       AND d.due_at < 'infinity'
       AND d.due_at <= now()
       AND (d.due_at, d.event_seq) >= ($6, $7)
       AND (d.state IN ('pending', 'retry') OR d.lease_until < now())
       AND (NOT $10 OR d.crashes > 0)
       AND EXISTS (SELECT FROM free)
     ORDER BY d.due_at, d.event_seq
     LIMIT $8
), ranked AS (
    SELECT p.*, row_number() OVER (PARTITION BY p.key ORDER BY p.event_seq) = 1 AS leads
      FROM page AS p
), placed AS MATERIALIZED ( -- beside the first of its key, where it leads the others of the page
    SELECT r.*, f.tid AS first, f.event_seq = r.event_seq AS head, f.due_at > now() AS waits, f.state = 'failed' AS failed
      FROM ranked AS r
      LEFT JOIN LATERAL (
           SELECT f.ctid AS tid, f.event_seq, f.due_at, f.state
             FROM outbox.delivery AS f
            WHERE r.leads AND f.sync = $1 AND f.key = r.key
            ORDER BY f.event_seq
            LIMIT 1) AS f ON true
), later AS MATERIALIZED (
    SELECT p.key, o.tid, o.state, k.kept AND (o.state <> 'sending' OR o.lease_until < now()) IS TRUE AS waits
      FROM placed AS p
     CROSS JOIN LATERAL (
           SELECT l.event_seq
             FROM outbox.delivery AS l
            WHERE p.revision > 1 AND l.sync = $1 AND l.key = p.key AND l.event_seq > p.event_seq
              AND l.state IN ('pending', 'retry', 'sending') AND l.revision = 1
           UNION ALL
           SELECT l.event_seq
             FROM outbox.delivery AS l
            WHERE l.sync = $1 AND l.key = p.key AND l.event_seq > p.event_seq
              AND l.state IN ('pending', 'retry', 'sending') AND l.revision > 1) AS l
     CROSS JOIN LATERAL (
           SELECT EXISTS (SELECT FROM (SELECT FROM outbox.delivery AS h WHERE h.ctid = p.tid FOR KEY SHARE SKIP LOCKED) AS h) AS kept
           OFFSET 0) AS k
      LEFT JOIN LATERAL (
           SELECT d.ctid AS tid, d.state, d.lease_until
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.key = p.key AND d.event_seq = l.event_seq
              FOR NO KEY UPDATE SKIP LOCKED) AS o ON true
     WHERE p.head
), heads AS MATERIALIZED (
    SELECT p.*
      FROM placed AS p
     WHERE p.head AND (p.crashes > 0) = $10
       AND NOT EXISTS (SELECT FROM later AS l WHERE l.key = p.key AND NOT l.waits)
     ORDER BY p.due_at, p.event_seq
), chosen AS MATERIALIZED (
    SELECT h.tid, h.due_at, h.event_seq, d.state, d.claim, d.claimed_by
      FROM heads AS h
     CROSS JOIN LATERAL (
           SELECT d.state, d.claim, d.claimed_by
             FROM outbox.delivery AS d
            WHERE d.ctid = h.tid AND (d.state IN ('pending', 'retry') OR d.lease_until < now())
              FOR UPDATE SKIP LOCKED) AS d
     LIMIT $9
), behind AS (
    SELECT p.*, NOT p.is_head AND p.state <> 'sending' AND p.tid NOT IN (SELECT l.tid FROM later AS l WHERE l.tid IS NOT NULL)
                AND (bool_or(p.waits) OVER of_key OR NOT $11 OR p.due_at > now() - interval '1 second') AS parks,
           bool_or(p.failed) OVER of_key AND s.on_failed = 'supersede' AS supersedes
      FROM (SELECT p.*, coalesce(p.head, false) AS is_head
              FROM placed AS p
             WHERE EXISTS (SELECT FROM placed AS b WHERE b.head IS NOT TRUE)) AS p
      JOIN outbox.sync AS s ON s.name = $1
    WINDOW of_key AS (PARTITION BY p.key)
), asked AS (
    SELECT b.*, bool_or(b.parks) OVER (PARTITION BY b.key) AS some_parks
      FROM behind AS b
), kept AS MATERIALIZED (
    SELECT a.key, a.tid, a.leads, a.parks, a.supersedes, bool_or(f.kept) OVER (PARTITION BY a.key) AS kept
      FROM asked AS a
      LEFT JOIN LATERAL (
           SELECT true AS kept
             FROM outbox.delivery AS o
            WHERE a.leads AND a.some_parks AND o.ctid = a.first
              FOR KEY SHARE SKIP LOCKED) AS f ON true
), parked AS (
    UPDATE outbox.delivery AS d
       SET state = 'queued', due_at = 'infinity'
      FROM (SELECT o.tid
              FROM kept AS k
             CROSS JOIN LATERAL (
                   SELECT o.ctid AS tid
                     FROM outbox.delivery AS o
                    WHERE k.kept AND k.parks AND NOT k.supersedes AND o.ctid = k.tid AND o.state IN ('pending', 'retry')
                      FOR NO KEY UPDATE SKIP LOCKED) AS o) AS b
     WHERE d.ctid = b.tid
    RETURNING 1
), parked_later AS (
    UPDATE outbox.delivery AS d
       SET state = 'queued', due_at = 'infinity'
      FROM later AS l
     WHERE l.waits AND l.state <> 'sending' AND d.ctid = l.tid
), touched AS ( -- a claim of a dead relay behind: changed, so that who does not see the row in front is refused it too
    UPDATE outbox.delivery AS d
       SET lease_until = d.lease_until
      FROM later AS l
     WHERE l.waits AND l.state = 'sending' AND d.ctid = l.tid
), meta AS MATERIALIZED (
    SELECT p.seen, k.parked, u.suspects, u.superseding,
           p.last_due, p.last_seq, l.left_due, l.left_seq, now() - interval '1 second' AS settled,
           NOT EXISTS (SELECT FROM free) AS held
      FROM (SELECT count(*) AS seen, max(due_at) AS last_due,
                   (array_agg(event_seq ORDER BY due_at DESC, event_seq DESC))[1] AS last_seq FROM page) AS p
     CROSS JOIN (SELECT count(*) AS parked FROM parked) AS k
     CROSS JOIN (SELECT (SELECT count(*) FROM placed WHERE head AND crashes > 0) AS suspects,
                        (SELECT array_agg(key) FROM kept WHERE leads AND supersedes) AS superseding) AS u
     CROSS JOIN (SELECT count(*) AS n, max(due_at) AS last_due,
                        (array_agg(event_seq ORDER BY due_at DESC, event_seq DESC))[1] AS last_seq FROM chosen) AS c
      LEFT JOIN LATERAL ( -- the first that the budget did not reach
           SELECT h.due_at AS left_due, h.event_seq AS left_seq
             FROM heads AS h
            WHERE c.n >= $9 AND (c.n = 0 OR (h.due_at, h.event_seq) > (c.last_due, c.last_seq))
            ORDER BY h.due_at, h.event_seq
            LIMIT 1) AS l ON true
), claimed AS (
    UPDATE outbox.delivery AS d
       SET state = 'sending', claim = $3, claimed_by = $4, lease_until = clock_timestamp() + $5::interval,
           crashes = d.crashes + 1,
           attempts = d.attempts + (c.state = 'sending')::int,
           total_attempts = d.total_attempts + (c.state = 'sending')::int
      FROM chosen AS c
     WHERE d.ctid = c.tid
    RETURNING d.*, d.ctid AS tid, c.state AS was, c.claim AS claim_before, c.claimed_by AS claimed_before
), taken_over AS ( -- earlier claims that ended without a word
    INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, claim, relay)
    SELECT $1, c.event_id, e.type, c.key, e.version, c.total_attempts, 'unknown', 'unknown',
           'the relay that was sending it did not come back before its lease ended', c.revision, c.claim_before, c.claimed_before
      FROM claimed AS c
      LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
     WHERE c.was = 'sending'
)
SELECT m.*, ` + claimedColumns + `
  FROM meta AS m
  LEFT JOIN claimed AS c ON true` + claimedTables

// claimedColumns are what a relay is told of a claimed delivery c.
const claimedColumns = `c.key, c.event_seq, c.event_id, c.attempts, c.total_attempts, c.charged, c.spent_ms, c.crashes, c.revision,
       c.error_class, c.body, c.body_sha256, c.mapping_version,
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
	rows, err := s.pool.Query(ctx, claimDue, r.Sync, r.Probe, token, s.relay, r.Lease,
		r.From.due, r.From.seq, r.Page, r.Budget, r.Solo, r.Pass)
	if err != nil {
		return Claims{}, s.judge(ctx, err)
	}
	c, err := scanClaims(rows, r.Sync, token, r.Page)
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
		if _, err := s.pool.Exec(ctx, supersedeFailed, r.Sync, c.superseding, s.relay); err != nil {
			return c.Claims, s.judge(ctx, err)
		}
		more, err := s.ClaimNext(ctx, ClaimRequest{
			Sync: r.Sync, From: End(), Lease: r.Lease, Budget: r.Budget - len(c.Deliveries), Keys: c.superseding,
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

// supersedeFailed closes failed deliveries of a sync that says so, when a newer
// event of their key exists. One that an operator is just requeueing is left.
const supersedeFailed = `-- lockstep: supersede
WITH gone AS (
    DELETE FROM outbox.delivery AS d
     USING (SELECT f.ctid AS tid
              FROM outbox.sync AS s
              JOIN outbox.delivery AS f ON f.sync = s.name
             WHERE s.name = $1 AND s.on_failed = 'supersede'
               AND f.key = ANY ($2::text[]) AND f.state = 'failed'
               AND EXISTS (SELECT FROM outbox.delivery AS n
                            WHERE n.sync = $1 AND n.key = f.key AND n.event_seq > f.event_seq)
               FOR UPDATE OF f SKIP LOCKED) AS old
     WHERE d.ctid = old.tid
    RETURNING d.*
)
INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, relay, reason)
SELECT g.sync, g.event_id, e.type, g.key, e.version, g.total_attempts, 'superseded', g.error_class, g.error, g.revision, $3,
       'a newer event of its key exists'
  FROM gone AS g
  LEFT JOIN outbox.event AS e ON e.id = g.event_id`

// recheckParked wakes parked rows that have nothing in front. There are none
// unless an operator's transaction held the row while the one before it was
// discarded, or looked through an old snapshot, or a relay died before it could
// wake the row.
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
              AND (d.state = 'queued'
                   AND NOT EXISTS (SELECT FROM outbox.delivery AS f
                                    WHERE f.sync = $1 AND f.key = p.key AND f.event_seq < p.event_seq
                                      AND NOT (f.state = 'failed' AND p.supersede)
                                   OFFSET 0)
                   OR p.ahead AND d.state IN ('pending', 'retry') AND d.due_at > clock_timestamp())
              FOR NO KEY UPDATE SKIP LOCKED) AS d
     WHERE p.state = 'queued' OR p.ahead
), woken AS (
    UPDATE outbox.delivery AS d
       SET state = CASE d.state WHEN 'queued' THEN 'pending' ELSE d.state END,
           due_at = clock_timestamp(), created_at = least(d.created_at, clock_timestamp())
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
// end was reached.
func (s *Store) RecheckParked(ctx context.Context, sync string, from ParkedCursor, page int) (woken int, next ParkedCursor, err error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	var key *string
	var place *int64
	err = s.pool.QueryRow(ctx, recheckParked, sync, from.key, from.place, page).Scan(&woken, &key, &place)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return 0, from, s.judge(ctx, err)
	}
	if key == nil {
		return woken, ParkedCursor{}, nil
	}
	return woken, ParkedCursor{key: *key, place: *place}, nil
}

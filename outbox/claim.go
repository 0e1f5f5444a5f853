package outbox

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A lane is the queue of one key in one sync (outbox.lane). Who has its claim may
// send its first delivery. A relay claims lanes in two ways: those that are due,
// and those it opens for deliveries whose key has none yet. Another statement reads
// the first deliveries: it must see what others recorded before the claim was had.

// ClaimRequest asks for lanes of one sync.
type ClaimRequest struct {
	Sync  string
	Room  int           // most lanes to claim
	Lanes int           // of these, the most that are there already
	Fresh int           // of the others, how many are for the latest deliveries before the oldest have the rest
	Lease time.Duration // how long the claims hold
	Probe bool          // claim in spite of an auth or breaker hold
	Keys  []string      // claim lanes of these keys only, if they are due; nil means all

	// Suspects has one lane claimed during whose claims two or more relays died,
	// and no other. Else such lanes are left.
	Suspects bool

	// Wanted reports whether the sync sends an event, which its filter decides:
	// only such an event supersedes a failed one. Nil means all. It is called by
	// one goroutine and must not panic.
	Wanted func(Event) bool
}

// Claims is the answer to a [ClaimRequest].
type Claims struct {
	Deliveries []*Delivery // first deliveries of claimed lanes, to be sent
	Idle       []Result    // lanes that have none to be sent now, to be recorded as they are
	Hold       *Hold       // strongest hold of the whole sync in force; then nothing was claimed
	Held       []string    // scopes on hold
	Due        bool        // more lanes are due than were claimed
	Unopened   bool        // there are deliveries that were not looked at
	Suspects   bool        // lanes are due during whose claims two or more relays died
}

// Arrivals is what one relay knows of a sync's new deliveries: a snapshot of the
// database, up to which it has looked at all of them. Each delivery has the number of
// the transaction that made it ready to be sent (delivery.changed_in). What became
// visible since a snapshot are the transactions that began after it, and those
// that it lists as running and that have ended since. Both are found by an index,
// in whatever order they committed, and nobody waits for anybody.
//
// The zero value is the beginning: all open deliveries. It is not safe for
// concurrent use.
type Arrivals struct {
	since  string    // pg_snapshot: what it shows was looked at, but for what lies behind the place
	change string    // the place: a transaction
	seq    int64     // and the last delivery of it that was looked at
	behind bool      // there was more behind the place than could be looked at
	page   int       // deliveries to read there, where those before brought few keys without a lane
	resets int64     // of the store: after a failover the numbers may mean something else
	began  time.Time // when everything was looked at from the beginning last

	// Keys to look at again, with the claim that somebody had on the lane when a
	// delivery was found. Who has it may close the lane without having seen that
	// delivery; then it is opened once more. When the claim is another one, or
	// none, whoever closes the lane has seen it.
	unsure map[string]unsure
	looked time.Time // when those were looked at last

	// Lanes are looked at from the time at which the first of them became due, and
	// now and then from the beginning.
	floor  string
	scopes []string
	lowest time.Time // when that was last
	took   time.Duration
}

// unsure is what is known of a key that is looked at again: the claim on its lane, and
// the earliest delivery that was found.
type unsure struct {
	claim pgtype.UUID
	place int64
}

const (
	floorEvery  = time.Second           // least pause between looks at lanes from the beginning
	floorShare  = 20                    // and so many times as long as such a look takes
	floorBehind = 2 * time.Second       // how long a transaction may take that makes a lane due
	unsureEvery = 50 * time.Millisecond // pause between looks at keys whose lane was claimed
	arrivalPage = 1000                  // most deliveries that one look reads of each kind
	againEvery  = 10 * time.Minute      // pause between looks at everything, which find nothing
	leastPage   = 25                    // least that it reads once a look has brought too few
)

// holdsInForce are those of a sync that keep a claim from being made: an
// operator's and a backfill's always do, a throttle ends by time, auth and breaker
// let a probe through.
const holdsInForce = `
      FROM outbox.hold
     WHERE sync = $1
       AND (kind NOT IN ('throttle', 'window') OR until > clock_timestamp())
       AND NOT ($2 AND kind IN ('auth', 'breaker'))`

// strongestHold tells about the one that counts most.
const strongestHold = `-- lockstep: hold
    SELECT kind, until, reason, coalesce(least(until, untried_at) <= clock_timestamp(), false)` + holdsInForce + `
       AND scope = ''
     ORDER BY array_position(ARRAY['operator', 'backfill', 'auth', 'breaker', 'throttle', 'window'], kind::text)
     LIMIT 1`

// lanesSince are the parts of a claim for lanes that became due at a time or later,
// in scopes that are known. Under a transaction that is open for long, the index
// keeps every lane that was closed since, and each look from the beginning would
// go over all of them. Null as scopes has them listed, one after the other by
// the index.
func lanesSince(floor, scopes string) (open, due string) {
	open = `
RECURSIVE listed (name) AS (
    (SELECT l.scope FROM outbox.lane AS l WHERE ` + scopes + ` IS NULL AND l.sync = $1 AND l.due_at < 'infinity' ORDER BY l.scope LIMIT 1)
    UNION ALL
    SELECT (SELECT l.scope FROM outbox.lane AS l WHERE l.sync = $1 AND l.due_at < 'infinity' AND l.scope > s.name ORDER BY l.scope LIMIT 1)
      FROM listed AS s
     WHERE s.name IS NOT NULL
), scope AS MATERIALIZED (
    SELECT name FROM listed WHERE name IS NOT NULL
    UNION ALL
    SELECT * FROM unnest(` + scopes + `)
), held AS MATERIALIZED (
    SELECT scope` + holdsInForce + `
), open AS MATERIALIZED (
    SELECT s.name AS scope
      FROM scope AS s
     WHERE s.name NOT IN (SELECT scope FROM held)
       AND '' NOT IN (SELECT scope FROM held)
)`
	due = `
             SELECT l.ctid AS tid, l.due_at
               FROM outbox.lane AS l
              WHERE l.sync = $1 AND l.scope = o.scope AND l.due_at >= ` + floor + ` AND l.due_at <= now() AND l.due_at < 'infinity'
                AND l.crashes + (l.claim IS NOT NULL)::int < 2`
	return open, due
}

var (
	openScopes, dueLanes       = lanesSince("$17::text::timestamptz", "$18::text[]")
	openScopesAll, dueLanesAll = lanesSince("'-infinity'", "NULL::text[]")
)

// Those that somebody has locked are left for the next look.
var claimOrdinary = `, picked AS MATERIALIZED (
    SELECT l.tid
      FROM open AS o
     CROSS JOIN LATERAL (` + dueLanes + `
              ORDER BY l.due_at
              LIMIT $6::bigint
                FOR UPDATE SKIP LOCKED) AS l
     ORDER BY l.due_at
     LIMIT $6::bigint
)`

const claimNamed = `, picked AS MATERIALIZED (
    SELECT l.tid
      FROM unnest($7::text[]) WITH ORDINALITY AS k (key, n)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS tid
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key AND l.scope IN (SELECT scope FROM open) AND l.due_at <= now()
              AND l.crashes + (l.claim IS NOT NULL)::int < 2
              FOR UPDATE SKIP LOCKED) AS l
     ORDER BY k.n
     LIMIT $6::bigint
), opened AS (
    INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
    SELECT $1, k.key, now() + $5::interval, $3, $4
      FROM unnest($7::text[]) AS k (key)
     WHERE (SELECT count(*) FROM picked) < $6::bigint
       AND '' NOT IN (SELECT scope FROM held)
       AND NOT EXISTS (SELECT FROM outbox.lane AS l WHERE l.sync = $1 AND l.key = k.key OFFSET 0)
       AND EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = k.key AND d.due_at <= now() OFFSET 0)
     LIMIT 1
    ON CONFLICT DO NOTHING
    RETURNING key, claim
)`

const claimSuspect = `, picked AS MATERIALIZED (
    SELECT l.ctid AS tid
      FROM outbox.lane AS l
     WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2
       AND l.scope IN (SELECT scope FROM open)
     ORDER BY l.due_at
     LIMIT 1
       FOR UPDATE SKIP LOCKED
), opened AS (
    SELECT NULL::text AS key, NULL::uuid AS claim WHERE false
)`

// claimEnd gives them the claim. While it holds, due_at is the end of the lease, so
// an ended lease is simply due.
const claimEnd = `, claimed AS (
    UPDATE outbox.lane AS l
       SET due_at = now() + $5::interval, claim = $3, claimed_by = $4,
           lost_claim = coalesce(l.claim, l.lost_claim), lost_by = CASE WHEN l.claim IS NOT NULL THEN l.claimed_by ELSE l.lost_by END,
           crashes = l.crashes + (l.claim IS NOT NULL)::int
      FROM picked AS p
     WHERE l.ctid = p.tid
    RETURNING l.key
)`

// whatIsDue is what a relay is told besides the deliveries.
func whatIsDue(dueLanes string) string {
	return `
SELECT ARRAY(SELECT key FROM claimed UNION ALL SELECT key FROM opened WHERE claim IS NOT NULL) AS keys,
       EXISTS (SELECT FROM open AS o
                CROSS JOIN LATERAL (` + dueLanes + `
                       ORDER BY l.due_at
                      OFFSET (SELECT count(*) FROM picked)
                       LIMIT 1) AS l) AS due,
       EXISTS (SELECT FROM outbox.lane AS l
                WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2) AS suspects,
       EXISTS (SELECT FROM held WHERE scope = '') AS held,
       (SELECT array_agg(DISTINCT scope) FROM held WHERE scope <> '') AS scopes`
}

// openLanes looks at deliveries that have become ready, and opens lanes for keys that
// have none. As far as there is room they are opened claimed. A delivery that waits
// for a backfill is none of them: it becomes ready when that is complete.
//
// First come those behind the place ($9, $10), the oldest first; then, where there
// are more of them than can be looked at, a share of the latest ($7); then those of
// transactions that ran at the time of the snapshot ($8) and have ended since; then
// keys of which the relay was not sure ($12, $13). What was not opened for lack of room
// stays behind the place.
//
// A lane that is there, and waits for a later time or because its first delivery has
// failed, becomes due when a delivery came in front of that one, or when one came that may
// supersede it. A lane that is claimed is looked at again, see
// [Arrivals].
var openLanes = `, looked AS MATERIALIZED (
    SELECT 1 AS part, row_number() OVER (ORDER BY d.changed_in, d.event_seq) AS n, d.*
      FROM (SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid AS claim
              FROM outbox.delivery AS d
             WHERE d.sync = $1 AND (d.changed_in, d.event_seq) > ($9::text::xid8, $10)
             ORDER BY d.changed_in, d.event_seq
             LIMIT CASE WHEN '' IN (SELECT scope FROM held) THEN 1 ELSE $11::bigint END) AS d
    UNION ALL
    SELECT 2, row_number() OVER (ORDER BY d.changed_in DESC, d.event_seq DESC), d.*
      FROM (SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid
              FROM outbox.delivery AS d
             WHERE d.sync = $1 AND d.changed_in >= $9::text::xid8
             ORDER BY d.changed_in DESC, d.event_seq DESC
             LIMIT CASE WHEN $7::bigint < 0 THEN 0 ELSE least(greatest(4 * $7::bigint, 200), $15::bigint) END) AS d
    UNION ALL
    SELECT 3, row_number() OVER (PARTITION BY x.xid), d.*
      FROM pg_snapshot_xip($8::text::pg_snapshot) AS x (xid)
     CROSS JOIN LATERAL (
           SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.changed_in = x.xid
            ORDER BY d.event_seq
            LIMIT $15::bigint) AS d
     WHERE pg_visible_in_snapshot(x.xid, pg_current_snapshot())
    UNION ALL
    SELECT 4, 0, u.key, u.place, NULL, now(), u.claim
      FROM unnest($12::text[], $13::uuid[], $16::bigint[]) AS u (key, claim, place)
), key AS MATERIALIZED ( -- each once, with what stands about it
    SELECT k.*, l.tid, l.claim AS has, l.due_at AS lane_due, l.judged
      FROM (SELECT k.key, max(k.part) AS part, min(k.event_seq) AS place, max(k.claim::text)::uuid AS claim,
                   min(k.n) FILTER (WHERE k.part = 1) AS oldest, min(k.n) FILTER (WHERE k.part = 2) AS latest -- its first place among these
              FROM looked AS k
             WHERE k.due_at < 'infinity'
             GROUP BY k.key) AS k
      LEFT JOIN LATERAL (
           SELECT l.ctid AS tid, l.claim, l.due_at, l.judged
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key
            OFFSET 0) AS l ON true
), missing AS MATERIALIZED (
    SELECT k.key, k.part, k.oldest, row_number() OVER (PARTITION BY least(k.part, 3) ORDER BY CASE k.part WHEN 1 THEN k.oldest WHEN 2 THEN k.latest END) AS rank
      FROM key AS k
     WHERE k.tid IS NULL
       AND (k.part < 4 OR EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = k.key AND d.due_at < 'infinity' OFFSET 0))
), room AS MATERIALIZED ( -- what transactions left and the latest have their share before the oldest
    SELECT c.n, least(c.late, c.n) AS late, greatest(0, least(c.latest, c.n - c.late, greatest($7::bigint, c.n - c.late - c.old))) AS latest
      FROM (SELECT CASE WHEN EXISTS (SELECT FROM held WHERE scope = '') THEN 0 ELSE $14::bigint - (SELECT count(*) FROM picked) END AS n,
                   count(*) FILTER (WHERE part > 2) AS late, count(*) FILTER (WHERE part = 2) AS latest, count(*) FILTER (WHERE part = 1) AS old
              FROM missing) AS c
), chosen AS MATERIALIZED (
    SELECT m.key, m.part, m.oldest, m.rank <= CASE m.part WHEN 1 THEN r.n - r.late - r.latest WHEN 2 THEN r.latest ELSE r.n END AS claims
      FROM missing AS m
     CROSS JOIN room AS r
), opened AS (
    INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
    SELECT $1, c.key, CASE WHEN c.claims THEN now() + $5::interval ELSE now() END, CASE WHEN c.claims THEN $3::uuid END, CASE WHEN c.claims THEN $4 END
      FROM chosen AS c
     WHERE c.claims OR c.part > 2
     ORDER BY c.key
    ON CONFLICT DO NOTHING
    RETURNING key, claim
), early AS MATERIALIZED ( -- lanes that wait, and need not
    SELECT k.key, k.place, l.tid
      FROM key AS k
     CROSS JOIN LATERAL (
           SELECT f.state, f.due_at
             FROM outbox.delivery AS f
            WHERE f.sync = $1 AND f.key = k.key
            ORDER BY f.event_seq
            LIMIT 1) AS f
      LEFT JOIN LATERAL (
           SELECT l.ctid AS tid
             FROM outbox.lane AS l
            WHERE l.ctid = k.tid AND l.claim IS NULL AND l.due_at > now() -- those that are due may just be claimed above
              FOR UPDATE SKIP LOCKED) AS l ON true
     WHERE k.has IS NULL AND k.lane_due > now()
       AND (k.judged >= k.place
            OR f.state <> 'failed' AND f.due_at < k.lane_due
            OR f.state = 'failed' AND (SELECT s.on_failed = 'supersede' FROM outbox.sync AS s WHERE s.name = $1)
               AND EXISTS (SELECT FROM outbox.delivery AS d
                            WHERE d.sync = $1 AND d.key = k.key AND d.event_seq > k.judged AND d.state <> 'failed' AND d.due_at < 'infinity'))
), woken AS (
    UPDATE outbox.lane AS l
       SET due_at = now(), judged = least(l.judged, e.place - 1)
      FROM early AS e
     WHERE l.ctid = e.tid
    RETURNING l.key
), cut AS MATERIALIZED ( -- the first of the oldest for which there was no room
    SELECT min(c.oldest) AS n FROM chosen AS c WHERE c.part < 3 AND NOT c.claims
), unsure AS (
    SELECT k.key, k.has AS claim, k.place
      FROM key AS k
     CROSS JOIN cut
     WHERE k.has IS NOT NULL AND (k.part = 3 OR k.has = k.claim OR k.oldest < coalesce(cut.n, k.oldest + 1)) -- it is looked at now for the last time
        OR k.judged >= k.place AND (k.has IS NOT NULL OR k.lane_due <= now())
    UNION ALL
    SELECT e.key, NULL, e.place FROM early AS e WHERE e.key NOT IN (SELECT key FROM woken)
)` + whatIsDue(dueLanes) + `,
       pg_current_snapshot()::text AS since,
       (SELECT k.changed_in::text FROM looked AS k WHERE k.part = 1 AND k.n < coalesce(cut.n, k.n + 1) ORDER BY k.n DESC LIMIT 1) AS change,
       (SELECT k.event_seq FROM looked AS k WHERE k.part = 1 AND k.n < coalesce(cut.n, k.n + 1) ORDER BY k.n DESC LIMIT 1) AS seq,
       cut.n IS NOT NULL OR (SELECT count(*) FROM looked AS k WHERE k.part = 1) >= CASE WHEN '' IN (SELECT scope FROM held) THEN 1 ELSE $11::bigint END AS more,
       cut.n IS NULL AS starved,
       (SELECT k.changed_in::text FROM looked AS k WHERE k.part = 3 AND k.n >= $15::bigint ORDER BY k.changed_in LIMIT 1) AS more_late,
       u.keys, u.claims, u.places,
       least(now() - $19::interval, (SELECT min(l.due_at)
                                       FROM scope AS s
                                      CROSS JOIN LATERAL (
                                            SELECT l.due_at FROM outbox.lane AS l
                                             WHERE l.sync = $1 AND l.scope = s.name AND l.due_at >= $17::text::timestamptz AND l.due_at < 'infinity'
                                             ORDER BY l.due_at
                                             LIMIT 1) AS l))::text AS floor,
       ARRAY(SELECT name FROM scope UNION SELECT '') AS known
  FROM cut
 CROSS JOIN (SELECT array_agg(key) AS keys, array_agg(claim) AS claims, array_agg(place) AS places FROM unsure) AS u`

var (
	claimLanes    = `-- lockstep: claim lanes` + "\nWITH " + openScopes + claimOrdinary + claimEnd + openLanes
	claimKeys     = `-- lockstep: claim lanes of keys` + "\nWITH " + openScopesAll + claimNamed + claimEnd + whatIsDue(dueLanesAll)
	claimSuspects = `-- lockstep: claim a suspect` + "\nWITH " + openScopesAll + claimSuspect + claimEnd + whatIsDue(dueLanesAll)
)

// unlocked leaves out rows that somebody has locked, such as one who is discarding
// them. Hardly ever is there a reason to look: a row that was never locked says so
// itself. Who discards locks the row first, then waits for the transactions that may have
// read it before, and then looks whether it was claimed.
const unlocked = `(d.xmax = '0' OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.ctid FOR UPDATE SKIP LOCKED))`

// firstDeliveries reads what is to be sent of the lanes that were just claimed. Of a
// claim that ended without a word it is not known whether its delivery was sent.
const firstDeliveries = `-- lockstep: first deliveries` + `
WITH mine AS MATERIALIZED (
    SELECT l.*, f.tid, f.alone, f.state,
           CASE WHEN f.state <> 'failed' AND f.due_at <= clock_timestamp() THEN f.tid END AS sends -- nothing else is locked below
      FROM unnest($3::text[]) AS k (key)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS lane, l.key, l.crashes, l.scope, l.lost_claim, l.lost_by
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key AND l.claim = $2
            OFFSET 0) AS l
      LEFT JOIN LATERAL (
           SELECT (array_agg(d.ctid))[1] AS tid, (array_agg(d.state))[1] AS state, (array_agg(d.due_at))[1] AS due_at, count(*) = 1 AS alone
             FROM (SELECT d.ctid, d.state, d.due_at FROM outbox.delivery AS d
                    WHERE d.sync = $1 AND d.key = l.key
                    ORDER BY d.event_seq
                    LIMIT 2) AS d) AS f ON true
), first AS MATERIALIZED (
    SELECT m.lane, m.tid AS was, m.alone, m.key AS of_key, m.crashes, m.scope, m.lost_claim, m.lost_by, m.state AS stands, d.*
      FROM mine AS m
      LEFT JOIN LATERAL (
           SELECT d.*
             FROM outbox.delivery AS d
            WHERE d.ctid = m.sends AND ` + unlocked + `) AS d ON true
), counted AS (
    UPDATE outbox.delivery AS d
       SET attempts = d.attempts + 1, total_attempts = d.total_attempts + 1
      FROM first AS f
     WHERE f.lost_claim IS NOT NULL AND d.sync = f.sync AND d.key = f.key AND d.event_seq = f.event_seq
    RETURNING d.*, f.lane, f.lost_claim, f.lost_by, d.ctid AS tid
), logged AS (
    INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, claim, relay)
    SELECT $1, c.event_id, e.type, c.key, e.version, c.total_attempts, 'unknown', 'unknown',
           'the relay that was sending it did not come back before its lease ended', c.revision, c.event_seq, c.lost_claim, c.lost_by
      FROM counted AS c
      LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
)
SELECT c.of_key, c.stands, ` + claimedColumns + `
  FROM (SELECT f.*, coalesce(k.tid, f.was) AS tid FROM first AS f LEFT JOIN counted AS k ON k.lane = f.lane) AS c` + claimedTables

// claimedColumns are what a relay is told of a delivery c that it is to send.
const claimedColumns = `c.lane, c.tid, c.alone, c.crashes, c.scope, c.event_seq, c.event_id, c.attempts + (c.lost_claim IS NOT NULL)::int, c.total_attempts + (c.lost_claim IS NOT NULL)::int,
       c.charged, c.spent_ms, c.revision, c.error_class, c.body, c.body_sha256, c.mapping_version,
       e.seq, e.type, e.version, e.payload, e.headers, e.occurred_at, r.external_id, r.etag, r.version, r.event_seq`

const claimedTables = `
  LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
  LEFT JOIN LATERAL (SELECT * FROM outbox.external_ref WHERE sync = c.sync AND key = c.key OFFSET 0) AS r ON true
 ORDER BY c.event_seq`

// Claim takes up to Room lanes and returns their first deliveries. The relay that
// holds them sends these before the lease ends, or releases them. Lanes for
// new deliveries are opened if a is given. Together with an error there may be
// deliveries, and lanes that are to be given back.
func (s *Store) Claim(ctx context.Context, r ClaimRequest, a *Arrivals) (Claims, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	if a != nil && r.Keys == nil && !r.Suspects {
		if err := s.prepare(ctx, r.Sync, a); err != nil {
			return Claims{}, s.judge(ctx, err)
		}
	}
	token := uuid.New()
	c, held, empty, err := s.claimLanes(ctx, s.pool, r, a, token)
	var superseding []string
	for _, e := range empty {
		if e.failed {
			superseding = append(superseding, e.key)
			continue
		}
		c.Idle = append(c.Idle, idle(r.Sync, e.key, token))
	}
	if len(superseding) > 0 {
		more, left, failed := s.supersede(ctx, r.Sync, superseding, token, r.Wanted)
		c.Deliveries = append(c.Deliveries, more...)
		for _, key := range left {
			c.Idle = append(c.Idle, idle(r.Sync, key, token))
		}
		err = errors.Join(err, failed)
	}
	if held && err == nil {
		c.Hold, err = s.strongestHold(ctx, r.Sync, r.Probe)
	}
	return c, s.judge(ctx, err)
}

// prepare has a look begin anew where what is known is of another server or of none.
func (s *Store) prepare(ctx context.Context, sync string, a *Arrivals) error {
	if resets := s.resets.Load(); a.resets != resets {
		*a = Arrivals{resets: resets}
	}
	if a.change == "" {
		if err := s.repairChanges(ctx, sync); err != nil {
			return err
		}
		a.change, a.behind, a.began = "0", true, time.Now()
	}
	return nil
}

// claimLanes claims lanes and reads their first deliveries. The claim is committed
// before: while payloads are on their way to a relay that is stopped, other relays
// wait for nothing of it.
func (s *Store) claimLanes(ctx context.Context, on querier, r ClaimRequest, a *Arrivals, token uuid.UUID) (c Claims, held bool, empty []emptyLane, err error) {
	var keys []string
	answer := []any{&keys, &c.Due, &c.Suspects, &held, &c.Held}
	switch {
	case r.Suspects:
		err = on.QueryRow(ctx, claimSuspects, r.Sync, r.Probe, token, s.relay, r.Lease).Scan(answer...)
	case r.Keys != nil:
		err = on.QueryRow(ctx, claimKeys, r.Sync, r.Probe, token, s.relay, r.Lease, r.Room, r.Keys).Scan(answer...)
	default:
		err = a.look(ctx, on, answer, r, token, s.relay)
		c.Unopened = a.behind
	}
	if err != nil || len(keys) == 0 {
		return c, held, nil, err
	}
	rows, err := on.Query(ctx, firstDeliveries, r.Sync, token, keys)
	if err == nil {
		c.Deliveries, empty, err = scanFirst(rows, r.Sync, token)
	}
	if err != nil { // they are given back
		c.Deliveries, empty = nil, nil
		for _, key := range keys {
			empty = append(empty, emptyLane{key: key})
		}
	}
	return c, held, empty, err
}

// emptyLane is a claimed lane that has nothing to be sent now.
type emptyLane struct {
	key    string
	failed bool // its first delivery has failed
}

// idle gives a claimed lane back.
func idle(sync, key string, token uuid.UUID) Result {
	return Result{Delivery: &Delivery{Sync: sync, Key: key, token: pgtype.UUID{Bytes: token, Valid: true}, Claim: token.String()}}
}

// look claims lanes and opens new ones. Nothing of it is known if it fails.
func (a *Arrivals) look(ctx context.Context, on querier, answer []any, r ClaimRequest, token uuid.UUID, relay string) error {
	var keys []string
	var claims []pgtype.UUID
	var places []int64
	if time.Since(a.looked) >= unsureEvery && len(a.unsure) > 0 {
		for key, u := range a.unsure {
			if len(keys) == arrivalPage {
				break
			}
			keys, claims, places = append(keys, key), append(claims, u.claim), append(places, u.place)
		}
	}
	var since string
	var change, moreLate pgtype.Text
	var seq pgtype.Int8
	var more, starved bool
	var unsureKeys []string
	var unsureClaims []pgtype.UUID
	var unsurePlaces []int64
	fresh := -1
	if a.behind {
		fresh = r.Fresh
	}
	page := max(a.page, min(r.Room, arrivalPage), 1)
	began, whole := time.Now(), false
	floor, scopes, known := a.floor, a.scopes, []string(nil)
	if whole = floor == "" || began.Sub(a.lowest) > max(floorEvery, floorShare*a.took); whole {
		floor, scopes = "-infinity", nil
	}
	err := on.QueryRow(ctx, claimLanes, r.Sync, r.Probe, token, relay, r.Lease, min(r.Lanes, r.Room), fresh,
		nullable(a.since), a.change, a.seq, page, keys, claims, r.Room, arrivalPage, places, floor, scopes, floorBehind).
		Scan(append(answer, &since, &change, &seq, &more, &starved, &moreLate, &unsureKeys, &unsureClaims, &unsurePlaces, &floor, &known)...)
	if err != nil {
		return err
	}
	if whole {
		a.floor, a.scopes, a.lowest, a.took = floor, known, began, time.Since(began)
	}
	if len(keys) > 0 {
		a.looked = time.Now()
		for _, key := range keys {
			delete(a.unsure, key)
		}
	}
	if a.unsure == nil {
		a.unsure = map[string]unsure{}
	}
	for i, key := range unsureKeys {
		a.unsure[key] = unsure{unsureClaims[i], unsurePlaces[i]}
	}
	if a.page = 0; more && starved && r.Room > 0 {
		a.page = min(4*max(page, leastPage), arrivalPage)
	}
	a.since, a.behind = since, more
	switch {
	case !more && time.Since(a.began) > againEvery: // should anything have been overlooked
		a.behind, a.change, a.seq, a.began = true, "0", 0, time.Now()
	case !more: // what is visible was looked at
		a.change, a.seq = strings.Split(since, ":")[1], -1
	case change.Valid:
		a.change, a.seq = change.String, seq.Int64
	}
	if moreLate.Valid && before(moreLate.String, a.change) { // a large transaction ended late: back to it
		a.behind, a.change, a.seq = true, moreLate.String, -1
	}
	return nil
}

// before compares the numbers of transactions.
func before(a, b string) bool { return len(a) < len(b) || len(a) == len(b) && a < b }

// repairChanges gives deliveries whose number is none of this cluster's, since they were
// restored from another one's backup, the number of a transaction of now.
func (s *Store) repairChanges(ctx context.Context, sync string) error {
	const statement = `-- lockstep: repair changes
UPDATE outbox.delivery AS d
   SET changed_in = pg_current_xact_id()
  FROM (SELECT o.ctid AS tid
          FROM outbox.delivery AS o
         WHERE o.sync = $1 AND o.changed_in >= pg_snapshot_xmax(pg_current_snapshot())
         LIMIT 10000
           FOR NO KEY UPDATE SKIP LOCKED) AS o
 WHERE d.ctid = o.tid`
	for {
		tag, err := s.pool.Exec(ctx, statement, sync)
		if err != nil || tag.RowsAffected() < 10000 {
			return err
		}
	}
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

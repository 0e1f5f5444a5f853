package outbox

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A lane is the queue of one key in one sync (outbox.lane). Only the relay that
// has its claim may send its first delivery. A relay claims lanes in two ways: those that are due,
// and those it opens for deliveries whose key has none yet. Another statement reads
// the first deliveries: it must see what others recorded before the claim was had.

// ClaimRequest asks for lanes of one sync.
type ClaimRequest struct {
	Sync   string
	Lease  time.Duration    // how long the claims hold
	Wanted func(Event) bool // see OneRequest

	Room  int      // most lanes to claim
	Lanes int      // of these, the most that are there already; the rest is for keys without a lane
	Fresh int      // of those keys, so many are taken from the latest deliveries first, the others from the oldest
	Busy  []string // scopes whose lanes are left for now
}

// OneRequest asks for one lane of a sync.
type OneRequest struct {
	Sync  string
	Lease time.Duration // how long the claim holds

	// Wanted reports whether the sync sends an event, which its filter decides:
	// only such an event supersedes a failed one. Nil means all. It is called by
	// one goroutine and must not panic.
	Wanted func(Event) bool

	Key     string // of the lane, which is opened if there is none; empty for any, the one that has been due longest first
	Suspect bool   // of lanes during whose claims two or more relays died, which else are left
	Scope   string // of such lanes those of this scope only; empty is any
	Probe   bool   // claim in spite of an auth or breaker hold
}

// Claims is the answer to a [ClaimRequest] or a [OneRequest].
type Claims struct {
	Deliveries []*Delivery // first deliveries of claimed lanes, to be sent
	Idle       []Result    // lanes that have none to be sent now, to be recorded as they are
	Hold       *Hold       // strongest hold of the whole sync in force; then nothing was claimed
	Held       []string    // scopes on hold
	Due        bool        // more lanes are due than were claimed
	Unopened   bool        // there are deliveries that were not looked at, or whose keys found no room
	Suspects   bool        // lanes are due during whose claims two or more relays died
}

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

// dueLanes are those of a scope s that became due at $8 or later. Lanes that were closed
// stay in the index for as long as an old transaction is open; $8 passes over them. See
// [Arrivals].
const dueLanes = `
             SELECT l.ctid AS tid, l.due_at
               FROM outbox.lane AS l
              WHERE l.sync = $1 AND l.scope = s.name AND l.due_at >= $8::text::timestamptz AND l.due_at <= now() AND l.due_at < 'infinity'
                AND l.crashes + (l.claim IS NOT NULL)::int < 2
              ORDER BY l.due_at`

// scopesToClaim are those of the scopes $7 that are not on hold.
const scopesToClaim = `held AS MATERIALIZED (
    SELECT scope` + holdsInForce + `
), scope AS MATERIALIZED (
    SELECT s.name
      FROM unnest($7::text[]) AS s (name)
     WHERE s.name NOT IN (SELECT scope FROM held)
       AND '' NOT IN (SELECT scope FROM held)
)`

// claimLanes claims lanes that are due, those that have been due longest first: $6 at
// most, and as many as there is room for ($9) beside those that openLanes has opened in
// this transaction. Lanes that somebody has locked are left for the next look.
const claimLanes = `-- lockstep: claim lanes` + `
WITH ` + scopesToClaim + `, room AS MATERIALIZED (
    SELECT least($6::bigint, $9::bigint - current_setting('lockstep.opened')::bigint) AS n
), picked AS MATERIALIZED ( -- twice as many are looked at, since others may have some locked; only those that are taken are locked
    SELECT l.ctid AS tid
      FROM (SELECT l.tid
              FROM scope AS s
             CROSS JOIN LATERAL (` + dueLanes + `
                      LIMIT (SELECT 2 * n FROM room)) AS l
             ORDER BY l.due_at
             LIMIT (SELECT 2 * n FROM room)) AS o
      JOIN outbox.lane AS l ON l.ctid = o.tid
     WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes + (l.claim IS NOT NULL)::int < 2
     ORDER BY l.due_at
     LIMIT (SELECT n FROM room)
       FOR UPDATE OF l SKIP LOCKED
)` + claimPicked + claimAnswer + `,
       EXISTS (SELECT FROM scope AS s
                CROSS JOIN LATERAL (` + dueLanes + `
                      OFFSET (SELECT count(*) FROM picked)
                       LIMIT 1) AS l) AS due`

// claimKey claims the lane of a key if it is due; where there is none, it opens one.
const claimKey = `-- lockstep: claim the lane of a key` + `
WITH held AS MATERIALIZED (
    SELECT scope` + holdsInForce + `
), picked AS MATERIALIZED (
    SELECT l.ctid AS tid
      FROM outbox.lane AS l
     WHERE l.sync = $1 AND l.key = $6 AND l.due_at <= now() AND l.crashes + (l.claim IS NOT NULL)::int < 2
       AND l.scope NOT IN (SELECT scope FROM held) AND '' NOT IN (SELECT scope FROM held)
       FOR UPDATE SKIP LOCKED
), opened AS (
    INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
    SELECT $1, $6, now() + $5::interval, $3, $4
     WHERE '' NOT IN (SELECT scope FROM held)
       AND NOT EXISTS (SELECT FROM outbox.lane AS l WHERE l.sync = $1 AND l.key = $6)
       AND EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = $6 AND d.due_at <= now())
    ON CONFLICT DO NOTHING
    RETURNING key
)` + claimPicked + `
SELECT ARRAY(SELECT key FROM claimed UNION ALL SELECT key FROM opened) AS keys,` + claimAnswerRest

// claimSuspect claims the suspect that has been due longest.
const claimSuspect = `-- lockstep: claim a suspect` + `
WITH held AS MATERIALIZED (
    SELECT scope` + holdsInForce + `
), picked AS MATERIALIZED (
    SELECT l.ctid AS tid
      FROM outbox.lane AS l
     WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2
       AND l.scope NOT IN (SELECT scope FROM held) AND '' NOT IN (SELECT scope FROM held)
       AND ($6 = '' OR l.scope = $6)
     ORDER BY l.due_at
     LIMIT 1
       FOR UPDATE SKIP LOCKED
)` + claimPicked + claimAnswer

// claimPicked gives them the claim. While it holds, due_at is the end of the lease, so
// an ended lease is simply due.
const claimPicked = `, claimed AS (
    UPDATE outbox.lane AS l
       SET due_at = now() + $5::interval, claim = $3, claimed_by = $4,
           lost_claim = coalesce(l.lost_claim, l.claim), lost_by = CASE WHEN l.lost_claim IS NULL THEN l.claimed_by ELSE l.lost_by END, -- while one is to be logged, nothing was sent under those after it
           crashes = l.crashes + (l.claim IS NOT NULL)::int
      FROM picked AS p
     WHERE l.ctid = p.tid
    RETURNING l.key
)`

// claimAnswer is what a relay is told of a claim.
const claimAnswer = `
SELECT ARRAY(SELECT key FROM claimed) AS keys,` + claimAnswerRest

const claimAnswerRest = `
       EXISTS (SELECT FROM outbox.lane AS l
                WHERE l.sync = $1 AND l.due_at <= now() AND l.crashes > 0 AND l.crashes + (l.claim IS NOT NULL)::int >= 2
                  AND l.scope NOT IN (SELECT scope FROM held)) AS suspects,
       EXISTS (SELECT FROM held WHERE scope = '') AS held,
       (SELECT array_agg(DISTINCT scope) FROM held WHERE scope <> '') AS scopes`

// unlocked leaves out rows that somebody has locked, such as one who is discarding
// them. Hardly ever is there a reason to look: the xmax of a row that was never locked
// is 0. Who discards locks the row first, then waits for the transactions that may have
// read it before, and then looks whether it was claimed.
const unlocked = `(d.xmax = '0' OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.ctid FOR UPDATE SKIP LOCKED))`

// firstDeliveries reads what is to be sent of the lanes that were just claimed. Of a
// claim that ended without a word it is not known whether its delivery was sent.
const firstDeliveries = `-- lockstep: first deliveries` + `
WITH mine AS MATERIALIZED (
    SELECT l.*, f.tid, f.alone, f.state,
           CASE WHEN f.state <> 'failed' AND f.due_at <= clock_timestamp() THEN f.tid END AS sends -- only what is to be sent is locked below
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
            WHERE d.ctid = m.sends AND ` + unlocked + `
              AND (m.lost_claim IS NULL OR EXISTS (SELECT FROM outbox.lane AS o WHERE o.ctid = m.lane FOR UPDATE SKIP LOCKED))) AS d ON true -- somebody may be discarding what is behind it
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
), told AS ( -- not again, should the answer of this statement be lost
    UPDATE outbox.lane AS l
       SET lost_claim = NULL, lost_by = NULL
      FROM counted AS c
     WHERE l.ctid = c.lane
    RETURNING c.lane AS was, l.ctid AS lane, c.tid
)
SELECT c.of_key, c.stands, ` + claimedColumns + `
  FROM (SELECT f.of_key, f.stands, coalesce(t.lane, f.lane) AS lane, coalesce(t.tid, f.was) AS tid, f.alone, f.crashes, f.scope, f.lost_claim,
               f.sync, f.key, f.event_seq, f.event_id, f.attempts, f.total_attempts, f.charged, f.spent_ms, f.revision, f.error_class, f.body, f.body_sha256, f.mapping_version
          FROM first AS f
          LEFT JOIN told AS t ON t.was = f.lane) AS c` + claimedTables

// claimedColumns are what a relay is told of a delivery c that it is to send.
const claimedColumns = `c.lane, c.tid, c.alone, c.crashes, c.scope, c.event_seq, c.event_id, c.attempts + (c.lost_claim IS NOT NULL)::int, c.total_attempts + (c.lost_claim IS NOT NULL)::int,
       c.charged, c.spent_ms, c.revision, c.error_class, c.body, c.body_sha256, c.mapping_version,
       e.seq, e.type, e.version, e.payload, e.headers, e.occurred_at, r.external_id, r.etag, r.version, r.event_seq`

const claimedTables = `
  LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
  LEFT JOIN LATERAL (SELECT * FROM outbox.external_ref WHERE sync = c.sync AND key = c.key OFFSET 0) AS r ON true
 ORDER BY c.event_seq`

// Claim takes up to Room lanes and returns their first deliveries. The relay that has
// the claim sends these before the lease ends, or releases them. Lanes are opened for
// what has arrived. Together with an error there may be deliveries, and lanes that are
// to be given back.
func (s *Store) Claim(ctx context.Context, r ClaimRequest, a *Arrivals) (Claims, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	c := claim{store: s, sync: r.Sync, token: newToken(), wanted: r.Wanted}
	keys, err := c.lanes(ctx, s.pool, r, a, false)
	return c.finish(ctx, keys, err)
}

// ClaimOne takes one lane and returns its first delivery, as [Store.Claim] does.
func (s *Store) ClaimOne(ctx context.Context, r OneRequest) (Claims, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	c := claim{store: s, sync: r.Sync, token: newToken(), wanted: r.Wanted, probe: r.Probe}
	var keys []string
	var err error
	told := []any{&keys, &c.Suspects, &c.held, &c.Held}
	switch {
	case r.Suspect:
		err = s.pool.QueryRow(ctx, claimSuspect, r.Sync, r.Probe, c.token, s.relay, r.Lease, r.Scope).Scan(told...)
	case r.Key != "":
		err = s.pool.QueryRow(ctx, claimKey, r.Sync, r.Probe, c.token, s.relay, r.Lease, r.Key).Scan(told...)
	default:
		keys, err = c.lanes(ctx, s.pool, ClaimRequest{Sync: r.Sync, Lease: r.Lease, Room: 1, Lanes: 1}, &Arrivals{}, r.Probe)
	}
	return c.finish(ctx, keys, err)
}

// claim is a claim that is being made.
type claim struct {
	Claims
	store  *Store
	sync   string
	token  pgtype.UUID
	probe  bool
	wanted func(Event) bool
	held   bool // the whole sync is on hold
}

// newToken returns the random token of a new claim.
func newToken() pgtype.UUID {
	token := pgtype.UUID{Valid: true}
	_, _ = rand.Read(token.Bytes[:]) // never fails
	return token
}

// lanes claims lanes that are due and opens new ones, and returns their keys.
func (c *claim) lanes(ctx context.Context, on database, r ClaimRequest, a *Arrivals, probe bool) ([]string, error) {
	if err := c.store.prepare(ctx, r.Sync, a); err != nil {
		return nil, err
	}
	keys, err := a.look(ctx, on, r, c, probe)
	c.Unopened = a.behind
	return keys, err
}

// finish reads the first deliveries of the lanes that were claimed, and closes failed
// ones that are superseded.
func (c *claim) finish(ctx context.Context, keys []string, err error) (Claims, error) {
	if err != nil {
		return Claims{}, c.store.judge(ctx, err)
	}
	superseding, err := c.first(ctx, c.store.pool, keys)
	if len(superseding) > 0 {
		more, left, failed := c.store.supersede(ctx, c.sync, superseding, c.token, c.wanted)
		c.Deliveries = append(c.Deliveries, more...)
		c.giveBack(left...)
		err = errors.Join(err, failed)
	}
	if c.held && err == nil {
		c.Hold, err = c.store.strongestHold(ctx, c.sync, c.probe)
	}
	return c.Claims, c.store.judge(ctx, err)
}

// first reads the first deliveries of lanes that were claimed, after the claim was
// committed: while payloads are on their way to a relay that is stopped, other relays
// wait for nothing of it. It returns the keys of lanes whose first delivery has failed.
// Lanes that have nothing to be sent are given back, and all of them if it fails.
func (c *claim) first(ctx context.Context, on database, keys []string) (failed []string, err error) {
	if len(keys) == 0 {
		return nil, nil
	}
	rows, err := on.Query(ctx, firstDeliveries, c.sync, c.token, keys)
	if err != nil {
		c.giveBack(keys...)
		return nil, err
	}
	claimed, empty, failed, err := scanFirst(rows, c.sync, c.token)
	if err != nil {
		c.giveBack(keys...)
		return nil, err
	}
	c.Deliveries = claimed
	c.giveBack(empty...)
	return failed, nil
}

// giveBack adds lanes that have nothing to be sent now.
func (c *claim) giveBack(keys ...string) {
	for _, key := range keys {
		c.Idle = append(c.Idle, Result{Delivery: &Delivery{Sync: c.sync, Key: key, token: c.token, Claim: c.token.String()}})
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

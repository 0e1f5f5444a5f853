package outbox

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// ClaimRequest asks for lanes of one sync.
type ClaimRequest struct {
	Sync   string
	Lease  time.Duration    // how long the claims last
	Wanted func(Event) bool // as in [OneRequest]

	Capacity int      // most lanes to claim
	Lanes    int      // most of these that exist already; the rest is for keys without a lane
	Latest   int      // number of keys without a lane that are taken from the latest deliveries first
	Busy     []string // scopes whose lanes are not claimed now
}

// OneRequest asks for one lane of a sync.
type OneRequest struct {
	Sync  string
	Lease time.Duration // how long the claim lasts

	// Wanted reports whether the filter of the sync lets an event pass: only such an
	// event supersedes a failed one. Nil means all. It is called by one goroutine and
	// must not panic.
	Wanted func(Event) bool

	Key     string // claim the lane of this key, and open it if there is none; empty: claim the lane that has been due longest
	Suspect bool   // claim a suspect: a lane during whose last claims two or more relays died; no other claim takes one
	Scope   string // claim only a suspect of this scope; empty: of any scope
	Probe   bool   // claim in spite of an auth or breaker hold
}

// Claims is the answer to a [ClaimRequest] or a [OneRequest].
type Claims struct {
	Deliveries []*Delivery // first deliveries of claimed lanes, to be sent
	Idle       []Result    // claimed lanes with nothing to send now; record them unchanged, which releases the lanes
	Hold       *Hold       // strongest hold of the whole sync; then nothing was claimed
	Held       []string    // scopes on hold
	Due        bool        // more lanes are due than were claimed
	Unopened   bool        // some deliveries were not read, or the capacity was too small for their keys
	Suspects   bool        // suspects are due
}

// firstDeliveries reads the first delivery of each lane that was just claimed. If a relay
// lost the claim before, it may have sent that delivery: the statement logs its attempt as
// unknown.
const firstDeliveries = `-- lockstep: first deliveries
-- $1 sync, $2 claim, $3 keys of the claimed lanes
WITH claimed_lane AS MATERIALIZED (
    SELECT l.*, f.tid, f.is_alone, f.state,
           CASE WHEN f.state <> 'failed' AND f.due_at <= clock_timestamp() THEN f.tid END AS to_send -- only this row is locked below
      FROM unnest($3::text[]) AS k (key)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS lane, l.key, l.crashes, l.scope, l.lost_claim, l.lost_by
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key AND l.claim = $2
            OFFSET 0) AS l
      LEFT JOIN LATERAL (
           SELECT (array_agg(d.ctid))[1] AS tid, (array_agg(d.state))[1] AS state, (array_agg(d.due_at))[1] AS due_at, count(*) = 1 AS is_alone
             FROM (SELECT d.ctid, d.state, d.due_at FROM outbox.delivery AS d
                    WHERE d.sync = $1 AND d.key = l.key
                    ORDER BY d.event_seq
                    LIMIT 2) AS d) AS f ON true
), first_delivery AS MATERIALIZED (
    SELECT l.lane, l.tid AS first_tid, l.is_alone, l.key AS lane_key, l.crashes, l.scope, l.lost_claim, l.lost_by, l.state AS first_state, d.*
      FROM claimed_lane AS l
      LEFT JOIN LATERAL (
           SELECT d.*
             FROM outbox.delivery AS d
            WHERE d.ctid = l.to_send AND ` + unlocked + `
              AND (l.lost_claim IS NULL OR EXISTS (SELECT FROM outbox.lane AS o WHERE o.ctid = l.lane FOR UPDATE SKIP LOCKED))) AS d ON true -- an operator may be discarding a delivery behind it
), counted_attempt AS (
    UPDATE outbox.delivery AS d
       SET attempts = d.attempts + 1, total_attempts = d.total_attempts + 1, uncertain = true
      FROM first_delivery AS f
     WHERE f.lost_claim IS NOT NULL AND d.sync = f.sync AND d.key = f.key AND d.event_seq = f.event_seq
    RETURNING d.*, f.lane, f.lost_claim, f.lost_by, d.ctid AS tid
), logged_attempt AS (
    INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, error_class, error, revision, event_seq, claim, relay)
    SELECT $1, a.event_id, e.type, a.key, e.version, a.total_attempts, 'unknown', 'unknown',
           'the relay that was sending it did not come back before its lease ended', a.revision, a.event_seq, a.lost_claim, a.lost_by
      FROM counted_attempt AS a
      LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = a.event_id OFFSET 0) AS e ON true
), cleared_lane AS ( -- so the attempt is logged once, even if the answer to this statement is lost
    UPDATE outbox.lane AS l
       SET lost_claim = NULL, lost_by = NULL
      FROM counted_attempt AS a
     WHERE l.ctid = a.lane
    RETURNING a.lane AS was, l.ctid AS lane, a.tid
)
SELECT c.lane_key, c.first_state, ` + claimedColumns + `
  FROM (SELECT f.lane_key, f.first_state, coalesce(l.lane, f.lane) AS lane, coalesce(l.tid, f.first_tid) AS tid, f.is_alone, f.crashes, f.scope, f.lost_claim,
               f.sync, f.key, f.event_seq, f.event_id, f.attempts, f.total_attempts, f.charged, f.unclear, f.spent_ms, f.revision, f.error_class, f.body, f.body_sha256, f.mapping_version, f.uncertain, f.step
          FROM first_delivery AS f
          LEFT JOIN cleared_lane AS l ON l.was = f.lane) AS c` + claimedTables

// claimedColumns are the columns of a delivery c that a relay is to send, see claimedRow.
// The body is in hexadecimal: bytea_output, which a pooler does not keep, would change the
// text of a bytea.
const claimedColumns = `c.lane, c.tid, c.is_alone, c.crashes, c.scope, c.event_seq, c.event_id, c.attempts + (c.lost_claim IS NOT NULL)::int, c.total_attempts + (c.lost_claim IS NOT NULL)::int,
       c.charged, c.unclear, c.spent_ms, c.revision, c.error_class, encode(c.body, 'hex'), c.body_sha256, c.mapping_version, c.uncertain OR c.lost_claim IS NOT NULL, c.step,
       e.seq, e.type, e.version, e.payload, e.headers, e.occurred_at, r.external_id, r.etag, r.learned, r.version, r.times_set`

const claimedTables = `
  LEFT JOIN LATERAL (SELECT * FROM outbox.event WHERE id = c.event_id OFFSET 0) AS e ON true
  LEFT JOIN LATERAL (SELECT * FROM outbox.external_ref WHERE sync = c.sync AND key = c.key OFFSET 0) AS r ON true
 ORDER BY c.event_seq`

// Claim claims up to Capacity lanes and returns their first deliveries. It opens lanes for
// new deliveries as a part of this. The caller sends each delivery before the lease ends
// and records its [Result]; a Result without an outcome releases the lane unsent. If Claim
// returns an error, the answer may still have deliveries and idle lanes.
func (s *Store) Claim(ctx context.Context, r ClaimRequest, a *Arrivals) (Claims, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	c := claim{store: s, sync: r.Sync, token: newToken(), wanted: r.Wanted}
	keys, err := c.lanes(ctx, s.pool, r, a)
	return c.finish(ctx, keys, err)
}

// ClaimOne claims one lane and returns its first delivery, as [Store.Claim] does.
func (s *Store) ClaimOne(ctx context.Context, r OneRequest) (Claims, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	c := claim{store: s, sync: r.Sync, token: newToken(), wanted: r.Wanted, probe: r.Probe}
	var keys []string
	var err error
	answer := []any{&keys, &c.Suspects, &c.onHold, &c.Held}
	switch {
	case r.Suspect:
		err = s.pool.QueryRow(ctx, claimSuspect, r.Sync, r.Probe, c.token, s.relay, r.Lease, r.Scope).Scan(answer...)
	case r.Key != "":
		err = s.pool.QueryRow(ctx, claimKey, r.Sync, r.Probe, c.token, s.relay, r.Lease, r.Key).Scan(answer...)
	default:
		keys, err = c.lanes(ctx, s.pool, ClaimRequest{Sync: r.Sync, Lease: r.Lease, Capacity: 1, Lanes: 1}, &Arrivals{})
	}
	return c.finish(ctx, keys, err)
}

// claim is a claim in progress.
type claim struct {
	Claims
	store  *Store
	sync   string
	token  pgtype.UUID
	probe  bool
	wanted func(Event) bool
	onHold bool // the whole sync is on hold
}

// lanes claims due lanes and opens new ones, and returns their keys.
func (c *claim) lanes(ctx context.Context, on database, r ClaimRequest, a *Arrivals) ([]string, error) {
	if err := c.store.prepare(ctx, r.Sync, a); err != nil {
		return nil, err
	}
	keys, err := a.poll(ctx, on, r, c)
	c.Unopened = a.behind
	return keys, err
}

// finish reads the first deliveries of the claimed lanes. It closes failed deliveries that
// are superseded.
func (c *claim) finish(ctx context.Context, keys []string, err error) (Claims, error) {
	if err != nil {
		return Claims{}, c.store.judge(ctx, err)
	}
	superseding, err := c.first(ctx, c.store.pool, keys)
	if len(superseding) > 0 {
		more, left, failed := c.store.supersede(ctx, c.sync, superseding, c.token, c.wanted)
		c.Deliveries = append(c.Deliveries, more...)
		c.release(left...)
		err = errors.Join(err, failed)
	}
	if c.onHold && err == nil {
		c.Hold, err = c.store.strongestHold(ctx, c.sync, c.probe)
	}
	return c.Claims, c.store.judge(ctx, err)
}

// first reads the first deliveries of claimed lanes. It runs after the claim is committed,
// for two reasons. It sees everything that others recorded before the claim. And if this
// relay hangs while it reads payloads, nobody waits for its locks. It returns the keys of
// lanes whose first delivery has failed. It releases lanes with nothing to send. After an
// error it releases all of them.
func (c *claim) first(ctx context.Context, on database, keys []string) (failed []string, err error) {
	var idle []string
	if len(keys) == 0 {
		return nil, nil
	}
	rows, err := on.Query(ctx, firstDeliveries, c.sync, c.token, keys)
	if err == nil {
		c.Deliveries, failed, idle, err = scanClaimed(rows, c.sync, func(string) pgtype.UUID { return c.token })
	}
	if err != nil {
		c.Deliveries, failed, idle = nil, nil, keys
	}
	c.release(idle...)
	return failed, err
}

// newToken returns the random token of a new claim.
func newToken() pgtype.UUID {
	token := pgtype.UUID{Valid: true}
	_, _ = rand.Read(token.Bytes[:])            // never fails
	token.Bytes[6] = token.Bytes[6]&0x0f | 0x40 // a random UUID, version 4 of RFC 9562
	token.Bytes[8] = token.Bytes[8]&0x3f | 0x80
	return token
}

// release adds lanes that have nothing to send now to the idle ones.
func (c *claim) release(keys ...string) {
	for _, key := range keys {
		c.Idle = append(c.Idle, Result{Delivery: &Delivery{Sync: c.sync, Key: key, token: c.token, Claim: c.token.String()}})
	}
}

package outbox

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

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
	since  string    // pg_snapshot: what it shows was looked at, except what comes after the cursor
	change string    // the cursor: a transaction
	seq    int64     // and the last delivery of it that was looked at
	behind bool      // there was more after the cursor than could be looked at
	page   int       // deliveries to read next: more after a page that had few keys without a lane
	resets int64     // of the store: after a failover the numbers may mean something else
	began  time.Time // when everything was looked at from the beginning last

	// Keys to look at again, with the claim that somebody had on the lane when a
	// delivery was found. The relay that has it may close the lane without having
	// seen that delivery; then it is opened once more. When the claim is another
	// one, or none, the relay that closes the lane has seen it.
	unsure map[string]unsure
	looked time.Time // when those were looked at last

	// Lanes are looked at from the time at which the first of them became due, and
	// now and then from the beginning.
	floor  string
	scopes []string
	listed time.Time     // when that was last
	took   time.Duration // and for how long
}

// Know tells of scopes into which lanes were given back, so that the next look finds
// these before the scopes are listed again.
func (a *Arrivals) Know(scopes []string) {
	for _, scope := range scopes {
		if a.floor != "" && !slices.Contains(a.scopes, scope) {
			a.scopes = append(a.scopes, scope)
		}
	}
}

// unsure is what is known of a key that is looked at again: the claim on its lane, and
// the sequence number of the earliest delivery that was found.
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

// openLanes looks at deliveries that have become ready, and opens lanes for keys that
// have none. As far as there is room they are opened claimed. A delivery that waits
// for a backfill is none of them: it becomes ready when that is complete.
//
// First come those after the cursor ($12, $13), the oldest first, at most $14; then, where
// there are more of them than can be looked at, the latest, of which $10 keys have the
// first right to the room; then those of transactions that ran at the time of the snapshot
// ($11) and have ended since, at most $18 of each; then keys of which the relay was not
// sure ($15 to $17). The room is $9, less what claimLanes will claim in this transaction:
// the lanes that are due, $6 at most. The cursor stops before the first key for which
// there was none.
//
// An insertion waits for a transaction that has the lane of the same key. While this one
// waits, it has no claim that others wait for: claimLanes, which waits for nobody, comes
// after it. The setting lockstep.opened tells claimLanes how many were opened claimed.
//
// Of a key whose first delivery has failed the lane is opened as one that waits, without a
// claim, so that many of them keep no new key from its room. That is left to the usual way
// where somebody has that delivery locked, or failed ones are superseded.
//
// A lane that is there, and waits for a later time or because its first delivery has
// failed, becomes due when a delivery came in front of that one, or when one came that may
// supersede it. A lane that is claimed is looked at again, see
// [Arrivals].
const openLanes = `-- lockstep: open lanes` + `
WITH ` + scopesToClaim + `, looked AS MATERIALIZED (
    SELECT 1 AS part, row_number() OVER (ORDER BY d.changed_in, d.event_seq) AS n, d.*
      FROM (SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid AS claim
              FROM outbox.delivery AS d
             WHERE d.sync = $1 AND (d.changed_in, d.event_seq) > ($12::text::xid8, $13)
             ORDER BY d.changed_in, d.event_seq
             LIMIT CASE WHEN '' IN (SELECT scope FROM held) THEN 1 ELSE $14::bigint END) AS d
    UNION ALL
    SELECT 2, row_number() OVER (ORDER BY d.changed_in DESC, d.event_seq DESC), d.*
      FROM (SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid
              FROM outbox.delivery AS d
             WHERE d.sync = $1 AND d.changed_in >= $12::text::xid8
             ORDER BY d.changed_in DESC, d.event_seq DESC
             LIMIT CASE WHEN $10::bigint < 0 THEN 0 ELSE least(greatest(4 * $10::bigint, 200), $18::bigint) END) AS d
    UNION ALL
    SELECT 3, row_number() OVER (PARTITION BY x.xid), d.*
      FROM pg_snapshot_xip($11::text::pg_snapshot) AS x (xid)
     CROSS JOIN LATERAL (
           SELECT d.key, d.event_seq, d.changed_in, d.due_at, NULL::uuid
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.changed_in = x.xid
            ORDER BY d.event_seq
            LIMIT $18::bigint) AS d
     WHERE pg_visible_in_snapshot(x.xid, pg_current_snapshot())
    UNION ALL
    SELECT 4, 0, u.key, u.place, NULL, now(), u.claim
      FROM unnest($15::text[], $16::uuid[], $17::bigint[]) AS u (key, claim, place)
), key AS MATERIALIZED ( -- each once, with what stands about it
    SELECT k.*, l.tid, l.claim AS has, l.due_at AS lane_due, l.judged
      FROM (SELECT k.key, max(k.part) AS part, bool_or(k.part = 3) AS late, min(k.event_seq) AS place, max(k.claim::text)::uuid AS claim,
                   min(k.n) FILTER (WHERE k.part = 1) AS oldest, min(k.n) FILTER (WHERE k.part = 2) AS latest -- its first place among these
              FROM looked AS k
             WHERE k.due_at < 'infinity'
             GROUP BY k.key) AS k
      LEFT JOIN LATERAL (
           SELECT l.ctid AS tid, l.claim, l.due_at, l.judged
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = k.key
            OFFSET 0) AS l ON true
), failing AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.state = 'failed') AS found
), policy AS MATERIALIZED ( -- read only if a delivery has failed, see settleLanes
    SELECT s.on_failed FROM outbox.sync AS s WHERE s.name = $1 FOR KEY SHARE SKIP LOCKED
), missing AS MATERIALIZED (
    SELECT k.*, row_number() OVER (PARTITION BY k.waits, k.part > 2 ORDER BY k.oldest) AS by_age,
           row_number() OVER (PARTITION BY k.waits, k.part > 2 ORDER BY k.latest) AS by_news
      FROM (SELECT k.key, k.part, k.oldest, k.latest,
                   (SELECT f.found FROM failing AS f) -- what is behind a failed one needs no room
                   AND coalesce((SELECT d.state = 'failed' AND (d.untouched OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.tid FOR UPDATE SKIP LOCKED))
                                   FROM (SELECT o.ctid AS tid, o.xmax = '0' AS untouched, o.state
                                           FROM outbox.delivery AS o
                                          WHERE o.sync = $1 AND o.key = k.key
                                          ORDER BY o.event_seq
                                          LIMIT 1) AS d), false) -- nobody is just discarding it
                   AND coalesce((SELECT on_failed = 'block' FROM policy), false) AS waits
              FROM key AS k
             WHERE k.tid IS NULL
               AND (k.part < 4 OR EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = k.key AND d.due_at < 'infinity' OFFSET 0))) AS k
), due AS MATERIALIZED ( -- claimLanes will claim them
    SELECT count(*) AS n
      FROM (SELECT
              FROM scope AS s
             CROSS JOIN LATERAL (` + dueLanes + `
                      LIMIT $6::bigint) AS l
             LIMIT $6::bigint) AS l
), room AS MATERIALIZED ( -- what transactions left and the latest have their share before the oldest
    SELECT c.n, least(c.late, c.n) AS late, greatest(0, least(c.latest, c.n - c.late, greatest($10::bigint, c.n - c.late - c.old))) AS latest
      FROM (SELECT CASE WHEN '' IN (SELECT scope FROM held) THEN 0 ELSE $9::bigint - (SELECT n FROM due) END AS n,
                   count(*) FILTER (WHERE part > 2) AS late, count(latest) FILTER (WHERE part < 3) AS latest, count(oldest) FILTER (WHERE part < 3) AS old
              FROM missing
             WHERE NOT waits) AS c
), chosen AS MATERIALIZED (
    SELECT m.key, m.part, m.oldest, m.waits,
           NOT m.waits AND CASE WHEN m.part > 2 THEN m.by_age <= r.n
                                ELSE m.oldest IS NOT NULL AND m.by_age <= r.n - r.late - r.latest OR m.latest IS NOT NULL AND m.by_news <= r.latest END AS claims
      FROM missing AS m
     CROSS JOIN room AS r
), opened AS (
    INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by)
    SELECT $1, c.key, CASE WHEN c.claims THEN now() + $5::interval WHEN c.waits THEN 'infinity' ELSE now() END, CASE WHEN c.claims THEN $3::uuid END, CASE WHEN c.claims THEN $4 END
      FROM chosen AS c
     WHERE c.claims OR c.waits OR c.part > 2
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
            WHERE l.ctid = k.tid AND l.claim IS NULL AND l.due_at > now() -- whoever claims one that is due sees what came in front
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
), cut AS MATERIALIZED ( -- the first key for which there was no room: the cursor stops before it
    SELECT min(c.oldest) AS n FROM chosen AS c WHERE c.part < 3 AND NOT c.claims AND NOT c.waits
), unsure AS (
    SELECT k.key, k.has AS claim, k.place
      FROM key AS k
     CROSS JOIN cut
     WHERE k.has <> $3::uuid -- what is visible here is visible to whoever closes a lane that was just claimed
       AND (k.late OR k.has = k.claim OR k.oldest < coalesce(cut.n, k.oldest + 1)) -- it is looked at for the last time
        OR k.judged >= k.place AND (k.has IS NOT NULL OR k.lane_due <= now())
    UNION ALL
    SELECT e.key, NULL, e.place FROM early AS e WHERE e.key NOT IN (SELECT key FROM woken)
)
SELECT ARRAY(SELECT key FROM opened WHERE claim IS NOT NULL) AS keys,
       pg_current_snapshot()::text AS since,
       (SELECT k.changed_in::text FROM looked AS k WHERE k.part = 1 AND k.n < coalesce(cut.n, k.n + 1) ORDER BY k.n DESC LIMIT 1) AS change,
       (SELECT k.event_seq FROM looked AS k WHERE k.part = 1 AND k.n < coalesce(cut.n, k.n + 1) ORDER BY k.n DESC LIMIT 1) AS seq,
       cut.n IS NOT NULL OR (SELECT count(*) FROM looked AS k WHERE k.part = 1) >= CASE WHEN '' IN (SELECT scope FROM held) THEN 1 ELSE $14::bigint END AS more,
       cut.n IS NULL AS starved,
       (SELECT k.changed_in::text FROM looked AS k WHERE k.part = 3 AND k.n >= $18::bigint ORDER BY k.changed_in LIMIT 1) AS more_late,
       u.keys, u.claims, u.places,
       set_config('lockstep.opened', (SELECT count(*) FROM opened WHERE claim IS NOT NULL)::text, true)
  FROM cut
 CROSS JOIN (SELECT array_agg(key) AS keys, array_agg(claim) AS claims, array_agg(place) AS places FROM unsure) AS u`

// listScopes lists the scopes of a sync's lanes, one after the other by the index, and
// says since when one of them may be due. Lanes that are not committed yet, which nobody
// sees, are due no earlier than $2 ago.
const listScopes = `-- lockstep: list scopes` + `
WITH RECURSIVE listed (name) AS (
    (SELECT l.scope FROM outbox.lane AS l WHERE l.sync = $1 AND l.due_at < 'infinity' ORDER BY l.scope LIMIT 1)
    UNION ALL
    SELECT (SELECT l.scope FROM outbox.lane AS l WHERE l.sync = $1 AND l.due_at < 'infinity' AND l.scope > s.name ORDER BY l.scope LIMIT 1)
      FROM listed AS s
     WHERE s.name IS NOT NULL
), scope AS MATERIALIZED (
    SELECT name FROM listed WHERE name IS NOT NULL
)
SELECT ARRAY(SELECT name FROM scope UNION SELECT '') AS scopes,
       least(now() - $2::interval, (SELECT min(l.due_at)
                                      FROM scope AS s
                                     CROSS JOIN LATERAL (
                                           SELECT l.due_at FROM outbox.lane AS l
                                            WHERE l.sync = $1 AND l.scope = s.name AND l.due_at < 'infinity'
                                            ORDER BY l.due_at
                                            LIMIT 1) AS l))::text AS floor`

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

// database is a pool or a transaction.
type database interface {
	querier
	sender
}

// look opens lanes as far as there is room beside those that are due, then claims these,
// in one round trip and one transaction. It returns the keys of those that were claimed; if it
// fails there are none, and nothing was learnt.
func (a *Arrivals) look(ctx context.Context, on database, r ClaimRequest, c *claim, probe bool) ([]string, error) {
	if a.floor == "" || time.Since(a.listed) > max(floorEvery, floorShare*a.took) {
		began := time.Now()
		if err := on.QueryRow(ctx, listScopes, r.Sync, floorBehind).Scan(&a.scopes, &a.floor); err != nil {
			return nil, err
		}
		a.listed, a.took = began, time.Since(began)
	}
	scopes := a.scopes
	if len(r.Busy) > 0 {
		scopes = slices.DeleteFunc(slices.Clone(scopes), func(scope string) bool { return slices.Contains(r.Busy, scope) })
	}
	fresh := -1
	if a.behind {
		fresh = r.Fresh
	}
	lanes := min(r.Lanes, r.Room)
	page := max(a.page, min(r.Room, arrivalPage), 1)
	again := a.again()
	var keys []string
	var found arrived
	batch := &pgx.Batch{}
	batch.Queue(openLanes, r.Sync, probe, c.token, c.store.relay, r.Lease, lanes, scopes, a.floor, r.Room, fresh,
		nullable(a.since), a.change, a.seq, page, again.keys, again.claims, again.places, arrivalPage).
		QueryRow(found.scan)
	batch.Queue(claimLanes, r.Sync, probe, c.token, c.store.relay, r.Lease, lanes, scopes, a.floor, r.Room).
		QueryRow(func(row pgx.Row) error { return row.Scan(&keys, &c.Suspects, &c.held, &c.Held, &c.Due) })
	if err := on.SendBatch(ctx, batch).Close(); err != nil {
		return nil, err
	}
	if len(again.keys) > 0 {
		a.looked = time.Now()
		for _, key := range again.keys {
			delete(a.unsure, key)
		}
	}
	if a.page = 0; found.more && found.starved && r.Room > 0 {
		a.page = min(4*max(page, leastPage), arrivalPage)
	}
	a.learn(found)
	return append(keys, found.keys...), nil
}

// unsureKeys are arguments of openLanes, and a part of its answer.
type unsureKeys struct {
	keys   []string
	claims []pgtype.UUID
	places []int64
}

// again are the keys to be looked at again now.
func (a *Arrivals) again() (u unsureKeys) {
	if time.Since(a.looked) < unsureEvery {
		return u
	}
	for key, about := range a.unsure {
		if len(u.keys) == arrivalPage {
			break
		}
		u.keys, u.claims, u.places = append(u.keys, key), append(u.claims, about.claim), append(u.places, about.place)
	}
	return u
}

// arrived is the answer of openLanes.
type arrived struct {
	keys     []string    // of lanes that were opened claimed
	since    string      // the snapshot
	change   pgtype.Text // the last delivery after the cursor for which there was room
	seq      pgtype.Int8
	more     bool        // there are more
	starved  bool        // fewer keys without a lane were found than there was room for
	moreLate pgtype.Text // a transaction of the snapshot before that was too large for one look
	unsure   unsureKeys
}

func (f *arrived) scan(row pgx.Row) error {
	return row.Scan(&f.keys, &f.since, &f.change, &f.seq, &f.more, &f.starved, &f.moreLate, &f.unsure.keys, &f.unsure.claims, &f.unsure.places, nil)
}

// learn moves the cursor to where everything was looked at.
func (a *Arrivals) learn(found arrived) {
	if a.unsure == nil {
		a.unsure = map[string]unsure{}
	}
	for i, key := range found.unsure.keys {
		place := found.unsure.places[i]
		if about, known := a.unsure[key]; known { // not looked at again yet: the earlier delivery may be the one that supersedes
			place = min(place, about.place)
		}
		a.unsure[key] = unsure{found.unsure.claims[i], place}
	}
	a.since, a.behind = found.since, found.more
	switch {
	case !found.more && time.Since(a.began) > againEvery: // should anything have been overlooked
		a.behind, a.change, a.seq, a.began = true, "0", 0, time.Now()
	case !found.more: // what is visible was looked at
		a.change, a.seq = strings.Split(found.since, ":")[1], -1
	case found.change.Valid:
		a.change, a.seq = found.change.String, found.seq.Int64
	}
	if found.moreLate.Valid && before(found.moreLate.String, a.change) { // a large transaction ended late: back to it
		a.behind, a.change, a.seq = true, found.moreLate.String, -1
	}
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

package outbox

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// Arrivals remembers which deliveries of a sync one relay has read. It has a snapshot of
// the database: the relay has read every delivery that is visible in it.
//
// Each delivery has the number of the transaction that made it ready to be sent
// (delivery.changed_in). A delivery is new if its transaction began after the snapshot, or
// if it was running at the snapshot and has ended since. An index finds both kinds, in
// whatever order the transactions committed. So no transaction waits for another.
//
// With the zero value all open deliveries are new. An Arrivals is not safe for concurrent
// use.
type Arrivals struct {
	snapshot     string    // pg_snapshot: all visible deliveries were read, except those after the cursor
	cursorChange string    // the transaction of the last delivery that was read
	cursorSeq    int64     // the event_seq of that delivery
	behind       bool      // there are deliveries after the cursor, not yet read or without capacity
	page         int       // deliveries to read next; grows while pages have few keys without a lane
	resets       int64     // Store.resets at the snapshot; after a failover, transaction numbers may have another meaning
	began        time.Time // when the relay last read from the beginning

	// check has the keys whose lane was claimed when one of their deliveries was found.
	// The relay with that claim may close the lane without having seen the delivery. So
	// the key is checked again, and the lane is opened if there is none. If the lane has
	// another claim or none by then, the relay that closes it has seen the delivery.
	check   map[string]keyToCheck
	checked time.Time // when these keys were last checked

	// Due lanes are read from dueSince on. Before it, the index may have only entries of
	// closed lanes. The relay lists the scopes and finds dueSince again from time to time.
	dueSince string
	scopes   []string
	listed   time.Time     // when the scopes were last listed
	took     time.Duration // how long that took
}

// keyToCheck is the claim that the lane of a key had, and the event_seq of the earliest
// delivery of the key that was found meanwhile.
type keyToCheck struct {
	claim pgtype.UUID
	seq   int64
}

// Know adds scopes of lanes that were just released. The next claim takes lanes of these
// scopes, although the scopes were not listed again.
func (a *Arrivals) Know(scopes []string) {
	for _, scope := range scopes {
		if a.dueSince != "" && !slices.Contains(a.scopes, scope) {
			a.scopes = append(a.scopes, scope)
		}
	}
}

const (
	listEvery      = time.Second           // shortest pause between lists of the scopes
	listShare      = 20                    // the pause is at least this many times the duration of the last list
	commitTime     = 2 * time.Second       // how long a transaction that makes a lane due may take
	checkEvery     = 50 * time.Millisecond // pause between checks of keys whose lane was claimed
	largestPage    = 1000                  // most deliveries that one poll reads from each source
	smallestGrowth = 25                    // a page that grows has at least four times this many deliveries
	restartEvery   = 10 * time.Minute      // pause between scans from the beginning, which should find nothing
)

// listScopes lists the scopes of a sync's lanes and finds the earliest due_at of a lane.
// The index gives the scopes one after the other. A lane whose transaction is still open
// is not visible, but its due_at is at most $2 ago.
const listScopes = `-- lockstep: list scopes
-- $1 sync, $2 how long a transaction that makes a lane due may take
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
                                            LIMIT 1) AS l))::text AS due_since`

// prepare starts from the beginning if another server may answer now.
func (s *Store) prepare(ctx context.Context, sync string, a *Arrivals) error {
	if resets := s.resets.Load(); a.resets != resets {
		*a = Arrivals{resets: resets}
	}
	if a.cursorChange == "" {
		if err := s.repairChanges(ctx, sync); err != nil {
			return err
		}
		a.restart()
	}
	return nil
}

func (a *Arrivals) restart() {
	a.behind, a.cursorChange, a.cursorSeq, a.began = true, "0", 0, time.Now()
}

// database is a pool or a transaction.
type database interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// poll opens lanes for new deliveries and claims due lanes, in one round trip and one
// transaction. Due lanes use the capacity first. It returns the keys of claimed lanes.
// After an error nothing was claimed and a has not changed.
func (a *Arrivals) poll(ctx context.Context, on database, r ClaimRequest, c *claim) ([]string, error) {
	if a.dueSince == "" || time.Since(a.listed) > max(listEvery, listShare*a.took) {
		began := time.Now()
		if err := on.QueryRow(ctx, listScopes, r.Sync, commitTime).Scan(&a.scopes, &a.dueSince); err != nil {
			return nil, err
		}
		a.listed, a.took = began, time.Since(began)
	}
	scopes := slices.DeleteFunc(slices.Clone(a.scopes), func(scope string) bool { return slices.Contains(r.Busy, scope) })
	latest := -1
	if a.behind {
		latest = r.Latest
	}
	lanes := min(r.Lanes, r.Capacity)
	page := max(a.page, min(r.Capacity, largestPage), 1)
	check := a.keysToCheck()
	var keys []string
	var found arrived
	batch := &pgx.Batch{}
	batch.Queue(openLanes, r.Sync, c.probe, c.token, c.store.relay, r.Lease, lanes, scopes, a.dueSince, r.Capacity, latest,
		nullable(a.snapshot), a.cursorChange, a.cursorSeq, page, check.keys, check.claims, check.seqs, largestPage).
		QueryRow(found.scan)
	batch.Queue(claimLanes, r.Sync, c.probe, c.token, c.store.relay, r.Lease, lanes, scopes, a.dueSince, r.Capacity).
		QueryRow(func(row pgx.Row) error { return row.Scan(&keys, &c.Suspects, &c.onHold, &c.Held, &c.Due) })
	if err := on.SendBatch(ctx, batch).Close(); err != nil {
		return nil, err
	}
	if len(check.keys) > 0 {
		a.checked = time.Now()
		for _, key := range check.keys {
			delete(a.check, key)
		}
	}
	if a.page = 0; found.behind && found.capacityLeft && r.Capacity > 0 {
		a.page = min(4*max(page, smallestGrowth), largestPage)
	}
	a.learn(found)
	return append(keys, found.keys...), nil
}

// keysToCheck are arguments of openLanes, and a part of its answer.
type keysToCheck struct {
	keys   []string
	claims []pgtype.UUID
	seqs   []int64
}

// keysToCheck returns the keys to check now.
func (a *Arrivals) keysToCheck() (k keysToCheck) {
	if time.Since(a.checked) < checkEvery {
		return k
	}
	for key, known := range a.check {
		if len(k.keys) == largestPage {
			break
		}
		k.keys, k.claims, k.seqs = append(k.keys, key), append(k.claims, known.claim), append(k.seqs, known.seq)
	}
	return k
}

// arrived is the answer of openLanes.
type arrived struct {
	keys         []string    // keys of lanes that were opened claimed
	snapshot     string      // snapshot of this poll
	cursorChange pgtype.Text // the new cursor: no key up to it lacked capacity
	cursorSeq    pgtype.Int8
	behind       bool        // there are deliveries after the new cursor
	capacityLeft bool        // the capacity was enough for all keys that were found
	large        pgtype.Text // a transaction of the last snapshot with more deliveries than one poll reads
	check        keysToCheck
}

func (f *arrived) scan(row pgx.Row) error {
	return row.Scan(&f.keys, &f.snapshot, &f.cursorChange, &f.cursorSeq, &f.behind, &f.capacityLeft, &f.large, &f.check.keys, &f.check.claims, &f.check.seqs, nil)
}

// learn moves the cursor past the deliveries that were read, and adds keys to check.
func (a *Arrivals) learn(found arrived) {
	if a.check == nil {
		a.check = map[string]keyToCheck{}
	}
	for i, key := range found.check.keys {
		seq := found.check.seqs[i]
		if known, ok := a.check[key]; ok { // not checked yet: the earlier delivery may be the one that supersedes
			seq = min(seq, known.seq)
		}
		a.check[key] = keyToCheck{found.check.claims[i], seq}
	}
	a.snapshot, a.behind = found.snapshot, found.behind
	switch {
	case !found.behind && time.Since(a.began) > restartEvery: // in case a delivery was missed
		a.restart()
	case !found.behind: // all visible deliveries were read
		a.cursorChange, a.cursorSeq = strings.Split(found.snapshot, ":")[1], -1
	case found.cursorChange.Valid:
		a.cursorChange, a.cursorSeq = found.cursorChange.String, found.cursorSeq.Int64
	}
	if found.large.Valid && before(found.large.String, a.cursorChange) { // it ended late: set the cursor back to it
		a.behind, a.cursorChange, a.cursorSeq = true, found.large.String, -1
	}
}

// before compares the numbers of transactions.
func before(a, b string) bool { return len(a) < len(b) || len(a) == len(b) && a < b }

// repairChanges repairs deliveries that were restored from a backup of another cluster.
// Their changed_in is a number that this cluster has not reached. They get the number of
// the transaction that repairs them.
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

package outbox

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// Arrivals is what one relay knows of the new deliveries of a sync: a snapshot of the
// database, and that it has read all deliveries which the snapshot shows. Each delivery
// has the number of the transaction that made it ready to be sent
// (delivery.changed_in). New since the snapshot are the deliveries of transactions that
// began after it, and of those that it lists as running and that have ended since. An
// index finds both, in whatever order they committed, and nobody waits for anybody.
//
// The zero value is the beginning: all open deliveries are new. It is not safe for
// concurrent use.
type Arrivals struct {
	snapshot     string    // pg_snapshot: all that it shows was read, except what comes after the cursor
	cursorChange string    // the cursor: a transaction
	cursorSeq    int64     // and the last delivery of it that was read
	behind       bool      // there is more after the cursor than could be read or opened
	page         int       // deliveries to read next: grows while pages have few keys without a lane
	resets       int64     // of the store when this was learnt: after a failover the numbers may mean something else
	began        time.Time // when it last read from the beginning

	// check are keys to look at again, because somebody had a claim on the lane when a
	// delivery was found: the relay with that claim may close the lane without having
	// seen the delivery, and then it is opened again. If the lane has another claim or
	// none by then, the relay that closes it has seen the delivery.
	check   map[string]keyToCheck
	checked time.Time // when those were looked at last

	// Due lanes are read from dueSince on: an index has entries of closed lanes before it.
	// Scopes and dueSince are read from the beginning now and then.
	dueSince string
	scopes   []string
	listed   time.Time     // when that was last
	took     time.Duration // and how long it took
}

// keyToCheck is the claim on the lane of a key, and the event_seq of the earliest
// delivery that was found.
type keyToCheck struct {
	claim pgtype.UUID
	seq   int64
}

// Know names scopes into which lanes were given back, so that the next look finds these
// before the scopes are listed again.
func (a *Arrivals) Know(scopes []string) {
	for _, scope := range scopes {
		if a.dueSince != "" && !slices.Contains(a.scopes, scope) {
			a.scopes = append(a.scopes, scope)
		}
	}
}

const (
	listEvery      = time.Second           // shortest pause between listings of the scopes
	listShare      = 20                    // and at least this many times as long as a listing takes
	commitTime     = 2 * time.Second       // how long a transaction that makes a lane due may take
	checkEvery     = 50 * time.Millisecond // pause between looks at keys whose lane was claimed
	largestPage    = 1000                  // most deliveries that one look reads of each source
	smallestGrowth = 25                    // a page that grows has at least four times as many deliveries
	restartEvery   = 10 * time.Minute      // pause between reads from the beginning, which should find nothing
)

// listScopes lists the scopes of a sync's lanes, one after the other by the index, and
// the earliest due_at of a lane. A lane that is not committed yet is not visible: it is
// due no earlier than $2 ago.
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

// prepare resets what is known if another server may answer now.
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

// look opens lanes as far as there is room after those that are due, then claims the due
// ones, in one round trip and one transaction. It returns the keys of claimed lanes. If
// it fails, nothing was claimed and a has not changed.
func (a *Arrivals) look(ctx context.Context, on database, r ClaimRequest, c *claim) ([]string, error) {
	if a.dueSince == "" || time.Since(a.listed) > max(listEvery, listShare*a.took) {
		began := time.Now()
		if err := on.QueryRow(ctx, listScopes, r.Sync, commitTime).Scan(&a.scopes, &a.dueSince); err != nil {
			return nil, err
		}
		a.listed, a.took = began, time.Since(began)
	}
	scopes := slices.DeleteFunc(slices.Clone(a.scopes), func(scope string) bool { return slices.Contains(r.Busy, scope) })
	fresh := -1
	if a.behind {
		fresh = r.Fresh
	}
	lanes := min(r.Lanes, r.Room)
	page := max(a.page, min(r.Room, largestPage), 1)
	check := a.keysToCheck()
	var keys []string
	var found arrived
	batch := &pgx.Batch{}
	batch.Queue(openLanes, r.Sync, c.probe, c.token, c.store.relay, r.Lease, lanes, scopes, a.dueSince, r.Room, fresh,
		nullable(a.snapshot), a.cursorChange, a.cursorSeq, page, check.keys, check.claims, check.seqs, largestPage).
		QueryRow(found.scan)
	batch.Queue(claimLanes, r.Sync, c.probe, c.token, c.store.relay, r.Lease, lanes, scopes, a.dueSince, r.Room).
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
	if a.page = 0; found.behind && found.roomLeft && r.Room > 0 {
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

// keysToCheck are the keys to look at again now.
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
	keys         []string    // of lanes that were opened claimed
	snapshot     string      // at this look
	cursorChange pgtype.Text // the last delivery after the cursor for which there was room
	cursorSeq    pgtype.Int8
	behind       bool        // there is more after it
	roomLeft     bool        // fewer keys without a lane were found than there was room for
	large        pgtype.Text // a transaction of the last snapshot with more deliveries than one look reads
	check        keysToCheck
}

func (f *arrived) scan(row pgx.Row) error {
	return row.Scan(&f.keys, &f.snapshot, &f.cursorChange, &f.cursorSeq, &f.behind, &f.roomLeft, &f.large, &f.check.keys, &f.check.claims, &f.check.seqs, nil)
}

// learn moves the cursor past what was read.
func (a *Arrivals) learn(found arrived) {
	if a.check == nil {
		a.check = map[string]keyToCheck{}
	}
	for i, key := range found.check.keys {
		seq := found.check.seqs[i]
		if known, ok := a.check[key]; ok { // not looked at again yet: the earlier delivery may be the one that supersedes
			seq = min(seq, known.seq)
		}
		a.check[key] = keyToCheck{found.check.claims[i], seq}
	}
	a.snapshot, a.behind = found.snapshot, found.behind
	switch {
	case !found.behind && time.Since(a.began) > restartEvery: // in case anything was overlooked
		a.restart()
	case !found.behind: // all that is visible was read
		a.cursorChange, a.cursorSeq = strings.Split(found.snapshot, ":")[1], -1
	case found.cursorChange.Valid:
		a.cursorChange, a.cursorSeq = found.cursorChange.String, found.cursorSeq.Int64
	}
	if found.large.Valid && before(found.large.String, a.cursorChange) { // it ended late: go back to it
		a.behind, a.cursorChange, a.cursorSeq = true, found.large.String, -1
	}
}

// before compares the numbers of transactions.
func before(a, b string) bool { return len(a) < len(b) || len(a) == len(b) && a < b }

// repairChanges gives deliveries that were restored from the backup of another cluster,
// and so have a number that this cluster has not reached, the number of its transaction.
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

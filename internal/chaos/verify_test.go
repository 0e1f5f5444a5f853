//go:build linux

package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// expected is the state that a scenario allows at its end.
type expected struct {
	failed   int  // deliveries that wait for an operator, or behind one that does
	tampered bool // the configuration was changed meanwhile: the same key may carry other bytes
	reopened int  // times that the database went back to an older state, with all that was recorded since
}

// drain waits until only deliveries that wait for an operator are open. Then it compares the ledgers with the events and
// the log. It is the end of a scenario.
func (w *world) drain(want expected) {
	w.t.Helper()
	began := time.Now()
	w.until("everything has drained", `
WITH stuck AS (
    SELECT d.state, d.state = 'failed' OR EXISTS (
           SELECT FROM outbox.delivery AS f
            WHERE f.sync = d.sync AND f.key = d.key AND f.event_seq < d.event_seq AND f.state = 'failed') AS waits
      FROM outbox.delivery AS d
)
SELECT count(*) FILTER (WHERE waits) >= $1 AND count(*) FILTER (WHERE NOT waits) = 0 AND NOT EXISTS (SELECT FROM outbox.unmatched)
  FROM stuck`, want.failed)
	w.run.figures.drain = max(w.run.figures.drain, time.Since(began))
	w.lanes()
	w.verify(want)
}

// lanes waits until the lanes fit the open deliveries: each open delivery that may become due has a lane, and each lane
// has a delivery. After the death of a relay, another one may close a lane only after the lease.
func (w *world) lanes() {
	w.t.Helper()
	w.until("I7: every delivery has a lane, and every lane a delivery", `
SELECT NOT EXISTS (SELECT FROM outbox.delivery AS d
                    WHERE d.due_at < 'infinity' AND NOT EXISTS (SELECT FROM outbox.lane AS l WHERE l.sync = d.sync AND l.key = d.key))
   AND NOT EXISTS (SELECT FROM outbox.lane AS l
                    WHERE NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = l.sync AND d.key = l.key))`)
}

// fact is the state of an event and a sync in the database.
type fact struct {
	Sync, ID, Key string
	Seq           int64
	State         *string // of its delivery, null when finished
	Finished      int     // log rows that end it
	Sent          int     // … of which say that the receiver has it
	Replayed      int
	Requests      int // rows of attempts
	Answers       int // … with the receiver's status
	Unrecorded    int // … of which the outcome is not known, or was not recorded
}

const facts = `
SELECT s.name AS sync, e.id::text AS id, e.key, e.seq, d.state, l.*
  FROM outbox.event AS e
  JOIN outbox.sync AS s ON outbox.takes(s.name, s.likes, s.operator_likes, e.type, e.key)
  LEFT JOIN outbox.delivery AS d ON d.sync = s.name AND d.key = e.key AND d.event_id = e.id
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE l.outcome IN ('delivered', 'duplicate', 'accepted', 'filtered', 'superseded', 'discarded')) AS finished,
              count(*) FILTER (WHERE l.outcome IN ('delivered', 'duplicate', 'accepted')) AS sent,
              count(*) FILTER (WHERE l.outcome = 'replayed') AS replayed,
              count(*) FILTER (WHERE l.relay IS NOT NULL AND l.outcome NOT IN ('superseded', 'filtered')) AS requests,
              count(*) FILTER (WHERE l.code LIKE 'HTTP %') AS answers,
              count(*) FILTER (WHERE l.outcome IN ('unknown', 'lease_lost')) AS unrecorded
         FROM outbox.delivery_log AS l
        WHERE l.event_id = e.id AND l.sync = s.name) AS l
 ORDER BY e.seq`

// seen is what a receiver's ledger has of an event.
type seen struct {
	keys     map[string]bool // idempotency keys that it came with
	requests int
	accepted int // acknowledgements, repeated ones too
	first    int // place in the ledger of the first acknowledgement
}

// verify compares the receivers' ledgers with the events, the deliveries and the log. It checks the invariants of
// docs/guarantees.md.
func (w *world) verify(want expected) {
	w.t.Helper()
	rows, _ := w.pool.Query(w.t.Context(), facts)
	all, err := pgx.CollectRows(rows, pgx.RowToStructByName[fact])
	if err != nil {
		w.t.Fatal(err)
	}
	ledgers := map[string]map[string]*seen{}
	for name := range w.courts {
		ledgers[name] = w.read(name, want)
	}
	f := &w.run.figures
	f.events += ask[int](w, `SELECT count(*) FROM outbox.event`)
	failed := 0
	last := map[[2]string]*fact{} // per sync and key, the latest event that was acknowledged
	problem := w.problems()
	for i := range all {
		e := &all[i]
		s := ledgers[e.Sync][e.ID]
		if s == nil {
			s = &seen{}
		}
		what := fmt.Sprintf("event %d of key %s to %s", e.Seq, e.Key, e.Sync)
		if e.State != nil {
			failed++
		}
		switch {
		case e.State == nil && e.Finished == 0, e.Sent > 0 && s.accepted == 0:
			f.lost++
			problem("I1 I3", "%s was lost: %d ends in the log, %d acknowledgements", what, e.Finished, s.accepted)
		case e.State == nil && e.Finished > 1+e.Replayed:
			problem("I4", "%s was finished %d times", what, e.Finished)
		}
		if s.accepted > 1 {
			f.duplicates += s.accepted - 1
		}
		if s.accepted > 1+e.Unrecorded+e.Replayed+want.reopened {
			problem("I4", "%s was accepted %d times after %d attempts with no recorded outcome", what, s.accepted, e.Unrecorded)
		}
		if len(s.keys) > 1+e.Replayed && !want.tampered {
			problem("I4", "%s came with %d idempotency keys: %v", what, len(s.keys), slices.Sorted(maps.Keys(s.keys)))
		}
		if s.requests > e.Requests+want.reopened {
			problem("I5", "%s: the court read %d requests, the log has %d", what, s.requests, e.Requests)
		}
		if e.Answers > s.requests {
			problem("I5", "%s: the log has %d answers, the court read %d requests", what, e.Answers, s.requests)
		}
		if s.accepted == 0 {
			continue
		}
		line := [2]string{e.Sync, e.Key}
		if before := last[line]; before != nil && ledgers[e.Sync][before.ID].first > s.first {
			f.disorder++
			problem("I2", "%s was accepted before event %d of the same key", what, before.Seq)
		}
		last[line] = e
	}
	if failed != want.failed {
		problem("I3 I6", "%d deliveries are failed or behind one, want %d", failed, want.failed)
	}
}

// read groups a ledger by event, and checks that each idempotency key always came with the same bytes.
func (w *world) read(sync string, want expected) map[string]*seen {
	w.t.Helper()
	events := map[string]*seen{}
	bytes := map[string]string{}
	problem := w.problems()
	for i, e := range w.courts[sync].Ledger() {
		w.run.figures.attempts++
		if before, ok := bytes[e.IdempotencyKey]; ok && before != e.BodySHA256 && !want.tampered {
			problem("I4", "%s was sent to %s with two bodies", e.IdempotencyKey, sync)
		}
		bytes[e.IdempotencyKey] = e.BodySHA256
		id, _, _ := strings.Cut(e.IdempotencyKey, ":")
		if events[id] == nil {
			events[id] = &seen{keys: map[string]bool{}}
		}
		s := events[id]
		s.keys[e.IdempotencyKey] = true
		s.requests++
		if e.Accepted || e.Duplicate {
			if s.accepted++; s.accepted == 1 {
				s.first = i
			}
		}
	}
	return events
}

// problems reports violations of invariants, the first few of each kind.
func (w *world) problems() func(invariant, format string, args ...any) {
	counts := map[string]int{}
	return func(invariant, format string, args ...any) {
		w.t.Helper()
		if counts[invariant+format]++; counts[invariant+format] <= 5 {
			w.t.Errorf(invariant+": "+format, args...)
		}
	}
}

// logged counts log rows.
func (w *world) logged(where string, args ...any) int {
	w.t.Helper()
	return ask[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE `+where, args...)
}

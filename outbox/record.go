package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A recording is one transaction of up to three statements: what was finished
// leaves the table, what was not is put off, and then the lanes are settled. The
// last must be a statement of its own: it looks whether a lane has more to be sent once
// the lane is locked, and so it sees what was written until then.

// A row of a recording is a result. Its columns are written here once: the
// statements, their arguments and types come from it.
type column struct {
	name, typ string
	array     func([]Result, []int, time.Time) any
}

func columnOf[T any](name, typ string, value func(*Result, time.Time) T) column {
	return column{name, typ, func(results []Result, places []int, now time.Time) any {
		values := make([]T, len(places))
		for i, place := range places {
			values[i] = value(&results[place], now)
		}
		return values
	}}
}

var (
	columnKey      = columnOf("key", "text", func(r *Result, _ time.Time) string { return r.Delivery.Key })
	columnPlace    = columnOf("event_seq", "bigint", func(r *Result, _ time.Time) int64 { return r.Delivery.Place })
	columnClaim    = columnOf("claim", "uuid", func(r *Result, _ time.Time) pgtype.UUID { return r.Delivery.token })
	columnEvent    = columnOf("event_id", "uuid", func(r *Result, _ time.Time) pgtype.Text { return nullable(r.Delivery.Event.ID) })
	columnOutcome  = columnOf("outcome", "text", func(r *Result, _ time.Time) string { return string(r.Outcome) })
	columnAttempt  = columnOf("attempt", "boolean", func(r *Result, _ time.Time) bool { return r.Attempt })
	columnRevision = columnOf("revision", "bigint", func(r *Result, _ time.Time) int64 { return int64(r.Delivery.Revision) })
	columnSHA256   = columnOf("sha256", "text", func(r *Result, _ time.Time) pgtype.Text { return nullable(r.SHA256) })
	columnClass    = columnOf("class", "text", func(r *Result, _ time.Time) pgtype.Text { return nullable(r.Class) })
	columnError    = columnOf("error", "text", func(r *Result, _ time.Time) pgtype.Text { return nullable(r.Error) })

	columnLane = columnOf("lane", "tid", func(r *Result, _ time.Time) pgtype.TID { return r.Delivery.lane })
	columnRow  = columnOf("tid", "tid", func(r *Result, _ time.Time) pgtype.TID { return r.Delivery.row })

	// What a row of the log says of an attempt, whatever became of it.
	said = []column{
		columnKey, columnPlace, columnClaim, columnOutcome, columnAttempt, columnRevision, columnSHA256,
		columnOf("event_type", "text", func(r *Result, _ time.Time) string { return r.Delivery.Event.Type }),
		columnOf("version", "bigint", func(r *Result, _ time.Time) *int64 { return r.Delivery.Event.Version }),
		columnOf("code", "text", func(r *Result, _ time.Time) pgtype.Text { return nullable(r.Code) }),
		columnOf("answered_ms", "bigint", answeredBefore),
		columnOf("took_ms", "bigint", func(r *Result, _ time.Time) int64 { return r.Took.Milliseconds() }),
		columnOf("mapping_version", "text", mappingUsed),
	}
	reference = []column{
		columnOf("has_ref", "boolean", func(r *Result, _ time.Time) bool { return r.Ref != nil }),
		columnOf("external_id", "text", func(r *Result, _ time.Time) pgtype.Text { return nullable(r.reference().ExternalID) }),
		columnOf("etag", "text", func(r *Result, _ time.Time) pgtype.Text { return nullable(r.reference().ETag) }),
		columnOf("seq", "bigint", func(r *Result, _ time.Time) int64 { return r.Delivery.Event.Seq }),
	}
	putOff = []column{
		columnClass, columnError,
		columnOf("failed", "boolean", func(r *Result, _ time.Time) bool { return r.Failed }),
		columnOf("delay_ms", "bigint", func(r *Result, _ time.Time) int64 { return r.Delay.Milliseconds() }),
		columnOf("charge", "boolean", func(r *Result, _ time.Time) bool { return r.Charge }),
		columnOf("spend_ms", "bigint", func(r *Result, _ time.Time) int64 { return r.Spend.Milliseconds() }),
		columnOf("body", "bytea", bodySent),
	}

	finishedColumns = slices.Concat(said, reference, []column{
		columnLane, columnRow,
		columnOf("alone", "boolean", func(r *Result, _ time.Time) bool { return r.Delivery.alone }),
	})
	unfinishedColumns = slices.Concat(said, reference, putOff)
	lostColumns       = slices.Concat(said, []column{columnEvent, columnClass, columnError})
	askedColumns      = []column{columnKey, columnPlace, columnClaim, columnEvent}
)

// reference is what the log says of the receiver's copy: the new one, or the one
// that was known.
func (r *Result) reference() Ref {
	if r.Ref != nil {
		return *r.Ref
	}
	return r.Delivery.Ref
}

// answeredBefore is how long ago the receiver answered, in milliseconds.
func answeredBefore(r *Result, now time.Time) pgtype.Int8 {
	age := now.Sub(r.AnsweredAt)
	if r.AnsweredAt.IsZero() || age >= mostAnswerAge {
		return pgtype.Int8{}
	}
	return pgtype.Int8{Int64: max(age, 0).Milliseconds(), Valid: true}
}

// mostAnswerAge is how old an answer may be for its time to be recorded: the log
// refuses times that are a week old.
const mostAnswerAge = 6 * 24 * time.Hour

// mappingUsed is null for what was released: whatever was rendered, nothing of it
// was sent.
func mappingUsed(r *Result, _ time.Time) pgtype.Text {
	if r.Outcome == "" {
		return pgtype.Text{}
	}
	return nullable(r.Delivery.MappingVersion)
}

// bodySent is kept for the next attempt, byte for byte.
func bodySent(r *Result, _ time.Time) []byte {
	if r.Attempt && !r.Outcome.Finished() {
		return r.Delivery.Body
	}
	return nil
}

// nullable is null for what is not known.
func nullable(s string) pgtype.Text { return pgtype.Text{String: s, Valid: s != ""} }

// rowsOf is a table expression of columns, whose parameters begin at first. The
// column n is a row's place among the results that are passed.
func rowsOf(columns []column, first int) string {
	var arrays, names []string
	for i, c := range columns {
		arrays = append(arrays, fmt.Sprintf("$%d::%s[]", first+i, c.typ))
		names = append(names, c.name)
	}
	return "unnest(" + strings.Join(arrays, ", ") + ") WITH ORDINALITY AS i (" + strings.Join(names, ", ") + ", n)"
}

// rows are the arguments for it: the results at these places.
func rows(args []any, columns []column, results []Result, places []int) []any {
	now := time.Now()
	for _, c := range columns {
		args = append(args, c.array(results, places, now))
	}
	return args
}

// recordFinished removes finished deliveries, writes their log rows and their
// references, all or none of a row, if the claim is still there. Rows are looked
// up by the ctid that the claim returned. One that somebody else has locked, or has changed
// since, is left for the next try. A lane in which nothing else stands is closed
// with it; a delivery that this does not see yet has the lane opened again (see
// Arrivals). The answer lists what was recorded.
var recordFinished = `-- lockstep: record finished
WITH input AS MATERIALIZED (
    SELECT i.*, d.event_id, d.total_attempts,
           i.alone AND l.untouched AND NOT EXISTS (SELECT FROM outbox.delivery AS o WHERE o.sync = $1 AND o.key = i.key AND o.event_seq <> i.event_seq OFFSET 0) AS last
      FROM ` + rowsOf(finishedColumns, 3) + `
     CROSS JOIN LATERAL (
           SELECT d.event_id, d.total_attempts
             FROM outbox.delivery AS d
            WHERE d.ctid = i.tid AND d.sync = $1 AND d.key = i.key AND d.event_seq = i.event_seq
              AND (d.xmax = '0' OR EXISTS (SELECT FROM outbox.delivery AS o WHERE o.ctid = d.ctid FOR UPDATE SKIP LOCKED))
            OFFSET 0) AS d
     CROSS JOIN LATERAL (
           SELECT l.xmax = '0' AS untouched
             FROM outbox.lane AS l
            WHERE l.ctid = i.lane AND l.sync = $1 AND l.key = i.key AND l.claim = i.claim
            OFFSET 0) AS l
), closed AS (
    DELETE FROM outbox.lane AS l
     USING input AS i
     WHERE i.last AND l.ctid = i.lane AND l.claim = i.claim
    RETURNING i.*
), held AS MATERIALIZED (
    SELECT i.*
      FROM input AS i
     CROSS JOIN LATERAL (
           SELECT FROM outbox.lane AS l
            WHERE NOT i.last AND l.ctid = i.lane AND l.claim = i.claim
              FOR UPDATE SKIP LOCKED) AS l
), removed AS (
    DELETE FROM outbox.delivery AS d
     USING (SELECT * FROM closed UNION ALL SELECT * FROM held) AS h
     WHERE d.ctid = h.tid
    RETURNING h.*
), logged AS (
    INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, external_id,
                                     request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay)
    SELECT clock_timestamp() - h.answered_ms * interval '1 millisecond', $1, h.event_id, h.event_type, h.key, h.version,
           CASE WHEN h.attempt THEN h.total_attempts + 1 END, h.outcome, h.code, h.external_id,
           h.sha256, h.mapping_version, h.revision, h.event_seq, h.took_ms, h.claim, $2
      FROM removed AS h
)`

// recordReferences is the end of recordFinished where receivers named their copy,
// apart because most do not: each part of a statement costs, used or not.
const recordReferences = `, referenced AS (
    INSERT INTO outbox.external_ref AS r (sync, key, external_id, etag, version, request_sha256, event_seq)
    SELECT $1, h.key, h.external_id, h.etag, h.version, h.sha256, h.seq
      FROM removed AS h
     WHERE h.has_ref
    ON CONFLICT (sync, key) DO UPDATE
       SET external_id = excluded.external_id, etag = excluded.etag, version = excluded.version,
           request_sha256 = excluded.request_sha256, updated_at = clock_timestamp(), event_seq = excluded.event_seq
     WHERE CASE WHEN r.version IS NOT NULL AND excluded.version IS NOT NULL
                THEN excluded.version >= r.version ELSE excluded.event_seq >= r.event_seq END
)`

const removedRows = `
SELECT n FROM removed`

// recordUnfinished puts deliveries off: for the next attempt, or as failed. With an
// empty outcome nothing was sent, and the delivery stays as it is. The lane gets
// another claim, of this recording alone, by which settleLanes knows what was recorded here.
var recordUnfinished = `-- lockstep: record unfinished
WITH held AS MATERIALIZED (
    SELECT i.*, l.lane, d.tid, d.event_id, d.total_attempts
      FROM ` + rowsOf(unfinishedColumns, 4) + `
     CROSS JOIN LATERAL (
           SELECT l.ctid AS lane
             FROM outbox.lane AS l
            WHERE l.sync = $1 AND l.key = i.key AND l.claim = i.claim
              FOR UPDATE SKIP LOCKED) AS l
      LEFT JOIN LATERAL (
           SELECT d.ctid AS tid, d.event_id, d.total_attempts
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.key = i.key AND d.event_seq = i.event_seq
              FOR UPDATE SKIP LOCKED) AS d ON true
     WHERE d.tid IS NOT NULL OR i.outcome = ''
), released AS (
    UPDATE outbox.lane AS l SET claim = $3 FROM held AS h WHERE l.ctid = h.lane
), changed AS (
    UPDATE outbox.delivery AS d
       SET state = CASE WHEN h.failed THEN 'failed' WHEN h.attempt OR d.attempts > 0 THEN 'retry' ELSE 'pending' END,
           due_at = CASE WHEN h.failed THEN 'infinity' ELSE clock_timestamp() + h.delay_ms * interval '1 millisecond' END,
           attempts = d.attempts + h.attempt::int, total_attempts = d.total_attempts + h.attempt::int,
           charged = d.charged + h.charge::int, spent_ms = d.spent_ms + h.spend_ms,
           error_class = h.class, error = h.error,
           body = coalesce(h.body, d.body),
           body_sha256 = coalesce(encode(sha256(h.body), 'hex'), d.body_sha256),
           mapping_version = coalesce(h.mapping_version, d.mapping_version),
           revision = h.revision
      FROM held AS h
     WHERE d.ctid = h.tid AND h.outcome <> ''
), logged AS (
    INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, error_class, error,
                                     request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay)
    SELECT clock_timestamp() - h.answered_ms * interval '1 millisecond', $1, h.event_id, h.event_type, h.key, h.version,
           CASE WHEN h.attempt THEN h.total_attempts + 1 END, h.outcome, h.code, h.class, h.error,
           h.sha256, h.mapping_version, h.revision, h.event_seq, h.took_ms, h.claim, $2
      FROM held AS h
     WHERE h.outcome <> ''
), referenced AS (
    -- Read back after a conflict: how to address the receiver's copy, of which the version is not known.
    INSERT INTO outbox.external_ref AS r (sync, key, external_id, etag, event_seq)
    SELECT $1, h.key, h.external_id, h.etag, 0
      FROM held AS h
     WHERE h.has_ref AND h.outcome <> ''
    ON CONFLICT (sync, key) DO UPDATE
       SET external_id = excluded.external_id, etag = excluded.etag, updated_at = clock_timestamp()
)
SELECT n FROM held`

// settleLanes says of each lane what is next, as it stands now: the lane goes on
// with its first delivery under the same claim, or waits until that is due, or is
// closed since nothing is left. A lane whose first delivery has failed waits for an
// operator; where failed ones are superseded, it becomes due for whatever stands
// behind and was not judged yet. Where somebody has the first delivery locked, the
// lane is due again soon: a discard that began before the lane was opened does
// not make it due.
//
// The place of a delivery that was finished is above 0; the row counts once that delivery
// is gone. It is 0 where the delivery was put off or given back, and -1 where nothing was
// read of the lane: then what became of the claim before it is still to be logged.
const settleLanes = `-- lockstep: settle lanes
WITH held AS MATERIALIZED (
    SELECT scope` + holdsInForce + `
), given AS MATERIALIZED (
    SELECT i.*, l.lane, l.crashes, l.lost_claim, l.in_scope, l.judged,
           i.stays AND l.crashes < 2 AND NOT EXISTS (SELECT FROM held AS h WHERE h.scope IN ('', l.in_scope)) AS may
      FROM unnest($3::text[], $4::uuid[], $5::bigint[], $6::boolean[], $7::text[], $8::tid[]) AS i (key, claim, place, stays, scope, was)
     CROSS JOIN LATERAL (
           SELECT l.ctid AS lane, l.crashes, l.lost_claim, l.scope AS in_scope, CASE WHEN i.place > 0 THEN 0 ELSE l.judged END AS judged
             FROM outbox.lane AS l
            WHERE l.ctid = coalesce(i.was, (SELECT o.ctid FROM outbox.lane AS o WHERE o.sync = $1 AND o.key = i.key AND i.was IS NULL))
              AND l.sync = $1 AND l.key = i.key AND l.claim = i.claim
              FOR UPDATE SKIP LOCKED) AS l
), first AS MATERIALIZED (
    SELECT g.*, f.tid, f.state, f.due_at, f.event_seq, f.touched
      FROM given AS g
      LEFT JOIN LATERAL (
           SELECT d.ctid AS tid, d.state, d.due_at, d.event_seq, d.xmax <> '0' AS touched
             FROM outbox.delivery AS d
            WHERE d.sync = $1 AND d.key = g.key
            ORDER BY d.event_seq
            LIMIT 1) AS f ON true
     WHERE f.event_seq IS NULL OR f.event_seq > g.place
        OR f.event_seq < g.place AND NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = $1 AND d.key = g.key AND d.event_seq = g.place OFFSET 0)
), next AS MATERIALIZED (
    SELECT f.lane AS was, f.crashes, NULL::uuid AS lost_claim, f.in_scope AS scope, f.tid, false AS alone, d.*
      FROM first AS f
     CROSS JOIN LATERAL (
           SELECT d.*
             FROM outbox.delivery AS d
            WHERE f.may AND f.state <> 'failed' AND f.due_at <= clock_timestamp() AND d.ctid = f.tid AND ` + unlocked + `) AS d
), locked AS MATERIALIZED ( -- somebody is just discarding or requeueing the first
    SELECT f.lane
      FROM first AS f
     WHERE f.touched AND f.lane NOT IN (SELECT was FROM next)
       AND NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.ctid = f.tid FOR UPDATE SKIP LOCKED)
), closed AS (
    DELETE FROM outbox.lane AS l
     USING first AS f
     WHERE l.ctid = f.lane AND f.tid IS NULL
), policy AS MATERIALIZED ( -- read only if a delivery has failed; Store.Apply waits for it, or it is looked at again
    SELECT s.on_failed FROM outbox.sync AS s WHERE s.name = $1 FOR KEY SHARE SKIP LOCKED
), settled AS (
    UPDATE outbox.lane AS l
       SET claim = NULL, claimed_by = NULL, judged = CASE WHEN f.lane IN (SELECT lane FROM locked) THEN 0 ELSE f.judged END,
           lost_claim = CASE WHEN f.place < 0 THEN l.lost_claim END, lost_by = CASE WHEN f.place < 0 THEN l.lost_by END,
           scope = coalesce(f.scope, l.scope),
           crashes = CASE WHEN f.place > 0 OR f.state = 'failed' THEN 0 ELSE l.crashes END,
           due_at = CASE WHEN f.lane IN (SELECT lane FROM locked) THEN clock_timestamp() + least(interval '50 milliseconds' * (1 + (SELECT count(*) FROM locked) / 5), interval '5 seconds')
                         WHEN f.state <> 'failed' THEN greatest(f.due_at, clock_timestamp())
                         WHEN (SELECT on_failed FROM policy) IS NULL THEN clock_timestamp() + interval '1 second'
                         WHEN (SELECT on_failed FROM policy) = 'supersede'
                              AND EXISTS (SELECT FROM outbox.delivery AS d
                                           WHERE d.sync = $1 AND d.key = f.key AND d.event_seq > greatest(f.judged, f.event_seq)
                                             AND (d.state = 'failed' OR d.due_at < 'infinity'))
                         THEN clock_timestamp()
                         ELSE 'infinity' END
      FROM first AS f
     WHERE l.ctid = f.lane AND f.tid IS NOT NULL AND f.lane NOT IN (SELECT was FROM next)
), kept AS ( -- what it remembers of the delivery before
    UPDATE outbox.lane AS l
       SET crashes = 0, judged = 0, lost_claim = NULL, lost_by = NULL
      FROM next AS n
     WHERE l.ctid = n.was AND (l.crashes > 0 OR l.judged > 0 OR l.lost_claim IS NOT NULL)
    RETURNING n.was, l.ctid AS lane
)
SELECT c.key, ` + claimedColumns + `
  FROM (SELECT n.*, coalesce(k.lane, n.was) AS lane FROM next AS n LEFT JOIN kept AS k ON k.was = n.was) AS c` + claimedTables

// whatBecame judges rows that were not recorded: done before (the answer to that
// recording was lost), still ours (somebody else holds a row locked), or gone.
var whatBecame = `-- lockstep: what became of results
SELECT i.n,
       EXISTS (SELECT FROM outbox.delivery_log AS l
                WHERE l.event_id = i.event_id AND l.claim = i.claim AND l.event_seq = i.event_seq -- a replay may be sent under the claim of the delivery before
                  -- an unknown without a duration was written by whoever took the claim over
                  AND (l.outcome NOT IN ('unknown', 'lease_lost') OR l.outcome = 'unknown' AND l.took_ms IS NOT NULL)) AS recorded,
       (SELECT l.ctid FROM outbox.lane AS l
         WHERE l.sync = $1 AND l.key = i.key AND l.claim = i.claim) AS lane,
       (SELECT d.ctid FROM outbox.delivery AS d
         WHERE d.sync = $1 AND d.key = i.key AND d.event_seq = i.event_seq) AS tid
  FROM ` + rowsOf(askedColumns, 2)

// stillClaimed are those of some lanes that still have the given claims.
const stillClaimed = `-- lockstep: lanes still claimed
SELECT coalesce(array_agg(l.key), '{}')
  FROM unnest($2::text[], $3::uuid[]) AS i (key, claim)
  JOIN outbox.lane AS l ON l.sync = $1 AND l.key = i.key AND l.claim = i.claim`

// recordLost writes down what is known of attempts whose claim is gone. The lane
// belongs to somebody else now; only the count of crashes is put right, since this
// relay evidently lives. A claim that the log does not know is of a database that has
// failed over, or was restored, since: the row has it in its reason, for only
// known claims stand in the log's own column.
var recordLost = `-- lockstep: lease lost
WITH input AS MATERIALIZED (
    SELECT * FROM ` + rowsOf(lostColumns, 3) + `
), alive AS (
    UPDATE outbox.lane AS l
       SET crashes = greatest(l.crashes - 1, 0)
      FROM (SELECT o.tid
              FROM input AS i
             CROSS JOIN LATERAL (
                   SELECT o.ctid AS tid
                     FROM outbox.lane AS o
                    WHERE o.sync = $1 AND o.key = i.key AND o.crashes > 0
                      FOR UPDATE SKIP LOCKED) AS o) AS f
     WHERE l.ctid = f.tid
)
INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, outcome, code, error_class, error,
                                 request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, reason)
SELECT clock_timestamp() - i.answered_ms * interval '1 millisecond', $1, i.event_id, i.event_type, i.key, i.version,
       'lease_lost', i.code, i.class, i.error, i.sha256, i.mapping_version, i.revision, i.event_seq, i.took_ms, known.claim, $2,
       'the answer came after the lease: ' || i.outcome
       || CASE WHEN known.claim IS NULL THEN format('; this database does not know the claim %s', i.claim) ELSE '' END
  FROM input AS i
  LEFT JOIN LATERAL (
       SELECT l.claim FROM outbox.delivery_log AS l
        WHERE l.event_id = i.event_id AND l.sync = $1 AND l.claim = i.claim
        LIMIT 1) AS known ON true`

// Recorded is the answer of [Store.Record]: one entry per result.
type Recorded struct {
	Done []bool      // the result stands in the database
	Lost []bool      // the claim was gone: logged as lease_lost, nothing else changed
	Next []*Delivery // the next deliveries of lanes that stay claimed
	Err  error       // why some are neither done nor lost; they may be given again
}

// Record writes results of one sync in one round trip, no two of one key, each
// fenced by its claim. Lanes whose result says Stay go on with their next delivery
// under the same claim, unless the sync or the lane's scope is on hold or the lane is a
// suspect: then, and without Stay, the lane is given back. What is neither done nor lost afterwards may
// be recorded again: a recording whose answer was lost is found in the log.
func (s *Store) Record(ctx context.Context, sync string, results []Result) Recorded {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	r := Recorded{Done: make([]bool, len(results)), Lost: make([]bool, len(results))}
	if len(results) == 0 {
		return r
	}
	if err := s.recordBatch(ctx, s.pool, sync, results, &r); err != nil {
		clear(r.Done) // nothing of the batch stands
		r.Err, r.Next = s.judge(ctx, err), nil
		return r
	}
	var missing []int
	for i := range results {
		if !r.Done[i] {
			missing = append(missing, i)
		}
	}
	if len(missing) > 0 {
		r.Err = s.judge(ctx, s.whatBecame(ctx, sync, results, missing, &r))
	}
	return r
}

// sender is a pool or a transaction.
type sender interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// recordBatch sends everything in one round trip and one transaction.
func (s *Store) recordBatch(ctx context.Context, on sender, sync string, results []Result, r *Recorded) error {
	var finished, unfinished []int
	var lanes lanesToSettle
	recording := newToken()
	tokens := make(map[string]pgtype.UUID, len(results))
	for i := range results {
		result := &results[i]
		if result.Outcome.Finished() {
			finished = append(finished, i)
			lanes.add(result, result.Delivery.token, result.Delivery.Place)
			tokens[result.Delivery.Key] = result.Delivery.token
		} else {
			unfinished = append(unfinished, i)
			place := int64(0)
			if result.Delivery.Place == 0 {
				place = -1
			}
			lanes.add(result, recording, place)
		}
	}
	note := func(places []int) func(pgx.Rows) error {
		return func(rows pgx.Rows) error {
			var n int
			_, err := pgx.ForEachRow(rows, []any{&n}, func() error {
				r.Done[places[n-1]] = true
				return nil
			})
			return err
		}
	}
	batch := &pgx.Batch{}
	if len(finished) > 0 {
		statement := recordFinished + removedRows
		if slices.ContainsFunc(finished, func(i int) bool { return results[i].Ref != nil }) {
			statement = recordFinished + recordReferences + removedRows
		}
		batch.Queue(statement, rows([]any{sync, s.relay}, finishedColumns, results, finished)...).Query(note(finished))
	}
	if len(unfinished) > 0 {
		batch.Queue(recordUnfinished, rows([]any{sync, s.relay, recording}, unfinishedColumns, results, unfinished)...).Query(note(unfinished))
	}
	batch.Queue(settleLanes, lanes.args(sync)...).Query(func(rows pgx.Rows) (err error) {
		r.Next, err = scanNext(rows, sync, tokens)
		return err
	})
	if err := on.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("record %d result(s): %w", len(results), err)
	}
	return nil
}

// lanesToSettle are the arguments of settleLanes.
type lanesToSettle struct {
	keys   []string
	claims []pgtype.UUID
	places []int64
	stay   []bool
	scopes []pgtype.Text
	lanes  []pgtype.TID // where they are; null where that is not known
}

func (l *lanesToSettle) add(r *Result, claim pgtype.UUID, place int64) {
	l.keys = append(l.keys, r.Delivery.Key)
	l.claims = append(l.claims, claim)
	l.places = append(l.places, place)
	l.stay = append(l.stay, r.Stay && place > 0)
	scope := pgtype.Text{}
	if r.Scope != nil {
		scope = pgtype.Text{String: *r.Scope, Valid: true}
	}
	l.scopes = append(l.scopes, scope)
	lane := pgtype.TID{}
	if place > 0 {
		lane = r.Delivery.lane
	}
	l.lanes = append(l.lanes, lane)
}

func (l *lanesToSettle) args(sync string) []any {
	return []any{sync, false, l.keys, l.claims, l.places, l.stay, l.scopes, l.lanes}
}

// whatBecame finds out what became of results that the recording did not take.
func (s *Store) whatBecame(ctx context.Context, sync string, results []Result, missing []int, r *Recorded) error {
	found, err := s.pool.Query(ctx, whatBecame, rows([]any{sync}, askedColumns, results, missing)...)
	if err != nil {
		return err
	}
	var n int
	var recorded bool
	var lane, row pgtype.TID
	var lost, settled []int
	var stayed lanesToSettle
	tokens := map[string]pgtype.UUID{}
	_, err = pgx.ForEachRow(found, []any{&n, &recorded, &lane, &row}, func() error {
		i := missing[n-1]
		d := results[i].Delivery
		known := slices.ContainsFunc(r.Next, func(next *Delivery) bool { return next.Key == d.Key })
		if !recorded && lane.Valid && !row.Valid && d.Place > 0 && !known { // it was discarded: an earlier one had come in front
			stayed.add(&results[i], d.token, d.Place)
			stayed.lanes[len(stayed.lanes)-1] = lane
			tokens[d.Key] = d.token
		}
		switch {
		case recorded && lane.Valid && results[i].Outcome.Finished() && !known: // the lane stays claimed, as the lost answer said
			stayed.add(&results[i], d.token, d.Place)
			stayed.lanes[len(stayed.lanes)-1] = lane
			tokens[d.Key] = d.token
			settled = append(settled, i)
		case recorded:
			r.Done[i] = true
		case lane.Valid && (row.Valid || results[i].Outcome == ""):
			d.lane, d.row = lane, row
		case results[i].Outcome == "":
			r.Done[i] = true // it was given back, or is somebody else's: nothing was sent
		case !results[i].Attempt:
			r.Lost[i] = true // nothing was sent: nothing to say
		default:
			lost = append(lost, i)
		}
		return nil
	})
	var kept []string // lanes that somebody else had locked are still claimed
	if err == nil && len(stayed.keys) > 0 {
		var rows pgx.Rows
		if rows, err = s.pool.Query(ctx, settleLanes, stayed.args(sync)...); err == nil {
			var next []*Delivery
			next, err = scanNext(rows, sync, tokens)
			r.Next = append(r.Next, next...)
		}
		if err == nil {
			err = s.pool.QueryRow(ctx, stillClaimed, sync, stayed.keys, stayed.claims).Scan(&kept)
		}
		for _, i := range settled {
			key := results[i].Delivery.Key
			goesOn := slices.ContainsFunc(r.Next, func(next *Delivery) bool { return next.Key == key })
			r.Done[i] = goesOn || err == nil && !slices.Contains(kept, key) // else it is asked for again
		}
	}
	lost = slices.DeleteFunc(lost, func(i int) bool { // asked for again
		key := results[i].Delivery.Key
		return slices.Contains(kept, key) && !slices.ContainsFunc(r.Next, func(next *Delivery) bool { return next.Key == key })
	})
	if err != nil || len(lost) == 0 {
		return err
	}
	if _, err = s.pool.Exec(ctx, recordLost, rows([]any{sync, s.relay}, lostColumns, results, lost)...); err != nil {
		return err
	}
	for _, i := range lost {
		r.Lost[i] = true
	}
	return nil
}

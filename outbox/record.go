package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A recording is one transaction of up to four statements. recordReads logs what was read at
// the receiver. recordFinished removes the
// finished deliveries. recordUnfinished schedules the next attempt of the others.
// settleLanes decides what happens next with each lane. It is a separate statement because
// it must see everything that was committed before the lane was locked.

// column is one value of each result that is recorded. The statements, their arguments and
// the types of the arguments are made from the columns.
type column struct {
	name, typ string
	array     func(results []Result, indexes []int) any
}

func columnOf[T any](name, typ string, value func(*Result) T) column {
	return column{name, typ, func(results []Result, indexes []int) any {
		values := make([]T, len(indexes))
		for i, index := range indexes {
			values[i] = value(&results[index])
		}
		return values
	}}
}

var (
	columnKey      = columnOf("key", "text", func(r *Result) string { return r.Delivery.Key })
	columnPosition = columnOf("event_seq", "bigint", func(r *Result) int64 { return r.Delivery.Position })
	columnClaim    = columnOf("claim", "uuid", func(r *Result) pgtype.UUID { return r.Delivery.token })
	columnEvent    = columnOf("event_id", "uuid", func(r *Result) pgtype.Text { return nullable(r.Delivery.Event.ID) })
	columnOutcome  = columnOf("outcome", "text", func(r *Result) string { return string(r.Outcome) })
	columnAttempt  = columnOf("attempt", "boolean", func(r *Result) bool { return r.Attempt })
	columnRevision = columnOf("revision", "bigint", func(r *Result) int64 { return int64(r.Delivery.Revision) })
	columnSHA256   = columnOf("sha256", "text", func(r *Result) pgtype.Text { return nullable(r.SHA256) })
	columnClass    = columnOf("class", "text", func(r *Result) pgtype.Text { return nullable(r.Class) })
	columnError    = columnOf("error", "text", func(r *Result) pgtype.Text { return nullable(r.Error) })

	columnReason = columnOf("reason", "text", func(r *Result) pgtype.Text { return nullable(r.Reason) })

	columnLane = columnOf("lane", "tid", func(r *Result) pgtype.TID { return r.Delivery.lane })
	columnTID  = columnOf("tid", "tid", func(r *Result) pgtype.TID { return r.Delivery.tid })

	// The columns of the log for every outcome.
	logColumns = []column{
		columnKey, columnPosition, columnClaim, columnOutcome, columnAttempt, columnRevision, columnSHA256,
		columnOf("event_type", "text", func(r *Result) string { return r.Delivery.Event.Type }),
		columnOf("version", "bigint", func(r *Result) *int64 { return r.Delivery.Event.Version }),
		columnOf("code", "text", func(r *Result) pgtype.Text { return nullable(r.Code) }),
		columnOf("answered_ms", "bigint", answeredBefore),
		columnOf("took_ms", "bigint", func(r *Result) int64 { return r.Took.Milliseconds() }),
		columnOf("mapping_version", "text", mappingUsed),
	}
	referenceColumns = []column{
		columnOf("has_ref", "boolean", func(r *Result) bool { return r.Ref != nil }),
		columnOf("external_id", "text", func(r *Result) pgtype.Text { return nullable(r.reference().ExternalID) }),
		columnOf("etag", "text", func(r *Result) pgtype.Text { return nullable(r.reference().ETag) }),
		columnOf("times_set", "int", func(r *Result) int32 { return r.Delivery.Ref.timesSet }),
		columnOf("learned", "text", learned),
	}
	retryColumns = []column{
		columnClass, columnError, columnReason,
		columnOf("failed", "boolean", func(r *Result) bool { return r.Failed }),
		columnOf("delay_ms", "bigint", func(r *Result) int64 { return r.Delay.Milliseconds() }),
		columnOf("charge", "boolean", func(r *Result) bool { return r.Charge }),
		columnOf("unclear", "boolean", func(r *Result) bool { return r.Unclear }),
		columnOf("spend_ms", "bigint", func(r *Result) int64 { return r.Spend.Milliseconds() }),
		columnOf("body", "bytea", bodySent),
	}

	finishedColumns = slices.Concat(logColumns, referenceColumns, []column{
		columnLane, columnTID, columnReason,
		columnOf("is_alone", "boolean", func(r *Result) bool { return r.Delivery.isAlone }),
	})
	unfinishedColumns = slices.Concat(logColumns, referenceColumns, retryColumns)
	readColumns       = []column{
		columnKey, columnPosition, columnClaim,
		columnOf("event_type", "text", func(r *Result) string { return r.Delivery.Event.Type }),
		columnOf("version", "bigint", func(r *Result) *int64 { return r.Delivery.Event.Version }),
		columnOf("code", "text", func(r *Result) pgtype.Text { return nullable(r.Read.Code) }),
		columnOf("class", "text", func(r *Result) pgtype.Text { return nullable(r.Read.Class) }),
		columnOf("error", "text", func(r *Result) pgtype.Text { return nullable(r.Read.Error) }),
		columnOf("says", "text", func(r *Result) pgtype.Text { return nullable(r.Read.Says) }),
		columnOf("took_ms", "bigint", func(r *Result) int64 { return r.Read.Took.Milliseconds() }),
	}
	lostColumns    = slices.Concat(logColumns, []column{columnEvent, columnClass, columnError})
	missingColumns = []column{columnKey, columnPosition, columnClaim, columnEvent}
)

// reference is the reference for the log: the new one, or the known one.
func (r *Result) reference() Ref {
	if r.Ref != nil {
		return *r.Ref
	}
	return r.Delivery.Ref
}

// learned is a JSON object, or null if the new reference has no learnt values.
func learned(r *Result) pgtype.Text {
	if r.Ref == nil || len(r.Ref.Learned) == 0 {
		return pgtype.Text{}
	}
	object, err := json.Marshal(r.Ref.Learned)
	if err != nil {
		panic(err) // texts always encode
	}
	return nullable(string(object))
}

// answeredBefore is how long ago the receiver answered, in milliseconds.
func answeredBefore(r *Result) pgtype.Int8 {
	age := time.Since(r.AnsweredAt)
	if r.AnsweredAt.IsZero() || age >= mostAnswerAge {
		return pgtype.Int8{}
	}
	return pgtype.Int8{Int64: max(age, 0).Milliseconds(), Valid: true}
}

// mostAnswerAge is how old an answer may be for its time to be recorded: the log
// refuses times that are a week old.
const mostAnswerAge = 6 * 24 * time.Hour

// mappingUsed is null for a released delivery: it may be rendered, but it was not sent.
func mappingUsed(r *Result) pgtype.Text {
	if r.Outcome == "" {
		return pgtype.Text{}
	}
	return nullable(r.Delivery.MappingVersion)
}

// bodySent is the body that the next attempt sends again, byte for byte.
func bodySent(r *Result) []byte {
	if r.Attempt && !r.Outcome.Finished() {
		return r.Delivery.Body
	}
	return nil
}

// nullable is null for an empty text.
func nullable(s string) pgtype.Text { return pgtype.Text{String: s, Valid: s != ""} }

// rowsOf is a table expression i of the columns. Its first parameter has the number first.
// Its column n is the index of a result among those that are passed, from 1.
func rowsOf(columns []column, first int) string {
	var arrays, names []string
	for i, c := range columns {
		arrays = append(arrays, fmt.Sprintf("$%d::%s[]", first+i, c.typ))
		names = append(names, c.name)
	}
	return "unnest(" + strings.Join(arrays, ", ") + ") WITH ORDINALITY AS i (" + strings.Join(names, ", ") + ", n)"
}

// namesOf names the parameters of rowsOf, for people.
func namesOf(columns []column, first int) string {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = fmt.Sprintf("$%d %s", first+i, c.name)
	}
	return strings.Join(names, ", ")
}

// rows adds the arguments of rowsOf to args: the results with these indexes.
func rows(args []any, columns []column, results []Result, indexes []int) []any {
	for _, c := range columns {
		args = append(args, c.array(results, indexes))
	}
	return args
}

// recordFinished removes finished deliveries, and writes their log rows and references. It
// does all of it for a result, or nothing, and only if the claim is still there. It finds
// rows by the ctid that the claim returned. If a row is locked, or was changed since, the
// result is not recorded: the caller tries again. If the lane has no other delivery, the
// lane is closed too. A new delivery may not be visible yet: then a poll opens the lane
// again (see Arrivals). The answer lists the results that were recorded.
var recordFinished = `-- lockstep: record finished
-- $1 sync, $2 relay, of each result ` + namesOf(finishedColumns, 3) + `
WITH result AS MATERIALIZED (
    SELECT i.*, d.event_id, d.total_attempts,
           i.is_alone AND l.untouched AND NOT EXISTS (SELECT FROM outbox.delivery AS o WHERE o.sync = $1 AND o.key = i.key AND o.event_seq <> i.event_seq OFFSET 0) AS is_last
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
), closed_lane AS (
    DELETE FROM outbox.lane AS l
     USING result AS i
     WHERE i.is_last AND l.ctid = i.lane AND l.claim = i.claim
    RETURNING i.*
), locked_lane AS MATERIALIZED (
    SELECT i.*
      FROM result AS i
     CROSS JOIN LATERAL (
           SELECT FROM outbox.lane AS l
            WHERE NOT i.is_last AND l.ctid = i.lane AND l.claim = i.claim
              FOR UPDATE SKIP LOCKED) AS l
), removed AS (
    DELETE FROM outbox.delivery AS d
     USING (SELECT * FROM closed_lane UNION ALL SELECT * FROM locked_lane) AS i
     WHERE d.ctid = i.tid
    RETURNING i.*
), logged AS (
    INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, external_id,
                                     request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, reason)
    SELECT clock_timestamp() - r.answered_ms * interval '1 millisecond', $1, r.event_id, r.event_type, r.key, r.version,
           CASE WHEN r.attempt THEN r.total_attempts + 1 END, r.outcome, r.code, r.external_id,
           r.sha256, r.mapping_version, r.revision, r.event_seq, r.took_ms, r.claim, $2, r.reason
      FROM removed AS r
)`

// recordReads logs what relays have read at the receiver. It runs before the statement that
// ends the claim. If that statement leaves a result for later, its read is in the log.
var recordReads = `-- lockstep: record reads
-- $1 sync, $2 relay, of each result ` + namesOf(readColumns, 3) + `
INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, outcome, code, error_class, error, revision, event_seq, took_ms, claim, relay, reason)
SELECT $1, d.event_id, i.event_type, i.key, i.version, 'read', i.code, i.class, i.error, d.revision, i.event_seq, i.took_ms, i.claim, $2, i.says
  FROM ` + rowsOf(readColumns, 3) + `
 CROSS JOIN LATERAL (
       SELECT d.event_id, d.revision
         FROM outbox.lane AS l
         JOIN outbox.delivery AS d ON d.sync = l.sync AND d.key = l.key
        WHERE l.sync = $1 AND l.key = i.key AND l.claim = i.claim AND d.event_seq = i.event_seq
        OFFSET 0) AS d
 WHERE NOT EXISTS (SELECT FROM outbox.delivery_log AS o
                    WHERE o.event_id = d.event_id AND o.claim = i.claim AND o.event_seq = i.event_seq AND o.outcome = 'read')`

// recordReferences is the part of recordFinished that writes references. Few receivers
// return one, and each part of a statement costs time even if it has nothing to do. The
// answer of a later delivery of the lane stays, and so does a reference that a person has
// set since the claim (see outbox.set_reference). References are written in the order of the
// keys, as by lockstep ref import, so that they do not wait for each other in a circle.
const recordReferences = `, referenced AS (
    INSERT INTO outbox.external_ref AS old (sync, key, external_id, etag, learned, version, request_sha256, event_seq, times_set)
    SELECT $1, r.key, r.external_id, r.etag, coalesce(r.learned, '{}')::jsonb, r.version, r.sha256, r.event_seq, r.times_set
      FROM removed AS r
     WHERE r.has_ref
     ORDER BY r.key COLLATE "C"
    ON CONFLICT (sync, key) DO UPDATE
       SET external_id = excluded.external_id, etag = excluded.etag, learned = excluded.learned, version = excluded.version,
           request_sha256 = excluded.request_sha256, updated_at = clock_timestamp(), event_seq = excluded.event_seq
     WHERE excluded.event_seq >= old.event_seq AND excluded.times_set = old.times_set
)`

// recordAccepted is the part of recordFinished that notes what the receiver has not processed
// yet. The last such event of a key stays until it is settled.
const recordAccepted = `, unconfirmed AS (
    INSERT INTO outbox.unconfirmed AS old (sync, key, event_id, event_seq)
    SELECT $1, r.key, r.event_id, r.event_seq
      FROM removed AS r
     WHERE r.outcome = 'accepted'
     ORDER BY r.key COLLATE "C"
    ON CONFLICT (sync, key) DO UPDATE
       SET event_id = excluded.event_id, event_seq = excluded.event_seq, accepted_at = excluded.accepted_at, ask_at = excluded.ask_at, asked = 0
     WHERE excluded.event_seq >= old.event_seq
)`

const removedRows = `
SELECT n FROM removed`

// recordUnfinished schedules the next attempt of deliveries, or marks them failed. An empty
// outcome means that nothing was sent: the delivery does not change. After a step the next
// one has another body. After a read or a step it is known again what the receiver has. The
// read itself is logged by recordReads. The lane gets the
// claim of this recording. With it, settleLanes finds the lanes that were recorded here.
var recordUnfinished = `-- lockstep: record unfinished
-- $1 sync, $2 relay, $3 claim of this recording, of each result ` + namesOf(unfinishedColumns, 4) + `
WITH result AS MATERIALIZED (
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
), reclaimed_lane AS (
    UPDATE outbox.lane AS l SET claim = $3 FROM result AS r WHERE l.ctid = r.lane
), changed AS (
    UPDATE outbox.delivery AS d
       SET state = CASE WHEN r.failed THEN 'failed' WHEN r.outcome = 'step' THEN 'pending' WHEN r.attempt OR d.attempts > 0 THEN 'retry' ELSE 'pending' END,
           due_at = CASE WHEN r.failed THEN 'infinity' ELSE clock_timestamp() + r.delay_ms * interval '1 millisecond' END,
           attempts = d.attempts + r.attempt::int, total_attempts = d.total_attempts + r.attempt::int,
           charged = d.charged + r.charge::int, unclear = d.unclear + r.unclear::int, spent_ms = d.spent_ms + r.spend_ms,
           error_class = r.class, error = r.error,
           uncertain = r.outcome = 'unknown' OR d.uncertain AND r.outcome <> 'step' AND NOT (r.outcome = 'read' AND r.class IS NULL),
           step = d.step + (r.outcome = 'step')::int,
           body = CASE WHEN r.outcome <> 'step' THEN coalesce(r.body, d.body) END,
           body_sha256 = CASE WHEN r.outcome <> 'step' THEN coalesce(encode(sha256(r.body), 'hex'), d.body_sha256) END,
           -- These two belong to the body that was sent last, which the next attempt may send again.
           mapping_version = CASE WHEN r.outcome = 'step' THEN NULL WHEN r.body IS NULL AND d.body_sha256 IS NOT NULL THEN d.mapping_version ELSE coalesce(r.mapping_version, d.mapping_version) END,
           revision = CASE WHEN r.body IS NULL THEN d.revision ELSE r.revision END
      FROM result AS r
     WHERE d.ctid = r.tid AND r.outcome <> ''
), logged AS (
    INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, error_class, error,
                                     external_id, request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, reason)
    SELECT clock_timestamp() - r.answered_ms * interval '1 millisecond', $1, r.event_id, r.event_type, r.key, r.version,
           CASE WHEN r.attempt THEN r.total_attempts + 1 END, r.outcome, r.code, r.class, r.error,
           CASE WHEN r.outcome = 'step' THEN r.external_id END, r.sha256, r.mapping_version, r.revision, r.event_seq, r.took_ms, r.claim, $2, r.reason
      FROM result AS r
     WHERE r.outcome NOT IN ('', 'read')
), referenced AS (
    -- The relay has read the receiver's copy, or knows that there is none, or has done a step. The version of the copy is not known.
    INSERT INTO outbox.external_ref AS old (sync, key, external_id, etag, learned, event_seq, times_set)
    SELECT $1, r.key, r.external_id, r.etag, coalesce(r.learned, '{}')::jsonb, 0, r.times_set
      FROM result AS r
     WHERE r.has_ref AND r.outcome <> ''
     ORDER BY r.key COLLATE "C"
    ON CONFLICT (sync, key) DO UPDATE
       SET external_id = excluded.external_id, etag = excluded.etag, learned = excluded.learned, updated_at = clock_timestamp(),
           event_seq = 0 -- the next answer counts, also that to an earlier delivery
     WHERE excluded.times_set = old.times_set
)
SELECT n FROM result`

// Recorded is the answer of [Store.Record]: one entry per result.
type Recorded struct {
	Done []bool      // the result is in the database
	Lost []bool      // the claim was lost: nothing changed, and an attempt is logged as lease_lost
	Next []*Delivery // the next deliveries of lanes that stay claimed
	Err  error       // why results are neither done nor lost; the caller may record them again
}

// Record writes results of one sync in one round trip. The results must have different
// keys. It writes a result only if the claim is still there. If a result says Stay, its
// lane keeps the claim for the next delivery, unless the sync or the lane's scope is on
// hold or the lane is a suspect. All other lanes are released. A result that is neither
// done nor lost may be recorded again, also after an error: if the first recording was
// committed and its answer was lost, Record finds that in the log.
func (s *Store) Record(ctx context.Context, sync string, results []Result) Recorded {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	r := Recorded{Done: make([]bool, len(results)), Lost: make([]bool, len(results))}
	if len(results) == 0 {
		return r
	}
	if err := s.recordBatch(ctx, s.pool, sync, results, &r); err != nil {
		clear(r.Done) // all of it was rolled back
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
		r.Err = s.judge(ctx, s.findMissing(ctx, sync, results, missing, &r))
	}
	return r
}

// recordBatch sends everything in one round trip and one transaction.
func (s *Store) recordBatch(ctx context.Context, on database, sync string, results []Result, r *Recorded) error {
	var finished, unfinished, read []int
	var lanes lanesToSettle
	recording := newToken()
	for i := range results {
		if results[i].Read != nil {
			read = append(read, i)
		}
		if result := &results[i]; result.Outcome.Finished() {
			finished = append(finished, i)
			lanes.addFinished(result, result.Delivery.lane)
		} else {
			unfinished = append(unfinished, i)
			lanes.addUnfinished(result, recording)
		}
	}
	note := func(indexes []int) func(pgx.Rows) error {
		return func(rows pgx.Rows) error {
			var n int
			_, err := pgx.ForEachRow(rows, []any{&n}, func() error {
				r.Done[indexes[n-1]] = true
				return nil
			})
			return err
		}
	}
	batch := &pgx.Batch{}
	if len(read) > 0 {
		batch.Queue(recordReads, rows([]any{sync, s.relay}, readColumns, results, read)...)
	}
	if len(finished) > 0 {
		statement := recordFinished
		if slices.ContainsFunc(finished, func(i int) bool { return results[i].Ref != nil }) {
			statement += recordReferences
		}
		if slices.ContainsFunc(finished, func(i int) bool { return results[i].Outcome == Accepted }) {
			statement += recordAccepted
		}
		batch.Queue(statement+removedRows, rows([]any{sync, s.relay}, finishedColumns, results, finished)...).Query(note(finished))
	}
	if len(unfinished) > 0 {
		batch.Queue(recordUnfinished, rows([]any{sync, s.relay, recording}, unfinishedColumns, results, unfinished)...).Query(note(unfinished))
	}
	lanes.settle(batch, sync, &r.Next)
	if err := on.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("record %d result(s): %w", len(results), err)
	}
	return nil
}

package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// recordFinished removes finished deliveries, writes their log rows and their
// references, all or none of a row, if the claim token is still there. Each is
// looked up where the claim left it. Rows that somebody else holds locked, or has
// changed since, are left for the next try. The answer lists what was recorded,
// by its place in the input.
const recordFinished = `-- lockstep: record finished
WITH held AS MATERIALIZED (
    SELECT i.*, d.event_id, d.total_attempts
      FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::bigint[], $8::boolean[],
                  $9::text[], $10::text[], $11::bigint[], $12::bigint[], $13::text[], $14::text[], $15::bigint[], $16::boolean[],
                  $17::text[], $18::text[], $19::bigint[], $20::tid[])
           AS i (n, sync, key, event_seq, claim, event_type, version, attempt, outcome, code, answered_ms, took_ms, sha256,
                 mapping_version, revision, has_ref, external_id, etag, seq, tid)
     CROSS JOIN LATERAL (
           SELECT d.event_id, d.total_attempts
             FROM outbox.delivery AS d
            WHERE d.ctid = i.tid
              AND d.sync = i.sync AND d.key = i.key AND d.event_seq = i.event_seq AND d.claim = i.claim
              FOR UPDATE SKIP LOCKED) AS d
), removed AS (
    DELETE FROM outbox.delivery AS d
     USING held AS h
     WHERE d.ctid = h.tid
    RETURNING h.*
), logged AS (
    INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, external_id,
                                     request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay)
    SELECT clock_timestamp() - h.answered_ms * interval '1 millisecond', h.sync, h.event_id, h.event_type, h.key, h.version,
           CASE WHEN h.attempt THEN h.total_attempts + 1 END, h.outcome, h.code, h.external_id,
           h.sha256, h.mapping_version, h.revision, h.event_seq, h.took_ms, h.claim, $21
      FROM removed AS h
)`

// recordReferences is the end of recordFinished where receivers named their copy,
// apart because most do not: each part of a statement costs, used or not.
const recordReferences = `, referenced AS (
    INSERT INTO outbox.external_ref AS r (sync, key, external_id, etag, version, request_sha256, event_seq)
    SELECT h.sync, h.key, h.external_id, h.etag, h.version, h.sha256, h.seq
      FROM removed AS h
     WHERE h.has_ref
    ON CONFLICT (sync, key) DO UPDATE
       SET external_id = excluded.external_id, etag = excluded.etag, version = excluded.version,
           request_sha256 = excluded.request_sha256, updated_at = clock_timestamp(), event_seq = excluded.event_seq
     WHERE CASE WHEN r.version IS NOT NULL AND excluded.version IS NOT NULL
                THEN excluded.version >= r.version ELSE excluded.event_seq >= r.event_seq END
)`

const removedPlaces = `
SELECT n FROM removed`

// recordUnfinished gives a claim back: for the next attempt, as failed, or
// unrecorded (outcome empty), as if it had never been claimed.
const recordUnfinished = `-- lockstep: record unfinished
WITH held AS MATERIALIZED (
    SELECT i.*, d.tid, d.event_id, d.total_attempts
      FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::text[], $7::bigint[], $8::boolean[],
                  $9::text[], $10::text[], $11::bigint[], $12::bigint[], $13::text[], $14::text[], $15::bigint[],
                  $16::boolean[], $17::text[], $18::text[], $19::bigint[],
                  $20::boolean[], $21::bigint[], $22::boolean[], $23::bigint[], $24::text[], $25::text[], $26::bytea[])
           AS i (n, sync, key, event_seq, claim, event_type, version, attempt, outcome, code, answered_ms, took_ms, sha256,
                 mapping_version, revision, has_ref, external_id, etag, seq, failed, delay_ms, charge, spend_ms, class, error, body)
     CROSS JOIN LATERAL (
           SELECT d.ctid AS tid, d.event_id, d.total_attempts
             FROM outbox.delivery AS d
            WHERE d.sync = i.sync AND d.key = i.key AND d.event_seq = i.event_seq AND d.claim = i.claim
              FOR UPDATE SKIP LOCKED) AS d
), changed AS (
    UPDATE outbox.delivery AS d
       SET state = CASE WHEN h.failed THEN 'failed' WHEN h.attempt OR d.attempts > 0 THEN 'retry' ELSE 'pending' END,
           due_at = CASE WHEN h.failed THEN 'infinity' ELSE clock_timestamp() + h.delay_ms * interval '1 millisecond' END,
           claim = NULL, claimed_by = NULL, lease_until = NULL,
           crashes = greatest(d.crashes - 1, 0),
           attempts = d.attempts + h.attempt::int, total_attempts = d.total_attempts + h.attempt::int,
           charged = d.charged + h.charge::int, spent_ms = d.spent_ms + h.spend_ms,
           error_class = CASE WHEN h.outcome = '' THEN d.error_class ELSE h.class END,
           error = CASE WHEN h.outcome = '' THEN d.error ELSE h.error END,
           body = coalesce(h.body, d.body),
           body_sha256 = coalesce(encode(sha256(h.body), 'hex'), d.body_sha256),
           mapping_version = coalesce(h.mapping_version, d.mapping_version),
           revision = CASE WHEN h.outcome = '' THEN d.revision ELSE h.revision END
      FROM held AS h
     WHERE d.ctid = h.tid
    RETURNING h.*
), logged AS (
    INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, error_class, error,
                                     request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay)
    SELECT clock_timestamp() - h.answered_ms * interval '1 millisecond', h.sync, h.event_id, h.event_type, h.key, h.version,
           CASE WHEN h.attempt THEN h.total_attempts + 1 END, h.outcome, h.code, h.class, h.error,
           h.sha256, h.mapping_version, h.revision, h.event_seq, h.took_ms, h.claim, $27
      FROM changed AS h
     WHERE h.outcome <> ''
), referenced AS (
    -- Read back after a conflict: how to address the receiver's copy, of which the version is not known.
    INSERT INTO outbox.external_ref AS r (sync, key, external_id, etag, event_seq)
    SELECT h.sync, h.key, h.external_id, h.etag, 0
      FROM changed AS h
     WHERE h.has_ref
    ON CONFLICT (sync, key) DO UPDATE
       SET external_id = excluded.external_id, etag = excluded.etag, updated_at = clock_timestamp()
)
SELECT n FROM changed`

// whatBecame judges rows that were not recorded: done before (the answer to
// that recording was lost), still ours (somebody else holds the row locked),
// or gone.
const whatBecame = `-- lockstep: settle
SELECT i.n,
       EXISTS (SELECT FROM outbox.delivery_log AS l
                WHERE l.event_id = i.event_id AND l.claim = i.claim
                  -- an unknown without a duration was written by whoever took the claim over
                  AND (l.outcome NOT IN ('unknown', 'lease_lost') OR l.outcome = 'unknown' AND l.took_ms IS NOT NULL)) AS recorded,
       (SELECT d.ctid FROM outbox.delivery AS d
         WHERE d.sync = i.sync AND d.key = i.key AND d.event_seq = i.event_seq AND d.claim = i.claim) AS tid
  FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::uuid[])
       AS i (n, sync, key, event_seq, claim, event_id)`

// recordLost writes down what is known of attempts whose claim is gone. The
// delivery belongs to somebody else now; only the count of crashes is put
// right, since this relay evidently lives. A claim that the log does not know
// is of a database that has failed over, or was restored, since: the row has it
// in its reason, for only known claims stand in the log's own column.
const recordLost = `-- lockstep: lease lost
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[], $5::uuid[], $6::text[], $7::bigint[],
                         $8::text[], $9::text[], $10::text[], $11::bigint[], $12::bigint[], $13::text[], $14::text[], $15::bigint[], $16::text[])
           AS i (sync, key, event_seq, claim, event_id, event_type, version, code, class, error, answered_ms, took_ms, sha256,
                 mapping_version, revision, outcome)
), alive AS (
    UPDATE outbox.delivery AS d
       SET crashes = greatest(d.crashes - 1, (d.state = 'sending')::int) -- whose claim it is counts for one
      FROM (SELECT o.tid
              FROM input AS i
             CROSS JOIN LATERAL (
                   SELECT o.ctid AS tid
                     FROM outbox.delivery AS o
                    WHERE o.sync = i.sync AND o.key = i.key AND o.event_seq = i.event_seq
                      FOR UPDATE SKIP LOCKED) AS o) AS f
     WHERE d.ctid = f.tid
)
INSERT INTO outbox.delivery_log (answered_at, sync, event_id, event_type, key, version, outcome, code, error_class, error,
                                 request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, reason)
SELECT clock_timestamp() - i.answered_ms * interval '1 millisecond', i.sync, i.event_id, i.event_type, i.key, i.version,
       'lease_lost', i.code, i.class, i.error, i.sha256, i.mapping_version, i.revision, i.event_seq, i.took_ms, known.claim, $17,
       'the answer came after the lease: ' || i.outcome
       || CASE WHEN known.claim IS NULL THEN format('; this database does not know the claim %s', i.claim) ELSE '' END
  FROM input AS i
  LEFT JOIN LATERAL (
       SELECT l.claim FROM outbox.delivery_log AS l
        WHERE l.event_id = i.event_id AND l.sync = i.sync AND l.claim = i.claim
        LIMIT 1) AS known ON true`

// Recorded is the answer of [Store.Record]: one entry per result.
type Recorded struct {
	Done   []bool // the result stands in the database
	Lost   []bool // the claim was gone: logged as lease_lost, nothing else changed
	Claims Claims // the next deliveries of the finished keys
	Err    error  // why some are neither done nor lost, or keys asleep; they may be given again
}

// Record writes results of one sync in one round trip, no two of one key, each
// fenced by its claim token, and claims what comes next for the keys that were
// finished and for next.Keys, as far as next.Budget goes. Where something failed
// that a newer event supersedes, it closes that and claims the newer one,
// in further round trips. What is neither done nor lost
// afterwards may be recorded again: a recording whose answer was lost is found
// in the log.
func (s *Store) Record(ctx context.Context, results []Result, next ClaimRequest) Recorded {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	r := Recorded{Done: make([]bool, len(results)), Lost: make([]bool, len(results))}
	if len(results) == 0 && len(next.Keys) == 0 {
		return r
	}
	token := uuid.New()
	claims, err := s.recordBatch(ctx, results, next, token, r.Done)
	if err != nil {
		clear(r.Done) // nothing of the batch stands
		r.Err, r.Claims.Asleep = s.judge(ctx, err), next.Keys
		return r
	}
	r.Err = s.judge(ctx, s.supersedeNext(ctx, next, &claims))
	r.Claims = claims.Claims
	var missing []int
	for i := range results {
		if !r.Done[i] {
			missing = append(missing, i)
		}
	}
	if len(missing) > 0 {
		r.Err = errors.Join(r.Err, s.judge(ctx, s.settle(ctx, results, missing, &r)))
	}
	return r
}

// recordBatch sends everything in one round trip and one transaction, and notes
// in done what was recorded.
func (s *Store) recordBatch(ctx context.Context, results []Result, next ClaimRequest, token uuid.UUID, done []bool) (scanned, error) {
	var finished, unfinished columns
	var keys []string
	finished.grow(len(results))
	now := time.Now()
	for i := range results {
		if results[i].Outcome.Finished() {
			finished.add(i, &results[i], now)
			keys = append(keys, results[i].Delivery.Key)
			continue
		}
		unfinished.add(i, &results[i], now)
		if results[i].Failed {
			keys = append(keys, results[i].Delivery.Key)
		}
	}
	collect := func(rows pgx.Rows) error {
		var n int
		_, err := pgx.ForEachRow(rows, []any{&n}, func() error {
			done[n] = true
			return nil
		})
		return err
	}
	batch := &pgx.Batch{}
	if len(finished.n) > 0 {
		statement := recordFinished + removedPlaces
		if slices.Contains(finished.hasRef, true) {
			statement = recordFinished + recordReferences + removedPlaces
		}
		batch.Queue(statement, finished.finishedArgs(s.relay)...).Query(collect)
	}
	if len(unfinished.n) > 0 {
		batch.Queue(recordUnfinished, unfinished.unfinishedArgs(s.relay)...).Query(collect)
	}
	var claims scanned
	if keys = append(keys, next.Keys...); len(keys) > 0 { // the budget is for the finished ones first
		next.Keys = keys
		batch.Queue(claimNext, s.nextArgs(next, token)...).Query(func(rows pgx.Rows) (err error) {
			claims, err = scanNext(rows, next.Sync, token)
			return err
		})
	}
	if err := s.pool.SendBatch(ctx, batch).Close(); err != nil {
		return scanned{}, fmt.Errorf("record %d result(s): %w", len(results), err)
	}
	return claims, nil
}

// settle finds out what became of results that the recording did not take.
func (s *Store) settle(ctx context.Context, results []Result, missing []int, r *Recorded) error {
	var c columns
	now := time.Now()
	for _, i := range missing {
		c.add(i, &results[i], now)
	}
	rows, err := s.pool.Query(ctx, whatBecame, c.n, c.sync, c.key, c.place, c.claim, c.eventID)
	if err != nil {
		return err
	}
	var n int
	var recorded bool
	var tid pgtype.TID
	var lost columns
	var lostPlaces []int
	_, err = pgx.ForEachRow(rows, []any{&n, &recorded, &tid}, func() error {
		switch {
		case recorded:
			r.Done[n] = true
		case tid.Valid:
			results[n].Delivery.tid = tid
		case !results[n].Attempt:
			r.Lost[n] = true // nothing was sent: nothing to say
		default:
			lost.add(n, &results[n], now)
			lostPlaces = append(lostPlaces, n)
		}
		return nil
	})
	if err != nil || len(lostPlaces) == 0 {
		return err
	}
	_, err = s.pool.Exec(ctx, recordLost, lost.sync, lost.key, lost.place, lost.claim, lost.eventID, lost.eventType, lost.version,
		lost.code, lost.class, lost.errText, lost.answered, lost.took, lost.sha256, lost.mapping, lost.revision, lost.outcome, s.relay)
	if err != nil {
		return err
	}
	for _, i := range lostPlaces {
		r.Lost[i] = true
	}
	return nil
}

// columns are results turned on their side, an array per column, for unnest.
type columns struct {
	n, place, took, revision, delay, spend, seq []int64
	sync, key, eventID, eventType               []string
	claim                                       []pgtype.UUID
	outcome                                     []string
	version, answered                           []pgtype.Int8
	code, class, errText, sha256, mapping       []pgtype.Text
	externalID, etag                            []pgtype.Text
	attempt, failed, charge, hasRef             []bool
	body                                        [][]byte
	tid                                         []pgtype.TID
}

// grow makes room for all of them at once.
func (c *columns) grow(most int) {
	for _, column := range []*[]int64{&c.n, &c.place, &c.took, &c.revision, &c.delay, &c.spend, &c.seq} {
		*column = make([]int64, 0, most)
	}
	for _, column := range []*[]string{&c.sync, &c.key, &c.eventID, &c.eventType, &c.outcome} {
		*column = make([]string, 0, most)
	}
	for _, column := range []*[]pgtype.Text{&c.code, &c.class, &c.errText, &c.sha256, &c.mapping, &c.externalID, &c.etag} {
		*column = make([]pgtype.Text, 0, most)
	}
	for _, column := range []*[]bool{&c.attempt, &c.failed, &c.charge, &c.hasRef} {
		*column = make([]bool, 0, most)
	}
	c.version, c.answered = make([]pgtype.Int8, 0, most), make([]pgtype.Int8, 0, most)
	c.body, c.tid, c.claim = make([][]byte, 0, most), make([]pgtype.TID, 0, most), make([]pgtype.UUID, 0, most)
}

func (c *columns) add(n int, r *Result, now time.Time) {
	d := r.Delivery
	c.n = append(c.n, int64(n))
	c.sync = append(c.sync, d.Sync)
	c.key = append(c.key, d.Key)
	c.place = append(c.place, d.Place)
	c.claim = append(c.claim, d.token)
	c.eventID = append(c.eventID, d.Event.ID)
	c.eventType = append(c.eventType, d.Event.Type)
	var version, answered pgtype.Int8
	if d.Event.Version != nil {
		version = pgtype.Int8{Int64: *d.Event.Version, Valid: true}
	}
	if age := now.Sub(r.AnsweredAt); !r.AnsweredAt.IsZero() && age < mostAnswerAge {
		answered = pgtype.Int8{Int64: max(age, 0).Milliseconds(), Valid: true}
	}
	c.version = append(c.version, version)
	c.answered = append(c.answered, answered)
	c.seq = append(c.seq, d.Event.Seq)
	c.attempt = append(c.attempt, r.Attempt)
	c.outcome = append(c.outcome, string(r.Outcome))
	c.code = append(c.code, nullable(r.Code))
	c.class = append(c.class, nullable(r.Class))
	c.errText = append(c.errText, nullable(r.Error))
	c.sha256 = append(c.sha256, nullable(r.SHA256))
	mapping := d.MappingVersion
	if r.Outcome == "" {
		mapping = "" // released: whatever was rendered, nothing of it was sent
	}
	c.mapping = append(c.mapping, nullable(mapping))
	c.revision = append(c.revision, int64(d.Revision))
	c.took = append(c.took, r.Took.Milliseconds())
	c.failed = append(c.failed, r.Failed)
	c.charge = append(c.charge, r.Charge)
	c.delay = append(c.delay, r.Delay.Milliseconds())
	c.spend = append(c.spend, r.Spend.Milliseconds())
	ref := d.Ref
	c.hasRef = append(c.hasRef, r.Ref != nil)
	if r.Ref != nil {
		ref = *r.Ref
	}
	c.externalID = append(c.externalID, nullable(ref.ExternalID))
	c.etag = append(c.etag, nullable(ref.ETag))
	var body []byte
	if r.Attempt && !r.Outcome.Finished() {
		body = d.Body
	}
	c.body = append(c.body, body)
	c.tid = append(c.tid, d.tid)
}

func (c *columns) common() []any {
	return []any{
		c.n, c.sync, c.key, c.place, c.claim, c.eventType, c.version, c.attempt,
		c.outcome, c.code, c.answered, c.took, c.sha256, c.mapping, c.revision,
		c.hasRef, c.externalID, c.etag, c.seq,
	}
}

func (c *columns) finishedArgs(relay string) []any { return append(c.common(), c.tid, relay) }

func (c *columns) unfinishedArgs(relay string) []any {
	return append(c.common(), c.failed, c.delay, c.charge, c.spend, c.class, c.errText, c.body, relay)
}

// mostAnswerAge is how old an answer may be for its time to be recorded: the log
// refuses times that are a week old.
const mostAnswerAge = 6 * 24 * time.Hour

// nullable is null for what is not known.
func nullable(s string) pgtype.Text { return pgtype.Text{String: s, Valid: s != ""} }

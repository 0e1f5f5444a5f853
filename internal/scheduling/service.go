// Package scheduling is the reference writer of the outbox: a small module that
// books, reschedules and cancels hearings, with an HTTP API for clerks.
//
// Every change is one transaction. It changes the hearing's row first and then
// appends one event whose key is the hearing's id and whose version is the
// row's. The row lock makes the order of commits the order of the hearing's
// events, and both rows are committed or neither.
//
// A hearing has a wall time, an IANA zone, and the instant of both. Wall times that do
// not exist are refused. An ambiguous one needs a choice.
//
// Case names may hold names of parties. The hearing's row and the API have
// them. Events, log lines, errors and URLs never do.
package scheduling

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/outbox"
)

// Service books, reschedules, cancels and lists hearings. It is safe for
// concurrent use. The error of a refused request says what is wrong with it. Any
// other error comes from the database, and then nobody knows whether the change
// was committed.
type Service struct {
	pool   *pgxpool.Pool
	status *pgxpool.Pool // for what the courts have; reads only
}

// New returns a service on the pool, which the caller closes. Its login needs
// the tables of schema scheduling and outbox_writer. What the courts have is read
// through the pool status, whose login needs outbox_auditor; nil takes the first pool.
func New(pool, status *pgxpool.Pool) *Service {
	return &Service{pool: pool, status: cmp.Or(status, pool)}
}

// Target says which hearing a change is for.
type Target struct {
	ID        string
	IfVersion *int64            // refuse unless the hearing is at this version; default: any
	Headers   map[string]string // kept with the event, such as traceparent
}

// Book inserts a hearing and its scheduling:created event with the given headers.
func (s *Service) Book(ctx context.Context, b Booking, headers map[string]string) (Hearing, error) {
	h, err := b.hearing()
	if err != nil {
		return Hearing{}, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if h, err = insert(ctx, tx, h); err != nil {
			return err
		}
		return appendEvent(ctx, tx, EventCreated, h, headers)
	})
	return h, err
}

// Reschedule changes a hearing's start, and its place and duration if asked to,
// with a scheduling:updated event. A request that changes nothing writes
// nothing, so a repeated request has no second effect.
func (s *Service) Reschedule(ctx context.Context, t Target, r Rescheduling) (Hearing, error) {
	return s.change(ctx, t, EventUpdated, r.apply)
}

// Cancel cancels a hearing with a scheduling:cancelled event. Cancelling again
// for the same reason writes nothing.
func (s *Service) Cancel(ctx context.Context, t Target, c Cancellation) (Hearing, error) {
	return s.change(ctx, t, EventCancelled, c.apply)
}

// change locks the hearing's row, applies a change to it and appends the event.
func (s *Service) change(ctx context.Context, t Target, event string, apply func(Hearing) (Hearing, error)) (h Hearing, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		old, err := read(ctx, tx, t.ID, "FOR NO KEY UPDATE")
		if err != nil {
			return err
		}
		if t.IfVersion != nil && *t.IfVersion != old.Version {
			return changedMeanwhile(old, *t.IfVersion)
		}
		if h, err = apply(old); err != nil || h.sameAs(old) {
			return err
		}
		if h, err = update(ctx, tx, h); err != nil {
			return err
		}
		return appendEvent(ctx, tx, event, h, t.Headers)
	})
	return h, err
}

// Get returns a hearing.
func (s *Service) Get(ctx context.Context, id string) (Hearing, error) {
	return read(ctx, s.pool, id, "")
}

// Ready reports whether the service can work: the database answers and both
// schemas are there.
func (s *Service) Ready(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, "/* scheduling: ready */ SELECT FROM scheduling.hearing, outbox.event LIMIT 0")
	return err
}

// Page is a part of a list, ordered by start and id.
type Page struct {
	Hearings []Hearing `json:"hearings"`
	Next     string    `json:"next,omitempty"` // "" on the last page
}

const listSQL = `/* scheduling: list */
SELECT ` + columns + `
  FROM scheduling.hearing
 WHERE ($1::timestamptz IS NULL OR starts_at >= $1)
   AND ($2::timestamp IS NULL OR local_start >= $2)
   AND ($3::timestamptz IS NULL OR starts_at < $3)
   AND ($4::timestamp IS NULL OR local_start < $4)
   AND ($5::text = '' OR courthouse = $5)
   AND ($6::text = '' OR courtroom = $6)
   AND ($7::text = '' OR status = $7)
   AND ($8::text = '' OR case_number = $8)
   AND ($9::timestamptz IS NULL OR (starts_at, id) > ($9, $10))
 ORDER BY starts_at, id
 LIMIT $11`

// List returns a page of hearings. A page begins after the last hearing of the page
// before, so new and removed hearings never make it skip or repeat another.
func (s *Service) List(ctx context.Context, f Filter) (Page, error) {
	rows, _ := s.pool.Query(ctx, listSQL, f.From.Instant, f.From.Wall, f.To.Instant, f.To.Wall,
		f.Courthouse, f.Courtroom, f.Status, f.CaseNumber, f.afterStart, f.afterID, f.Limit+1) // one more than the page holds
	list, err := pgx.CollectRows(rows, scanHearing)
	if err != nil {
		return Page{}, err
	}
	if len(list) <= f.Limit {
		return Page{Hearings: list}, nil
	}
	return Page{Hearings: list[:f.Limit], Next: cursor(list[f.Limit-1])}, nil
}

// columns are those of a [Hearing], in the order of its fields.
const columns = `id, case_number, case_name, hearing_type, status, coalesce(cancel_reason, ''), courthouse, courtroom,
       to_char(local_start, 'YYYY-MM-DD"T"HH24:MI'), zone, starts_at, duration_minutes, version, created_at, updated_at, event_id::text`

const insertSQL = `/* scheduling: book */
INSERT INTO scheduling.hearing
       (id, case_number, case_name, hearing_type, status, courthouse, courtroom,
        local_start, zone, starts_at, duration_minutes, event_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    ON CONFLICT (id) DO NOTHING
RETURNING ` + columns

// insert writes a new hearing. A hearing without an id gets H-<year>-<number>. Numbers
// that clients have already used are skipped.
func insert(ctx context.Context, tx pgx.Tx, h Hearing) (Hearing, error) {
	for given := h.ID; ; {
		if given == "" {
			n, err := number(ctx, tx)
			if err != nil {
				return h, err
			}
			h.ID = numbered(h.StartsAt, n)
		}
		inserted, err := one(ctx, tx, insertSQL, h.ID, h.CaseNumber, h.CaseName, h.HearingType, h.Status, h.Courthouse, h.Courtroom,
			h.LocalStart, h.Zone, h.StartsAt, h.DurationMinutes, newEventID())
		if !errors.Is(err, pgx.ErrNoRows) {
			return inserted, err
		}
		if given != "" {
			other, err := read(ctx, tx, given, "")
			if err != nil {
				return h, err
			}
			return h, existsAlready(other)
		}
	}
}

// nextNumber draws the number of a hearing that is booked later.
func (s *Service) nextNumber(ctx context.Context) (int64, error) { return number(ctx, s.pool) }

func number(ctx context.Context, q querier) (int64, error) {
	rows, _ := q.Query(ctx, "/* scheduling: number */ SELECT nextval('scheduling.hearing_number')") // CollectExactlyOneRow returns its error
	return pgx.CollectExactlyOneRow(rows, pgx.RowTo[int64])
}

// numbered is the id of a hearing that is booked without one.
func numbered(start time.Time, n int64) string { return fmt.Sprintf("H-%d-%06d", start.Year(), n) }

const updateSQL = `/* scheduling: change */
UPDATE scheduling.hearing
   SET status = $2, cancel_reason = nullif($3, ''), courthouse = $4, courtroom = $5,
       local_start = $6, zone = $7, starts_at = $8, duration_minutes = $9,
       version = version + 1, event_id = $10, updated_at = clock_timestamp()
 WHERE id = $1
   AND version = $11
RETURNING ` + columns

// update writes the changed hearing over its row, which the caller has locked.
func update(ctx context.Context, tx pgx.Tx, h Hearing) (Hearing, error) {
	return one(ctx, tx, updateSQL, h.ID, h.Status, h.CancelReason, h.Courthouse, h.Courtroom,
		h.LocalStart, h.Zone, h.StartsAt, h.DurationMinutes, newEventID(), h.Version)
}

// appendEvent appends the event of h. The caller has changed the row in tx
// already, which keeps the events of one hearing in the order of commits.
func appendEvent(ctx context.Context, tx pgx.Tx, event string, h Hearing, headers map[string]string) error {
	payload, err := h.payload()
	if err != nil {
		return err
	}
	return outbox.Append(ctx, tx, outbox.Event{
		ID: h.EventID, Type: event, Key: h.ID, Version: &h.Version, Payload: payload, Headers: headers,
	})
}

// newEventID returns a time-ordered UUID: milliseconds since 1970, then random bits
// (RFC 9562, 5.7). The order keeps the event table's index compact.
func newEventID() string {
	id := pgtype.UUID{Valid: true}
	_, _ = rand.Read(id.Bytes[:]) // never fails
	copy(id.Bytes[:6], binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixMilli()))[2:])
	id.Bytes[6], id.Bytes[8] = id.Bytes[6]&0x0f|0x70, id.Bytes[8]&0x3f|0x80
	return id.String()
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// read returns the hearing with this id. locking is "" or a FOR clause.
func read(ctx context.Context, q querier, id, locking string) (Hearing, error) {
	if !idForm.MatchString(id) {
		return Hearing{}, notFound()
	}
	h, err := one(ctx, q, "/* scheduling: read */ SELECT "+columns+" FROM scheduling.hearing WHERE id = $1 "+locking, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return h, notFound()
	}
	return h, err
}

// one runs a statement that returns one hearing.
func one(ctx context.Context, q querier, sql string, args ...any) (Hearing, error) {
	rows, _ := q.Query(ctx, sql, args...) // CollectExactlyOneRow returns its error
	return pgx.CollectExactlyOneRow(rows, scanHearing)
}

func scanHearing(row pgx.CollectableRow) (Hearing, error) {
	h, err := pgx.RowToStructByPos[Hearing](row)
	h.CreatedAt, h.UpdatedAt, h.StartsAt = h.CreatedAt.UTC(), h.UpdatedAt.UTC(), h.StartsAt.UTC()
	if loc, err := time.LoadLocation(h.Zone); err == nil {
		h.StartsAt = h.StartsAt.In(loc)
	}
	return h, err
}

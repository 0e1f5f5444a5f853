package scheduling

import (
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
// concurrent use. Refusals are [*InvalidError], [*ExistsError],
// [*VersionError], [*StateError] and [ErrNotFound]; any other error is the
// database's, and then a change may have been committed or not.
type Service struct {
	pool *pgxpool.Pool
}

// New returns a service on the pool, which stays the caller's. Its login needs
// the tables of schema scheduling, outbox_writer and, for [Service.Court],
// outbox_auditor.
func New(pool *pgxpool.Pool) *Service { return &Service{pool: pool} }

// Book inserts a hearing and its scheduling:created event.
func (s *Service) Book(ctx context.Context, b Booking) (Hearing, error) {
	h, err := b.hearing()
	if err != nil {
		return Hearing{}, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if h, err = insert(ctx, tx, h); err != nil {
			return err
		}
		return tell(ctx, tx, EventCreated, h, b.Headers)
	})
	if err != nil {
		return Hearing{}, fmt.Errorf("book: %w", err)
	}
	return h, nil
}

// Reschedule changes a hearing's start, and its place and duration if asked
// to, with a scheduling:updated event. When all is already so, nothing is
// written: a repeated request has no second effect.
func (s *Service) Reschedule(ctx context.Context, r Rescheduling) (Hearing, error) {
	h, err := s.change(ctx, r.ID, r.IfVersion, EventUpdated, r.Headers, r.apply)
	if err != nil {
		return Hearing{}, fmt.Errorf("reschedule: %w", err)
	}
	return h, nil
}

// Cancel cancels a hearing with a scheduling:cancelled event. Cancelling again
// for the same reason writes nothing.
func (s *Service) Cancel(ctx context.Context, c Cancellation) (Hearing, error) {
	h, err := s.change(ctx, c.ID, c.IfVersion, EventCancelled, c.Headers, c.apply)
	if err != nil {
		return Hearing{}, fmt.Errorf("cancel: %w", err)
	}
	return h, nil
}

// change locks the hearing's row, applies a change to it and tells of it.
func (s *Service) change(ctx context.Context, id string, ifVersion *int64, event string, headers map[string]string,
	apply func(Hearing) (Hearing, error),
) (Hearing, error) {
	var h Hearing
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		old, err := lock(ctx, tx, id)
		if err != nil {
			return err
		}
		if ifVersion != nil && *ifVersion != old.Version {
			return &VersionError{ID: id, Wanted: *ifVersion, Current: old.Version}
		}
		if h, err = apply(old); err != nil || h.sameAs(old) {
			return err
		}
		if h, err = update(ctx, tx, h); err != nil {
			return err
		}
		return tell(ctx, tx, event, h, headers)
	})
	return h, err
}

const insertSQL = `/* scheduling: book */
INSERT INTO scheduling.hearing
       (id, case_number, case_name, hearing_type, status, courthouse, courtroom,
        local_start, zone, starts_at, duration_minutes, version, event_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
    ON CONFLICT (id) DO NOTHING
RETURNING created_at, updated_at`

// insert writes a new hearing. One without an id gets H-<year>-<number>;
// numbers that clients have taken by hand are passed over.
func insert(ctx context.Context, tx pgx.Tx, h Hearing) (Hearing, error) {
	given := h.ID
	h.eventID = newEventID()
	for {
		if given == "" {
			var n int64
			if err := tx.QueryRow(ctx, "SELECT nextval('scheduling.hearing_number')").Scan(&n); err != nil {
				return h, err
			}
			h.ID = fmt.Sprintf("H-%d-%06d", h.LocalStart.Year(), n)
		}
		err := tx.QueryRow(ctx, insertSQL, h.ID, h.CaseNumber, h.CaseName, h.HearingType, h.Status, h.Courthouse, h.Courtroom,
			h.LocalStart, h.Zone, h.StartsAt, h.minutes(), h.Version, h.eventID).Scan(&h.CreatedAt, &h.UpdatedAt)
		if !errors.Is(err, pgx.ErrNoRows) {
			return h, err
		}
		if given == "" {
			continue
		}
		other, err := read(ctx, tx, given, "")
		if err != nil {
			return h, err
		}
		return h, &ExistsError{ID: given, Version: other.Version}
	}
}

const updateSQL = `/* scheduling: change */
UPDATE scheduling.hearing
   SET status = $2, cancel_reason = nullif($3, ''), courthouse = $4, courtroom = $5,
       local_start = $6, zone = $7, starts_at = $8, duration_minutes = $9,
       version = version + 1, event_id = $10, updated_at = clock_timestamp()
 WHERE id = $1
   AND version = $11
RETURNING version, updated_at`

// update writes the changed hearing over its row, which the caller has locked.
func update(ctx context.Context, tx pgx.Tx, h Hearing) (Hearing, error) {
	h.eventID = newEventID()
	err := tx.QueryRow(ctx, updateSQL, h.ID, h.Status, h.CancelReason, h.Courthouse, h.Courtroom,
		h.LocalStart, h.Zone, h.StartsAt, h.minutes(), h.eventID, h.Version).Scan(&h.Version, &h.UpdatedAt)
	return h, err
}

// tell appends the event of h. The row was changed before it in tx, which is
// what keeps the events of one hearing in commit order.
func tell(ctx context.Context, tx pgx.Tx, event string, h Hearing, headers map[string]string) error {
	payload, err := h.payload()
	if err != nil {
		return err
	}
	return outbox.Append(ctx, tx, outbox.Event{
		ID: h.eventID, Type: event, Key: h.ID, Version: &h.Version, Payload: payload, Headers: headers,
	})
}

// newEventID draws a time-ordered UUID, which keeps the event table's index in order:
// milliseconds since 1970, then random bits (RFC 9562, 5.7).
func newEventID() string {
	id := pgtype.UUID{Valid: true}
	_, _ = rand.Read(id.Bytes[:]) // never fails
	copy(id.Bytes[:6], binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixMilli()))[2:])
	id.Bytes[6], id.Bytes[8] = id.Bytes[6]&0x0f|0x70, id.Bytes[8]&0x3f|0x80
	return id.String()
}

const columns = `id, case_number, case_name, hearing_type, status, coalesce(cancel_reason, ''), courthouse, courtroom,
       local_start, zone, starts_at, duration_minutes, version, event_id::text, created_at, updated_at`

// lock reads the hearing and holds its row until the transaction ends.
func lock(ctx context.Context, tx pgx.Tx, id string) (Hearing, error) {
	return read(ctx, tx, id, "FOR NO KEY UPDATE")
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func read(ctx context.Context, q querier, id, locking string) (Hearing, error) {
	if !idForm.MatchString(id) {
		return Hearing{}, ErrNotFound
	}
	rows, err := q.Query(ctx, "/* scheduling: read */ SELECT "+columns+" FROM scheduling.hearing WHERE id = $1 "+locking, id)
	if err != nil {
		return Hearing{}, err
	}
	h, err := pgx.CollectExactlyOneRow(rows, scanHearing)
	if errors.Is(err, pgx.ErrNoRows) {
		return Hearing{}, ErrNotFound
	}
	return h, err
}

func scanHearing(row pgx.CollectableRow) (Hearing, error) {
	var h Hearing
	var minutes int
	err := row.Scan(&h.ID, &h.CaseNumber, &h.CaseName, &h.HearingType, &h.Status, &h.CancelReason, &h.Courthouse, &h.Courtroom,
		&h.LocalStart, &h.Zone, &h.StartsAt, &minutes, &h.Version, &h.eventID, &h.CreatedAt, &h.UpdatedAt)
	h.Duration = time.Duration(minutes) * time.Minute
	h.StartsAt = h.StartsAt.UTC()
	if loc, err := time.LoadLocation(h.Zone); err == nil {
		h.StartsAt = h.StartsAt.In(loc)
	}
	return h, err
}

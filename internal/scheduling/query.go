package scheduling

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// DefaultLimit and MaxLimit bound a page of [Service.List].
const (
	DefaultLimit = 100
	MaxLimit     = 500
)

// Bound is one end of a span of starts: an instant, or a wall time, which
// every courthouse reads off its own clock. The zero value is no bound.
type Bound struct {
	Instant time.Time
	Wall    time.Time // in UTC, which means nothing
}

// Filter chooses hearings; the zero value chooses all.
type Filter struct {
	From, To   Bound // From is included, To is not
	Courthouse string
	Courtroom  string
	Status     Status
	Limit      int    // default [DefaultLimit], at most [MaxLimit]
	After      string // Next of the page before
}

// Page is a part of a list, ordered by start and id.
type Page struct {
	Hearings []Hearing `json:"hearings"`
	Next     string    `json:"next,omitempty"` // "" on the last page
}

// Ready reports whether the service can work: the database answers and both
// schemas are there.
func (s *Service) Ready(ctx context.Context) error {
	const sql = "/* scheduling: ready */ SELECT FROM scheduling.hearing, outbox.event LIMIT 0"
	if _, err := s.pool.Exec(ctx, sql); err != nil {
		return fmt.Errorf("ready: %w", err)
	}
	return nil
}

// Get returns a hearing, or [ErrNotFound].
func (s *Service) Get(ctx context.Context, id string) (Hearing, error) {
	h, err := read(ctx, s.pool, id, "")
	if err != nil {
		return Hearing{}, fmt.Errorf("get: %w", err)
	}
	return h, nil
}

// List returns a page of hearings. Pages are cut by key, so hearings that come
// or go meanwhile never make it skip or repeat another.
func (s *Service) List(ctx context.Context, f Filter) (Page, error) {
	sql, args, limit, err := f.query()
	if err != nil {
		return Page{}, err
	}
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return Page{}, fmt.Errorf("list: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanHearing)
	if err != nil {
		return Page{}, fmt.Errorf("list: %w", err)
	}
	p := Page{Hearings: list}
	if len(list) > limit {
		p.Hearings = list[:limit]
		p.Next = cursor(list[limit-1])
	}
	return p, nil
}

// query builds the statement; it asks for one row more than the page holds.
func (f Filter) query() (sql string, args []any, limit int, err error) {
	var c checks
	var where []string
	cond := func(format string, values ...any) {
		marks := make([]any, len(values))
		for i, v := range values {
			args = append(args, v)
			marks[i] = "$" + strconv.Itoa(len(args))
		}
		where = append(where, fmt.Sprintf(format, marks...))
	}
	bound := func(b Bound, op string) {
		if !b.Instant.IsZero() {
			cond("starts_at "+op+" %s", b.Instant)
		}
		if !b.Wall.IsZero() {
			cond("local_start "+op+" %s", b.Wall)
		}
	}
	bound(f.From, ">=")
	bound(f.To, "<")
	if f.Courthouse != "" {
		c.text("courthouse", f.Courthouse, maxText)
		cond("courthouse = %s", f.Courthouse)
	}
	if f.Courtroom != "" {
		c.text("courtroom", f.Courtroom, maxText)
		cond("courtroom = %s", f.Courtroom)
	}
	if f.Status != "" {
		if f.Status != Booked && f.Status != Cancelled {
			c.add("status", "is neither booked nor cancelled")
		}
		cond("status = %s", f.Status)
	}
	if limit = f.Limit; limit == 0 {
		limit = DefaultLimit
	}
	if limit < 1 || limit > MaxLimit {
		c.add("limit", "is not between 1 and %d", MaxLimit)
	}
	if f.After != "" {
		at, id, ok := parseCursor(f.After)
		if !ok {
			c.add("after", "is not the next of an earlier page")
		}
		cond("(starts_at, id) > (%s, %s)", at, id)
	}
	if err := c.err(); err != nil {
		return "", nil, 0, err
	}
	sql = "/* scheduling: list */ SELECT " + columns + " FROM scheduling.hearing"
	if len(where) > 0 {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	args = append(args, limit+1)
	return sql + " ORDER BY starts_at, id LIMIT $" + strconv.Itoa(len(args)), args, limit, nil
}

func cursor(h Hearing) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %s", h.StartsAt.UnixMicro(), h.ID))
}

func parseCursor(s string) (at time.Time, id string, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return at, "", false
	}
	micros, id, ok := strings.Cut(string(b), " ")
	n, err := strconv.ParseInt(micros, 10, 64)
	return time.UnixMicro(n).UTC(), id, ok && err == nil && idForm.MatchString(id)
}

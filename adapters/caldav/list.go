package caldav

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// maxPage is the longest answer to a query for a list, in bytes. A longer one is asked for in
// two halves of its time.
const maxPage = 8 << 20

// errTooLong says that an answer is longer than maxPage, or has more objects than the server
// wants to send.
var errTooLong = adapters.Permanent(errors.New("the answer is too long"))

func newValues(msg adapters.Message) *placeholder.Values { return &placeholder.Values{Msg: msg} }

// Lists implements [adapters.Lister].
func (a *Adapter) Lists() error {
	if len(a.collections) == 0 {
		return errors.New("url has a placeholder, so collections must name all calendars")
	}
	return nil
}

// Entry implements [adapters.Lister].
func (a *Adapter) Entry(msg adapters.Message) (adapters.Entry, error) {
	e, err := a.eventOf(msg)
	if err != nil {
		return adapters.Entry{}, err
	}
	entry := e.entry(msg.Key, msg.Ref.ExternalID)
	entry.Absent = a.deletes && entry.Cancelled
	return entry, nil
}

// The window that stands for no bound.
var (
	always = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
	never  = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
)

// List implements [adapters.Lister]. It asks for the events of a time (RFC 4791, 9.9).
func (a *Adapter) List(ctx context.Context, window adapters.Window, yield func(adapters.Entry) error) error {
	if err := a.Lists(); err != nil {
		return err
	}
	from, to := window.From, window.To
	if from.IsZero() {
		from = always
	}
	if to.IsZero() {
		to = never
	}
	for i := range a.collections {
		if err := a.list(ctx, i, from, to, yield); err != nil {
			return err
		}
	}
	return nil
}

// list yields the events of one collection that begin in a span of time.
func (a *Adapter) list(ctx context.Context, i int, from, to time.Time, yield func(adapters.Entry) error) error {
	one := *a
	one.url = a.collections[i]
	req, err := one.query(adapters.Message{IdempotencyKey: "list"}, fmt.Sprintf(`<C:time-range start="%s" end="%s"/>`, from.UTC().Format(utcLayout), to.UTC().Format(utcLayout)))
	if err != nil {
		return err
	}
	req.Longest = maxPage
	m, _, err := one.ask(ctx, req)
	if errors.Is(err, errTooLong) {
		half := from.Add(to.Sub(from) / 2).Truncate(time.Second)
		if !half.After(from) || to.Sub(from) < time.Minute {
			return fmt.Errorf("REPORT %s: more events begin at %s than fit into an answer", one.url.Target(), from.UTC().Format(time.RFC3339))
		}
		if err := a.list(ctx, i, from, half, yield); err != nil {
			return err
		}
		return a.list(ctx, i, half, to, yield)
	}
	if err != nil {
		return err
	}
	for _, r := range m.Responses {
		path, data, etag := r.object()
		if path == "" {
			if status := statusOf(r.Status); status >= http.StatusBadRequest && status != http.StatusNotFound {
				return fmt.Errorf("REPORT %s: has HTTP %d in a 207", one.url.Target(), status)
			}
			continue
		}
		s, wrong := parse(data)
		entry := s.entry(a.keyOf(s.uid), path)
		entry.ETag = etag
		switch {
		case wrong != nil: // somebody has made it unreadable
			entry.At, entry.Fields = from, map[string]string{"start": adapters.Clean(wrong.Error(), 100)}
		case s.repeats:
			entry.Fields["start"] += ", in a series"
		}
		if entry.At.Before(from) || !entry.At.Before(to) {
			continue // it only ends in the span, or is of another one
		}
		if err := yield(entry); err != nil {
			return err
		}
	}
	return nil
}

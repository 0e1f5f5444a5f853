package operate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Action is what is done to the deliveries of a set.
type Action string

// The actions.
const (
	Requeue Action = "requeue" // send failed deliveries again
	Discard Action = "discard" // give deliveries up for good
	Replay  Action = "replay"  // send delivered events once more
)

// Did returns the action as a participle, such as "requeued".
func (a Action) Did() string {
	switch a {
	case Requeue:
		return "requeued"
	case Discard:
		return "discarded"
	case Replay:
		return "replayed"
	}
	return string(a)
}

// Filter selects deliveries. Requeue and Discard select failed deliveries, Replay selects
// events that were delivered to a sync and have no open delivery there. A field that is
// empty selects all. Durations count back from AsOf.
type Filter struct {
	Sync  string
	Key   string
	Event string // id of an event; Discard selects its deliveries in any state but sending
	Class string // error class; not for Replay
	Error string // part of the error's text, in upper or lower case; not for Replay

	Since     time.Time     // when it failed, or was delivered, at the earliest
	Within    time.Duration // the same as a duration before AsOf
	Until     time.Time     // when it failed, or was delivered, at the latest
	OlderThan time.Duration // the same as a duration before AsOf

	// All is needed without any other field but Sync. For Replay with a Key, it selects all
	// events of the key. Without it, only the newest.
	All bool
	// Retired selects all open deliveries of Sync in any state. Only for Discard, of a sync
	// that is retired and that no running relay serves.
	Retired bool
	// Force selects for Replay also events that are older than one that the receiver got, or
	// will get.
	Force bool

	// AsOf is the moment of the set, by the database's clock. Choose sets it if it is zero.
	AsOf time.Time
}

// ErrTooWide is the error of a filter that selects everything and does not say All.
var ErrTooWide = errors.New("this would select everything: choose an event, a key, a time, a class or a part of the error's text, or say that all are meant")

// Classes returns the error classes that a delivery may have that has failed or is tried
// again: those of adapters, and mapping and crash.
func Classes() []string {
	return []string{"auth", "conflict", "crash", "forbidden", "local", "mapping", "permanent", "throttled", "transient", "unknown"}
}

// CheckClass refuses a class that no delivery can have: a misspelt one would select nothing.
func CheckClass(class string) error {
	if class != "" && !slices.Contains(Classes(), class) {
		return fmt.Errorf("there is no error class %q: want one of %s", class, strings.Join(Classes(), ", "))
	}
	return nil
}

// Check refuses filters that select more than the person may mean, or that the action does
// not take.
func (f *Filter) Check(a Action) error {
	if err := CheckClass(f.Class); err != nil {
		return err
	}
	narrowed := f.Key != "" || f.Event != "" || f.Class != "" || f.Error != "" || !f.Since.IsZero() || f.Within != 0 || !f.Until.IsZero() || f.OlderThan != 0
	switch {
	case a != Requeue && a != Discard && a != Replay:
		return fmt.Errorf("there is no action %q: want requeue, discard or replay", a)
	case a == Replay && (f.Class != "" || f.Error != ""):
		return errors.New("a delivered event has no error: a replay cannot select by class or by the error's text")
	case f.Retired && (a != Discard || f.Sync == "" || narrowed):
		return errors.New("only discard selects all open deliveries of a retired sync, by the sync's name alone")
	case !f.All && !f.Retired && !narrowed:
		return ErrTooWide
	}
	return nil
}

// newestOnly reports whether, of each key, only the newest event is replayed.
func (f *Filter) newestOnly(a Action) bool {
	return a == Replay && f.Key != "" && f.Event == "" && !f.All
}

// named reports whether the person named an event or a key, not a set of many.
func (f *Filter) named() bool { return f.Event != "" || f.Key != "" }

// bounds returns the earliest and the latest time of a failure or delivery, nil if the
// filter has none.
func (f *Filter) bounds() (since, until *time.Time) {
	if !f.Since.IsZero() {
		since = &f.Since
	}
	if f.Within != 0 {
		since = new(f.AsOf.Add(-f.Within))
	}
	if !f.Until.IsZero() {
		until = &f.Until
	}
	if f.OlderThan != 0 {
		until = new(f.AsOf.Add(-f.OlderThan))
	}
	return since, until
}

// args are the parameters $1 to $8 of the statements that select deliveries.
func (f *Filter) args() []any {
	since, until := f.bounds()
	return []any{f.Sync, f.Key, f.Event, f.Class, f.Error, since, until, f.AsOf}
}

// Words says in words what the filter selects, such as "failed deliveries to
// CourtCalendarSync of class mapping". Times are UTC.
func (f *Filter) Words(a Action) string {
	things, happened := "failed deliveries", "that failed"
	switch {
	case a == Replay:
		things, happened = "delivered events", "that were delivered"
	case f.Retired, a == Discard && f.Event != "":
		things = "open deliveries"
	}
	if f.newestOnly(a) {
		things = "the newest delivered event"
	}
	said := []string{things}
	add := func(given bool, format string, args ...any) {
		if given {
			said = append(said, fmt.Sprintf(format, args...))
		}
	}
	add(f.Event != "", "of event %s", f.Event)
	add(f.Key != "", "of key %s", f.Key)
	add(f.Sync != "", "to %s", f.Sync)
	add(f.Class != "", "of class %s", f.Class)
	add(f.Error != "", "with %q in the error", f.Error)
	since, until := f.bounds()
	at := func(t *time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }
	switch {
	case since != nil && until != nil:
		add(true, "%s from %s to %s", happened, at(since), at(until))
	case since != nil:
		add(true, "%s since %s", happened, at(since))
	case until != nil:
		add(true, "%s before %s", happened, at(until))
	}
	words := strings.Join(said, " ")
	if f.Sync == "" && !f.named() {
		words += ", to any sync"
	}
	return words
}

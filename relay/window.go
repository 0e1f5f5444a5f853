package relay

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// Window is a part of the day in which deliveries of a sync may start. It belongs to the
// day on which it begins. If To is not after From, it ends on the next day.
//
// If a change of the clocks skips From, the window opens at the first moment after the gap.
// If From comes twice, it opens at the first. If To is skipped, it closes when the gap
// begins. If To comes twice, it closes at the second.
type Window struct {
	Days     Weekdays       // days on which it begins; default: every day
	From, To TimeOfDay      // not the same
	Zone     *time.Location // of Days, From, To and the holidays; default UTC
}

// Weekdays is a set of days of the week. Bit 1<<time.Sunday is Sunday, and so on.
type Weekdays uint8

// EveryDay has all days of the week.
const EveryDay Weekdays = 1<<7 - 1

// Has reports whether the set has a day.
func (w Weekdays) Has(day time.Weekday) bool { return w&(1<<day) != 0 }

// TimeOfDay is what the clocks show, since midnight: 0 to 24 hours. Only the end of a
// window may be 24 hours, which is midnight at the end of its day.
type TimeOfDay time.Duration

// Date is a day of the calendar.
type Date struct {
	Year  int
	Month time.Month
	Day   int
}

func dateOf(t time.Time) Date {
	year, month, day := t.Date()
	return Date{year, month, day}
}

// midnight is the date as a time in UTC, for arithmetic.
func (d Date) midnight() time.Time { return time.Date(d.Year, d.Month, d.Day, 0, 0, 0, 0, time.UTC) }

// Bounds on the windows of a sync.
const (
	maxWindows  = 50
	maxHolidays = 1000
)

func (w Window) withDefaults() Window {
	if w.Days == 0 {
		w.Days = EveryDay
	}
	if w.Zone == nil {
		w.Zone = time.UTC
	}
	return w
}

func (w Window) validate() error {
	const day = TimeOfDay(24 * time.Hour)
	switch {
	case w.From < 0 || w.From >= day:
		return fmt.Errorf("from %s: want 0h to less than 24h", time.Duration(w.From))
	case w.To < 0 || w.To > day:
		return fmt.Errorf("to %s: want 0h to 24h", time.Duration(w.To))
	case w.From == w.To:
		return fmt.Errorf("from and to are both %s: a window has a length", time.Duration(w.From))
	case w.Days > EveryDay:
		return fmt.Errorf("days %b: there are seven", w.Days)
	}
	return nil
}

// instant returns the time at which the clocks of the window's zone show a time of a day. If
// they show it twice, it is the last or the first of the two. If they skip it, it is the
// first moment after the gap.
func (w Window) instant(d Date, at TimeOfDay, last bool) time.Time {
	const mostOffset = 36 * time.Hour // longer than any offset from UTC
	wall := d.midnight().Add(time.Duration(at))
	var found time.Time
	for t := wall.Add(-mostOffset).In(w.Zone); ; {
		start, end := t.ZoneBounds() // of the offset that is in force at t
		_, offset := t.Zone()
		shown := wall.Add(-time.Duration(offset) * time.Second)
		switch {
		case shown.Before(start) && found.IsZero():
			return start // skipped
		case !shown.Before(start) && (end.IsZero() || shown.Before(end)):
			found = shown
		}
		if end.IsZero() || end.After(wall.Add(mostOffset)) || !found.IsZero() && !last {
			return found
		}
		t = end
	}
}

// hours are the times at which deliveries of a sync may start, by the database's clock.
// Without windows, these are all times. Its methods are safe for concurrent use, but one
// goroutine calls keep.
type hours struct {
	windows  []Window
	holidays map[Date]bool

	known atomic.Pointer[period] // what the database was told last; nil if it was told nothing
}

// period is a time during which deliveries may start, or may not.
type period struct {
	outbox.Window
	database reading // of the clock, from the answer
}

// reading is a reading of the database's clock. The clock showed now at some moment between
// asked and answered.
type reading struct{ now, asked, answered time.Time }

func newHours(s Sync) *hours {
	h := &hours{holidays: make(map[Date]bool, len(s.Holidays))}
	for _, w := range s.Windows {
		h.windows = append(h.windows, w.withDefaults())
	}
	for _, d := range s.Holidays {
		h.holidays[d] = true
	}
	return h
}

// span is the time of one window on one day, or of several that overlap or touch.
type span struct {
	from, until time.Time
	zone        *time.Location // of the window that opens it
}

// spans returns the times of the windows that begin from two days before t until days after
// it, joined and in their order.
func (h *hours) spans(t time.Time, days int) []span {
	var all []span
	for _, w := range h.windows {
		today := dateOf(t.In(w.Zone)).midnight()
		for n := -2; n <= days; n++ {
			day := today.AddDate(0, 0, n)
			date := dateOf(day)
			if !w.Days.Has(day.Weekday()) || h.holidays[date] {
				continue
			}
			lastDay := date
			if w.To <= w.From {
				lastDay = dateOf(day.AddDate(0, 0, 1))
			}
			s := span{w.instant(date, w.From, false), w.instant(lastDay, w.To, true), w.Zone}
			if s.from.Before(s.until) { // a change of the clocks may skip all of it
				all = append(all, s)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b span) int { return a.from.Compare(b.from) })
	joined := all[:0]
	for _, s := range all {
		if last := len(joined) - 1; last >= 0 && !s.from.After(joined[last].until) {
			if s.until.After(joined[last].until) {
				joined[last].until = s.until
			}
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// at returns whether deliveries may start at the time t, and the period around t for which
// this holds. Without windows, the period has no bounds.
func (h *hours) at(t time.Time) outbox.Window {
	if len(h.windows) == 0 {
		return outbox.Window{Open: true, Until: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	}
	// Windows repeat each week, so the next change is soon, unless there are many holidays.
	for days := 15; ; days *= 2 {
		answer := h.within(t, days)
		// Only the days of spans are complete.
		if answer.Until.Before(t.AddDate(0, 0, days-7)) {
			return answer
		}
		if longest := 7 * (len(h.holidays) + 60); days > longest {
			answer.Until = t.AddDate(0, 0, days-7) // it is open all the time, and will be looked at again
			return answer
		}
	}
}

// within is the answer of at, as far as the windows of the next days tell.
func (h *hours) within(t time.Time, days int) outbox.Window {
	answer := outbox.Window{From: t.AddDate(0, 0, -1), Until: t.AddDate(0, 0, days)}
	for _, s := range h.spans(t, days) {
		switch {
		case !s.until.After(t):
			answer.From = s.until
		case s.from.After(t):
			answer.Until, answer.Reason = s.from, "outside its window, opens "+s.from.In(s.zone).Format("Mon 2006-01-02 15:04 ")+s.zone.String()
			return answer
		default:
			return outbox.Window{Open: true, From: s.from, Until: s.until}
		}
	}
	return answer
}

// open reports whether a delivery may start now. It is false for a moment around a change,
// because the database's clock is known only to within the time of a call.
func (h *hours) open(now time.Time) bool {
	if len(h.windows) == 0 {
		return true
	}
	k := h.known.Load()
	return k != nil && k.Open && !k.database.earliest(now).Before(k.From) && k.database.latest(now).Before(k.Until)
}

// earliest and latest bound what the database's clock shows now.
func (r reading) earliest(now time.Time) time.Time { return r.now.Add(now.Sub(r.answered)) }
func (r reading) latest(now time.Time) time.Time   { return r.now.Add(now.Sub(r.asked)) }

// keepEvery is the pause between comparisons of a sync's windows with the hold in the
// database. With half, the database is asked twice as often. With double, a change of the
// database's clock is noticed later.
const keepEvery = time.Second

// keep puts the sync on hold outside its windows, and ends that hold inside them. It asks
// the database if the period has changed, or if it has not asked for a while. It reports
// false if the database does not have the hold as it must be: then nothing may be claimed,
// and the caller tries again.
func (h *hours) keep(ctx context.Context, store Store, sync string) (kept bool, err error) {
	var w outbox.Window
	now := time.Now()
	switch k := h.known.Load(); {
	case k == nil:
		w = h.at(now) // the database does nothing if its clock shows another period
	case k.database.latest(now).Before(k.From), !k.database.latest(now).Before(k.Until):
		w = h.at(k.database.latest(now))
	case len(h.windows) == 0, now.Sub(k.database.asked) < keepEvery:
		return true, nil
	default:
		w = k.Window
	}
	kept, clock, err := store.KeepWindow(ctx, sync, w)
	if err != nil {
		return false, err
	}
	known := &period{w, reading{clock, now, time.Now()}}
	if !kept {
		known.Window = outbox.Window{From: clock, Until: clock} // only the clock is known
	}
	h.known.Store(known)
	return kept, nil
}

// change returns how long it takes until the next opening or closing. The goroutine that
// calls keep then calls it again. If only the clock is known, it calls it at its own pace: the
// sync's row may be locked for long.
func (h *hours) change(now time.Time) time.Duration {
	if k := h.known.Load(); k != nil && k.From.Before(k.Until) && len(h.windows) > 0 {
		return max(k.Until.Sub(k.database.earliest(now)), time.Millisecond)
	}
	return math.MaxInt64
}

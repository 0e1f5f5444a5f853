package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/relay"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// Bounds of the lists, as in the relay's Config.
const (
	maxWindows  = 50
	maxHolidays = 1000
)

const daysPattern = `(Mon|Tue|Wed|Thu|Fri|Sat|Sun)(-(Mon|Tue|Wed|Thu|Fri|Sat|Sun))?`

var weekdays = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"} // by time.Weekday

// parseDays reads days and ranges of days, with commas between them: Mon-Fri, or Sat,Sun.
// After Saturday a range goes on with Sunday.
func parseDays(text string) (any, error) {
	var set relay.Weekdays
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, to := slices.Index(weekdays, first), slices.Index(weekdays, last)
		switch {
		case !isRange:
			to = from
		case from == to && from >= 0:
			return nil, fmt.Errorf("has a range from %s to %s: write %s for that day, or Mon-Sun for all days", first, last, first)
		}
		if from < 0 || to < 0 {
			return nil, errors.New("are not days: write Mon, Tue, Wed, Thu, Fri, Sat or Sun, several as Mon-Fri or Sat,Sun")
		}
		for day := from; ; day = (day + 1) % len(weekdays) {
			set |= 1 << day
			if day == to {
				break
			}
		}
	}
	return set, nil
}

func parseTimeOfDay(text string) (any, error) {
	if text == "24:00" {
		return relay.TimeOfDay(24 * time.Hour), nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return nil, errors.New("is not a time of day: write hours and minutes, from 00:00 to 24:00, such as 08:00")
	}
	return relay.TimeOfDay(t.Sub(t.Truncate(24 * time.Hour))), nil
}

func parseDate(text string) (any, error) {
	t, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return nil, errors.New("is not a date: write year, month and day, such as 2026-12-25")
	}
	year, month, day := t.Date()
	return relay.Date{Year: year, Month: month, Day: day}, nil
}

// checkWindows refuses windows that do not say when they are open.
func (d *decoder) checkWindows(n *node, s *Sync) {
	windows, holidays := n.at("windows"), n.at("holidays")
	switch {
	case windows.kind == kindAbsent && holidays.kind != kindAbsent:
		d.at(holidays, `needs windows, because a sync without windows sends on all days: add for example windows: [{from: "08:00", to: "18:00"}]`)
	case windows.kind == kindList && len(windows.items) == 0:
		d.at(windows, `is empty: add a window such as {days: Mon-Fri, from: "08:00", to: "18:00"}, or remove the key to send always`)
	case len(windows.items) > maxWindows:
		d.at(windows, "has %d windows: keep at most %d", len(windows.items), maxWindows)
	}
	switch {
	case holidays.kind == kindList && len(holidays.items) == 0:
		d.at(holidays, "is empty: add a date such as 2026-12-25, or remove the key")
	case len(holidays.items) > maxHolidays:
		d.at(holidays, "has %d dates: keep at most %d", len(holidays.items), maxHolidays)
	}
	for i, w := range s.Windows {
		from, to := windows.items[i].at("from"), windows.items[i].at("to")
		switch {
		case from.failed || to.failed || from.kind == kindAbsent || to.kind == kindAbsent:
		case w.From == relay.TimeOfDay(24*time.Hour):
			d.at(from, "is the end of a day: write 00:00, the begin of the next one")
		case w.From == w.To:
			d.at(to, `is the same as from, so the window has no length: for a whole day write from: "00:00" and to: "24:00"`)
		}
	}
	for i, date := range s.Holidays {
		if !holidays.items[i].failed && slices.Index(s.Holidays, date) < i {
			d.at(holidays.items[i], "is in the list already: remove it")
		}
	}
}

// relayWindows are the windows as the relay takes them.
func (s Sync) relayWindows() []relay.Window {
	var all []relay.Window
	for _, w := range s.Windows {
		zone, _ := mapping.LoadZone(w.Zone) // was checked
		all = append(all, relay.Window{Days: w.Days, From: w.From, To: w.To, Zone: zone})
	}
	return all
}

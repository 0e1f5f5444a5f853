package relay

import (
	"context"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	z, err := mapping.LoadZone(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

func days(list ...time.Weekday) (set Weekdays) {
	for _, d := range list {
		set |= 1 << d
	}
	return set
}

func clockTime(hour, minute int) TimeOfDay {
	return TimeOfDay(time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute)
}

// Each step is a time and the state from then on. The state is checked a second before the next step too.
// The time of the last step is far from any other change.
func TestWindowsOpenAndClose(t *testing.T) {
	workdays := days(time.Monday, time.Tuesday, time.Wednesday, time.Thursday, time.Friday)
	type step struct {
		at   string
		open bool
	}
	for name, test := range map[string]struct {
		zone     string
		windows  []Window
		holidays []Date
		steps    []step
	}{
		"workdays": {
			zone:    "America/New_York",
			windows: []Window{{Days: workdays, From: clockTime(8, 0), To: clockTime(18, 0)}},
			steps: []step{
				{"2026-12-03T18:00:00-05:00", false},
				{"2026-12-04T08:00:00-05:00", true},
				{"2026-12-04T18:00:00-05:00", false},
				{"2026-12-07T08:00:00-05:00", true}, // after the weekend
				{"2026-12-07T18:00:00-05:00", false},
				{"2026-12-08T08:00:00-05:00", true},
			},
		},
		"over midnight, on the day on which it begins": {
			zone:    "Europe/Berlin",
			windows: []Window{{Days: days(time.Friday), From: clockTime(22, 0), To: clockTime(6, 0)}},
			steps: []step{
				{"2026-12-04T22:00:00+01:00", true},
				{"2026-12-05T06:00:00+01:00", false},
				{"2026-12-11T22:00:00+01:00", true},
			},
		},
		"overlapping and touching windows are one": {
			zone: "UTC",
			windows: []Window{
				{Days: days(time.Tuesday), From: clockTime(8, 0), To: clockTime(12, 0)},
				{Days: days(time.Tuesday), From: clockTime(10, 0), To: clockTime(11, 0)},
				{Days: days(time.Tuesday), From: clockTime(12, 0), To: clockTime(24, 0)},
				{Days: days(time.Wednesday), From: 0, To: clockTime(1, 0)},
			},
			steps: []step{
				{"2026-12-01T08:00:00Z", true},
				{"2026-12-02T01:00:00Z", false},
				{"2026-12-08T08:00:00Z", true},
			},
		},
		"no window begins on a holiday": {
			zone:     "America/New_York",
			windows:  []Window{{From: clockTime(22, 0), To: clockTime(6, 0)}},
			holidays: []Date{{2026, time.December, 25}, {2026, time.December, 26}},
			steps: []step{
				{"2026-12-24T22:00:00-05:00", true}, // this one began before
				{"2026-12-25T06:00:00-05:00", false},
				{"2026-12-27T22:00:00-05:00", true},
			},
		},
		"always, but for a holiday": {
			zone:     "America/New_York",
			windows:  []Window{{From: 0, To: clockTime(24, 0)}},
			holidays: []Date{{2027, time.July, 5}},
			steps: []step{
				{"2027-06-20T00:00:00-04:00", true},
				{"2027-07-05T00:00:00-04:00", false},
				{"2027-07-06T00:00:00-04:00", true},
			},
		},
		"New York skips the opening": {
			zone:    "America/New_York",
			windows: []Window{{From: clockTime(2, 30), To: clockTime(5, 0)}},
			steps: []step{
				{"2027-03-13T05:00:00-05:00", false},
				{"2027-03-14T03:00:00-04:00", true}, // 02:00 to 03:00 is skipped
				{"2027-03-14T05:00:00-04:00", false},
				{"2027-03-15T02:30:00-04:00", true},
			},
		},
		"New York skips the closing": {
			zone:    "America/New_York",
			windows: []Window{{From: clockTime(1, 0), To: clockTime(2, 30)}},
			steps: []step{
				{"2027-03-14T01:00:00-05:00", true},
				{"2027-03-14T03:00:00-04:00", false},
				{"2027-03-15T01:00:00-04:00", true},
			},
		},
		"New York skips a whole window": {
			zone:    "America/New_York",
			windows: []Window{{From: clockTime(2, 0), To: clockTime(3, 0)}},
			steps: []step{
				{"2027-03-13T03:00:00-05:00", false},
				{"2027-03-15T02:00:00-04:00", true},
				{"2027-03-15T03:00:00-04:00", false},
			},
		},
		"New York repeats the opening": {
			zone:    "America/New_York",
			windows: []Window{{From: clockTime(1, 30), To: clockTime(8, 0)}},
			steps: []step{
				{"2027-11-06T08:00:00-04:00", false},
				{"2027-11-07T01:30:00-04:00", true},
				{"2027-11-07T08:00:00-05:00", false},
				{"2027-11-08T01:30:00-05:00", true},
			},
		},
		"Berlin repeats the closing": {
			zone:    "Europe/Berlin",
			windows: []Window{{From: clockTime(23, 0), To: clockTime(2, 30)}},
			steps: []step{
				{"2027-10-30T23:00:00+02:00", true},
				{"2027-10-31T02:30:00+01:00", false},
				{"2027-10-31T23:00:00+01:00", true},
			},
		},
		"Berlin repeats a whole window": {
			zone:    "Europe/Berlin",
			windows: []Window{{From: clockTime(2, 0), To: clockTime(2, 30)}},
			steps: []step{
				{"2027-10-31T02:00:00+02:00", true},
				{"2027-10-31T02:30:00+01:00", false},
				{"2027-11-01T02:00:00+01:00", true},
			},
		},
		"Lord Howe skips half an hour": {
			zone:    "Australia/Lord_Howe",
			windows: []Window{{From: clockTime(2, 15), To: clockTime(4, 0)}},
			steps: []step{
				{"2026-10-04T02:30:00+11:00", true}, // 02:00 to 02:30 is skipped
				{"2026-10-04T04:00:00+11:00", false},
				{"2026-10-05T02:15:00+11:00", true},
			},
		},
		"Lord Howe repeats half an hour": {
			zone:    "Australia/Lord_Howe",
			windows: []Window{{From: clockTime(1, 45), To: clockTime(1, 50)}},
			steps: []step{
				{"2027-04-04T01:45:00+11:00", true},
				{"2027-04-04T01:50:00+10:30", false},
				{"2027-04-05T01:45:00+10:30", true},
			},
		},
		"Samoa skips a Friday": {
			zone:    "Pacific/Apia",
			windows: []Window{{Days: workdays, From: clockTime(8, 0), To: clockTime(18, 0)}},
			steps: []step{
				{"2011-12-29T08:00:00-10:00", true},
				{"2011-12-29T18:00:00-10:00", false},
				{"2012-01-02T08:00:00+14:00", true},
			},
		},
		"Samoa skips the day on which a window ends": {
			zone:    "Pacific/Apia",
			windows: []Window{{Days: days(time.Thursday), From: clockTime(22, 0), To: clockTime(6, 0)}},
			steps: []step{
				{"2011-12-29T22:00:00-10:00", true},
				{"2011-12-31T00:00:00+14:00", false},
				{"2012-01-05T22:00:00+14:00", true},
			},
		},
	} {
		for i := range test.windows {
			test.windows[i].Zone = zone(t, test.zone)
		}
		h := newHours(Sync{Windows: test.windows, Holidays: test.holidays})
		for i, s := range test.steps {
			at, err := time.Parse(time.RFC3339, s.at)
			if err != nil {
				t.Fatal(err)
			}
			got := h.at(at)
			if got.Open != s.open || !got.From.Equal(at) && i > 0 {
				t.Errorf("%s: from %s: open is %t, since %s", name, s.at, got.Open, got.From)
			}
			if i+1 == len(test.steps) {
				continue
			}
			next, _ := time.Parse(time.RFC3339, test.steps[i+1].at)
			if !got.Until.Equal(next) {
				t.Errorf("%s: after %s the next change is at %s, want %s", name, s.at, got.Until.In(zone(t, test.zone)), next)
			}
			if before := h.at(next.Add(-time.Second)); before.Open != s.open || !before.Until.Equal(next) {
				t.Errorf("%s: a second before %s: open is %t until %s", name, next, before.Open, before.Until)
			}
		}
	}
}

func TestAHoldOfAWindowSaysWhenItOpens(t *testing.T) {
	newYork := zone(t, "America/New_York")
	h := newHours(Sync{Windows: []Window{
		{Days: days(time.Wednesday), From: clockTime(8, 0), To: clockTime(9, 0)},
		{Days: days(time.Monday), From: clockTime(8, 0), To: clockTime(18, 0), Zone: newYork},
	}})
	const want = "outside its window, opens Mon 2026-12-07 08:00 America/New_York"
	if got := h.at(time.Date(2026, 12, 4, 12, 0, 0, 0, time.UTC)).Reason; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Without a holiday ahead, windows without a gap never close, and nothing searches for their end forever.
func TestAWindowMayBeOpenAllTheTime(t *testing.T) {
	now := time.Date(2026, 12, 4, 12, 0, 0, 0, time.UTC)
	h := newHours(Sync{Windows: []Window{{From: 0, To: clockTime(24, 0)}}, Holidays: []Date{{2020, time.January, 1}}})
	if got := h.at(now); !got.Open || got.Until.Before(now.AddDate(0, 6, 0)) {
		t.Errorf("open is %t until %s", got.Open, got.Until)
	}
}

// locked is a store in which somebody has locked the row of the sync.
type locked struct{ Store }

func (locked) KeepWindow(context.Context, string, outbox.Window) (bool, time.Time, error) {
	return false, time.Now(), nil
}

func TestALockedSyncIsNotAskedAboutAllTheTime(t *testing.T) {
	h := newHours(Sync{Windows: []Window{{From: clockTime(8, 0), To: clockTime(18, 0)}}})
	if kept, err := h.keep(t.Context(), locked{}, "Court"); kept || err != nil {
		t.Fatal(kept, err)
	}
	if pause := h.change(time.Now()); pause < time.Hour {
		t.Errorf("asked again after %s, want the pause of a relay that finds nothing", pause)
	}
}

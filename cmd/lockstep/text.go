package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// clock formats a time for tables.
func clock(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// clockMilli formats a time for tables in which attempts within a second are told apart.
func clockMilli(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// age formats a duration with its two largest units: 3d4h, 5m2s, 0.4s.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0s"
	case d >= day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return d.Round(100 * time.Millisecond).String()
}

// duration is a flag such as 90s, 24h or 7d.
type duration time.Duration

func (d *duration) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

func (d *duration) Set(s string) error {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			*d = duration(time.Duration(n) * 24 * time.Hour)
			return nil
		}
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("want a duration such as 90s, 24h or 7d")
	}
	*d = duration(v)
	return nil
}
func (*duration) Type() string { return "duration" }

// interval is the duration for a statement, nil if it is not set.
func (d *duration) interval() *string {
	if *d == 0 {
		return nil
	}
	return new(fmt.Sprintf("%d microseconds", time.Duration(*d).Microseconds()))
}

// timeFlag is a flag that names a time.
type timeFlag struct{ at *time.Time }

func (m *timeFlag) String() string {
	if m.at == nil {
		return ""
	}
	return m.at.Format(time.RFC3339)
}

func (m *timeFlag) Set(s string) error {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return fmt.Errorf("want a time with its zone, such as 2027-01-31T08:00:00Z or 2027-01-31T08:00:00-05:00")
	}
	m.at = &t
	return nil
}
func (*timeFlag) Type() string { return "time" }

// instant is a flag that names a time, or a duration before now by the
// database's clock.
type instant struct {
	at  *time.Time
	ago duration
}

func (i *instant) set() bool { return i.ago != 0 || i.at != nil }

func (i *instant) String() string {
	if i.at != nil {
		return i.at.Format(time.RFC3339)
	}
	return i.ago.String()
}

func (i *instant) Set(s string) error {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		*i = instant{at: &t}
		return nil
	}
	*i = instant{}
	if err := i.ago.Set(s); err != nil || i.ago == 0 {
		return fmt.Errorf("want a duration such as 90s, 24h or 7d, or a time such as 2027-01-31T08:00:00Z")
	}
	return nil
}
func (*instant) Type() string { return "when" }

// uuid is the form of an event's id.
var uuid = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// eventID checks the id of an event.
func eventID(s string) error {
	if !uuid.MatchString(s) {
		return usagef("%q is not an event's id: want a UUID such as 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d", s)
	}
	return nil
}

// fixed returns the columns of a table that have the same value in all rows, because the
// user selected one sync, key or event.
func fixed(sync, key, event string) (columns []string) {
	for name, value := range map[string]string{"SYNC": sync, "KEY": key, "EVENT": event} {
		if value != "" {
			columns = append(columns, name)
		}
	}
	return columns
}

// quoted returns s as one word of a shell's command line.
func quoted(s string) string {
	s = adapters.Clean(s, 0)
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

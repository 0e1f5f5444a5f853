package mapping

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// TimeFormat says how a time is written for the receiver. The value in the payload is a time
// with an offset, or a date (RFC 3339 full-date). A date has no zone, and is never converted
// to another day. A time is an RFC 3339 date-time, which may also have a lower-case t or z, a
// space instead of T, no seconds, or an offset such as -0500 or -05.
type TimeFormat struct {
	Zone   string `json:"zone,omitempty"`   // IANA name, such as America/New_York; empty keeps the offset of the source
	Format string `json:"format,omitempty"` // a name of TimeFormats or a Go layout; empty means RFC3339
}

// The names of the formats that are numbers.
const (
	formatUnix      = "unix"
	formatUnixMilli = "unix_ms"
)

// namedLayouts returns the layouts of the formats that have a name and are text.
func namedLayouts() map[string]string {
	return map[string]string{
		"RFC3339":        time.RFC3339,
		"RFC3339Nano":    time.RFC3339Nano,
		"RFC3339Milli":   "2006-01-02T15:04:05.000Z07:00",
		"RFC3339Micro":   "2006-01-02T15:04:05.000000Z07:00",
		"RFC1123":        time.RFC1123,
		"RFC1123Z":       time.RFC1123Z,
		"date":           time.DateOnly,
		"time":           time.TimeOnly,
		"datetime":       time.DateTime,
		"datetime-local": "2006-01-02T15:04:05",
		"basic":          "20060102T150405Z0700",
		"hl7":            "20060102150405-0700",
	}
}

// TimeFormats returns the names that [TimeFormat] takes as Format, sorted.
func TimeFormats() []string {
	return slices.Sorted(slices.Values(append(slices.Collect(maps.Keys(namedLayouts())), formatUnix, formatUnixMilli)))
}

// foreignLayout matches layouts of other languages, which Go would copy literally.
var foreignLayout = regexp.MustCompile(`%[A-Za-z]|[Yy]{2,4}|MM|[Dd]{2}|HH|hh|mm|ss|SSS`)

type timeWriter struct {
	zone   *time.Location // nil keeps the source's offset
	layout string         // or formatUnix, formatUnixMilli
	clock  bool           // the layout shows the time of day
}

func (f TimeFormat) compile() (*timeWriter, error) {
	w := &timeWriter{clock: true}
	if f.Zone == "Local" {
		return nil, errors.New("time.zone Local depends on the machine: write an IANA name such as America/New_York")
	}
	if f.Zone != "" {
		zone, err := loadZone(f.Zone)
		if errors.Is(err, errNoZone) {
			return nil, fmt.Errorf("time.zone %q is unknown: write an IANA name such as America/New_York", f.Zone)
		} else if err != nil {
			return nil, fmt.Errorf("time.zone: %w", err)
		}
		w.zone = zone
	}
	switch f.Format {
	case "":
		w.layout = time.RFC3339
		return w, nil
	case formatUnix, formatUnixMilli:
		w.layout = f.Format
		return w, nil
	}
	w.layout = f.Format
	if layout, ok := namedLayouts()[f.Format]; ok {
		w.layout = layout
	}
	shows := shownBy(w.layout)
	if !shows.date && !shows.time || foreignLayout.MatchString(f.Format) {
		hint := ""
		if strings.HasPrefix(strings.ToUpper(f.Format), "ISO") {
			hint = "; the form of ISO 8601 is RFC3339"
		}
		return nil, fmt.Errorf("time.format %q is neither one of %s nor a Go layout with year, month and day, or hour and minute, such as %q%s",
			f.Format, strings.Join(TimeFormats(), ", "), "2006-01-02 15:04", hint)
	}
	w.clock = shows.clock
	return w, nil
}

// shown says what of a time a layout shows.
type shown struct {
	date  bool // year, month and day
	time  bool // hour of the day and minute
	clock bool // anything of the time of day
}

// shownBy compares texts of times that differ in one thing and have the same weekday.
func shownBy(layout string) shown {
	at := func(year int, month time.Month, day, hour, minute int) string {
		return time.Date(year, month, day, hour, minute, 0, 0, time.UTC).Format(layout)
	}
	t := at(2031, time.January, 14, 4, 7)
	other := time.Date(2031, time.January, 14, 17, 48, 59, 123456789, time.FixedZone("XST", 7*3600)).Format(layout)
	return shown{
		date:  t != at(2059, time.January, 14, 4, 7) && t != at(2031, time.October, 14, 4, 7) && t != at(2031, time.January, 21, 4, 7),
		time:  t != at(2031, time.January, 14, 5, 7) && t != at(2031, time.January, 14, 16, 7) && t != at(2031, time.January, 14, 4, 8),
		clock: t != other,
	}
}

// withoutZone replaces the zone of t with its offset. If the offset is that of the machine's
// zone, time.Parse returns that zone, and its abbreviation must not be in the result.
func withoutZone(t time.Time) time.Time {
	_, offset := t.Zone()
	if offset == 0 {
		return t.UTC()
	}
	return t.In(time.FixedZone("", offset))
}

// acceptedTimes names the forms that parseTime accepts.
const acceptedTimes = "write it as 2027-03-01T14:00:00-05:00; a space instead of T, no seconds, Z, -0500 and -05 are accepted too"

// timeForm matches a time with an offset. Its groups are the date, hours and minutes, seconds,
// the hours and the minutes of the offset.
var timeForm = regexp.MustCompile(`^(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(:\d\d(?:\.\d+)?)?(?:[Zz]|([+-](?:[01]\d|2[0-3]))(?::?([0-5]\d))?)$`)

// parseTime reads a time with an offset. It refuses what time.Parse accepts in addition: an
// hour of one digit, a comma before the fraction, an offset of 24 hours.
func parseTime(s string) (time.Time, bool) {
	m := timeForm.FindStringSubmatch(s)
	if m == nil {
		return time.Time{}, false
	}
	offset := "Z"
	if m[4] != "" {
		offset = m[4] + ":" + cmp.Or(m[5], "00")
	}
	t, err := time.Parse(time.RFC3339, m[1]+"T"+m[2]+cmp.Or(m[3], ":00")+offset)
	return withoutZone(t), err == nil
}

func (w *timeWriter) append(dst, raw []byte) ([]byte, error) {
	if raw[0] != '"' {
		return dst, fmt.Errorf("is a %s, not a time as text", jsonKind(raw))
	}
	s := unquote(raw)
	t, ok := parseTime(s)
	switch {
	case ok && w.zone != nil:
		t = t.In(w.zone)
	case !ok:
		day, err := time.Parse(time.DateOnly, s)
		switch {
		case err != nil:
			return dst, errors.New("is neither a time with an offset nor a date: " + acceptedTimes)
		case w.clock:
			return dst, errors.New("is a date without a time of day, which the format needs: use format date")
		}
		t = day
	}
	switch w.layout {
	case formatUnix:
		return strconv.AppendInt(dst, t.Unix(), 10), nil
	case formatUnixMilli:
		return strconv.AppendInt(dst, t.UnixMilli(), 10), nil
	}
	return appendJSONString(dst, t.Format(w.layout)), nil
}

package caldav

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// Fields are the mapped fields that an event may have. start is required.
//
//   - start, end: times with an offset (RFC 3339), or without one in the configured zone,
//     or dates. The end of a date is the last day.
//   - minutes: how long it takes, in place of end
//   - summary, location, description: texts
//   - status: CONFIRMED, TENTATIVE or CANCELLED. Default: CONFIRMED
//   - class: PUBLIC, PRIVATE or CONFIDENTIAL, for sealed hearings
var Fields = []string{"start", "end", "minutes", "summary", "location", "description", "status", "class"}

// event is one VEVENT.
type event struct {
	uid      string
	sequence int64
	stamp    time.Time
	start    moment
	end      moment            // zero: none
	texts    map[string]string // by the names of Fields
}

// moment is a time or a date.
type moment struct {
	at   time.Time
	date bool
}

func (m moment) isZero() bool { return m.at.IsZero() }

// String is the one form in which moments are compared.
func (m moment) String() string {
	switch {
	case m.isZero():
		return ""
	case m.date:
		return m.at.Format(time.DateOnly)
	}
	return m.at.UTC().Format(time.RFC3339)
}

// texts are the fields that are written as they are, with their properties.
var texts = []struct{ field, property string }{
	{"summary", "SUMMARY"}, {"location", "LOCATION"}, {"description", "DESCRIPTION"}, {"status", "STATUS"}, {"class", "CLASS"},
}

// words are the values of fields that have only some (RFC 5545, 3.8.1).
var words = map[string][]string{
	"status": {"CONFIRMED", "TENTATIVE", "CANCELLED"},
	"class":  {"PUBLIC", "PRIVATE", "CONFIDENTIAL"},
}

// eventOf makes the event of a message.
func (a *Adapter) eventOf(msg adapters.Message) (e event, err error) {
	fields, err := msg.Fields()
	if err != nil {
		return e, errors.New("the mapped fields are not a JSON object")
	}
	for name := range fields {
		if !slices.Contains(Fields, name) && !slices.Contains(a.url.Fields(), name) {
			return e, fmt.Errorf("the field %s has no place in a calendar: map to %s", adapters.Clean(name, 60), strings.Join(Fields, ", "))
		}
	}
	e = event{uid: a.uid(msg.Key), stamp: msg.OccurredAt.UTC(), texts: map[string]string{}}
	if e.sequence, err = sequence(msg); err != nil {
		return e, err
	}
	for _, t := range texts {
		text, err := placeholder.Text(fields[t.field])
		if err != nil && !errors.Is(err, placeholder.ErrNotKnown) {
			return e, fmt.Errorf("the field %s %w", t.field, err)
		}
		if err := printable(text); err != nil {
			return e, fmt.Errorf("the field %s %w", t.field, err)
		}
		if allowed := words[t.field]; allowed != nil && text != "" {
			if text = strings.ToUpper(text); !slices.Contains(allowed, text) {
				return e, fmt.Errorf("the field %s is not one of %s", t.field, strings.Join(allowed, ", "))
			}
		}
		e.texts[t.field] = text
	}
	e.texts["status"] = cmp.Or(e.texts["status"], "CONFIRMED")
	if a.cancels(msg) {
		e.texts["status"] = "CANCELLED"
	}
	return e, a.setTimes(&e, fields)
}

// sequence is the version of the event (RFC 5545, 3.8.7.4). Without a version it is the time
// at which the event happened, in seconds.
func sequence(msg adapters.Message) (int64, error) {
	n := msg.OccurredAt.Unix()
	if msg.Version != nil {
		n = *msg.Version
	}
	if n < 0 || n > math.MaxInt32 {
		return 0, fmt.Errorf("the version %d is not a SEQUENCE of iCalendar, which goes from 0 to %d", n, math.MaxInt32)
	}
	return n, nil
}

// setTimes reads start, end and minutes.
func (a *Adapter) setTimes(e *event, fields map[string]any) error {
	var err error
	if e.start, err = a.moment(fields, "start"); err != nil {
		return err
	}
	if e.start.isZero() {
		return errors.New("the field start is missing")
	}
	if e.end, err = a.moment(fields, "end"); err != nil {
		return err
	}
	minutes, given := fields["minutes"]
	switch {
	case given && minutes != nil && !e.end.isZero():
		return errors.New("the fields end and minutes are both there: map one of them")
	case given && minutes != nil:
		number, _ := minutes.(json.Number)
		n, err := strconv.ParseInt(number.String(), 10, 32)
		if err != nil || n <= 0 {
			return errors.New("the field minutes is not a whole number above 0")
		}
		if e.start.date {
			return errors.New("the field minutes does not go with a start that is a date")
		}
		e.end = moment{at: e.start.at.Add(time.Duration(n) * time.Minute)}
	case e.end.isZero() && e.start.date:
		e.end = moment{e.start.at.AddDate(0, 0, 1), true}
	case e.end.isZero() && a.length > 0:
		e.end = moment{at: e.start.at.Add(a.length)}
	case e.end.isZero():
		return nil
	case e.start.date != e.end.date:
		return errors.New("of the fields start and end, one is a date and the other is a time")
	case e.end.date:
		e.end.at = e.end.at.AddDate(0, 0, 1) // DTEND is the first day after it (RFC 5545, 3.6.1)
	}
	if !e.end.at.After(e.start.at) {
		return errors.New("the field end is not after start")
	}
	return nil
}

const localLayout = "2006-01-02T15:04:05"

// moment reads a field with a time or a date.
func (a *Adapter) moment(fields map[string]any, name string) (moment, error) {
	value := fields[name]
	text, isText := value.(string)
	switch {
	case value == nil:
		return moment{}, nil
	case !isText:
		return moment{}, fmt.Errorf("the field %s is not a text with a time", name)
	}
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return moment{day, true}, nil
	}
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return moment{at: at.Truncate(time.Second)}, nil
	}
	local := text
	if len(local) == len("2006-01-02T15:04") {
		local += ":00"
	}
	wall, err := time.Parse(localLayout, local)
	switch {
	case err != nil:
		return moment{}, fmt.Errorf("the field %s is neither a date nor a time of RFC 3339, such as 2027-03-15T09:30:00-04:00", name)
	case a.zone == nil:
		return moment{}, fmt.Errorf("the field %s has no offset: write one, or set zone", name)
	}
	at, err := inZone(wall, a.zone)
	if err != nil {
		return moment{}, fmt.Errorf("the field %s %w", name, err)
	}
	return moment{at: at}, nil
}

// inZone returns the instant of a local time. It refuses times that a zone does not have, or
// has twice, when clocks are put forward or back.
func inZone(wall time.Time, zone *time.Location) (time.Time, error) {
	at := time.Date(wall.Year(), wall.Month(), wall.Day(), wall.Hour(), wall.Minute(), wall.Second(), 0, zone)
	shown := func(t time.Time) string { return t.In(zone).Format(localLayout) }
	if shown(at) != wall.Format(localLayout) {
		return at, fmt.Errorf("does not exist in %s: clocks are put forward then", zone)
	}
	begin, end := at.ZoneBounds()
	for _, other := range []time.Time{begin.Add(-time.Second), end} { // the offsets before and after
		if other.IsZero() {
			continue
		}
		_, here := at.Zone()
		_, there := other.In(zone).Zone()
		if twin := at.Add(time.Duration(here-there) * time.Second); here != there && shown(twin) == shown(at) {
			return at, fmt.Errorf("exists twice in %s, because clocks are put back then: write it with its offset", zone)
		}
	}
	return at, nil
}

// printable refuses characters that iCalendar cannot have (RFC 5545, 3.1).
func printable(text string) error {
	if !utf8.ValidString(text) {
		return errors.New("is not valid UTF-8")
	}
	for i, r := range text {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f {
			return fmt.Errorf("has a control character (%U) at byte %d", r, i)
		}
	}
	return nil
}

// write returns the object, as it is stored: without METHOD (RFC 4791, 4.1), and without
// ORGANIZER and ATTENDEE, because servers send mail to these (RFC 6638).
func (a *Adapter) write(e event) []byte {
	var w writer
	w.line("BEGIN:VCALENDAR")
	w.line("VERSION:2.0")
	w.line("PRODID:-//Lockstep//Lockstep//EN")
	if a.zone != nil && !e.start.date {
		w.zone(a.zone, e.start.at, cmp.Or(e.end.at, e.start.at))
	}
	w.line("BEGIN:VEVENT")
	w.line("UID:" + escape(e.uid))
	w.line("DTSTAMP:" + e.stamp.Format(utcLayout))
	w.line("SEQUENCE:" + strconv.FormatInt(e.sequence, 10))
	w.line("DTSTART" + a.written(e.start))
	if !e.end.isZero() {
		w.line("DTEND" + a.written(e.end))
	}
	for _, t := range texts {
		if text := e.texts[t.field]; text != "" {
			w.line(t.property + ":" + escape(text))
		}
	}
	w.line("END:VEVENT")
	w.line("END:VCALENDAR")
	return []byte(w.String())
}

const (
	utcLayout  = "20060102T150405Z"
	wallLayout = "20060102T150405"
	dayLayout  = "20060102"
)

// written is a moment with its parameters.
func (a *Adapter) written(m moment) string {
	switch {
	case m.date:
		return ";VALUE=DATE:" + m.at.Format(dayLayout)
	case a.zone != nil && !isSecond(m.at, a.zone): // a local time that exists twice means the first one (RFC 5545, 3.3.5)
		return ";TZID=" + a.zone.String() + ":" + m.at.In(a.zone).Format(wallLayout)
	}
	return ":" + m.at.UTC().Format(utcLayout)
}

// isSecond reports whether the clock shows a time for the second time, after it was put back.
func isSecond(at time.Time, zone *time.Location) bool {
	begin, _ := at.In(zone).ZoneBounds()
	if begin.IsZero() {
		return false
	}
	_, before := begin.Add(-time.Second).Zone()
	_, now := at.In(zone).Zone()
	return at.Sub(begin) < time.Duration(before-now)*time.Second
}

// escape writes a TEXT (RFC 5545, 3.3.11).
func escape(text string) string {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	return strings.NewReplacer(`\`, `\\`, ";", `\;`, ",", `\,`, "\n", `\n`, "\r", `\n`).Replace(text)
}

// writer writes content lines.
type writer struct{ strings.Builder }

// line writes a content line. It is folded after 75 bytes, and not inside a character (RFC
// 5545, 3.1).
func (w *writer) line(text string) {
	const longest = 75
	room := longest
	for len(text) > room {
		cut := room
		for !utf8.RuneStart(text[cut]) {
			cut--
		}
		w.WriteString(text[:cut] + "\r\n ")
		text, room = text[cut:], longest-1 // the space counts
	}
	w.WriteString(text + "\r\n")
}

// zone writes the rules of a zone that hold from the first to the last time.
func (w *writer) zone(zone *time.Location, first, last time.Time) {
	w.line("BEGIN:VTIMEZONE")
	w.line("TZID:" + zone.String())
	for at := first.In(zone); ; {
		begin, end := at.ZoneBounds()
		name, offset := at.Zone()
		before := offset
		if begin.IsZero() {
			begin = time.Date(1970, 1, 1, 0, 0, 0, 0, zone) // it has never changed
		} else {
			_, before = begin.Add(-time.Second).Zone()
		}
		kind := "STANDARD"
		if at.IsDST() {
			kind = "DAYLIGHT"
		}
		w.line("BEGIN:" + kind)
		w.line("DTSTART:" + begin.UTC().Add(time.Duration(before)*time.Second).Format(wallLayout)) // by the clock that ends then
		w.line("TZOFFSETFROM:" + offsetText(before))
		w.line("TZOFFSETTO:" + offsetText(offset))
		w.line("TZNAME:" + escape(name))
		w.line("END:" + kind)
		if end.IsZero() || end.After(last) {
			break
		}
		at = end
	}
	w.line("END:VTIMEZONE")
}

func offsetText(seconds int) string {
	sign := "+"
	if seconds < 0 {
		sign, seconds = "-", -seconds
	}
	text := fmt.Sprintf("%s%02d%02d", sign, seconds/3600, seconds/60%60)
	if seconds%60 != 0 {
		text += fmt.Sprintf("%02d", seconds%60)
	}
	return text
}

package caldav

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/emersion/go-ical"

	"github.com/hms-mkt/lockstep/adapters"
)

// uid is the UID of a key's event (RFC 5545, 3.8.4.7).
func (a *Adapter) uid(key string) string { return url.PathEscape(key) + "@" + a.domain }

// keyOf returns the key of an event of ours, or nothing.
func (a *Adapter) keyOf(uid string) string {
	escaped, ours := strings.CutSuffix(uid, "@"+a.domain)
	key, err := url.PathUnescape(escaped)
	if !ours || err != nil || url.PathEscape(key) != escaped {
		return ""
	}
	return key
}

// objectName is the last segment of the URL of a key's object. A key of unusual characters is
// written as its digest, because servers disagree about those.
func objectName(key string) string {
	usual := !strings.ContainsFunc(key, func(r rune) bool { return !isUnreserved(r) })
	if usual && len(key) <= 64 && strings.Trim(key, ".") != "" {
		return key + ".ics"
	}
	sum := sha256.Sum256([]byte(key))
	return "sha256-" + hex.EncodeToString(sum[:20]) + ".ics"
}

// isUnreserved reports whether a character stands for itself in every URL (RFC 3986, 2.3).
func isUnreserved(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._~", r)
}

// stored is what a server has of an event.
type stored struct {
	event
	repeats bool // it is a series, or has several events
}

// parse reads an object.
func parse(object []byte) (s stored, err error) {
	defer func() { // the decoder panics on some malformed lines
		if recover() != nil {
			err = errors.New("is not iCalendar")
		}
	}()
	calendar, err := ical.NewDecoder(bytes.NewReader(object)).Decode()
	if err != nil {
		return s, errors.New("is not iCalendar")
	}
	events := calendar.Events()
	if len(events) == 0 {
		return s, errors.New("has no VEVENT")
	}
	e := events[0]
	s.repeats = len(events) > 1 || e.Props.Get(ical.PropRecurrenceRule) != nil || e.Props.Get(ical.PropRecurrenceDates) != nil
	text := func(name string) string {
		if p := e.Props.Get(name); p != nil {
			if v, err := p.Text(); err == nil {
				return v
			}
			return p.Value
		}
		return ""
	}
	s.uid, s.texts = text(ical.PropUID), map[string]string{}
	s.sequence, _ = strconv.ParseInt(text(ical.PropSequence), 10, 64) // absent is 0 (RFC 5545, 3.8.7.4)
	for _, t := range texts {
		s.texts[t.field] = text(t.property)
	}
	if s.start, err = momentOf(e.Props.Get(ical.PropDateTimeStart)); err != nil {
		return s, fmt.Errorf("has a DTSTART that %w", err)
	}
	if s.end, err = momentOf(e.Props.Get(ical.PropDateTimeEnd)); err != nil {
		return s, fmt.Errorf("has a DTEND that %w", err)
	}
	if d := e.Props.Get(ical.PropDuration); d != nil && s.end.isZero() {
		length, err := d.Duration()
		if err != nil {
			return s, errors.New("has a DURATION that cannot be read")
		}
		s.end = moment{s.start.at.Add(length), s.start.date}
	}
	return s, nil
}

// momentOf reads DTSTART or DTEND. The zone of a TZID is the IANA zone of that name, perhaps
// with a prefix; the rules of a VTIMEZONE are not read.
func momentOf(p *ical.Prop) (m moment, err error) {
	if p == nil {
		return m, nil
	}
	if m.at, err = time.Parse(dayLayout, p.Value); err == nil {
		m.date = true
		return m, nil
	}
	if m.at, err = time.Parse(utcLayout, p.Value); err == nil {
		return m, nil
	}
	zone := time.UTC
	for name := p.Params.Get(ical.PropTimezoneID); name != ""; { // such as /freeassociation.sourceforge.net/America/New_York
		if zone, err = time.LoadLocation(name); err == nil {
			break
		}
		_, name, _ = strings.Cut(name, "/")
		if name == "" {
			return m, errors.New("is in a zone that is not an IANA zone")
		}
	}
	if m.at, err = time.ParseInLocation(wallLayout, p.Value, zone); err != nil {
		return m, errors.New("cannot be read")
	}
	return m, nil
}

// differs returns the names of the fields in which what is stored is not what was meant.
func (e event) differs(s stored) string {
	var names []string
	if s.start.String() != e.start.String() {
		names = append(names, "start")
	}
	if s.end.String() != e.end.String() {
		names = append(names, "end")
	}
	for _, t := range texts {
		if normal(t.field, s.texts[t.field]) != normal(t.field, e.texts[t.field]) {
			names = append(names, t.field)
		}
	}
	return strings.Join(names, ", ")
}

// normal is the one form in which texts are compared: lines end in \n, without spaces at the
// ends of the text, which servers remove. The defaults of RFC 5545 count as written.
func normal(field, text string) string {
	text = strings.TrimSpace(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text))
	switch {
	case text == "" && field == "class":
		return "PUBLIC"
	case text == "" && field == "status":
		return "CONFIRMED"
	case slices.Contains([]string{"class", "status"}, field):
		return strings.ToUpper(text)
	}
	return text
}

// entry reduces an event for lockstep reconcile.
func (e event) entry(key, href string) adapters.Entry {
	version := e.sequence
	entry := adapters.Entry{
		Key: key, ExternalID: href, Version: &version, At: e.start.at,
		Cancelled: normal("status", e.texts["status"]) == "CANCELLED", Fields: map[string]string{"start": e.start.String(), "end": e.end.String()},
	}
	for _, t := range texts {
		if t.field != "status" || !entry.Cancelled {
			entry.Fields[t.field] = normal(t.field, e.texts[t.field])
		}
	}
	return entry
}

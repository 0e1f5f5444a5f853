package caldav_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/caldav"
	"github.com/hms-mkt/lockstep/internal/radicale"
)

func config(url string) caldav.Config {
	return caldav.Config{
		URL: url, Domain: "agency.example.gov",
		Auth: adapters.Credentials{Kind: "basic", Username: radicale.User, Password: radicale.Password},
	}
}

func newAdapter(t *testing.T, c caldav.Config) *caldav.Adapter {
	t.Helper()
	a, err := caldav.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// hearing is a message of one version of a hearing.
func hearing(version int64, typ string, fields map[string]any) adapters.Message {
	all := map[string]any{"start": "2027-03-15T09:30:00-04:00", "end": "2027-03-15T10:30:00-04:00", "summary": "Hearing, room 3A; part 1", "location": "3A"}
	for name, value := range fields {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	body, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return adapters.Message{
		ID: "e-1", IdempotencyKey: "e-1", Type: "scheduling:" + typ, Key: "H-1", Version: &version, Attempt: 1,
		OccurredAt: time.Date(2027, 3, 1, 14, 0, 0, 0, time.UTC), Body: body,
	}
}

// deliver makes one attempt, and returns the reference that the next one has.
func deliver(t *testing.T, a *caldav.Adapter, msg adapters.Message) adapters.Ref {
	t.Helper()
	receipt, err := a.Deliver(t.Context(), msg)
	if err != nil {
		t.Fatalf("%s of version %d, step %d: %v", msg.Type, *msg.Version, msg.Step, err)
	}
	if receipt.More {
		msg.Ref = *receipt.Ref
		msg.Step++
		return deliver(t, a, msg)
	}
	return *receipt.Ref
}

var names = map[adapters.Standing]string{
	adapters.Absent: "absent", adapters.Older: "older", adapters.Equal: "equal", adapters.Newer: "newer", adapters.Foreign: "foreign",
}

func TestLifeOfAHearing(t *testing.T) {
	r := radicale.Start(t)
	a := newAdapter(t, config(r.Room("3a")))
	msg := hearing(1, "created", nil)
	ref := deliver(t, a, msg)
	if ref.ExternalID != "/agency/3a/H-1.ics" || !adapters.ValidETag(ref.ETag) {
		t.Errorf("reference %+v", ref)
	}
	got := r.Object("3a/H-1.ics")
	for property, want := range map[string]string{
		"UID": "H-1@agency.example.gov", "DTSTART": "20270315T133000Z", "DTEND": "20270315T143000Z", "SEQUENCE": "1",
		"SUMMARY": `Hearing\, room 3A\; part 1`, "LOCATION": "3A", "STATUS": "CONFIRMED", "DTSTAMP": "20270301T140000Z", "METHOD": "", "ATTENDEE": "",
	} {
		if radicale.Line(got, property) != want {
			t.Errorf("%s is %q, want %q", property, radicale.Line(got, property), want)
		}
	}
	msg = hearing(2, "updated", map[string]any{"start": "2027-03-16T09:30:00-04:00", "end": "2027-03-16T11:00:00-04:00"})
	msg.Ref = ref
	ref = deliver(t, a, msg)
	if got := r.Object("3a/H-1.ics"); radicale.Line(got, "DTSTART") != "20270316T133000Z" || radicale.Line(got, "SEQUENCE") != "2" {
		t.Errorf("after the change:\n%s", got)
	}
	msg = hearing(3, "cancelled", map[string]any{"start": "2027-03-16T09:30:00-04:00", "end": nil})
	msg.Ref = ref
	deliver(t, a, msg)
	if got := r.Object("3a/H-1.ics"); radicale.Line(got, "STATUS") != "CANCELLED" || radicale.Line(got, "SEQUENCE") != "3" {
		t.Errorf("after the cancellation:\n%s", got)
	}
}

func TestCancellationThatRemoves(t *testing.T) {
	r := radicale.Start(t)
	c := config(r.Room("3a"))
	c.OnCancel, c.Cancelled = "delete", []string{"scheduling:dropped"}
	a := newAdapter(t, c)
	ref := deliver(t, a, hearing(1, "created", nil))
	msg := hearing(2, "dropped", nil)
	msg.Ref = ref
	if after := deliver(t, a, msg); after.ExternalID != "" || r.Object("3a/H-1.ics") != "" {
		t.Errorf("after it: %+v, %s", after, r.Object("3a/H-1.ics"))
	}
	if reading, err := a.Read(t.Context(), msg); err != nil || reading.Standing != adapters.Equal {
		t.Errorf("read: %+v, %v", reading, err)
	}
	receipt, err := a.Deliver(t.Context(), msg) // again: it is gone already
	if err != nil || !receipt.Duplicate {
		t.Errorf("again: %+v, %v", receipt, err)
	}
	// Without a reference the object is read first: that of another event stays.
	r.Put("3a/H-1.ics", fmt.Sprintf(other, "lunch@elsewhere", 0, ":20270315T133000Z", "canteen"))
	lost := hearing(2, "dropped", nil)
	if _, err := a.Deliver(t.Context(), lost); adapters.ClassOf(err) != adapters.ClassConflict || r.Object("3a/H-1.ics") == "" {
		t.Errorf("the object of another event: %v, %q", err, r.Object("3a/H-1.ics"))
	}
	if reading, err := a.Read(t.Context(), lost); err != nil || reading.Standing != adapters.Foreign {
		t.Errorf("read of the object of another event: %+v, %v", reading, err)
	}
	r.Do("DELETE", radicale.User+"/3a/H-1.ics", "")
	// Booked again, and removed by its status.
	again := hearing(3, "updated", nil)
	ref = deliver(t, a, again)
	gone := hearing(4, "updated", map[string]any{"status": "cancelled"})
	gone.Ref = ref
	if deliver(t, a, gone); r.Object("3a/H-1.ics") != "" {
		t.Error("it is still there")
	}
}

// A hearing moves to a room with a calendar of its own. Each of the two requests may be lost,
// before or after the server has taken it, and the relay may die before it has recorded it.
func TestRoomChange(t *testing.T) {
	for _, crash := range []string{"none", "before the PUT", "after the PUT", "before the DELETE", "after the DELETE"} {
		t.Run(crash, func(t *testing.T) {
			r := radicale.Start(t)
			r.Room("3a")
			r.Room("4b")
			c := config(r.URL + radicale.User + "/{fields.room}/")
			c.Collections = []string{r.URL + radicale.User + "/3a/", r.URL + radicale.User + "/4b/"}
			a := newAdapter(t, c)
			msg := hearing(1, "created", map[string]any{"room": "3a"})
			ref := deliver(t, a, msg)
			msg = hearing(2, "updated", map[string]any{"room": "4b", "location": "4B"})
			msg.Ref = ref
			for step, name := range []string{"PUT", "DELETE"} {
				msg.Step = step
				send := func() {
					receipt, err := a.Deliver(t.Context(), msg)
					if err != nil || receipt.More != (step == 0) {
						t.Fatalf("%s: %+v, %v", name, receipt, err)
					}
					msg.Ref = *receipt.Ref
				}
				switch crash {
				case "after the " + name:
					if _, err := a.Deliver(t.Context(), msg); err != nil { // its answer is lost
						t.Fatal(err)
					}
					reading, err := a.Read(t.Context(), msg)
					if err != nil || reading.Standing != adapters.Equal || reading.More != (step == 0) {
						t.Fatalf("read after the %s: %+v, %v", name, reading, err)
					}
					msg.Ref = *reading.Ref
				case "before the " + name:
					reading, err := a.Read(t.Context(), msg)
					want := map[string]string{"PUT": "absent", "DELETE": "older"}[name]
					if err != nil || names[reading.Standing] != want {
						t.Fatalf("read before the %s: %+v, %v", name, reading, err)
					}
					send()
				default:
					send()
				}
				if r.Object("3a/H-1.ics") == "" && r.Object("4b/H-1.ics") == "" {
					t.Error("it is in no calendar")
				}
			}
			if msg.Ref.ExternalID != "/agency/4b/H-1.ics" || len(msg.Ref.Learned) > 0 {
				t.Errorf("reference %+v", msg.Ref)
			}
			if r.Object("3a/H-1.ics") != "" || radicale.Line(r.Object("4b/H-1.ics"), "LOCATION") != "4B" {
				t.Errorf("3a: %s\n4b: %s", r.Object("3a/H-1.ics"), r.Object("4b/H-1.ics"))
			}
		})
	}
}

// A removal that never succeeded is made up for when the hearing moves again.
func TestRoomChangeAfterARemovalThatWasGivenUp(t *testing.T) {
	r := radicale.Start(t)
	for _, room := range []string{"a", "b", "c"} {
		r.Room(room)
	}
	a := newAdapter(t, config(r.URL+radicale.User+"/{fields.room}/"))
	move := func(version int64, room string, ref adapters.Ref, removes bool) adapters.Ref {
		t.Helper()
		msg := hearing(version, "updated", map[string]any{"room": room})
		if msg.Ref = ref; removes {
			return deliver(t, a, msg)
		}
		receipt, err := a.Deliver(t.Context(), msg)
		if err != nil {
			t.Fatal(err)
		}
		return *receipt.Ref
	}
	ref := move(1, "a", adapters.Ref{}, true)
	ref = move(2, "b", ref, false)
	ref = move(3, "c", ref, true)
	for room, want := range map[string]bool{"a": false, "b": false, "c": true} {
		if got := r.Object(room+"/H-1.ics") != ""; got != want {
			t.Errorf("room %s has it: %t, want %t", room, got, want)
		}
	}
	if len(ref.Learned) > 0 {
		t.Errorf("reference %+v", ref)
	}
}

const other = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//someone//EN\r\nBEGIN:VEVENT\r\nUID:%s\r\nDTSTAMP:20270101T000000Z\r\nSEQUENCE:%d\r\nDTSTART%s\r\nDTEND:20270315T143000Z\r\nSUMMARY:Hearing\\, room 3A\\; part 1\r\nLOCATION:%s\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"

const eastern = "BEGIN:VTIMEZONE\r\nTZID:America/New_York\r\nBEGIN:DAYLIGHT\r\nDTSTART:20070311T020000\r\nRRULE:FREQ=YEARLY;BYMONTH=3;BYDAY=2SU\r\nTZOFFSETFROM:-0500\r\nTZOFFSETTO:-0400\r\nEND:DAYLIGHT\r\nEND:VTIMEZONE\r\n"

// What is read decides what becomes of a message whose answer was lost.
func TestRead(t *testing.T) {
	const uid = "H-1@agency.example.gov"
	for name, tc := range map[string]struct {
		path, object string
		want         string
	}{
		"nothing":                  {"", "", "absent "},
		"as it was sent":           {"H-1.ics", fmt.Sprintf(other, uid, 2, ":20270315T133000Z", "3A"), "equal "},
		"in a zone":                {"H-1.ics", strings.NewReplacer("BEGIN:VEVENT", eastern+"BEGIN:VEVENT", "DTEND:20270315T143000Z", "DTEND;TZID=America/New_York:20270315T103000").Replace(fmt.Sprintf(other, uid, 2, ";TZID=America/New_York:20270315T093000", "3A")), "equal "},
		"under another name":       {"by-hand.ics", fmt.Sprintf(other, uid, 2, ":20270315T133000Z", "3A"), "equal "},
		"an earlier state":         {"H-1.ics", fmt.Sprintf(other, uid, 1, ":20270315T133000Z", "2B"), "older "},
		"a later state":            {"H-1.ics", fmt.Sprintf(other, uid, 7, ":20270315T133000Z", "3A"), "newer its SEQUENCE is 7"},
		"changed by somebody":      {"H-1.ics", fmt.Sprintf(other, uid, 2, ":20270315T140000Z", "2B"), "foreign it differs in start, location"},
		"of another event":         {"H-1.ics", fmt.Sprintf(other, "x@elsewhere", 2, ":20270315T133000Z", "3A"), "foreign the object is of another event"},
		"a series":                 {"H-1.ics", strings.Replace(fmt.Sprintf(other, uid, 2, ":20270315T133000Z", "3A"), "LOCATION", "RRULE:FREQ=DAILY\r\nLOCATION", 1), "foreign it has become a series"},
		"a UID that has a part":    {"x.ics", fmt.Sprintf(other, "x"+uid, 2, ":20270315T133000Z", "3A"), "absent "},
		"a DURATION for the DTEND": {"H-1.ics", strings.Replace(fmt.Sprintf(other, uid, 2, ":20270315T133000Z", "3A"), "DTEND:20270315T143000Z", "DURATION:PT1H", 1), "equal "},
	} {
		t.Run(name, func(t *testing.T) {
			r := radicale.Start(t)
			a := newAdapter(t, config(r.Room("3a")))
			if tc.path != "" {
				r.Put("3a/"+tc.path, tc.object)
			}
			msg := hearing(2, "updated", nil)
			reading, err := a.Read(t.Context(), msg)
			if got := names[reading.Standing] + " " + reading.Differs; err != nil || got != tc.want {
				t.Errorf("%s, %v; want %s", got, err, tc.want)
			}
			if tc.path != "" && reading.Standing == adapters.Older {
				msg.Ref = *reading.Ref
				if deliver(t, a, msg); radicale.Line(r.Object("3a/H-1.ics"), "SEQUENCE") != "2" {
					t.Errorf("after the attempt: %s", r.Object("3a/H-1.ics"))
				}
			}
		})
	}
}

// Nobody else's change is overwritten, and an object that somebody has removed is made again.
func TestChangesByOthers(t *testing.T) {
	r := radicale.Start(t)
	a := newAdapter(t, config(r.Room("3a")))
	ref := deliver(t, a, hearing(1, "created", nil))
	r.Do("PUT", radicale.User+"/3a/H-1.ics", fmt.Sprintf(other, "H-1@agency.example.gov", 1, ":20270315T150000Z", "2B"), "Content-Type", "text/calendar")
	msg := hearing(2, "updated", nil)
	msg.Ref = ref
	_, err := a.Deliver(t.Context(), msg)
	if adapters.ClassOf(err) != adapters.ClassConflict {
		t.Fatalf("the attempt: %v", err)
	}
	if reading, err := a.Read(t.Context(), msg); err != nil || reading.Standing != adapters.Foreign || reading.Differs != "it was changed since it was written last" {
		t.Errorf("read: %+v, %v", reading, err)
	}
	r.Do("DELETE", radicale.User+"/3a/H-1.ics", "")
	if _, err := a.Deliver(t.Context(), msg); adapters.ClassOf(err) != adapters.ClassConflict {
		t.Fatalf("after the removal: %v", err)
	}
	reading, err := a.Read(t.Context(), msg)
	if err != nil || reading.Standing != adapters.Absent || reading.Ref == nil {
		t.Fatalf("read after the removal: %+v, %v", reading, err)
	}
	msg.Ref = *reading.Ref
	if deliver(t, a, msg); radicale.Line(r.Object("3a/H-1.ics"), "SEQUENCE") != "2" {
		t.Error("it was not made again")
	}
	// An object of that name is there, and no answer said so.
	theirs := fmt.Sprintf(other, "H-2@agency.example.gov", 9, ":20270315T133000Z", "2B")
	r.Put("3a/H-2.ics", theirs)
	msg = hearing(1, "created", nil)
	msg.Key = "H-2"
	if _, err := a.Deliver(t.Context(), msg); adapters.ClassOf(err) != adapters.ClassConflict || radicale.Line(r.Object("3a/H-2.ics"), "SEQUENCE") != "9" {
		t.Errorf("over an object that is there: %v\n%s", err, r.Object("3a/H-2.ics"))
	}
}

// Without a strong ETag the object is read before it is written.
func TestWithoutAStrongETag(t *testing.T) {
	r := radicale.Start(t)
	a := newAdapter(t, config(r.Room("3a")))
	for _, etag := range []string{"", `W/"x"`} {
		ref := deliver(t, a, hearing(1, "created", map[string]any{"summary": etag}))
		ref.ETag = etag
		msg := hearing(2, "updated", nil)
		msg.Ref = ref
		deliver(t, a, msg)
		msg = hearing(1, "updated", nil)
		msg.Ref = ref
		if _, err := a.Deliver(t.Context(), msg); adapters.ClassOf(err) != adapters.ClassConflict || !strings.Contains(err.Error(), "SEQUENCE 2") {
			t.Errorf("an older one is written over a newer one: %v", err)
		}
		r.Do("DELETE", radicale.User+"/3a/H-1.ics", "")
		if _, err := a.Deliver(t.Context(), msg); adapters.ClassOf(err) != adapters.ClassConflict || !strings.Contains(err.Error(), "is gone") {
			t.Errorf("an object that is gone: %v", err)
		}
	}
}

func TestRefusals(t *testing.T) {
	r := radicale.Start(t)
	collection := r.Room("3a")
	r.Put("3a/other.ics", fmt.Sprintf(other, "H-1@agency.example.gov", 0, ":20270315T133000Z", "3A"))
	wrongPassword := config(collection)
	wrongPassword.Auth.Password = "wrong"
	for name, tc := range map[string]struct {
		config caldav.Config
		class  adapters.Class
		text   string
	}{
		"the UID is taken":               {config(collection), adapters.ClassConflict, "no-uid-conflict"},
		"a collection that is not there": {config(r.URL + radicale.User + "/nowhere/"), adapters.ClassPermanent, "HTTP 409: the collection does not exist"},
		"wrong credentials":              {wrongPassword, adapters.ClassAuth, "HTTP 401"},
		"another user's calendar":        {config(r.URL + "somebody/3a/"), adapters.ClassForbidden, "HTTP 403"},
	} {
		_, err := newAdapter(t, tc.config).Deliver(t.Context(), hearing(1, "created", nil))
		if adapters.ClassOf(err) != tc.class || err == nil || !strings.Contains(err.Error(), tc.text) || strings.Contains(err.Error(), radicale.Password) {
			t.Errorf("%s: %s: %v", name, adapters.ClassOf(err), err)
		}
	}
}

func TestList(t *testing.T) {
	r := radicale.Start(t)
	r.Room("3a")
	r.Room("4b")
	c := config(r.URL + radicale.User + "/{fields.room}/")
	a := newAdapter(t, c)
	if err := a.List(t.Context(), adapters.Window{}, nil); err == nil || !strings.Contains(err.Error(), "collections must name all calendars") {
		t.Errorf("without collections: %v", err)
	}
	c.Collections = []string{r.URL + radicale.User + "/3a/", r.URL + radicale.User + "/4b/"}
	a = newAdapter(t, c)
	var sent []adapters.Entry
	for i, fields := range []map[string]any{
		{"room": "3a", "summary": "one"},
		{"room": "4b", "summary": "two\nlines", "description": `a\b`, "class": "private", "start": "2027-03-15", "end": "2027-03-16"},
		{"room": "3a", "status": "CANCELLED", "start": "2027-04-01T09:00:00Z", "end": nil, "minutes": 45},
	} {
		msg := hearing(int64(i+1), "created", fields)
		msg.Key = fmt.Sprintf("H/%d ü", i)
		entry, err := a.Entry(msg)
		if err != nil {
			t.Fatal(err)
		}
		ref := deliver(t, a, msg)
		entry.ExternalID, entry.ETag = ref.ExternalID, ref.ETag
		sent = append(sent, entry)
	}
	r.Put("3a/theirs.ics", fmt.Sprintf(other, "lunch@elsewhere", 0, ":20270315T120000Z", "canteen"))
	all := func(w adapters.Window) map[string]adapters.Entry {
		t.Helper()
		list := map[string]adapters.Entry{}
		if err := a.List(t.Context(), w, func(e adapters.Entry) error { list[e.Key] = e; return nil }); err != nil {
			t.Fatal(err)
		}
		return list
	}
	got := all(adapters.Window{})
	for _, want := range sent {
		if diff := cmp.Diff(want, got[want.Key]); diff != "" {
			t.Errorf("%s (-sent +listed):\n%s", want.Key, diff)
		}
	}
	if theirs, ok := got[""]; len(got) != 4 || !ok || theirs.Fields["location"] != "canteen" {
		t.Errorf("listed %v", got)
	}
	march := all(adapters.Window{From: time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC), To: time.Date(2027, 3, 15, 13, 30, 0, 0, time.UTC)})
	if _, ok := march["H/1 ü"]; len(march) != 2 || !ok { // and lunch
		t.Errorf("in the window: %v", march)
	}
}

func TestWrongConfigurations(t *testing.T) {
	good := config("https://calendar.example.gov/rooms/")
	for want, change := range map[string]func(*caldav.Config){
		`url: is required`: func(c *caldav.Config) { c.URL = "" },
		`url: is not a collection: end it with a slash`:              func(c *caldav.Config) { c.URL += "x" },
		`url: has a placeholder in its host`:                         func(c *caldav.Config) { c.URL = "https://{fields.host}/x/" },
		`domain: is required`:                                        func(c *caldav.Config) { c.Domain = "" },
		`domain: "a b" is not a host name`:                           func(c *caldav.Config) { c.Domain = "a b" },
		`zone: "Mars/Olympus" is not an IANA time zone`:              func(c *caldav.Config) { c.Zone = "Mars/Olympus" },
		`zone: "Local" is not an IANA time zone`:                     func(c *caldav.Config) { c.Zone = "Local" },
		`length: -1s is not a number of seconds, minutes or hours`:   func(c *caldav.Config) { c.Length = -time.Second },
		`on_cancel: "drop" is not keep or delete`:                    func(c *caldav.Config) { c.OnCancel = "drop" },
		`cancelled: name an event type`:                              func(c *caldav.Config) { c.Cancelled = []string{""} },
		`collections[0]: has a placeholder: name each calendar`:      func(c *caldav.Config) { c.Collections = []string{"https://calendar.example.gov/{key}/"} },
		`collections[0]: is on another server than url`:              func(c *caldav.Config) { c.Collections = []string{"https://other.example.gov/x/"} },
		`headers["If-Match"]: cannot be set, it is sent by Lockstep`: func(c *caldav.Config) { c.Headers = map[string]adapters.Secret{"If-Match": "x"} },
		`outcomes.99: is not a status`:                               func(c *caldav.Config) { c.Outcomes = map[int]string{99: "permanent"} },
	} {
		c := good
		change(&c)
		if _, err := caldav.New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s\ngot  %v", want, err)
		}
	}
}

// An event that no calendar can have is refused before anything is sent.
func TestWrongEvents(t *testing.T) {
	c := config("http://127.0.0.1:1/rooms/")
	c.Zone = "America/New_York"
	a := newAdapter(t, c)
	for want, fields := range map[string]map[string]any{
		"the field start is missing":                                          {"start": nil},
		"the field start is not a text with a time":                           {"start": 7},
		"the field start is neither a date nor a time":                        {"start": "tomorrow"},
		"the field start does not exist in America/New_York":                  {"start": "2027-03-14T02:30:00", "end": nil},
		"the field start exists twice in America/New_York":                    {"start": "2027-11-07T01:30", "end": nil},
		"the field end is not after start":                                    {"end": "2027-03-15T09:30:00-04:00"},
		"of the fields start and end, one is a date":                          {"end": "2027-03-16"},
		"the fields end and minutes are both there":                           {"minutes": 5},
		"the field minutes is not a whole number above 0":                     {"end": nil, "minutes": 1.5},
		"the field minutes does not go with a start that is a date":           {"start": "2027-03-15", "end": nil, "minutes": 5},
		"the field summary has a control character (U+001C) at byte 1":        {"summary": "a\x1cb"},
		"the field summary is an object or a list":                            {"summary": []int{1}},
		"the field status is not one of CONFIRMED, TENTATIVE, CANCELLED":      {"status": "booked"},
		"the field class is not one of PUBLIC, PRIVATE, CONFIDENTIAL":         {"class": "sealed"},
		"the field judge has no place in a calendar: map to start, end, minu": {"judge": "x"},
	} {
		_, err := a.Deliver(t.Context(), hearing(1, "created", fields))
		if adapters.ClassOf(err) != adapters.ClassPermanent || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("want %s\ngot  %v", want, err)
		}
		if a.Reads(hearing(1, "created", fields)) {
			t.Errorf("%s: can be read", want)
		}
	}
	if _, err := a.Deliver(t.Context(), hearing(1<<40, "created", nil)); adapters.ClassOf(err) != adapters.ClassPermanent || !strings.Contains(err.Error(), "is not a SEQUENCE") {
		t.Errorf("a large version: %v", err)
	}
	msg := hearing(1, "updated", nil)
	msg.Ref.ExternalID = "//evil.example/rooms/H-1.ics"
	if p, err := a.Preview(msg); err != nil || !strings.HasPrefix(p.URL, "http://127.0.0.1:1/rooms/") {
		t.Errorf("a reference to another server: %+v, %v", p, err)
	}
}

func TestPreview(t *testing.T) {
	c := config("https://calendar.example.gov/rooms/{fields.room}/")
	c.Zone, c.Length = "America/New_York", time.Hour
	a := newAdapter(t, c)
	msg := hearing(3, "updated", map[string]any{"room": "3A/east", "end": nil, "summary": strings.Repeat("ä", 60)})
	p, err := a.Preview(msg)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.ReplaceAll(`BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//Lockstep//Lockstep//EN
BEGIN:VTIMEZONE
TZID:America/New_York
BEGIN:DAYLIGHT
DTSTART:20270314T020000
TZOFFSETFROM:-0500
TZOFFSETTO:-0400
TZNAME:EDT
END:DAYLIGHT
END:VTIMEZONE
BEGIN:VEVENT
UID:H-1@agency.example.gov
DTSTAMP:20270301T140000Z
SEQUENCE:3
DTSTART;TZID=America/New_York:20270315T093000
DTEND;TZID=America/New_York:20270315T103000
SUMMARY:äääääääääääääääääääääääääääääääää
 äääääääääääääääääääääääääää
LOCATION:3A
STATUS:CONFIRMED
END:VEVENT
END:VCALENDAR
`, "\n", "\r\n")
	if diff := cmp.Diff(want, string(p.Body)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if p.Method != http.MethodPut || p.URL != "https://calendar.example.gov/rooms/3A%2Feast/H-1.ics" || p.Headers["If-None-Match"] != "*" || p.ContentType != "text/calendar; charset=utf-8" {
		t.Errorf("%+v", p)
	}
}

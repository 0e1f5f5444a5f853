package caldav_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-ical"
	"pgregory.net/rapid"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/radicale"
)

// answering is a server with one answer.
func answering(t *testing.T, status int, body string, header ...string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return s.URL + "/rooms/"
}

const (
	nested = `<multistatus xmlns="DAV:"><response><href>/rooms/H-1.ics</href><status>HTTP/1.1 412 Precondition Failed</status><error><C:%s xmlns:C="urn:ietf:params:xml:ns:caldav"/></error></response></multistatus>`
	refuse = `<?xml version="1.0"?><error xmlns="DAV:"><C:%s xmlns:C="urn:ietf:params:xml:ns:caldav"/></error>`
	bomb   = `<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><multistatus xmlns="DAV:"><response><href>&b;</href></response></multistatus>`
)

// What servers answer to a PUT, beside Radicale. Xandikos answers 207, Nextcloud 403 or 415
// with a precondition, gateways send pages.
func TestAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		body   string
		class  adapters.Class
		text   string
	}{
		"207 and a UID conflict":    {207, fmt.Sprintf(nested, "no-uid-conflict"), adapters.ClassConflict, "answered HTTP 412: another object of the collection has this UID"},
		"207 and invalid data":      {207, fmt.Sprintf(nested, "valid-calendar-data"), adapters.ClassConflict, "HTTP 412: the object is not as it was written last"},
		"207 without an error":      {207, `<multistatus xmlns="DAV:"><response><href>/x</href><status>HTTP/1.1 200 OK</status></response></multistatus>`, adapters.ClassDelivered, ""},
		"207 that is no XML":        {207, `{}`, adapters.ClassUnknown, "its body is not a multistatus of WebDAV"},
		"207 with entities":         {207, bomb, adapters.ClassUnknown, "its body is not a multistatus of WebDAV"},
		"207 that is deep":          {207, `<multistatus xmlns="DAV:"><response>` + strings.Repeat("<a>", 12_000), adapters.ClassUnknown, "its body is not a multistatus of WebDAV"},
		"403 with a precondition":   {403, fmt.Sprintf(refuse, "valid-calendar-object-resource"), adapters.ClassPermanent, "the server does not take the object (valid-calendar-object-resource)"},
		"403 without":               {403, "", adapters.ClassForbidden, "HTTP 403"},
		"403 and missing rights":    {403, `<error xmlns="DAV:"><need-privileges/></error>`, adapters.ClassForbidden, "HTTP 403"},
		"415 with a precondition":   {415, fmt.Sprintf(refuse, "supported-calendar-data"), adapters.ClassPermanent, "(supported-calendar-data)"},
		"409 and a UID conflict":    {409, fmt.Sprintf(refuse, "no-uid-conflict"), adapters.ClassConflict, "no-uid-conflict"},
		"409":                       {409, "", adapters.ClassPermanent, "the collection does not exist"},
		"423":                       {423, "", adapters.ClassTransient, "HTTP 423"},
		"507":                       {507, "", adapters.ClassTransient, "HTTP 507"},
		"503":                       {503, "", adapters.ClassTransient, "HTTP 503"},
		"404 of a gateway":          {404, "<html>no route</html>", adapters.ClassUnexplained, "HTTP 404"},
		"200 with a page":           {200, "<html>log in</html>", adapters.ClassUnexplained, "an HTML page"},
		"204 for an object of ours": {204, "", adapters.ClassDelivered, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAdapter(t, config(answering(t, tc.status, tc.body)))
			_, err := a.Deliver(t.Context(), hearing(1, "created", nil))
			class := adapters.ClassDelivered
			if err != nil {
				class = adapters.ClassOf(err)
			}
			if class != tc.class || !strings.Contains(fmt.Sprint(err), tc.text) {
				t.Errorf("%s: %v; want %s: %s", class, err, tc.class, tc.text)
			}
		})
	}
}

// What cannot be read is no event, and nothing is sent over it.
func TestReadsThatFail(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		body   string
		class  adapters.Class
		text   string
	}{
		"a page":          {200, "<html>log in</html>", adapters.ClassTransient, "its body is an HTML page"},
		"no iCalendar":    {200, "BEGIN:VCALENDAR\r\nX", adapters.ClassPermanent, "the object is not iCalendar"},
		"a panic":         {200, "BEGIN:VCALENDAR\r\nX;A=\"b\"c:d\r\nEND:VCALENDAR\r\n", adapters.ClassPermanent, "the object is not iCalendar"},
		"no event":        {200, "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nEND:VCALENDAR\r\n", adapters.ClassPermanent, "the object has no VEVENT"},
		"a foreign zone":  {200, fmt.Sprintf(other, "H-1@agency.example.gov", 1, ";TZID=Office/Mars:20270315T093000", "3A"), adapters.ClassPermanent, "DTSTART that is in a zone that is not an IANA zone"},
		"a page at 404":   {404, "<html>no route</html>", adapters.ClassUnexplained, "HTTP 404"},
		"503":             {503, "", adapters.ClassTransient, "HTTP 503"},
		"longer than may": {200, fmt.Sprintf(other, "H-1@agency.example.gov", 1, ":20270315T093000Z", strings.Repeat("x", 70_000)), adapters.ClassPermanent, "the object is "},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAdapter(t, config(answering(t, tc.status, tc.body)))
			if _, err := a.Read(t.Context(), hearing(1, "created", nil)); adapters.ClassOf(err) != tc.class || !strings.Contains(fmt.Sprint(err), tc.text) {
				t.Errorf("%s: %v; want %s: %s", adapters.ClassOf(err), err, tc.class, tc.text)
			}
		})
	}
}

// A list that is too long for an answer, or has more objects than the server sends, is asked
// for in parts. What is no calendar ends it with an error.
func TestLongLists(t *testing.T) {
	const n = 2000
	begin := time.Date(2027, 1, 4, 9, 0, 0, 0, time.UTC)
	span := regexp.MustCompile(`time-range start="(\w+)" end="(\w+)"`)
	for name, limit := range map[string]int{"too long": n, "too many": 300} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked++
				body, _ := io.ReadAll(r.Body)
				between := span.FindStringSubmatch(string(body))
				var b strings.Builder
				found := 0
				for i := range n {
					at := begin.Add(time.Duration(i) * time.Hour).Format("20060102T150405Z")
					if at < between[1] || at >= between[2] {
						continue
					}
					found++
					event := strings.Replace(fmt.Sprintf(other, fmt.Sprintf("H-%d@agency.example.gov", i), 1, ":"+at, strings.Repeat("x", 6000)), "DTEND:20270315T143000Z", "DURATION:PT30M", 1)
					fmt.Fprintf(&b, `<response><href>/rooms/H-%d.ics</href><propstat><status>HTTP/1.1 200 OK</status><prop><getetag>"e"</getetag><C:calendar-data>%s</C:calendar-data></prop></propstat></response>`, i, event)
				}
				if found > limit {
					w.WriteHeader(http.StatusInsufficientStorage)
					_, _ = io.WriteString(w, `<error xmlns="DAV:"><number-of-matches-within-limits/></error>`)
					return
				}
				w.WriteHeader(http.StatusMultiStatus)
				_, _ = io.WriteString(w, `<multistatus xmlns="DAV:" xmlns:C="urn:ietf:params:xml:ns:caldav">`+b.String()+`</multistatus>`)
			}))
			defer s.Close()
			seen := map[string]int{}
			if err := newAdapter(t, config(s.URL+"/rooms/")).List(t.Context(), adapters.Window{}, func(e adapters.Entry) error { seen[e.Key]++; return nil }); err != nil {
				t.Fatal(err)
			}
			if len(seen) != n || asked < 3 {
				t.Errorf("%d events by %d queries, want %d by several", len(seen), asked, n)
			}
			for key, times := range seen {
				if times != 1 {
					t.Errorf("%s is listed %d times", key, times)
				}
			}
		})
	}
	for status, body := range map[int]string{200: "<html>log in</html>", 404: "", 207: "no XML"} {
		if err := newAdapter(t, config(answering(t, status, body))).List(t.Context(), adapters.Window{}, nil); err == nil {
			t.Errorf("HTTP %d %q is an empty calendar", status, body)
		}
	}
}

// Any text survives the writing: another program reads what was meant.
func TestAnyTextIsWritten(t *testing.T) {
	a := newAdapter(t, config("https://calendar.example.gov/rooms/"))
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOf(rapid.OneOf(rapid.RuneFrom([]rune{'\\', ';', ',', ':', '"', '\n', '\t', ' ', 'ä', '\U0001F600', 'n', 'N'}), rapid.Rune())).Draw(t, "text")
		msg := hearing(1, "created", nil)
		body, err := json.Marshal(map[string]any{"start": "2027-03-15T09:30:00Z", "summary": text})
		if err != nil {
			t.Fatal(err)
		}
		msg.Body = body
		p, err := a.Preview(msg)
		if err != nil {
			if !strings.Contains(err.Error(), "control character") {
				t.Fatal(err)
			}
			return
		}
		for l := range strings.SplitSeq(strings.TrimSuffix(string(p.Body), "\r\n"), "\r\n") {
			if len(l) > 75 || strings.ContainsAny(l, "\r\n") {
				t.Fatalf("line %q", l)
			}
		}
		calendar, err := ical.NewDecoder(strings.NewReader(string(p.Body))).Decode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := calendar.Events()[0].Props.Text("SUMMARY")
		want := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text)
		if err != nil || got != want {
			t.Fatalf("%q, %v; want %q", got, err, want)
		}
	})
}

// A local time is written with the rules of its zone, and the server understands them.
func TestZone(t *testing.T) {
	r := radicale.Start(t)
	c := config(r.Room("3a"))
	c.Zone = "America/New_York"
	a := newAdapter(t, c)
	for i, start := range []string{"2027-03-14T03:30", "2027-11-07T01:30:00-05:00", "2027-07-01T09:30:00Z"} {
		msg := hearing(1, "created", map[string]any{"start": start, "end": nil, "minutes": 24 * 60})
		msg.Key = fmt.Sprint("zone-", i)
		deliver(t, a, msg)
		if reading, err := a.Read(t.Context(), msg); err != nil || reading.Standing != adapters.Equal {
			t.Errorf("%s: %+v, %v\n%s", start, reading, err, r.Object("3a/"+msg.Key+".ics"))
		}
	}
	var utc []string
	plain := newAdapter(t, config(r.URL+radicale.User+"/3a/"))
	if err := plain.List(t.Context(), adapters.Window{}, func(e adapters.Entry) error { utc = append(utc, e.Fields["start"]); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"2027-03-14T07:30:00Z", "2027-11-07T06:30:00Z", "2027-07-01T09:30:00Z"} {
		if !strings.Contains(strings.Join(utc, " "), want) {
			t.Errorf("%s is not in %v", want, utc)
		}
	}
}

package scheduling_test

import (
	"html"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// page asks for a page, or sends a form if there is one. header has names and values.
func (c *clinic) page(path string, form url.Values, header ...string) answer {
	c.t.Helper()
	method, body := "GET", ""
	if form != nil {
		method, body = "POST", form.Encode()
	}
	r := httptest.NewRequestWithContext(c.t.Context(), method, "http://localhost:8080"+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
	}
	w := httptest.NewRecorder()
	c.api.ServeHTTP(w, r)
	return answer{t: c.t, status: w.Code, header: w.Header(), body: html.UnescapeString(w.Body.String()), log: c.log}
}

// shows checks a page's status and texts.
func (a answer) shows(status int, texts ...string) answer {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("the page is %d, want %d:\n%s\nlog:\n%s", a.status, status, a.body, a.log)
	}
	if status != 303 && !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") {
		a.t.Errorf("the page is %q", a.header.Get("Content-Type"))
	}
	for _, want := range texts {
		if !strings.Contains(tags.ReplaceAllString(a.body, ""), want) {
			a.t.Errorf("the page does not say %q:\n%s", want, a.body)
		}
	}
	return a
}

var (
	tags   = regexp.MustCompile(`<[^>]*>`)
	hidden = regexp.MustCompile(`type="hidden" name="(\w+)" value="([^"]*)"`)
)

// goes checks that a form was successful, and returns the page after it.
func (a answer) goes(c *clinic, to string) answer {
	a.t.Helper()
	a.shows(http.StatusSeeOther)
	if got := a.header.Get("Location"); got != to {
		a.t.Fatalf("goes to %s, want %s", got, to)
	}
	return c.page(to, nil)
}

// form is a filled form with the hidden fields of a page.
func (a answer) form(change url.Values) url.Values {
	f := url.Values{
		"case_number": {"2027-CV-0042"}, "case_name": {"Roe v " + party}, "hearing_type": {"Motion"}, "courthouse": {"Kings County"},
		"courtroom": {"3A"}, "local_start": {"2027-07-15T10:00"}, "zone": {"America/New_York"}, "duration_minutes": {"45"},
	}
	for _, m := range hidden.FindAllStringSubmatch(a.body, -1) {
		f.Set(m[1], m[2])
	}
	maps.Copy(f, change)
	return f
}

func TestAClerkBooksMovesAndCancelsByForms(t *testing.T) {
	c := open(t)
	c.register("CourtCalendarSync", "scheduling:*")
	c.page("/", nil).shows(200, "No hearing matches")
	blank := c.page("/book", nil).shows(200, "Book a hearing", "America/New_York")
	form := blank.form(nil)
	const id = "H-2027-000001"
	c.page("/book", form).goes(c, "/hearing/"+id+"?done=booked").
		shows(200, "The hearing is booked", "Roe v "+party, "Thu 15 Jul 2027, 10:00 EDT", "Court calendar waits since", "in line")
	c.page("/book", form).goes(c, "/hearing/"+id+"?done=booked")
	if n := len(c.events(id)); n != 1 {
		t.Errorf("a form that was sent twice booked %d times", n)
	}
	c.page("/book", blank.form(url.Values{"courtroom": {"4B"}})).shows(409, "Hearing "+id+" exists already with other values")

	hearing := c.page("/hearing/"+id, nil).shows(200)
	moved := c.page("/hearing/"+id+"/move", hearing.form(url.Values{"local_start": {"2027-07-16T11:30"}})).
		goes(c, "/hearing/"+id+"?done=moved").shows(200, "The hearing is moved", "Fri 16 Jul 2027, 11:30 EDT")
	c.page("/hearing/"+id+"/move", moved.form(url.Values{"local_start": {"2027-07-16T11:30"}})).
		goes(c, "/hearing/"+id+"?done=same").shows(200, "Nothing was different")
	c.page("/hearing/"+id+"/move", moved.form(url.Values{"courtroom": {""}})).shows(422, "Courtroom is missing")
	c.page("/hearing/"+id+"/cancel", moved.form(url.Values{"reason": {""}})).shows(422, "Nothing was changed", "Is missing")
	c.page("/hearing/"+id+"/cancel", moved.form(url.Values{"reason": {"settled"}})).
		goes(c, "/hearing/"+id+"?done=cancelled").shows(200, "The hearing is cancelled", "cancelled (settled)")
	if n := len(c.events(id)); n != 3 {
		t.Errorf("the forms wrote %d events, want 3", n)
	}
	c.page("/hearing/H-0", nil).shows(404, "No such hearing")
}

func TestAnOldFormOverwritesNothing(t *testing.T) {
	c := open(t)
	c.book("H-1", nil).want(201)
	old := c.page("/hearing/H-1", nil)
	c.call("POST", "/hearings/H-1/reschedule", `{"local_start":"2027-11-15T14:30"}`).want(200)
	a := c.page("/hearing/H-1/move", old.form(url.Values{"courtroom": {"9Z"}})).
		shows(412, "Nothing was changed", "now shows version 2", "Mon 15 Nov 2027, 14:30 EST")
	if !strings.Contains(a.body, `value="9Z"`) {
		t.Error("what the clerk wrote is gone")
	}
	c.page("/hearing/H-1/cancel", old.form(url.Values{"reason": {"settled"}})).shows(412, "Nothing was changed")
	if n := len(c.events("H-1")); n != 2 {
		t.Errorf("the old forms wrote %d events", n-2)
	}
	// She has seen version 2 now.
	c.page("/hearing/H-1/move", a.form(url.Values{"courtroom": {"9Z"}})).goes(c, "/hearing/H-1?done=moved")
	c.page("/hearing/H-1/move", url.Values{"courtroom": {"9Z"}}).shows(400, "no version")
}

func TestMistakesAreBesideTheirFields(t *testing.T) {
	c := open(t)
	blank := c.page("/book", nil)
	for name, tc := range map[string]struct {
		change url.Values
		says   []string
		beside string // id of the element with the mistake
	}{
		"missing":        {url.Values{"case_number": {" "}}, []string{"Case number is missing"}, "case_number-error"},
		"the clock skip": {url.Values{"local_start": {"2027-03-14T02:30"}}, []string{"the nearest valid times are 2027-03-14T01:59 and 2027-03-14T03:00"}, "local_start-error"},
		"twice":          {url.Values{"local_start": {"2027-11-07T01:30"}}, []string{"comes twice", "the first, 01:30 UTC-04:00", "the second, 01:30 UTC-05:00"}, "fold-error"},
		"no number":      {url.Values{"duration_minutes": {"an hour"}}, []string{"Minutes is"}, "duration_minutes-error"},
		"zone":           {url.Values{"zone": {"New York"}}, []string{"is not in the zone database"}, "zone-error"},
	} {
		t.Run(name, func(t *testing.T) {
			c := *c
			c.t = t
			a := c.page("/book", blank.form(tc.change)).shows(422, tc.says...)
			if !strings.Contains(a.body, `id="`+tc.beside+`"`) || !strings.Contains(a.body, `aria-describedby="`+tc.beside+`"`) {
				t.Errorf("nothing is beside the field:\n%s", a.body)
			}
			for field, values := range tc.change {
				if v := strings.TrimSpace(values[0]); v != "" && !strings.Contains(a.body, `name="`+field+`"`) && !strings.Contains(a.body, `value="`+v+`"`) {
					t.Errorf("what the clerk wrote in %s is gone", field)
				}
			}
		})
	}
	c.page("/book", blank.form(url.Values{"local_start": {"2027-11-07T01:30"}, "fold": {"second"}})).
		goes(c, "/hearing/H-2027-000001?done=booked").shows(200, "Sun 7 Nov 2027, 01:30 EST")
	c.page("/?from=soon", nil).shows(422, "from is neither a day")
}

func TestTheListSaysWhatEachCourtHas(t *testing.T) {
	c := open(t)
	c.register("CourtCalendarSync", "scheduling:*")
	c.register("Clinic_2", "scheduling:*")
	c.book("H-1", nil).want(201)
	c.answered("CourtCalendarSync", "delivered")
	c.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent', error = 'HTTP 422 unknown courtroom' WHERE sync = 'Clinic_2'`)
	c.call("POST", "/hearings/H-1/reschedule", `{"local_start":"2027-11-15T14:30"}`).want(200)
	c.answered("CourtCalendarSync", "delivered")
	c.book("H-2", map[string]any{"case_number": "2027-CV-0043", "local_start": "2027-11-16T14:30"}).want(201)
	c.exec(`SELECT outbox.pause('CourtCalendarSync', 'the court moves')`)
	a := c.page("/", nil).shows(200, "2 hearings", "Court calendar has it since",
		"An earlier change of this hearing was not taken. The reason: HTTP 422 unknown courtroom. It goes first", "An operator paused it: the court moves")
	if strings.Contains(a.body, party) {
		t.Error("the list names a party")
	}
	if a = c.page("/?case_number=2027-CV-0043", nil).shows(200, "1 hearing."); strings.Contains(a.body, ">H-1<") {
		t.Error("another case is listed")
	}
	for n := range 60 {
		c.exec(`INSERT INTO scheduling.hearing (id, case_number, hearing_type, courthouse, courtroom, local_start, zone, starts_at, duration_minutes, event_id)
			VALUES ('P-' || $1::int, 'C', 'Motion', 'Kings', '1', '2027-12-01', 'UTC', '2027-12-01', 30, gen_random_uuid())`, n)
	}
	a = c.page("/?courthouse=Kings", nil).shows(200, "50 hearings, and there are more", "Next hearings")
	next := regexp.MustCompile(`href="(/\?[^"]*after=[^"]*)"`).FindStringSubmatch(a.body)
	if next == nil {
		t.Fatalf("no link to the next page:\n%s", a.body)
	}
	c.page(next[1], nil).shows(200, "10 hearings.", "Back to the first")
}

func TestThePageSaysItsAgeInTheZoneOfTheCourthouse(t *testing.T) {
	got := open(t).page("/", nil).shows(200).body
	if !regexp.MustCompile(`As of \d\d:\d\d:\d\d E[SD]T`).MatchString(got) {
		t.Errorf("the page does not say its age in the zone of New York:\n%s", got)
	}
}

func TestWithoutTheRightToReadThePagesSayWhatIsMissing(t *testing.T) {
	database := pgtest.New(t)
	writer := openAs(t, database, "")
	writer.exec(`GRANT USAGE ON SCHEMA scheduling TO outbox_writer; GRANT ALL ON ALL TABLES IN SCHEMA scheduling TO outbox_writer`)
	writer.book("H-1", nil).want(201)
	writer = openAs(t, database, "outbox_writer")
	writer.page("/", nil).shows(200, "H-1", "What the courts have is not shown", "--status-url")
	writer.page("/hearing/H-1", nil).shows(200, "This is not known")
}

func TestPagesRefuseOtherSitesAndNames(t *testing.T) {
	c := open(t)
	c.book("H-1", nil).want(201)
	form := c.page("/hearing/H-1", nil).form(url.Values{"reason": {"settled"}})
	c.page("/hearing/H-1/cancel", form, "Sec-Fetch-Site", "cross-site").shows(403, "another site")
	c.page("/hearing/H-1/cancel", form, "Origin", "http://evil.example").shows(403, "another site")
	c.page("/hearing/H-1/cancel", form, "Host", "evil.example").shows(403, "not served as", "--page-host")
	c.page("/", nil, "Host", "evil.example").shows(403)
	if n := len(c.events("H-1")); n != 1 {
		t.Errorf("a foreign form wrote %d events", n-1)
	}
	c.page("/", nil, "Host", "[::1]:8080").shows(200)
	h := c.page("/", nil, "Host", "127.0.0.1:8080").shows(200).header
	for name, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; script-src 'self'", "X-Content-Type-Options": "nosniff",
		"Referrer-Policy": "same-origin", "Cache-Control": "no-store",
	} {
		if !strings.HasPrefix(h.Get(name), want) {
			t.Errorf("%s is %q", name, h.Get(name))
		}
	}
	c.page("/book", url.Values{"case_name": {strings.Repeat("x", 70<<10)}}).shows(413, "larger than")
	c.pool.Close()
	c.page("/", nil).shows(503, "The database does not answer")
}

package scheduling_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/scheduling"
)

type problem struct {
	Type, Title    string
	Status         int
	Detail         string
	Errors         []scheduling.FieldError
	CurrentVersion int64 `json:"current_version"`
}

func TestBookingWritesTheHearingAndOneEvent(t *testing.T) {
	c := open(t)
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	a := c.call("POST", "/hearings", `{"case_number":"2027-CV-0042","case_name":"Roe v Doe","hearing_type":"Motion",
		"courthouse":"Kings County","courtroom":"3A","local_start":"2027-07-15T10:00","zone":"America/New_York",
		"duration_minutes":45}`, "traceparent", trace).want(201)
	h := decodeAs[hearing](a)
	if h.ID != "H-2027-000001" || h.Version != 1 || h.Status != "booked" || h.StartsAt != "2027-07-15T10:00:00-04:00" {
		t.Errorf("booked %+v", h)
	}
	if a.header.Get("Location") != "/hearings/"+h.ID || a.header.Get("ETag") != `"1"` || a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers are %v", a.header)
	}
	if !strings.Contains(a.body, "Roe v Doe") {
		t.Errorf("the clerk is not shown the case name: %s", a.body)
	}
	events := c.events(h.ID)
	if len(events) != 1 {
		t.Fatalf("events are %+v, want one", events)
	}
	var payload map[string]any
	if err := json.Unmarshal([]byte(events[0].Payload), &payload); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"hearingId": "H-2027-000001", "caseNumber": "2027-CV-0042", "hearingType": "Motion", "status": "booked",
		"scheduledAt": "2027-07-15T10:00:00-04:00", "localStart": "2027-07-15T10:00", "zone": "America/New_York",
		"durationMinutes": 45.0, "courthouse": "Kings County", "location": "3A",
	}
	if diff := cmp.Diff(want, payload); diff != "" {
		t.Errorf("payload (-want +got):\n%s", diff)
	}
	if e := events[0]; e.Type != "scheduling:created" || e.Version != 1 || !strings.Contains(e.Headers, trace) {
		t.Errorf("event is %+v", e)
	}
}

func TestBookingWithoutAnIDGetsTheNextFreeNumber(t *testing.T) {
	c := open(t)
	c.book("H-2027-000001", nil).want(201)
	if h := decodeAs[hearing](c.book("", nil).want(201)); h.ID != "H-2027-000002" {
		t.Errorf("the number after one taken by hand is %s", h.ID)
	}
	p := decodeAs[problem](c.book("H-2027-000001", nil).want(409))
	if p.CurrentVersion != 1 || !strings.Contains(p.Detail, "exists already") {
		t.Errorf("booking twice gave %+v", p)
	}
	if n := len(c.events("H-2027-000001")); n != 1 {
		t.Errorf("%d events for a hearing that was booked once", n)
	}
}

func TestBookingNamesEveryWrongField(t *testing.T) {
	c := open(t)
	tests := []struct {
		name   string
		change map[string]any
		fields []string
	}{
		{"gap", map[string]any{"local_start": "2027-03-14T02:30"}, []string{"local_start"}},
		{"fold without a choice", map[string]any{"local_start": "2027-11-07T01:30"}, []string{"fold"}},
		{"everything missing", map[string]any{
			"case_number": nil, "hearing_type": nil, "courthouse": nil, "courtroom": nil,
			"local_start": nil, "zone": nil, "duration_minutes": nil,
		}, []string{"case_number", "hearing_type", "courthouse", "courtroom", "duration_minutes", "local_start", "zone"}},
		{"an id with a space", map[string]any{"id": "Roe v Doe"}, []string{"id"}},
		{"an id that is too long", map[string]any{"id": strings.Repeat("x", 65)}, []string{"id"}},
		{"blank", map[string]any{"courtroom": "  "}, []string{"courtroom"}},
		{"NUL", map[string]any{"case_name": "Roe\x00"}, []string{"case_name"}},
		{"too long", map[string]any{"case_number": strings.Repeat("é", 201)}, []string{"case_number"}},
		{"a week and a minute", map[string]any{"duration_minutes": 10081}, []string{"duration_minutes"}},
		{"unknown field", map[string]any{"judge": "Doe"}, []string{"judge"}},
		{"wrong type", map[string]any{"zone": 5}, []string{"zone"}},
		{"fraction", map[string]any{"duration_minutes": 1.5}, []string{"duration_minutes"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := decodeAs[problem](c.book("H-1", tt.change).want(422))
			var fields []string
			for _, e := range p.Errors {
				fields = append(fields, e.Field)
				if e.Detail == "" || strings.Contains(e.Detail, party) {
					t.Errorf("detail of %s is %q", e.Field, e.Detail)
				}
			}
			if diff := cmp.Diff(tt.fields, fields); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
		})
	}
	if n := len(c.events("H-1")); n != 0 {
		t.Errorf("refused bookings left %d events", n)
	}
	// The longest that is allowed fits the database's constraints too.
	c.book(strings.Repeat("x", 64), map[string]any{
		"case_number": strings.Repeat("é", 200), "case_name": strings.Repeat("é", 500), "duration_minutes": 10080,
	}).want(201)
}

func TestLocalTimeChoicesReachTheClient(t *testing.T) {
	c := open(t)
	p := decodeAs[problem](c.book("H-1", map[string]any{"local_start": "2027-11-07T01:30"}).want(422))
	for _, choice := range p.Errors[0].Choices {
		h := decodeAs[hearing](c.book("H-"+string(choice.Fold), map[string]any{
			"local_start": choice.LocalStart, "fold": choice.Fold,
		}).want(201))
		if h.StartsAt != choice.StartsAt {
			t.Errorf("the choice %+v was booked for %s", choice, h.StartsAt)
		}
		if again := decodeAs[hearing](c.call("GET", "/hearings/"+h.ID, "").want(200)); again.StartsAt != choice.StartsAt {
			t.Errorf("it reads back as %s, want %s", again.StartsAt, choice.StartsAt)
		}
	}
	if len(p.Errors[0].Choices) != 2 {
		t.Errorf("%d choices, want two", len(p.Errors[0].Choices))
	}
}

func TestLifeOfAHearing(t *testing.T) {
	c := open(t)
	c.book("H-1", nil).want(201)
	const move = `{"local_start":"2027-11-15T14:30","courtroom":"4B"}`
	h := decodeAs[hearing](c.call("POST", "/hearings/H-1/reschedule", move).want(200))
	if h.Version != 2 || h.StartsAt != "2027-11-15T14:30:00-05:00" || h.Courtroom != "4B" {
		t.Errorf("rescheduled: %+v", h)
	}
	c.call("POST", "/hearings/H-1/reschedule", move).want(200) // a repeat changes nothing
	h = decodeAs[hearing](c.call("POST", "/hearings/H-1/reschedule",
		`{"local_start":"2027-11-15T14:30","zone":"America/Chicago","duration_minutes":60,"courthouse":"Cook County"}`).want(200))
	if h.Version != 3 || h.StartsAt != "2027-11-15T14:30:00-06:00" {
		t.Errorf("moved to another zone: %+v", h)
	}
	h = decodeAs[hearing](c.call("POST", "/hearings/H-1/cancel", `{"reason":"settled"}`).want(200))
	if h.Version != 4 || h.Status != "cancelled" {
		t.Errorf("cancelled: %+v", h)
	}
	c.call("POST", "/hearings/H-1/cancel", `{"reason":"settled"}`).want(200)
	c.call("POST", "/hearings/H-1/cancel", `{"reason":"withdrawn"}`).want(409)
	c.call("POST", "/hearings/H-1/reschedule", move).want(409)

	var told []string
	for _, e := range c.events("H-1") {
		told = append(told, fmt.Sprint(e.Type, " ", e.Version))
	}
	want := []string{"scheduling:created 1", "scheduling:updated 2", "scheduling:updated 3", "scheduling:cancelled 4"}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	last := c.events("H-1")[3].Payload
	if !strings.Contains(last, `"cancelReason": "settled"`) || strings.Contains(last, party) {
		t.Errorf("the courts get %s", last)
	}
}

func TestChangesThatCannotBeMadeAreRefused(t *testing.T) {
	c := open(t)
	c.book("H-1", nil).want(201)
	tests := []struct {
		name, path, body string
		status           int
		says             string
	}{
		{"no such hearing", "/hearings/H-9/reschedule", `{"local_start":"2027-11-15T14:30"}`, 404, "No hearing"},
		{"an id that cannot be", "/hearings/a%00b/cancel", `{"reason":"settled"}`, 404, "No hearing"},
		{"no start", "/hearings/H-1/reschedule", `{"courtroom":"4B"}`, 422, "local_start"},
		{"gap", "/hearings/H-1/reschedule", `{"local_start":"2027-03-14T02:30"}`, 422, "2027-03-14T03:00"},
		{"blank room", "/hearings/H-1/reschedule", `{"local_start":"2027-11-15T14:30","courtroom":" "}`, 422, "courtroom"},
		{"negative duration", "/hearings/H-1/reschedule", `{"local_start":"2027-11-15T14:30","duration_minutes":-1}`, 422, "duration_minutes"},
		{"no reason", "/hearings/H-1/cancel", `{}`, 422, "reason is missing"},
		{"free text as reason", "/hearings/H-1/cancel", `{"reason":"Mr Doe is ill"}`, 422, "no free text"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := decodeAs[problem](c.call("POST", tt.path, tt.body).want(tt.status))
			if !strings.Contains(p.Detail, tt.says) || strings.Contains(p.Detail, party) {
				t.Errorf("detail is %q, want it to say %q", p.Detail, tt.says)
			}
		})
	}
	if n := len(c.events("H-1")); n != 1 {
		t.Errorf("refused changes left events: %d", n)
	}
}

func TestAChangeForAnotherVersionIsRefused(t *testing.T) {
	c := open(t)
	c.book("H-1", nil).want(201)
	start := 10
	move := func(match string) answer {
		start++
		return c.call("POST", "/hearings/H-1/reschedule", fmt.Sprintf(`{"local_start":"2027-11-15T%d:00"}`, start), "If-Match", match)
	}
	if a := move(`"1"`).want(200); a.header.Get("ETag") != `"2"` {
		t.Errorf("ETag is %s", a.header.Get("ETag"))
	}
	a := move(`"1"`).want(412)
	if p := decodeAs[problem](a); p.CurrentVersion != 2 || a.header.Get("ETag") != `"2"` {
		t.Errorf("412 names version %d, ETag %s; want 2", p.CurrentVersion, a.header.Get("ETag"))
	}
	c.call("POST", "/hearings/H-1/cancel", `{"reason":"settled"}`, "If-Match", `"1"`).want(412)
	move("*").want(200)
	for _, bad := range []string{"3", `W/"3"`, `"3", "4"`, `"x"`, `""`} {
		move(bad).want(400)
	}
	if h := decodeAs[hearing](c.call("GET", "/hearings/H-1", "").want(200)); h.Version != 3 {
		t.Errorf("version is %d, want 3", h.Version)
	}
}

func TestHearingAndEventAreOneTransaction(t *testing.T) {
	c := open(t)
	c.book("H-1", nil).want(201)
	c.exec("ALTER TABLE outbox.event ADD CONSTRAINT refuse_all CHECK (type = '') NOT VALID")
	c.book("H-2", nil).want(503)
	c.call("GET", "/hearings/H-2", "").want(404)
	c.call("POST", "/hearings/H-1/reschedule", `{"local_start":"2027-11-15T14:30"}`).want(503)
	if h := decodeAs[hearing](c.call("GET", "/hearings/H-1", "").want(200)); h.Version != 1 {
		t.Errorf("the hearing changed without its event: %+v", h)
	}
	if !strings.Contains(c.log.String(), "refuse_all") {
		t.Errorf("the log does not name the constraint:\n%s", c.log)
	}
}

func TestErrorsOfTheDatabaseNameNoParty(t *testing.T) {
	c := open(t)
	// The detail of such an error quotes the whole row; the harness searches the log for the name.
	c.exec("ALTER TABLE scheduling.hearing ADD CONSTRAINT refuse_all CHECK (id = '') NOT VALID")
	if a := c.book("H-1", nil).want(503); strings.Contains(a.body, party) || strings.Contains(a.body, "refuse_all") {
		t.Errorf("the answer shows the database's words: %s", a.body)
	}
	if !strings.Contains(c.log.String(), "SQLSTATE 23514 constraint refuse_all") {
		t.Errorf("the log does not say what happened:\n%s", c.log)
	}
}

func TestConcurrentChangesKeepVersionAndOrder(t *testing.T) {
	c := open(t)
	c.book("H-1", nil).want(201)
	const n = 24
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			body := fmt.Sprintf(`{"local_start":"2027-11-%02dT14:30"}`, i+1)
			if a := c.call("POST", "/hearings/H-1/reschedule", body); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	wg.Wait()
	events := c.events("H-1") // in order of insertion
	if len(events) != n+1 {
		t.Fatalf("%d events, want %d", len(events), n+1)
	}
	for i, e := range events {
		if e.Version != int64(i+1) {
			t.Errorf("event %d carries version %d", i+1, e.Version)
		}
	}
}

func TestListFiltersAndPages(t *testing.T) {
	c := open(t)
	for i := range 7 {
		c.book(fmt.Sprint("H-", i), map[string]any{
			"local_start": fmt.Sprintf("2027-07-%02dT10:00", 15+i/2), "courtroom": []string{"3A", "3B"}[i%2],
		}).want(201)
	}
	c.book("LA", map[string]any{"local_start": "2027-07-15T23:30", "zone": "America/Los_Angeles", "courthouse": "LA"}).want(201)
	c.call("POST", "/hearings/H-4/cancel", `{"reason":"settled"}`).want(200)
	list := func(query string) (ids []string, next string) {
		p := decodeAs[struct {
			Hearings []hearing
			Next     string
		}](c.call("GET", "/hearings"+query, "").want(200))
		for _, h := range p.Hearings {
			ids = append(ids, h.ID)
		}
		return ids, p.Next
	}
	tests := []struct {
		name, query string
		want        []string
	}{
		{"all, by start and id", "", []string{"H-0", "H-1", "LA", "H-2", "H-3", "H-4", "H-5", "H-6"}},
		{"a day by the clock on the wall", "?from=2027-07-15&to=2027-07-16", []string{"H-0", "H-1", "LA"}},
		{"a span of instants", "?from=2027-07-15T10:00:00-04:00&to=2027-07-16T00:00:00-04:00", []string{"H-0", "H-1"}},
		{"an instant with an unescaped plus", "?from=2027-07-18T16:00:00+02:00", []string{"H-6"}},
		{"a wall time", "?from=2027-07-15T10:01&to=2027-07-16", []string{"LA"}},
		{"a room", "?courtroom=3B", []string{"H-1", "H-3", "H-5"}},
		{"a house", "?courthouse=LA", []string{"LA"}},
		{"cancelled", "?status=cancelled", []string{"H-4"}},
		{"everything at once", "?status=booked&courtroom=3A&from=2027-07-16&limit=1", []string{"H-2"}},
		{"none", "?courtroom=9", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := list(tt.query); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	var walked []string
	pages := 0
	for next := "start"; next != ""; pages++ {
		query := "?limit=2"
		if next != "start" {
			query += "&after=" + next
		}
		var ids []string
		ids, next = list(query)
		walked = append(walked, ids...)
	}
	if !slices.Equal(walked, tests[0].want) || pages != 4 {
		t.Errorf("four pages of two gave %v in %d pages", walked, pages)
	}
	if a := c.call("GET", "/hearings?courtroom=9", "").want(200); !strings.Contains(a.body, `"hearings":[]`) {
		t.Errorf("an empty list is %s", a.body)
	}
	for query, field := range map[string]string{
		"?from=tomorrow": "from", "?limit=0": "limit", "?limit=501": "limit", "?limit=x": "limit", "?after=%21": "after",
		"?after=" + "eA": "after", "?status=held": "status", "?room=3A": "room", "?limit=1&limit=2": "limit",
		"?courtroom=%00": "courtroom",
	} {
		if p := decodeAs[problem](c.call("GET", "/hearings"+query, "").want(422)); p.Errors[0].Field != field {
			t.Errorf("%s: refused %+v, want %s", query, p.Errors, field)
		}
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	c := open(t)
	tests := []struct {
		name, method, path, body, contentType string
		status                                int
	}{
		{"not JSON", "POST", "/hearings", "{", "application/json", 400},
		{"empty", "POST", "/hearings", "", "application/json", 400},
		{"array", "POST", "/hearings", "[]", "application/json", 400},
		{"two objects", "POST", "/hearings", "{} {}", "application/json", 400},
		{"form", "POST", "/hearings", "a=b", "application/x-www-form-urlencoded", 415},
		{"no content type", "POST", "/hearings", "{}", "", 415},
		{"too large", "POST", "/hearings", `{"id":"` + strings.Repeat("x", 65<<10) + `"}`, "application/json", 413},
		{"too large behind the object", "POST", "/hearings", `{}` + strings.Repeat(" ", 65<<10), "application/json", 413},
		{"unknown path", "GET", "/judges", "", "", 404},
		{"unknown hearing", "GET", "/hearings/H-9", "", "", 404},
		{"unknown method", "DELETE", "/hearings/H-9", "", "", 405},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := c.call(tt.method, tt.path, tt.body, "Content-Type", tt.contentType).want(tt.status)
			if p := decodeAs[problem](a); p.Status != tt.status || p.Detail == "" || p.Title == "" {
				t.Errorf("problem is %+v", p)
			}
			if tt.status == 405 && a.header.Get("Allow") != "GET, HEAD" {
				t.Errorf("Allow is %q", a.header.Get("Allow"))
			}
		})
	}
}

func TestReadyNeedsBothSchemas(t *testing.T) {
	c := open(t)
	c.call("GET", "/livez", "").want(200)
	c.call("GET", "/readyz", "").want(200)
	c.exec("ALTER SCHEMA outbox RENAME TO gone")
	c.call("GET", "/readyz", "").want(503)
	c.call("GET", "/livez", "").want(200)
}

// TestPrivilegesThatAreEnough runs the service as a login that has the tables
// of scheduling and writes events, then also reads deliveries.
func TestPrivilegesThatAreEnough(t *testing.T) {
	url := pgtest.New(t)
	admin := openAs(t, url, "")
	role := "clerk_" + strings.ToLower(rand.Text())
	admin.exec("CREATE ROLE " + role + " NOLOGIN IN ROLE outbox_writer")
	admin.exec("GRANT USAGE ON SCHEMA scheduling TO " + role)
	admin.exec("GRANT SELECT, INSERT, UPDATE ON scheduling.hearing TO " + role)
	admin.exec("GRANT USAGE ON SEQUENCE scheduling.hearing_number TO " + role)

	c := openAs(t, url, role)
	defer func() { // roles belong to the server, not to the test's database
		c.pool.Close()
		admin.exec("DROP OWNED BY " + role)
		admin.exec("DROP ROLE " + role)
	}()
	c.call("GET", "/readyz", "").want(200)
	id := decodeAs[hearing](c.book("", nil).want(201)).ID
	c.call("POST", "/hearings/"+id+"/reschedule", `{"local_start":"2027-11-15T14:30"}`).want(200)
	h := decodeAs[hearing](c.call("GET", "/hearings/"+id, "").want(200))
	if h.Court != nil || !strings.Contains(h.CourtAbsent, "login of outbox_auditor") {
		t.Errorf("a login that may not read deliveries gets %+v", h)
	}
	admin.exec("GRANT outbox_auditor TO " + role)
	if h := decodeAs[hearing](c.call("GET", "/hearings/"+id, "").want(200)); len(h.Court) != 1 || h.CourtAbsent != "" {
		t.Errorf("with outbox_auditor it gets %+v", h)
	}
}

package main

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/radicale"
	"github.com/hms-mkt/lockstep/internal/reconcile"
)

const roomYAML = `
database: {url: "${DATABASE_URL}"}
relay: {poll: 20ms, name: relay-1, lease: 2m, workers: 8}
listen: 127.0.0.1:0
syncs:
  - name: RoomSync
    events: ["scheduling:*"]
    retry: {initial: 10ms, max: 50ms}
    mapping: {scheduledAt: start, endsAt: end, title: summary, location: {to: location}}
    adapter:
      kind: caldav
      url: "%s"
      domain: agency.example.gov
      timeout: 30s
      auth: {kind: basic, username: agency, password: "${CALENDAR_PASSWORD}"}
`

// A calendar of 1,000 hearings, of which 50 were edited by other programs. Exactly these are
// named, field by field. After the repair both sides are equal, and the entry of somebody else
// is as it was.
func TestReconcileACalendar(t *testing.T) {
	const hearings = 1000
	w := newWorld(t)
	r := radicale.Start(t)
	w.env["CALENDAR_PASSWORD"] = radicale.Password
	w.configure(fmt.Sprintf(roomYAML, r.Room("3a")))
	for first := 1; first <= hearings; first += hearings / 4 { // Radicale writes some 30 in a second
		ask[int64](w, `WITH added AS (
INSERT INTO outbox.event (type, key, version, payload)
SELECT 'scheduling:created', 'H-' || n, 1, jsonb_build_object('scheduledAt', timestamptz '2027-03-01 09:00Z' + n * interval '1 hour', 'endsAt', timestamptz '2027-03-01 09:30Z' + n * interval '1 hour', 'title', 'Hearing ' || n, 'location', '3A')
  FROM generate_series($1::int, $2::int) AS n RETURNING id) SELECT count(*) FROM added`, first, first+hearings/4-1)
		w.relayUntil(allFinished)
	}
	if got := w.run("reconcile", "RoomSync"); got.code != 0 || !strings.Contains(got.stderr, "both calendars are equal: 1000 entries") || got.stdout != "KEY  DIFFERENCE  FIELD  OURS  THEIRS  EVENT  EXTERNAL ID\n" {
		t.Fatalf("before the edits: %d %s%s", got.code, got.stdout, got.stderr)
	}

	r.Put("3a/theirs.ics", "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//someone//EN\r\nBEGIN:VEVENT\r\nUID:lunch@elsewhere\r\nDTSTAMP:20270101T000000Z\r\nDTSTART:20270301T120000Z\r\nDTEND:20270301T130000Z\r\nSUMMARY:Lunch\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n")
	theirs := r.Object("3a/theirs.ics")
	var want []string
	edit := func(n int, from, to string) {
		t.Helper()
		path := fmt.Sprintf("3a/H-%d.ics", n)
		object := r.Object(path)
		changed := strings.Replace(object, from, to, 1)
		if changed == object {
			t.Fatalf("%s has no %q: %s", path, from, object)
		}
		if status, says := r.Do("PUT", radicale.User+"/"+path, changed, "Content-Type", "text/calendar"); status != http.StatusCreated {
			t.Fatalf("PUT %s: %d %s", path, status, says)
		}
	}
	for i := range 10 {
		n := 7 + i*90
		edit(n, "LOCATION:3A", "LOCATION:2B")
		want = append(want, fmt.Sprintf("H-%d different location 3A 2B", n))
		edit(n+1, "SUMMARY:Hearing", "SUMMARY:Meeting")
		edit(n+1, "LOCATION:3A", "LOCATION:Hall")
		want = append(want, fmt.Sprintf("H-%d different location 3A Hall", n+1), fmt.Sprintf("H-%[1]d different summary Hearing %[1]d Meeting %[1]d", n+1))
		edit(n+2, "STATUS:CONFIRMED", "STATUS:CANCELLED")
		want = append(want, fmt.Sprintf("H-%d cancelled   ", n+2))
		r.Do("DELETE", fmt.Sprintf("%s/3a/H-%d.ics", radicale.User, n+3), "")
		want = append(want, fmt.Sprintf("H-%d missing   ", n+3))
		edit(n+4, "SEQUENCE:1", "SEQUENCE:9")
		edit(n+4, "LOCATION:3A", "LOCATION:9Z")
		want = append(want, fmt.Sprintf("H-%d newer version 1 9", n+4))
	}
	slices.Sort(want)
	differences := func(out string) (found []string) {
		t.Helper()
		rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows[1:] {
			found = append(found, strings.Join(row[:5], " "))
		}
		slices.Sort(found)
		return found
	}
	got := w.run("reconcile", "RoomSync", "--output", "csv")
	if diff := cmp.Diff(want, differences(got.stdout)); diff != "" || got.code != exitFound {
		t.Errorf("exit %d, differences (-want +got):\n%s%s", got.code, diff, got.stderr)
	}
	if !strings.Contains(got.stderr, "the calendars differ: 10 missing, 20 different, 10 cancelled, 10 newer of 1000 entries") || !strings.Contains(got.stderr, "left out: 1 of others") {
		t.Errorf("it says %s", got.stderr)
	}
	if logged := ask[string](w, `SELECT reason FROM outbox.delivery_log WHERE outcome = 'reconciled' ORDER BY id DESC LIMIT 1`); logged != strings.TrimSpace(got.stderr) {
		t.Errorf("logged %q, said %q", logged, got.stderr)
	}
	if found := ask[string](w, `SELECT found::text FROM outbox.reconciliation`); found != `{"newer": 10, "missing": 10, "cancelled": 10, "different": 20}` {
		t.Errorf("found %s", found)
	}

	w.run("reconcile", "RoomSync", "--repair", "--dry-run").wants(t, exitFound, "40 events would be sent again; nothing was changed")
	w.run("reconcile", "RoomSync", "--repair").wants(t, exitUsage, "--reason is required")
	w.run("reconcile", "RoomSync", "--repair", "--reason", "edited by hand").wants(t, exitFound, "40 events sent again")
	if n := ask[int](w, `SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'replayed' AND reason = 'edited by hand'`); n != 40 {
		t.Errorf("%d replays in the log", n)
	}
	w.run("reconcile", "RoomSync").wants(t, exitFound, "40 on the way")
	w.relayUntil(`SELECT NOT EXISTS (SELECT FROM outbox.delivery)`)
	if n := ask[int](w, `SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'failed'`); n != 0 {
		t.Errorf("%d repairs failed", n)
	}
	// The newer ones are a person's decision: here, the court takes them back.
	for i := range 10 {
		edit(7+i*90+4, "SEQUENCE:9", "SEQUENCE:1")
		edit(7+i*90+4, "LOCATION:9Z", "LOCATION:3A")
	}
	w.run("reconcile", "RoomSync").wants(t, 0, "both calendars are equal: 1000 entries")
	if after := r.Object("3a/theirs.ics"); after != theirs {
		t.Errorf("the entry of somebody else is now %s", after)
	}
	// A window sees only its part, and what was moved out of it.
	edit(30, "DTSTART:20270302T150000Z", "DTSTART:20280302T150000Z")
	edit(30, "DTEND:20270302T153000Z", "DTEND:20280302T153000Z")
	march := decode[reconciliation](t, w.run("reconcile", "RoomSync", "--from", "2027-03-02", "--to", "2027-03-03T00:00:00Z", "--output", "json"))
	if len(march.Differences) != 1 || march.Differences[0].Key != "H-30" || march.Differences[0].Kind != reconcile.Different || march.Differences[0].Theirs != "not in the window" || march.Compared != 24 {
		t.Errorf("in the window: %+v", march)
	}
	if march.Equal || march.Ours == march.Theirs {
		t.Errorf("in the window: %+v", march)
	}
	auditor := w.as("outbox_auditor")
	auditor.env["CALENDAR_PASSWORD"] = radicale.Password
	auditor.run("reconcile", "RoomSync").wants(t, exitFound, "not logged: the login", "1 different of 1000 entries")
}

func TestReconcileRefuses(t *testing.T) {
	w := newWorld(t)
	w.run("reconcile", "CourtCalendarSync").wants(t, exitUsage, "cannot be compared")
	w.run("reconcile", "nobody").wants(t, exitUsage, "nobody")
	w.run("reconcile", "CourtCalendarSync", "--from", "soon").wants(t, exitUsage, "want a date such as 2027-01-31")
	w.run("reconcile", "CourtCalendarSync", "--from", "2027-03-02", "--to", "2027-03-01").wants(t, exitUsage, "is not after --from")
	w.run("reconcile", "CourtCalendarSync", "--dry-run").wants(t, exitUsage, "--dry-run belongs to --repair")
	w.run("version", "--output", "csv").wants(t, exitFailed, "this is no list of rows")
}

const listedCourtYAML = `
database: {url: "${DATABASE_URL}"}
relay: {poll: 20ms, name: relay-1}
listen: 127.0.0.1:0
syncs:
  - name: CourtCalendarSync
    events: ["scheduling:*"]
    retry: {initial: 10ms, max: 50ms}
    mapping: {hearingId: case_reference, scheduledAt: start_time, location: courtroom}
    adapter:
      kind: rest
      url: "%[1]s/api/calendar"
      external_id: /id
      outcomes: {409: duplicate}
      known: {method: PUT, url: "%[1]s/api/calendar/{ref.external_id}", gone: create, outcomes: {409: conflict}}
      read:
        url: "%[1]s/api/calendar/{key}"
        equal: [{path: /fields/start_time, field: start_time}, {path: /fields/courtroom, field: courtroom}, {path: /status, equals: booked}]
      list:
        url: "%[1]s/api/calendar"
        items: /bookings
        key: /case_reference
        fields: {start_time: /fields/start_time, courtroom: /fields/courtroom}
        at: start_time
        cancelled: {path: /status, equals: cancelled}
      routes:
        "scheduling:cancelled": {method: DELETE, url: "%[1]s/api/calendar/{ref.external_id}", body: none, outcomes: {404: duplicate, 409: conflict}}
`

// The test court is compared and repaired too.
func TestReconcileTheTestCourt(t *testing.T) {
	w := newWorld(t)
	sim := courtsim.New(courtsim.Options{})
	court := httptest.NewServer(sim)
	t.Cleanup(court.Close)
	w.configure(fmt.Sprintf(listedCourtYAML, court.URL))
	write := func(typ, key, room string) {
		t.Helper()
		ask[string](w, `INSERT INTO outbox.event (type, key, payload) VALUES ($1, $2::text, jsonb_build_object('hearingId', $2::text, 'scheduledAt', '2027-03-15T09:30:00-04:00', 'location', $3::text)) RETURNING id::text`, typ, key, room)
	}
	for n := range 5 {
		write("scheduling:created", fmt.Sprint("H-", n), "1A")
	}
	write("scheduling:cancelled", "H-4", "1A")
	w.relayUntil(allFinished)
	w.run("reconcile", "CourtCalendarSync").wants(t, 0, "both calendars are equal: 5 entries")

	change := func(method, path, body string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, court.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil || res.StatusCode >= 300 {
			t.Fatalf("%s %s: %v, %v", method, path, res, err)
		}
		_ = res.Body.Close()
	}
	change("PUT", "/api/calendar/"+sim.Calendar()["H-1"].ID, `{"case_reference":"H-1","start_time":"2027-03-15T09:30:00-04:00","courtroom":"9Z"}`)
	change("DELETE", "/api/calendar/"+sim.Calendar()["H-2"].ID, "")
	change("POST", "/api/calendar", `{"case_reference":"X-1","start_time":"2027-03-15T09:30:00-04:00","courtroom":"9Z"}`)
	got := w.run("reconcile", "CourtCalendarSync", "--output", "csv")
	got.wants(t, exitFound, "H-1,different,courtroom,1A,9Z,", "H-2,cancelled,", "X-1,extra,", "1 different, 1 cancelled, 1 extra of 5 entries")
	w.run("reconcile", "CourtCalendarSync", "--repair", "--reason", "edited there").wants(t, exitFound, "2 events sent again")
	w.relayUntil(`SELECT NOT EXISTS (SELECT FROM outbox.delivery)`)
	change("DELETE", "/api/calendar/"+sim.Calendar()["X-1"].ID, "") // only the court can remove what is not ours
	w.run("reconcile", "CourtCalendarSync").wants(t, 0, "both calendars are equal: 5 entries")
}

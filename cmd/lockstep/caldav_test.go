package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/hms-mkt/lockstep/internal/radicale"
)

// losing is a proxy before a calendar. lose is asked for each request that changes something,
// and says whether it reaches the calendar, and whether its answer comes back.
type losing struct {
	*httptest.Server
	mu   sync.Mutex
	lose func(method, path string) (forwards, answers bool)
}

func newLosing(t *testing.T, to string) *losing {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	l := &losing{}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		lose := l.lose
		l.mu.Unlock()
		if lose == nil || r.Method != http.MethodPut && r.Method != http.MethodDelete {
			proxy.ServeHTTP(w, r)
			return
		}
		forwards, answers := lose(r.Method, r.URL.Path)
		switch {
		case forwards && answers:
			proxy.ServeHTTP(w, r)
			return
		case forwards:
			proxy.ServeHTTP(httptest.NewRecorder(), r)
		}
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(l.Close)
	return l
}

func (l *losing) loses(lose func(method, path string) (forwards, answers bool)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lose = lose
}

const caldavYAML = `
database: {url: "${DATABASE_URL}"}
relay: {poll: 20ms, name: %[2]s, lease: 5s}
listen: 127.0.0.1:0
syncs:
  - name: RoomSync
    events: ["scheduling:*"]
    retry: {initial: 10ms, max: 50ms}
    mapping: {scheduledAt: start, endsAt: end, title: summary, location: {to: location}, room: room}
    adapter:
      kind: caldav
      url: "%[1]s/agency/{fields.room}/"
      collections: ["%[1]s/agency/3a/", "%[1]s/agency/4b/"]
      domain: agency.example.gov
      timeout: 1s
      auth: {kind: basic, username: agency, password: "${CALENDAR_PASSWORD}"}
`

func (w *world) hearing(typ, key, start, room string) {
	w.t.Helper()
	ask[string](w, `INSERT INTO outbox.event (type, key, version, payload)
SELECT $1, $2::text, 1 + count(*), jsonb_build_object('scheduledAt', $3::text, 'endsAt', $3::timestamptz + interval '1 hour', 'title', 'Hearing', 'location', $4::text, 'room', lower($4))
  FROM outbox.event WHERE key = $2 RETURNING id::text`, typ, key, start, room)
}

const allFinished = `SELECT NOT EXISTS (SELECT FROM outbox.event AS e WHERE NOT EXISTS (SELECT FROM outbox.delivery_log AS l WHERE l.event_id = e.id AND outbox.ends_delivery(l.outcome)))`

// Every first request for an object and a version is lost, before or after the calendar has
// taken it. Each hearing ends as one right entry.
func TestLostAnswersOfACalendar(t *testing.T) {
	w := newWorld(t)
	r := radicale.Start(t)
	r.Room("3a")
	r.Room("4b")
	l := newLosing(t, r.URL)
	w.env["CALENDAR_PASSWORD"] = radicale.Password
	w.configure(fmt.Sprintf(caldavYAML, l.URL, "relay-1"))
	seen := map[string]int{}
	lost := 0
	l.loses(func(method, path string) (bool, bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if seen[method+path]++; seen[method+path]%2 == 0 {
			return true, true
		}
		lost++
		return lost%2 == 0, false
	})
	for n := range 6 {
		key := fmt.Sprintf("H-%d", n)
		w.hearing("scheduling:created", key, "2027-03-15T09:30:00Z", "3A")
		w.hearing("scheduling:updated", key, "2027-03-16T09:30:00Z", "3A")
		w.hearing("scheduling:updated", key, "2027-03-16T10:30:00Z", "4B")
		if n == 5 {
			w.hearing("scheduling:cancelled", key, "2027-03-16T10:30:00Z", "4B")
		}
	}
	w.relayUntil(allFinished)
	for n := range 6 {
		object := r.Object(fmt.Sprintf("4b/H-%d.ics", n))
		status := "CONFIRMED"
		if n == 5 {
			status = "CANCELLED"
		}
		if radicale.Line(object, "DTSTART") != "20270316T103000Z" || radicale.Line(object, "LOCATION") != "4B" || radicale.Line(object, "STATUS") != status {
			t.Errorf("hearing %d: %s", n, object)
		}
		if object := r.Object(fmt.Sprintf("3a/H-%d.ics", n)); object != "" {
			t.Errorf("hearing %d is still in the old room: %s", n, object)
		}
	}
	if n := ask[int](w, `SELECT count(*)::int FROM outbox.delivery_log WHERE outcome IN ('duplicate', 'step') AND attempt IS NULL`); n == 0 {
		t.Error("nothing was settled by reading")
	}
}

// A relay is killed between the two requests of a room change: while the calendar takes the
// second one, or before. The hearing ends in the new room alone.
func TestKillBetweenTheStepsOfARoomChange(t *testing.T) {
	for name, tc := range map[string]struct {
		method   string
		forwards bool
	}{
		"before the new room has it":  {http.MethodPut, false},
		"when the new room has it":    {http.MethodPut, true},
		"before the old room lost it": {http.MethodDelete, false},
		"when the old room lost it":   {http.MethodDelete, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := radicale.Start(t)
			r.Room("3a")
			r.Room("4b")
			l := newLosing(t, r.URL)
			w.env["CALENDAR_PASSWORD"] = radicale.Password
			w.configure(fmt.Sprintf(caldavYAML, l.URL, "relay-1"))
			w.hearing("scheduling:created", "H-1", "2027-03-15T09:30:00Z", "3A")
			w.relayUntil(allFinished)

			cmd := exec.CommandContext(t.Context(), program(t), "run")
			cmd.Env = os.Environ()
			for name, value := range w.env {
				cmd.Env = append(cmd.Env, name+"="+value)
			}
			killed := make(chan struct{})
			var once sync.Once
			l.loses(func(method, path string) (bool, bool) {
				if method != tc.method {
					return true, true
				}
				first := false
				once.Do(func() { first = true })
				if !first {
					return true, true
				}
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				close(killed)
				return tc.forwards, false
			})
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.hearing("scheduling:updated", "H-1", "2027-03-16T09:30:00Z", "4B")
			<-killed
			w.configure(fmt.Sprintf(caldavYAML, l.URL, "relay-2"))
			w.relayUntil(allFinished)
			if object := r.Object("4b/H-1.ics"); radicale.Line(object, "DTSTART") != "20270316T093000Z" {
				t.Errorf("the new room has: %s", object)
			}
			if object := r.Object("3a/H-1.ics"); object != "" {
				t.Errorf("the old room has: %s", object)
			}
			if log := ask[string](w, `SELECT string_agg(outcome, ' ' ORDER BY id) FROM outbox.delivery_log WHERE version = 2`); !strings.Contains(log, "unknown read") {
				t.Errorf("the log says: %s", log)
			}
		})
	}
}

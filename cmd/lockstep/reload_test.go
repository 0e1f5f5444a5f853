package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

const reloadYAML = `
database: {url: "${DATABASE_URL}"}
relay: {poll: 5ms, drain: 1m, name: relay-1, workers: %[1]d}
listen: 127.0.0.1:0
syncs:
  - name: CourtCalendarSync
    events: ["scheduling:*"]
    when: event.court != "%[2]s"
    adapter: {kind: rest, url: "%[3]s/%[2]s", auth: {kind: bearer, token: "${file:%[4]s}"}}
    mapping: {hearingId: %[2]s_reference}
    retry: {initial: 10ms, max: 50ms}
    limits: {concurrency: %[5]d}
`

// request is a request that a court got.
type request struct{ id, path, token, body string }

// of names the configuration that all parts of the request come from.
func (r request) of(version string) bool {
	return r.path == "/"+version && r.token == "Bearer token-of-"+version && strings.Contains(r.body, version+"_reference")
}

// SIGHUP under load, with a good file and with a broken one. Nothing is lost or sent
// twice. Requests in flight finish with their old configuration, and bodies that were
// mapped before keep their bytes.
func TestSIGHUPReloadsTheConfiguration(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	var got []request
	requests := func() []request { mu.Lock(); defer mu.Unlock(); return slices.Clone(got) }
	release := make(chan struct{})
	w.court.answers(func(r *http.Request, body string) int {
		mu.Lock()
		q := request{r.Header.Get("Idempotency-Key"), r.URL.Path, r.Header.Get("Authorization"), body}
		got = append(got, q)
		mu.Unlock()
		switch {
		case strings.Contains(body, `"slow"`):
			<-release
		case strings.Contains(body, `"stale"`) && r.URL.Path == "/old":
			return http.StatusServiceUnavailable
		}
		return http.StatusCreated
	})
	dir := t.TempDir()
	file := filepath.Join(dir, "lockstep.yaml")
	w.env["LOCKSTEP_CONFIG"] = file
	token := func(version string) string { // each version has its own file, so that one write changes everything
		path := filepath.Join(dir, version)
		writeFile(t, path, "token-of-"+version)
		return path
	}
	configure := func(version string, workers, concurrency int) {
		writeFile(t, file, fmt.Sprintf(reloadYAML, workers, version, w.court.URL, token(version), concurrency))
	}
	configure("old", 16, 8)
	p := w.spawn(program(t))
	address := fmt.Sprint(p.says(t, "serving health and metrics")["address"])
	p.says(t, "relay running")
	hup := func() {
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}

	writing, enough := context.WithCancel(t.Context())
	defer enough()
	var writer sync.WaitGroup
	conn, err := pgx.Connect(t.Context(), w.env["DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	writer.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for n := 0; writing.Err() == nil; n++ {
			if _, err := conn.Exec(t.Context(), `
INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', $1, jsonb_build_object('hearingId', $2::text, 'court', 'new york'))`,
				fmt.Sprint("H-", n%20), fmt.Sprint("hearing ", n)); err != nil {
				t.Error(err)
				return
			}
			<-tick.C
		}
	})
	slow, stale := w.emit("slow", `{"hearingId":"slow"}`), w.emit("stale", `{"hearingId":"stale"}`)
	dropped := w.emit("dropped", `{"hearingId":"dropped", "court": "old"}`)
	w.eventually(`SELECT (SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered') > 100
		AND (SELECT count(*) FROM outbox.delivery_log WHERE event_id = '` + stale + `') > 1
		AND EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'filtered')`)

	configure("new", 8, 2)
	hup()
	if said := p.says(t, "configuration change not applied"); said["change"] != "workers needs a restart" {
		t.Errorf("said %v", said)
	}
	p.says(t, "configuration reloaded")
	now := w.emit("H-1", `{"hearingId":"after the reload", "court": "old"}`)
	w.eventually(`SELECT count(*) = 2 FROM outbox.delivery_log WHERE outcome = 'delivered' AND event_id IN ('` + now + `', '` + stale + `')`)
	for _, r := range requests() {
		if strings.Contains(r.id, now) && !r.of("new") {
			t.Errorf("after the reload: %+v", r)
		}
		if strings.Contains(r.id, stale) && !strings.Contains(r.body, "old_reference") {
			t.Errorf("rendered before, and sent with other bytes: %+v", r)
		}
	}
	if _, metrics := get(t, "http://"+address+"/metrics"); !strings.Contains(metrics, "\nlockstep_config_last_reload_successful 1\n") {
		t.Error("the metrics lack a successful reload")
	}

	broken := strings.Replace(fmt.Sprintf(reloadYAML, 8, "broken", w.court.URL, token("broken"), 2), `event.court != "broken"`, `event.court != `, 1)
	writeFile(t, file, broken)
	hup()
	line := p.says(t, "configuration is wrong")
	if line["file"] != file || line["line"] != 8.0 || !strings.Contains(fmt.Sprint(line["path"]), "when") {
		t.Errorf("said %v", line)
	}
	p.says(t, "configuration not reloaded, nothing has changed")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	hup()
	if line := p.says(t, "configuration not reloaded, nothing has changed"); !strings.Contains(fmt.Sprint(line["error"]), "cannot be read") {
		t.Errorf("said %v", line)
	}
	again := w.emit("H-2", `{"hearingId":"after the broken file"}`)
	w.eventually(`SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'delivered' AND event_id = '` + again + `')`)
	if _, metrics := get(t, "http://"+address+"/metrics"); !strings.Contains(metrics, "\nlockstep_config_last_reload_successful 0\n") {
		t.Error("the metrics lack a failed reload")
	}

	enough()
	writer.Wait()
	close(release)
	w.eventually(nothingOpen)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.exits(t, 0)
	times := map[string]int{}
	for _, r := range requests() {
		times[r.id]++
		if !strings.Contains(r.id, stale) && !r.of("old") && !r.of("new") {
			t.Errorf("neither of the old configuration nor of the new: %+v", r)
		}
		if strings.Contains(r.id, slow) && !r.of("old") {
			t.Errorf("it was in flight: %+v", r)
		}
		if strings.Contains(r.id, dropped) {
			t.Errorf("the old condition drops it: %+v", r)
		}
	}
	for id, n := range times {
		if n != 1 && !strings.Contains(id, stale) {
			t.Errorf("%s was sent %d times", id, n)
		}
	}
	if n := ask[int](w, `SELECT count(*) FROM outbox.event AS e
 WHERE (SELECT count(*) FROM outbox.delivery_log AS l WHERE l.event_id = e.id AND l.outcome IN ('delivered', 'filtered')) <> 1`); n != 0 {
		t.Errorf("%d events were not finished exactly once", n)
	}
}

// A secret is replaced as Kubernetes does it, without a signal. A file that is broken
// meanwhile changes nothing.
func TestChangedFilesAreReadAgain(t *testing.T) {
	w := newWorld(t)
	var token atomic.Value
	w.court.answers(func(r *http.Request, _ string) int {
		token.Store(r.Header.Get("Authorization"))
		return http.StatusCreated
	})
	dir := t.TempDir()
	file, link := filepath.Join(dir, "lockstep.yaml"), filepath.Join(dir, "mounted")
	mount := func(version string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, version, "token"), "token-of-"+version+"\n")
		if err := errors.Join(os.Symlink(version, link+".new"), os.Rename(link+".new", link)); err != nil {
			t.Fatal(err)
		}
	}
	good := fmt.Sprintf(reloadYAML, 16, "court", w.court.URL, filepath.Join(link, "token"), 8)
	mount("first")
	writeFile(t, file, good)
	w.env["LOCKSTEP_CONFIG"] = file
	p := w.spawn(program(t))
	address := fmt.Sprint(p.says(t, "serving health and metrics")["address"])
	p.says(t, "relay running")
	n := 0
	sends := func(version string) {
		t.Helper()
		n++
		id := w.emit(fmt.Sprint("H-", n), `{"hearingId":"H"}`)
		w.eventually(`SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'delivered' AND event_id = '` + id + `')`)
		if got := token.Load(); got != "Bearer token-of-"+version {
			t.Errorf("sent %v, want the token of %s", got, version)
		}
	}
	sends("first")
	mount("second")
	p.says(t, "configuration reloaded")
	sends("second")

	writeFile(t, file, good[:strings.Index(good, "mapping")])
	broken := strings.Replace(good, "retry: {initial: 10ms", "retry: {initial: 10", 1)
	writeFile(t, file, broken)
	p.says(t, "configuration is wrong")
	p.says(t, "configuration not reloaded, nothing has changed")
	sends("second")
	if _, metrics := get(t, "http://"+address+"/metrics"); !strings.Contains(metrics, "\nlockstep_config_last_reload_successful 0\n") {
		t.Error("the metrics lack a failed reload")
	}
	mount("third")
	p.says(t, "configuration not reloaded, nothing has changed")
	writeFile(t, file, good)
	p.says(t, "configuration reloaded")
	sends("third")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.exits(t, 0)
}

// A password of the database is replaced in its file. Connections that are made after that
// log in with the new one.
func TestDatabasePasswordIsReadAgain(t *testing.T) {
	w := newWorld(t)
	login, err := url.Parse(pgtest.AsRole(t, w.env["DATABASE_URL"], roleRelay))
	if err != nil {
		t.Fatal(err)
	}
	name := login.User.Username()
	dir := t.TempDir()
	database := filepath.Join(dir, "database")
	use := func(password string) {
		t.Helper()
		if _, err := w.conn.Exec(t.Context(), "ALTER ROLE "+pgx.Identifier{name}.Sanitize()+" PASSWORD '"+password+"'"); err != nil {
			t.Fatal(err)
		}
		login.User = url.UserPassword(name, password)
		writeFile(t, database, login.String()+"\n")
	}
	use("first@/")
	w.configure(strings.Replace(fmt.Sprintf(courtYAML, w.court.URL), "${DATABASE_URL}", "${file:"+database+"}", 1))
	delete(w.env, "DATABASE_URL")
	p := w.spawn(program(t))
	address := fmt.Sprint(p.says(t, "serving the console")["address"])
	p.says(t, "relay running")
	use("second:@")
	if said := p.says(t, "configuration reloaded"); said["not_taken_over"] != 0.0 {
		t.Errorf("said %v", said)
	}
	if _, err := w.conn.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1`, name); err != nil {
		t.Fatal(err)
	}
	id := w.emit("H-1", `{"hearingId":"H-1"}`)
	w.eventually(`SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'delivered' AND event_id = '` + id + `')`)
	waiting.For(t, waitTimeout, "the console reads with the new password", func() bool {
		status, page := get(t, "http://"+address+"/")
		return status == http.StatusOK && strings.Contains(page, "relay-1") && !strings.Contains(page, "This is as of")
	})
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.exits(t, 0)
}

func TestWithoutPassword(t *testing.T) {
	for _, tc := range []struct {
		was, is string
		same    bool
	}{
		{"postgres://a:b@db/x", "postgres://a:c%40@db/x", true},
		{"postgres://a:b@db/x", "postgres://a@db/x", true},
		{"postgres://a:b@db/x", "postgres://b:b@db/x", false},
		{"postgres://a:b@db/x", "postgres://a:b@other/x", false},
		{"postgres://a:b@db/x?sslmode=require", "postgres://a:b@db/x", false},
		{"host=db user=a password=b dbname=x", "host=db user=a password = 'c d\\' e' dbname=x", true},
		{"host=db user=a password=b dbname=x", "host=db user=b password=b dbname=x", false},
	} {
		if same := withoutPassword(tc.was) == withoutPassword(tc.is); same != tc.same {
			t.Errorf("%s and %s: %v", tc.was, tc.is, same)
		}
	}
}

// A supervisor signals the process and its group, so two signals at once count as one.
func TestTwoSignalsAtOnceAreOne(t *testing.T) {
	w := newWorld(t)
	underWay, release := make(chan struct{}), make(chan struct{})
	w.court.answers(func(*http.Request, string) int {
		close(underWay)
		<-release
		return http.StatusCreated
	})
	w.emit("H-1", `{"hearingId":"H-1"}`)
	p := w.spawn(program(t))
	<-underWay
	for _, s := range []os.Signal{syscall.SIGTERM, os.Interrupt, syscall.SIGTERM} {
		if err := p.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	p.says(t, "relay stopping")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	close(release)
	p.exits(t, 0)
	if n := ask[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`); n != 1 {
		t.Errorf("%d delivered, want the one in flight", n)
	}
}

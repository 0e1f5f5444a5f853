package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// process is lockstep run in a separate process.
type process struct {
	cmd    *exec.Cmd
	events chan map[string]any // its log
	exited chan error
}

// spawn starts a relay.
func (w *world) spawn(program string) *process {
	w.t.Helper()
	return w.spawnAs(program, "run", "--log-format", "json")
}

func (w *world) spawnAs(program string, args ...string) *process {
	w.t.Helper()
	p := &process{
		cmd:    exec.Command(program, args...), //nolint:noctx // it is ended by signals
		events: make(chan map[string]any, 1000), exited: make(chan error, 1),
	}
	p.cmd.Env = w.environ()
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	go func() {
		defer close(p.events)
		for s := bufio.NewScanner(stderr); s.Scan(); {
			var line map[string]any
			if json.Unmarshal(s.Bytes(), &line) != nil {
				line = map[string]any{"msg": s.Text()}
			}
			p.events <- line
		}
		p.exited <- p.cmd.Wait()
	}()
	return p
}

// execute runs a command line of another program to its end.
func (w *world) execute(program string, args ...string) result {
	w.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(w.t.Context(), program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = w.environ(), &stdout, &stderr
	var failed *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &failed) {
		w.t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func (w *world) environ() (all []string) {
	for name, value := range w.env {
		all = append(all, name+"="+value)
	}
	return all
}

// says waits for a message in the log.
func (p *process) says(t *testing.T, message string) map[string]any {
	t.Helper()
	began, timeout := time.Now(), time.After(waitTimeout)
	for {
		select {
		case line, ok := <-p.events:
			if !ok {
				t.Fatalf("ended after %s without saying %q", time.Since(began), message)
			}
			if strings.Contains(fmt.Sprint(line["msg"]), message) {
				return line
			}
		case <-timeout:
			t.Fatalf("has not said %q for %s", message, waitTimeout)
		}
	}
}

func (p *process) exits(t *testing.T, code int) {
	t.Helper()
	for range p.events { // until its log ends
	}
	var failed *exec.ExitError
	if err := <-p.exited; err != nil && !errors.As(err, &failed) {
		t.Error(err)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestRunRelaysAndDrainsAtSIGTERM(t *testing.T) {
	w := newWorld(t)
	superuser := w.env["DATABASE_URL"]
	w.env["DATABASE_URL"] = pgtest.AsRole(t, superuser, roleRelay) // the manual says that this role is enough
	underWay, release := make(chan struct{}), make(chan struct{})
	w.court.answers(func(_ *http.Request, body string) int {
		if strings.Contains(body, `"slow"`) {
			close(underWay)
			<-release
		}
		return http.StatusCreated
	})
	p := w.spawn(program(t))
	address := fmt.Sprint(p.says(t, "serving health and metrics")["address"])
	p.says(t, "relay running")
	w.emit("H-1", `{"hearingId":"H-1"}`)
	w.eventually(`SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'delivered') AND EXISTS (SELECT FROM outbox.relay WHERE running)`)

	if code, text := get(t, "http://"+address+"/readyz"); code != http.StatusOK || text != "ready\n" {
		t.Errorf("readyz: %d %s", code, text)
	}
	_, metrics := get(t, "http://"+address+"/metrics")
	for _, line := range []string{
		`lockstep_attempts_total{outcome="delivered",sync="CourtCalendarSync"} 1`,
		`lockstep_pending{sync="CourtCalendarSync"} 0`, `lockstep_status_up 1`, `lockstep_sync_relays{sync="CourtCalendarSync"} 1`, `lockstep_relays{version="`, `lockstep_build_info{`, `go_goroutines `,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("metrics lack %s", line)
		}
	}
	w.run("healthcheck", "--url", "http://"+address+"/readyz").wants(t, 0, "ready")

	w.emit("H-2", `{"hearingId":"slow"}`)
	<-underWay
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.says(t, "relay stopping")
	w.run("healthcheck", "--url", "http://"+address+"/readyz").wants(t, exitFailed, "503", "not ready")
	w.run("healthcheck", "--url", "http://"+address+"/livez").wants(t, 0, "ok")
	close(release)
	p.exits(t, 0)
	if n := ask[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`); n != 2 {
		t.Errorf("%d delivered, want 2, with the one in flight", n)
	}
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	w := newWorld(t)
	w.configure(strings.ReplaceAll(fmt.Sprintf(courtYAML, w.court.URL), "drain: 1m", "drain: 5m"))
	underWay, release := make(chan struct{}), make(chan struct{})
	w.court.answers(func(*http.Request, string) int {
		close(underWay)
		<-release
		return http.StatusCreated
	})
	defer close(release)
	w.emit("H-1", `{"hearingId":"H-1"}`)
	p := w.spawn(program(t))
	<-underWay
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	p.says(t, "relay stopping")
	waiting.StallFor(t.Context(), sameSignal) // before that it is the same signal
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if line := p.says(t, "lockstep failed"); !strings.Contains(fmt.Sprint(line["error"]), "second signal") || line["level"] != "ERROR" {
		t.Errorf("said %v", line)
	}
	p.exits(t, exitNotDrained)
}

func TestDrainThatRunsOutExitsWith4(t *testing.T) {
	w := newWorld(t)
	w.configure(strings.ReplaceAll(fmt.Sprintf(courtYAML, w.court.URL), "drain: 1m", "drain: 0s"))
	underWay, release := make(chan struct{}), make(chan struct{})
	w.court.answers(func(*http.Request, string) int {
		close(underWay)
		<-release
		return http.StatusCreated
	})
	w.emit("H-1", `{"hearingId":"H-1"}`)
	r := w.start("run")
	<-underWay
	r.stop(t, exitNotDrained)
	close(release)
}

func TestRunWaitsForItsDatabase(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // a database that hangs up
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	w.env["DATABASE_URL"] = "postgres://relay:canary@" + l.Addr().String() + "/db"
	p := w.spawn(program(t))
	address := fmt.Sprint(p.says(t, "serving health and metrics")["address"])
	if said := fmt.Sprint(p.says(t, "database is not ready, waiting")); strings.Contains(said, "canary") {
		t.Errorf("the password is in the log: %s", said)
	}
	if code, _ := get(t, "http://"+address+"/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("ready without a database: %d", code)
	}
	if code, text := get(t, "http://"+address+"/metrics"); code != http.StatusOK || !strings.Contains(text, "lockstep_status_up 0") {
		t.Errorf("metrics: %d %s", code, text)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.exits(t, 0)
}

func TestRunRefusesAPortInUse(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.configure(strings.ReplaceAll(fmt.Sprintf(courtYAML, w.court.URL), "127.0.0.1:0", l.Addr().String()))
	w.emit("H-1", `{"hearingId":"H-1"}`)
	w.run("run").wants(t, exitFailed, "listen "+l.Addr().String()+": the port is in use")
	if w.court.count() != 0 || ask[int](w, `SELECT count(*) FROM outbox.sync`) != 0 {
		t.Error("it did something before")
	}
}

func TestRunRefusesAMissingSchema(t *testing.T) {
	w := newWorld(t)
	w.env["DATABASE_URL"] = pgtest.Empty(t)
	w.run("run").wants(t, exitFailed, "lockstep migrate up")
}

func TestRunNamesTheRoleItLacks(t *testing.T) {
	w := newWorld(t)
	auditor := w.as(roleAuditor)
	auditor.env["COURT_TOKEN"] = "x"
	auditor.run("run").wants(t, exitFailed, "grant it the role outbox_relay")
}

func TestHealthcheckFindsTheRelayByItsConfiguration(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1:9464": "127.0.0.1:9464", ":9464": "127.0.0.1:9464", "0.0.0.0:80": "127.0.0.1:80",
		"[::]:80": "[::1]:80", "relay.example.gov:80": "relay.example.gov:80",
	} {
		if got := local(listen); got != want {
			t.Errorf("%s: got %s, want %s", listen, got, want)
		}
	}
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, r.URL.Path) })}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	w.configure(strings.ReplaceAll(fmt.Sprintf(courtYAML, w.court.URL), "127.0.0.1:0", l.Addr().String()))
	w.run("healthcheck").wants(t, 0, "/readyz")
	if err := server.Shutdown(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	w.run("healthcheck").wants(t, exitFailed, "no relay answers")
}

func TestRunSetsTheGarbageCollectorUnlessGOGCIsSet(t *testing.T) {
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	for said, want := range map[int]int{100: 200, 50: 50, 400: 400, -1: -1} {
		debug.SetGCPercent(said)
		calmCollector()
		if got := debug.SetGCPercent(100); got != want {
			t.Errorf("said %d: it is %d, want %d", said, got, want)
		}
	}
}

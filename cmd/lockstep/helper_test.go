package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

func TestMain(m *testing.M) {
	// Take the default address of relays, so that a test that uses it fails on
	// every machine, not only on one where a relay runs.
	if l, err := net.Listen("tcp", config.Defaults().Listen); err == nil {
		defer l.Close()
	}
	pgtest.Main(built{m})
}

// built is a test run whose programs are built once and removed at the end.
type built struct{ m *testing.M }

var programs struct {
	sync.Mutex
	dir   string
	built map[string]string // path by flags
}

func (b built) Run() int {
	var err error
	if programs.dir, err = os.MkdirTemp("", "lockstep-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(programs.dir)
	return b.m.Run()
}

// program returns the command, built with flags by the first test that asks.
func program(t *testing.T, flags ...string) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	name := strings.Join(flags, " ")
	if path, ok := programs.built[name]; ok {
		return path
	}
	path := filepath.Join(programs.dir, fmt.Sprint("lockstep-", len(programs.built)))
	build := exec.CommandContext(t.Context(), "go", slices.Concat([]string{"build", "-o", path}, flags, []string{"."})...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if programs.built == nil {
		programs.built = map[string]string{}
	}
	programs.built[name] = path
	return path
}

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got), rewrite it with -update:\n%s", path, diff)
	}
}

// result is the outcome of a command line.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) wants(t *testing.T, code int, texts ...string) result {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", r.code, code, r.stdout, r.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("does not say %q\nstdout: %s\nstderr: %s", text, r.stdout, r.stderr)
		}
	}
	return r
}

// decode reads the JSON on stdout.
func decode[T any](t *testing.T, r result) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		t.Fatalf("%v in stdout %q; stderr %q", err, r.stdout, r.stderr)
	}
	return v
}

// shell runs command lines with its own environment.
type shell struct {
	t     *testing.T
	env   map[string]string
	stdin string
}

func (s *shell) lookup(name string) (string, bool) { v, ok := s.env[name]; return v, ok }

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, env func(string) (string, bool), stdin io.Reader, stdout, stderr io.Writer) int {
	return (&app{env: env, stdin: stdin, stdout: stdout, stderr: stderr}).run(ctx, args)
}

func (s *shell) run(args ...string) result {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(s.t.Context(), args, s.lookup, strings.NewReader(s.stdin), &stdout, &stderr)
	return result{code, stdout.String(), stderr.String()}
}

// as returns a shell that logs in as a member of role.
func (s *shell) as(role string) *shell {
	s.t.Helper()
	env := map[string]string{"DATABASE_URL": pgtest.AsRole(s.t, s.env["DATABASE_URL"], role)}
	if c, ok := s.env["LOCKSTEP_CONFIG"]; ok {
		env["LOCKSTEP_CONFIG"] = c
	}
	return &shell{t: s.t, env: env}
}

// world is a database, a court and a configuration that connects them.
type world struct {
	*shell
	conn  *pgx.Conn
	court *court
}

// court answers every request as its script says.
type court struct {
	*httptest.Server
	mu     sync.Mutex
	script func(r *http.Request, body string) int
	bodies []string
}

func (c *court) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	c.bodies = append(c.bodies, string(body))
	script := c.script
	c.mu.Unlock()
	status := http.StatusCreated
	if script != nil {
		status = script(r, string(body))
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"id":"C-1"}`)
}

func (c *court) answers(script func(r *http.Request, body string) int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.script = script
}

func (c *court) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.bodies)
}

const courtYAML = `
database: {url: "${DATABASE_URL}"}
relay: {poll: 20ms, drain: 1m, name: relay-1}
listen: 127.0.0.1:0
syncs:
  - name: CourtCalendarSync
    events: ["scheduling:*"]
    when: event.court != "elsewhere"
    adapter: {kind: rest, url: "%s/api/calendar", external_id: /id, auth: {kind: bearer, token: "${COURT_TOKEN}"}}
    mapping: {hearingId: case_reference, courtroom: {to: room, optional: true}}
    retry: {initial: 10ms, max: 50ms}
`

// newWorld returns a world. Its test runs in parallel with others, because most of
// them wait most of the time.
func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	return newWorldAlone(t)
}

// newWorldAlone returns a world for a test that must run alone.
func newWorldAlone(t *testing.T) *world {
	t.Helper()
	w := &world{shell: &shell{t: t, env: map[string]string{"DATABASE_URL": pgtest.New(t), "COURT_TOKEN": "court-token-canary"}}, court: &court{}}
	w.court.Server = httptest.NewServer(w.court)
	t.Cleanup(w.court.Close)
	w.configure(fmt.Sprintf(courtYAML, w.court.URL))
	var err error
	if w.conn, err = pgx.Connect(t.Context(), w.env["DATABASE_URL"]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.conn.Close(context.Background()) })
	return w
}

// listening makes a configuration without an address listen on a free port.
func listening(yaml string) string {
	if strings.Contains(yaml, "listen:") {
		return yaml
	}
	return strings.TrimSuffix(yaml, "\n") + "\nlisten: 127.0.0.1:0\n"
}

// configure writes the configuration file.
func (w *world) configure(yaml string) {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "lockstep.yaml")
	yaml = listening(yaml)
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.env["LOCKSTEP_CONFIG"] = path
}

// emit writes an event and returns its id.
func (w *world) emit(key, payload string) string {
	w.t.Helper()
	return ask[string](w, `INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:created', $1, $2::jsonb) RETURNING id::text`, key, payload)
}

func ask[T any](w *world, sql string, args ...any) (v T) {
	w.t.Helper()
	if err := w.conn.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// relayUntil runs the relay in this process until the condition, a query for a
// boolean, holds.
func (w *world) relayUntil(condition string) {
	w.t.Helper()
	ctx, stop := context.WithCancel(w.t.Context())
	defer stop()
	var stdout, stderr bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"run"}, w.lookup, strings.NewReader(""), &stdout, &stderr)
	}()
	w.eventually(condition)
	stop()
	if code := <-done; code != 0 {
		w.t.Fatalf("run: exit code %d: %s", code, stderr.String())
	}
	if strings.Contains(stderr.String(), "canary") {
		w.t.Errorf("a secret is in the log: %s", stderr.String())
	}
	if stdout.Len() > 0 {
		w.t.Errorf("run writes to stdout: %s", stdout.String())
	}
}

func (w *world) eventually(condition string) {
	w.t.Helper()
	waiting.For(w.t, waitTimeout, condition, func() bool { return ask[bool](w, condition) })
}

// waitTimeout is how long tests wait for what must happen.
const waitTimeout = time.Minute

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// running is a command that runs until it is stopped.
type running struct {
	lines  chan string
	cancel context.CancelFunc
	code   chan int
}

// start starts a command in this process.
func (w *world) start(args ...string) *running {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	w.t.Cleanup(cancel)
	r := &running{lines: make(chan string), cancel: cancel, code: make(chan int, 1)}
	out, in := io.Pipe()
	go func() {
		defer in.Close()
		r.code <- run(ctx, args, w.lookup, strings.NewReader(""), in, io.Discard)
	}()
	go func() {
		defer close(r.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			select {
			case r.lines <- s.Text():
			case <-ctx.Done():
			}
		}
	}()
	return r
}

// line returns the next line on stdout.
func (r *running) line(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-r.lines:
		if !ok {
			t.Fatal("the command ended")
		}
		return line
	case <-time.After(waitTimeout):
		t.Fatalf("no line for %s", waitTimeout)
	}
	return ""
}

func (r *running) stop(t *testing.T, code int) {
	t.Helper()
	r.cancel()
	if got := <-r.code; got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	for range r.lines { // until the reader has ended
	}
}

const nothingOpen = `SELECT NOT EXISTS (SELECT FROM outbox.delivery) AND EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`

package browser

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// programs is the directory of the built programs.
var programs string

// build builds the programs of the main module, whose root is two directories up.
func build(ctx context.Context, dir string) error {
	programs = dir
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "./cmd/lockstep", "./cmd/scheduling")
	cmd.Dir = filepath.Join("..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// happens bounds what must happen.
const happens = time.Minute

// world is a database, a court and the programs on them.
type world struct {
	*testing.T
	database string
	pool     *pgxpool.Pool
	court    *courtsim.Court
	courtURL string
	syncs    string // more syncs of the configuration
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, database: pgtest.New(t), court: courtsim.New(courtsim.Options{Seed: 1})}
	var err error
	if w.pool, err = pgxpool.New(t.Context(), w.database); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.pool.Close)
	if w.courtURL, err = w.court.Start("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.court.Close() })
	return w
}

func (w *world) exec(sql string, args ...any) {
	w.Helper()
	if _, err := w.pool.Exec(w.Context(), sql, args...); err != nil {
		w.Fatal(err)
	}
}

// until waits until a query is true.
func (w *world) until(condition string) {
	w.Helper()
	waiting.For(w, happens, condition, func() (holds bool) {
		if err := w.pool.QueryRow(w.Context(), "SELECT "+condition).Scan(&holds); err != nil {
			w.Fatal(err)
		}
		return holds
	})
}

// start runs a program until the test ends, or until stop is called. It returns the first
// line of its output that has the text.
func (w *world) start(text string, env []string, name string, args ...string) (line string, stop func()) {
	w.Helper()
	cmd := exec.CommandContext(w.Context(), filepath.Join(programs, name), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	read, write := io.Pipe()
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	ended := make(chan error, 1)
	stop = func() {
		w.Helper()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			w.Fatal(err)
		}
		select {
		case err := <-ended:
			if err != nil {
				w.Fatalf("%s ended: %v", name, err)
			}
		case <-time.After(happens):
			w.Fatalf("%s does not end", name)
		}
	}
	go func() {
		ended <- cmd.Wait()
		write.Close()
	}()
	var said bytes.Buffer
	found := make(chan string, 1)
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		lines := bufio.NewScanner(read)
		for lines.Scan() {
			said.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), text) {
				select {
				case found <- lines.Text():
				default:
				}
			}
		}
		_, _ = io.Copy(io.Discard, read) // after a line that is too long
	}()
	w.Cleanup(func() {
		<-logged // the test's context has ended, so the program has too
		if w.Failed() {
			w.Logf("%s said:\n%s", name, said.String())
		}
	})
	select {
	case line := <-found:
		return line, stop
	case err := <-ended:
		<-logged
		w.Fatalf("%s ended: %v\n%s", name, err, said.String())
	case <-time.After(happens):
		w.Fatalf("%s does not say %q", name, text)
	}
	return "", nil
}

// address is the address in a line that a program has said.
var address = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// scheduling starts the scheduling module and returns its address.
func (w *world) scheduling() string {
	w.Helper()
	line, _ := w.start("http://", nil, "scheduling", "--listen", "127.0.0.1:0", "--database-url", w.database,
		"--status-url", pgtest.AsRole(w, w.database, "outbox_auditor"), "--zone", "America/New_York")
	return "http://" + address.FindString(line)
}

// configuration writes a configuration whose login has the role. more is added to it.
func (w *world) configuration(role, more string) (file string) {
	w.Helper()
	file = filepath.Join(w.TempDir(), "lockstep.yaml")
	config := fmt.Sprintf(`database: {url: %q}
listen: 127.0.0.1:0
%s
syncs:
  - name: CourtCalendarSync
    events: ["scheduling:*"]
    adapter: {kind: rest, url: "%s/api/calendar", timeout: 1s, external_id: /id, outcomes: {409: duplicate}}
    mapping: {hearingId: case_reference, scheduledAt: start_time, location: courtroom, status: status}
    retry: {initial: 200ms, max: 1s}
    escalate: {at: scheduledAt, zone: America/New_York, before: 24h}
%s`, pgtest.AsRole(w, w.database, role), more, w.courtURL, w.syncs)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		w.Fatal(err)
	}
	return file
}

// second adds a sync to a receiver of its own.
func (w *world) second(name string) {
	w.Helper()
	receiver := courtsim.New(courtsim.Options{Seed: 2})
	url, err := receiver.Start("127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = receiver.Close() })
	w.syncs += fmt.Sprintf(`  - name: %s
    events: ["scheduling:*"]
    adapter: {kind: rest, url: "%s/api/calendar", timeout: 1s, external_id: /id, outcomes: {409: duplicate}}
    mapping: {hearingId: case_reference, scheduledAt: start_time, location: courtroom, status: status}
`, name, url)
}

// console serves the console alone, and returns its host and port. more is added to the
// configuration, and env to the environment.
func (w *world) console(more string, env ...string) (host string) {
	w.Helper()
	line, _ := w.start("address", env, "lockstep", "console", "--config", w.configuration("outbox_auditor", more), "--log-format", "text")
	return address.FindString(line)
}

// relay starts a relay and returns the address that it listens on. more is added to the
// configuration.
func (w *world) relay(more string) (site string, stop func()) {
	w.Helper()
	file := w.configuration("outbox_relay", more)
	line, stop := w.start("address", nil, "lockstep", "run", "--config", file, "--log-format", "text")
	return "http://" + address.FindString(line), stop
}

// book inserts a hearing and its event as the scheduling module does. start is a wall
// time in New York.
func (w *world) book(id, start string) {
	w.Helper()
	w.exec(`WITH h AS (
		INSERT INTO scheduling.hearing (id, case_number, hearing_type, courthouse, courtroom, local_start, zone, starts_at, duration_minutes, event_id)
		VALUES ($1, '27-CV-' || right($1, 4), 'Motion', 'Albany', '3A', $2::timestamp, 'America/New_York', $2::timestamp AT TIME ZONE 'America/New_York', 45, gen_random_uuid())
		RETURNING *)
		INSERT INTO outbox.event (id, type, key, version, payload)
		SELECT event_id, 'scheduling:created', id, version, jsonb_build_object('hearingId', id, 'scheduledAt', starts_at, 'location', courtroom, 'status', status) FROM h`, id, start)
}

// change writes the next version of a hearing and its event.
func (w *world) change(id, what, status string) {
	w.Helper()
	w.exec(`WITH h AS (
		UPDATE scheduling.hearing SET status = $3, cancel_reason = CASE $3 WHEN 'cancelled' THEN 'settled' END, version = version + 1, event_id = gen_random_uuid(), updated_at = now()
		 WHERE id = $1
		RETURNING *)
		INSERT INTO outbox.event (id, type, key, version, payload)
		SELECT event_id, $2, id, version, jsonb_build_object('hearingId', id, 'scheduledAt', starts_at, 'location', courtroom, 'status', status) FROM h`, id, "scheduling:"+what, status)
}

// faults gives the court a script.
func (w *world) faults(list ...courtsim.Fault) {
	w.Helper()
	if err := w.court.SetFaults(list); err != nil {
		w.Fatal(err)
	}
}

//go:build linux

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// previous is the last commit whose program is made for schema 1.
const previous = "8933dfd96e3f4552dd34ba23588a7912b0883100"

// program builds lockstep at a commit of this repository, or as it is now.
func program(r *run, commit string) string {
	r.Helper()
	root := filepath.Join("..", "..")
	dir := r.TempDir()
	if commit != "" {
		archive := filepath.Join(dir, "source.tar")
		if out, err := exec.CommandContext(r.Context(), "git", "-C", root, "archive", "--output", archive, commit).CombinedOutput(); err != nil {
			r.Fatalf("%v: %s: this needs a clone with its history, so that the previous program can be built", err, out)
		}
		root = filepath.Join(dir, "source")
		if err := os.Mkdir(root, 0o700); err != nil {
			r.Fatal(err)
		}
		if out, err := exec.CommandContext(r.Context(), "tar", "-x", "-C", root, "-f", archive).CombinedOutput(); err != nil {
			r.Fatalf("%v: %s", err, out)
		}
	}
	file := filepath.Join(dir, "lockstep")
	cmd := exec.CommandContext(r.Context(), "go", "build", "-o", file, "./cmd/lockstep")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		r.Fatalf("build %s: %v: %s", commit, err, out)
	}
	return file
}

// service is lockstep run, as an operator starts it.
type service struct {
	*world
	name string
	cmd  *exec.Cmd
	said *tail
}

// configuration writes a configuration for a relay of this name.
func (w *world) configuration(name string) (file string) {
	w.t.Helper()
	file = filepath.Join(w.t.TempDir(), "lockstep.yaml")
	config := fmt.Sprintf(`database: {url: %q}
relay: {name: %s, lease: 2500ms, workers: 8}
listen: ""
syncs:
  - name: %s
    events: ["scheduling:*"]
    adapter: {kind: rest, url: "%s/api/calendar", timeout: 1s, external_id: /id, outcomes: {409: duplicate}}
    mapping: {hearingId: case_reference, scheduledAt: start_time, location: courtroom}
    retry: {initial: 20ms, max: 500ms}
`, w.login, name, theSync, w.court().url)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return file
}

// serve starts a relay of a program.
func (w *world) serve(program, name string) *service {
	w.t.Helper()
	s := &service{w, name, exec.CommandContext(context.WithoutCancel(w.t.Context()), program, "run", "--config", w.configuration(name)), &tail{}}
	s.cmd.Stderr = s.said
	if err := s.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		if w.t.Failed() {
			w.t.Logf("%s said:\n%s", name, s.said)
		}
	})
	return s
}

// delivers waits until the relay has delivered something from now on.
func (s *service) delivers() {
	s.t.Helper()
	from := ask[int64](s.world, `SELECT coalesce(max(id), 0) FROM outbox.delivery_log`)
	s.until(s.name+" delivers", `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE id > $1 AND relay = $2 AND outcome = 'delivered')`, from, s.name)
}

// stop stops the relay, which records what is in flight.
func (s *service) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("%s ended with %v\n%s", s.name, err, s.said)
	}
}

// execute runs a command of a program to its end, and returns its exit code and what it says.
func (w *world) execute(program string, args ...string) (code int, says string) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), program, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+w.url)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if failed, err := new(exec.ExitError), cmd.Run(); err != nil && !errors.As(err, &failed) {
		w.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// The database of the previous program, with a backlog, a log and failed deliveries, is upgraded while relays of that
// program deliver and writers write. Then the relays are replaced one after the other. One is killed. A relay of the
// previous program is started once more, as after a new program that disappoints. The receiver answers badly all the time.
func TestFault38RollingUpgrade(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		older, newer := program(r, previous), program(r, "")
		w.exec(`DROP SCHEMA outbox CASCADE`)
		if code, says := w.execute(older, "migrate", "up"); code != 0 || !strings.Contains(says, "at version 1") {
			r.Fatalf("the previous program migrates: %d: %s", code, says)
		}
		refused := numbered("refused-", 5)
		w.court().faults(r, append(refusing(422, refused), unreliable()...)...)
		one, two := w.serve(older, "older-1"), w.serve(older, "older-2")
		w.registered()
		w.book(refused...)
		w.book(refused...)
		l := w.begin(loadSpec{writers: 8, keys: 200, rate: float64(of(150, 1000))})
		l.reaches(of[int64](800, 100_000))

		// The new program does not start before its schema.
		if code, says := w.execute(newer, "run", "--config", w.configuration("too-early")); code != 1 || !strings.Contains(says, "it is version 1, this program needs 3; run: lockstep migrate up") {
			r.Errorf("a new relay on the old schema: %d: %s", code, says)
		}
		began := time.Now()
		if code, says := w.execute(newer, "migrate", "up"); code != 0 || !strings.Contains(says, "at version 3") {
			r.Fatalf("migrate up: %d: %s", code, says)
		}
		r.Logf("the migration took %s beside the writers", time.Since(began).Round(time.Millisecond))
		one.delivers()
		two.delivers()

		three := w.serve(newer, "newer-1")
		three.delivers()
		one.stop()
		if err := two.cmd.Process.Kill(); err != nil {
			r.Fatal(err)
		}
		four := w.serve(newer, "newer-2")
		four.delivers()

		// Back to the previous program, on the new schema.
		three.stop()
		back := w.serve(older, "older-3")
		back.delivers()
		if code, says := w.execute(newer, "migrate", "status"); code != 0 || !strings.Contains(says, "00003_read_back.sql") {
			r.Errorf("migrate status: %d: %s", code, says)
		}
		l.stop()
		w.court().faults(r, refusing(422, refused)...)
		w.drain(expected{failed: 2 * len(refused)})
		back.stop()
		four.stop()
	})
}

package main

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// TestMain lets the test binary be a relay, as the demo's own binary is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == relayMode {
		os.Exit(relayMain(os.Args[2:], os.LookupEnv, os.Stdin, os.Stderr))
	}
	pgtest.Main(m)
}

func noEnv(string) (string, bool) { return "", false }

// leftovers returns what lies in the directory for temporary files.
func leftovers(t *testing.T) []string {
	t.Helper()
	names, err := fs.Glob(os.DirFS(os.TempDir()), "lockstep-*")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// openTemp gives the test its own TMPDIR, which PostgreSQL's account may enter.
func openTemp(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo-test-") //nolint:usetesting // the parent of t.TempDir is closed to PostgreSQL's account
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
}

func TestTheDemoAgreesStaysAndLeavesNothing(t *testing.T) {
	openTemp(t)
	ctx, interrupt := context.WithCancel(t.Context())
	stdout := &trigger{on: "The same in SQL", do: interrupt}
	var stderr bytes.Buffer
	code := run(ctx, []string{"--hearings", "15", "--seed", "3", "--keep"}, noEnv, stdout, &stderr)
	if code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, stderr.String(), stdout.String())
	}
	for _, want := range []string{"hearings                   15      15", "lost                        0       0\n", "changes made: the court took 0, the clinic", "All 15 hearings are at the court and at the clinic", "Clerks:     http://127.0.0.1:", "Operators:  http://127.0.0.1:"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("the result does not say %q:\n%s", want, stdout.String())
		}
	}
	for _, want := range []string{"the court is down", "the clinic is busy", "relay 2 killed", "relay 2 is started again"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("the progress does not say %q:\n%s", want, stderr.String())
		}
	}
	both := stdout.String() + stderr.String()
	if strings.Contains(both, "\x1b") {
		t.Error("escape sequences were written to what is no terminal")
	}
	list, err := hearings(15)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range list {
		if strings.Contains(both, h.CaseName) {
			t.Errorf("the case name of %s was printed; it may hold names of parties", h.ID)
		}
	}
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestADifferenceFailsTheDemo(t *testing.T) {
	openTemp(t)
	var stdout, stderr bytes.Buffer
	d := newDemo(options{hearings: 6, seed: 1}, noEnv, &stdout, &stderr)
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := d.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := d.world.watchRelays(t.Context())
	if err := d.traffic.work(ctx, d.traffic.all, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.drained(ctx); err != nil {
		t.Fatal(err)
	}
	if code, err := d.conclude(ctx); code != 0 || err != nil {
		t.Fatalf("before the difference: exit code %d, %v\n%s", code, err, stdout.String())
	}
	noFileHolds(t, d.world.dir, d.world.password)
	// Somebody changes a hearing by hand, first at the clinic, then also at the court.
	for _, tc := range []struct {
		sys       *system
		booking   string
		different string
		says      string
	}{
		{d.world.clinic, `{"case_reference": "H-2027-000003", "start": "2027-03-05T10:00:00Z", "room": "Cellar", "status": "booked"}`, "0       1", `"Cellar" at the clinic`},
		{d.world.court, `{"case_reference": "H-2027-000002", "start_time": "2027-03-05T10:00:00Z", "courtroom": "Attic", "status": "booked"}`, "1       1", `"Attic" at the court`},
	} {
		stdout.Reset()
		meddle(t, tc.sys, tc.booking)
		code, err := d.conclude(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if code != 1 {
			t.Errorf("%s: exit code %d, want 1", tc.sys.name, code)
		}
		for _, want := range []string{"different                   " + tc.different, ": the start is", tc.says, "belongs to no event", "What does not agree"} {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%s: the result does not say %q:\n%s", tc.sys.name, want, stdout.String())
			}
		}
		if strings.Contains(stdout.String(), "✓") {
			t.Errorf("%s: the result claims success", tc.sys.name)
		}
	}
}

// noFileHolds looks for a secret in the files of the relays.
func noFileHolds(t *testing.T, dir, secret string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 3 {
		t.Fatalf("the configuration and two logs are not in %s: %v (%v)", dir, files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s holds the clinic's password", f.Name())
		}
	}
}

// meddle changes a system's calendar without the relays.
func meddle(t *testing.T, sys *system, booking string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, sys.url+"/api/calendar", strings.NewReader(booking))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the %s answered %s", sys.name, resp.Status)
	}
}

func TestAnInterruptedDemoCleansUp(t *testing.T) {
	openTemp(t)
	ctx, interrupt := context.WithCancel(t.Context())
	stderr := &trigger{on: "court and clinic are well", do: interrupt}
	if code := run(ctx, []string{"--hearings", "15"}, noEnv, &bytes.Buffer{}, stderr); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("no word about the interruption:\n%s", stderr.String())
	}
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// trigger does something once a text was written to it.
type trigger struct {
	text bytes.Buffer // not embedded: its WriteString would bypass Write
	on   string
	do   func()
}

func (w *trigger) Write(b []byte) (int, error) {
	n, err := w.text.Write(b)
	if strings.Contains(w.String(), w.on) {
		w.do()
	}
	return n, err
}

func (w *trigger) String() string { return w.text.String() }

func TestARelayThatDiesByItselfEndsTheDemo(t *testing.T) {
	openTemp(t)
	var stderr bytes.Buffer
	d := newDemo(options{hearings: 6, seed: 1}, noEnv, &bytes.Buffer{}, &stderr)
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	var err error
	if d.world, err = startWorld(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	ctx := d.world.watchRelays(t.Context())
	if err := d.world.relay(relay1).cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if cause := context.Cause(ctx).Error(); !strings.Contains(cause, "relay-1 ended by itself") {
		t.Errorf("the cause is %q", cause)
	}
}

func TestWithoutPostgreSQLItSaysHowToGetOne(t *testing.T) {
	empty := t.TempDir()
	t.Setenv("PATH", empty)
	t.Setenv(pgtest.EnvRoute, string(pgtest.URL))
	t.Setenv(pgtest.EnvURL, "")
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), nil, noEnv, &stdout, &stderr)
	if code != 1 || !strings.Contains(stderr.String(), pgtest.EnvURL) {
		t.Errorf("exit code %d\n%s", code, stderr.String())
	}
}

func TestUsageAndItsMistakes(t *testing.T) {
	for name, tc := range map[string]struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		"help":             {[]string{"--help"}, 0, "--keep", ""},
		"unknown flag":     {[]string{"--hearing"}, 2, "", "-hearing"},
		"argument":         {[]string{"all"}, 2, "", `"all"`},
		"no hearings":      {[]string{"--hearings", "0"}, 2, "", "between 1 and"},
		"too many":         {[]string{"--hearings", "1000000"}, 2, "", "between 1 and"},
		"seed is a number": {[]string{"--seed", "x"}, 2, "", "-seed"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), tc.args, noEnv, &stdout, &stderr)
			if code != tc.code || !strings.Contains(stdout.String(), tc.stdout) || !strings.Contains(stderr.String(), tc.stderr) {
				t.Errorf("exit code %d\nstdout: %s\nstderr: %s", code, stdout.String(), stderr.String())
			}
		})
	}
}

// TestHintsWorkWhenPasted pastes the lines of --keep into a shell.
func TestHintsWorkWhenPasted(t *testing.T) {
	openTemp(t)
	for _, program := range []string{"sh", "curl", "psql"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: the lines that --keep prints need it", err)
		}
	}
	w, err := startWorld(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	}()
	d := newDemo(options{}, noEnv, io.Discard, io.Discard)
	d.world, d.traffic = w, newTraffic(w.schedulingURL, nil, 1)
	if err := d.exhibit(t.Context()); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("set -eu\n")
	for line := range strings.Lines(w.fill(hints)) {
		if line, ok := strings.CutPrefix(line, "  "); ok {
			script.WriteString(line)
			if strings.HasPrefix(line, "curl") && strings.Contains(line, "/hearings ") {
				script.WriteString(waitFor(w, "EXISTS (SELECT FROM outbox.delivery WHERE key = 'H-TRY-1' AND state = 'failed')"))
			}
			if strings.HasPrefix(line, "lockstep requeue") && !strings.Contains(line, "--dry-run") {
				script.WriteString(waitFor(w, "NOT EXISTS (SELECT FROM outbox.delivery WHERE key = 'H-TRY-1')"))
			}
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script.String())
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), w.password) {
		t.Errorf("the output holds the clinic's password:\n%s", out)
	}
	for _, want := range []string{
		w.court.sync, w.clinic.sync, `"case_reference":"H-TRY-1"`, "HTTP 422", "requeued", `"room":"Court 3"`, "<cal:reference>H-TRY-1",
		"DEMO-REFUSED", "the courthouse moves to new computers", "/maria", "the court has corrected its list of rooms", "waits behind",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the output does not say %q:\n%s", want, out)
		}
	}
}

// waitFor is a line of shell that waits until the query is true.
func waitFor(w *world, condition string) string {
	return `until [ "$(psql '` + w.databaseURL + `' -Atc "SELECT ` + condition + `")" = t ]; do sleep 0.1; done` + "\n"
}

// The first go run of a fresh clone prints nothing for a minute or more.
func TestMakeSaysThatItCompiles(t *testing.T) {
	plan := exec.CommandContext(t.Context(), "make", "-n", "demo")
	plan.Dir = filepath.Join("..", "..")
	out, err := plan.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	says, runs := strings.Index(string(out), "compiling the demo"), strings.Index(string(out), "go run")
	if says < 0 || runs < says {
		t.Errorf("make demo runs\n%s", out)
	}
	plan = exec.CommandContext(t.Context(), "make", "-n", "demo", "KEEP=1")
	plan.Dir = filepath.Join("..", "..")
	if out, err = plan.CombinedOutput(); err != nil || !strings.Contains(string(out), "./cmd/demo --keep") {
		t.Errorf("make demo KEEP=1 runs\n%s%v", out, err)
	}
}

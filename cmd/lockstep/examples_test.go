package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// TestExamplesRun runs every example of every help text in a shell, each on a database of
// its own that has what the examples speak of.
func TestExamplesRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Symlink(program(t), filepath.Join(dir, "lockstep")); err != nil {
		t.Fatal(err)
	}
	for _, stub := range []string{"psql", "alert"} {
		if err := os.WriteFile(filepath.Join(dir, stub), []byte("#!/bin/sh\ncat > /dev/null\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	relay := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }))
	defer relay.Close()
	listing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, `[{"case": "H-2027-000007"}]`) }))
	defer listing.Close()
	address := strings.TrimPrefix(relay.URL, "http://")
	yaml := fmt.Sprintf(courtYAML, "http://127.0.0.1:1") + `
  - {name: ClinicSync, event: clinic:closed, from: now, adapter: {kind: rest, url: "http://127.0.0.1:1/"}}
`
	found := 0
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		for line := range strings.Lines(c.Example) {
			found++
			s := exampleShell{t: t, dir: t.TempDir(), path: dir, database: pgtest.New(t)}
			s.prepare(line)
			listen := address
			if c.Name() == "console" || c.Name() == "run" || strings.Contains(line, "lockstep run") {
				listen = "127.0.0.1:0"
			}
			for _, name := range []string{"lockstep.yaml", "court.yaml"} {
				own := strings.ReplaceAll(yaml, "listen: 127.0.0.1:0", "listen: "+listen)
				if c.Name() == "reconcile" {
					own = strings.Replace(own, "external_id: /id,", fmt.Sprintf(`external_id: /id, list: {url: "%s", key: /case, fields: {case_reference: /case}},`, listing.URL), 1)
				}
				if c.Name() == "doctor" { // which connects
					own = strings.ReplaceAll(own, "http://127.0.0.1:1/", relay.URL+"/")
				}
				writeFile(t, filepath.Join(s.dir, name), own)
			}
			writeFile(t, filepath.Join(s.dir, "hearing.json"), `{"hearingId": "H-2027-000007"}`)
			writeFile(t, filepath.Join(s.dir, "court.csv"), "key,external_id,etag\nH-2027-000007,CAL-4711,\n")
			line = strings.NewReplacer("127.0.0.1:9464", address, "postgres://owner@db/agency", s.database,
				"--until 2027", "--until 2099").Replace(strings.TrimSpace(line))
			s.run(line)
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit((&app{}).root())
	if found < 50 {
		t.Errorf("only %d examples found", found)
	}
}

// exampleShell runs one example.
type exampleShell struct {
	t                   *testing.T
	dir, path, database string
}

// prepare adds the event of the examples: failed for examples that need it so, and
// delivered for the others.
func (s exampleShell) prepare(line string) {
	s.t.Helper()
	ctx := s.t.Context()
	conn, err := pgx.Connect(ctx, s.database)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if strings.Contains(line, "migrate down") && !strings.Contains(line, "--force") {
		return // it refuses to drop anything
	}
	statements := []string{
		`INSERT INTO outbox.sync (name, patterns) VALUES ('CourtCalendarSync', '{scheduling:*}'), ('ClinicSync', '{clinic:closed}'), ('OldCourtSync', '{court:closed}')`,
		`INSERT INTO outbox.event (id, type, key, payload) VALUES ('0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d', 'scheduling:updated', 'H-2027-000007', '{"hearingId": "H-2027-000007"}')`,
	}
	switch {
	case strings.Contains(line, "requeue"), strings.Contains(line, "discard"):
		statements = append(statements, `UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'mapping', error = 'no field'`)
	case strings.Contains(line, "doctor"):
		statements = append(statements, `INSERT INTO outbox.heartbeat (instance, name, syncs, started_at, seen_at)
			SELECT gen_random_uuid(), 'relay-1', array_agg(name), now(), now() FROM outbox.sync`)
	default:
		statements = append(statements, `SELECT setval(pg_get_serial_sequence('outbox.delivery_log', 'id'), 5000)`,
			`INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, attempt, revision, outcome, code, answered_at)
			 SELECT d.sync, d.event_id, 'scheduling:updated', d.key, 1, 1, 'delivered', 'HTTP 201', clock_timestamp() FROM outbox.delivery AS d`,
			`DELETE FROM outbox.delivery`, `SELECT outbox.set_reference('CourtCalendarSync', 'H-2027-000007', 'CAL-1', NULL, 'r')`)
	}
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			s.t.Fatalf("%s: %v", statement, err)
		}
	}
}

// run runs a line. It interrupts a command that has no end as soon as it works.
func (s exampleShell) run(line string) {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), "sh", "-c", line)
	endless := ""
	switch {
	case strings.Contains(line, "lockstep run"):
		endless = "relay running"
	case strings.Contains(line, "lockstep console"):
		endless = "serving the console"
	case strings.Contains(line, "--follow"):
		endless = "CourtCalendarSync"
	}
	if endless != "" {
		cmd.Args[2] = "exec " + line
	}
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "DATABASE_URL="+s.database, "COURT_TOKEN=x", "LOCKSTEP_CONFIG=", "COLUMNS=", "PATH="+s.path+string(os.PathListSeparator)+os.Getenv("PATH"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	var said strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if endless != "" && strings.Contains(lines.Text(), endless) {
			_ = cmd.Process.Signal(os.Interrupt)
			endless = ""
		}
	}
	if err := cmd.Wait(); err != nil {
		s.t.Errorf("%s: %v:\n%s", line, err, said.String())
	}
}

package main

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// Each program of docs/writers changes a hearing and writes the event in one
// transaction, as a login of outbox_writer, and a relay delivers it.
func TestDocumentedWriters(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(root, "docs", "writers", name) }
	for name, command := range map[string][]string{
		"SQL":    {"sh", "-c", `exec psql -X -q -v id="$1" -v hearing="$2" -v room="$3" -v traceparent="$4" -f "$0" "$DATABASE_URL"`, file("reschedule.sql")},
		"Python": {"/usr/bin/python3", file("reschedule.py")}, // Debian's: it has the package python3-psycopg
		"Node":   {"node", file("reschedule.js")},
		"Java":   {"java", "-cp", "/usr/share/java/postgresql.jar", file("Reschedule.java")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
			for _, sql := range []string{
				"CREATE TABLE hearing (id text PRIMARY KEY, scheduled_at timestamptz NOT NULL, room text NOT NULL, version bigint NOT NULL)",
				"INSERT INTO hearing VALUES ('H-1', '2027-03-01T10:00:00-05:00', '3A', 1)",
				"GRANT SELECT, UPDATE ON hearing TO outbox_writer",
			} {
				if _, err := w.conn.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			writer := pgtest.AsRole(t, w.env["DATABASE_URL"], "outbox_writer")
			reschedule := func(id, room, traceparent string) result {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), command[0], append(command[1:len(command):len(command)], id, "H-1", room, traceparent)...)
				cmd.Env = append(os.Environ(), "DATABASE_URL="+writer, "JDBC_URL="+jdbc(t, writer),
					"NODE_PATH="+filepath.Join(root, "internal", "testtools", "node", "node_modules"))
				var stdout, stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = &stdout, &stderr
				if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
					t.Fatal(err)
				}
				return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
			}
			hearing := func(want string) {
				t.Helper()
				if got := ask[string](w, "SELECT room || ' ' || version FROM hearing"); got != want {
					t.Errorf("the hearing is %q, want %q", got, want)
				}
			}
			const (
				first, second = "7d444840-9dc0-11d1-b245-5ffdce74fad2", "7d444840-9dc0-11d1-b245-5ffdce74fad3"
				traceparent   = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			)

			if r := reschedule(first, "4B", traceparent); r.code != 0 {
				t.Fatalf("exit code %d: %s%s", r.code, r.stdout, r.stderr)
			}
			hearing("4B 2")
			got := ask[string](w, `SELECT concat_ws(' ', type, key, version, payload ->> 'location', (payload ->> 'scheduledAt')::timestamptz AT TIME ZONE 'UTC', headers ->> 'traceparent')
				FROM outbox.event WHERE id = '`+first+`'`)
			if want := "scheduling:updated H-1 2 4B 2027-03-01 15:00:00 " + traceparent; got != want {
				t.Errorf("the event is %q, want %q", got, want)
			}
			if n := ask[int](w, "SELECT count(*) FROM outbox.delivery"); n != 1 {
				t.Errorf("%d deliveries, want 1", n)
			}

			// The same request once more changes nothing. Only SQL alone reports it as an error.
			if r := reschedule(first, "5C", traceparent); !strings.Contains(r.stdout+r.stderr, "already written") && !strings.Contains(r.stderr, "23505") {
				t.Errorf("a repeated request: exit code %d: %s%s", r.code, r.stdout, r.stderr)
			}
			hearing("4B 2")

			// A refused event takes the change of the hearing with it.
			if r := reschedule(second, "5C", strings.Repeat("x", 20_000)); r.code == 0 || !strings.Contains(r.stderr, "23514") || !strings.Contains(r.stderr, "event_headers_size") {
				t.Errorf("headers of 20,000 bytes: exit code %d: %s%s", r.code, r.stdout, r.stderr)
			}
			hearing("4B 2")
			if n := ask[int](w, "SELECT count(*) FROM outbox.event"); n != 1 {
				t.Errorf("%d events, want 1", n)
			}

			w.relayUntil(fmt.Sprintf("SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE event_id = '%s' AND outcome = 'delivered')", first))
		})
	}
}

// jdbc returns a database URL in the form of JDBC.
func jdbc(t *testing.T, database string) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	query := u.Query()
	query.Set("user", u.User.Username())
	query.Set("password", password)
	return "jdbc:postgresql://" + u.Host + u.Path + "?" + query.Encode()
}

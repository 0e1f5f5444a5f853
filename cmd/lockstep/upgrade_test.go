package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// nextRelease builds lockstep like a next release: made for schema 3, which has
// one more migration that adds a column.
func nextRelease(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(root, "outbox", "store.go")
	code, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(string(code), "const Schema = 3\n", "const Schema = 4\n", 1)
	if newer == string(code) {
		t.Fatal("outbox.Schema is not found")
	}
	dir := t.TempDir()
	replace := map[string]string{store: filepath.Join(dir, "store.go"), filepath.Join(root, "migrations", "outbox", "00004_note.sql"): filepath.Join(dir, "note.sql")}
	writeFile(t, filepath.Join(dir, "store.go"), newer)
	writeFile(t, filepath.Join(dir, "note.sql"), `-- +goose Up
SET LOCAL lock_timeout = '1s';
ALTER TABLE outbox.event ADD COLUMN note text;
-- +goose Down
SET LOCAL lock_timeout = '1s';
ALTER TABLE outbox.event DROP COLUMN note;
`)
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "overlay.json"), string(overlay))
	return program(t, "-overlay", filepath.Join(dir, "overlay.json"))
}

// named sets the name of relays that are spawned later.
func (w *world) named(relay string) {
	w.t.Helper()
	w.configure(strings.ReplaceAll(fmt.Sprintf(courtYAML, w.court.URL), "name: relay-1", "name: "+relay))
}

func TestRollingUpgrade(t *testing.T) {
	w := newWorld(t)
	older, newer := program(t), nextRelease(t)
	w.named("older")
	old := w.spawn(older)
	old.says(t, "relay running")
	w.named("newer")
	w.execute(newer, "run").wants(t, exitFailed, "it is version 3, this program needs 4; run: lockstep migrate up")

	// First the schema, while a relay runs, then a second relay of the next release.
	w.execute(newer, "migrate", "up").wants(t, 0, "schema outbox is at version 4")
	w.execute(newer, "migrate", "status").wants(t, 0, "00004_note.sql", "at version 4 and serves programs made for version 1 and newer; this one is made for 4")
	w.execute(older, "migrate", "up").wants(t, 0, "schema outbox is at version 4") // there is nothing to do for it
	w.execute(older, "status").wants(t, 0, "CourtCalendarSync")
	successor := w.spawn(newer)
	successor.says(t, "relay running")
	const both = `SELECT count(DISTINCT relay) = 2 FROM outbox.delivery_log WHERE outcome = 'delivered' AND id > $1`
	from := ask[int64](w, `SELECT coalesce(max(id), 0) FROM outbox.delivery_log`)
	for n := 0; !ask[bool](w, both, from); n++ {
		if n == 200 {
			t.Fatal("one of the relays delivers nothing")
		}
		for key := range 50 {
			w.emit(fmt.Sprint("H-", key), fmt.Sprintf(`{"hearingId":"H-%d"}`, key))
		}
		w.eventually(nothingOpen)
	}

	// After a later migration, the older relay ends by itself and the newer one stays.
	w.serves(4)
	old.says(t, "schema has changed under this relay")
	const left = "it is version 4, which serves programs made for version 4 and newer, and this one is made for 3; install a newer lockstep"
	if line := old.says(t, "lockstep failed"); !strings.Contains(fmt.Sprint(line["error"]), left) {
		t.Errorf("said %v", line)
	}
	old.exits(t, exitFailed)
	w.execute(older, "run").wants(t, exitFailed, "install a newer lockstep")
	w.execute(older, "status").wants(t, exitFailed, "install a newer lockstep")
	w.emit("H-1", `{"hearingId":"H-1"}`)
	w.eventually(nothingOpen)
	if events, sent := ask[int](w, `SELECT count(*) FROM outbox.event`), w.court.count(); sent != events {
		t.Errorf("the court was sent %d requests for %d events", sent, events)
	}
	if err := successor.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	successor.exits(t, 0)
}

// serves sets the oldest version that the schema serves, like a migration.
func (w *world) serves(oldest int) {
	w.t.Helper()
	_, err := w.conn.Exec(w.t.Context(), fmt.Sprintf(`CREATE OR REPLACE FUNCTION outbox.oldest_relay() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT %d::bigint'`, oldest))
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestMigrateNamesTheSessionThatHoldsTheLock(t *testing.T) {
	w := newWorld(t)
	tx, err := w.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `SELECT count(*) FROM outbox.event`); err != nil {
		t.Fatal(err)
	}
	p := w.spawnAs(program(t), "migrate", "down")
	p.says(t, fmt.Sprintf("is held by pid %d (user ", w.conn.PgConn().PID()))
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.says(t, "everything in schema outbox is removed")
	p.exits(t, 0)
}

// If the URL has several hosts, commands that write take the one that accepts
// writes. Others take the first one.
func TestCommandsThatWriteFindThePrimary(t *testing.T) {
	primary, err := url.Parse(pgtest.Empty(t))
	if err != nil {
		t.Fatal(err)
	}
	server, _ := pgtest.Own(t, pgtest.Options{Fsync: true})
	name := strings.TrimPrefix(primary.Path, "/")
	if err := server.CreateDatabase(t.Context(), name, ""); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), server.URL(name))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := primary.User.Password()
	login := pgx.Identifier{primary.User.Username()}.Sanitize()
	_, err = conn.Exec(t.Context(), fmt.Sprintf(`
DO $$ BEGIN CREATE ROLE %s SUPERUSER LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
ALTER ROLE %[1]s PASSWORD '%s';
ALTER DATABASE %s SET default_transaction_read_only = on`, login, password, pgx.Identifier{name}.Sanitize()))
	if err != nil {
		t.Fatal(err)
	}
	standby := conn.Config()
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	hosts := *primary
	hosts.Host = fmt.Sprintf("%s:%d,%s", standby.Host, standby.Port, primary.Host)
	t.Chdir(t.TempDir())
	s := &shell{t: t, env: map[string]string{"DATABASE_URL": hosts.String()}}
	s.run("migrate", "up").wants(t, 0, "schema outbox is at version 3")
	s.run("migrate", "status", "--database-url", primary.String()).wants(t, 0, "applied")
	s.run("pause", "CourtCalendarSync", "--reason", "x").wants(t, exitFailed, `sync "CourtCalendarSync" is not registered`) // asked of a schema
	hosts.Host = fmt.Sprintf("%s:%d,127.0.0.1:1", standby.Host, standby.Port)
	s.env["DATABASE_URL"] = hosts.String()                                          // the primary is gone
	s.run("status").wants(t, exitFailed, `relation "outbox.status" does not exist`) // asked of the other, which has no schema
	hosts.Host = fmt.Sprintf("%s:%d", standby.Host, standby.Port)
	s.env["DATABASE_URL"] = hosts.String()
	s.run("migrate", "up").wants(t, exitFailed, "no host in the URL accepts writes to database", "set for the database: turn it off with ALTER DATABASE")
}

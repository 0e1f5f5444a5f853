package main

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// Every command says in one line that it cannot work with the database.
func TestCommandsRefuseADatabaseThatIsNotUTF8(t *testing.T) {
	u, err := url.Parse(pgtest.Empty(t))
	if err != nil {
		t.Fatal(err)
	}
	admin, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	u.Path += "_latin1"
	name := strings.TrimPrefix(u.Path, "/")
	t.Cleanup(func() {
		if _, err := admin.Exec(context.Background(), "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
		_ = admin.Close(context.Background())
	})
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0 LOCALE 'C' ENCODING 'LATIN1'"); err != nil {
		t.Fatal(err)
	}
	s := &shell{t: t, env: map[string]string{"DATABASE_URL": u.String()}}
	for _, command := range []string{"migrate up", "migrate status", "status", "sync list"} {
		got := s.run(strings.Fields(command)...)
		got.wants(t, exitFailed, "needs a database in the encoding UTF8, and this one is in LATIN1")
		if strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%s says\n%s", command, got.stderr)
		}
	}
}

func TestRepairAddsDeliveriesOfEventsWrittenWithTriggersOff(t *testing.T) {
	url := pgtest.New(t)
	admin, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(context.Background()) }()
	_, err = admin.Exec(t.Context(), `
INSERT INTO outbox.sync (name, patterns) VALUES ('CourtCalendarSync', '{scheduling:*}');
SET session_replication_role = replica;
INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'H-' || n, '{}' FROM generate_series(1, 1001) AS n;
INSERT INTO outbox.event (type, key, payload) VALUES ('nobody:listens', 'H-1', '{}');
RESET session_replication_role`)
	if err != nil {
		t.Fatal(err)
	}
	owner := &shell{t: t, env: map[string]string{"DATABASE_URL": url}}
	s := owner.as("outbox_operator")
	s.run("status").wants(t, 0, "CourtCalendarSync")
	s.run("repair", "--dry-run").wants(t, 0, "H-1001", "(no sync matches)", "1001 deliveries would be added; nothing was changed")
	s.run("status").wants(t, 0, "1001 events without delivery, see: lockstep repair", "1 event without delivery")
	s.run("repair", "--reason", "loaded by hand", "--output", "jsonl").wants(t, 0, `"sync":"CourtCalendarSync"`, `"sync":null`, "1001 deliveries added")
	s.run("repair").wants(t, 0, "every event has its deliveries: there is nothing to repair")
	s.run("status").wants(t, 0, "CourtCalendarSync")
	owner.as("outbox_auditor").run("repair").wants(t, exitFailed, "it needs the role outbox_operator")
	s.run("repair", "H-1").wants(t, exitUsage)
}

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

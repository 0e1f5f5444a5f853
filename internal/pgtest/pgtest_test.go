package pgtest

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(helperEnv); role != "" {
		helper(role)
		return
	}
	Main(m)
}

func TestNewIsMigrated(t *testing.T) {
	conn := connect(t, New(t))
	for _, table := range []string{"outbox.event", "outbox.delivery", "outbox.delivery_log"} {
		if !queryOne[bool](t, conn, "SELECT to_regclass($1) IS NOT NULL", table) {
			t.Errorf("%s is missing", table)
		}
	}
	if !queryOne[bool](t, conn, "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = 'scheduling')") {
		t.Error("the scheduling module's tables are missing")
	}
}

func TestEmptyIsEmpty(t *testing.T) {
	conn := connect(t, Empty(t))
	got := queryOne[int64](t, conn,
		"SELECT count(*) FROM pg_class WHERE relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace)")
	if got != 0 {
		t.Errorf("%d tables in an empty database", got)
	}
}

func TestDatabasesAreIndependent(t *testing.T) {
	one, two := connect(t, New(t)), connect(t, New(t))
	execute(t, one, "CREATE TABLE mine ()")
	if queryOne[bool](t, two, "SELECT to_regclass('mine') IS NOT NULL") {
		t.Error("a table made in one database is seen in another")
	}
}

func TestDatabaseIsDroppedWithItsTest(t *testing.T) {
	var name string
	t.Run("user", func(t *testing.T) {
		// The connection is open when the test ends. The database must be dropped
		// nevertheless.
		name = queryOne[string](t, connect(t, New(t)), "SELECT current_database()")
	})
	conn := connect(t, Empty(t))
	if queryOne[bool](t, conn, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name) {
		t.Errorf("database %s was not dropped", name)
	}
}

func TestAsRole(t *testing.T) {
	database := New(t)
	const insert = "INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:created', 'k', '{}')"
	tests := []struct {
		name, group, sql string
		allowed          bool
	}{
		{"writer inserts an event", "outbox_writer", insert, true},
		{"writer reads no delivery", "outbox_writer", "SELECT FROM outbox.delivery", false},
		{"writer reads no log", "outbox_writer", "SELECT FROM outbox.delivery_log", false},
		{"auditor reads the log", "outbox_auditor", "SELECT FROM outbox.delivery_log", true},
		{"auditor inserts no event", "outbox_auditor", insert, false},
		{"relay inserts no event", "outbox_relay", insert, false},
		{"writer becomes no superuser", "outbox_writer", "SET ROLE postgres", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := connect(t, AsRole(t, database, tt.group))
			_, err := conn.Exec(t.Context(), tt.sql)
			var refused *pgconn.PgError
			switch {
			case tt.allowed && err != nil:
				t.Errorf("refused: %v", err)
			case !tt.allowed && (!errors.As(err, &refused) || refused.Code != "42501"):
				t.Errorf("got error %v, want insufficient privilege (42501)", err)
			}
		})
	}
	left := queryOne[int64](t, connect(t, database),
		"SELECT count(*) FROM pg_auth_members WHERE roleid IN ('outbox_writer'::regrole, 'outbox_auditor'::regrole, 'outbox_relay'::regrole) AND pg_get_userbyid(member) LIKE 'outbox_%'")
	// Another binary on the same server may be running this very test.
	if left != 0 && sharedRoute(t) != URL {
		t.Errorf("%d roles were not dropped", left)
	}
}

func TestRouteIsTheOneAskedFor(t *testing.T) {
	got := sharedRoute(t)
	want := Route(os.Getenv(EnvRoute))
	switch {
	case want != "" && got != want:
		t.Errorf("got route %q, want %q", got, want)
	case want == "" && os.Getenv(EnvURL) != "" && got != URL:
		t.Errorf("got route %q although %s is set", got, EnvURL)
	}
}

func BenchmarkNew(b *testing.B) {
	New(b) // builds the template
	for b.Loop() {
		b.StopTimer()
		name := databaseName()
		b.StartTimer()
		if err := binary.server.CreateDatabase(b.Context(), name, binary.template); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := binary.server.DropDatabase(b.Context(), name); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// sharedRoute returns the route of this test binary's server.
func sharedRoute(t *testing.T) Route {
	t.Helper()
	Empty(t)
	return binary.server.Route()
}

// connect opens a connection that lasts as long as the test.
func connect(t testing.TB, databaseURL string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func execute(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func queryOne[T any](t testing.TB, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

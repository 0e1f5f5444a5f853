package pgtest

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestEndAndBootKeepCommittedRows(t *testing.T) {
	ends := map[string]func(*Server) error{
		"kill":     (*Server).Kill,
		"shutdown": func(s *Server) error { return s.Shutdown(context.Background()) },
	}
	for _, route := range routesHere(t) {
		for name, end := range ends {
			t.Run(string(route)+"/"+name, func(t *testing.T) {
				s := start(t, Options{Route: route})
				if err := s.CreateDatabase(t.Context(), "kept", ""); err != nil {
					t.Fatal(err)
				}
				conn := connect(t, s.URL("kept"))
				execute(t, conn, "CREATE TABLE fact (n int)")
				execute(t, conn, "INSERT INTO fact VALUES (1), (2)")
				open, err := conn.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := open.Exec(t.Context(), "INSERT INTO fact VALUES (3)"); err != nil {
					t.Fatal(err)
				}

				if err := end(s); err != nil {
					t.Fatal(err)
				}
				if err := conn.Ping(t.Context()); err == nil {
					t.Error("a session survived")
				}
				if c, err := pgx.Connect(t.Context(), s.URL("kept")); err == nil {
					_ = c.Close(t.Context())
					t.Error("a server that was ended takes connections")
				}
				if err := end(s); err == nil {
					t.Error("a server that was ended could be ended again")
				}

				if err := s.Boot(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := queryOne[int64](t, connect(t, s.URL("kept")), "SELECT count(*) FROM fact"); got != 2 {
					t.Errorf("%d rows after the boot, want the 2 that were committed", got)
				}
				if err := s.Boot(t.Context()); err == nil {
					t.Error("a running server could be booted")
				}
			})
		}
	}
}

func TestCrashedServerBoots(t *testing.T) {
	s := start(t, Options{Route: Local})
	crash := s.engine.(*local).server
	if err := syscall.Kill(crash.pid, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	<-crash.done
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	connect(t, s.URL("postgres"))
}

func TestStandbyFollowsAndIsPromoted(t *testing.T) {
	primary := start(t, Options{Route: Local})
	standby, err := primary.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = standby.Stop() })
	execute(t, connect(t, primary.URL("postgres")), "CREATE TABLE fact (n int)")
	conn := connect(t, standby.URL("postgres"))
	for !queryOne[bool](t, conn, "SELECT to_regclass('fact') IS NOT NULL") {
		if t.Context().Err() != nil {
			t.Fatal("the standby does not follow")
		}
	}
	if !queryOne[bool](t, conn, "SELECT pg_is_in_recovery()") {
		t.Error("the standby is none")
	}
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	execute(t, conn, "INSERT INTO fact VALUES (1)")
}

func TestKillEndsBusySessions(t *testing.T) {
	s := start(t, Options{Route: Local})
	conn := connect(t, s.URL("postgres"))
	ended := make(chan error, 1)
	go func() {
		// This computes without waiting, so that it does not notice the postmaster's
		// death.
		_, err := conn.Exec(context.WithoutCancel(t.Context()), "SELECT count(*) FROM generate_series(1, 1e12::bigint)")
		ended <- err
	}()
	watch := connect(t, s.URL("postgres"))
	for !queryOne[bool](t, watch, "SELECT state = 'active' FROM pg_stat_activity WHERE pid = $1", conn.PgConn().PID()) {
		if t.Context().Err() != nil {
			t.Fatal("the query never started")
		}
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the query finished")
		}
	case <-time.After(time.Minute):
		t.Fatal("the session still computes")
	}
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestStopLeavesNothing(t *testing.T) {
	parent := openDir(t)
	s, err := Start(t.Context(), Options{Route: Local, Dir: parent})
	if err != nil {
		t.Fatal(err)
	}
	postmaster := s.engine.(*local).server.pid
	connect(t, s.URL("postgres")) // a session must not delay the stop
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Kill(postmaster, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("postmaster %d: got %v, want it gone", postmaster, err)
	}
	var d net.Dialer
	if conn, err := d.DialContext(t.Context(), "tcp", s.admin.Host); err == nil {
		_ = conn.Close()
		t.Errorf("%s still accepts connections", s.admin.Host)
	}
	if left := directories(t, parent); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := s.Boot(t.Context()); err == nil {
		t.Error("a stopped server could be booted")
	}
}

func TestSettings(t *testing.T) {
	s := start(t, Options{Settings: map[string]string{"max_connections": "33", "application_name": "it's"}, Fsync: true})
	conn := connect(t, s.URL("postgres"))
	for name, want := range map[string]string{"max_connections": "33", "application_name": "it's", "fsync": "on", "synchronous_commit": "on"} {
		if got := queryOne[string](t, conn, "SELECT reset_val FROM pg_settings WHERE name = $1", name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

func TestStartFailureSaysWhy(t *testing.T) {
	parent := openDir(t)
	_, err := Start(t.Context(), Options{Route: Local, Dir: parent, Settings: map[string]string{"max_connections": "many"}})
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "max_connections"`) {
		t.Errorf("got error %v, want what the server said", err)
	}
	if left := directories(t, parent); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestForeignServerIsNotKilled(t *testing.T) {
	own := start(t, Options{Route: Local})
	t.Setenv(EnvURL, own.URL("postgres"))
	t.Setenv(EnvRoute, "")
	s := start(t, Options{})
	if got := s.Route(); got != URL {
		t.Fatalf("got route %q, want %q", got, URL)
	}
	if err := s.Kill(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Kill: got %v, want ErrUnsupported", err)
	}
	if _, err := s.Standby(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Standby: got %v, want ErrUnsupported", err)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	connect(t, own.URL("postgres")) // it still answers
}

func TestURLMistakesShowNoPassword(t *testing.T) {
	for name, value := range map[string]string{
		"keywords":    "host=localhost password=sesame",
		"broken":      "postgres://u:sesame@%zz/db",
		"no database": "postgres://u:sesame@localhost",
		"no server":   "postgres://u:sesame@127.0.0.1:1/db",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(EnvURL, value)
			t.Setenv(EnvRoute, "")
			_, err := Start(t.Context(), Options{})
			if err == nil || !strings.Contains(err.Error(), EnvURL) || strings.Contains(err.Error(), "sesame") {
				t.Errorf("got %v, want an error that names %s without the password", err, EnvURL)
			}
		})
	}
}

func TestUnknownRoute(t *testing.T) {
	if _, err := Start(t.Context(), Options{Route: "lxc"}); err == nil || !strings.Contains(err.Error(), "lxc") {
		t.Errorf("got %v, want an error that names the route", err)
	}
}

func TestFindPrograms(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	root := t.TempDir()
	if _, err := findPrograms(t.Context(), root+"/*/bin"); !errors.Is(err, errNoPostgres) {
		t.Errorf("got %v, want the instructions", err)
	}
	// 16 has no server: a client package was installed.
	for path, mode := range map[string]os.FileMode{
		"9.6/bin/initdb": 0o755, "9.6/bin/postgres": 0o755,
		"14/bin/initdb": 0o755, "14/bin/postgres": 0o755,
		"15/bin/initdb": 0o755, "15/bin/postgres": 0o755,
		"16/bin/initdb": 0o755, "16/bin/postgres": 0o644,
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	got, err := findPrograms(t.Context(), root+"/*/bin")
	if want := filepath.Join(root, "15/bin"); err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

// routesHere returns the routes by which this machine can start a server.
func routesHere(t *testing.T) []Route {
	t.Helper()
	routes := []Route{Local}
	if sharedRoute(t) == Container {
		routes = append(routes, Container)
	}
	return routes
}

// start starts a server for one test.
func start(t *testing.T, opts Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openDir is a t.TempDir that the server's account can enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func directories(t *testing.T, parent string) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/hms-mkt/lockstep/migrations"
)

// cleanupTimeout bounds what is done after a test, when its context has ended.
const cleanupTimeout = 30 * time.Second

// binary is the server that the tests of this binary share. It is a package
// variable because there is exactly one test binary, and testing offers no
// other place between TestMain and the tests.
var binary shared

// shared is a server started once, with a template migrated once.
type shared struct {
	start  sync.Once
	server *Server
	err    error

	migrate     sync.Once
	template    string
	templateErr error
}

// Main runs the tests of a package, a [testing.M] or what stands around one,
// stops the server they shared, and ends the process with the tests' exit code.
// A goroutine that outlives its tests is an error, unless a goleak option names
// it. Tests that call t.Parallel run three to a processor, unless -parallel says
// otherwise: tests with a database wait, most of the time.
func Main(m interface{ Run() int }, ignored ...goleak.Option) {
	flag.Parse()
	if err := AtOnce(3); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		os.Exit(1)
	}
	kept.keep()
	code := m.Run()
	if err := errors.Join(binary.stop(), kept.remove()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(append(ignored, reaperConnection())...); err != nil {
			fmt.Fprintf(os.Stderr, "pgtest: goroutines left behind by the tests: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// AtOnce runs so many tests to a processor at once, unless -parallel says otherwise
// or it was called before.
func AtOnce(perProcessor int) error {
	const parallel = "test.parallel"
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == parallel })
	if given {
		return nil
	}
	return flag.Set(parallel, strconv.Itoa(perProcessor*runtime.GOMAXPROCS(0)))
}

// reaperConnection names the goroutine by which testcontainers tells its reaper
// that this process lives: it has to last until the end.
func reaperConnection() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/testcontainers/testcontainers-go.(*Reaper).connect.func1")
}

// New returns the URL of a fresh database with all migrations applied, dropped
// when the test ends. The URL is a superuser's; see [AsRole].
func New(t testing.TB) string {
	t.Helper()
	s := binary.get(t)
	binary.migrate.Do(func() { binary.template, binary.templateErr = s.buildTemplate(context.Background()) })
	if binary.templateErr != nil {
		t.Fatalf("template database: %v", binary.templateErr)
	}
	return s.database(t, binary.template)
}

// Empty returns the URL of a fresh database without any schema of ours, dropped
// when the test ends.
func Empty(t testing.TB) string {
	t.Helper()
	return binary.get(t).database(t, "")
}

// Own starts a server for this test alone, which may harm it, and stops it when the
// test ends. The URL is that of an empty database.
func Own(t testing.TB, opts Options) (s *Server, database string) {
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
	const name = "agency"
	if err := s.CreateDatabase(t.Context(), name, ""); err != nil {
		t.Fatal(err)
	}
	return s, s.URL(name)
}

// SharedRoute tells how the server of this test binary was had.
func SharedRoute(t testing.TB) Route {
	t.Helper()
	return binary.get(t).Route()
}

// AsRole creates a login role that is a member of groupRole, such as
// outbox_writer, and returns databaseURL with it in place of the user. The role
// is dropped when the test ends, with its privileges in that database.
func AsRole(t testing.TB, databaseURL, groupRole string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal("pgtest: AsRole: the database URL cannot be parsed") // the error would show the password
	}
	// Roles belong to the whole server, hence the random part.
	name, password := groupRole+"_"+token(), rand.Text()
	role := pgx.Identifier{name}.Sanitize()
	err = runSQL(t.Context(), databaseURL,
		"CREATE ROLE "+role+" LOGIN PASSWORD '"+password+"' IN ROLE "+pgx.Identifier{groupRole}.Sanitize())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		err := runSQL(ctx, databaseURL,
			"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '"+name+"'",
			"DROP OWNED BY "+role,
			"DROP ROLE "+role)
		if err != nil {
			t.Errorf("role %s is left behind: %v", name, err)
		}
	})
	u.User = url.UserPassword(name, password)
	return u.String()
}

// get returns the shared server and starts it for the first that asks.
func (b *shared) get(t testing.TB) *Server {
	t.Helper()
	// Not the test's context: the server outlives the test that asked first.
	b.start.Do(func() { b.server, b.err = Start(context.Background(), Options{}) })
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.server
}

func (b *shared) stop() error {
	if b.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	var err error
	if b.template != "" && b.server.Route() == URL {
		err = b.server.dropTemplate(ctx, b.template)
	}
	return errors.Join(err, b.server.Stop())
}

// database creates a database for one test.
func (s *Server) database(t testing.TB, template string) string {
	t.Helper()
	name := databaseName()
	if err := s.CreateDatabase(t.Context(), name, template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		if err := s.DropDatabase(ctx, name); err != nil {
			t.Errorf("database %s is left behind: %v", name, err)
		}
	})
	return s.URL(name)
}

// buildTemplate creates the migrated database that the others are cloned from.
// Each test binary builds its own: one kept on a shared server could be of
// other migrations than those at hand.
func (s *Server) buildTemplate(ctx context.Context) (string, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	lock, err := pgx.Connect(ctx, s.admin.String())
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close(ctx) }()
	// The group roles belong to the whole server: two binaries that create them
	// at once would get in each other's way. The end of the session unlocks.
	if _, err := lock.Exec(ctx, "SELECT pg_advisory_lock(hashtextextended('lockstep pgtest template', 0))"); err != nil {
		return "", err
	}
	sweepDatabases(ctx, s, lock)
	name := databaseName()
	if err := s.CreateDatabase(ctx, name, ""); err != nil {
		return "", err
	}
	for _, set := range []migrations.Set{migrations.Outbox, migrations.Scheduling} {
		if err := migrations.Up(ctx, s.URL(name), set); err != nil {
			return "", errors.Join(err, s.DropDatabase(ctx, name))
		}
	}
	// Nobody may connect: CREATE DATABASE refuses a template that is in use.
	return name, s.exec(ctx, "ALTER DATABASE "+pgx.Identifier{name}.Sanitize()+" IS_TEMPLATE true ALLOW_CONNECTIONS false")
}

func (s *Server) dropTemplate(ctx context.Context, name string) error {
	return errors.Join(
		s.exec(ctx, "ALTER DATABASE "+pgx.Identifier{name}.Sanitize()+" IS_TEMPLATE false"),
		s.DropDatabase(ctx, name))
}

const (
	databasePrefix = "lockstep_test_"
	databaseTime   = "20060102150405"
)

// databaseName makes up a name that no other test binary makes up, and that
// tells when it was made.
func databaseName() string {
	return databasePrefix + time.Now().UTC().Format(databaseTime) + "_" + token()
}

func token() string { return strings.ToLower(rand.Text()[:10]) }

// sweepDatabases drops what test binaries that were killed a day ago or more
// have left on a shared server. What it cannot drop it leaves to the next.
func sweepDatabases(ctx context.Context, s *Server, conn *pgx.Conn) {
	if s.route != URL {
		return
	}
	rows, _ := conn.Query(ctx, "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", databasePrefix)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return
	}
	for _, name := range names {
		stamp, _, _ := strings.Cut(strings.TrimPrefix(name, databasePrefix), "_")
		made, err := time.Parse(databaseTime, stamp)
		if err == nil && time.Since(made) > 24*time.Hour {
			_ = s.dropTemplate(ctx, name)
		}
	}
}

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

// cleanupTimeout bounds the work after a test, when the test's context has ended.
const cleanupTimeout = 30 * time.Second

// binary is the server that the tests of this binary share. It is a package
// variable because testing offers no other place between TestMain and the tests.
var binary shared

// shared is a server that is started once, with a template that is migrated once.
type shared struct {
	start  sync.Once
	server *Server
	err    error

	migrate     sync.Once
	template    string
	templateErr error
}

// Main runs the tests of a package, stops their shared server, and exits with their
// exit code. m is a [testing.M], or a type that wraps one. A goroutine that outlives
// its tests is an error, unless a goleak option names it. Up to three parallel tests
// run on each processor, unless -parallel says otherwise, because tests with a database
// mostly wait.
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
			fmt.Fprintf(os.Stderr, "pgtest: goroutines of the tests have not ended: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// AtOnce sets how many parallel tests run on each processor. It does nothing if
// -parallel was given or AtOnce was called before.
func AtOnce(perProcessor int) error {
	const parallel = "test.parallel"
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == parallel })
	if given {
		return nil
	}
	return flag.Set(parallel, strconv.Itoa(perProcessor*runtime.GOMAXPROCS(0)))
}

// reaperConnection names the goroutine that tells the reaper of testcontainers that
// this process lives. It lasts until the process ends.
func reaperConnection() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/testcontainers/testcontainers-go.(*Reaper).connect.func1")
}

// New returns the URL of a fresh database with all migrations applied, dropped
// when the test ends. The URL is a superuser's; see [AsRole].
func New(t testing.TB) string {
	t.Helper()
	return fresh(t, true)
}

// Empty returns the URL of a fresh database without any schema of ours, dropped
// when the test ends.
func Empty(t testing.TB) string {
	t.Helper()
	return fresh(t, false)
}

func fresh(t testing.TB, migrated bool) string {
	t.Helper()
	databaseURL, drop, err := binary.database(t.Context(), migrated)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(); err != nil {
			t.Errorf("a database was not dropped: %v", err)
		}
	})
	return databaseURL
}

// ForExample is [New] for Example functions, which have no testing.TB: the
// caller drops the database. Without a database the process ends.
func ForExample() (databaseURL string, drop func()) {
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	databaseURL, dropIt, err := binary.database(context.Background(), true)
	must(err)
	return databaseURL, func() { must(dropIt()) }
}

// Own starts a server for this test alone, which may damage it. The server stops when
// the test ends. The URL names an empty database.
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

// AsRole creates a login that is a member of groupRole, such as outbox_writer. It
// returns databaseURL with this login as its user. The login and its privileges in that
// database are dropped when the test ends.
func AsRole(t testing.TB, databaseURL, groupRole string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal("pgtest: AsRole: the database URL cannot be parsed; want postgres://user@host:5432/database") // the error would show the password
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
			t.Errorf("role %s was not dropped: %v", name, err)
		}
	})
	u.User = url.UserPassword(name, password)
	return u.String()
}

// database creates a database on the shared server: a copy of the template, or an empty
// one. The first caller starts the server.
func (b *shared) database(ctx context.Context, migrated bool) (databaseURL string, drop func() error, err error) {
	// Not the caller's context: the server outlives the test that asked first.
	b.start.Do(func() { b.server, b.err = Start(context.Background(), Options{}) })
	if b.err != nil {
		return "", nil, b.err
	}
	template := ""
	if migrated {
		b.migrate.Do(func() { b.template, b.templateErr = b.server.buildTemplate(context.Background()) })
		if b.templateErr != nil {
			return "", nil, fmt.Errorf("template database: %w", b.templateErr)
		}
		template = b.template
	}
	name := databaseName()
	if err := b.server.CreateDatabase(ctx, name, template); err != nil {
		return "", nil, err
	}
	drop = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		return b.server.DropDatabase(ctx, name)
	}
	return b.server.URL(name), drop, nil
}

func (b *shared) stop() error {
	if b.server == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	var err error
	if b.template != "" && b.server.Route() == URL {
		err = b.server.DropDatabase(ctx, b.template)
	}
	return errors.Join(err, b.server.Stop())
}

// buildTemplate creates the migrated database from which the others are cloned. Each
// test binary builds its own, because binaries that share a server may have different
// migrations.
func (s *Server) buildTemplate(ctx context.Context) (string, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	lock, err := pgx.Connect(ctx, s.admin.String())
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close(ctx) }()
	// The group roles belong to the whole server, and two binaries cannot create them
	// at once. The end of the session unlocks.
	if _, err := lock.Exec(ctx, "SELECT pg_advisory_lock(hashtextextended('lockstep pgtest template', 0))"); err != nil {
		return "", err
	}
	name := databaseName()
	if err := s.CreateDatabase(ctx, name, ""); err != nil {
		return "", err
	}
	for _, set := range []migrations.Set{migrations.Outbox, migrations.Scheduling} {
		if err := migrations.Up(ctx, s.URL(name), set); err != nil {
			return "", errors.Join(err, s.DropDatabase(ctx, name))
		}
	}
	// CREATE DATABASE refuses a template that has a connection.
	return name, s.exec(ctx, "ALTER DATABASE "+pgx.Identifier{name}.Sanitize()+" ALLOW_CONNECTIONS false")
}

// databaseName returns a name that no other test binary uses.
func databaseName() string { return "lockstep_test_" + token() }

func token() string { return strings.ToLower(rand.Text()[:10]) }

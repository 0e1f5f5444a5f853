package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Environment variables that choose the server; see the package comment.
const (
	EnvURL   = "LOCKSTEP_TEST_DATABASE_URL"
	EnvImage = "LOCKSTEP_TEST_IMAGE"
	EnvRoute = "LOCKSTEP_TEST_ROUTE"
	EnvDir   = "LOCKSTEP_TEST_DIR"
)

// startTimeout bounds a start or boot whose context has no deadline.
const startTimeout = time.Minute

// Route is where a server comes from.
type Route string

// The routes, in the order in which Start tries them.
const (
	URL       Route = "url"       // it already runs
	Container Route = "container" // Docker, through testcontainers-go
	Local     Route = "local"     // the machine's own PostgreSQL programs
)

// Options chooses the kind of server. The zero value takes the first route that works.
type Options struct {
	Route    Route             // the only route to take; default: LOCKSTEP_TEST_ROUTE, or the first that works
	Settings map[string]string // lines for postgresql.conf, such as max_connections: 20; the URL route is skipped
	Fsync    bool              // run with fsync, for benchmarks; default: off; the URL route is skipped
	Env      []string          // variables such as LD_PRELOAD=… of the server process, on the local route only
	Dir      string            // parent of the local route's directory; default: see the package comment
}

// Server is a running PostgreSQL server. Its methods are safe for concurrent use.
type Server struct {
	route Route
	admin url.URL // superuser's URL of the maintenance database

	mu     sync.Mutex // serialises engine calls
	engine engine
}

// engine is what a route does with its server process.
type engine interface {
	kill(ctx context.Context) error
	shutdown(ctx context.Context) error
	boot(ctx context.Context) error
	stop() error
}

var errNotRunning = errors.New("the server does not run")

// Start starts a server, or connects to the one that [EnvURL] names. Without a
// deadline in ctx it gives up after a minute (a pull of the image has a minute
// of its own). The caller must call [Server.Stop].
func Start(ctx context.Context, opts Options) (*Server, error) {
	if opts.Route == "" {
		opts.Route = Route(os.Getenv(EnvRoute))
	}
	switch opts.Route {
	case URL:
		return startURL(ctx)
	case Container:
		return startContainer(ctx, opts)
	case Local:
		return startLocal(ctx, opts)
	case "":
		return startFirst(ctx, opts)
	default:
		return nil, fmt.Errorf("pgtest: unknown route %q: use url, container or local (option Route or %s)", opts.Route, EnvRoute)
	}
}

// startFirst takes the first route that works.
func startFirst(ctx context.Context, opts Options) (*Server, error) {
	// This process must not change the settings of a server that others use.
	if os.Getenv(EnvURL) != "" && len(opts.Settings) == 0 && !opts.Fsync {
		return startURL(ctx)
	}
	s, err := startContainer(ctx, opts)
	if err == nil {
		return s, nil
	}
	if !errors.Is(err, errNoEngine) {
		fmt.Fprintf(os.Stderr, "pgtest: no container, using this machine's PostgreSQL instead: %v\n", err)
	}
	return startLocal(ctx, opts)
}

// Route returns where the server comes from.
func (s *Server) Route() Route { return s.route }

// URL returns a superuser's URL of the named database. It stays the same when
// the server is killed and booted again.
func (s *Server) URL(database string) string {
	u := s.admin
	u.Path = "/" + database
	return u.String()
}

// CreateDatabase creates a database as a copy of template; an empty template
// means the server's default.
func (s *Server) CreateDatabase(ctx context.Context, name, template string) error {
	sql := "CREATE DATABASE " + pgx.Identifier{name}.Sanitize()
	if template != "" {
		sql += " TEMPLATE " + pgx.Identifier{template}.Sanitize()
	}
	if s.route != URL {
		// Faster than copying through the log, but it makes two checkpoints, which slow
		// down other users of a server.
		sql += " STRATEGY FILE_COPY"
	}
	return s.exec(ctx, sql)
}

// DropDatabase drops a database, if it is there, and ends its sessions.
func (s *Server) DropDatabase(ctx context.Context, name string) error {
	return s.exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
}

// Kill ends the server like a crash: all its processes get SIGKILL. The data stays for
// [Server.Boot]. On the URL route it is an error that wraps [errors.ErrUnsupported].
func (s *Server) Kill() error { return s.do(context.Background(), "kill", s.engine.kill) }

// Shutdown ends the server by a fast shutdown, as an administrator does. It ends all
// sessions, then writes a checkpoint. The data stays for [Server.Boot]. On the URL
// route it is an error that wraps [errors.ErrUnsupported].
func (s *Server) Shutdown(ctx context.Context) error { return s.do(ctx, "shutdown", s.engine.shutdown) }

// Boot starts a server that was killed, shut down or crashed again, on the same
// data and port, and returns when it has recovered and accepts connections.
func (s *Server) Boot(ctx context.Context) error { return s.do(ctx, "boot", s.engine.boot) }

// Stop ends the server and removes its data. It does nothing to a server on the URL
// route. It may be called twice.
func (s *Server) Stop() error {
	return s.do(context.Background(), "stop", func(context.Context) error { return s.engine.stop() })
}

// do calls a method of the engine, one at a time.
func (s *Server) do(ctx context.Context, what string, call func(context.Context) error) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := call(ctx); err != nil {
		return fmt.Errorf("pgtest: %s: %w", what, err)
	}
	return nil
}

// Standby makes a hot standby of the server with pg_basebackup. It follows the server
// by streaming replication, and the caller must stop it. Only the local route supports
// it. On other routes it is an error that wraps [errors.ErrUnsupported].
func (s *Server) Standby(ctx context.Context) (*Server, error) {
	l, ok := s.engine.(*local)
	if !ok {
		return nil, fmt.Errorf("pgtest: standby: %w on the route %s (use Options.Route local)", errors.ErrUnsupported, s.route)
	}
	return l.standby(ctx, s.admin)
}

// Promote makes a standby accept writes, and returns when it does.
func (s *Server) Promote(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	// It answers false when it has waited for a minute.
	return s.exec(ctx, "DO $$ BEGIN ASSERT pg_promote(wait => true), 'the standby was not promoted in time'; END $$")
}

// exec runs statements in the maintenance database, on a connection of its own.
func (s *Server) exec(ctx context.Context, statements ...string) error {
	return runSQL(ctx, s.admin.String(), statements...)
}

func runSQL(ctx context.Context, databaseURL string, statements ...string) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("pgtest: %s: %w", firstWords(sql), err)
		}
	}
	return nil
}

// bounded gives ctx a deadline if it has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, startTimeout,
		fmt.Errorf("PostgreSQL was not ready within %s", startTimeout))
}

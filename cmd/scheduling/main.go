// Command scheduling runs the reference scheduling module: an HTTP API to book,
// reschedule, cancel and list hearings.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/scheduling"
)

const usage = `scheduling is the reference scheduling module: it books, reschedules and cancels
hearings over HTTP, and writes each change with its outbox event in one transaction.

Usage: scheduling [flags]

  POST /hearings                  {"case_number", "case_name", "hearing_type", "courthouse", "courtroom",
                                   "local_start": "2027-03-15T10:00", "zone": "America/New_York",
                                   "duration_minutes"; optional "id", "fold": "first"|"second"}
  POST /hearings/{id}/reschedule  {"local_start"; optional "zone", "fold", "duration_minutes",
                                   "courthouse", "courtroom"}
  POST /hearings/{id}/cancel      {"reason": "settled"}
  GET  /hearings                  ?from=&to=&courthouse=&courtroom=&status=&limit=&after=
  GET  /hearings/{id}             the hearing, and under "court" whether the courts have got it
  GET  /livez, /readyz

A change takes If-Match: "<version>". The schemas scheduling and outbox must have been migrated.
There is no authentication: put it behind your own.

Flags:
`

const environment = `
Environment:
  DATABASE_URL   PostgreSQL URL (default of --database-url)

Exit: 0 stopped when asked to, 1 failed, 2 wrong usage, 4 stopped before all requests were answered
`

// drain is how long a stop waits for requests under way. No request takes longer.
const drain = 12 * time.Second

// errNotDrained means that requests were cut off by the stop.
var errNotDrained = errors.New("stopped before all requests were answered")

// usageError is a mistake on the command line or in the environment.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	os.Exit(exitCode(err, os.Stderr))
}

func exitCode(err error, stderr io.Writer) int {
	var u usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &u):
		fmt.Fprintf(stderr, "scheduling: %v\nTry scheduling --help.\n", err)
		return 2
	}
	fmt.Fprintf(stderr, "scheduling: %v\n", err)
	if errors.Is(err, errNotDrained) {
		return 4
	}
	return 1
}

// run serves until ctx ends and then lets requests under way finish. The base
// URL goes to stdout once it listens, the log to stderr.
func run(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("scheduling", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are reported once, by exitCode
	listen := fs.String("listen", "127.0.0.1:8080", "`address` to listen on; port 0 picks one")
	database := fs.String("database-url", "", "PostgreSQL `URL`; better given by the environment, where other users cannot see it")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		fmt.Fprint(stdout, environment)
		return err
	} else if err != nil {
		return usageError{err}
	}
	if fs.NArg() > 0 {
		return usageError{fmt.Errorf("unexpected argument %q; everything is a flag", fs.Arg(0))}
	}
	pool, err := openPool(ctx, *database, getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	return serve(ctx, *listen, pool, stdout, slog.New(slog.NewTextHandler(stderr, nil)))
}

// openPool does not wait for the database: /readyz says when it is there.
func openPool(ctx context.Context, flagURL, envURL string) (*pgxpool.Pool, error) {
	url := flagURL
	if url == "" {
		url = envURL
	}
	if url == "" {
		return nil, usageError{errors.New("no database: set DATABASE_URL or --database-url")}
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		// The parser's message may quote the URL, password and all.
		return nil, usageError{errors.New("the database URL cannot be read; expected postgres://user:password@host:port/database")}
	}
	config.ConnConfig.RuntimeParams["application_name"] = "scheduling"
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return pool, nil
}

func serve(ctx context.Context, address string, pool *pgxpool.Pool, stdout io.Writer, log *slog.Logger) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("--listen: %w; choose another address", err)
	}
	srv := &http.Server{
		Handler:           scheduling.NewHandler(scheduling.New(pool), log),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	fmt.Fprintf(stdout, "http://%s\n", ln.Addr())
	log.InfoContext(ctx, "serving", "address", ln.Addr().String())

	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	log.InfoContext(ctx, "stopping", "drain", drain)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err = srv.Shutdown(last)
	if err != nil {
		_ = srv.Close() // cut off what is left
	}
	if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
		log.WarnContext(ctx, "server ended early", "error", failed)
	}
	if err != nil {
		return errNotDrained
	}
	log.InfoContext(ctx, "stopped")
	return nil
}

// Command scheduling serves the reference scheduling module: an HTTP API, and pages
// for clerks, to book, reschedule, cancel and list hearings.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
	_ "time/tzdata" // on machines without a zone database

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/scheduling"
)

const usage = `scheduling is the reference scheduling module: it books, reschedules and cancels
hearings over HTTP, and writes each change and its outbox event in one transaction.

Usage: scheduling [flags]

  GET  /                          pages for clerks: the list, which courts have each hearing, and
                                  forms to book, move and cancel

  POST /hearings                  {"case_number", "case_name", "hearing_type", "courthouse", "courtroom",
                                   "local_start": "2027-03-15T10:00", "zone": "America/New_York",
                                   "duration_minutes"; optional "id", "fold": "first"|"second"}
  POST /hearings/{id}/reschedule  {"local_start"; optional "zone", "fold", "duration_minutes",
                                   "courthouse", "courtroom"}
  POST /hearings/{id}/cancel      {"reason": "settled"}
  GET  /hearings                  ?from=&to=&courthouse=&courtroom=&case_number=&status=&limit=&after=
  GET  /hearings/{id}             the hearing, and under "court" which courts have got it
  GET  /livez, /readyz

A change may have If-Match: "<version>". The database needs the schemas scheduling and outbox:
lockstep migrate up, and lockstep migrate up --set scheduling. There is no authentication: put
it behind a proxy that has. The pages answer only as localhost, a loopback address, or as --page-host.

Flags:
`

const environment = `
Environment:
  DATABASE_URL   PostgreSQL URL (default of --database-url)
  STATUS_URL     PostgreSQL URL (default of --status-url)

Exit: 0 stopped by a signal, 1 failed, 2 wrong usage, 4 stopped before all requests were answered
`

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
	if errors.Is(err, scheduling.ErrNotDrained) {
		return 4
	}
	return 1
}

// run serves until ctx ends. The base URL goes to stdout once it listens, the log
// to stderr.
func run(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("scheduling", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are reported once, by exitCode
	listen := fs.String("listen", "127.0.0.1:8080", "`address` to listen on; port 0 picks one")
	database := fs.String("database-url", "", "PostgreSQL `URL`; other users cannot see it in the environment")
	status := fs.String("status-url", "", "PostgreSQL `URL` of a login in outbox_auditor, to show what the courts have; default: the first URL")
	zone := fs.String("zone", "", "time `zone` of a new hearing on the page, such as America/New_York")
	host := fs.String("page-host", "", "`name` under which a proxy that signs people in serves the pages")
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
	pool, err := openPool(ctx, "--database-url or DATABASE_URL", cmp.Or(*database, getenv("DATABASE_URL")))
	if err != nil {
		return err
	}
	defer pool.Close()
	statusPool := pool
	if url := cmp.Or(*status, getenv("STATUS_URL")); url != "" {
		if statusPool, err = openPool(ctx, "--status-url or STATUS_URL", url); err != nil {
			return err
		}
		defer statusPool.Close()
	}
	pages := scheduling.Pages{Zone: *zone}
	if *zone != "" {
		if _, err := time.LoadLocation(*zone); err != nil {
			return usageError{fmt.Errorf("--zone %q is not in the zone database; give an IANA name such as America/New_York", *zone)}
		}
	}
	if *host != "" {
		pages.Hosts = []string{*host}
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", *listen)
	if err != nil {
		return fmt.Errorf("--listen: %w; choose another address", err)
	}
	fmt.Fprintf(stdout, "http://%s\n", ln.Addr())
	return scheduling.Serve(ctx, ln, scheduling.New(pool, statusPool), pages, slog.New(slog.NewTextHandler(stderr, nil)))
}

// openPool does not wait for the database. /readyz says when it answers. from says where
// the URL is from.
func openPool(ctx context.Context, from, url string) (*pgxpool.Pool, error) {
	if url == "" {
		return nil, usageError{errors.New("no database: set DATABASE_URL or --database-url")}
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		// The parser's message may quote the URL with its password.
		return nil, usageError{errors.New("the database URL of " + from + " cannot be read; expected postgres://user:password@host:port/database")}
	}
	config.ConnConfig.RuntimeParams["application_name"] = "scheduling"
	return pgxpool.NewWithConfig(ctx, config)
}

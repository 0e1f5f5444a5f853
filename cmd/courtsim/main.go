// Command courtsim serves a simulated court: a calendar over REST and over SOAP,
// with scripted faults and a ledger of every request it read.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

const usage = `courtsim is the calendar of a simulated court over REST and SOAP, to try out a relay.

Usage: courtsim [flags]

  POST   /api/calendar                  book or change, by the field case_reference
  PUT    /api/calendar/{id}             change
  DELETE /api/calendar/{id}             cancel
  GET    /api/calendar[/{case or id}]   what the court holds
  POST   /soap/calendar                 NotifyHearing (reference, start, room, status) and
                                        CancelHearing (reference) of urn:example:calendar,
                                        SOAP 1.1 and 1.2; repetitions by wsa:MessageID
  GET    /ledger                        every request that the court read
  GET, POST /faults                     the fault script; POST replaces it, [] removes all faults
  GET    /healthz

Flags:
`

const example = `
Environment:
  COURT_TOKEN      required bearer token (default of --token)
  COURT_PASSWORD   password of the required UsernameToken (default of --password)

A fault script is a JSON array. The first rule that strikes decides.
  [
    {"match": {"method": "POST", "every": 10},    "do": {"status": 503, "retry_after": "2"}},
    {"match": {"key": "H-2027-000007", "first": 1}, "do": {"drop": "after"}},
    {"match": {"probability": 0.02},              "do": {"delay": "500ms"}}
  ]
match: key (case reference or idempotency key), method, after, first, every, probability
do:    status, fault (over SOAP: Server | Client | Busy | MustUnderstand | VersionMismatch |
       FailedAuthentication | MessageExpired; with the status, if one is given),
       gateway (html | text | empty: answer like a gateway in front of the court, with the
       status, default 404), retry_after, redirect, body, repeat, gzip, delay, drip,
       hang (wait, then cut the connection), drop (before | after | during): "after" stores
       the booking and cuts the connection without an answer
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(exitCode(err, os.Stderr))
}

// usageError is a mistake on the command line or in the fault script.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitCode(err error, stderr io.Writer) int {
	var u usageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &u):
		fmt.Fprintf(stderr, "courtsim: %v\nTry courtsim --help.\n", err)
		return 2
	}
	fmt.Fprintf(stderr, "courtsim: %v\n", err)
	return 1
}

// run serves until ctx ends. The base URL goes to stdout once it listens.
func run(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("courtsim", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are reported once, by exitCode
	var (
		listen     = fs.String("listen", "127.0.0.1:8081", "`address` to listen on; port 0 picks one")
		faultsFile = fs.String("faults", "", "`file` with the fault script")
		token      = fs.String("token", getenv("COURT_TOKEN"), "required bearer `token`; other users cannot see it in the environment")
		username   = fs.String("username", "agency", "required `name` in the UsernameToken over SOAP, with --password")
		password   = fs.String("password", getenv("COURT_PASSWORD"), "required `password` of the UsernameToken, as text or digest; other users cannot see it in the environment")
		seed       = fs.Uint64("seed", 1, "seed of the script's probabilities")
		ledgerFile = fs.String("ledger", "", "`file` to which the ledger is appended, one JSON object per line")
		keep       = fs.Int("keep", 100_000, "ledger entries and idempotency keys kept in memory; 0 keeps all")
		duplicate  = fs.Int("duplicate-status", 409, "answer over REST to a repeated idempotency key: 409 or 200")
	)
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(stdout)
		fmt.Fprint(stdout, usage)
		for _, secret := range []string{"token", "password"} {
			fs.Lookup(secret).DefValue = "" // never printed
		}
		fs.PrintDefaults()
		fmt.Fprint(stdout, example)
		return err
	} else if err != nil {
		return usageError{err}
	}
	switch {
	case fs.NArg() > 0:
		return usageError{fmt.Errorf("unexpected argument %q; everything is a flag", fs.Arg(0))}
	case *duplicate != 409 && *duplicate != 200:
		return usageError{fmt.Errorf("--duplicate-status is %d, not 409 or 200", *duplicate)}
	case *keep < 0:
		return usageError{fmt.Errorf("--keep is %d, not 0 or more", *keep)}
	}
	o := courtsim.Options{
		Token: *token, Username: *username, Password: *password,
		Seed: *seed, Keep: *keep, DuplicateStatus: *duplicate,
	}
	if *faultsFile != "" {
		b, err := os.ReadFile(*faultsFile)
		if err != nil {
			return usageError{fmt.Errorf("--faults: %w", err)}
		}
		if o.Faults, err = courtsim.ParseFaults(b); err != nil {
			return usageError{fmt.Errorf("--faults %s: %w", *faultsFile, err)}
		}
	}
	if *ledgerFile != "" {
		f, err := os.OpenFile(*ledgerFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("--ledger: %w; name a file that this user may write", err)
		}
		defer f.Close() // the court reports errors of writes
		o.Ledger = f
	}
	court := courtsim.New(o)
	url, err := court.Start(*listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	fmt.Fprintln(stdout, url)
	fmt.Fprintf(stderr, "courtsim: serving %[1]s/api/calendar and %[1]s/soap/calendar with %[2]d fault rules; stop with Ctrl-C\n", url, len(o.Faults))
	select {
	case <-ctx.Done():
	case <-court.Done():
	}
	return court.Close()
}

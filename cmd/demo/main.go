// Command demo shows Lockstep at work within a minute. It runs a throw-away PostgreSQL,
// the scheduling module, two relay processes, and two simulated systems: a court over
// REST and a clinic over SOAP. These fail one after the other. At the end the demo
// compares both calendars with the database, hearing by hearing.
//
// Progress goes to stderr, the result to stdout. The exit code is 1 if anything
// is lost, out of order or different, and 2 for a mistake on the command line.
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
)

const usage = `demo shows Lockstep at work: clerks book, move and cancel hearings, and a court
(REST) and a clinic (SOAP) get each change. The court goes down, the clinic is
busy, one of two relays is killed. At the end the demo compares both calendars
with the database, hearing by hearing.

Before it starts, Go compiles it: silently, and the first time for a minute or
more. It needs Go and PostgreSQL: PostgreSQL's programs on this machine, a Docker
engine, or LOCKSTEP_TEST_DATABASE_URL. At its end it removes everything that it
has started.

Usage: demo [flags]

Flags:
`

const examples = `
Examples:
  make demo
  make demo KEEP=1                                # leave everything running: the pages for clerks, and more to try
  go run ./cmd/demo --keep                        # the same
  go run ./cmd/demo --hearings 1000 --seed 7
  go run ./cmd/demo 2>progress.txt                # only the result

NO_COLOR turns colours off. Exit: 0 all hearings agree, 1 some do not or
something failed, 2 wrong usage
`

func main() {
	if len(os.Args) > 1 && os.Args[1] == relayMode {
		os.Exit(relayMain(os.Args[2:], os.LookupEnv, os.Stdin, os.Stderr))
	}
	signal.Ignore(syscall.SIGPIPE) // a closed pipe must not prevent the cleanup
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(run(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr))
}

// maxHearings limits the memory for the ledgers and the comparison.
const maxHearings = 20_000

// options are the options of the command line.
type options struct {
	hearings int
	seed     uint64
	keep     bool
	plain    bool
}

func parse(args []string, stdout io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are reported once, by run
	fs.IntVar(&o.hearings, "hearings", 120, "book `N` hearings")
	fs.Uint64Var(&o.seed, "seed", 1, "seed of the clerks' changes and of the systems' chances")
	fs.BoolVar(&o.keep, "keep", false, "leave everything running until Ctrl-C, and print what to try")
	fs.BoolVar(&o.plain, "plain", false, "print plain lines, even on a terminal")
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		fmt.Fprint(stdout, examples)
	case err == nil && fs.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q; everything is a flag", fs.Arg(0))
	case err == nil && (o.hearings < 1 || o.hearings > maxHearings):
		err = fmt.Errorf("--hearings is %d, not between 1 and %d", o.hearings, maxHearings)
	}
	return o, err
}

// run shows the demo and returns the exit code.
func run(ctx context.Context, args []string, env func(string) (string, bool), stdout, stderr io.Writer) int {
	o, err := parse(args, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "demo: %v\nTry demo --help.\n", err)
		return 2
	}
	d := newDemo(o, env, stdout, stderr)
	code := 1
	if err = d.open(ctx); err == nil {
		err = d.play(ctx)
	}
	if err == nil {
		code, err = d.conclude(ctx)
	}
	if err == nil && o.keep {
		err = d.stay(ctx)
	}
	if closing := d.close(); closing != nil {
		err = errors.Join(err, fmt.Errorf("cleaning up: %w", closing))
	}
	switch {
	case err != nil && ctx.Err() != nil:
		fmt.Fprintln(stderr, "demo: interrupted; everything that it had started is removed")
		return 1
	case err != nil:
		fmt.Fprintf(stderr, "demo: %v\n", err)
		return 1
	}
	return code
}

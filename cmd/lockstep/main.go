// Command lockstep is the relay and the operator's tool for it.
//
// Data goes to stdout, logs and progress to stderr. It exits with 0 when it
// did what was asked, 1 when it failed, 2 for a mistake on the command line or
// in the configuration, 3 when a check found something, and 4 when a relay
// stopped before it had drained.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/hms-mkt/lockstep/relay"
)

func main() {
	// net/http quotes there what a receiver sent unasked, which may be anything.
	log.SetOutput(io.Discard)
	a := &app{env: os.LookupEnv, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	ctx := stopSignals(context.Background(), func() {
		a.report("lockstep", ranError{fmt.Errorf("second signal: %w", relay.ErrNotDrained)})
		os.Exit(exitNotDrained)
	})
	os.Exit(a.run(ctx, os.Args[1:]))
}

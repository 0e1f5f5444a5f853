// Command lockstep is the relay and the operator's tool for it.
//
// Data goes to stdout, logs and progress go to stderr. The exit code is 0 for success,
// 1 for a failure, and 2 for a mistake on the command line or in the configuration. It
// is 3 if a check found something, and 4 if a relay stopped before it had drained.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	_ "time/tzdata" // the zones of receivers, on machines without a zone database

	_ "golang.org/x/crypto/x509roots/fallback" // root certificates, on machines without any

	"github.com/hms-mkt/lockstep/relay"
)

func main() {
	// net/http would log bytes that a receiver sent without a request. They may have anything in them.
	log.SetOutput(io.Discard)
	a := &app{env: os.LookupEnv, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	ctx := stopSignals(context.Background(), func() {
		a.report("lockstep", ranError{fmt.Errorf("second signal: %w", relay.ErrNotDrained)})
		os.Exit(exitNotDrained)
	})
	os.Exit(a.run(ctx, os.Args[1:]))
}

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
	"os/signal"
	"syscall"
)

func main() {
	// net/http quotes there what a receiver sent unasked, which may be anything.
	log.SetOutput(io.Discard)
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		fmt.Fprintln(os.Stderr, "lockstep: second signal: stopped at once")
		os.Exit(exitNotDrained)
	}()
	os.Exit(run(ctx, os.Args[1:], os.LookupEnv, os.Stdin, os.Stdout, os.Stderr))
}

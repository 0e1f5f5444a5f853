package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// sameSignal is how long a second signal counts as the first one. A supervisor
// that signals the process and its group sends it twice.
const sameSignal = time.Second

// stopSignals returns a context that ends with the first SIGINT or SIGTERM. A
// signal more than a second later calls atOnce.
func stopSignals(ctx context.Context, atOnce func()) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		first := time.Now()
		cancel()
		for range signals {
			if time.Since(first) > sameSignal {
				atOnce()
			}
		}
	}()
	return ctx
}

// Package waiting lets tests wait for a condition instead of for a time, and lets the
// faults that they inject last for a time.
package waiting

import (
	"context"
	"strings"
	"testing"
	"time"
)

const (
	shortest = 5 * time.Millisecond // pause between two looks
	longest  = 50 * time.Millisecond
	share    = 10          // a pause is this part of the time waited so far
	long     = time.Second // a wait that is worth a line in the test's log
)

// For waits until the condition holds. It looks every few milliseconds at first, and
// less often the longer it waits or where a look takes long, so that looking does not
// take what the others need.
// It looks once more when the bound is over: one slow look does not fail the test. A
// wait that fails says what it waited for, for how long, how often it looked, and
// what each of details returns. One that took longer than a second is logged.
//
// The bound is no measure of how fast something should be. It is long enough for
// a machine with much else to do.
func For(t testing.TB, bound time.Duration, what string, holds func() bool, details ...func() string) {
	t.Helper()
	began := time.Now()
	for looks := 1; ; looks++ {
		looked := time.Now()
		over := looked.Sub(began) > bound
		if holds() {
			if took := time.Since(began); took > long {
				t.Logf("waited %s: %s", took.Round(time.Millisecond), what)
			}
			return
		}
		if over {
			var text strings.Builder
			for _, detail := range details {
				text.WriteString("\n" + detail())
			}
			t.Fatalf("waited %s in vain (bound %s, looked %d times): %s%s", time.Since(began).Round(time.Millisecond), bound, looks, what, text.String())
		}
		pause := min(max(time.Since(began)/share, shortest), longest)
		time.Sleep(max(pause, 2*time.Since(looked)))
	}
}

// StallFor lets a fault that a test has put into the world last for d, or until ctx
// ends: a process that is stopped, a transaction that stays open, a server that is
// away. Nothing tells its end but time, since other processes and the database do not
// live by a test's clock. What follows from the fault is waited for with [For].
func StallFor(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

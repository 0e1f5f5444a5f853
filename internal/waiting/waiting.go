// Package waiting lets tests wait for a condition instead of a fixed time. It also lets
// an injected fault last for a time.
package waiting

import (
	"context"
	"strings"
	"testing"
	"time"
)

const (
	shortest = 5 * time.Millisecond // pause between two checks
	longest  = 50 * time.Millisecond
	share    = 10          // a pause is this part of the time waited so far
	long     = time.Second // a longer wait gets a line in the test's log
)

// For waits until the condition holds. It checks every few milliseconds at first. It
// checks less often the longer it waits and the longer a check takes, so that checks
// use little of the machine. After the bound it checks once more, so that one slow
// check does not fail the test.
//
// If the wait fails, the test reports the condition, the time, the number of checks,
// and the texts of details. The bound does not measure speed: make it long enough for a
// busy machine.
func For(t testing.TB, bound time.Duration, what string, holds func() bool, details ...func() string) {
	t.Helper()
	began := time.Now()
	for checks := 1; ; checks++ {
		checked := time.Now()
		over := checked.Sub(began) > bound
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
			t.Fatalf("waited %s without success (bound %s, checked %d times): %s%s", time.Since(began).Round(time.Millisecond), bound, checks, what, text.String())
		}
		pause := min(max(time.Since(began)/share, shortest), longest)
		time.Sleep(max(pause, 2*time.Since(checked)))
	}
}

// StallFor lets an injected fault last for d, or until ctx ends. Such faults are a
// stopped process, an open transaction, a server that is down. Only time can end them,
// because other processes and the database do not use a test's clock. Wait for the
// consequences of the fault with [For].
func StallFor(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

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
	shortest = 5 * time.Millisecond // pause between two checks
	longest  = 50 * time.Millisecond
	share    = 10          // a pause is this part of the time waited so far
	long     = time.Second // a longer wait gets a line in the test's log
)

// For waits until the condition holds. It checks every few milliseconds at first,
// and less often the longer it waits or the longer a check takes, so that the
// checks leave the machine to the others. After the bound it checks once more, so
// that one slow check does not fail the test.
//
// A wait that fails says what it waited for, for how long, how often it checked,
// and what each of details returns. The bound does not measure how fast something
// should be. Make it long enough for a machine that is busy with other work.
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
			t.Fatalf("waited %s in vain (bound %s, checked %d times): %s%s", time.Since(began).Round(time.Millisecond), bound, checks, what, text.String())
		}
		pause := min(max(time.Since(began)/share, shortest), longest)
		time.Sleep(max(pause, 2*time.Since(checked)))
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

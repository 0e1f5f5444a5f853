package relay

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestStepIsStuckFromItsBoundOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w steps
		slow, other := w.add("slow", time.Minute), w.add("other", time.Hour)
		wants := func(want string) {
			t.Helper()
			got := ""
			if err := w.stuck(); err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("stuck: %q, want %q", got, want)
			}
		}
		time.Sleep(2 * time.Hour)
		wants("") // idle steps may wait as long as they like
		slow.begin()
		other.begin()
		time.Sleep(time.Minute)
		wants("")
		time.Sleep(time.Second)
		wants("stalled: slow takes 1m1s")
		reports := 0
		for range 3 {
			w.report(func(string, time.Duration, bool) { reports++ })
		}
		if reports != 1 {
			t.Errorf("%d reports of one stall, want 1", reports)
		}
		slow.end()
		wants("")
	})
}

func TestALoopStartsAgainAfterAPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &Relay{log: slog.New(slog.DiscardHandler)}
		runs := 0
		err := r.supervise("loop", func() error {
			if runs++; runs < 3 {
				panic("again")
			}
			return ErrNotDrained
		})
		if runs != 3 || !errors.Is(err, ErrNotDrained) {
			t.Errorf("the loop ran %d times and ended with %v, want 3 times and its error", runs, err)
		}
	})
}

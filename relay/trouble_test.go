package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// talk is the log of a relay.
type talk struct{ strings.Builder }

func (t *talk) lines() []string {
	return strings.FieldsFunc(t.String(), func(r rune) bool { return r == '\n' })
}

func newTalk() (*talk, *troubles) {
	t := &talk{}
	return t, newTroubles(slog.New(slog.NewTextHandler(t, nil)))
}

func refused(port int) error {
	return fmt.Errorf("read 127.0.0.1:%d: %w", port, syscall.ECONNREFUSED)
}

func TestARepeatedErrorIsLoggedAtGrowingIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, all := newTalk()
		c := &caller{troubles: all, what: "claim deliveries", sync: "Court"}
		began, calls := time.Now(), 0
		for time.Since(began) < 10*time.Minute {
			calls++
			pause := c.failed(t.Context(), refused(calls)) // another port each time
			if pause < firstPause || pause > mostPause {
				t.Fatalf("a pause of %s", pause)
			}
			time.Sleep(pause)
		}
		if calls > 310 {
			t.Errorf("%d calls in ten minutes, want about 300", calls)
		}
		lines := log.lines()
		// At 0 s, 1 s, 3 s, 7 s, 15 s, 31 s, 63 s, then once a minute.
		if n := len(lines); n < 14 || n > 17 {
			t.Errorf("%d lines in ten minutes, want about 15:\n%s", n, log)
		}
		if last := lines[len(lines)-1]; !strings.Contains(last, "failures=") || !strings.Contains(last, "for=9m") || !strings.Contains(last, "sync=Court") {
			t.Errorf("the last line counts nothing: %s", last)
		}
		c.worked(t.Context())
		c.worked(t.Context())
		lines = log.lines()[len(lines):]
		if len(lines) != 1 || !strings.Contains(lines[0], `msg="database call works again" to="claim deliveries" after=10m`) {
			t.Errorf("after the end: %v", lines)
		}
		if pause := c.failed(t.Context(), refused(1)); pause != firstPause {
			t.Errorf("the next trouble begins with a pause of %s", pause)
		}
	})
}

func TestAnotherCauseIsLoggedAtOnce(t *testing.T) {
	log, all := newTalk()
	c := &caller{troubles: all, what: "claim deliveries", sync: "Court"}
	code := func(n int) error { return fmt.Errorf("claim: %w", &pgconn.PgError{Code: fmt.Sprint("5700", n)}) }
	for range 100 {
		for n := range 5 {
			c.failed(t.Context(), code(n))
		}
		c.failed(t.Context(), errors.Join(errors.New("tls error"), refused(5432)))
	}
	if n := len(log.lines()); n != 6 {
		t.Errorf("%d lines, want one for each of 6 causes:\n%s", n, log)
	}
	for n := range 1000 {
		c.failed(t.Context(), fmt.Errorf("cause %d", n))
	}
	if n := len(log.lines()); n > mostCauses {
		t.Errorf("%d lines: causes without end must not be logged without end", n)
	}
}

// Loops of several syncs make the same call. They have one trouble, which ends when the last of them has
// made the call without an error.
func TestLoopsShareATrouble(t *testing.T) {
	log, all := newTalk()
	var loops []*caller
	for n := range 20 {
		loops = append(loops, &caller{troubles: all, what: "claim deliveries", sync: fmt.Sprint("Court-", n)})
	}
	for _, c := range loops {
		c.failed(t.Context(), refused(1))
	}
	other := &caller{troubles: all, what: "record deliveries", sync: "Court-1"}
	other.failed(t.Context(), refused(1))
	if n := len(log.lines()); n != 2 {
		t.Errorf("%d lines, want one for each kind of call:\n%s", n, log)
	}
	for n, c := range loops {
		if strings.Contains(log.String(), "works again") {
			t.Fatalf("it is said to work again after %d of %d", n, len(loops))
		}
		c.worked(t.Context())
	}
	if !strings.Contains(log.String(), `works again" to="claim deliveries"`) {
		t.Errorf("nobody says that it works again:\n%s", log)
	}
}

func TestAStopIsNoTrouble(t *testing.T) {
	log, all := newTalk()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := &caller{troubles: all, what: "claim deliveries"}
	c.failed(ctx, context.Canceled)
	if log.Len() > 0 {
		t.Error(log.String())
	}
}

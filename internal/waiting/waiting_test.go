package waiting

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// recorder is a test that keeps its log and its failure.
type recorder struct {
	testing.TB
	said   string
	failed bool
}

func (*recorder) Helper()                      {}
func (r *recorder) Logf(f string, args ...any) { r.said = fmt.Sprintf(f, args...) }
func (r *recorder) Fatalf(f string, args ...any) {
	r.failed, r.said = true, fmt.Sprintf(f, args...)
	runtime.Goexit()
}

// waits runs a wait as a test would.
func waits(bound time.Duration, holds func() bool) *recorder {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		For(r, bound, "the court answers", holds, func() string { return "2 deliveries" })
	}()
	<-done
	return r
}

func TestAWaitSaysHowLongItTook(t *testing.T) {
	after := func(d time.Duration) func() bool {
		began := time.Now()
		return func() bool { return time.Since(began) >= d }
	}
	for name, test := range map[string]struct {
		takes  time.Duration
		failed bool
		says   []string
	}{
		"at once": {0, false, nil},
		"soon":    {500 * time.Millisecond, false, nil},
		"late":    {3 * time.Second, false, []string{"waited 3.0", ": the court answers"}},
		"never":   {time.Hour, true, []string{"waited 10.0", "without success", "bound 10s", "checked 226 times", "the court answers", "2 deliveries"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := waits(10*time.Second, after(test.takes))
				if r.failed != test.failed || len(test.says) == 0 && r.said != "" {
					t.Errorf("failed %v, says %q", r.failed, r.said)
				}
				for _, part := range test.says {
					if !strings.Contains(r.said, part) {
						t.Errorf("says %q, want %q in it", r.said, part)
					}
				}
			})
		})
	}
}

// A check that takes longer than the bound is followed by another.
func TestASlowCheckIsNotTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checks := 0
		r := waits(time.Second, func() bool {
			checks++
			if checks == 1 {
				time.Sleep(time.Minute)
				return false
			}
			return true
		})
		if r.failed {
			t.Errorf("says %q", r.said)
		}
	})
}

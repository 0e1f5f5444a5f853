package relay

import (
	"math"
	"testing"
	"time"
)

// The delay doubles up to its cap and stays there, for every configuration and any number of
// attempts.
func TestTheDelayIsCapped(t *testing.T) {
	for name, r := range map[string]Retry{
		"default":            Retry{}.withDefaults(),
		"shortest":           {Initial: 1, Max: 1, Jitter: -1},
		"one nanosecond":     {Initial: 1, Max: 15 * time.Minute, Jitter: -1},
		"long":               {Initial: 24 * time.Hour, Max: 10000 * time.Hour, Jitter: 1},
		"longest":            {Initial: math.MaxInt64, Max: math.MaxInt64, Jitter: 1},
		"up to the longest":  {Initial: time.Second, Max: math.MaxInt64, Jitter: 0.2},
		"odd":                {Initial: 1<<32 + 1, Max: 24 * time.Hour, Jitter: -1}, // shifted by 32 bits it would be short again
		"initial is the cap": {Initial: time.Minute, Max: time.Minute, Jitter: 0.2},
	} {
		t.Run(name, func(t *testing.T) {
			plain := r
			plain.Jitter = -1
			want := r.Initial
			for n := 1; n <= 500; n++ {
				if got := plain.delay(n); got != want {
					t.Fatalf("delay after attempt %d is %s, want %s", n, got, want)
				}
				spread := float64(want) * max(r.Jitter, 0)
				if got := float64(r.delay(n)); got < float64(want)-spread-1 || got > float64(want)+spread+1 {
					t.Fatalf("delay after attempt %d is %s, want %s ± %.0f %%", n, time.Duration(got), want, 100*r.Jitter)
				}
				if want > r.Max/2 {
					want = r.Max
				} else {
					want *= 2
				}
			}
			for _, n := range []int{1 << 20, math.MaxInt} {
				if got := plain.delay(n); got != r.Max {
					t.Errorf("delay after attempt %d is %s, want %s", n, got, r.Max)
				}
			}
		})
	}
}

package relay

import (
	"time"

	"github.com/sethvargo/go-retry"
)

// delay is how long to wait after the n-th attempt that counts; n begins at 1. The state of
// a Backoff is not in the database, so it is computed again, from at most 64 steps: after
// these it has reached its cap. Jitter is added after the cap, so that capped delays
// differ too.
func (r Retry) delay(n int) time.Duration {
	b := retry.WithCappedDuration(r.Max, retry.NewExponential(r.Initial))
	if r.Jitter > 0 {
		b = retry.WithJitterPercent(uint64(r.Jitter*100), replayed(b, n))
	} else {
		b = replayed(b, n)
	}
	d, _ := b.Next()
	return max(d, 0)
}

func replayed(b retry.Backoff, n int) retry.Backoff {
	for range min(n, 64) - 1 {
		b.Next()
	}
	return b
}

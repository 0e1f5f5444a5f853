package relay

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// Expressions see a payload as a tree of Go values, which takes up to forty
	// times the memory of its text. So many bytes of text are a tree at a time in
	// a process. Half as many would leave processors idle while large events are
	// evaluated one by one, twice as many would take twice the memory.
	decodedAtATime = 2 << 20

	// Payloads up to this size do not ask: 32 workers with them need less than
	// one event of 1 MiB. Half of it would make ordinary events wait for large
	// ones, twice of it would be twice the memory for each worker.
	smallPayload = 16 << 10
)

// gate bounds the memory that evaluations take by the payloads under way. Who
// came first goes first.
type gate struct{ bytes *semaphore.Weighted }

func newGate() gate { return gate{semaphore.NewWeighted(decodedAtATime)} }

// acquire waits until a payload of that size may be evaluated; done must be
// called after that. It reports false when ctx ends or until has come: the
// lease would not last for the attempt any more.
func (g gate) acquire(ctx context.Context, size int, until time.Time) (done func(), ok bool) {
	if size <= smallPayload {
		return func() {}, true
	}
	weight := min(int64(size), decodedAtATime)
	if !g.bytes.TryAcquire(weight) {
		ctx, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		if g.bytes.Acquire(ctx, weight) != nil {
			return nil, false
		}
	}
	return func() { g.bytes.Release(weight) }, true
}

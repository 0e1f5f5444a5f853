package relay

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// Expressions see a payload as a tree of Go values, which takes up to forty
	// times the memory of its text. A process evaluates this many bytes of text at a
	// time. Half would leave processors idle while large events are evaluated one by
	// one. Double takes twice the memory.
	decodedAtATime = 2 << 20

	// Payloads up to this size do not ask: 32 workers with them need less than
	// one event of 1 MiB. With half, ordinary events would wait for large ones.
	// Double is twice the memory for each worker.
	smallPayload = 16 << 10
)

// gate bounds the memory that evaluations take, by the size of the payloads under way.
// The order of acquire calls is kept.
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

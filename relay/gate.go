package relay

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// decodedAtATime is how many bytes of payloads a process evaluates at a time.
	// Expressions see a payload as a tree of Go values, which takes up to forty times the
	// memory of its text. With half, processors are idle while large events are evaluated
	// one by one. Double takes twice the memory.
	decodedAtATime = 2 << 20

	// smallPayload is the size up to which payloads are evaluated without a wait: for 32
	// workers they need less memory than one event of 1 MiB. With half, ordinary events
	// would wait for large ones. Double takes twice the memory for each worker.
	smallPayload = 16 << 10
)

// gate bounds the memory of evaluations, by the sum of the payload sizes. Calls of acquire
// are served in their order.
type gate struct{ bytes *semaphore.Weighted }

func newGate() gate { return gate{semaphore.NewWeighted(decodedAtATime)} }

// acquire waits until a payload of that size may be evaluated. The caller calls done after
// the evaluation. acquire reports false when ctx has ended, or at the time until, after
// which the lease is too short for the attempt.
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

package chaos

import (
	"testing"
	"time"
)

// Two and three relays on the same rows are killed at random, while writers of
// the same keys overlap and linger and the court fails now and then.
func TestFault07RelaysKilledAtRandom(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.court().faults(t, unreliable()...)
		relays := []*process{w.start(relaySpec{}), w.start(relaySpec{})}
		if r.random.IntN(2) == 0 {
			relays = append(relays, w.start(relaySpec{}))
		}
		w.registered()
		l := w.begin(loadSpec{writers: 8, keys: of(100, 500), events: of(2000, 6000)})
		written := make(chan struct{})
		go func() { _ = l.group.Wait(); close(written) }()
		for writing := true; writing; {
			select {
			case <-written:
				writing = false
			case <-time.After(r.between(300*time.Millisecond, 1200*time.Millisecond)):
				i := r.random.IntN(len(relays))
				relays[i].kill()
				relays[i] = w.start(relaySpec{})
				r.figures.kills++
			}
		}
		w.drain(expected{})
	})
}

//go:build linux

package chaos

import (
	"testing"
	"time"
)

// An administrator rewrites the tables of the hot path and their indexes again and again. Meanwhile relays
// are killed and writers write.
func TestFault34TablesRewritten(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.court().faults(t, unreliable()...)
		relays := []*process{w.start(relaySpec{}), w.start(relaySpec{})}
		w.registered()
		l := w.begin(loadSpec{writers: 8, keys: of(50, 500), rate: 150})
		rewrites := []string{
			`VACUUM FULL outbox.delivery`,
			`VACUUM FULL outbox.lane`,
			`VACUUM FULL outbox.event`,
			`VACUUM FULL outbox.delivery_log`,
			`CLUSTER outbox.delivery USING delivery_pkey`,
			`CLUSTER outbox.lane USING lane_pkey`,
			`REINDEX TABLE CONCURRENTLY outbox.delivery`,
			`REINDEX TABLE CONCURRENTLY outbox.lane`,
			`REINDEX TABLE CONCURRENTLY outbox.event`,
			`REINDEX TABLE CONCURRENTLY outbox.delivery_log`,
		}
		for range of(2, 10) {
			r.random.Shuffle(len(rewrites), func(i, j int) { rewrites[i], rewrites[j] = rewrites[j], rewrites[i] })
			for n, rewrite := range rewrites {
				if n%3 == 0 { // the table is rewritten while a killed relay's claims are open
					i := r.random.IntN(len(relays))
					l.reaches(l.written.Load() + 30)
					relays[i].kill()
					r.figures.kills++
					relays[i] = w.start(relaySpec{})
				}
				began := time.Now()
				w.exec(rewrite)
				r.Logf("%s took %s", rewrite, time.Since(began).Round(time.Millisecond))
			}
		}
		l.stop()
		w.drain(expected{})
	})
}

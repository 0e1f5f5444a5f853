package relay_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// diedWith makes lanes as dead relays have them: so many claims of each have ended in a row, and no relay
// has claimed them since.
func (w *world) diedWith(deaths int, condition string) {
	w.t.Helper()
	w.exec(`INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by, crashes)
SELECT DISTINCT sync, key, clock_timestamp() - interval '1 second', gen_random_uuid(), 'dead relay', $1::int - 1
  FROM outbox.delivery WHERE `+condition, deaths)
}

// traffic counts the requests in flight.
type traffic struct {
	mu   sync.Mutex
	now  int
	most int
}

func (f *traffic) begin() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now++
	f.most = max(f.most, f.now)
	return f.now
}

func (f *traffic) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now--
}

func (f *traffic) underWay() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// peak returns the highest number since its last call.
func (f *traffic) peak() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	most := f.most
	f.most = f.now
	return most
}

// When the leases of a killed relay have ended, its deliveries are sent at full concurrency. One death
// makes no suspect.
func TestDeliveriesOfOneDeadRelayGoTogether(t *testing.T) {
	w := newWorld(t)
	var f traffic
	release := make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	c := newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		f.begin()
		defer f.end()
		select {
		case <-release:
		case <-ctx.Done():
		}
		return accepts(ctx, m, attempt)
	})
	config := sync1(c)
	w.register(config)
	w.bulk(32)
	w.diedWith(1, `true`)
	w.start("relay-1", config)
	w.eventually("all 16 workers send them", func() bool { return f.peak() == 16 })
	free()
	w.drained()
}

// A delivery during which two relays died is a suspect. It is sent while its sync has no other attempt in
// flight, so the next death shows its cause. Between two suspects, the sync sends other deliveries. Other
// syncs send all the time.
func TestSuspectIsSentAloneAndStopsNobody(t *testing.T) {
	const others, suspects = 300, 3
	w := newWorld(t)
	var f traffic
	var alone atomic.Bool                 // a suspect is under way
	arrived := map[string]chan struct{}{} // closed when the other sync has sent an event of the key
	for n := range suspects {
		arrived[fmt.Sprint("suspect-", n)] = make(chan struct{})
	}
	other := newCourt(func(ctx context.Context, m adapters.Message, nth int) (adapters.Receipt, error) {
		if nth == 1 {
			close(arrived[m.Key])
		}
		return accepts(ctx, m, nth)
	})
	c := newCourt(func(ctx context.Context, m adapters.Message, nth int) (adapters.Receipt, error) {
		n := f.begin()
		defer f.end()
		if !strings.HasPrefix(m.Key, "suspect") {
			if alone.Load() {
				t.Errorf("%s was sent while a suspect was in flight", m.Key)
			}
			return takes(20*time.Millisecond)(ctx, m, nth)
		}
		alone.Store(true)
		defer alone.Store(false)
		if n > 1 {
			t.Errorf("%s was sent while %d others of its sync were in flight", m.Key, n-1)
		}
		if _, err := w.pool.Exec(ctx, `SELECT outbox.emit('other', $1, '{}')`, m.Key); err != nil {
			t.Error(err)
		}
		select {
		case <-arrived[m.Key]:
		case <-ctx.Done():
		}
		return accepts(ctx, m, nth)
	})
	config := three(8, c, other)
	config.Syncs[1].Events = []string{"other"}
	w.register(config)
	for n := range suspects {
		w.emit(fmt.Sprint("suspect-", n), map[string]any{"n": n})
	}
	w.diedWith(2, `true`)
	w.bulk(others)
	w.start("relay-1", config)
	w.drained()
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`); got != others+2*suspects {
		t.Errorf("%d delivered, want %d: the other sync sends while a suspect is in flight", got, others+2*suspects)
	}
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE attempt > 2`); got != 0 {
		t.Errorf("%d attempts too many", got)
	}
}

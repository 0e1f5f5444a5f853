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
	"github.com/hms-mkt/lockstep/relay"
)

// traffic counts the requests that are under way.
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

// peak returns the most there were since it was called last.
func (f *traffic) peak() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	most := f.most
	f.most = f.now
	return most
}

// Two syncs take slots of their own and shared ones, and give them back, hundreds of
// times: there are as many in the end as in the beginning.
func TestAsManySlotsComeBackAsWereTaken(t *testing.T) {
	const workers, each = 4, 150
	w := newWorld(t)
	var f traffic
	var gate atomic.Pointer[chan struct{}] // closed when requests may be answered
	c := newCourt(func(ctx context.Context, _ adapters.Message, _ int) (adapters.Receipt, error) {
		f.begin()
		defer f.end()
		select {
		case <-*gate.Load():
		case <-ctx.Done():
			return adapters.Receipt{}, ctx.Err()
		}
		time.Sleep(2 * time.Millisecond) // the receiver's work
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	config := sync1(c)
	config.Workers = workers
	config.Syncs = append(config.Syncs, relay.Sync{Name: "Other", Events: []string{"*"}, From: "beginning", Adapter: c})
	w.registered(config)
	w.start("relay-1", config)
	for round := range 3 {
		open := make(chan struct{})
		gate.Store(&open)
		w.bulk(each)
		w.eventually(fmt.Sprintf("round %d: %d requests are under way", round+1, workers), func() bool { return f.underWay() >= workers })
		close(open)
		w.drained()
		if got := f.peak(); got != workers {
			t.Errorf("round %d: up to %d requests under way, want %d, the number of workers", round+1, got, workers)
		}
	}
}

// Relays died while they sent some deliveries. Each is sent with nothing else of its
// sync under way, so that the next death shows which of them it is.
func TestASuspectHasItsSyncToItself(t *testing.T) {
	const others, suspects = 1000, 3
	w := newWorld(t)
	var f traffic
	var alone atomic.Bool // a suspect is under way
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		n := f.begin()
		defer f.end()
		if strings.HasPrefix(m.Key, "suspect") {
			alone.Store(true)
			defer alone.Store(false)
			if n > 1 {
				t.Errorf("%s was sent beside %d others", m.Key, n-1)
			}
			time.Sleep(50 * time.Millisecond) // long enough for another to come
		} else if alone.Load() {
			t.Errorf("%s was sent beside a suspect", m.Key)
		}
		time.Sleep(20 * time.Millisecond) // the receiver's work
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	config := sync1(c)
	w.registered(config)
	w.bulk(others)
	for n := range suspects {
		w.emit(fmt.Sprint("suspect-", n), map[string]any{"n": n})
	}
	w.exec(`UPDATE outbox.delivery SET crashes = 3, due_at = due_at - interval '1 minute' WHERE key LIKE 'suspect%'`)
	w.start("relay-1", config)
	w.drained()
}

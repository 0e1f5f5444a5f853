package relay_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// timed is a court with its own timeout.
type timed struct {
	*court
	timeout time.Duration
}

func (a timed) AttemptTimeout() time.Duration { return a.timeout }

func TestReloadChecksFirstAndNamesUnchangedSettings(t *testing.T) {
	first, second := newCourt(accepts), newCourt(accepts)
	w := newWorld(t)
	config := sync1(first)
	r := w.start("relay-1", config)
	w.emit("H-1", map[string]any{"n": 1})
	w.drained()

	for name, c := range map[string]struct {
		change func(*relay.Config)
		says   string
	}{
		"condition": {func(c *relay.Config) { c.Syncs[0].When = "event." }, `sync "CourtCalendarSync"`},
		"mapping": {func(c *relay.Config) {
			c.Syncs[0].Mapping.Fields = []relay.Field{{From: "a", To: "x"}, {From: "b", To: "x"}}
		}, "the target of two fields"},
		"retry":             {func(c *relay.Config) { c.Syncs[0].Retry.Initial = -1 }, "retry"},
		"adapter":           {func(c *relay.Config) { c.Syncs[0].Adapter = nil }, "no adapter"},
		"timeout and lease": {func(c *relay.Config) { c.Syncs[0].Adapter = timed{second, time.Minute}; c.Lease = 3 * time.Minute }, "a lease of 1m0s is shorter than twice"},
	} {
		t.Run(name, func(t *testing.T) {
			wrong := sync1(second)
			c.change(&wrong)
			if _, err := r.Reload(wrong); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %s", err, c.says)
			}
		})
	}
	w.emit("H-1", map[string]any{"n": 2})
	w.drained()
	if second.count() > 0 {
		t.Error("a configuration that was refused is in force")
	}

	next := sync1(second, func(s *relay.Sync) { s.Events, s.OnFailed, s.Notify = []string{"x"}, "supersede", true })
	next.Syncs = append(next.Syncs, relay.Sync{Name: "Another", Events: []string{"x"}, Adapter: second})
	next.Workers, next.Lease, next.KeepLog = 3, 2*time.Minute, "1 month"
	left, err := r.Reload(next)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"workers needs a restart", "lease needs a restart", "retention needs a restart",
		`sync "CourtCalendarSync": events, on_failed and escalate are changed with: lockstep sync apply CourtCalendarSync`,
		`sync "CourtCalendarSync": notify needs a restart`, `sync "Another" is new: it needs a restart`,
	}
	if !slices.Equal(left, want) {
		t.Errorf("left out:\n%s", strings.Join(left, "\n"))
	}
	w.emit("H-1", map[string]any{"n": 3})
	w.drained()
	if first.count() != 2 || second.count() != 1 {
		t.Errorf("%d and %d requests, want 2 and 1", first.count(), second.count())
	}
	next.Syncs = next.Syncs[1:]
	if left, err := r.Reload(next); err != nil || !slices.Contains(left, `sync "CourtCalendarSync" is not in the configuration any more: it runs until the restart`) {
		t.Errorf("%v, %v", left, err)
	}
	w.emit("H-1", map[string]any{"n": 4})
	w.drained()
}

// A new number of workers needs a restart. So does a concurrency that defaults to it.
func TestReloadLeavesTheWorkers(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	var f traffic
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		f.begin()
		defer f.end()
		<-release
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	r := w.start("relay-1", sync1(c))
	fewer := sync1(c)
	fewer.Workers = 4
	left, err := r.Reload(fewer)
	if err != nil || !slices.Contains(left, "workers needs a restart") {
		t.Errorf("left %q, %v; want workers among it", left, err)
	}
	w.bulk(40)
	w.eventually("all 16 workers of the start are busy", func() bool { return f.peak() == 16 })
	close(release)
	w.drained()
}

// The concurrency is raised and lowered while deliveries are in flight.
func TestReloadChangesLimits(t *testing.T) {
	var now, most atomic.Int64
	gate := make(chan struct{}, 1000)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-gate
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	w := newWorld(t)
	limited := func(n int) relay.Config {
		return sync1(c, func(s *relay.Sync) { s.Concurrency = n })
	}
	r := w.start("relay-1", limited(2))
	for n := range 200 {
		w.emit(fmt.Sprint("H-", n), map[string]any{"n": n})
	}
	w.eventually("two are in flight", func() bool { return now.Load() == 2 })
	if _, err := r.Reload(limited(9)); err != nil {
		t.Fatal(err)
	}
	w.eventually("nine are in flight", func() bool { return now.Load() == 9 })
	if _, err := r.Reload(limited(1)); err != nil {
		t.Fatal(err)
	}
	for range 9 {
		gate <- struct{}{}
	}
	w.eventually("one is in flight", func() bool { return now.Load() == 1 && len(gate) == 0 })
	most.Store(0)
	for range 30 {
		gate <- struct{}{}
	}
	w.eventually("thirty are sent", func() bool { return len(gate) == 0 && c.count() >= 40 })
	if n := most.Load(); n > 1 {
		t.Errorf("%d at a time, want 1", n)
	}
	if _, err := r.Reload(limited(5000)); err != nil {
		t.Fatal(err)
	}
	w.eventually("as many as there are workers", func() bool { return now.Load() == 16 })
	close(gate)
	w.drained()
	if n := most.Load(); n > 16 {
		t.Errorf("%d at a time with 16 workers", n)
	}
}

// New credentials are tried at once, not when the next probe is due.
func TestReloadTriesNewCredentialsAtOnce(t *testing.T) {
	refuses := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 401"}, adapters.Classify(adapters.ClassAuth, errors.New("HTTP 401"))
	})
	w := newWorld(t)
	r := w.start("relay-1", sync1(refuses))
	w.emit("H-1", map[string]any{"n": 1})
	w.eventually("on hold", func() bool { return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.hold WHERE kind = 'auth')`) })
	w.exec(`UPDATE outbox.hold SET until = clock_timestamp() + $1::interval`, laterThanTestsWait)
	knows := newCourt(accepts)
	w.eventually("delivered", func() bool {
		if _, err := r.Reload(sync1(knows)); err != nil {
			t.Fatal(err)
		}
		return knows.count() > 0
	})
	w.drained()
}

func TestReloadBeforeRun(t *testing.T) {
	w := newWorld(t)
	store, err := outbox.Open(t.Context(), w.url, outbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	first, second := newCourt(accepts), newCourt(accepts)
	r, err := relay.New(store, sync1(first))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Reload(sync1(second)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	w.emit("H-1", map[string]any{"n": 1})
	w.drained()
	stop()
	if err := <-done; err != nil || second.count() != 1 || first.count() != 0 {
		t.Errorf("%v, %d and %d requests", err, first.count(), second.count())
	}
}

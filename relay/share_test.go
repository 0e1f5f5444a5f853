package relay_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

// takes answers after d, as a receiver that has work to do.
func takes(d time.Duration) func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
	return func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
		return accepts(ctx, m, attempt)
	}
}

// goesOn checks that some deliveries of keys that begin so are not finished: what was
// delivered meanwhile has not waited for their end.
func (w *world) goesOn(keys string) {
	w.t.Helper()
	if query[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE starts_with(key, $1))`, keys) {
		w.t.Fatalf("nothing of %s is left: the others may have waited until then", keys)
	}
}

// freshKeysAreDelivered writes an event of a new key ten times, each once the one
// before is delivered, and logs how long each took. Deliveries of keys that begin
// with busy are under way and wait all the time.
func (w *world) freshKeysAreDelivered(busy string) {
	w.t.Helper()
	var waits []time.Duration
	for n := range 10 {
		key, began := fmt.Sprint("fresh", n), time.Now()
		w.emit(key, map[string]any{"n": 1})
		w.within(time.Minute, key+" is delivered", gone(w, key))
		waits = append(waits, time.Since(began).Round(time.Millisecond))
	}
	w.goesOn(busy)
	w.t.Logf("waits: %v", waits)
}

// Receivers that allow few connections are the normal case. However many keys
// have a backlog, a key with nothing in front of its event gets its turn.
func TestFreshKeyBesideManyBusyKeysOnFewWorkers(t *testing.T) {
	for _, workers := range []int{4, 8} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			w := newWorld(t)
			config := sync1(newCourt(takes(200 * time.Millisecond)))
			config.Workers = workers
			w.register(config)
			lines(w, 64, 6400)
			w.start("relay-1", config)
			w.eventually("all workers are busy", func() bool {
				return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'sending'`) >= workers
			})
			w.freshKeysAreDelivered("hot")
		})
	}
}

// After an outage the older events of other keys do not keep a new one waiting
// until the last of them is delivered. They go on meanwhile.
func TestFreshKeyAfterAnOutage(t *testing.T) {
	w := newWorld(t)
	c := newCourt(takes(50 * time.Millisecond))
	config := sync1(c)
	config.Workers = 8
	w.register(config)
	w.bulk(6000)
	w.exec(`UPDATE outbox.delivery SET due_at = due_at - interval '1 hour', created_at = created_at - interval '1 hour'`)
	w.start("relay-1", config)
	w.eventually("the backlog is being sent", func() bool { return c.count() > 50 })
	w.freshKeysAreDelivered("B-")
	w.exec(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'N-' || n, '{"n":1}' FROM generate_series(1, 5000) AS n`)
	older := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE key LIKE 'B-%'`)
	w.within(time.Minute, "older ones go on beside many new ones", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE key LIKE 'B-%'`) < older-100
	})
	w.goesOn("N-")
}

// three configures three syncs of one relay that all take every event.
func three(workers int, courts ...*court) relay.Config {
	config := sync1(courts[0])
	config.Workers = workers
	s := config.Syncs[0]
	config.Syncs = nil
	for i, c := range courts {
		s.Name, s.Adapter, s.From = fmt.Sprint("sync-", i), c, "beginning"
		config.Syncs = append(config.Syncs, s)
	}
	return config
}

// Syncs that are all busy share the workers equally, never use more than there
// are, and each sends first what it claimed first.
func TestBusySyncsHaveEqualShares(t *testing.T) {
	w := newWorld(t)
	var g traffic
	counted := func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		g.begin()
		defer g.end()
		return takes(500*time.Millisecond)(ctx, m, attempt) // so long that recordings and claims take little of the time
	}
	courts := []*court{newCourt(counted), newCourt(counted), newCourt(counted)}
	config := three(16, courts...)
	w.register(config)
	w.bulk(200)
	w.start("relay-1", config)
	counts := func() []int {
		return []int{courts[0].count(), courts[1].count(), courts[2].count()}
	}
	w.eventually("all are busy", func() bool { return slices.Min(counts()) > 10 })
	first := counts()
	w.eventually("240 more are sent", func() bool {
		now := counts()
		return now[0]+now[1]+now[2]-first[0]-first[1]-first[2] > 240
	})
	last := counts()
	for i, m := range courts[0].got() {
		var n int
		if _, err := fmt.Sscanf(m.Key, "B-%d", &n); err != nil {
			t.Fatal(err)
		}
		if late := i + 1 - n; late > 60 {
			t.Errorf("the event of %s was sent after %d younger ones", m.Key, late)
		}
	}
	shares := []int{last[0] - first[0], last[1] - first[1], last[2] - first[2]}
	t.Logf("shares: %v", shares)
	if most := g.peak(); most != 16 {
		t.Errorf("%d deliveries were in flight, want as many as there are workers: 16", most)
	}
	if least, most := slices.Min(shares), slices.Max(shares); float64(least) < 0.8*float64(most) {
		t.Errorf("sent %v meanwhile, want about equal shares", shares)
	}
}

// A sync whose receiver is slow keeps no more than its share of the workers
// from the others.
func TestSlowSyncLeavesTheOthersTheirShare(t *testing.T) {
	w := newWorld(t)
	slow, quick, fresh := newCourt(takes(3*time.Second)), newCourt(takes(50*time.Millisecond)), newCourt(takes(50*time.Millisecond))
	config := three(16, slow, quick, fresh)
	config.Syncs[0].Events, config.Syncs[1].Events, config.Syncs[2].Events = []string{"slow"}, []string{"quick"}, []string{"fresh"}
	w.register(config)
	write := func(what string, n int) {
		w.exec(`INSERT INTO outbox.event (type, key, payload) SELECT $1, $1 || clock_timestamp() || n, '{"n":1}' FROM generate_series(1, $2) AS n`, what, n)
	}
	write("slow", 500)
	write("quick", 5000)
	w.start("relay-1", config)
	w.eventually("both are busy", func() bool { return slow.count() > 20 && quick.count() > 100 })
	var waits []time.Duration
	for n := range 8 {
		before, began := fresh.count(), time.Now()
		write("fresh", 40)
		w.within(time.Minute, fmt.Sprint("the third sync is served, ", n), func() bool { return fresh.count() == before+40 })
		waits = append(waits, time.Since(began).Round(time.Millisecond))
	}
	w.goesOn("slow")
	w.goesOn("quick")
	t.Logf("waits: %v", waits)
}

// diedWith makes deliveries look as if so many relays had died while sending them.
func (w *world) diedWith(deaths int, condition string) {
	w.t.Helper()
	w.exec(`UPDATE outbox.delivery SET state = 'sending', claim = gen_random_uuid(), claimed_by = 'dead relay',
		lease_until = now() - interval '1 second', crashes = $1 WHERE `+condition, deaths)
}

// What one killed relay had claimed goes at full concurrency as soon as its
// lease has ended: a single death is no reason to suspect a delivery.
func TestDeliveriesOfOneDeadRelayGoTogether(t *testing.T) {
	w := newWorld(t)
	var g traffic
	release := make(chan struct{})
	var once sync.Once
	free := func() { once.Do(func() { close(release) }) }
	defer free()
	c := newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		g.begin()
		defer g.end()
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
	w.within(time.Minute, "all 16 workers send them", func() bool { return g.peak() == 16 })
	free()
	w.drained()
}

// A delivery during which two relays died is sent while nothing else of its
// sync is under way. Other syncs go on meanwhile.
func TestSuspectIsSentAloneAndStopsNobody(t *testing.T) {
	w := newWorld(t)
	var g traffic
	other := newCourt(takes(20 * time.Millisecond))
	most, meanwhile := 0, 0
	suspect := make(chan struct{})
	c := newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		g.begin()
		defer g.end()
		if m.Key != "suspect" {
			return takes(20*time.Millisecond)(ctx, m, attempt)
		}
		defer close(suspect)
		g.peak() // from now on
		before := other.count()
		for ctx.Err() == nil && meanwhile < 50 {
			time.Sleep(time.Millisecond)
			meanwhile = other.count() - before
		}
		most = g.peak()
		return accepts(ctx, m, attempt)
	})
	config := three(8, c, other)
	w.register(config)
	w.emit("suspect", map[string]any{"n": 1})
	w.diedWith(2, `sync = 'sync-0'`)
	w.bulk(600)
	w.start("relay-1", config)
	select {
	case <-suspect:
	case <-time.After(30 * time.Second):
		t.Fatal("the suspect was not sent within 30s")
	}
	if most != 1 || meanwhile < 50 {
		t.Errorf("while the suspect was sent, %d deliveries of its sync were in flight and the other sync sent %d, want 1 and 50", most, meanwhile)
	}
	w.drainedWithin(60 * time.Second)
}

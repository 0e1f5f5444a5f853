package relay_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/relay"
)

// slack widens the bounds of these tests, because they run while others run. None of them bounds
// a time. A wait is counted in requests that are sent first, so no test fails on a slow machine.
const slack = 3

// takes answers after d, as a receiver with work to do.
func takes(d time.Duration) func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
	return func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
		return accepts(ctx, m, attempt)
	}
}

// lanes writes so many events for each of the keys lane-0, lane-1 and so on, in turn.
func (w *world) lanes(keys, each int) {
	w.t.Helper()
	w.exec(`INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', 'lane-' || n % $1, jsonb_build_object('n', n / $1) FROM generate_series(0, $1::int * $2::int - 1) AS n`, keys, each)
}

// freshKeysAreSent writes n events of new keys, each after the one before was sent. Between a write
// and its request, the receiver gets at most so many other requests.
func (w *world) freshKeysAreSent(c *court, n, most int) {
	w.t.Helper()
	var waits []int
	for range n {
		key := fmt.Sprint("fresh-", c.count(), "-", time.Now().UnixNano())
		w.emit(key, map[string]any{"n": 1})
		waits = append(waits, w.goFirst(c, c.count(), most, "the fresh key", func(m adapters.Message) bool { return m.Key == key }))
	}
	w.t.Logf("the receiver got %v other requests before fresh keys", waits)
}

// goFirst waits for a request. It returns how many other requests the receiver got before it, after
// the first so many. This number is at most the bound.
func (w *world) goFirst(c *court, since, most int, what string, is func(adapters.Message) bool) (before int) {
	w.t.Helper()
	w.eventually(what+" is sent", func() bool {
		at := slices.IndexFunc(c.got(), is)
		before = max(at-since, 0)
		return at >= 0
	})
	if before > most {
		w.t.Errorf("the receiver got %d requests before that of %s, want at most %d", before, what, most)
	}
	return before
}

// open counts open deliveries of keys with a prefix.
func (w *world) open(keys string) int {
	w.t.Helper()
	return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE starts_with(key, $1)`, keys)
}

// Receivers that allow few connections are the normal case. Many keys have a long lane, and a new
// key is sent without a long wait.
func TestFreshKeyAmongManyBusyKeysOnFewWorkers(t *testing.T) {
	const takesEach = 200 * time.Millisecond
	for workers, promise := range map[int]time.Duration{4: 4 * time.Second, 8: 4 * time.Second, 16: 1500 * time.Millisecond, 32: 1500 * time.Millisecond} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			w := newWorld(t)
			c := newCourt(takes(takesEach))
			config := sync1(c)
			config.Workers = workers
			w.register(config)
			w.lanes(64, 10*workers)
			w.start("relay-1", config)
			w.eventually("all workers are busy", func() bool { return c.count() >= 2*workers })
			w.freshKeysAreSent(c, 5, slack*workers*int(promise/takesEach))
			if got := query[int](w, `SELECT count(DISTINCT key) FROM outbox.delivery WHERE starts_with(key, 'lane-')`); got != 64 {
				t.Errorf("%d lanes are left, want all 64: they were too short for this test", got)
			}
		})
	}
}

// The receiver becomes slow while a thousand lanes are claimed ahead.
func TestFreshKeyWhenTheReceiverBecomesSlow(t *testing.T) {
	w := newWorld(t)
	var slow atomic.Bool
	c := newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		if slow.Load() {
			return takes(200*time.Millisecond)(ctx, m, attempt)
		}
		return accepts(ctx, m, attempt)
	})
	config := sync1(c)
	w.register(config)
	w.lanes(400, 20)
	w.start("relay-1", config)
	w.eventually("it is fast", func() bool { return c.count() > 1000 })
	slow.Store(true)
	w.freshKeysAreSent(c, 3, slack*16*int(4*time.Second/(200*time.Millisecond)))
	if w.open("lane-") == 0 {
		t.Error("nothing is left in the lanes: they were too short for this test")
	}
}

// After an outage, a new event does not wait until all older events of other keys are delivered.
// Older events, also those of long lanes, are sent too, although there are as many new events as
// the receiver can take.
func TestFreshKeyAfterAnOutage(t *testing.T) {
	w := newWorld(t)
	c := newCourt(takes(20 * time.Millisecond))
	config := sync1(c)
	config.Workers = 8
	w.register(config)
	w.lanes(20, 100)
	w.bulk(18_000)
	w.start("relay-1", config)
	w.eventually("the backlog is being sent", func() bool { return c.count() > 50 })
	w.freshKeysAreSent(c, 5, slack*8*int(2*time.Second/(20*time.Millisecond)))
	w.exec(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'new-' || n, '{"n":1}' FROM generate_series(1, 3000) AS n`)
	lanes, older, newer := w.open("lane-"), w.open("B-"), w.open("new-")
	w.eventually("all are sent", func() bool {
		return w.open("lane-") < lanes-100 && w.open("B-") < older-50 && w.open("new-") < newer-50
	})
	if w.open("lane-") == 0 || w.open("B-") == 0 || w.open("new-") == 0 {
		t.Error("some waited until the last of the others was sent")
	}
}

// Deliveries behind failed ones do not delay other keys: neither while these fail, nor when a relay
// starts and scans all of them.
func TestFreshKeyAmongManyFailedKeys(t *testing.T) {
	const keys, each = 1000, 50
	w := newWorld(t)
	c := newCourt(func(_ context.Context, m adapters.Message, _ int) (adapters.Receipt, error) {
		if strings.HasPrefix(m.Key, "lane-") {
			return adapters.Receipt{Code: "HTTP 422"}, adapters.Permanent(errors.New("no such room"))
		}
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	config := sync1(c)
	config.Logger = slog.New(slog.DiscardHandler) // it says a thousand times that one has failed
	w.register(config)
	w.lanes(keys, each)
	r := w.start("relay-1", config)
	w.eventually("they are failing", func() bool { return c.count() > 0 })
	w.freshKeysAreSent(c, 10, keys) // a fast machine has them all failed meanwhile
	w.eventually("all have failed", func() bool { return query[int](w, `SELECT count(*) FROM outbox.failed`) == keys })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = w.start("relay-2", config)
	w.eventually("the next relay looks at the rows", func() bool { return r.Ready(t.Context()) == nil })
	w.freshKeysAreSent(c, 10, 0)
	if got := c.count(); got != keys+20 {
		t.Errorf("%d requests, want %d: one for each failed delivery and each fresh key", got, keys+20)
	}
}

// One key has a long lane, and a transaction keeps the deleted rows of its finished
// deliveries in the way. Its deliveries are sent all the same, and other keys do not wait for them.
func TestOneLongLane(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	config := sync1(c)
	w.register(config)
	w.lanes(1, 20_000)
	reader, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Rollback(context.Background()) }()
	if _, err := reader.Exec(t.Context(), `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.sync`); err != nil {
		t.Fatal(err)
	}
	w.exec(`DELETE FROM outbox.delivery WHERE event_seq < (SELECT min(event_seq) + 15000 FROM outbox.delivery)`)
	w.start("relay-1", config)
	w.eventually("its deliveries are sent", func() bool { return c.count() > 0 })
	w.freshKeysAreSent(c, 5, 2000) // of 5,000 that are left of the lane
	w.eventually("more of them are sent", func() bool { return c.count() > 100 })
	inOrder(t, c)
}

// A transaction writes to a new key and to a key whose lane is being sent. It commits when all
// workers are busy with later events. Its events are sent.
func TestLateCommitUnderFullLoad(t *testing.T) {
	w := newWorld(t)
	c := newCourt(takes(20 * time.Millisecond))
	config := sync1(c)
	config.Workers = 8
	w.register(config)
	late, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Rollback(context.Background()) }()
	var first string
	if err := late.QueryRow(t.Context(), `SELECT outbox.emit('scheduling:updated', 'lane-0', '{"n": -1}')::text`).Scan(&first); err != nil {
		t.Fatal(err)
	}
	if _, err := late.Exec(t.Context(), `SELECT outbox.emit('scheduling:updated', 'late', '{"n": 1}')`); err != nil {
		t.Fatal(err)
	}
	w.lanes(32, 100)
	w.start("relay-1", config)
	w.eventually("full load", func() bool { return c.count() > 200 })
	const perSecond = 8 * int(time.Second/(20*time.Millisecond))
	w.freshKeysAreSent(c, 1, slack*4*perSecond) // so the relay has looked at all that is committed
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	since := c.count()
	w.goFirst(c, since, slack*perSecond, "the late event", func(m adapters.Message) bool { return m.Key == "late" })
	w.goFirst(c, since, slack*perSecond, "the one in front of the lane", func(m adapters.Message) bool { return m.ID == first })
	if w.open("lane-0") == 0 {
		t.Error("nothing is left in the lane: it was too short for this test")
	}
}

// A rate limit is kept. A new key does not wait for all deliveries that wait for the limit.
func TestFreshKeyBehindARateLimit(t *testing.T) {
	const perSecond = 20
	w := newWorld(t)
	c := newCourt(accepts)
	config := sync1(c, func(s *relay.Sync) { s.Rate = perSecond })
	w.register(config)
	w.bulk(500)
	w.lanes(50, 10)
	began := time.Now()
	w.start("relay-1", config)
	w.eventually("it sends", func() bool { return c.count() > 0 })
	w.freshKeysAreSent(c, 3, slack*2*perSecond)
	w.eventually("it has sent for a while", func() bool { return c.count() >= 2*perSecond })
	if got, most := c.count(), int(time.Since(began).Seconds()*perSecond)+perSecond/10+1; got > most {
		t.Errorf("%d requests in %s, want at most %d", got, time.Since(began), most)
	}
}

// three configures up to three syncs of one relay that all take every event.
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

// Busy syncs share the workers equally, and never use more than there are. Each sends its
// deliveries in the order of the claims.
func TestBusySyncsHaveEqualShares(t *testing.T) {
	w := newWorld(t)
	var f traffic
	counted := func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		f.begin()
		defer f.end()
		return takes(500*time.Millisecond)(ctx, m, attempt)
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
		return now[0]+now[1]+now[2]-first[0]-first[1]-first[2] >= 240
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
	if most := f.peak(); most != 16 {
		t.Errorf("%d deliveries were in flight, want as many as there are workers: 16", most)
	}
	// A sync that a busy machine keeps from its claims for a while lends its workers.
	if least, most := slices.Min(shares), slices.Max(shares); 2*least < most {
		t.Errorf("sent %v meanwhile, want about equal shares", shares)
	}
}

// A sync whose receiver answers slowly uses no more than its share of the workers. Meanwhile a busy
// sync sends, and so does one that was idle.
func TestSlowSyncLeavesTheOthersTheirShare(t *testing.T) {
	for _, workers := range []int{8, 16} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			w := newWorld(t)
			answer := make(chan struct{})
			defer close(answer) // before the relay stops, which waits for its attempts
			slow := newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
				select {
				case <-answer: // at the end of the test: nobody who waits for it can send
				case <-ctx.Done():
				}
				return accepts(ctx, m, attempt)
			})
			quick, fresh := newCourt(takes(50*time.Millisecond)), newCourt(takes(50*time.Millisecond))
			config := three(workers, slow, quick, fresh)
			config.Lease = 10 * patience
			config.Syncs[0].Events, config.Syncs[1].Events = []string{"slow"}, []string{"quick"}
			w.register(config)
			w.exec(`INSERT INTO outbox.event (type, key, payload)
SELECT CASE WHEN n % 5 = 0 THEN 'slow' ELSE 'quick' END, 'B-' || n, '{"n":1}' FROM generate_series(1, 2500) AS n`)
			w.start("relay-1", config)
			w.eventually("both are busy", func() bool { return slow.count() > 0 && quick.count() > 50 })
			w.freshKeysAreSent(fresh, 8, 0)
			before := quick.count()
			w.eventually("the quick sync sends meanwhile", func() bool { return quick.count() > before+50 })
		})
	}
}

// Syncs use their own slots and shared slots hundreds of times. In the end there are as many as in
// the beginning.
func TestAsManySlotsComeBackAsWereTaken(t *testing.T) {
	const workers, each = 4, 100
	w := newWorld(t)
	var f traffic
	var gate atomic.Pointer[chan struct{}] // closed when requests may be answered
	c := newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		f.begin()
		defer f.end()
		select {
		case <-*gate.Load():
		case <-ctx.Done():
			return adapters.Receipt{}, ctx.Err()
		}
		return takes(2*time.Millisecond)(ctx, m, attempt)
	})
	config := three(workers, c, c)
	w.register(config)
	w.start("relay-1", config)
	for round := range 3 {
		open := make(chan struct{})
		gate.Store(&open)
		w.bulk(each)
		w.eventually(fmt.Sprintf("round %d: %d requests are in flight", round+1, workers), func() bool { return f.underWay() >= workers })
		close(open)
		w.drained()
		if got := f.peak(); got != workers {
			t.Errorf("round %d: up to %d requests in flight, want %d, the number of workers", round+1, got, workers)
		}
	}
}

// link is a relay's connection to the database. It can be silent: it carries no data, and closes no
// connection.
type link struct {
	mu     sync.Mutex
	gate   chan struct{} // closed while everything gets through
	closed context.Context
}

// newLink returns a link to the database at a URL, and the URL to use instead.
func newLink(t *testing.T, database string) (*link, string) {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal("the database URL cannot be parsed")
	}
	server := u.Host
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{gate: make(chan struct{}), closed: ctx}
	l.speak()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := new(net.Dialer).DialContext(ctx, "tcp", server)
			if err != nil {
				_ = near.Close()
				continue
			}
			stop := context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })
			all.Go(func() { l.copy(near, far); stop() })
			all.Go(func() { l.copy(far, near) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = listener.Close()
		all.Wait()
	})
	u.Host = listener.Addr().String()
	return l, u.String()
}

// copy copies data from one side to the other, until one of them ends.
func (l *link) copy(to, from net.Conn) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		l.mu.Lock()
		gate := l.gate
		l.mu.Unlock()
		select {
		case <-gate:
		case <-l.closed.Done():
			return
		}
		if _, failed := to.Write(buffer[:n]); failed != nil || err != nil {
			return
		}
	}
}

func (l *link) silence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gate = make(chan struct{})
}

func (l *link) speak() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.gate)
}

// A relay with claims stops for a while, as if its machine had stopped. When the leases have ended,
// another relay takes over. The first one continues later: it changes no result of the other, and
// works again.
func TestARelayResumesAfterASilence(t *testing.T) {
	const keys, each = 8, 5
	w := newWorld(t)
	resume := make(chan struct{})
	awake := sync.OnceFunc(func() { close(resume) })
	first := quickCourt{newCourt(func(ctx context.Context, m adapters.Message, attempt int) (adapters.Receipt, error) {
		<-resume // also when its context has ended: nobody is awake to see that
		return accepts(ctx, m, attempt)
	})}
	second := quickCourt{newCourt(accepts)}
	config := func(a adapters.Adapter) relay.Config {
		c := sync1(a)
		c.Logger = slog.New(slog.DiscardHandler)
		return c
	}
	w.register(config(second))
	w.lanes(keys, each)
	way, through := newLink(t, pgtest.AsRole(t, w.url, "outbox_relay"))
	t.Cleanup(awake)
	silent := w.startAt(through, "silent", config(first))
	w.eventually("the first sends one of each key", func() bool { return first.count() == keys })
	way.silence()
	other := w.start("other", config(second))
	w.endLeases("silent")
	w.eventually("all are taken over and delivered", func() bool { return second.count() == keys*each })
	inOrder(t, second.court)
	w.drained()
	way.speak()
	awake()
	w.eventually("the first one says what it knows", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE relay = 'silent' AND outcome = 'lease_lost'`) == keys
	})
	if got := query[string](w, `SELECT string_agg(DISTINCT format('%s of %s', outcome, relay), ', ') FROM outbox.delivery_log`); got != "delivered of other, lease_lost of silent, unknown of silent" {
		t.Errorf("the log says %s", got)
	}
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`); got != keys*each {
		t.Errorf("%d delivered, want %d", got, keys*each)
	}
	if err := other.stop(); err != nil {
		t.Fatal(err)
	}
	w.lanes(keys, 1)
	w.drained()
	if err := silent.stop(); err != nil {
		t.Fatal(err)
	}
}

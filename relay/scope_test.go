package relay_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
	"github.com/hms-mkt/lockstep/relay"
)

// host is a receiver with its own address. While it is dead, it does not answer, and closes its
// connections when drop is called.
type host struct {
	name     string // as it stands in events
	scope    string
	dead     atomic.Bool
	dropped  chan struct{}
	drop     func()
	requests atomic.Int64
	flying   atomic.Int64

	mu   sync.Mutex
	keys map[string]int // how often each was accepted
}

func (h *host) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.requests.Add(1)
	h.flying.Add(1)
	defer h.flying.Add(-1)
	_, _ = io.Copy(io.Discard, r.Body) // else the server does not notice that the client has gone
	if h.dead.Load() {
		select {
		case <-h.dropped:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keys[r.URL.Query().Get("key")]++
}

func (h *host) accepted(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.keys[key] > 0
}

// twoHosts returns two receivers with one port, and an adapter whose URL has the host of the event.
func twoHosts(t *testing.T, timeout time.Duration) (one, two *host, a adapters.Adapter) {
	t.Helper()
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := first.Addr().(*net.TCPAddr).Port
	second, err := net.Listen("tcp", fmt.Sprintf("127.0.0.2:%d", port))
	if err != nil {
		t.Fatalf("a second loopback address is needed (macOS: sudo ifconfig lo0 alias 127.0.0.2): %v", err)
	}
	hosts := make([]*host, 2)
	for i, l := range []net.Listener{first, second} {
		dropped := make(chan struct{})
		h := &host{
			name: fmt.Sprintf("127.0.0.%d", i+1), scope: l.Addr().String(), keys: map[string]int{},
			dropped: dropped, drop: sync.OnceFunc(func() { close(dropped) }),
		}
		s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}} //nolint:gosec // a test's
		s.Start()
		t.Cleanup(func() { h.drop(); s.Close() })
		hosts[i] = h
	}
	adapter, err := rest.New(rest.Config{
		URL: fmt.Sprintf("http://{fields.host}:%d/events?key={key}", port), Timeout: timeout,
		Allow: adapters.Allow{Hosts: []string{"127.0.0.1", "127.0.0.2"}, Networks: []string{"127.0.0.0/8"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = adapter.Close() })
	return hosts[0], hosts[1], adapter
}

type toHost struct {
	Host  string `json:"host"`
	Court string `json:"court,omitempty"`
}

// arrive writes events for the host, one after the other. Each arrives before the next
// is written.
func (w *world) arrive(h *host, prefix string, n int) {
	w.t.Helper()
	for i := range n {
		key := fmt.Sprintf("%s-%d", prefix, i)
		w.emit(key, toHost{Host: h.name})
		w.eventually(key+" arrives", func() bool { return h.accepted(key) })
	}
}

// One of two hosts does not answer during the whole test. Deliveries to the other one arrive before and
// after the requests to the first one fail. Only the dead host is on hold. Nothing but probes is sent
// to it, and no claim changes its lanes.
func TestADeadHostLeavesTheOtherAlone(t *testing.T) {
	w := newWorld(t)
	alive, dead, adapter := twoHosts(t, 10*patience)
	config := sync1(adapter)
	config.Workers, config.Lease = 8, 30*patience
	w.register(config)
	dead.dead.Store(true)
	const open = 300
	w.exec(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'D-' || n, jsonb_build_object('host', $1::text) FROM generate_series(1, $2) AS n`, dead.name, open)
	w.start("relay", config)
	w.eventually("requests to the dead host", func() bool { return dead.requests.Load() >= 4 })
	w.arrive(alive, "meanwhile", 30) // before the first request to the dead host ends
	dead.drop()
	w.arrive(alive, "failing", 30) // before the hold and while it begins
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE key LIKE 'D-%'`); n != open {
		t.Errorf("%d deliveries to the dead host are open, want all %d", n, open)
	}
	w.eventually("the dead host is on hold", func() bool {
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.hold WHERE kind = 'breaker')`)
	})
	if got := query[string](w, `SELECT string_agg(DISTINCT kind || ' ' || scope, ', ') FROM outbox.hold`); got != "breaker "+dead.scope {
		t.Errorf("holds: %s", got)
	}
	if got := query[string](w, `SELECT coalesce(hold_kind, 'none') FROM outbox.sync`); got != "none" {
		t.Errorf("the sync says that it is on hold: %s", got)
	}
	if most := dead.requests.Load(); most > 40 {
		t.Errorf("%d requests were sent to the dead host before its hold", most)
	}
	w.eventually("every lane of the dead host is in its scope", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.lane WHERE scope = $1 AND claim IS NULL`, dead.scope) >= open-1
	})

	// Under the hold.
	const lanes = `SELECT array_agg(key || ' ' || xmin ORDER BY key) FROM outbox.lane WHERE scope = $1`
	before, requests := query[[]string](w, lanes, dead.scope), dead.requests.Load()
	probes := query[int](w, `SELECT probes FROM outbox.hold`)
	w.arrive(alive, "held", 100)
	sent, probed := int(dead.requests.Load()-requests), query[int](w, `SELECT probes FROM outbox.hold`)-probes
	if sent > probed+1 {
		t.Errorf("%d requests were sent during the hold, with %d probes", sent, probed)
	}
	touched := 0
	was := strings.Join(before, "\n") + "\n"
	for _, lane := range query[[]string](w, lanes, dead.scope) {
		if !strings.Contains(was, lane+"\n") {
			touched++
		}
	}
	if touched > probed+1 {
		t.Errorf("%d lanes of the dead host were claimed during its hold, with %d probes", touched, probed)
	}

	dead.dead.Store(false)
	w.drained()
	for i := range open {
		if !dead.accepted(fmt.Sprintf("D-%d", i+1)) {
			t.Errorf("D-%d did not arrive", i+1)
		}
	}
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'failed'`); n != 0 {
		t.Errorf("%d deliveries failed", n)
	}
	w.noHolds()
}

// courts answer as the event tells them.
type courts struct {
	mu    sync.Mutex
	calls map[string]int
	says  func(court, key string, nth int) error
}

func (c *courts) Deliver(_ context.Context, m adapters.Message) (adapters.Receipt, error) {
	fields, err := m.Fields()
	if err != nil {
		return adapters.Receipt{}, err
	}
	name, _ := fields["court"].(string)
	c.mu.Lock()
	c.calls[name]++
	nth := c.calls[name]
	c.mu.Unlock()
	if err := c.says(name, m.Key, nth); err != nil {
		return adapters.Receipt{Code: "HTTP 429"}, err
	}
	return adapters.Receipt{Code: "HTTP 200"}, nil
}

func (c *courts) count(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[name]
}

func per(expression string) func(*relay.Sync) {
	return func(s *relay.Sync) { s.Per = expression }
}

// A receiver that asks one court to wait holds that court's scope, and no other.
func TestAThrottleHoldsItsScopeOnly(t *testing.T) {
	w := newWorld(t)
	c := &courts{calls: map[string]int{}, says: func(name, _ string, nth int) error {
		if name == "busy" && nth == 1 {
			return adapters.Throttled(fmt.Errorf("too many"), time.Hour)
		}
		return nil
	}}
	w.register(sync1(c, per("event.court")))
	w.start("relay", sync1(c, per("event.court")))
	w.emit("B-1", toHost{Court: "busy"})
	w.eventually("a throttle", func() bool {
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.hold WHERE kind = 'throttle' AND scope = 'busy')`)
	})
	for i := range 20 {
		w.emit(fmt.Sprint("B-", i+2), toHost{Court: "busy"})
		w.emit(fmt.Sprint("F-", i), toHost{Court: "free"})
		w.emit(fmt.Sprint("N-", i), map[string]any{"other": 1}) // of no court
	}
	w.eventually("the others arrive", func() bool { return c.count("free") == 20 && c.count("") == 20 })
	if n := c.count("busy"); n != 1 {
		t.Errorf("%d requests to the court that asked for quiet, want the 1 before it did", n)
	}
	w.exec(`UPDATE outbox.hold SET until = clock_timestamp()`)
	w.makeDue("B-1")
	w.drained()
	w.noHolds()
}

// An operator's hold of a scope stops that scope. It is visible in the views, and ends with its own
// resume.
func TestAScopeIsPausedAndResumed(t *testing.T) {
	w := newWorld(t)
	c := &courts{calls: map[string]int{}, says: func(string, string, int) error { return nil }}
	w.register(sync1(c, per("event.court")))
	w.exec(`SELECT outbox.pause('CourtCalendarSync', 'moving house', scope => 'NY-07')`)
	w.start("relay", sync1(c, per("event.court")))
	held := w.emit("P-1", toHost{Court: "NY-07"})
	w.emit("P-2", toHost{Court: "NY-08"})
	w.eventually("the other court gets its event", func() bool { return c.count("NY-08") == 1 })
	w.eventually("the lane is in its scope", func() bool {
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.lane WHERE key = 'P-1' AND scope = 'NY-07' AND claim IS NULL)`)
	})
	if n := c.count("NY-07"); n != 0 {
		t.Errorf("%d requests to the court on hold", n)
	}
	why := query[string](w, `SELECT outbox.why_not_delivered($1)`, held)
	if !strings.Contains(why, "destination NY-07 of sync CourtCalendarSync is on hold (operator)") || !strings.Contains(why, "moving house") {
		t.Errorf("why: %s", why)
	}
	if got := query[string](w, `SELECT coalesce(hold, 'none') || ' ' || (scope_holds -> 0 ->> 'scope') || ' ' || (scope_holds -> 0 ->> 'hold') FROM outbox.status WHERE sync IS NOT NULL`); got != "none NY-07 operator" {
		t.Errorf("status: %s", got)
	}
	w.exec(`SELECT outbox.resume('CourtCalendarSync')`) // of the whole sync, which is not paused
	if n := query[int](w, `SELECT count(*) FROM outbox.hold`); n != 1 {
		t.Errorf("%d holds after the resume of the sync", n)
	}
	w.exec(`SELECT outbox.resume('CourtCalendarSync', 'NY-07')`)
	w.drained()
	if n := c.count("NY-07"); n != 1 {
		t.Errorf("%d requests to the court after its resume", n)
	}
	if got := query[string](w, `SELECT string_agg(outcome || ' ' || reason, ', ' ORDER BY id) FROM outbox.delivery_log WHERE outcome IN ('paused', 'resumed')`); got != "paused scope NY-07: moving house, resumed scope NY-07" {
		t.Errorf("log: %s", got)
	}
}

// A scope that is no text fails its delivery with the reason.
func TestAScopeThatCannotBeFailsAsMapping(t *testing.T) {
	w := newWorld(t)
	c := &courts{calls: map[string]int{}, says: func(string, string, int) error { return nil }}
	w.register(sync1(c, per("event.court")))
	w.start("relay", sync1(c, per("event.court")))
	for key, payload := range map[string]any{
		"number": map[string]any{"court": 7}, "long": toHost{Court: strings.Repeat("x", 201)}, "control": toHost{Court: "a\nb"},
	} {
		w.emit(key, payload)
	}
	w.eventually("all have failed", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.failed WHERE error_class = 'mapping' AND error LIKE '%limits.per%'`) == 3
	})
	if len(c.calls) != 0 {
		t.Errorf("sent: %v", c.calls)
	}
}

// A probe of one scope is sent to that scope, and lifts no other's hold.
func TestAProbeIsSentToItsScope(t *testing.T) {
	w := newWorld(t)
	var healed atomic.Bool
	c := &courts{calls: map[string]int{}, says: func(name, _ string, _ int) error {
		if name == "down" || name == "up" && !healed.Load() {
			return fmt.Errorf("%s is away", name)
		}
		return nil
	}}
	config := sync1(c, per("event.court"))
	w.register(config)
	for i := range 20 {
		w.emit(fmt.Sprint("D-", i), toHost{Court: "down"})
		w.emit(fmt.Sprint("U-", i), toHost{Court: "up"})
	}
	w.start("relay", config)
	w.eventually("both are on hold", func() bool {
		return query[string](w, `SELECT coalesce(string_agg(scope, ' ' ORDER BY scope), '') FROM outbox.hold WHERE kind = 'breaker'`) == "down up"
	})
	healed.Store(true)
	w.eventually("what waited for the healed one arrives", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE key LIKE 'U-%'`) == 0
	})
	w.eventually("the other alone is on hold", func() bool {
		return query[string](w, `SELECT coalesce(string_agg(scope, ' ' ORDER BY scope), '') FROM outbox.hold`) == "down"
	})
	// A lane whose delivery now goes to another scope is corrected, and is not sent as a probe.
	w.exec(`UPDATE outbox.lane SET scope = 'ghost' WHERE key = 'D-1' AND claim IS NULL`)
	w.exec(`INSERT INTO outbox.hold (sync, scope, kind, until, reason, by) VALUES ('CourtCalendarSync', 'ghost', 'breaker', clock_timestamp(), 'r', 'test')`)
	w.eventually("the lane is put right, and the hold that nothing waits for is lifted", func() bool {
		return query[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.hold WHERE scope = 'ghost') AND NOT EXISTS (SELECT FROM outbox.lane WHERE scope = 'ghost')`)
	})
}

// With per, concurrency is for each destination, and the workers bound the sum.
func TestConcurrencyIsPerDestination(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	flying, most, sum, mostSum := map[string]int{}, map[string]int{}, 0, 0
	gate := make(chan struct{})
	c := &courts{calls: map[string]int{}, says: func(name, _ string, _ int) error {
		mu.Lock()
		flying[name]++
		sum++
		most[name], mostSum = max(most[name], flying[name]), max(mostSum, sum)
		mu.Unlock()
		<-gate
		mu.Lock()
		defer mu.Unlock()
		flying[name]--
		sum--
		return nil
	}}
	config := sync1(c, per("event.court"), func(s *relay.Sync) { s.Concurrency = 2 })
	w.register(config)
	for i := range 30 {
		for _, name := range []string{"a", "b", "c"} {
			w.emit(fmt.Sprint(name, i), toHost{Court: name})
		}
	}
	w.start("relay", config)
	w.eventually("two to each", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return sum == 6
	})
	close(gate)
	w.drained()
	for name, n := range most {
		if n != 2 {
			t.Errorf("%d were in flight to %s, want 2", n, name)
		}
	}
	if mostSum != 6 {
		t.Errorf("%d were in flight to all, want 6", mostSum)
	}
}

// A reload replaces limits.per. Lanes and holds of scopes that do not exist any more are corrected.
func TestAReloadReplacesPer(t *testing.T) {
	w := newWorld(t)
	var healed atomic.Bool
	c := &courts{calls: map[string]int{}, says: func(name, _ string, _ int) error {
		if name == "down" && !healed.Load() {
			return fmt.Errorf("%s is away", name)
		}
		return nil
	}}
	config := sync1(c, per("event.court"))
	w.register(config)
	for i := range 20 {
		w.emit(fmt.Sprint("D-", i), toHost{Court: "down", Host: "x"})
	}
	r := w.start("relay", config)
	holds := func(want string) func() bool {
		return func() bool {
			return query[string](w, `SELECT coalesce(string_agg(scope || '/' || kind, ' ' ORDER BY scope), '') FROM outbox.hold`) == want
		}
	}
	w.eventually("the court is on hold", holds("down/breaker"))
	if _, err := r.Reload(sync1(c, per("event."))); err == nil || !strings.Contains(err.Error(), "limits.per: the expression does not compile") {
		t.Errorf("a bad expression: %v", err)
	}
	if _, err := r.Reload(sync1(c, per("event.host"))); err != nil {
		t.Fatal(err)
	}
	w.eventually("the hold is of the new scope", holds("x/breaker"))
	if _, err := r.Reload(sync1(c)); err != nil {
		t.Fatal(err)
	}
	w.eventually("the whole sync is on hold too", holds("/breaker x/breaker"))
	healed.Store(true)
	w.drained()
	w.eventually("no hold is left", holds(""))
}

// A failure that is common to all destinations, such as a refusal of the token endpoint, puts the whole
// sync on hold. A certificate that one host refuses does not.
func TestTroubleWithTheTokenHoldsTheWholeSync(t *testing.T) {
	w := newWorld(t)
	refusing := adapterFunc(func(_ context.Context, m adapters.Message) (adapters.Receipt, error) {
		if m.Key == "A-1" {
			return adapters.Receipt{}, adapters.Auth(fmt.Errorf("the host refuses the certificate"))
		}
		return adapters.Receipt{}, adapters.Common(adapters.Auth(fmt.Errorf("the token endpoint refuses")))
	})
	config := sync1(refusing, per("event.court"))
	w.register(config)
	w.emit("A-1", toHost{Court: "a"})
	w.start("relay", config)
	for _, want := range []string{"a/auth", "/auth a/auth"} {
		w.eventually(want, func() bool {
			return query[string](w, `SELECT coalesce(string_agg(scope || '/' || kind, ' ' ORDER BY scope), '') FROM outbox.hold`) == want
		})
		w.emit("B-1", toHost{Court: "b"})
	}
}

type adapterFunc func(context.Context, adapters.Message) (adapters.Receipt, error)

func (f adapterFunc) Deliver(ctx context.Context, m adapters.Message) (adapters.Receipt, error) {
	return f(ctx, m)
}

// Several destinations fail, each with fewer keys than the breaker needs. None of them is put on hold.
func TestADestinationAloneTripsItsBreaker(t *testing.T) {
	w := newWorld(t)
	c := &courts{calls: map[string]int{}, says: func(name, _ string, _ int) error { return fmt.Errorf("%s is away", name) }}
	config := sync1(c, per("event.court"), func(s *relay.Sync) { s.Retry.Initial, s.Retry.Max = time.Minute, time.Hour })
	w.register(config)
	for i := range 9 {
		for _, name := range []string{"a", "b", "c"} {
			w.emit(fmt.Sprint(name, i), toHost{Court: name})
		}
	}
	w.start("relay", config)
	w.eventually("all were tried", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'retry'`) == 27
	})
	if n := query[int](w, `SELECT count(*) FROM outbox.hold`); n != 0 {
		t.Errorf("%d holds though no destination has failed with ten keys", n)
	}
	w.emit("a9", toHost{Court: "a"})
	w.eventually("the tenth key holds its destination", func() bool {
		return query[string](w, `SELECT coalesce(string_agg(scope, ' '), '') FROM outbox.hold`) == "a"
	})
}

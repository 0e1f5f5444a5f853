package relay_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// window is a window that opens and closes so long after now, by the database's clock. It returns the two
// times as well.
func (w *world) window(opens, closes time.Duration) (_ relay.Window, from, until time.Time) {
	w.t.Helper()
	now := query[time.Time](w, `SELECT clock_timestamp()`).UTC().Truncate(time.Millisecond)
	from, until = now.Add(opens), now.Add(closes)
	ofDay := func(t time.Time) relay.TimeOfDay { return relay.TimeOfDay(t.Sub(t.Truncate(24 * time.Hour))) }
	return relay.Window{From: ofDay(from), To: ofDay(until)}, from, until
}

// within sets the windows of a sync.
func within(windows ...relay.Window) func(*relay.Sync) {
	return func(s *relay.Sync) { s.Windows = windows }
}

// starts is a court that remembers when each attempt began.
type starts struct {
	*court
	mu sync.Mutex
	at []time.Time
}

func newStarts(answer func(ctx context.Context, m adapters.Message, nth int) (adapters.Receipt, error)) *starts {
	return &starts{court: newCourt(answer)}
}

func (s *starts) Deliver(ctx context.Context, m adapters.Message) (adapters.Receipt, error) {
	s.mu.Lock()
	s.at = append(s.at, time.Now())
	s.mu.Unlock()
	return s.court.Deliver(ctx, m)
}

// between counts the attempts that began from one time to another.
func (s *starts) between(from, until time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range s.at {
		if !at.Before(from) && at.Before(until) {
			n++
		}
	}
	return n
}

// outsideWindow waits until the sync is on hold for its window.
func (w *world) outsideWindow() {
	w.t.Helper()
	w.eventually("outside the window", func() bool { return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.hold WHERE kind = 'window')`) })
}

// reload gives relays a new configuration.
func (w *world) reload(config relay.Config, relays ...*running) {
	w.t.Helper()
	for _, r := range relays {
		if _, err := r.Reload(config); err != nil {
			w.t.Fatal(err)
		}
	}
}

// opensSoon gives relays whose windows are closed a window that opens in a second. It returns when.
func (w *world) opensSoon(config relay.Config, relays ...*running) (opens time.Time) {
	w.t.Helper()
	window, opens, _ := w.window(time.Second, time.Hour)
	config.Syncs[0].Windows = []relay.Window{window}
	w.reload(config, relays...)
	return opens
}

func TestAWindowOpensByItself(t *testing.T) {
	w := newWorld(t)
	c := newStarts(accepts)
	window, opens, _ := w.window(time.Hour, 2*time.Hour)
	config := sync1(c, within(window))
	relays := []*running{w.start("relay-1", config), w.start("relay-2", config)}
	w.bulk(40)
	w.outsideWindow()
	w.counts("syncs that are registered", 1, `SELECT count(*) FROM outbox.sync WHERE backfill_seq IS NULL`)
	want := "outside its window, opens " + opens.Format("Mon 2006-01-02 15:04") + " UTC"
	if got := query[string](w, `SELECT hold_reason FROM outbox.status WHERE hold = 'window'`); got != want {
		t.Errorf("reason %q, want %q", got, want)
	}
	if until := query[time.Time](w, `SELECT hold_until FROM outbox.status`); !until.Equal(opens) {
		t.Errorf("until %s, want %s", until, opens)
	}
	opens = w.opensSoon(config, relays...)
	w.drained()
	if early := c.between(time.Time{}, opens); early > 0 {
		t.Errorf("%d attempts began before the opening", early)
	}
	w.noHolds()
}

// Of a busy sync, no delivery starts after the closing. Those in flight end normally, and the others
// wait without a claim.
func TestNothingStartsAfterAWindowCloses(t *testing.T) {
	w := newWorld(t)
	c := newStarts(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		time.Sleep(50 * time.Millisecond)
		return adapters.Receipt{Code: "HTTP 200"}, nil
	})
	config := sync1(c)
	r := w.start("relay-1", config)
	w.bulk(5000)
	w.eventually("busy", func() bool { return c.count() > 0 })
	var closes time.Time
	for !time.Now().Before(closes) { // the relay knew it before
		config.Syncs[0].Windows = make([]relay.Window, 1)
		config.Syncs[0].Windows[0], _, closes = w.window(-time.Hour, time.Second)
		w.reload(config, r)
	}
	w.outsideWindow()
	w.counts("claims", 0, `SELECT count(*) FROM outbox.lane WHERE claim IS NOT NULL`)
	if late := c.between(closes, closes.Add(time.Hour)); late > 0 || c.count() == 5000 {
		t.Errorf("of %d attempts, %d began after the closing", c.count(), late)
	}
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome <> 'delivered'`); n > 0 {
		t.Errorf("%d attempts did not end normally", n)
	}
	w.reload(sync1(newCourt(accepts)), r)
	w.drained()
	w.noHolds()
}

// The hold of a window ends when the configuration has no windows any more, or others, even if no relay
// ran meanwhile.
func TestTheConfigurationEndsAWindowsHold(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	closed, _, _ := w.window(time.Hour, 2*time.Hour)
	open, _, _ := w.window(-time.Hour, time.Hour)
	for i, next := range []relay.Config{sync1(c), sync1(c, within(closed, open))} {
		r := w.start("relay-1", sync1(c, within(closed)))
		w.outsideWindow()
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		w.emit("H-1", map[string]any{"n": i})
		r = w.start("relay-1", next)
		w.drained()
		w.reload(sync1(c, within(closed)), r)
		w.outsideWindow()
		w.emit("H-1", map[string]any{"n": i})
		w.reload(next, r)
		w.drained()
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// A relay claimed a delivery just before the closing, and died. The one that takes it over waits for the
// opening.
func TestADeliveryOfADeadRelayWaitsForTheWindow(t *testing.T) {
	w := newWorld(t)
	c := newStarts(accepts)
	w.register(sync1(c))
	w.emit("H-1", map[string]any{"n": 1})
	dead, err := outbox.Open(t.Context(), w.url, outbox.Options{Name: "dead"})
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	claims, err := dead.Claim(t.Context(), outbox.ClaimRequest{Sync: "CourtCalendarSync", Lease: time.Minute, Capacity: 1}, &outbox.Arrivals{})
	if err != nil || len(claims.Deliveries) != 1 {
		t.Fatalf("claimed %d, %v", len(claims.Deliveries), err)
	}
	window, _, _ := w.window(time.Hour, 2*time.Hour)
	config := sync1(c, within(window))
	r := w.start("relay-2", config)
	w.outsideWindow()
	w.endLeases("dead")
	opens := w.opensSoon(config, r)
	w.drained()
	if c.count() != 1 || c.between(time.Time{}, opens) > 0 {
		t.Errorf("%d attempts, of which %d began before the opening", c.count(), c.between(time.Time{}, opens))
	}
	if got := query[string](w, `SELECT string_agg(outcome || ' ' || coalesce(relay, ''), ', ' ORDER BY id) FROM outbox.delivery_log WHERE attempt > 0`); got != "unknown dead, delivered relay-2" {
		t.Errorf("the log has %s", got)
	}
}

// An auth hold is not probed outside the window. It is at the opening.
func TestNoProbeStartsOutsideTheWindow(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
		return adapters.Receipt{Code: "HTTP 401"}, adapters.Auth(errors.New("HTTP 401"))
	})
	r := w.start("relay-1", sync1(c))
	w.bulk(20)
	w.eventually("held for auth", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.sync WHERE hold_kind = 'auth'`) == 1
	})
	closed, _, _ := w.window(time.Hour, 2*time.Hour)
	accepting := newStarts(accepts)
	config := sync1(accepting, within(closed))
	w.reload(config, r)
	w.counts("holds, for auth and the window", 2, `SELECT count(*) FROM outbox.hold`)
	opens := w.opensSoon(config, r)
	w.drained()
	if n := accepting.between(time.Time{}, opens); n > 0 {
		t.Errorf("%d probes began outside the window", n)
	}
}

// A delivery whose retry is due while the window is closed is sent at the opening. The time since then is not
// taken from its budget.
func TestTheClosedTimeUsesNoBudget(t *testing.T) {
	w := newWorld(t)
	tried, release := make(chan struct{}), make(chan struct{})
	c := newStarts(func(_ context.Context, _ adapters.Message, nth int) (adapters.Receipt, error) {
		if nth == 1 {
			close(tried)
			<-release
		}
		return adapters.Receipt{Code: "HTTP 500"}, errors.New("HTTP 500")
	})
	config := sync1(c, func(s *relay.Sync) { s.Retry.Initial, s.Retry.Max = 100*time.Millisecond, 100*time.Millisecond })
	r := w.start("relay-1", config)
	w.emit("H-1", map[string]any{"n": 1})
	<-tried
	closed, _, _ := w.window(time.Hour, 2*time.Hour)
	config.Syncs[0].Windows = []relay.Window{closed}
	w.reload(config, r)
	w.outsideWindow()
	close(release)
	w.eventually("the retry is due", func() bool {
		return query[bool](w, `SELECT EXISTS (SELECT FROM outbox.delivery WHERE state = 'retry' AND due_at <= clock_timestamp())`)
	})
	spent := query[int](w, `SELECT spent_ms FROM outbox.delivery`)
	opens := w.opensSoon(config, r)
	w.eventually("tried again", func() bool { return query[bool](w, `SELECT attempts > 1 FROM outbox.delivery`) })
	if c.between(opens, opens.Add(time.Hour)) != c.count()-1 {
		t.Errorf("of %d attempts, %d began after the opening, want all but the first", c.count(), c.between(opens, opens.Add(time.Hour)))
	}
	if more := query[int](w, `SELECT (spent_ms - $1) / (attempts - 1) FROM outbox.delivery`, spent); more > 900 {
		t.Errorf("an attempt after the opening used %d ms of the budget", more)
	}
}

// At the opening, everything that has waited is due. The rate limit applies as ever.
func TestAnOpeningKeepsTheRateLimit(t *testing.T) {
	w := newWorld(t)
	c := newStarts(accepts)
	const rate = 40
	closed, _, _ := w.window(time.Hour, 2*time.Hour)
	config := sync1(c, within(closed), func(s *relay.Sync) { s.Rate = rate })
	r := w.start("relay-1", config)
	w.bulk(80)
	w.outsideWindow()
	opens := w.opensSoon(config, r)
	w.drained()
	if early := c.between(time.Time{}, opens); early > 0 {
		t.Errorf("%d attempts began before the opening", early)
	}
	const burst = rate / 10
	if n := c.between(opens, opens.Add(time.Second)); n > rate+burst+1 {
		t.Errorf("%d attempts in the first second, want at most %d", n, rate+burst+1)
	}
}

func TestWrongWindowsAreRefused(t *testing.T) {
	const hour = relay.TimeOfDay(time.Hour)
	for says, change := range map[string]func(*relay.Sync){
		"from -1h0m0s":                          within(relay.Window{From: -hour, To: hour}),
		"from 24h0m0s":                          within(relay.Window{From: 24 * hour, To: hour}),
		"to 25h0m0s":                            within(relay.Window{To: 25 * hour}),
		"window 2: from and to are both 1h0m0s": within(relay.Window{To: hour}, relay.Window{From: hour, To: hour}),
		"there are seven":                       within(relay.Window{To: hour, Days: 1 << 7}),
		"51 windows":                            within(make([]relay.Window, 51)...),
		"1001 holidays":                         func(s *relay.Sync) { s.Holidays = make([]relay.Date, 1001) },
		"there are none":                        func(s *relay.Sync) { s.Holidays = make([]relay.Date, 1) },
	} {
		_, err := relay.New(nil, sync1(newCourt(accepts), change))
		if err == nil || !strings.Contains(fmt.Sprint(err), says) {
			t.Errorf("got %v, want %s", err, says)
		}
	}
}

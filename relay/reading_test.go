package relay_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

// archive is a receiver that can be read. It takes any message, and the script says what it
// answers. An entry is a key with the version that it has.
type archive struct {
	mu      sync.Mutex
	holds   map[string]string // by key: the event that was taken last
	taken   []string          // the idempotency keys of messages that were taken, in order
	reads   int
	script  func(a *archive, m adapters.Message) (adapters.Receipt, error) // called with the lock
	readAs  func(a *archive, m adapters.Message) (adapters.Reading, error) // called with the lock
	unread  bool                                                           // cannot be read
	message []adapters.Message
}

func (a *archive) Deliver(_ context.Context, m adapters.Message) (adapters.Receipt, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.message = append(a.message, m)
	return a.script(a, m)
}

func (a *archive) Reads(adapters.Message) bool { return !a.unread }

func (a *archive) Read(_ context.Context, m adapters.Message) (adapters.Reading, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reads++
	if a.readAs != nil {
		return a.readAs(a, m)
	}
	switch a.holds[m.Key] {
	case m.ID:
		return adapters.Reading{Standing: adapters.Equal, Code: "READ 200", Ref: &adapters.Ref{ExternalID: "X-" + m.Key}}, nil
	case "":
		return adapters.Reading{Standing: adapters.Absent, Code: "READ 404"}, nil
	default:
		return adapters.Reading{Standing: adapters.Older, Code: "READ 200", Ref: &adapters.Ref{ExternalID: "X-" + m.Key}}, nil
	}
}

func (a *archive) take(m adapters.Message) (adapters.Receipt, error) {
	a.taken = append(a.taken, m.IdempotencyKey)
	a.holds[m.Key] = m.ID
	return adapters.Receipt{Code: "SENT 200", Ref: &adapters.Ref{ExternalID: "X-" + m.Key}}, nil
}

func (a *archive) messages() []adapters.Message {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.message)
}

func newArchive(script func(a *archive, m adapters.Message) (adapters.Receipt, error)) *archive {
	return &archive{holds: map[string]string{}, script: script}
}

var errLost = adapters.Unknown(errors.New("no answer"))

// historyIs waits for the log to have these rows: outcome and attempt of each.
func (w *world) historyIs(want string) {
	w.t.Helper()
	w.eventually(want, func() bool {
		return query[string](w, `SELECT coalesce(string_agg(outcome || coalesce(' ' || attempt, ''), ', ' ORDER BY id), '') FROM outbox.delivery_log`) == want
	})
}

// The receiver takes a message, and its answer is lost. A receiver that can be read gets it once.
func TestLostAnswerIsReadBeforeTheNextAttempt(t *testing.T) {
	tests := map[string]struct {
		takes   bool // the receiver takes the message whose answer is lost
		unread  bool
		history string
		taken   int
	}{
		"it has the message":     {true, false, "unknown 1, read, duplicate", 1},
		"it has nothing":         {false, false, "unknown 1, read, delivered 2", 1},
		"it cannot be looked at": {true, true, "unknown 1, delivered 2", 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := newArchive(func(a *archive, m adapters.Message) (adapters.Receipt, error) {
				if m.Attempt > 1 {
					return a.take(m)
				}
				if tt.takes {
					_, _ = a.take(m)
				}
				return adapters.Receipt{}, errLost
			})
			a.unread = tt.unread
			w.start("relay-1", sync1(a))
			w.emit("H-1", map[string]any{"n": 1})
			w.historyIs(tt.history)
			if len(a.taken) != tt.taken {
				t.Errorf("taken %v, want %d", a.taken, tt.taken)
			}
			if got := query[string](w, `SELECT external_id FROM outbox.external_ref`); got != "X-H-1" {
				t.Errorf("the reference is %q", got)
			}
			if tt.taken == 1 && tt.takes {
				if got := query[string](w, `SELECT code || ': ' || reason FROM outbox.delivery_log WHERE outcome = 'read'`); got != "READ 200: the receiver has this state" {
					t.Errorf("the read says %q", got)
				}
				if got := query[string](w, `SELECT reason FROM outbox.delivery_log WHERE outcome = 'duplicate'`); got != "settled by reading what the receiver has" {
					t.Errorf("the duplicate says %q", got)
				}
			}
		})
	}
}

// The next event of the key is sent with the reference that was read.
func TestWhatWasReadAddressesTheNextAttempt(t *testing.T) {
	w := newWorld(t)
	a := newArchive(func(a *archive, m adapters.Message) (adapters.Receipt, error) {
		if m.Attempt == 1 && a.holds[m.Key] != "" { // the second event is lost, and was not taken
			return adapters.Receipt{}, errLost
		}
		receipt, err := a.take(m)
		receipt.Ref = nil // it does not say its id: only a read finds it
		return receipt, err
	})
	w.start("relay-1", sync1(a))
	w.emit("H-1", map[string]any{"n": 1})
	w.drained()
	w.emit("H-1", map[string]any{"n": 2})
	w.historyIs("delivered 1, unknown 1, read, delivered 2")
	all := a.messages()
	if last := all[len(all)-1]; last.Ref.ExternalID != "X-H-1" {
		t.Errorf("the attempt after the read has the reference %+v", last.Ref)
	}
}

// A relay has died while it was sending. Another one looks before it sends.
func TestDeliveryOfADeadRelayIsReadFirst(t *testing.T) {
	w := newWorld(t)
	a := newArchive(func(a *archive, m adapters.Message) (adapters.Receipt, error) { return a.take(m) })
	w.register(sync1(a))
	id := w.emit("H-1", map[string]any{"n": 1})
	a.holds["H-1"] = id
	w.diedWith(1, `key = 'H-1'`)
	w.start("relay-1", sync1(a))
	w.historyIs("unknown 1, read, duplicate")
	if len(a.messages()) != 0 {
		t.Errorf("sent again: %v", a.messages())
	}
}

// Drift fails the delivery. A requeue looks again.
func TestReadThatFindsDriftFails(t *testing.T) {
	for name, standing := range map[string]adapters.Standing{"newer": adapters.Newer, "foreign": adapters.Foreign} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := newArchive(func(_ *archive, m adapters.Message) (adapters.Receipt, error) {
				return adapters.Receipt{}, errLost
			})
			a.readAs = func(a *archive, m adapters.Message) (adapters.Reading, error) {
				if a.reads == 1 {
					return adapters.Reading{Standing: standing, Code: "READ 200", Differs: "the courtroom"}, nil
				}
				return adapters.Reading{Standing: adapters.Equal, Code: "READ 200"}, nil
			}
			w.start("relay-1", sync1(a))
			w.emit("H-1", map[string]any{"n": 1})
			w.historyIs("unknown 1, read, failed")
			if got := query[string](w, `SELECT error_class || ': ' || error FROM outbox.failed`); !strings.HasPrefix(got, "conflict: drift: ") || !strings.HasSuffix(got, ": the courtroom") {
				t.Errorf("failed says %q", got)
			}
			w.exec(`SELECT outbox.requeue('CourtCalendarSync')`)
			w.historyIs("unknown 1, read, failed, requeued 1, read, duplicate")
		})
	}
}

// While the receiver cannot be read, nothing is sent.
func TestReadThatFailsIsRepeated(t *testing.T) {
	w := newWorld(t)
	a := newArchive(func(a *archive, m adapters.Message) (adapters.Receipt, error) {
		if m.Attempt == 1 {
			return adapters.Receipt{}, errLost
		}
		return a.take(m)
	})
	a.readAs = func(a *archive, _ adapters.Message) (adapters.Reading, error) {
		switch a.reads {
		case 1:
			return adapters.Reading{Code: "READ 503"}, errors.New("it is down")
		case 2:
			return adapters.Reading{}, adapters.Unknown(errors.New("no answer"))
		case 3:
			panic("a bug of the adapter")
		}
		return adapters.Reading{Standing: adapters.Absent, Code: "READ 404"}, nil
	}
	w.start("relay-1", sync1(a))
	w.emit("H-1", map[string]any{"n": 1})
	w.historyIs("unknown 1, read, read, read, read, delivered 2")
	if got := query[string](w, `SELECT string_agg(error_class, ' ' ORDER BY id) FROM outbox.delivery_log WHERE outcome = 'read'`); got != "transient transient transient" {
		t.Errorf("the classes of the failed reads are %q", got)
	}
}

func TestReadThatIsRefusedFailsTheDelivery(t *testing.T) {
	w := newWorld(t)
	a := newArchive(func(*archive, adapters.Message) (adapters.Receipt, error) { return adapters.Receipt{}, errLost })
	a.readAs = func(*archive, adapters.Message) (adapters.Reading, error) {
		return adapters.Reading{Code: "READ 405"}, adapters.Permanent(errors.New("it cannot be read"))
	}
	w.start("relay-1", sync1(a))
	w.emit("H-1", map[string]any{"n": 1})
	w.historyIs("unknown 1, read, failed")
	if got := query[string](w, `SELECT error_class || ': ' || error FROM outbox.failed`); got != "permanent: reading what the receiver has failed: it cannot be read" {
		t.Errorf("failed says %q", got)
	}
}

// Reads use up the budget of the delivery. At its end the delivery fails, and nothing was sent
// again.
func TestReadsEndWithTheBudget(t *testing.T) {
	w := newWorld(t)
	a := newArchive(func(*archive, adapters.Message) (adapters.Receipt, error) { return adapters.Receipt{}, errLost })
	a.readAs = func(*archive, adapters.Message) (adapters.Reading, error) {
		return adapters.Reading{Code: "READ 404"}, adapters.Unexplained(adapters.Unknown(errors.New("a gateway")))
	}
	w.start("relay-1", sync1(a, func(s *relay.Sync) { s.Retry.Attempts = 3 }))
	w.emit("H-1", map[string]any{"n": 1})
	w.historyIs("unknown 1, read, read, failed")
	if n := len(a.messages()); n != 1 {
		t.Errorf("sent %d times, want once", n)
	}
}

// walk is a receiver whose every event needs some steps. Each step is told apart by its key.
func walk(steps int, script func(a *archive, m adapters.Message) (adapters.Receipt, error)) *archive {
	return newArchive(func(a *archive, m adapters.Message) (adapters.Receipt, error) {
		if script != nil {
			if receipt, err := script(a, m); err != nil {
				return receipt, err
			}
		}
		receipt, err := a.take(m)
		receipt.More = m.Step+1 < steps
		receipt.Ref = &adapters.Ref{ExternalID: fmt.Sprintf("X-%d", m.Step+1)}
		return receipt, err
	})
}

func TestEventInSteps(t *testing.T) {
	w := newWorld(t)
	a := walk(3, nil)
	w.start("relay-1", sync1(a))
	id := w.emit("H-1", map[string]any{"n": 1})
	next := w.emit("H-1", map[string]any{"n": 2})
	w.drained()
	w.historyIs("step 1, step 2, delivered 3, step 1, step 2, delivered 3")
	want := []string{id, id + "/2", id + "/3", next, next + "/2", next + "/3"}
	if !slices.Equal(a.taken, want) {
		t.Errorf("taken %v, want %v", a.taken, want)
	}
	var refs []string
	for _, m := range a.messages() {
		refs = append(refs, m.Ref.ExternalID)
	}
	if want := []string{"", "X-1", "X-2", "X-3", "X-1", "X-2"}; !slices.Equal(refs, want) {
		t.Errorf("the references are %v, want %v", refs, want)
	}
	if got := query[string](w, `SELECT string_agg(external_id, ' ' ORDER BY id) FROM outbox.delivery_log`); got != "X-1 X-2 X-3 X-1 X-2 X-3" {
		t.Errorf("the log has the external ids %s", got)
	}
}

// Steps that fail, get no answer or are refused are tried again as the step that they are.
func TestStepIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	a := walk(3, func(a *archive, m adapters.Message) (adapters.Receipt, error) {
		switch {
		case m.Step == 1 && m.Attempt == 2:
			return adapters.Receipt{}, errors.New("it is down")
		case m.Step == 1 && m.Attempt == 3:
			_, _ = a.take(m)
			return adapters.Receipt{}, errLost
		case m.Step == 2 && m.Attempt == 4:
			return adapters.Receipt{Code: "SENT 422"}, adapters.Permanent(errors.New("no such room"))
		}
		return adapters.Receipt{}, nil
	})
	a.readAs = func(_ *archive, m adapters.Message) (adapters.Reading, error) {
		return adapters.Reading{Standing: adapters.Equal, More: m.Step < 2, Ref: &adapters.Ref{ExternalID: "read"}}, nil
	}
	w.start("relay-1", sync1(a))
	id := w.emit("H-1", map[string]any{"n": 1})
	w.historyIs("step 1, retry 2, unknown 3, read, step, failed 4")
	w.exec(`SELECT outbox.requeue('CourtCalendarSync')`)
	w.historyIs("step 1, retry 2, unknown 3, read, step, failed 4, requeued 4, delivered 5")
	if want := []string{id, id + "/2", id + "/3"}; !slices.Equal(a.taken, want) {
		t.Errorf("taken %v, want %v", a.taken, want)
	}
}

// A relay dies between two steps. The next one goes on with the step that was not recorded.
func TestStepsGoOnAfterACrash(t *testing.T) {
	w := newWorld(t)
	a := walk(2, func(_ *archive, m adapters.Message) (adapters.Receipt, error) {
		if m.Step == 1 {
			return adapters.Receipt{}, errors.New("it is down")
		}
		return adapters.Receipt{}, nil
	})
	r := w.start("relay-1", sync1(a))
	id := w.emit("H-1", map[string]any{"n": 1})
	w.eventually("the second step is tried", func() bool { return len(a.messages()) > 2 })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	b := walk(2, nil)
	b.readAs = func(*archive, adapters.Message) (adapters.Reading, error) {
		return adapters.Reading{Standing: adapters.Absent}, nil
	}
	w.exec(`UPDATE outbox.lane SET claim = gen_random_uuid(), claimed_by = 'dead relay', due_at = clock_timestamp() - interval '1 second', crashes = 0`)
	w.start("relay-2", sync1(b))
	w.drained()
	if want := []string{id + "/2"}; !slices.Equal(b.taken, want) {
		t.Errorf("taken after the crash: %v, want %v", b.taken, want)
	}
}

func TestEndlessStepsFail(t *testing.T) {
	w := newWorld(t)
	a := walk(1000, nil)
	w.start("relay-1", sync1(a))
	w.emit("H-1", map[string]any{"n": 1})
	w.counts("failed", 1, `SELECT count(*) FROM outbox.failed WHERE error = 'the adapter asks for more than 16 steps for one event'`)
	if n := len(a.messages()); n != 16 {
		t.Errorf("%d messages, want 16", n)
	}
}

// Each step is rendered by the mapping of its own route.
func TestStepsHaveTheirOwnBodies(t *testing.T) {
	w := newWorld(t)
	a := &routedWalk{archive: walk(2, nil)}
	w.start("relay-1", sync1(a, func(s *relay.Sync) {
		s.Mapping = relay.Mapping{Fields: []relay.Field{{From: "n", To: "first"}}}
		s.Routes = map[string]relay.Mapping{"second": {Fields: []relay.Field{{From: "n", To: "second"}}}}
	}))
	w.emit("H-1", map[string]any{"n": 7})
	w.drained()
	var bodies []string
	for _, m := range a.messages() {
		bodies = append(bodies, string(m.Body))
	}
	if want := []string{`{"first":7}`, `{"second":7}`}; !slices.Equal(bodies, want) {
		t.Errorf("the bodies are %v, want %v", bodies, want)
	}
}

type routedWalk struct{ *archive }

func (*routedWalk) Route(m adapters.Message) string {
	if m.Step == 1 {
		return "second"
	}
	return ""
}

func (*routedWalk) Routes() []adapters.Route { return []adapters.Route{{}, {Name: "second"}} }

// No more is claimed than the bound, so no lane waits claimed behind a connection.
func TestClaimsRespectTheBound(t *testing.T) {
	for name, tc := range map[string]struct{ adapter, config, most int }{
		"of the adapter":       {1, 0, 1},
		"of the configuration": {8, 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			answer, sent := make(chan struct{}), make(chan struct{}, 100)
			inFlight, most := 0, 0
			var mu sync.Mutex
			c := newCourt(func(context.Context, adapters.Message, int) (adapters.Receipt, error) {
				mu.Lock()
				inFlight++
				most = max(most, inFlight)
				mu.Unlock()
				sent <- struct{}{}
				<-answer
				mu.Lock()
				inFlight--
				mu.Unlock()
				return adapters.Receipt{Code: "SENT 200"}, nil
			})
			config := sync1(limited{c, tc.adapter}, func(s *relay.Sync) { s.MaxInFlight = tc.config })
			config.Workers = 16
			w.register(config)
			w.bulk(20)
			w.start("relay-1", config)
			for range tc.most {
				<-sent
			}
			w.counts("claimed lanes", tc.most, `SELECT count(*) FROM outbox.lane WHERE claim IS NOT NULL`)
			close(answer)
			w.drained()
			if most != tc.most {
				t.Errorf("%d in flight at a time, want %d", most, tc.most)
			}
		})
	}
}

type limited struct {
	*court
	most int
}

func (l limited) MaxInFlight() int { return l.most }

// What was only accepted is counted until a read, a later delivery or a person settles it.
func TestAcceptedIsUnconfirmed(t *testing.T) {
	w := newWorld(t)
	a := newArchive(func(a *archive, m adapters.Message) (adapters.Receipt, error) {
		receipt, err := a.take(m)
		receipt.Accepted = m.Type == "scheduling:updated"
		return receipt, err
	})
	a.readAs = func(_ *archive, m adapters.Message) (adapters.Reading, error) {
		if m.Key == "H-read" && string(m.Body) == `{"n":2}` {
			return adapters.Reading{Standing: adapters.Equal, Code: "READ 200"}, nil
		}
		return adapters.Reading{Standing: adapters.Absent, Code: "READ 404"}, nil
	}
	w.start("relay-1", sync1(a))
	for _, key := range []string{"H-read", "H-called", "H-later", "H-stays"} {
		w.emit(key, map[string]any{"n": 1})
		w.emit(key, map[string]any{"n": 2})
	}
	w.drained()
	const unconfirmed = `SELECT coalesce(string_agg(key, ' ' ORDER BY key), '') || ' ' || (SELECT unconfirmed FROM outbox.status WHERE sync = 'CourtCalendarSync') FROM outbox.unconfirmed`
	if got := query[string](w, unconfirmed); got != "H-called H-later H-read H-stays 4" {
		t.Errorf("unconfirmed: %s", got)
	}
	id := func(key string, n int) string {
		return query[string](w, `SELECT id::text FROM outbox.event WHERE key = $1 AND payload ->> 'n' = $2::text`, key, fmt.Sprint(n))
	}
	confirm := func(event string) bool {
		return query[bool](w, `SELECT outbox.confirm('CourtCalendarSync', $1, 'callback')`, event)
	}
	if confirm(id("H-called", 1)) {
		t.Error("an event that a later one replaces is confirmed")
	}
	if !confirm(id("H-called", 2)) || confirm(id("H-called", 2)) {
		t.Error("it is not confirmed once")
	}
	w.exec(`INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:cancelled', 'H-later', '{}')`)
	w.drained()
	w.exec(`UPDATE outbox.unconfirmed SET ask_at = clock_timestamp()`)
	w.eventually("settled", func() bool { return query[string](w, unconfirmed) == "H-stays 1" })
	if got := query[string](w, `SELECT string_agg(key || ' ' || reason, ', ' ORDER BY id) FROM outbox.delivery_log WHERE outcome = 'confirmed'`); got != "H-called callback, H-read settled by reading what the receiver has: READ 200" {
		t.Errorf("the log says %s", got)
	}
	if got := query[bool](w, `SELECT asked = 1 AND ask_at > clock_timestamp() + interval '15 seconds' FROM outbox.unconfirmed`); !got {
		t.Error("what stays is looked at too soon")
	}
}

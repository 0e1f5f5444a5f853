package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
)

// scripted is a store without a database. A test sets its answers and reads its requests. Without an
// answer of the test, the answer is empty.
type scripted struct {
	Store // the rest is not called

	claim    func(outbox.ClaimRequest) (outbox.Claims, error)
	record   func([]outbox.Result) outbox.Recorded
	holds    func() []outbox.Hold                  // of scopes
	probe    func(scope string) outbox.Probe       // a grant
	claimOne func(outbox.OneRequest) outbox.Claims // of a probe

	mu       sync.Mutex
	asked    []outbox.ClaimRequest
	recorded []outbox.Result
}

func (s *scripted) Claim(_ context.Context, r outbox.ClaimRequest, _ *outbox.Arrivals) (outbox.Claims, error) {
	s.mu.Lock()
	s.asked = append(s.asked, r)
	s.mu.Unlock()
	if s.claim == nil {
		return outbox.Claims{}, nil
	}
	claims, err := s.claim(r)
	if r.Capacity == 0 { // it says what is due, but claims nothing
		claims.Deliveries = nil
	}
	return claims, err
}

func (s *scripted) Record(_ context.Context, _ string, results []outbox.Result) outbox.Recorded {
	answer := outbox.Recorded{Done: make([]bool, len(results)), Lost: make([]bool, len(results))}
	for i := range answer.Done {
		answer.Done[i] = true
	}
	if s.record != nil {
		answer = s.record(results)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, done := range answer.Done {
		if done {
			s.recorded = append(s.recorded, results[i])
		}
	}
	return answer
}

func (s *scripted) ScopeHolds(context.Context, string) ([]outbox.Hold, error) { return s.holds(), nil }

func (s *scripted) Probe(_ context.Context, _, scope string, _ time.Duration) (outbox.Probe, error) {
	return s.probe(scope), nil
}

func (s *scripted) ClaimOne(_ context.Context, r outbox.OneRequest) (outbox.Claims, error) {
	return s.claimOne(r), nil
}

func (s *scripted) ProbeAgain(context.Context, string, string, int, time.Duration, bool) error {
	return nil
}

func (s *scripted) LiftUnused(context.Context, string, string) (bool, error) { return false, nil }

func (s *scripted) requests() []outbox.ClaimRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *scripted) results() []outbox.Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.recorded)
}

func (s *scripted) Check(context.Context) error                     { return nil }
func (s *scripted) CheckPrivileges(context.Context) error           { return nil }
func (s *scripted) CheckNumbers(context.Context) error              { return nil }
func (s *scripted) Beat(context.Context, outbox.Heartbeat) error    { return nil }
func (s *scripted) EndBeat(context.Context, outbox.Heartbeat) error { return nil }
func (s *scripted) Register(context.Context, []outbox.Registration) (map[string]outbox.Registered, error) {
	return nil, nil
}

func (s *scripted) Syncs(context.Context) (map[string]outbox.Registered, error) { return nil, nil }
func (s *scripted) EndHolds(context.Context, string, time.Duration) error       { return nil }
func (s *scripted) KeepWindow(context.Context, string, outbox.Window) (bool, time.Time, error) {
	return true, time.Now(), nil
}

func (s *scripted) NoteDelivery(context.Context, string, time.Time) (bool, error) { return true, nil }

func (s *scripted) Unconfirmed(context.Context, string, int) ([]*outbox.Delivery, error) {
	return nil, nil
}

func (s *scripted) ReleaseBackfilled(context.Context, string, int) (int, error) { return 0, nil }

func (s *scripted) RepairTimes(context.Context, string, string, int) (string, error) { return "", nil }

func (s *scripted) LogMonthsAhead(context.Context) (int, error) { return 3, nil }

func (s *scripted) RaiseAlerts(context.Context) ([]outbox.Raised, bool, error) {
	return nil, false, nil
}

func (s *scripted) ClockOffset(context.Context) (ahead, within time.Duration, err error) {
	return 0, 0, nil
}

func (s *scripted) Maintain(context.Context, outbox.Retention, outbox.Retention) (outbox.Maintenance, error) {
	return outbox.Maintenance{}, nil
}

func (s *scripted) KeptLonger(context.Context, outbox.Retention, outbox.Retention) ([]outbox.Kept, error) {
	return nil, nil
}

// receiver is an adapter whose attempts take as long as the test wants.
type receiver func(ctx context.Context, m adapters.Message) error

func (r receiver) Deliver(ctx context.Context, m adapters.Message) (adapters.Receipt, error) {
	return adapters.Receipt{Code: "HTTP 200"}, r(ctx, m)
}

// deliveries are the first of so many lanes.
func deliveries(from, n int) []*outbox.Delivery {
	var list []*outbox.Delivery
	for i := from; i < from+n; i++ {
		list = append(list, &outbox.Delivery{
			Sync: "court", Key: fmt.Sprint("H-", i), Position: int64(i), Revision: 1,
			Event: outbox.Event{ID: fmt.Sprint("event-", i), Seq: int64(i), Type: "t", Key: fmt.Sprint("H-", i), Payload: []byte(`{}`)},
		})
	}
	return list
}

// runs runs a relay on a scripted store and a fake clock, until do returns. The relay has one sync, which
// the settings change, and so many workers.
func runs(t *testing.T, s *scripted, workers int, r receiver, do func(), settings ...func(*Sync)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		sync := Sync{Name: "court", Events: []string{"*"}, Adapter: r}
		for _, set := range settings {
			set(&sync)
		}
		relay, err := New(s, Config{Workers: workers, Logger: slog.New(slog.DiscardHandler), Syncs: []Sync{sync}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- relay.Run(ctx) }()
		do()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// A relay asks for as many lanes as it has free workers, and for no more.
func TestScriptedClaimsFitTheCapacity(t *testing.T) {
	var given atomic.Int64 // added to by the claim loop alone
	s := &scripted{}
	s.claim = func(r outbox.ClaimRequest) (outbox.Claims, error) {
		n := min(r.Capacity, 10-int(given.Load()))
		all := int(given.Add(int64(n)))
		return outbox.Claims{Deliveries: deliveries(all, n), Due: all < 10}, nil
	}
	runs(t, s, 4, func(context.Context, adapters.Message) error { time.Sleep(time.Second); return nil }, func() {
		time.Sleep(100 * time.Millisecond)
		if n := given.Load(); n != 4 {
			t.Errorf("%d lanes are claimed while 4 workers are busy, want 4", n)
		}
		for i, r := range s.requests() {
			if most := 4; i == 0 && r.Capacity != most || i > 0 && r.Capacity != 0 {
				t.Errorf("request %d asks for %d lanes", i+1, r.Capacity)
			}
		}
		time.Sleep(10 * time.Second)
		if n := len(s.results()); n != 10 {
			t.Errorf("%d results are recorded, want 10", n)
		}
	})
}

// The next delivery of a lane comes with each recording. All are sent under the same claim, one after
// the other.
func TestScriptedLaneIsKept(t *testing.T) {
	s := &scripted{}
	left := 5
	claimed := false
	s.claim = func(outbox.ClaimRequest) (outbox.Claims, error) {
		if claimed {
			return outbox.Claims{}, nil
		}
		claimed = true
		return outbox.Claims{Deliveries: deliveries(1, 1)}, nil
	}
	s.record = func(results []outbox.Result) outbox.Recorded {
		answer := outbox.Recorded{Done: []bool{true}, Lost: []bool{false}}
		if left--; left > 0 && results[0].Stay {
			answer.Next = deliveries(1, 1)
		}
		return answer
	}
	flying := 0
	runs(t, s, 4, func(context.Context, adapters.Message) error {
		if flying++; flying > 1 {
			t.Error("two deliveries of a lane are in flight")
		}
		time.Sleep(10 * time.Millisecond)
		flying--
		return nil
	}, func() {
		time.Sleep(time.Second)
		if n := len(s.results()); n != 5 {
			t.Errorf("%d results are recorded, want 5", n)
		}
	})
}

// While others wait, a lane is released after its turn.
func TestScriptedTurnEnds(t *testing.T) {
	s := &scripted{}
	s.claim = func(r outbox.ClaimRequest) (outbox.Claims, error) {
		return outbox.Claims{Deliveries: deliveries(1, r.Capacity), Due: true}, nil
	}
	s.record = func(results []outbox.Result) outbox.Recorded {
		answer := outbox.Recorded{Done: make([]bool, len(results)), Lost: make([]bool, len(results))}
		for i, r := range results {
			if answer.Done[i] = true; r.Stay {
				answer.Next = append(answer.Next, r.Delivery)
			}
		}
		return answer
	}
	runs(t, s, 1, func(context.Context, adapters.Message) error { time.Sleep(100 * time.Millisecond); return nil }, func() {
		time.Sleep(2 * time.Second)
		stayed, left := 0, 0
		for _, r := range s.results() {
			if r.Stay {
				stayed++
			} else {
				left++
			}
		}
		if left < 5 || stayed > 2*left {
			t.Errorf("lanes were kept %d times and released %d times in 2 s, want a turn of %s", stayed, left, turn)
		}
	})
}

// A database refuses every claim. The pauses between claims grow.
func TestScriptedErrorsAreNotRepeatedAtOnce(t *testing.T) {
	s := &scripted{claim: func(outbox.ClaimRequest) (outbox.Claims, error) { return outbox.Claims{}, errors.New("refused") }}
	runs(t, s, 4, func(context.Context, adapters.Message) error { return nil }, func() {
		time.Sleep(time.Minute)
		if n := len(s.requests()); n < 5 || n > 200 {
			t.Errorf("%d requests in a minute", n)
		}
	})
}

// A recording that fails is repeated. Nothing is sent twice.
func TestScriptedRecordingIsRepeated(t *testing.T) {
	s := &scripted{}
	var sent atomic.Int64
	tries := 0
	s.claim = func(outbox.ClaimRequest) (outbox.Claims, error) {
		if len(s.requests()) > 1 {
			return outbox.Claims{}, nil
		}
		return outbox.Claims{Deliveries: deliveries(1, 3)}, nil
	}
	s.record = func(results []outbox.Result) outbox.Recorded {
		answer := outbox.Recorded{Done: make([]bool, len(results)), Lost: make([]bool, len(results))}
		if tries++; tries < 5 {
			answer.Err = errors.New("away")
			return answer
		}
		for i := range results {
			answer.Done[i] = true
		}
		return answer
	}
	runs(t, s, 4, func(context.Context, adapters.Message) error { sent.Add(1); return nil }, func() {
		time.Sleep(time.Minute)
		if n := len(s.results()); n != 3 || sent.Load() != 3 {
			t.Errorf("%d sent, %d recorded, want 3 and 3", sent.Load(), n)
		}
	})
}

// At a stop, deliveries that were not sent are released, and attempts in flight are finished.
func TestScriptedStopReleases(t *testing.T) {
	s := &scripted{}
	s.claim = func(outbox.ClaimRequest) (outbox.Claims, error) {
		if len(s.requests()) > 1 {
			return outbox.Claims{}, nil
		}
		return outbox.Claims{Deliveries: deliveries(1, 5)}, nil
	}
	runs(t, s, 2, func(context.Context, adapters.Message) error { time.Sleep(5 * time.Second); return nil }, func() {
		time.Sleep(time.Second)
	})
	sent, released := 0, 0
	for _, r := range s.results() {
		switch r.Outcome {
		case outbox.Delivered:
			sent++
		case "":
			released++
		default:
			t.Errorf("recorded %q", r.Outcome)
		}
	}
	if sent != 2 || released != 3 {
		t.Errorf("%d delivered and %d released, want 2 and 3", sent, released)
	}
}

func perCourt(s *Sync) { s.Per = "event.court" }

// Each round asks for at most as many probes as a quarter of the workers. Meanwhile the claimer does
// nothing else, and many dead destinations must not take the slots of the others.
func TestScriptedRoundOfProbesIsBounded(t *testing.T) {
	const workers, scopes = 16, 64
	held := make([]string, scopes)
	for i := range held {
		held[i] = fmt.Sprint("court-", i)
	}
	s := &scripted{}
	round, most, all := 0, 0, 0
	s.claim = func(outbox.ClaimRequest) (outbox.Claims, error) {
		round = 0
		return outbox.Claims{Held: held}, nil
	}
	s.holds = func() (holds []outbox.Hold) {
		for _, scope := range held {
			holds = append(holds, outbox.Hold{Scope: scope, Kind: outbox.HoldBreaker, Until: time.Now(), ProbeDue: true})
		}
		return holds
	}
	s.probe = func(string) outbox.Probe {
		round, all = round+1, all+1
		most = max(most, round)
		return outbox.Probe{Number: 1}
	}
	s.claimOne = func(outbox.OneRequest) outbox.Claims { return outbox.Claims{} }
	runs(t, s, workers, func(context.Context, adapters.Message) error { return nil }, func() { time.Sleep(10 * time.Second) }, perCourt)
	if most != workers/4 || all < scopes {
		t.Errorf("%d probes in a round and %d in all, want %d and at least %d", most, all, workers/4, scopes)
	}
}

// After a change of limits.per, lanes have scopes that no event has any more. A probe of such a scope
// finds that its delivery goes to another scope. The next lane is tried at once, before the next read of
// the holds.
func TestScriptedLanesLeaveAScopeThatNoEventHas(t *testing.T) {
	const lanes = 100
	s := &scripted{}
	left := lanes
	s.claim = func(outbox.ClaimRequest) (outbox.Claims, error) { return outbox.Claims{Held: []string{"old"}}, nil }
	s.holds = func() []outbox.Hold {
		return []outbox.Hold{{Scope: "old", Kind: outbox.HoldBreaker, Until: time.Now(), ProbeDue: true}}
	}
	s.probe = func(string) outbox.Probe { return outbox.Probe{Number: 1, With: []string{"H"}} }
	s.claimOne = func(outbox.OneRequest) (c outbox.Claims) {
		if left > 0 {
			c.Deliveries = deliveries(left, 1)
			c.Deliveries[0].Scope, c.Deliveries[0].Event.Payload = "old", []byte(`{"court": "new"}`)
			left--
		}
		return c
	}
	runs(t, s, 4, func(context.Context, adapters.Message) error { return nil }, func() {
		time.Sleep(lanes * scopesEvery / 2)
		moved := 0
		for _, r := range s.results() {
			if r.Outcome == "" && r.Scope != nil && *r.Scope == "new" {
				moved++
			}
		}
		if moved != lanes {
			t.Errorf("%d of %d lanes have left the scope in half of the time that one a look would take", moved, lanes)
		}
	}, perCourt)
}

// A window closes while the claimer waits for the database, and a claimed delivery waits for a slot. It is
// not sent.
func TestScriptedNothingStartsOutsideTheWindow(t *testing.T) {
	waits := func() { time.Sleep(10 * time.Second) }
	claimed := false
	s := &scripted{}
	s.claim = func(outbox.ClaimRequest) (outbox.Claims, error) {
		if claimed {
			waits()
			return outbox.Claims{}, nil
		}
		claimed = true
		return outbox.Claims{Deliveries: deliveries(0, 2)}, nil
	}
	var sent atomic.Int64
	runs(t, s, 1, func(context.Context, adapters.Message) error {
		sent.Add(1)
		time.Sleep(2 * time.Second)
		return nil
	}, func() {
		time.Sleep(20 * time.Second)
		if n := sent.Load(); n != 1 {
			t.Errorf("%d were sent, want only the one that began within the window", n)
		}
		results := s.results()
		if len(results) != 2 || results[1].Outcome != "" {
			t.Errorf("results %+v, want the second one released", results)
		}
	}, func(s *Sync) { s.Windows = []Window{{From: 0, To: TimeOfDay(time.Second)}} })
}

func TestScriptedNoSuspectStartsOutsideTheWindow(t *testing.T) {
	s := &scripted{}
	s.claim = func(outbox.ClaimRequest) (outbox.Claims, error) { return outbox.Claims{Suspects: true}, nil }
	asked := false
	s.claimOne = func(outbox.OneRequest) (c outbox.Claims) {
		time.Sleep(2 * time.Second)
		if !asked {
			c.Deliveries = deliveries(0, 1)
		}
		asked = true
		return c
	}
	runs(t, s, 1, func(context.Context, adapters.Message) error {
		t.Error("a suspect was sent after the closing")
		return nil
	}, func() { time.Sleep(20 * time.Second) }, func(s *Sync) { s.Windows = []Window{{From: 0, To: TimeOfDay(time.Second)}} })
}

//go:build linux

package chaos

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// theKey is the key of the delivery with the fault.
const theKey = "H-0"

// struck returns the current claims of a relay.
func (w *world) struck(relay string) int {
	w.t.Helper()
	return ask[int](w, `SELECT count(*) FROM outbox.open_delivery WHERE state = 'sending' AND claimed_by = $1`, relay)
}

// left returns the claims of a dead relay, after its last statement in the database has ended.
func (w *world) left(relay string) int {
	w.t.Helper()
	w.until("the backends of "+relay+" have ended", `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1)`, relay)
	return w.struck(relay)
}

func (w *world) want(what string, got, want int) {
	w.t.Helper()
	if got != want {
		w.t.Errorf("%s: %d, want %d", what, got, want)
	}
}

// bulk writes one event for each of n new keys.
func (w *world) bulk(n int) {
	w.t.Helper()
	w.exec(`
INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', 'B-' || n, jsonb_build_object('hearingId', 'B-' || n, 'scheduledAt', '1', 'location', '3A')
  FROM generate_series(1, $1::int) AS n`, n)
}

// delivers waits until a relay has delivered something. By then it has read all open deliveries, and must find
// those that become due later.
func (w *world) delivers(p *process) {
	w.t.Helper()
	w.within(patience, p.spec.Name+" delivers", func() bool {
		w.book("elsewhere")
		return w.logged(`relay = $1`, p.spec.Name) > 0
	})
}

// A relay is killed between its claims and their requests. After the lease, another running relay takes over, or
// the same one after a new start.
func TestFault01KilledBeforeSending(t *testing.T) {
	for name, key := range map[string]string{"one delivery": theKey, "every worker's delivery": ""} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(r *run) {
				w := newWorld(r)
				w.register(relaySpec{})
				dies := w.start(relaySpec{Name: "dies", Lease: 3 * lease, Stop: stopSpec{Point: claimed, Key: key}})
				for range 2 { // each has another behind it
					w.book(names(40)...)
				}
				dies.hears("at " + claimed)
				again := relaySpec{Name: "dies"}
				if r.random.IntN(2) == 0 {
					w.delivers(w.start(relaySpec{Name: "other"}))
				} else if key == "" {
					w.until("every worker holds a claim", `SELECT count(*) = $1 FROM outbox.open_delivery WHERE state = 'sending'`, dies.spec.Workers)
				}
				if key != "" {
					w.until("nothing else is open", `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE key <> $1)`, key)
				}
				dies.kill()
				r.figures.kills++
				held := w.left("dies")
				if held == 0 {
					t.Fatal("no claim is left at the kill")
				}
				ends := ask[time.Time](w, `SELECT min(due_at) FROM outbox.lane WHERE claimed_by = 'dies'`)
				if len(w.relays) == 2 {
					w.start(again)
				}
				w.drain(expected{})
				w.want("ends that the takers-over noted", w.logged(`outcome = 'unknown' AND relay = 'dies'`), held)
				w.want("duplicates", r.figures.duplicates, 0)
				w.want("requests", r.figures.attempts, r.figures.events)
				w.want("takers-over before the end of the lease", w.logged(`outcome = 'unknown' AND at < $1`, ends), 0)
				w.want("deliveries many leases later", w.logged(`at > $1`, ends.Add(10*lease)), 0)
			})
		})
	}
}

// A relay is killed while the court works on a request. The answer comes too late, or never.
func TestFault02KilledDuringTheCall(t *testing.T) {
	const timeout = 2 * time.Second
	for name, test := range map[string]struct {
		do         courtsim.Action
		duplicates int
	}{
		"the court accepts":                   {courtsim.Action{Delay: courtsim.Duration(time.Minute)}, 8},
		"the court accepts, its answer drips": {courtsim.Action{Drip: courtsim.Duration(time.Minute)}, 8},
		"the court forgets":                   {courtsim.Action{Hang: courtsim.Duration(time.Minute)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(r *run) {
				w := newWorld(r)
				spec := relaySpec{Workers: 8, Lease: 2*timeout + 100*time.Millisecond, Syncs: []syncSpec{{Name: theSync, Timeout: timeout, Attempts: 3}}}
				w.register(spec)
				w.court().faults(t, courtsim.Fault{Do: test.do})
				w.book(names(30)...)
				w.book(names(30)...)
				spec.Name = "dies"
				dies := w.start(spec)
				w.within(patience, "eight requests are with the court", func() bool { return len(w.court().Ledger()) == 8 })
				dies.kill()
				r.figures.kills++
				w.want("claims at the kill", w.left("dies"), 8)
				w.court().faults(t)
				spec.Name = "other"
				w.start(spec)
				w.drain(expected{})
				w.want("attempts without an answer", w.logged(`outcome = 'unknown' AND relay = 'dies'`), 8)
				w.want("duplicates", r.figures.duplicates, test.duplicates)
				w.want("attempts that count for the budget", w.logged(`outcome IN ('retry', 'failed')`), 0)
			})
		})
	}
}

// Points inside a recording, where the database stops it.
const (
	logging    = "logging"    // before its log row is written
	committing = "committing" // all is written
)

// stopRecording stops recordings of a key in the database, at a point, until
// release. The stop needs nothing of the relay.
func (w *world) stopRecording(point, key string) (release func()) {
	w.t.Helper()
	if point == committing {
		return w.stop(`CONSTRAINT TRIGGER stop_here AFTER DELETE ON outbox.delivery DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW WHEN (OLD.key = '` + key + `')`)
	}
	return w.stop(`TRIGGER stop_here BEFORE INSERT ON outbox.delivery_log FOR EACH ROW WHEN (NEW.key = '` + key + `')`)
}

// stopInserts makes inserts into a table wait until release.
func (w *world) stopInserts(table string) (release func()) {
	w.t.Helper()
	return w.stop(`TRIGGER stop_here BEFORE INSERT ON ` + table + ` FOR EACH ROW`)
}

// stop lets a trigger wait for a lock that the test holds.
func (w *world) stop(trigger string) (release func()) {
	w.t.Helper()
	holder := w.tx(`SELECT pg_advisory_lock(2104)`)
	w.exec(`
CREATE FUNCTION stop_here() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(2104);
    RETURN NEW;
END
$$`)
	w.exec(`CREATE ` + trigger + ` EXECUTE FUNCTION stop_here()`)
	return func() {
		w.t.Helper()
		holder.exec(`SELECT pg_advisory_unlock(2104)`)
	}
}

// stoppedBackend waits until a session has come to the point, and returns its backend.
func (w *world) stoppedBackend() (pid int) {
	w.t.Helper()
	const waiting = `
SELECT coalesce(min(pid), 0)
  FROM pg_locks
 WHERE locktype = 'advisory' AND NOT granted AND objid = 2104
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	w.within(patience, "somebody has come to the point", func() bool {
		pid = ask[int](w, waiting)
		return pid != 0
	})
	return pid
}

// whole checks that the recording of the delivery was complete or did not happen: either the log has its end and it
// is closed, or neither.
func (w *world) whole(when, want string) {
	w.t.Helper()
	got := ask[string](w, `
SELECT (SELECT count(*) FROM outbox.delivery_log WHERE key = $1 AND outcome IN ('delivered', 'duplicate')) || ' ended, '
    || (SELECT count(*) FROM outbox.delivery WHERE key = $1) || ' open'`, theKey)
	if got != want {
		w.t.Errorf("%s: %s, want %s", when, got, want)
	}
}

// A relay is killed after the court has accepted: before the recording, in it, or before its commit. The backend
// continues without the relay, or dies too. If only the backend dies, the relay records again.
func TestFault03KilledDuringItsRecording(t *testing.T) {
	const recorded, open = "1 ended, 0 open", "0 ended, 1 open"
	for name, test := range map[string]struct {
		point           string
		kill, terminate bool
		duplicates      int
	}{
		"before the recording":                              {answered, true, false, 1},
		"inside, the backend carries on":                    {logging, true, false, 0},
		"inside, the backend dies too":                      {logging, true, true, 1},
		"before the commit, the backend carries on":         {committing, true, false, 0},
		"before the commit, the backend dies too":           {committing, true, true, 1},
		"inside, only the backend dies":                     {logging, false, true, 0},
		"before the commit, only the backend dies":          {committing, false, true, 0},
		"before the commit, only the relay's patience dies": {committing, false, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(r *run) {
				w := newWorld(r)
				w.register(relaySpec{})
				spec := relaySpec{Name: "struck", DatabaseWait: time.Second}
				release := func() {}
				if test.point == answered {
					spec.Stop = stopSpec{Point: answered, Key: theKey}
				} else {
					release = w.stopRecording(test.point, theKey)
				}
				struck := w.start(spec)
				w.book(theKey)
				pid := 0
				if test.point == answered {
					struck.hears("at " + answered)
				} else {
					pid = w.stoppedBackend()
				}
				w.whole("at the point", open)
				w.want("acknowledged", len(w.court().Ledger()), 1)
				if test.kill {
					struck.kill()
					r.figures.kills++
				}
				switch {
				case test.terminate:
					w.exec(`SELECT pg_terminate_backend($1)`, pid)
				case !test.kill:
					// The relay cancels the call.
					w.until("the relay has given up its call", `SELECT NOT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND locktype = 'advisory')`, pid)
				}
				release()
				w.until("the backend has come to its end", `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active')`, pid)
				if test.kill {
					after := recorded
					if test.duplicates > 0 {
						after = open
					}
					w.whole("after the kill", after)
					w.start(relaySpec{Name: "other"})
				}
				w.book(names(20)...) // one is behind the struck delivery
				w.drain(expected{})
				w.whole("in the end", "2 ended, 0 open")
				w.want("duplicates", r.figures.duplicates, test.duplicates)
				w.want("unknown ends", w.logged(`outcome = 'unknown' AND relay = 'struck'`), test.duplicates)
			})
		})
	}
}

// stall stops a process in the middle of its work, as a hypervisor does.
func (p *process) stall() {
	p.t.Helper()
	p.signal(syscall.SIGSTOP)
}

// wake lets a stalled process continue, also from the point where it stopped.
func (p *process) wake() {
	p.t.Helper()
	p.signal(syscall.SIGCONT)
	p.resume()
}

// A relay stalls after it got an answer. Meanwhile its lease ends and another relay takes the delivery over. The
// result of the first one then changes nothing.
func TestFault04StalledAfterAnAnswer(t *testing.T) {
	refuse := courtsim.Fault{Match: courtsim.Match{Key: theKey, First: 1}, Do: courtsim.Action{Status: 500, RetryAfter: "6"}}
	sending := stopSpec{Point: claimed, Key: theKey, Once: true}
	for name, test := range map[string]struct {
		late       []courtsim.Fault // for the stalled relay's attempt
		other      []courtsim.Fault // for that of the one that takes over
		stop       stopSpec         // of the one that takes over
		meanwhile  string           // state, holder and attempts of the delivery when the stalled one wakes
		says       string           // the stalled one
		duplicates int
	}{
		"late success, delivered meanwhile":         {meanwhile: "gone", says: "delivered", duplicates: 1},
		"late failure, delivered meanwhile":         {late: []courtsim.Fault{refuse}, meanwhile: "gone", says: "retry"},
		"late success, being sent":                  {stop: sending, meanwhile: "sending other 1", says: "delivered", duplicates: 1},
		"late failure, being sent":                  {late: []courtsim.Fault{refuse}, stop: sending, meanwhile: "sending other 1", says: "retry"},
		"late success, waits for the other's retry": {other: []courtsim.Fault{refuse}, meanwhile: "retry 2", says: "delivered", duplicates: 1},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(r *run) {
				w := newWorld(r)
				w.register(relaySpec{})
				w.court().faults(t, test.late...)
				stalled := w.start(relaySpec{Name: "stalled", Stop: stopSpec{Point: answered, Key: theKey, Once: true}})
				w.book(theKey)
				stalled.hears("at " + answered)
				stalled.stall()
				w.court().faults(t, test.other...)
				w.book(theKey) // behind it
				other := w.start(relaySpec{Name: "other", Lease: 10 * lease, Stop: test.stop})
				if test.stop.Point != "" {
					other.hears("at " + test.stop.Point)
				} else {
					w.until("the other has made its attempt", `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE relay = 'other' AND attempt = 2)`)
				}
				stands := func() string {
					return ask[string](w, `
SELECT coalesce((SELECT concat_ws(' ', d.state, d.claimed_by, d.attempts, d.claim)
                   FROM outbox.open_delivery AS d
                   JOIN outbox.event AS e ON e.id = d.event_id
                  WHERE e.version = 1), 'gone')`)
				}
				before := stands()
				if !strings.HasPrefix(before, test.meanwhile) {
					t.Errorf("when the stalled relay wakes: %s, want %s", before, test.meanwhile)
				}
				stalled.wake()
				w.until("the late answer is in the log", `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'lease_lost')`)
				if after := stands(); after != before {
					t.Errorf("after the late answer: %s, before it: %s", after, before)
				}
				if test.stop.Point != "" {
					other.resume()
				}
				w.drain(expected{})
				w.want("what the stalled relay had to say", w.logged(`outcome = 'lease_lost' AND relay = 'stalled' AND reason = 'the answer came after the lease: ' || $1`, test.says), 1)
				w.want("lost leases", w.logged(`outcome = 'lease_lost'`), 1)
				w.want("duplicates", r.figures.duplicates, test.duplicates)
				if !stalled.stderr.contains("lease lost") {
					t.Error("the stalled relay does not tell its operator")
				}
			})
		})
	}
}

// A relay stalls with claims that it has not sent. Others send them. The relay does not send them when it
// continues.
func TestFault04StalledWithUnsentClaims(t *testing.T) {
	scenario(t, func(r *run) {
		const workers, unsent = 4, 8
		w := newWorld(r)
		w.register(relaySpec{})
		w.court().faults(t, courtsim.Fault{Do: courtsim.Action{Delay: courtsim.Duration(10 * time.Millisecond)}})
		w.bulk(of(1000, 10000))
		stalled := w.start(relaySpec{Name: "stalled", Workers: workers})
		w.within(patience, "the relay stalls with claims that it has not sent", func() bool {
			stalled.stall()
			w.until("the database has done what it was asked last",
				`SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'stalled' AND state = 'active')`)
			if w.struck("stalled") >= workers+unsent {
				return true
			}
			stalled.signal(syscall.SIGCONT)
			return false
		})
		other := w.start(relaySpec{Name: "other"})
		w.until("others have delivered everything", `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`)
		if err := other.stop(); err != nil {
			t.Errorf("the other: %v", err)
		}
		sent := len(w.court().Ledger())
		woken := ask[time.Time](w, `SELECT clock_timestamp()`)
		stalled.signal(syscall.SIGCONT)
		// Its queue is in order: when these have come, the earlier ones are done.
		w.book(names(20)...)
		w.drain(expected{})
		held := w.logged(`outcome = 'unknown' AND took_ms IS NULL AND relay = 'stalled'`)
		if held < workers+unsent/2 {
			t.Errorf("%d claims ended, want more than the %d that the workers had", held, workers)
		}
		if again := len(w.court().Ledger()) - sent - 20; again > workers {
			t.Errorf("%d of %d claims were sent after the lease, want none but those in flight when it stalled", again, held)
		}
		w.want("attempts begun after the lease", w.logged(`outcome = 'lease_lost' AND answered_at - took_ms * interval '1 millisecond' > $1`, woken), 0)
	})
}

// A panic in an adapter fails that attempt, and no other.
func TestFault05Panic(t *testing.T) {
	for _, point := range []string{claimed, answered} {
		t.Run(point, func(t *testing.T) {
			scenario(t, func(r *run) {
				w := newWorld(r)
				w.register(relaySpec{})
				p := w.start(relaySpec{Name: "panics", Stop: stopSpec{Point: point, Key: theKey, Do: "panic", Once: true}})
				w.book(names(50)...)
				w.book(names(50)...)
				p.hears("at " + point)
				w.drain(expected{})
				w.want("attempts that panicked", w.logged(`key = $1 AND outcome = 'unknown' AND error LIKE '%panic in the adapter%'`, theKey), 1)
				w.want("attempts", w.logged(`attempt IS NOT NULL`), 101)
				if said := p.stderr.String(); !strings.Contains(said, "adapter panicked") || !strings.Contains(said, "relay_test.go") {
					t.Errorf("no stack in the process's log:\n%s", said)
				}
				if ready, reason := p.ready(); !ready {
					t.Errorf("the relay is not ready any more: %s", reason)
				}
			})
		})
	}
}

// An event kills every relay that sends it. The relays have hundreds of other claims. After five deaths this event is
// failed, and no other.
func TestFault06EventThatKillsRelays(t *testing.T) {
	scenario(t, func(r *run) {
		const deaths = 5
		w := newWorld(r)
		syncs := []syncSpec{{Name: theSync, Timeout: 500 * time.Millisecond, Attempts: 3}}
		short := relaySpec{Syncs: syncs, Lease: 1500 * time.Millisecond}
		w.register(short)
		w.book(names(of(100, 400))...)
		w.book(names(of(100, 400))...)
		l := w.begin(loadSpec{writers: 2, keys: 200, rate: 50})
		deadly := short
		deadly.Stop = stopSpec{Point: claimed, Key: theKey, Do: "exit"}
		failed := func() bool { return ask[bool](w, `SELECT EXISTS (SELECT FROM outbox.failed)`) }
		for !failed() && r.figures.kills <= deaths {
			deadly.Name = fmt.Sprint("victim-", r.figures.kills+1)
			p := w.start(deadly)
			p.expects = true
			w.within(patience, "the relay dies or the delivery fails", func() bool {
				select {
				case <-p.ended:
					r.figures.kills++
					return true
				default:
					return failed()
				}
			})
		}
		w.want("deaths", r.figures.kills, deaths)
		l.stop()
		w.until("all but its key is delivered", `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE key <> $1)`, theKey)
		w.want("deliveries that failed", w.logged(`outcome = 'failed'`), 1)
		w.want("of class crash", ask[int](w, `SELECT count(*) FROM outbox.failed WHERE key = $1 AND error_class = 'crash'`, theKey), 1)
		w.want("its ends that were noted", w.logged(`key = $1 AND outcome = 'unknown'`, theKey), deaths)
		for _, p := range w.relays[1:] {
			p.kill()
		}
		w.start(short)
		w.exec(`SELECT outbox.discard(sync, event_id, 'it kills relays') FROM outbox.failed`)
		w.drain(expected{})
		w.want("requests for its key", w.requests(theKey), ask[int](w, `SELECT count(*) FROM outbox.event WHERE key = $1`, theKey)-1)
	})
}

// requests returns the requests that the court read for a key.
func (w *world) requests(key string) int {
	n := 0
	for _, e := range w.court().Ledger() {
		if e.CaseReference == key {
			n++
		}
	}
	return n
}

// A relay with many claims is killed. When the leases have ended, another one sends these deliveries in parallel.
// Another sync delivers as before, and older deliveries of other keys wait.
func TestFault30KilledWithManyClaimed(t *testing.T) {
	for name, receiver := range map[string]time.Duration{"50 ms": 50 * time.Millisecond, "1 s": time.Second} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(r *run) {
				const healthy = "healthy"
				w := newWorld(r)
				w.addCourt(healthy)
				claimed := of(32, 500)
				// Half of each sync's share is reserved for it.
				spec := relaySpec{Workers: 2 * claimed, Connections: 8, Lease: 6100 * time.Millisecond, Syncs: []syncSpec{
					{Name: theSync, Timeout: 3 * time.Second, Attempts: 3, Concurrency: claimed},
					{Name: healthy, Events: []string{"other:*"}, Timeout: 3 * time.Second},
				}}
				w.register(spec)
				w.bulk(claimed)
				w.court().faults(r, courtsim.Fault{Do: courtsim.Action{Delay: courtsim.Duration(time.Minute)}})
				spec.Name = "dies"
				dies := w.start(spec)
				w.within(patience, "all are in flight", func() bool { return len(w.court().Ledger()) >= claimed })
				dies.kill()
				r.figures.kills++
				killed := time.Now()
				w.want("claims left behind", w.left("dies"), claimed)
				w.court().faults(r, courtsim.Fault{Do: courtsim.Action{Delay: courtsim.Duration(receiver)}})
				w.exec(`INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', 'N-' || n, jsonb_build_object('hearingId', 'N-' || n, 'scheduledAt', '1', 'location', '3A') FROM generate_series(1, $1::int) AS n`, of(300, 300_000))
				spec.Name = "takes-over"
				w.start(spec)
				var slowest time.Duration
				left := func() int {
					return ask[int](w, `SELECT count(*) FROM outbox.delivery WHERE sync = $1 AND key LIKE 'B-%'`, theSync)
				}
				for n := 0; left() > 0; n++ {
					if time.Since(killed) > patience {
						r.Fatalf("%d of %d are not delivered %s after the kill\n%s", left(), claimed, patience, w.dump())
					}
					began := time.Now()
					w.exec(`INSERT INTO outbox.event (type, key, payload) VALUES ('other:updated', 'O-' || $1::int, '{"hearingId": "1", "scheduledAt": "1", "location": "1"}')`, n)
					w.until("the healthy sync delivers", `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = $1)`, healthy)
					slowest = max(slowest, time.Since(began))
				}
				took := time.Since(killed)
				r.Logf("%d deliveries of a receiver of %s: redelivered %s after the kill, with a lease of %s; the healthy sync's slowest took %s",
					claimed, receiver, took.Round(time.Millisecond), spec.Lease, slowest.Round(time.Millisecond))
				// In parallel they take about as long as one, and one by one as long as all together.
				if oneByOne := time.Duration(claimed) * receiver; took > spec.Lease+max(oneByOne/2, busyMachine) {
					r.Errorf("redelivered %s after the kill; one by one it would take %s", took, spec.Lease+oneByOne)
				}
				if slowest > busyMachine {
					r.Errorf("the healthy sync waited %s", slowest)
				}
				w.court().faults(r)
				w.within(10*patience, "the rest is delivered", func() bool { return ask[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`) })
				w.lanes()
			})
		})
	}
}

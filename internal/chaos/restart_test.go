//go:build linux

package chaos

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/relay"
)

// Two or three relays share the work. They are killed, stalled for longer than their lease, and stopped at
// random. Meanwhile transactions of writers overlap and stay open, and the court fails from time to time.
func TestFault07RelaysKilledAtRandom(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.court().faults(t, unreliable()...)
		relays := []*process{w.start(relaySpec{}), w.start(relaySpec{})}
		if r.random.IntN(2) == 0 {
			relays = append(relays, w.start(relaySpec{}))
		}
		w.registered()
		l := w.begin(loadSpec{writers: 8, keys: of(50, 500), events: of(900, 6000), rate: of(150.0, 0)})
		written := make(chan struct{})
		go func() { l.group.Wait(); close(written) }()
		for writing := true; writing; {
			select {
			case <-written:
				writing = false
			case <-time.After(r.between(300*time.Millisecond, 1200*time.Millisecond)):
			}
			i := r.random.IntN(len(relays))
			switch dice := r.random.IntN(10); {
			case dice < 2:
				relays[i].stall()
				waiting.StallFor(r.Context(), r.between(lease, lease+time.Second)) // others take over meanwhile
				relays[i].signal(syscall.SIGCONT)
				continue
			case dice < 4:
				if err := relays[i].stop(); err != nil {
					t.Errorf("%s stopped: %v\n%s", relays[i].spec.Name, err, relays[i].stderr)
				}
			default:
				relays[i].kill()
				r.figures.kills++
			}
			relays[i] = w.start(relaySpec{})
		}
		w.drain(expected{})
	})
}

// A relay that is told to stop finishes its attempts and releases the other deliveries, so that other
// relays send them at once. An attempt is cut off if the drain is too short or a second signal comes.
// This costs no budget. The tests of cmd/lockstep check the exit codes.
func TestFault08Stopped(t *testing.T) {
	const workers, fast = 8, 300
	for name, test := range map[string]struct {
		delay    time.Duration // of the court, after some fast answers
		drain    time.Duration
		again    bool // more signals
		unknown  int  // attempts that were cut off, as the relay itself logs them
		expected func(*testing.T, *process)
	}{
		"drained in time": {time.Second, 20 * time.Second, false, 0, func(t *testing.T, p *process) {
			t.Helper()
			if p.err != nil {
				t.Errorf("it ended with %v\n%s", p.err, p.stderr)
			}
		}},
		"not drained in time": {time.Minute, 200 * time.Millisecond, false, workers, func(t *testing.T, p *process) {
			t.Helper()
			if p.err == nil || !p.stderr.contains(relay.ErrNotDrained.Error()) {
				t.Errorf("it ended with %v, want ErrNotDrained\n%s", p.err, p.stderr)
			}
		}},
		"a second signal": {time.Minute, time.Minute, true, 0, func(t *testing.T, p *process) {
			t.Helper()
			exit, ok := errors.AsType[*exec.ExitError](p.err)
			if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
				t.Errorf("it ended with %v, want it ended by the signal\n%s", p.err, p.stderr)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(r *run) {
				w := newWorld(r)
				spec := relaySpec{
					Workers: workers, Drain: test.drain, Lease: 6100 * time.Millisecond,
					Syncs: []syncSpec{{Name: theSync, Timeout: 3 * time.Second, Attempts: 3}},
				}
				w.register(spec)
				w.court().faults(t,
					courtsim.Fault{Match: courtsim.Match{First: fast}, Do: courtsim.Action{Delay: courtsim.Duration(time.Millisecond)}},
					courtsim.Fault{Do: courtsim.Action{Delay: courtsim.Duration(test.delay)}})
				w.bulk(of(500, 5000))
				spec.Name = "stops"
				stops := w.start(spec)
				w.within(patience, "every worker waits for the court, and more is claimed", func() bool {
					return len(w.court().Ledger()) >= fast+workers && w.struck("stops") > workers
				})
				sent := len(w.court().Ledger())
				if test.again {
					stops.expects = true
					w.within(patience, "it ends at a second signal", func() bool {
						stops.signal(syscall.SIGTERM)
						select {
						case <-stops.ended:
							return true
						default:
							return false
						}
					})
				} else {
					_ = stops.stop()
				}
				test.expected(r.T, stops)
				if begun := len(w.court().Ledger()) - sent; begun > workers {
					t.Errorf("%d requests begun after the stop", begun)
				}
				w.want("attempts that it says were cut off", w.logged(`outcome = 'unknown' AND error LIKE 'cut off by the relay''s stop%'`), test.unknown)
				w.want("deliveries charged for it", ask[int](w, `SELECT count(*) FROM outbox.delivery WHERE charged > 0`), 0)
				left := w.left("stops")
				if test.again == (left == 0) {
					t.Errorf("%d claims are left", left)
				}
				if !test.again {
					w.want("lanes marked by it", ask[int](w, `SELECT count(*) FROM outbox.lane WHERE crashes > 0`), 0)
				}
				w.court().faults(t)
				spec.Name = "other"
				w.start(spec)
				w.drain(expected{})
				w.want("unknown ends", w.logged(`outcome = 'unknown' AND relay = 'stops'`), test.unknown+left)
				if !test.again {
					w.want("requests", r.figures.attempts, r.figures.events+test.unknown)
				}
			})
		})
	}
}

// A relay loses its connections again and again, because the database ends them or the network is cut. It
// leaks nothing.
func TestFault09Reconnects(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		line := newLink(t, w.address())
		p := w.start(relaySpec{Name: "reconnects", Database: w.through(line), Syncs: []syncSpec{{Name: theSync, Attempts: 3, Notify: true}}})
		w.registered()
		w.bulk(of(300, 1000)) // as many connections to the court as there will ever be
		w.until("all is delivered", `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`)
		before := p.goroutines()
		l := w.begin(loadSpec{writers: 2, keys: 50, rate: 100})
		for ended, rounds := 0, 0; ended < of(60, 1000); rounds++ {
			n := ask[int](w, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'reconnects'`)
			if ended += n; n > 0 && rounds%5 == 4 {
				line.cut()
				line.restore()
			}
			w.until("it has connected again", `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'reconnects')`)
		}
		l.stop()
		w.drain(expected{})
		w.within(patience, "the relay is ready", func() bool { ready, _ := p.ready(); return ready })
		if after := p.goroutines(); after > before+10 {
			t.Errorf("%d goroutines after the reconnects, %d before", after, before)
		}
		connections := ask[int](w, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'reconnects'`)
		if most := p.spec.Connections + 1; connections > most { // one listens
			t.Errorf("%d connections, want at most %d", connections, most)
		}
	})
}

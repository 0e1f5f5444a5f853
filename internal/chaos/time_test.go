//go:build linux

package chaos

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// serverClock is the clock of a scenario's own PostgreSQL. libfaketime changes it. The clocks of the relay
// and of the court stay right.
type serverClock struct {
	t    testing.TB
	path string
}

// newServerClock gives a world whose database is off by a time span.
func newServerClock(r *run, off time.Duration) (*world, *serverClock) {
	r.Helper()
	found, err := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if err != nil || len(found) == 0 {
		r.Fatal("libfaketime.so.1 is not there: install Debian's package faketime")
	}
	dir := r.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // the server runs as another user
		r.Fatal(err)
	}
	c := &serverClock{r, filepath.Join(dir, "clock")}
	c.set(off)
	w := newServer(r, pgtest.Options{Route: pgtest.Local, Env: []string{
		"LD_PRELOAD=" + found[0],
		"FAKETIME_TIMESTAMP_FILE=" + c.path,
		"FAKETIME_NO_CACHE=1",   // a change is seen at once
		"DONT_FAKE_MONOTONIC=1", // as a real clock that is set
	}})
	c.is(w, off)
	return w, c
}

// set sets the clock. It replaces the file, so that no process reads half of it.
func (c *serverClock) set(off time.Duration) {
	c.t.Helper()
	next := c.path + ".next"
	if err := os.WriteFile(next, fmt.Appendf(nil, "%+d\n", int(off.Seconds())), 0o644); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(next, c.path); err != nil {
		c.t.Fatal(err)
	}
}

// is checks that the database's clock differs as it should.
func (c *serverClock) is(w *world, off time.Duration) {
	c.t.Helper()
	got := time.Until(ask[time.Time](w, `SELECT clock_timestamp()`))
	if d := got - off; d < -time.Minute || d > time.Minute {
		c.t.Fatalf("the database's clock is off by %s, want %s", got, off)
	}
}

// A database's clock differs by an hour from the start. This has no effect, because all due times and
// leases are by that clock. The relay logs the difference.
func clockOffFromTheStart(r *run, off time.Duration) {
	w, c := newServerClock(r, off)
	w.court().faults(r, unreliable()...)
	spec := relaySpec{Syncs: []syncSpec{{Name: theSync, Attempts: 20}}}
	lives := w.start(spec)
	dies := w.start(spec)
	w.registered()
	w.within(patience, "the relay says that the clocks differ", func() bool { return lives.stderr.contains("database clock differs") })
	l := w.begin(loadSpec{writers: 6, keys: 60, events: of(300, 6000)})
	l.reaches(int64(of(150, 3000)))
	dies.kill()
	r.figures.kills++
	l.wait()
	w.drain(expected{})
	c.is(w, off)
}

func TestFault22DatabaseClockAhead(t *testing.T) {
	scenario(t, func(r *run) { clockOffFromTheStart(r, time.Hour) })
}

func TestFault22DatabaseClockBehind(t *testing.T) {
	scenario(t, func(r *run) { clockOffFromTheStart(r, -time.Hour) })
}

// The database's clock jumps forward and back by an hour during traffic. Due deliveries and retries do not
// wait longer for this. Only the claim of a dead relay waits until its lease ends by the new clock, or
// until the clock is set back.
func TestFault22DatabaseClockJumps(t *testing.T) {
	scenario(t, func(r *run) {
		w, c := newServerClock(r, 0)
		refuses := courtsim.Fault{Match: courtsim.Match{Key: "H-refused"}, Do: courtsim.Action{Status: 500}}
		w.court().faults(r, append(unreliable(), refuses)...)
		spec := relaySpec{Syncs: []syncSpec{{Name: theSync, Attempts: 20}}}
		w.start(spec)
		w.start(spec)
		w.registered()
		step := int64(of(120, 2000))
		l := w.begin(loadSpec{writers: 6, keys: 60, rate: 400})
		l.reaches(step)
		w.book("H-refused")
		c.set(time.Hour) // every lease has ended now
		l.reaches(2 * step)
		// Its next attempt is put off by the clock that is an hour ahead.
		w.until("it is tried again", `SELECT EXISTS (SELECT FROM outbox.delivery WHERE key = 'H-refused' AND due_at > created_at + interval '30 minutes')`)
		w.exec(`SELECT outbox.pause($1, 'the clock is being set')`, theSync)
		w.until("nothing is in flight", `SELECT NOT EXISTS (SELECT FROM outbox.lane WHERE claim IS NOT NULL)`)
		w.court().faults(r, unreliable()...)
		c.set(0)
		w.exec(`SELECT outbox.resume($1)`, theSync)
		l.reaches(3 * step)
		l.stop()
		w.drain(expected{})

		// A relay dies with a claim, others of its rows are due or in retry, and the clock is set back.
		holds := w.start(relaySpec{Syncs: spec.Syncs, Stop: stopSpec{Point: claimed, Key: "H-held"}})
		for held := false; !held; { // until it is that relay which claims it
			w.book("H-held")
			held = w.holds(holds, "H-held")
		}
		holds.kill()
		r.figures.kills++
		w.exec(`SELECT outbox.pause($1, 'the clock is being set')`, theSync)
		w.until("only the dead relay's claim is left",
			`SELECT count(*) FILTER (WHERE key <> 'H-held') = 0 FROM outbox.lane WHERE claim IS NOT NULL`)
		w.book(names(40)...)
		// Counted before the clock is set: afterwards the relays make them due again.
		if n := ask[int](w, `SELECT count(*) FROM outbox.delivery WHERE state IN ('pending', 'retry') AND due_at > clock_timestamp() - interval '30 minutes'`); n < 40 {
			r.Fatalf("%d deliveries will be due in an hour, want 40: the scenario shows nothing", n)
		}
		c.set(-time.Hour)
		c.is(w, -time.Hour)
		w.exec(`SELECT outbox.resume($1)`, theSync)
		w.book("H-new")
		w.delivered("what was due before the clock was set back is delivered long before it has caught up", append(names(40), "H-new")...)
		if lease := ask[float64](w, `SELECT extract(epoch FROM lease_until - clock_timestamp()) FROM outbox.open_delivery WHERE key = 'H-held' AND state = 'sending'`); lease < 3000 {
			r.Errorf("the dead relay's claim ends in %.0f s", lease)
		}
		c.set(0)
		w.drain(expected{})
	})
}

// holds reports whether a relay is at its stop point with a key: it says so,
// or the key's deliveries are finished by others.
func (w *world) holds(p *process, key string) bool {
	w.t.Helper()
	for {
		select {
		case line := <-p.said:
			if line == "at claimed "+key {
				return true
			}
		case <-time.After(5 * time.Millisecond):
			if ask[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE key = $1)`, key) {
				return false
			}
		}
	}
}

//go:build linux

package chaos

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/waiting"
)

// There is a backlog, because no relay ran. A relay starts and sends it with bounded memory and
// goroutines. At the end its claims are as fast as at the beginning.
func TestFault25Backlog(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.register(relaySpec{})
		events, padding := of(12_000, 1_000_000), of(6000, 500) // in all, more than the relay may have in memory
		// Most keys have four events, and one key has a thousand.
		w.exec(fmt.Sprintf(`
INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', k, jsonb_build_object('hearingId', k, 'scheduledAt', n::text, 'location', '3A', 'padding', repeat('x', %[2]d))
  FROM generate_series(1, %[1]d) AS n
 CROSS JOIN LATERAL (SELECT CASE WHEN n %% (%[1]d / 1000) = 0 THEN 'B-hot' ELSE 'B-' || n %% (%[1]d / 4) END) AS key (k)`, events, padding))

		p := w.start(relaySpec{Workers: 32})
		slice := of(2000, events/10)
		left := func(n int) string { return fmt.Sprintf(`SELECT count(*) <= %d FROM outbox.delivery`, events-n) }
		w.until("the relay began", left(slice/10))
		began, goroutines := p.claims(), p.goroutines()
		within := patience
		if *long {
			within = 20 * patience
		}
		w.within(within, "a slice is delivered", func() bool { return ask[bool](w, left(slice)) })
		ended := p.claims()
		r.Logf("%d of %d delivered; claims took %s a delivery, at the end %s; %d goroutines, at the end %d; %d MiB at most",
			slice, events, began, ended, goroutines, p.goroutines(), p.peakMemory()>>20)
		if ended > 10*began {
			r.Errorf("claims took %s a delivery at the beginning, %s at the end", began, ended)
		}
		if n := p.goroutines(); n > goroutines+2*p.spec.Workers { // two for each connection to the court
			r.Errorf("%d goroutines, %d at the beginning", n, goroutines)
		}
		if peak := p.peakMemory(); peak > 64<<20 {
			r.Errorf("the relay had %d MiB in memory, want at most 64", peak>>20)
		}
		if err := p.stop(); err != nil {
			r.Errorf("the relay: %v", err)
		}
		w.verify(expected{failed: ask[int](w, `SELECT count(*) FROM outbox.delivery`)})
	})
}

// Events are written steadily, and everything fails from time to time: relays are killed and stopped,
// database connections end, links are slow, the court answers with errors. One relay runs all the
// time. Its memory and its number of goroutines do not grow.
func TestSoak(t *testing.T) {
	t.Parallel()
	r := &run{T: t, seed: *seed, random: rand.New(rand.NewPCG(*seed, 1))}
	began := time.Now()
	defer func() {
		r.figures.took, r.figures.failed = time.Since(began), t.Failed()
		report.add(t, r.figures)
	}()
	w := newWorld(r)
	toDatabase, toCourt := newLink(r, w.address()), newLink(r, w.court().url)
	spec := relaySpec{Database: w.through(toDatabase), Syncs: []syncSpec{{Name: theSync, Court: "http://" + toCourt.Listen}}}
	oldest := w.start(spec)
	others := []*process{w.start(spec), w.start(spec)}
	w.registered()
	perSecond, lasts := 150, *soak
	if *long || *soak > time.Minute {
		perSecond, lasts = 500, max(*soak, 10*time.Second)
	}
	l := w.begin(loadSpec{writers: 16, keys: 2 * perSecond, rate: float64(perSecond)})
	l.reaches(int64(perSecond))
	memory, goroutines := oldest.residentMemory(), oldest.goroutines()

	say := func() {
		fmt.Printf("soak %s: %d events, %d not delivered yet, %d requests, %d kills; the oldest relay has %d MiB and %d goroutines\n",
			time.Since(began).Round(time.Second), l.written.Load(), ask[int](w, `SELECT count(*) FROM outbox.delivery`),
			len(w.court().Ledger()), r.figures.kills, oldest.residentMemory()>>20, oldest.goroutines())
	}
	said := time.Now()
	for soaking := time.Now(); time.Since(soaking) < lasts; {
		heal := func() {}
		i := r.random.IntN(len(others))
		switch r.random.IntN(6) {
		case 0:
			others[i].kill()
			heal = func() { others[i] = w.start(spec) }
			r.figures.kills++
		case 1:
			others[i].signal(syscall.SIGSTOP)
			heal = func() { others[i].signal(syscall.SIGCONT) }
		case 2:
			w.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'relay-%' AND datname = current_database()`)
		case 3:
			toDatabase.harm("latency", answers, map[string]any{"latency": 100, "jitter": 50})
			heal = toDatabase.heal
		case 4:
			toCourt.harm("latency", answers, map[string]any{"latency": 300, "jitter": 200})
			heal = toCourt.heal
		case 5:
			w.court().faults(r, unreliable()...)
			heal = func() { w.court().faults(r) }
		}
		waiting.StallFor(r.Context(), r.between(200*time.Millisecond, 4*time.Second)) // now and then longer than a lease
		heal()
		waiting.StallFor(r.Context(), r.between(0, time.Second)) // without a fault
		if time.Since(said) > 30*time.Second {
			say()
			said = time.Now()
		}
	}
	l.stop()
	w.within(10*patience, "what has piled up is delivered", func() bool { return ask[bool](w, `SELECT count(*) < 1000 FROM outbox.delivery`) })
	w.drain(expected{})
	say()
	if n := oldest.goroutines(); n > goroutines+2*oldest.spec.Workers { // two for each connection to the court
		r.Errorf("the oldest relay has %d goroutines, %d at the beginning", n, goroutines)
	}
	if n := oldest.residentMemory(); n > memory+24<<20 || n > 64<<20 {
		r.Errorf("the oldest relay has %d MiB in memory, %d at the beginning", n>>20, memory>>20)
	}
}

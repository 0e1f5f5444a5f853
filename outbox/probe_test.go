package outbox_test

import (
	"slices"
	"strings"
	gosync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// probe asks for a probe and returns the proposed keys, the best first.
func (d *desk) probe(s *outbox.Store) (number int, keys string) {
	d.t.Helper()
	p, err := s.Probe(d.t.Context(), sync, "", time.Minute)
	if err != nil {
		d.t.Fatal(err)
	}
	// Each is claimed as a relay claims it, and released.
	var proposed []string
	for _, key := range p.With {
		c, err := s.ClaimOne(d.t.Context(), outbox.OneRequest{Sync: sync, Lease: time.Minute, Probe: true, Key: key})
		if err != nil {
			d.t.Fatal(err)
		}
		for _, claimed := range c.Deliveries {
			proposed = append(proposed, claimed.Key)
			if r := s.Record(d.t.Context(), sync, []outbox.Result{{Delivery: claimed}}); r.Err != nil {
				d.t.Fatal(r.Err)
			}
		}
	}
	if got := strings.Join(p.With, " "); got != strings.Join(proposed, " ") {
		d.t.Errorf("of the proposed %s only %s could be claimed", got, strings.Join(proposed, " "))
	}
	return p.Number, strings.Join(proposed, " ")
}

func (d *desk) hold(kind outbox.HoldKind, until time.Duration) {
	d.t.Helper()
	if err := d.a.Hold(d.t.Context(), sync, "", kind, until, "r"); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) again(probes int, in time.Duration, untried bool) {
	d.t.Helper()
	if err := d.a.ProbeAgain(d.t.Context(), sync, "", probes, in, untried); err != nil {
		d.t.Fatal(err)
	}
}

// A probe takes a delivery that was not tried yet, the newest and the oldest alternately. Then it
// takes deliveries that failed in another way, and last those that were refused.
func TestAProbeTakesTheMostTellingDelivery(t *testing.T) {
	for _, kind := range []outbox.HoldKind{outbox.HoldAuth, outbox.HoldBreaker} {
		t.Run(string(kind), func(t *testing.T) {
			d := newDesk(t)
			for n, key := range []string{"refused", "forbidden", "failing", "old", "middle", "blocked", "blocked", "suspect", "later", "new"} {
				d.emit(key, n)
			}
			d.exec(`UPDATE outbox.delivery SET error_class = 'auth' WHERE key = 'refused'`)
			d.exec(`UPDATE outbox.delivery SET error_class = 'forbidden' WHERE key = 'forbidden'`)
			d.exec(`UPDATE outbox.delivery SET error_class = 'transient' WHERE key = 'failing'`)
			d.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity' WHERE event_seq = (SELECT min(event_seq) FROM outbox.delivery WHERE key = 'blocked')`)
			d.exec(`INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by, crashes)
                    VALUES ('CourtCalendarSync', 'suspect', clock_timestamp() - interval '1 second', gen_random_uuid(), 'dead relay', 1)`)
			d.exec(`UPDATE outbox.delivery SET due_at = clock_timestamp() + interval '1 hour' WHERE key = 'later'`)
			d.hold(kind, 0)
			for n, want := range []string{"new middle old failing refused forbidden", "old middle new failing refused forbidden"} {
				number, keys := d.probe(d.a)
				if number != n+1 || keys != want {
					t.Errorf("probe %d is proposed %s, want %s", number, keys, want)
				}
				d.again(number, 0, false)
			}
		})
	}
}

// An auth hold may be probed before its time with an untried delivery: at once, and then with
// longer and longer pauses.
func TestAnAuthHoldIsProbedAtOnceWithAnUntriedDelivery(t *testing.T) {
	d := newDesk(t)
	d.emit("refused", 1)
	d.exec(`UPDATE outbox.delivery SET error_class = 'auth'`)
	d.hold(outbox.HoldAuth, time.Hour)
	if number, _ := d.probe(d.a); number != 0 {
		t.Fatal("probed with what was refused")
	}
	d.emit("untried", 1)
	number, keys := d.probe(d.a)
	if number != 1 || keys != "untried refused" {
		t.Fatalf("probe %d is proposed %q", number, keys)
	}
	if number, _ := d.probe(d.b); number != 0 {
		t.Error("probed by two relays at once")
	}
	var pauses []string
	for range 12 {
		d.again(number, time.Hour, true)
		pauses = append(pauses, d.text(`SELECT round(extract(epoch FROM untried_at - clock_timestamp()) * 1000, -2)::text FROM outbox.hold`))
		if early, _ := d.probe(d.a); early != 0 {
			t.Error("probed again without a pause")
		}
		d.exec(`UPDATE outbox.hold SET untried_at = clock_timestamp()`)
		number, _ = d.probe(d.a)
	}
	if want := strings.Fields("100 200 400 800 1600 3200 6400 12800 25600 30000 30000 30000"); !slices.Equal(pauses, want) {
		t.Errorf("pauses of %v ms, want %v", pauses, want)
	}
	d.again(number, time.Hour, false) // the probe was another one
	if number, _ := d.probe(d.a); number == 0 {
		t.Error("what was not tried waits though nothing of its kind has failed since")
	}
}

func TestOtherHoldsKeepAnAuthHoldFromBeingProbed(t *testing.T) {
	d := newDesk(t)
	d.emit("untried", 1)
	d.hold(outbox.HoldAuth, time.Hour)
	for _, other := range []outbox.HoldKind{outbox.HoldThrottle, outbox.HoldBreaker} {
		d.hold(other, time.Hour)
		if number, _ := d.probe(d.a); number != 0 {
			t.Errorf("probed in spite of a %s", other)
		}
		d.exec(`UPDATE outbox.hold SET until = clock_timestamp() WHERE kind = $1`, other)
	}
	if number, _ := d.probe(d.a); number != 1 {
		t.Error("not probed though every hold lets it")
	}
}

func TestOneRelayGetsTheProbe(t *testing.T) {
	d := newDesk(t)
	d.emit("untried", 1)
	d.hold(outbox.HoldAuth, time.Hour)
	for round := range 50 {
		var got atomic.Int32
		var relays gosync.WaitGroup
		for _, s := range []*outbox.Store{d.a, d.b, d.a, d.b} {
			relays.Go(func() {
				p, err := s.Probe(t.Context(), sync, "", time.Hour)
				if err != nil {
					t.Error(err)
				}
				if p.Number > 0 {
					got.Add(1)
				}
			})
		}
		relays.Wait()
		if n := got.Load(); n != 1 {
			t.Fatalf("round %d: %d relays probe at once", round, n)
		}
		d.again(1<<30, time.Hour, false)
	}
}

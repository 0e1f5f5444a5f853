package relay

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// script calls destinations. Each step is a word, such as "begin:a".
type script struct {
	d     destinations
	slots int
	now   time.Time
	n     int
}

func (s *script) run(steps string) string {
	var said []string
	for step := range strings.FieldsSeq(steps) {
		do, to, _ := strings.Cut(step, ":")
		switch do {
		case "begin", "probe":
			s.n++
			w := work{Delivery: &outbox.Delivery{Key: fmt.Sprint(to, s.n)}, to: to, leaseEnd: s.now.Add(time.Minute)}
			if do == "probe" {
				w.probe = probe{of: to, number: 1}
			}
			said = append(said, [...]string{"starts", "waits", "leaves"}[s.d.begin(s.now, w, s.slots)])
		case "done", "fail":
			said = append(said, s.keys(s.d.ended(s.now, to, do == "done", s.slots)))
		case "ready":
			starting, late := s.d.ready(s.now, s.slots, 15*time.Second)
			said = append(said, s.keys(starting)+"/"+s.keys(late))
		case "hold":
			_, waiting := s.d.hold(s.now, outbox.Hold{Scope: to, Kind: outbox.HoldBreaker}, s.now.Sub(at(0)))
			said = append(said, s.keys(waiting))
		case "release":
			s.now = s.now.Add(time.Second)
			said = append(said, fmt.Sprint(len(s.d.release(s.now.Sub(at(0)), strings.Fields(to)))))
		case "busy":
			said = append(said, strings.Join(s.d.busy(), ","))
		case "wait":
			d, err := time.ParseDuration(to)
			if err != nil {
				panic(err)
			}
			s.now = s.now.Add(d)
			s.d.forget(s.now, forgetAfter)
		}
	}
	return strings.Join(said, " ")
}

func (s *script) keys(list []work) string {
	var keys []string
	for _, w := range list {
		keys = append(keys, w.Key)
	}
	if keys == nil {
		return "-"
	}
	return strings.Join(keys, ",")
}

func TestDestinations(t *testing.T) {
	for name, tc := range map[string]struct {
		slots, each int
		rate        float64
		steps, want string
	}{
		"one destination leaves a slot for the next": {
			slots: 4, steps: "begin:a begin:a begin:a begin:a begin:b", want: "starts starts starts waits starts",
		},
		"of several none has more than half": {
			slots: 4, steps: "begin:b begin:a begin:a begin:a begin:b begin:b", want: "starts starts starts waits starts waits",
		},
		"who finishes takes the next of its destination": {
			slots: 2, steps: "begin:a begin:a begin:a done:a done:a done:a", want: "starts waits waits a2 a3 -",
		},
		"each has its own limit": {
			slots: 8, each: 1, steps: "begin:a begin:b begin:a begin:b fail:b done:a", want: "starts starts waits waits b4 a3",
		},
		"new ones wait behind those that wait": {
			slots: 4, rate: 10, steps: "begin:a begin:a wait:100ms begin:a ready", want: "starts waits waits a2/-",
		},
		"each has its own rate": {
			slots: 8, rate: 1, steps: "begin:a begin:b begin:a begin:b wait:1s ready wait:1s ready", want: "starts starts waits waits a3,b4/- -/-",
		},
		"a rate is not forgotten with its destination": {
			slots: 8, rate: 0.001, steps: "begin:a done:a wait:5m begin:a", want: "starts - waits",
		},
		"beyond so many they are released, until half have started": {
			slots: 3, each: 1,
			steps: "begin:a " + strings.Repeat("begin:a ", leastWaiting) + "busy begin:a busy begin:b done:a done:a done:a busy done:a busy begin:a",
			want:  "starts " + strings.Repeat("waits ", leastWaiting) + " leaves a starts a2 a3 a4 a a5  waits",
		},
		"where they run out meanwhile, more may wait": {
			slots: 3, each: 1,
			steps: strings.Repeat("begin:a ", leastWaiting+2) + strings.Repeat("done:a ", leastWaiting+1) + strings.Repeat("begin:a ", 2*leastWaiting+2),
			want: "starts " + strings.Repeat("waits ", leastWaiting) + "leaves a2 a3 a4 a5 a6 a7 a8 a9 - " +
				"starts " + strings.Repeat("waits ", 2*leastWaiting) + "leaves",
		},
		"waiting deliveries are released before their lease ends": {
			slots: 4, each: 1, steps: "begin:a begin:a wait:30s begin:a wait:20s ready", want: "starts waits waits -/a2",
		},
		"a hold keeps back its destination only": {
			slots: 4, each: 1, steps: "begin:a begin:a hold:a begin:a begin:b done:a", want: "starts waits a2 leaves starts -",
		},
		"what is on hold does not take half of the slots": {
			slots: 6, steps: "begin:a hold:a begin:b begin:b begin:b begin:b begin:b begin:b", want: "starts - starts starts starts starts starts waits",
		},
		"a probe starts in spite of the hold": {
			slots: 4, steps: "hold:a begin:a probe:a", want: "- leaves starts",
		},
		"after a hold one, and one more with each success": {
			slots: 8, steps: "hold:a release: begin:a begin:a begin:a begin:a done:a fail:a done:a",
			want: "- 1 starts waits waits waits a2,a3 a4 -",
		},
		"a hold that the claim still finds stays": {
			slots: 4, steps: "hold:a release:a begin:a", want: "- 0 leaves",
		},
		"idle ones do not count": {
			slots: 4, steps: "begin:a done:a wait:2m begin:b begin:b begin:b begin:b", want: "starts - starts starts starts waits",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{slots: tc.slots, now: at(0)}
			s.d.configure(tc.each, tc.rate)
			got := s.run(tc.steps)
			if name == "each has its own rate" {
				got = strings.Replace(got, "b4,a3", "a3,b4", 1) // in any order
			}
			if got != tc.want {
				t.Errorf("%s:\n got %s\nwant %s", tc.steps, got, tc.want)
			}
		})
	}
}

// A claim that began before a hold was known does not end it.
func TestAnEarlierClaimEndsNoHold(t *testing.T) {
	var d destinations
	d.hold(at(0), outbox.Hold{Scope: "a", Kind: outbox.HoldThrottle}, 1<<62)
	if ended := d.release(5*time.Second, nil); ended != nil || !d.held("a") {
		t.Errorf("ended while it is being written: %v", ended)
	}
	d.settled("a", 6*time.Second)
	if ended := d.release(6*time.Second, nil); ended != nil {
		t.Errorf("ended by a claim from before: %v", ended)
	}
	if ended := d.release(7*time.Second, nil); len(ended) != 1 || d.held("a") {
		t.Errorf("not ended: %v", ended)
	}
}

// The number of destinations that are remembered is bounded, and so are the bytes of deliveries
// that wait.
func TestDestinationsAreBounded(t *testing.T) {
	var d destinations
	for i := range 3 * mostDestinations {
		scope := fmt.Sprint(i)
		d.begin(at(0), work{Delivery: &outbox.Delivery{}, to: scope}, 4)
		d.ended(at(0), scope, true, 4)
	}
	if len(d.byScope) > mostDestinations || d.open != len(d.byScope) {
		t.Errorf("%d destinations are kept, %d of them open", len(d.byScope), d.open)
	}
	d = destinations{perDestination: 1}
	big := &outbox.Delivery{Event: outbox.Event{Payload: make([]byte, 1<<20)}}
	for i := range 40 {
		d.begin(at(0), work{Delivery: big, to: fmt.Sprint(i % 2)}, 32)
	}
	if d.bytes > maxPrefetchBytes || d.waiting != maxPrefetchBytes>>20 {
		t.Errorf("%d deliveries wait with %d bytes", d.waiting, d.bytes)
	}
	if n := len(d.all()); n != maxPrefetchBytes>>20 || d.waiting != 0 || d.bytes != 0 {
		t.Errorf("%d were taken out, %d are left with %d bytes", n, d.waiting, d.bytes)
	}
}

func TestHealthsAreBounded(t *testing.T) {
	h := newHealths(time.Second)
	h.of("kept").fail("A")
	for i := range 3 * mostHealths {
		h.of(fmt.Sprint(i))
		h.of("kept")
	}
	if n := len(h.by); n > mostHealths || len(h.used) != n {
		t.Errorf("%d scopes are remembered", n)
	}
	if len(h.of("kept").failed) != 1 || h.of("") != h.whole || h.of("other") == h.whole {
		t.Error("the health of a scope is mixed up with another's")
	}
}

package outbox_test

import (
	"context"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/outbox"
)

// A key is to be checked, and a delivery of a late transaction of the same key is found too.
//
//	late:   event 1 …                                                                                                   commits
//	a:      claims event 2 (claim 1), records it: closes the lane …      commits, opens it for event 3 (claim 2), closes it …             commits
//	b:                                                         polls: to check, claim 1                                         polls: claim 2
//	writer:                                            event 3
func TestAKeyToCheckIsFoundByALateTransactionToo(t *testing.T) {
	const block = `INSERT INTO outbox.external_ref (sync, key, event_seq) VALUES ('CourtCalendarSync', 'H-1', 0) ON CONFLICT (sync, key) DO UPDATE SET etag = 'y'`
	d := newDesk(t)
	late := d.begin(`INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-1', '{}')`)
	d.emit("H-1", 2)
	first := d.poll(d.a, 9, time.Minute).Deliveries
	holder := d.begin(block)
	recording := blocked(d, "record finished", func() outbox.Recorded { return d.a.Record(t.Context(), sync, delivered(first...)) })
	d.emit("H-1", 3)
	d.poll(d.b, 9, time.Minute)
	d.end(holder, "ROLLBACK")
	if r := recording(); r.Err != nil || !r.Done[0] {
		t.Fatalf("recorded %+v", r)
	}
	var second []*outbox.Delivery
	for range 2 {
		d.known(d.a).CheckAgainNow()
		second = append(second, d.poll(d.a, 9, time.Minute).Deliveries...)
	}
	if !slices.Equal(numbers(second), []int64{3}) {
		t.Fatalf("claimed %v", numbers(second))
	}
	holder = d.begin(block)
	recording = blocked(d, "record finished", func() outbox.Recorded { return d.a.Record(t.Context(), sync, delivered(second...)) })
	d.end(late, "COMMIT")
	d.known(d.b).CheckAgainNow()
	if c := d.poll(d.b, 9, time.Minute); len(c.Deliveries) > 0 {
		t.Fatalf("claimed %v while the lane is claimed", numbers(c.Deliveries))
	}
	d.end(holder, "ROLLBACK")
	if r := recording(); r.Err != nil || !r.Done[0] || r.Next != nil {
		t.Fatalf("recorded %+v", r)
	}
	if got := d.text(`SELECT count(*)::text FROM outbox.lane`); got != "0" {
		t.Fatal("the lane was not closed: the test does not show what it is for")
	}
	if got := numbers(d.claim(d.b)); !slices.Equal(got, []int64{1}) {
		t.Errorf("claimed %v, want the first event", got)
	}
	d.lanesAreWhole()
}

// A replay is sent under the same claim as the first delivery of its event. Its first
// recording is not taken, because a row is locked.
func TestAReplayUnderTheSameClaimIsNoRepetition(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	d.emit("H-1", 2)
	stay := func(ds ...*outbox.Delivery) []outbox.Result {
		r := delivered(ds...)
		for i := range r {
			r[i].Stay = true
		}
		return r
	}
	first := d.poll(d.a, 9, time.Minute).Deliveries
	r := d.a.Record(t.Context(), sync, stay(first...))
	if r.Err != nil || !r.Done[0] || len(r.Next) != 1 {
		t.Fatalf("recorded %+v", r)
	}
	d.exec(`SELECT outbox.replay('CourtCalendarSync', (SELECT id FROM outbox.event WHERE seq = 1), 'again')`)
	r = d.a.Record(t.Context(), sync, stay(r.Next...))
	if r.Err != nil || !r.Done[0] || len(r.Next) != 1 {
		t.Fatalf("recorded %+v", r)
	}
	replay := r.Next
	t.Logf("replay at %d of %s", replay[0].Position, replay[0].Event.ID)
	d.emit("H-1", 3)
	d.exec(`SELECT outbox.discard(sync, event_id, 'not wanted') FROM outbox.delivery WHERE event_seq = (SELECT max(event_seq) FROM outbox.delivery)`)
	for range 5 { // as a relay does that records again what was neither done nor lost
		r = d.a.Record(t.Context(), sync, stay(replay...))
		t.Logf("recorded %+v", r)
		if r.Done[0] || r.Lost[0] {
			break
		}
	}
	if got := d.text(`SELECT count(*)::text FROM outbox.delivery`); got != "0" {
		t.Errorf("%s deliveries are open after the recording was done", got)
	}
	if got := d.text(`SELECT count(*)::text FROM outbox.lane`); got != "0" {
		t.Errorf("%s lanes: %s", got, d.text(`SELECT string_agg(l::text, ' ') FROM outbox.lane AS l`))
	}
	if got := d.text(`SELECT string_agg(outcome || ' ' || event_seq, ', ' ORDER BY id) FROM outbox.delivery_log`); got != "delivered 1, replayed 3, delivered 2, discarded 4, delivered 3" {
		t.Errorf("log: %s", got)
	}
}

// An operator has discarded the second delivery of a lane in an open transaction. A relay
// takes the lane over, and does not wait.
//
//	relay:    takes the lane over                               reads its first delivery, logs unknown: waits
//	operator:                      discards event 2 of it …
func TestFirstDeliveriesWaitForNoOperator(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	d.emit("H-1", 2)
	d.poll(d.a, 9, time.Minute)
	d.endLease()
	d.emit("H-2", 3)
	rest, err := d.b.ClaimLanes(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 9, Lanes: 9, Lease: time.Minute}, d.known(d.b))
	if err != nil {
		t.Fatal(err)
	}
	d.begin(`SELECT outbox.discard(sync, event_id, 'not wanted') FROM outbox.delivery WHERE event_seq = 2`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	began := time.Now()
	c, err := rest(ctx)
	t.Log(numbers(c.Deliveries), err, time.Since(began))
	if !slices.Contains(numbers(c.Deliveries), 3) || err != nil {
		t.Errorf("has %v, %v after %s", numbers(c.Deliveries), err, time.Since(began))
	}
}

// The answer to a recording is lost. The lane is locked when the relay records again.
//
//	relay:    records event 1, gets no answer                                 records it again                   …
//	operator:                                      discards event 3 …                            rolls back
func TestALostAnswerDuringADiscardKeepsTheLane(t *testing.T) {
	d := newDesk(t)
	for n := range 3 {
		d.emit("H-1", n)
	}
	first := delivered(d.poll(d.a, 9, time.Minute).Deliveries...)
	first[0].Stay = true
	if r := d.a.Record(t.Context(), sync, first); r.Err != nil || len(r.Next) != 1 { // lost
		t.Fatalf("recorded %+v", r)
	}
	operator := d.begin(`SELECT outbox.discard(sync, event_id, 'not wanted') FROM outbox.delivery WHERE event_seq = 3`)
	r := d.a.Record(t.Context(), sync, first)
	t.Logf("recorded %+v", r)
	d.end(operator, "ROLLBACK")
	for range 5 {
		if r.Done[0] {
			break
		}
		r = d.a.Record(t.Context(), sync, first)
	}
	if len(r.Next) == 0 {
		t.Errorf("no relay has the lane: %s", d.text(`SELECT string_agg(l::text, ' ') FROM outbox.lane AS l`))
	}
}

// Two deliveries are added to a lane that is being judged. The earlier one may supersede.
//
//	late:   event 2 …                                            commits
//	a:      event 1 has failed; judges event 3 …                                                              is done, and dies
//	b:                                                 polls             polls: to check, 2           polls: 4             judges 4
//	writer:                                                                                  event 4
func TestTheEarlierOfTwoDeliveriesIsJudged(t *testing.T) {
	d := newDesk(t, outbox.Registration{Name: sync, Patterns: []string{"*"}, OnFailed: "supersede"})
	want := func(e outbox.Event) bool { return e.Seq <= 2 }
	look := func(s *outbox.Store) []*outbox.Delivery {
		c, err := s.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 9, Lanes: 9, Lease: time.Minute, Wanted: want}, d.known(s))
		if err != nil {
			t.Fatal(err)
		}
		d.giveBack(s, c)
		return c.Deliveries
	}
	d.emit("H-1", 1)
	first := look(d.a)
	late := d.begin(`INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-1', '{}')`)
	d.emit("H-1", 3)
	look(d.b)
	look(d.b)
	d.a.Record(t.Context(), sync, []outbox.Result{{Delivery: first[0], Outcome: outbox.Failed, Attempt: true, Failed: true}})
	judging, goOn, done := make(chan bool), make(chan bool), make(chan bool)
	go func() {
		defer close(done)
		c, err := d.a.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 9, Lanes: 9, Lease: time.Minute, Wanted: func(e outbox.Event) bool {
			judging <- true
			<-goOn
			return want(e)
		}}, d.known(d.a))
		t.Log("a:", numbers(c.Deliveries), len(c.Idle), err)
	}()
	<-judging
	_, _ = late.Exec(t.Context(), "COMMIT")
	d.known(d.b).CheckAgainNow()
	look(d.b)
	d.emit("H-1", 4)
	look(d.b) // within 50 ms
	goOn <- true
	<-done
	t.Log(d.text(`SELECT string_agg(l::text, ' ') FROM outbox.lane AS l`))
	var got []int64
	for range 10 {
		d.known(d.b).CheckAgainNow()
		got = append(got, numbers(look(d.b))...)
	}
	if !slices.Equal(got, []int64{2}) {
		t.Errorf("claimed %v, want 2, which supersedes 1: %s %s", got, d.states(), d.text(`SELECT string_agg(l::text, ' ') FROM outbox.lane AS l`))
	}
}

// A relay dies while it sends. Another one takes the lane over, and dies before it has read the
// first delivery. The log has the claim under which the delivery was sent.
//
//	a: sends event 1, dies
//	b:                      claims the lane, dies
//	c:                                             claims the lane, logs unknown
func TestTheClaimThatWasUsedIsLogged(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	sent := d.poll(d.a, 9, time.Minute).Deliveries
	d.endLease()
	if _, err := d.b.ClaimLanes(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 9, Lanes: 9, Lease: time.Minute}, d.known(d.b)); err != nil {
		t.Fatal(err)
	}
	d.endLease()
	if got := numbers(d.suspect(d.b)); !slices.Equal(got, []int64{1}) {
		t.Fatalf("claimed %v", got)
	}
	if got, want := d.text(`SELECT string_agg(concat_ws(' ', outcome, relay, claim), ', ' ORDER BY id) FROM outbox.delivery_log`), "unknown a "+sent[0].Claim; got != want {
		t.Errorf("log: %s, want %s", got, want)
	}
	d.record(d.a, outbox.Delivered, sent...)
	t.Log(d.text(`SELECT string_agg(concat_ws(' ', outcome, relay, claim, reason), ', ' ORDER BY id) FROM outbox.delivery_log`))
}

// A delivery in flight is discarded. This is possible because an earlier event of its key was
// committed meanwhile.
//
//	late:     event 1 …                       commits
//	relay:              claims event 2                             records event 2    polls
//	operator:                                 discards event 2
func TestALaneContinuesAfterTheDeliveryBeingSentIsDiscarded(t *testing.T) {
	for _, outcome := range []outbox.Outcome{outbox.Delivered, outbox.Retry, ""} {
		t.Run(string(outcome), func(t *testing.T) {
			d := newDesk(t)
			late := d.begin(`INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-1', '{}')`)
			d.emit("H-1", 2)
			second := d.poll(d.a, 9, time.Minute).Deliveries
			d.end(late, "COMMIT")
			d.exec(`SELECT outbox.discard(sync, event_id, 'not wanted') FROM outbox.delivery WHERE event_seq = 2`)
			r := d.a.Record(t.Context(), sync, []outbox.Result{{Delivery: second[0], Outcome: outcome, Attempt: outcome != ""}})
			if r.Err != nil || !r.Done[0] && !r.Lost[0] {
				t.Fatalf("recorded %+v", r)
			}
			if got := numbers(d.claim(d.a)); !slices.Equal(got, []int64{1}) {
				t.Errorf("claimed %v, want the first: %s", got, d.text(`SELECT string_agg(l::text, ' ') FROM outbox.lane AS l`))
			}
		})
	}
}

// Two relays open lanes of the same keys. While one waits for the other, it has no claims that
// the other waits for.
//
//	operator: has a lane of m …                                                      rolls back
//	b:                          opens b, waits for m                                              opens m, finds x: commits
//	opener:                                          opens x, releases it
//	a:                                                        opens b: waits for b                                           claims x
//
// If due lanes were claimed before others are opened, a would have x while it waits for b, and
// b would wait for x.
func TestARelayThatWaitsToOpenALaneHoldsNoClaims(t *testing.T) {
	d := newDesk(t)
	for _, s := range []*outbox.Store{d.a, d.b} {
		d.poll(s, 9, time.Minute) // so that connections are made, and statements prepared
	}
	for i, key := range []string{"b", "m", "x"} {
		d.emit(key, i+1)
	}
	waiters := func(n int) func() bool {
		return func() bool {
			return d.text(`SELECT count(*)::text FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%lockstep: open lanes%'`) == strconv.Itoa(n)
		}
	}
	look := func(s *outbox.Store) <-chan outbox.Claims {
		done := make(chan outbox.Claims, 1)
		go func() {
			c, err := s.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 9, Lanes: 9, Lease: time.Minute}, d.known(s))
			if err != nil {
				t.Errorf("claim: %v", err)
			}
			done <- c
		}()
		return done
	}
	operator := d.begin(`INSERT INTO outbox.lane (sync, key, due_at) VALUES ('CourtCalendarSync', 'm', now())`)
	b := look(d.b)
	waiting.For(t, time.Minute, "b waits", waiters(1))
	d.exec(`INSERT INTO outbox.lane (sync, key, due_at) VALUES ('CourtCalendarSync', 'x', now())`)
	a := look(d.a)
	waiting.For(t, time.Minute, "a waits", waiters(2))
	d.end(operator, "ROLLBACK")
	claimed := append(numbers((<-a).Deliveries), numbers((<-b).Deliveries)...)
	slices.Sort(claimed)
	if !slices.Equal(claimed, []int64{1, 2, 3}) {
		t.Errorf("claimed %v", claimed)
	}
	d.lanesAreWhole()
}

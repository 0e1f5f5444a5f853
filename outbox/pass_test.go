package outbox_test

import (
	"slices"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// age makes everything that is due older than a walk would come back to.
func (d *desk) age() {
	d.t.Helper()
	d.exec(`UPDATE outbox.delivery SET due_at = due_at - interval '1 hour' WHERE due_at < 'infinity'`)
}

func (d *desk) states() string {
	d.t.Helper()
	return d.text(`SELECT string_agg(state, ' ' ORDER BY key, event_seq) FROM outbox.delivery`)
}

// rows is what the table has of each delivery, locks and all.
func (d *desk) rows() string {
	d.t.Helper()
	return d.text(`SELECT string_agg(concat_ws(' ', ctid, xmin, xmax, state), ', ' ORDER BY event_seq) FROM outbox.delivery`)
}

// pass claims as the walk does that does not come back.
func (d *desk) pass(budget int) outbox.Claims {
	d.t.Helper()
	c, err := d.a.Claim(d.t.Context(), outbox.ClaimRequest{Sync: sync, Budget: budget, Page: 200, Lease: time.Minute, Pass: true})
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

func numbers(ds []*outbox.Delivery) []int64 {
	var seqs []int64
	for _, d := range ds {
		seqs = append(seqs, d.Event.Seq)
	}
	return seqs
}

// A row behind one that is under way is not even locked: it is claimed at once
// when that one is finished, with a HOT update.
func TestWalkPassesByWhatWaitsForADeliveryUnderWay(t *testing.T) {
	d := newDesk(t)
	for n := range 3 {
		d.emit("H-1", n)
	}
	d.age()
	head := d.pass(10)
	if got := numbers(head.Deliveries); !slices.Equal(got, []int64{1}) || head.Seen != 3 || head.Parked != 0 {
		t.Fatalf("claimed %v of %d, parked %d; want the first of 3, and none parked", got, head.Seen, head.Parked)
	}
	before := d.rows()
	if again := d.pass(10); len(again.Deliveries) != 0 || again.Seen != 2 || again.Parked != 0 {
		t.Errorf("the walk claimed %d of %d, parked %d; want to pass both by", len(again.Deliveries), again.Seen, again.Parked)
	}
	if after := d.rows(); after != before {
		t.Errorf("after the walk: %s\nbefore:         %s", after, before)
	}
	r := d.a.Record(t.Context(), []outbox.Result{{Delivery: head.Deliveries[0], Outcome: outbox.Delivered, Attempt: true}},
		outbox.ClaimRequest{Sync: sync, From: outbox.End(), Budget: 1, Lease: time.Minute})
	if got := numbers(r.Claims.Deliveries); r.Err != nil || !slices.Equal(got, []int64{2}) {
		t.Errorf("the finish went on with %v, %v; want the second", got, r.Err)
	}
	if got := d.states(); got != "sending pending" {
		t.Errorf("states: %s, want sending pending", got)
	}
}

// Without that, it would come to its turn with the next walk from the beginning.
func TestPassedRowIsMadeDueWhereItCannotBeClaimed(t *testing.T) {
	for name, test := range map[string]struct {
		from outbox.Cursor
		due  string
	}{
		"passed":                {outbox.End(), "now"},
		"still before the walk": {outbox.Cursor{}, "an hour ago"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			d.emit("H-1", 2)
			d.age()
			head := d.pass(10)
			r := d.a.Record(t.Context(), []outbox.Result{{Delivery: head.Deliveries[0], Outcome: outbox.Delivered, Attempt: true}},
				outbox.ClaimRequest{Sync: sync, From: test.from, Budget: 0})
			if r.Err != nil || !r.Done[0] || len(r.Claims.Deliveries) > 0 || r.Claims.Woken != (test.due == "now") {
				t.Errorf("%+v, want it done, nothing claimed, and the next woken if the walk has passed it", r)
			}
			const due = `SELECT CASE WHEN due_at > now() - interval '1 minute' THEN 'now' ELSE 'an hour ago' END || ', ' || state FROM outbox.delivery`
			if got, want := d.text(due), test.due+", pending"; got != want {
				t.Errorf("the next is due %s, want %s", got, want)
			}
		})
	}
}

// What waits long is put aside by every walk, however old; what is young by every
// walk too, since all come back to it.
func TestWalkThatPassesParksBehindAFailedDelivery(t *testing.T) {
	d := newDesk(t)
	for _, key := range []string{"failed", "retry"} {
		d.emit(key, 1)
		d.emit(key, 2)
	}
	d.age()
	d.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent' WHERE event_seq = 1`)
	d.exec(`UPDATE outbox.delivery SET state = 'retry', due_at = now() + interval '1 hour' WHERE event_seq = 3`)
	if c := d.pass(10); len(c.Deliveries) != 0 || c.Parked != 2 {
		t.Errorf("claimed %d, parked %d; want 0 and 2", len(c.Deliveries), c.Parked)
	}
	if got := d.states(); got != "failed queued retry queued" {
		t.Errorf("states: %s, want failed queued retry queued", got)
	}
}

// Behind a delivery under way a row is parked too if a walk would look at it again,
// or if it waits for an attempt of its own, since it is woken only where it is parked.
func TestWalkParksBehindADeliveryUnderWay(t *testing.T) {
	for name, test := range map[string]struct {
		old, pass bool
		change    string
	}{
		"a young row":                      {pass: true},
		"a row in retry":                   {old: true, pass: true, change: `UPDATE outbox.delivery SET state = 'retry', due_at = due_at + interval '1 second' WHERE event_seq = 2`},
		"any row, by a walk that must not": {old: true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			d.emit("H-1", 2)
			if test.old {
				d.age()
			}
			if test.change != "" {
				d.exec(test.change)
			}
			request := outbox.ClaimRequest{Sync: sync, Budget: 10, Page: 200, Lease: time.Minute, Pass: test.pass}
			if _, err := d.a.Claim(t.Context(), request); err != nil {
				t.Fatal(err)
			}
			if got := d.states(); got != "sending queued" {
				t.Errorf("states: %s, want sending queued", got)
			}
		})
	}
}

// Two relays that claim at the same time do not get in each other's way: what one
// has locked the other goes past, within the same claim.
func TestClaimGoesOnBehindWhatOthersClaim(t *testing.T) {
	d := newDesk(t)
	for n := range 6 {
		d.emit(string(rune('a'+n)), n)
	}
	d.age()
	tx, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM outbox.delivery WHERE event_seq IN (1, 2, 4) FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	c := d.pass(2)
	if got := numbers(c.Deliveries); !slices.Equal(got, []int64{3, 5}) {
		t.Errorf("claimed %v, want 3 and 5", got)
	}
	if c.Seen != 5 || !c.More {
		t.Errorf("looked at %d, more: %t; want to stop at the fifth, with more to come", c.Seen, c.More)
	}
	rest, err := d.a.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, From: c.Next, Budget: 9, Page: 200, Lease: time.Minute})
	if err != nil || !slices.Equal(numbers(rest.Deliveries), []int64{6}) || rest.More {
		t.Errorf("went on with %v, more: %t, %v; want the sixth and no more", numbers(rest.Deliveries), rest.More, err)
	}
}

// A page bounds what one claim looks at; the next goes on where it ended.
func TestClaimGoesOnWhereItsPageEnded(t *testing.T) {
	d := newDesk(t)
	for n := range 5 {
		d.emit("H-1", n)
	}
	d.emit("H-2", 9)
	d.age()
	var got []int64
	request := outbox.ClaimRequest{Sync: sync, Budget: 9, Page: 3, Lease: time.Minute, Pass: true}
	for range 4 {
		c, err := d.a.Claim(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, numbers(c.Deliveries)...)
		if request.From = c.Next; !c.More {
			break
		}
	}
	if !slices.Equal(got, []int64{1, 6}) {
		t.Errorf("claimed %v, want the first of each key", got)
	}
}

// Without a budget a claim goes on to the first that it could claim, and stays there.
func TestClaimWithoutBudgetStopsBeforeWhatItCouldClaim(t *testing.T) {
	d := newDesk(t)
	for _, key := range []string{"under way", "under way", "failed", "failed", "next", "last"} {
		d.emit(key, 1)
	}
	d.age()
	d.pass(1)
	d.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent' WHERE event_seq = 3`)
	none, err := d.a.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Page: 200, Lease: time.Minute, Pass: true})
	if err != nil || len(none.Deliveries) != 0 || !none.More || none.Seen != 3 || none.Parked != 1 {
		t.Errorf("%+v, %v; want to pass one by, park one and stop at the third, with more to come", none, err)
	}
	if got := d.states(); got != "failed queued pending pending sending pending" {
		t.Errorf("states: %s, want nothing else changed", got)
	}
	c, err := d.a.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, From: none.Next, Budget: 9, Page: 200, Lease: time.Minute})
	if got := numbers(c.Deliveries); err != nil || !slices.Equal(got, []int64{5, 6}) {
		t.Errorf("went on with %v, %v; want 5 and 6", got, err)
	}
}

// What one statement wrote has one due time: there the place tells which rows a walk
// has passed.
func TestPassedIsToldByPlaceAmongRowsOfOneTime(t *testing.T) {
	d := newDesk(t)
	d.exec(`INSERT INTO outbox.event (type, key, payload) SELECT 'x', key, '{}' FROM unnest(ARRAY['H-1', 'H-1', 'H-2', 'H-3']) AS key`)
	d.age()
	walk := outbox.ClaimRequest{Sync: sync, Budget: 2, Page: 200, Lease: time.Minute, Pass: true}
	c, err := d.a.Claim(t.Context(), walk)
	if err != nil || !slices.Equal(numbers(c.Deliveries), []int64{1, 3}) {
		t.Fatalf("claimed %v, %v; want 1 and 3", numbers(c.Deliveries), err)
	}
	r := d.a.Record(t.Context(), []outbox.Result{{Delivery: c.Deliveries[0], Outcome: outbox.Delivered, Attempt: true}},
		outbox.ClaimRequest{Sync: sync, From: c.Next})
	if r.Err != nil || !r.Done[0] || !r.Claims.Woken {
		t.Errorf("%+v, want it done and the second woken", r)
	}
	walk.From = c.Next
	if c, err = d.a.Claim(t.Context(), walk); err != nil || !slices.Equal(numbers(c.Deliveries), []int64{2, 4}) {
		t.Errorf("the walk went on with %v, %v; want 2 and 4", numbers(c.Deliveries), err)
	}
}

// What came in front of a delivery under way has to be finished before the next: a
// sync that takes more types of events adds old ones in front.
func TestFinishGoesOnWithTheFirstOfItsKey(t *testing.T) {
	for state, want := range map[string]int{"sending": 0, "failed": 0, "pending": 1} {
		t.Run(state, func(t *testing.T) {
			d := newDesk(t)
			for n := range 3 {
				d.emit("H-1", n)
			}
			d.exec(`DELETE FROM outbox.delivery WHERE event_seq = 1`)
			second := d.claim(d.a, time.Minute)
			d.exec(`INSERT INTO outbox.delivery (sync, key, event_seq, event_id) SELECT $1, key, seq, id FROM outbox.event WHERE seq = 1`, sync)
			switch state {
			case "sending":
				d.claim(d.b, time.Minute)
			case "failed":
				d.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent' WHERE event_seq = 1`)
			}
			r := d.a.Record(t.Context(), []outbox.Result{{Delivery: second[0], Outcome: outbox.Delivered, Attempt: true}},
				outbox.ClaimRequest{Sync: sync, From: outbox.End(), Budget: 9, Lease: time.Minute})
			if got := numbers(r.Claims.Deliveries); r.Err != nil || len(got) != want || want == 1 && got[0] != 1 {
				t.Errorf("went on with %v, %v; want %d, the first if any", got, r.Err, want)
			}
		})
	}
}

// An answer that comes after the lease takes a crash off the count, but not the one
// that a claim under way stands for.
func TestLateAnswerLeavesTheCountOfAClaimUnderWay(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	late := d.claim(d.a, time.Minute)
	d.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', claim = NULL, claimed_by = NULL, lease_until = NULL`)
	d.exec(`UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'`) // requeued: no crashes
	if c := d.claim(d.b, time.Minute); len(c) != 1 {
		t.Fatalf("claimed %d after the requeue", len(c))
	}
	if r := d.record(d.a, outbox.Delivered, late...); r.Err != nil || !r.Lost[0] {
		t.Fatalf("the late answer: %+v", r)
	}
	if got := d.text(`SELECT crashes::text FROM outbox.delivery`); got != "1" {
		t.Errorf("crashes: %s, want 1", got)
	}
}

package outbox_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/outbox"
)

// A receiver asks for a pause of an hour. Then, in the answer to another request, it asks for a
// second. The hour applies.
func TestAShortHoldDoesNotShortenALongOne(t *testing.T) {
	d := newDesk(t)
	for _, span := range []time.Duration{time.Hour, time.Second} {
		if err := d.a.Hold(t.Context(), sync, "", outbox.HoldThrottle, span, "asked for "+span.String()); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.text(`SELECT (until > clock_timestamp() + interval '59 minutes')::text FROM outbox.hold`); got != "true" {
		t.Error("the later, shorter throttle has taken the place of the longer one")
	}
	d.emit("H-1", 1)
	if got := d.claim(d.b); len(got) != 0 {
		t.Errorf("%d claimed during the hour", len(got))
	}
}

// The retained events are added to a sync again. Deliveries that were finished, in any way, are
// not added.
func TestABackfillAddsNoFinishedEvents(t *testing.T) {
	registration := outbox.Registration{Name: sync, Patterns: []string{"*"}, OnFailed: "supersede"}
	d := newDesk(t, registration)
	for n, outcome := range []outbox.Outcome{outbox.Delivered, outbox.Duplicate, outbox.Accepted, outbox.Filtered} {
		d.emit(string(outcome), n)
		d.record(d.a, outcome, d.claim(d.a)...)
	}
	d.emit("discarded", 1)
	d.exec(`SELECT outbox.discard(sync, event_id, 'not wanted') FROM outbox.delivery`)
	d.emit("superseded", 1)
	failed := outbox.Result{Delivery: d.claim(d.a)[0], Outcome: outbox.Failed, Failed: true, Attempt: true, Class: "permanent", Error: "no"}
	d.emit("superseded", 2)
	d.a.Record(t.Context(), sync, []outbox.Result{failed})
	d.record(d.a, outbox.Delivered, d.claim(d.a)...)
	const finished = `
SELECT string_agg(DISTINCT outcome, ' ' ORDER BY outcome)
  FROM outbox.delivery_log WHERE outcome <> 'failed' AND NOT EXISTS (SELECT FROM outbox.delivery)`
	if got, want := d.text(finished), "accepted delivered discarded duplicate filtered superseded"; got != want {
		t.Fatalf("finished: %s, want %s", got, want)
	}

	registration.From = "beginning"
	if _, err := d.a.Apply(t.Context(), registration); err != nil {
		t.Fatal(err)
	}
	fill := d.a.NewBackfill(sync)
	for complete := false; !complete; {
		var err error
		if complete, _, err = fill.Step(t.Context(), 100); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.text(`SELECT coalesce(string_agg(key, ' '), 'nothing') FROM outbox.delivery`); got != "nothing" {
		t.Errorf("the backfill has added: %s", got)
	}
}

// A sync starts from now. A transaction has inserted an event before, does not see the sync, and
// commits after the registration. Its event is sent.
func TestABackfillFromNowAddsUncommittedEvents(t *testing.T) {
	d := newDesk(t)
	d.emit("before", 1)
	writer, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Rollback(t.Context()) }()
	if _, err := writer.Exec(t.Context(), `INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'open', '{}')`); err != nil {
		t.Fatal(err)
	}
	d.emit("seen", 1) // a later number that is committed
	second := outbox.Registration{Name: "Second", Patterns: []string{"*"}, OnFailed: "block", From: "now"}
	if _, err := d.a.Register(t.Context(), []outbox.Registration{second}); err != nil {
		t.Fatal(err)
	}
	fill := d.a.NewBackfill(second.Name)
	if complete, wait, err := fill.Step(t.Context(), 100); complete || !wait || err != nil {
		t.Fatalf("during an open writer: complete %t, wait %t, %v", complete, wait, err)
	}
	if err := writer.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.emit("after", 1)
	for complete := false; !complete; {
		if complete, _, err = fill.Step(t.Context(), 100); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.text(`SELECT string_agg(key, ' ' ORDER BY event_seq) FROM outbox.delivery WHERE sync = 'Second'`); got != "open after" {
		t.Errorf("the sync has: %s, want open after", got)
	}
}

// keep records a delivery as delivered and keeps the lane.
func (d *desk) keep(s *outbox.Store, c *outbox.Delivery) []*outbox.Delivery {
	d.t.Helper()
	r := s.Record(d.t.Context(), sync, []outbox.Result{{Delivery: c, Outcome: outbox.Delivered, Attempt: true, Code: "HTTP 200", AnsweredAt: time.Now(), Stay: true}})
	if r.Err != nil || !r.Done[0] {
		d.t.Fatalf("recorded %+v", r)
	}
	return r.Next
}

// Relays died while they had the claim of a lane. An ordinary claim does not take it: it is sent
// alone. After one of its deliveries is finished, it is claimed like others.
func TestASuspectIsLeftToBeSentAlone(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	d.emit("H-1", 2)
	d.exec(`INSERT INTO outbox.lane (sync, key, due_at, claim, claimed_by, crashes)
            VALUES ('CourtCalendarSync', 'H-1', clock_timestamp() - interval '1 second', gen_random_uuid(), 'dead relay', 1)`)
	c := d.poll(d.b, 100, time.Minute)
	if len(c.Deliveries) != 0 || !c.Suspects {
		t.Errorf("claimed %v among others, suspects: %t", numbers(c.Deliveries), c.Suspects)
	}
	if named, err := d.b.ClaimOne(t.Context(), outbox.OneRequest{Sync: sync, Lease: time.Minute, Key: "H-1"}); err != nil || len(named.Deliveries) != 0 {
		t.Errorf("claimed %v by its key, %v", numbers(named.Deliveries), err)
	}
	alone := d.suspect(d.b)
	if len(alone) != 1 || alone[0].Crashes != 2 {
		t.Fatalf("claimed %+v alone, want it with two crashes", alone)
	}
	if next := d.keep(d.b, alone[0]); next != nil {
		t.Errorf("Record returned %v: a suspect's lane is not kept", numbers(next))
	}
	if got := d.claim(d.a); len(got) != 1 || got[0].Crashes != 0 {
		t.Errorf("claimed %+v after the finish, want the second without a crash", got)
	}
}

// A replay has its position and is not committed. An event that is written meanwhile has a later
// position, and is in flight when the replay commits. The replay waits: two of one key must not
// be in flight.
func TestAReplayWaitsForTheDeliveryBeingSent(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	if got := d.keep(d.a, d.claim(d.a)[0]); got != nil {
		t.Fatal("nothing is behind the first")
	}
	operator, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = operator.Rollback(t.Context()) }()
	if _, err := operator.Exec(t.Context(), `SELECT outbox.replay('CourtCalendarSync', id, 'the court lost it') FROM outbox.event`); err != nil {
		t.Fatal(err)
	}
	d.emit("H-1", 2)
	inFlight := d.claim(d.a)
	if err := operator.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := d.b.ClaimOne(t.Context(), outbox.OneRequest{Sync: sync, Lease: time.Minute, Key: "H-1"})
	if err != nil || len(c.Deliveries) != 0 {
		t.Errorf("claimed %d while another is in flight, %v", len(c.Deliveries), err)
	}
	if got := d.claim(d.b); got != nil {
		t.Errorf("claimed %v while another is in flight", numbers(got))
	}
	if got := d.keep(d.a, inFlight[0]); len(got) != 1 || got[0].Revision != 2 {
		t.Errorf("Record returned %v, want the replay", numbers(got))
	}
}

// A pause also stops a long lane whose next delivery comes with each recording.
func TestRecordReturnsNothingDuringAHold(t *testing.T) {
	for name, hold := range map[string]string{
		"an operator's": `SELECT outbox.pause('CourtCalendarSync', 'the court asked')`,
		"a throttle":    `INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', 'throttle', now() + interval '1 hour', 'busy', 'a')`,
		"a breaker":     `INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', 'breaker', now() + interval '1 hour', 'down', 'a')`,
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			d.emit("H-1", 2)
			first := d.claim(d.a)
			d.exec(hold)
			if got := d.keep(d.a, first[0]); got != nil {
				t.Error("the finish went on in spite of the hold")
			}
			d.exec(`DELETE FROM outbox.hold`)
			if got := d.claim(d.b); len(got) != 1 {
				t.Errorf("claimed %d after the hold, want the second", len(got))
			}
		})
	}
}

// Every kind of unfinished result is fenced, as a finished one is.
func TestAClaimTakenOverIsNotReleased(t *testing.T) {
	for name, late := range map[string]outbox.Result{
		"released": {},
		"retry":    {Outcome: outbox.Retry, Attempt: true, Charge: true, Delay: time.Hour, Spend: time.Hour, Class: "transient", Error: "late"},
		"failed":   {Outcome: outbox.Failed, Failed: true, Attempt: true, Class: "permanent", Error: "late"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			late.Delivery = d.claim(d.a)[0]
			d.endLease()
			taken := d.claim(d.b)
			if len(taken) != 1 {
				t.Fatal("the other did not take over")
			}
			const row = `SELECT concat_ws(' ', state, claimed_by, attempts, charged, spent_ms, error_class) FROM outbox.open_delivery`
			before := d.text(row)
			r := d.a.Record(t.Context(), sync, []outbox.Result{late})
			sent := late.Attempt // else there is nothing to say of it
			if r.Err != nil || r.Done[0] == sent || r.Lost[0] != sent {
				t.Errorf("recorded %+v, want the claim lost: %t", r, sent)
			}
			if diff := cmp.Diff(before, d.text(row)); diff != "" {
				t.Errorf("the other's claim was changed (-before +after):\n%s", diff)
			}
		})
	}
}

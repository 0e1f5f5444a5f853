package outbox_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/outbox"
)

// A receiver asks for an hour of quiet and then, in the answer to another request,
// for a second. The hour stands.
func TestAShortHoldDoesNotShortenALongOne(t *testing.T) {
	d := newDesk(t)
	for _, span := range []time.Duration{time.Hour, time.Second} {
		if err := d.a.Hold(t.Context(), sync, outbox.HoldThrottle, span, "asked for "+span.String()); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.text(`SELECT (until > clock_timestamp() + interval '59 minutes')::text FROM outbox.hold`); got != "true" {
		t.Error("the later, shorter throttle has taken the place of the longer one")
	}
	d.emit("H-1", 1)
	if got := d.claim(d.b, time.Minute); len(got) != 0 {
		t.Errorf("%d claimed during the hour of quiet", len(got))
	}
}

// The retained events are added to a sync once more. What was finished, in
// whatever way, stays finished.
func TestABackfillBringsNothingBack(t *testing.T) {
	registration := outbox.Registration{Name: sync, Patterns: []string{"*"}, OnFailed: "supersede"}
	d := newDesk(t, registration)
	for n, outcome := range []outbox.Outcome{outbox.Delivered, outbox.Duplicate, outbox.Accepted, outbox.Filtered} {
		d.emit(string(outcome), n)
		d.record(d.a, outcome, d.claim(d.a, time.Minute)...)
	}
	d.emit("discarded", 1)
	d.exec(`SELECT outbox.discard(sync, event_id, 'not wanted') FROM outbox.delivery`)
	d.emit("superseded", 1)
	failed := outbox.Result{Delivery: d.claim(d.a, time.Minute)[0], Outcome: outbox.Failed, Failed: true, Attempt: true, Class: "permanent", Error: "no"}
	d.emit("superseded", 2)
	d.a.Record(t.Context(), []outbox.Result{failed}, outbox.ClaimRequest{Sync: sync})
	d.record(d.a, outbox.Delivered, d.claim(d.a, time.Minute)...)
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
		t.Errorf("the backfill has brought back: %s", got)
	}
}

// A sync starts now. A transaction that inserted an event before, and cannot know
// of the sync, commits after: its event is not lost between the two.
func TestABackfillFromNowAddsWhatWasNotCommitted(t *testing.T) {
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
		t.Fatalf("beside an open writer: complete %t, wait %t, %v", complete, wait, err)
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

// goOn records a delivery as delivered and asks for the next of its key.
func (d *desk) goOn(s *outbox.Store, c *outbox.Delivery) outbox.Claims {
	d.t.Helper()
	r := s.Record(d.t.Context(), []outbox.Result{{Delivery: c, Outcome: outbox.Delivered, Attempt: true, Code: "HTTP 200", AnsweredAt: time.Now()}},
		outbox.ClaimRequest{Sync: sync, Budget: 10, Lease: time.Minute})
	if r.Err != nil || !r.Done[0] {
		d.t.Fatalf("recorded %+v", r)
	}
	return r.Claims
}

// Relays died while they sent the second delivery of a key. Whoever finishes the
// first does not go on with it: it is to be sent alone.
func TestAFinishLeavesASuspectToBeSentAlone(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	first := d.claim(d.a, time.Minute)
	d.emit("H-1", 2)
	d.exec(`UPDATE outbox.delivery SET crashes = 3 WHERE state = 'pending'`)
	if got := d.goOn(d.a, first[0]); len(got.Deliveries) != 0 {
		t.Errorf("the finish went on with a delivery that killed three relays: %+v", got.Deliveries[0])
	}
	if got := d.claim(d.b, time.Minute); len(got) != 0 {
		t.Error("a walk took it among others")
	}
	alone, err := d.b.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Budget: 1, Page: 100, Lease: time.Minute, Solo: true})
	if err != nil || len(alone.Deliveries) != 1 {
		t.Errorf("asked for alone: %d, %v", len(alone.Deliveries), err)
	}
}

// A replay has drawn its place and is not committed. What is written meanwhile has
// a later place and is under way when the replay is seen. Nobody goes on with the
// replay then: two of one key would be under way.
func TestNobodyGoesOnWithAReplayBesideWhatIsUnderWay(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	if got := d.goOn(d.a, d.claim(d.a, time.Minute)[0]); len(got.Deliveries) != 0 {
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
	underWay := d.claim(d.a, time.Minute)
	if err := operator.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := d.b.ClaimNext(t.Context(), outbox.ClaimRequest{Sync: sync, Budget: 1, Lease: time.Minute, Keys: []string{"H-1"}})
	if err != nil || len(got.Deliveries) != 0 {
		t.Errorf("claimed %d beside the one under way, %v", len(got.Deliveries), err)
	}
	if got := d.goOn(d.a, underWay[0]); len(got.Deliveries) != 0 {
		t.Error("the finish went on with the replay, which is the walk's")
	}
	if got := d.claim(d.b, time.Minute); len(got) != 1 || got[0].Revision != 2 {
		t.Errorf("a walk found %d, want the replay", len(got))
	}
}

// A pause stops a long line too, of which each finish goes on with the next.
func TestAFinishGoesOnWithNothingDuringAHold(t *testing.T) {
	for name, hold := range map[string]string{
		"an operator's": `SELECT outbox.pause('CourtCalendarSync', 'the court asked')`,
		"a throttle":    `INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', 'throttle', now() + interval '1 hour', 'busy', 'a')`,
		"a breaker":     `INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', 'breaker', now() + interval '1 hour', 'down', 'a')`,
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			d.emit("H-1", 2)
			first := d.claim(d.a, time.Minute)
			d.exec(hold)
			if got := d.goOn(d.a, first[0]); len(got.Deliveries) != 0 {
				t.Error("the finish went on in spite of the hold")
			}
			d.exec(`DELETE FROM outbox.hold`)
			if got := d.claim(d.b, time.Minute); len(got) != 1 {
				t.Errorf("after the hold a walk found %d, want the second", len(got))
			}
		})
	}
}

// An attempt that the relay gives back in any way is fenced like one that it
// finishes.
func TestAClaimTakenOverIsNotGivenBack(t *testing.T) {
	for name, late := range map[string]outbox.Result{
		"released": {},
		"retry":    {Outcome: outbox.Retry, Attempt: true, Charge: true, Delay: time.Hour, Spend: time.Hour, Class: "transient", Error: "late"},
		"failed":   {Outcome: outbox.Failed, Failed: true, Attempt: true, Class: "permanent", Error: "late"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			late.Delivery = d.claim(d.a, time.Millisecond)[0]
			d.exec(`UPDATE outbox.delivery SET lease_until = clock_timestamp() - interval '1 second', crashes = 0`)
			taken := d.claim(d.b, time.Minute)
			if len(taken) != 1 {
				t.Fatal("the other did not take over")
			}
			const row = `SELECT concat_ws(' ', state, claimed_by, attempts, charged, spent_ms, error_class) FROM outbox.delivery`
			before := d.text(row)
			r := d.a.Record(t.Context(), []outbox.Result{late}, outbox.ClaimRequest{Sync: sync})
			if r.Err != nil || r.Done[0] || !r.Lost[0] {
				t.Errorf("recorded %+v, want the claim lost", r)
			}
			if diff := cmp.Diff(before, d.text(row)); diff != "" {
				t.Errorf("the other's claim was changed (-before +after):\n%s", diff)
			}
		})
	}
}

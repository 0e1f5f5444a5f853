package migrations_test

import (
	"slices"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// claim takes what is due for the sync court, and gives back lanes that have
// nothing to be sent.
func claim(t testing.TB, s *relay) []*outbox.Delivery {
	t.Helper()
	c, err := s.Claim(t.Context(), outbox.ClaimRequest{Sync: "court", Room: 10, Lanes: 10, Lease: time.Minute}, &s.arrivals)
	must(t, err)
	must(t, s.Record(t.Context(), "court", c.Idle).Err)
	return c.Deliveries
}

// only takes exactly one due delivery. A relay looks again at a key that it saw
// claimed or locked, so the first look may find nothing.
func only(t testing.TB, s *relay) *outbox.Delivery {
	t.Helper()
	var d []*outbox.Delivery
	for end := time.Now().Add(time.Minute); len(d) == 0; {
		if time.Now().After(end) {
			t.Fatal("claimed nothing for a minute, want one delivery")
		}
		d = claim(t, s)
	}
	if len(d) != 1 {
		t.Fatalf("claimed %d deliveries, want 1", len(d))
	}
	return d[0]
}

func delivered(d *outbox.Delivery) outbox.Result {
	return outbox.Result{Delivery: d, Outcome: outbox.Delivered, Attempt: true, Code: "HTTP 201", AnsweredAt: time.Now()}
}

// record writes one result and gives the lane back. It is tried again, as a relay
// does: the first time may only find where a row has moved.
func record(t testing.TB, s *relay, r outbox.Result) bool {
	t.Helper()
	for range 3 {
		done := s.Record(t.Context(), "court", []outbox.Result{r})
		if must(t, done.Err); done.Done[0] || done.Lost[0] {
			return done.Done[0]
		}
	}
	return false
}

func backfill(t testing.TB, s *relay) {
	t.Helper()
	b := s.NewBackfill("court")
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		complete, _, err := b.Step(t.Context(), 100)
		must(t, err)
		if complete {
			return
		}
	}
	t.Fatal("the registration is not complete after a minute")
}

func TestRelayRoleDoesAllThatARelayDoes(t *testing.T) {
	url := pgtest.New(t)
	admin, relay := connect(t, url), store(t, url)
	ctx := t.Context()
	before := admin.event("early") // nobody takes it yet
	must(t, relay.Check(ctx))

	all, err := relay.Register(ctx, []outbox.Registration{{Name: "court", Patterns: []string{"scheduling:*"}, OnFailed: "block"}})
	must(t, err)
	if !all["court"].Backfilling {
		t.Fatalf("registered %+v, want it to backfill", all)
	}
	backfill(t, relay)
	if d := only(t, relay); d.Event.ID != before || !record(t, relay, delivered(d)) {
		t.Fatalf("the retained event was not delivered: %+v", d)
	}
	if n := one[int](admin, "SELECT pending::int FROM outbox.status WHERE sync IS NULL"); n != 0 {
		t.Errorf("%d unmatched after the backfill", n)
	}

	first, second := admin.event("k"), admin.event("k")
	d := only(t, relay)
	if d.Event.ID != first || admin.states("k") != "sending queued" {
		t.Fatalf("claimed %s, states %s; want the first sent and the second behind it", d.Event.ID, admin.states("k"))
	}
	if !record(t, relay, outbox.Result{Delivery: d, Outcome: outbox.Retry, Attempt: true, Charge: true, Class: "transient", Error: "HTTP 502"}) {
		t.Fatal("a retry was not recorded")
	}
	d = only(t, relay)
	next := relay.Record(ctx, "court", []outbox.Result{
		{Delivery: d, Outcome: outbox.Delivered, Attempt: true, Code: "HTTP 201", Ref: &outbox.Ref{ExternalID: "X-1"}, Stay: true},
	})
	must(t, next.Err)
	if len(next.Next) != 1 || next.Next[0].Event.ID != second || next.Next[0].Ref.ExternalID != "X-1" {
		t.Fatalf("the next of the key: %+v, want %s with the reference", next.Next, second)
	}
	record(t, relay, outbox.Result{Delivery: next.Next[0], Outcome: outbox.Failed, Failed: true, Attempt: true, Class: "permanent", Error: "no"})
	if states, lane := admin.states("k"), admin.lane("k"); states != "failed" || lane != "stopped" {
		t.Errorf("states %s, lane %s; want it failed and stopped", states, lane)
	}

	changed, err := relay.Apply(ctx, outbox.Registration{Name: "court", Patterns: []string{"*"}, OnFailed: "supersede"})
	must(t, err)
	if !changed {
		t.Error("apply changed nothing")
	}
	backfill(t, relay)

	must(t, relay.Hold(ctx, "court", "", outbox.HoldBreaker, 0, "10 in a row"))
	if probe, err := relay.Probe(ctx, "court", "", time.Minute); err != nil || probe.Number != 1 {
		t.Errorf("probe %+v, %v", probe, err)
	}
	must(t, relay.ProbeAgain(ctx, "court", "", 1, 0, false))
	if probe, err := relay.Probe(ctx, "court", "", time.Minute); err != nil || probe.Number != 2 {
		t.Errorf("second probe %+v, %v", probe, err)
	}
	must(t, relay.ProbeAgain(ctx, "court", "", 1, 0, false)) // comes late
	if probe, err := relay.Probe(ctx, "court", "", time.Minute); err != nil || probe.Number != 0 {
		t.Errorf("while the second probe is under way: probe %+v, %v", probe, err)
	}
	must(t, relay.Lift(ctx, "court", ""))
	must(t, relay.Hold(ctx, "court", "", outbox.HoldThrottle, 0, "HTTP 429"))
	must(t, relay.EndHolds(ctx, "court", time.Minute))
	_, err = relay.NoteDelivery(ctx, "court", time.Now())
	must(t, err)
	_, err = relay.ReleaseBackfilled(ctx, "court", 100)
	must(t, err)
	if _, err := relay.Maintain(ctx, "90 days", "84 months"); err != nil {
		t.Error(err)
	}
	status, err := relay.Status(ctx)
	must(t, err)
	if len(status) != 2 || status[0].Failed != 1 || status[0].Hold != nil || status[0].LastDeliveredAt == nil {
		t.Errorf("status %+v", status)
	}
}

func TestRelayRoleNeverTouchesEvents(t *testing.T) {
	url := pgtest.New(t)
	connect(t, url).event("k")
	relay := as(t, url, "outbox_relay")
	for _, statement := range []string{
		"INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', '{}')",
		"UPDATE outbox.event SET payload = '{}'",
		"DELETE FROM outbox.event",
		"TRUNCATE outbox.event",
		"SELECT FROM outbox.event FOR UPDATE",
		"SELECT outbox.emit('t', 'k', '{}')",
		"DELETE FROM outbox.sync",
		"DELETE FROM outbox.delivery_log",
		"UPDATE outbox.delivery_log SET outcome = 'delivered'",
		"SELECT outbox.requeue('court')",
		"SELECT outbox.discard('court', gen_random_uuid(), 'r')",
		"SELECT outbox.replay('court', gen_random_uuid(), 'r')",
		"SELECT outbox.pause('court', 'r')",
		"SELECT outbox.resume('court')",
		"SELECT outbox.retire('court', 'r')",
		"INSERT INTO outbox.unmatched VALUES (1, gen_random_uuid())",
	} {
		relay.refuses(denied, statement, nil)
	}
}

func TestTimesOfAClockThatWasSetBack(t *testing.T) {
	url := pgtest.New(t)
	admin, relay := connect(t, url), store(t, url)
	admin.sync("court")
	for _, key := range []string{"pending", "retry", "failed", "released", "put off"} {
		admin.event(key)
	}
	admin.do(`UPDATE outbox.delivery SET state = 'retry', attempts = 1, due_at = due_at + interval '1 second' WHERE key = 'retry'`)
	admin.do(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity' WHERE key = 'failed'`)
	admin.do(`UPDATE outbox.delivery SET due_at = due_at + interval '1 hour', created_at = created_at + interval '1 hour' WHERE key IN ('pending', 'retry', 'failed')`)
	admin.do(`UPDATE outbox.delivery SET due_at = due_at + interval '1 hour' WHERE key = 'released'`)
	admin.do(`UPDATE outbox.delivery SET state = 'retry', attempts = 1, due_at = due_at + interval '1 hour' WHERE key = 'put off'`) // a receiver said so
	admin.do(`INSERT INTO outbox.hold (sync, kind, until, since, reason, by)
	          SELECT 'court', kind, clock_timestamp() + interval '61 minutes', clock_timestamp() + interval '1 hour', 'r', 'relay-1'
	            FROM unnest(ARRAY['throttle', 'breaker', 'operator']) AS kind`)
	admin.do(`INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('court', 'auth', clock_timestamp() + interval '61 minutes', 'r', 'relay-1')`) // probed since
	must(t, relay.EndHolds(t.Context(), "court", time.Minute))
	got := list[string](admin, `SELECT kind || ' ' || (until <= clock_timestamp())::text FROM outbox.hold ORDER BY kind`)
	if want := []string{"auth true", "breaker true", "operator false"}; !slices.Equal(got, want) {
		t.Errorf("holds %v, want %v", got, want)
	}
	admin.do("DELETE FROM outbox.hold")
	if d := claim(t, relay); len(d) != 0 {
		t.Errorf("claimed %d before the times were repaired", len(d))
	}
	for after, looks := "", 0; ; looks++ { // two lanes each time
		next, err := relay.RepairTimes(t.Context(), "court", after, 2)
		must(t, err)
		if after = next; after == "" {
			if looks != 2 {
				t.Errorf("the end of five lanes after %d full pages, want 2", looks)
			}
			break
		}
	}
	got = list[string](admin, `SELECT key || ' ' || state || ' ' || (due_at <= clock_timestamp())::text FROM outbox.delivery ORDER BY event_seq`)
	if want := []string{"pending pending true", "retry retry true", "failed failed false", "released pending true", "put off retry false"}; !slices.Equal(got, want) {
		t.Errorf("deliveries %v, want %v", got, want)
	}
	got = list[string](admin, "SELECT key || ' ' || (due_at <= clock_timestamp())::text FROM outbox.lane ORDER BY key")
	if want := []string{"pending true", "put off false", "released true", "retry true"}; !slices.Equal(got, want) {
		t.Errorf("lanes %v, want %v", got, want)
	}
	if d := claim(t, relay); len(d) != 3 {
		t.Errorf("claimed %d, want the three that only the clock kept", len(d))
	}
}

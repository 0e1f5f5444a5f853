package migrations_test

import (
	"slices"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

func TestRelayRoleDoesAllThatARelayDoes(t *testing.T) {
	url := pgtest.New(t)
	admin, relay := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
	ctx := t.Context()
	before := admin.Event("early") // nobody takes it yet
	outboxtest.Must(t, relay.Check(ctx))

	all, err := relay.Register(ctx, []outbox.Registration{{Name: "court", Patterns: []string{"scheduling:*"}, OnFailed: "block"}})
	outboxtest.Must(t, err)
	if !all["court"].Backfilling {
		t.Fatalf("registered %+v, want it to backfill", all)
	}
	outboxtest.Backfill(t, relay)
	if d := outboxtest.Only(t, relay); d.Event.ID != before || !outboxtest.Record(t, relay, outboxtest.Delivered(d)) {
		t.Fatalf("the retained event was not delivered: %+v", d)
	}
	if n := outboxtest.One[int](admin, "SELECT pending::int FROM outbox.status WHERE sync IS NULL"); n != 0 {
		t.Errorf("%d unmatched after the backfill", n)
	}

	first, second := admin.Event("k"), admin.Event("k")
	d := outboxtest.Only(t, relay)
	if d.Event.ID != first || admin.States("k") != "sending queued" {
		t.Fatalf("claimed %s, states %s; want the first sent and the second behind it", d.Event.ID, admin.States("k"))
	}
	if !outboxtest.Record(t, relay, outbox.Result{Delivery: d, Outcome: outbox.Retry, Attempt: true, Charge: true, Class: "transient", Error: "HTTP 502"}) {
		t.Fatal("a retry was not recorded")
	}
	d = outboxtest.Only(t, relay)
	next := relay.Record(ctx, "court", []outbox.Result{
		{Delivery: d, Outcome: outbox.Delivered, Attempt: true, Code: "HTTP 201", Ref: &outbox.Ref{ExternalID: "X-1"}, Stay: true},
	})
	outboxtest.Must(t, next.Err)
	if len(next.Next) != 1 || next.Next[0].Event.ID != second || next.Next[0].Ref.ExternalID != "X-1" {
		t.Fatalf("the next of the key: %+v, want %s with the reference", next.Next, second)
	}
	outboxtest.Record(t, relay, outbox.Result{Delivery: next.Next[0], Outcome: outbox.Failed, Failed: true, Attempt: true, Class: "permanent", Error: "no"})
	if states, lane := admin.States("k"), admin.Lane("k"); states != "failed" || lane != "stopped" {
		t.Errorf("states %s, lane %s; want it failed and stopped", states, lane)
	}

	changed, err := relay.Apply(ctx, outbox.Registration{Name: "court", Patterns: []string{"*"}, OnFailed: "supersede"})
	outboxtest.Must(t, err)
	if !changed {
		t.Error("apply changed nothing")
	}
	outboxtest.Backfill(t, relay)

	outboxtest.Must(t, relay.Hold(ctx, "court", "", outbox.HoldBreaker, 0, "10 in a row"))
	if probe, err := relay.Probe(ctx, "court", "", time.Minute); err != nil || probe.Number != 1 {
		t.Errorf("probe %+v, %v", probe, err)
	}
	outboxtest.Must(t, relay.ProbeAgain(ctx, "court", "", 1, 0, false))
	if probe, err := relay.Probe(ctx, "court", "", time.Minute); err != nil || probe.Number != 2 {
		t.Errorf("second probe %+v, %v", probe, err)
	}
	outboxtest.Must(t, relay.ProbeAgain(ctx, "court", "", 1, 0, false)) // comes late
	if probe, err := relay.Probe(ctx, "court", "", time.Minute); err != nil || probe.Number != 0 {
		t.Errorf("while the second probe is under way: probe %+v, %v", probe, err)
	}
	outboxtest.Must(t, relay.Lift(ctx, "court", ""))
	outboxtest.Must(t, relay.Hold(ctx, "court", "", outbox.HoldThrottle, 0, "HTTP 429"))
	outboxtest.Must(t, relay.EndHolds(ctx, "court", time.Minute))
	_, err = relay.NoteDelivery(ctx, "court", time.Now())
	outboxtest.Must(t, err)
	_, err = relay.ReleaseBackfilled(ctx, "court", 100)
	outboxtest.Must(t, err)
	if _, err := relay.Maintain(ctx, "90 days", "84 months"); err != nil {
		t.Error(err)
	}
	status, err := relay.Status(ctx)
	outboxtest.Must(t, err)
	if len(status) != 2 || status[0].Failed != 1 || status[0].Hold != nil || status[0].LastDeliveredAt == nil {
		t.Errorf("status %+v", status)
	}
}

func TestRelayRoleNeverTouchesEvents(t *testing.T) {
	url := pgtest.New(t)
	outboxtest.Connect(t, url).Event("k")
	relay := outboxtest.As(t, url, "outbox_relay")
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
		"INSERT INTO outbox.unmatched VALUES (1, gen_random_uuid(), 't', now())",
	} {
		relay.Refuses(denied, statement, nil)
	}
}

func TestTimesOfAClockThatWasSetBack(t *testing.T) {
	url := pgtest.New(t)
	admin, relay := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
	admin.Sync("court")
	for _, key := range []string{"pending", "retry", "failed", "released", "put off"} {
		admin.Event(key)
	}
	admin.Do(`UPDATE outbox.delivery SET state = 'retry', attempts = 1, due_at = due_at + interval '1 second' WHERE key = 'retry'`)
	admin.Do(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity' WHERE key = 'failed'`)
	admin.Do(`UPDATE outbox.delivery SET due_at = due_at + interval '1 hour', created_at = created_at + interval '1 hour' WHERE key IN ('pending', 'retry', 'failed')`)
	admin.Do(`UPDATE outbox.delivery SET due_at = due_at + interval '1 hour' WHERE key = 'released'`)
	admin.Do(`UPDATE outbox.delivery SET state = 'retry', attempts = 1, due_at = due_at + interval '1 hour' WHERE key = 'put off'`) // a receiver said so
	admin.Do(`INSERT INTO outbox.hold (sync, kind, until, since, reason, by)
	          SELECT 'court', kind, clock_timestamp() + interval '61 minutes', clock_timestamp() + interval '1 hour', 'r', 'relay-1'
	            FROM unnest(ARRAY['throttle', 'breaker', 'operator']) AS kind`)
	admin.Do(`INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('court', 'auth', clock_timestamp() + interval '61 minutes', 'r', 'relay-1')`) // probed since
	outboxtest.Must(t, relay.EndHolds(t.Context(), "court", time.Minute))
	got := outboxtest.List[string](admin, `SELECT kind || ' ' || (until <= clock_timestamp())::text FROM outbox.hold ORDER BY kind`)
	if want := []string{"auth true", "breaker true", "operator false"}; !slices.Equal(got, want) {
		t.Errorf("holds %v, want %v", got, want)
	}
	admin.Do("DELETE FROM outbox.hold")
	if d := outboxtest.Claim(t, relay); len(d) != 0 {
		t.Errorf("claimed %d before the times were repaired", len(d))
	}
	for after, looks := "", 0; ; looks++ { // two lanes each time
		next, err := relay.RepairTimes(t.Context(), "court", after, 2)
		outboxtest.Must(t, err)
		if after = next; after == "" {
			if looks != 2 {
				t.Errorf("the end of five lanes after %d full pages, want 2", looks)
			}
			break
		}
	}
	got = outboxtest.List[string](admin, `SELECT key || ' ' || state || ' ' || (due_at <= clock_timestamp())::text FROM outbox.delivery ORDER BY event_seq`)
	if want := []string{"pending pending true", "retry retry true", "failed failed false", "released pending true", "put off retry false"}; !slices.Equal(got, want) {
		t.Errorf("deliveries %v, want %v", got, want)
	}
	got = outboxtest.List[string](admin, "SELECT key || ' ' || (due_at <= clock_timestamp())::text FROM outbox.lane ORDER BY key")
	if want := []string{"pending true", "put off false", "released true", "retry true"}; !slices.Equal(got, want) {
		t.Errorf("lanes %v, want %v", got, want)
	}
	if d := outboxtest.Claim(t, relay); len(d) != 3 {
		t.Errorf("claimed %d, want the three that only the clock kept", len(d))
	}
}

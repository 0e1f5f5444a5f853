package outbox_test

import (
	"testing"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// A sync that takes all types does not take operator events yet: adding their pattern is a
// change that needs a backfill, which adds the retained ones that are not about the sync.
func TestOperatorEventsAreAdded(t *testing.T) {
	url := pgtest.New(t)
	d, r := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
	for _, sync := range []string{"court", "clinic"} {
		d.Sync(sync, "*")
	}
	d.Sync("chat", "lockstep:*")
	for _, sync := range []string{"court", "clinic"} {
		d.Do("SELECT outbox.pause($1, 'it moves')", sync)
	}
	d.Do("SELECT outbox.raise_alerts()")
	reg := outbox.Registration{Name: "court", Patterns: []string{"*", "lockstep:*"}, OnFailed: "block", From: "beginning"}
	_, err := r.Apply(t.Context(), reg)
	outboxtest.Must(t, err)
	if waits := outboxtest.One[bool](d, "SELECT backfill_waits FROM outbox.sync WHERE name = 'court'"); !waits {
		t.Error("the change does not wait for older transactions")
	}
	for b := r.NewBackfill("court"); ; {
		complete, _, err := b.Step(t.Context(), 1000)
		outboxtest.Must(t, err)
		if complete {
			break
		}
	}
	if got := outboxtest.List[string](d, "SELECT key FROM outbox.delivery WHERE sync = 'court'"); len(got) != 1 || got[0] != "clinic" {
		t.Errorf("events about %v were added to court, want clinic", got)
	}
}

// A relay claims and records while another one marks the same deliveries as escalated.
func TestARelaySendsWhileAlertsAreRaised(t *testing.T) {
	url := pgtest.New(t)
	d, r, other := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url), outboxtest.As(t, url, "outbox_relay")
	d.Sync("court", "scheduling:*")
	raising := func() (end func()) {
		tx, err := other.Conn.Begin(t.Context())
		outboxtest.Must(t, err)
		if told := outboxtest.List[string](other, "SELECT says FROM outbox.raise_alerts()"); len(told) != 1 {
			t.Fatalf("told %v", told)
		}
		return func() { outboxtest.Must(t, tx.Commit(t.Context())) }
	}
	write := func(key string) string {
		event := d.Event(key)
		d.Do("UPDATE outbox.delivery SET escalates_at = clock_timestamp() WHERE event_id = $1", event)
		d.Do("UPDATE outbox.told SET told_at = told_at - interval '10 minutes'")
		return event
	}
	delivered := func(claimed *outbox.Delivery, event string) {
		t.Helper()
		if !outboxtest.Record(t, r, outboxtest.Delivered(claimed)) {
			t.Error("the delivery was not recorded")
		}
		if n := outboxtest.One[int](d, "SELECT count(*) FROM outbox.delivery_log WHERE event_id = $1 AND outcome = 'delivered'", event); n != 1 {
			t.Errorf("%d rows of the log say delivered", n)
		}
		if n := outboxtest.One[int](d, "SELECT count(*) FROM outbox.delivery"); n != 0 {
			t.Errorf("%d deliveries are open", n)
		}
	}

	event := write("H-1")
	end := raising()
	if got := outboxtest.Claim(t, r); len(got) > 0 {
		t.Errorf("%d deliveries were claimed while they were marked", len(got))
	}
	end()
	delivered(outboxtest.Only(t, r), event)

	event = write("H-2")
	claimed := outboxtest.Only(t, r)
	end = raising()
	done := r.Record(t.Context(), "court", []outbox.Result{outboxtest.Delivered(claimed)})
	if outboxtest.Must(t, done.Err); done.Done[0] || done.Lost[0] {
		t.Errorf("recorded while it was marked: %+v", done)
	}
	end()
	delivered(claimed, event)
}

package migrations_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// stamps stand for themselves in an expected sentence.
var (
	stamps  = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?[+-]\d\d`)
	uuids   = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	drawnBy = regexp.MustCompile(`outbox_operator_[a-z0-9]+`)
)

func plain(sentences []string) string {
	s := strings.Join(sentences, "\n")
	s = stamps.ReplaceAllString(s, "T")
	s = uuids.ReplaceAllString(s, "E")
	return drawnBy.ReplaceAllString(s, "OP")
}

func TestWhyNotDelivered(t *testing.T) {
	tests := []struct {
		name    string
		sync    any // the function's second argument; nil asks about all
		arrange func(d, operator outboxtest.Session, id string)
		want    string
	}{
		{
			"due, no relay yet", nil, func(outboxtest.Session, outboxtest.Session, string) {},
			"court: due since T, waits for a relay to claim it",
		},
		{
			"no relay is running", nil, func(d, _ outboxtest.Session, _ string) {
				d.Do("UPDATE outbox.heartbeat SET seen_at = now() - interval '31 seconds'")
			},
			"court: due since T, waits for a relay to claim it; no relay is running",
		},
		{
			"the clock was set back since a relay was seen", nil, func(d, _ outboxtest.Session, _ string) {
				d.Do("UPDATE outbox.heartbeat SET seen_at = now() + interval '1 hour'")
			},
			"court: due since T, waits for a relay to claim it; no relay is running",
		},
		{
			"no relay serves the sync", nil, func(d, _ outboxtest.Session, _ string) {
				d.Do("UPDATE outbox.heartbeat SET syncs = '{clinic}'")
			},
			"court: due since T, waits for a relay to claim it; no running relay serves this sync",
		},
		{"its relay died, no other is running", nil, func(d, _ outboxtest.Session, id string) {
			d.Send(id)
			d.Dies()
			d.Do("DELETE FROM outbox.heartbeat")
		}, "court: was being sent by relay-1, whose lease ended at T; a running relay takes it over; no relay is running"},
		{
			"failed, no relay is running", nil, func(d, _ outboxtest.Session, id string) {
				d.Fail(id)
				d.Do("DELETE FROM outbox.heartbeat")
			},
			"court: failed with permanent after 3 attempt(s): HTTP 422: no such courtroom; waits for an operator (outbox.requeue or outbox.discard)",
		},
		{"not due yet", nil, func(d, _ outboxtest.Session, id string) {
			d.Do("UPDATE outbox.delivery SET state = 'retry', due_at = now() + interval '1 hour' WHERE event_id = $1", id)
			d.Do("UPDATE outbox.delivery SET attempts = 2, error_class = 'transient', error = 'HTTP 502' WHERE event_id = $1", id)
		}, "court: not due until T after 2 attempt(s), the last one: transient: HTTP 502"},
		{"released until later", nil, func(d, _ outboxtest.Session, id string) {
			d.Do("UPDATE outbox.delivery SET due_at = now() + interval '1 hour' WHERE event_id = $1", id)
		}, "court: not due until T"},
		{
			"being sent", nil, func(d, _ outboxtest.Session, id string) { d.Send(id) },
			"court: being sent by relay-1 until T",
		},
		{"its relay died", nil, func(d, _ outboxtest.Session, id string) {
			d.Send(id)
			d.Dies()
		}, "court: was being sent by relay-1, whose lease ended at T; a running relay takes it over"},
		{
			"failed", nil, func(d, _ outboxtest.Session, id string) { d.Fail(id) },
			"court: failed with permanent after 3 attempt(s): HTTP 422: no such courtroom; waits for an operator (outbox.requeue or outbox.discard)",
		},
		{"its type is being added", nil, func(d, _ outboxtest.Session, id string) {
			d.Do("UPDATE outbox.delivery SET due_at = 'infinity', error_class = 'backfill', error = 'its type was added to the sync' WHERE event_id = $1", id)
			d.Do("UPDATE outbox.sync SET backfill_seq = 0, backfill_reason = 'waits for pid 42'")
		}, "court: held back: its type was added to the sync; waits for pid 42"},
		{
			"paused", nil, func(_, o outboxtest.Session, _ string) { o.Do("SELECT outbox.pause('court', 'the court migrates')") },
			"court: due since T; the sync is on hold (operator) by OP since T until outbox.resume: the court migrates",
		},
		{"two holds", nil, func(d, o outboxtest.Session, _ string) {
			o.Do("SELECT outbox.pause('court', 'night')")
			d.Do("INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('court', 'auth', now() + interval '1 minute', 'HTTP 401', 'relay-1'), ('court', 'throttle', now() + interval '1 minute', 'HTTP 429', 'relay-1')")
		}, "court: due since T; the sync is on hold (operator) by OP since T until outbox.resume: night" +
			"; the sync is on hold (auth) by relay-1 since T, next probe at T: HTTP 401; the sync is on hold (throttle) by relay-1 since T until T: HTTP 429"},
		{"a throttle that is over", nil, func(d, _ outboxtest.Session, _ string) {
			d.Do("INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('court', 'throttle', now() - interval '1 minute', 'HTTP 429', 'relay-1')")
		}, "court: due since T, waits for a relay to claim it"},
		{
			"delivered", nil, func(d, _ outboxtest.Session, id string) { d.Deliver(id) },
			"court: delivered at T (HTTP 201)",
		},
		{
			"the receiver had it", nil, func(d, _ outboxtest.Session, id string) { finish(d, id, "duplicate", "HTTP 409") },
			"court: delivered: at T the receiver said that it already had it (HTTP 409)",
		},
		{
			"accepted", nil, func(d, _ outboxtest.Session, id string) { finish(d, id, "accepted", "HTTP 202") },
			"court: delivered: accepted for later processing at T (HTTP 202)",
		},
		{
			"filtered", nil, func(d, _ outboxtest.Session, id string) { finish(d, id, "filtered", nil) },
			`court: filtered at T: the sync's "when" did not match`,
		},
		{
			"superseded", nil, func(d, _ outboxtest.Session, id string) { finish(d, id, "superseded", nil) },
			"court: superseded at T: a newer event of its key exists",
		},
		{
			"discarded", nil, func(_, o outboxtest.Session, id string) {
				o.Do("SELECT outbox.discard('court', $1, 'entered in error')", id)
			},
			"court: discarded at T by OP: entered in error",
		},
		{"replayed, waiting again", nil, func(d, o outboxtest.Session, id string) {
			d.Deliver(id)
			o.Do("SELECT outbox.replay('court', $1, 'r')", id)
		}, "court: due since T, waits for a relay to claim it"},
		{
			"retired with open work", nil, func(_, o outboxtest.Session, _ string) { o.Do("SELECT outbox.retire('court', 'closed')") },
			"court: due since T, waits for a relay to claim it; the sync was retired at T and takes no new events",
		},
		{
			"its patterns do not match", "clinic", func(d, _ outboxtest.Session, _ string) { d.Sync("clinic", "visit:*") },
			"clinic: its patterns {visit:*} do not match type scheduling:updated",
		},
		{
			"a sync added later", "clinic", func(d, _ outboxtest.Session, _ string) { d.Sync("clinic") },
			"clinic: not sent: written at T, before the sync took events of type scheduling:updated (registered at T; lockstep sync apply with from: adds older events)",
		},
		{"a sync being registered", "clinic", func(d, _ outboxtest.Session, _ string) {
			d.Sync("clinic")
			d.Do("UPDATE outbox.sync SET backfill_seq = 0, backfill_reason = 'waits for pid 42' WHERE name = 'clinic'")
		}, "clinic: events are still being added to the sync (waits for pid 42)"},
		{"several syncs, one sentence each", nil, func(d, _ outboxtest.Session, id string) {
			d.Sync("clinic")
			d.Sync("visits", "visit:*")
			d.Send(id)
		}, "clinic: not sent: written at T, before the sync took events of type scheduling:updated (registered at T; lockstep sync apply with from: adds older events)\n" +
			"court: being sent by relay-1 until T"},
		{"past its retention, delivered", nil, func(d, _ outboxtest.Session, id string) {
			d.Deliver(id)
			d.Do("DELETE FROM outbox.event WHERE id = $1", id)
		}, "court: delivered at T (HTTP 201)"},
		{"past its retention, asked about another sync", "clinic", func(d, _ outboxtest.Session, id string) {
			d.Sync("clinic")
			d.Deliver(id)
			d.Do("DELETE FROM outbox.event WHERE id = $1", id)
		}, "clinic: the event is past its retention, and the log has no end of it for this sync"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			url := pgtest.New(t)
			d, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
			d.Sync("court")
			d.Do("INSERT INTO outbox.heartbeat (instance, name, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay-1', '{court, clinic}', now(), now())")
			id := d.Event("k")
			tt.arrange(d, operator, id)
			got := plain(outboxtest.List[string](operator, "SELECT outbox.why_not_delivered($1::text::uuid, $2)", id, tt.sync))
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// finish removes the open delivery of an event with a log row of that outcome.
func finish(d outboxtest.Session, event, outcome string, code any) {
	d.T.Helper()
	d.Do(`WITH gone AS (DELETE FROM outbox.delivery WHERE event_id = $1 RETURNING *)
	      INSERT INTO outbox.delivery_log (sync, event_id, key, outcome, code, answered_at)
	      SELECT sync, event_id, key, $2, $3, now() FROM gone`, event, outcome, code)
}

func TestWhyNotDeliveredNamesTheFirstDelivery(t *testing.T) {
	url := pgtest.New(t)
	d := outboxtest.Connect(t, url)
	d.Sync("court")
	d.Do("INSERT INTO outbox.heartbeat (instance, name, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay-1', '{court}', now(), now())")
	first, second, third := d.Event("hearing-7"), d.Event("hearing-7"), d.Event("hearing-7")
	ask := func() string {
		return plain(outboxtest.List[string](d, "SELECT replace(w, $2, 'FIRST') FROM outbox.why_not_delivered($1::text::uuid) AS w", third, first))
	}
	const front = "court: waits behind event FIRST of key hearing-7, which is "
	steps := []struct {
		name string
		do   func()
		want string
	}{
		{"nobody runs", func() {}, front + "due since T, waits for a relay to claim it"},
		{"the front is being sent", func() { d.Send(first) }, front + "being sent by relay-1 until T"},
		{
			"the front failed", func() { d.Fail(first) },
			front + "failed with permanent after 3 attempt(s): HTTP 422: no such courtroom; waits for an operator (outbox.requeue or outbox.discard)",
		},
		{
			"the front is done", func() { d.Do("SELECT outbox.discard('court', $1, 'r')", first); d.Deliver(second) },
			"court: due since T, waits for a relay to claim it",
		},
	}
	for _, step := range steps {
		step.do()
		if got := ask(); got != step.want {
			t.Errorf("%s:\ngot  %s\nwant %s", step.name, got, step.want)
		}
	}
}

func TestWhyNotDeliveredWithoutASync(t *testing.T) {
	url := pgtest.New(t)
	d := outboxtest.Connect(t, url)
	id := d.Event("k")
	auditor := outboxtest.As(t, url, "outbox_auditor")
	ask := func(event string) string {
		return plain(outboxtest.List[string](auditor, "SELECT outbox.why_not_delivered($1::text::uuid)", event))
	}
	if got, want := ask(id), "no sync matches type scheduling:updated"; got != want {
		t.Errorf("no sync at all: %s, want %s", got, want)
	}
	d.Sync("visits", "visit:*")
	if got, want := ask(id), "no sync matches type scheduling:updated"; got != want {
		t.Errorf("one that does not match: %s, want %s", got, want)
	}
	d.Sync("court")
	d.Do("SELECT outbox.retire('court', 'closed')")
	late := d.Event("k")
	if got, want := ask(late), "court: not sent: the sync was retired at T, before the event was written at T"; got != want {
		t.Errorf("written after the retirement: %s, want %s", got, want)
	}
	if got, want := ask(anID), "event E does not exist: its transaction did not commit, or it is past its retention"; got != want {
		t.Errorf("unknown event: %s, want %s", got, want)
	}
	auditor.Refuses(noData, "SELECT outbox.why_not_delivered($1, 'cuort')", []string{"not registered", "Registered: court, visits"}, id)
}

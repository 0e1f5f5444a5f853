package migrations_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/migrations"
	"github.com/hms-mkt/lockstep/outbox"
)

// missedTrouble is what maintain says about events that were written with triggers off.
func missedTrouble(t *testing.T, relay *outboxtest.Relay) []string {
	t.Helper()
	m, err := relay.Maintain(t.Context(), "90 days", "84 months")
	outboxtest.Must(t, err)
	return m.Trouble
}

func TestEventsWrittenWithTriggersOffAreFound(t *testing.T) {
	url := pgtest.New(t)
	d, relay, operator := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url), outboxtest.As(t, url, "outbox_operator")
	d.Sync("court", "scheduling:*")
	d.Sync("court2", "scheduling:*")
	d.Sync("retired", "scheduling:*")
	d.Past("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'unseen', '{}'), ('nobody:listens', 'unseen', '{}')")
	d.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('nobody:listens', 'k', '{}')")
	d.Deliver(d.Event("delivered"))
	d.Event("open")
	discarded := d.Event("discarded")
	d.Do("SELECT outbox.discard(s, $1, 'r') FROM unnest(ARRAY['court', 'court2', 'retired']) AS s", discarded)
	d.Do("SELECT outbox.retire('retired', 'r')")
	d.Do("INSERT INTO outbox.event (type, key, payload) SELECT 'nobody:listens', 'k', '{}' FROM generate_series(1, 3000)") // it is not among the latest
	if got := missedTrouble(t, relay); len(got) != 1 || !strings.HasPrefix(got[0], "2 event(s) inserted from ") || !strings.HasSuffix(got[0], "add them with: lockstep repair") {
		t.Errorf("maintain found %q, want the events that no trigger saw", got)
	}

	counts := func() string {
		return strings.Join(outboxtest.List[string](d, "SELECT concat_ws(' ', coalesce(sync, '-'), missed) FROM outbox.status ORDER BY sync"), ", ")
	}
	if got := counts(); got != "court 1, court2 1, retired 0, - 1" {
		t.Errorf("status counts %s", got)
	}
	unseen := outboxtest.One[string](d, "SELECT id::text FROM outbox.event WHERE key = 'unseen' AND type = 'scheduling:updated'")
	const off = "not sent: the event was written with triggers off (session_replication_role, DISABLE TRIGGER or a logical subscription), so it has no delivery; "
	why := outboxtest.List[string](operator, "SELECT outbox.why_not_delivered($1::text::uuid)", unseen)
	if diff := cmp.Diff([]string{"court: " + off + "add it with: lockstep repair", "court2: " + off + "add it with: lockstep repair"}, why[:2]); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(why[2], "retired: "+off+"the sync was retired at ") {
		t.Errorf("of a retired sync: %s", why[2])
	}

	// Events about which something is open are not removed.
	d.Do("UPDATE outbox.event SET inserted_at = now() - interval '100 days'")
	d.Do("SELECT outbox.maintain()")
	if n := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.event WHERE key = 'unseen'"); n != 2 {
		t.Errorf("%d events are left that were written with triggers off, want 2", n)
	}

	repaired := outboxtest.List[string](operator, "SELECT concat_ws(' ', coalesce(sync, '-'), event_type, key) FROM outbox.repair(reason => 'loaded by hand')")
	if diff := cmp.Diff([]string{"court scheduling:updated unseen", "court2 scheduling:updated unseen", "- nobody:listens unseen"}, repaired); diff != "" {
		t.Errorf("repaired (-want +got)\n%s", diff)
	}
	if got := d.States("unseen"); got != "pending pending" {
		t.Errorf("its deliveries are %q", got)
	}
	if got := outboxtest.List[string](d, "SELECT concat_ws(' ', sync, outcome, reason) FROM outbox.delivery_log WHERE outcome = 'sync_changed' ORDER BY sync"); !cmp.Equal(got, []string{
		"court sync_changed 1 event(s) that were written with triggers off were added: loaded by hand",
		"court2 sync_changed 1 event(s) that were written with triggers off were added: loaded by hand",
	}) {
		t.Errorf("log says %q", got)
	}
	if got := counts(); got != "court 0, court2 0, retired 0, - 0" || missedTrouble(t, relay) != nil {
		t.Errorf("afterwards status counts %s", got)
	}
	if again := outboxtest.List[string](operator, "SELECT key FROM outbox.repair()"); len(again) != 0 {
		t.Errorf("a second call repairs %q", again)
	}
}

// A call of maintain checks a bounded number of events. The next calls check the others.
func TestMissedEventsAreFoundAmongMany(t *testing.T) {
	url := pgtest.New(t)
	d, relay := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
	d.Do("INSERT INTO outbox.event (type, key, payload) SELECT 'x', 'k', '{}' FROM generate_series(1, 23000)") // unmatched
	d.Past("INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'unseen', '{}')")
	d.Do("INSERT INTO outbox.event (type, key, payload) SELECT 'x', 'k', '{}' FROM generate_series(1, 3000)")
	if got := missedTrouble(t, relay); got != nil {
		t.Errorf("the first call found %q", got)
	}
	d.Past("INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'unseen', '{}')")
	for call, want := range []string{"2 event(s)", "2 event(s)"} {
		if got := missedTrouble(t, relay); len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("call %d found %q, want %s", call+2, got, want)
		}
	}
}

// A backfill may add an event that a repair would add.
// The check of an event reads its own delivery, not all those of its key.
func TestCheckForMissedEventsOfOneKeyReadsEachDeliveryOnce(t *testing.T) {
	d := outboxtest.Connect(t, pgtest.New(t))
	d.Sync("court")
	d.Do("INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'k', '{}' FROM generate_series(1, 500)")
	d.Do("BEGIN")
	d.Do("SELECT outbox.find_missed(0, 1000)")
	if n := outboxtest.One[int64](d, "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relid = 'outbox.delivery'::regclass"); n > 1000 {
		t.Errorf("%d deliveries were read to check 500 events", n)
	}
	d.Do("ROLLBACK")
}

func TestRepairLeavesEventsToABackfill(t *testing.T) {
	url := pgtest.New(t)
	d, relay := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
	d.Sync("court", "scheduling:*")
	d.Past("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'unseen', '{}')")
	if got := missedTrouble(t, relay); len(got) != 1 {
		t.Fatalf("maintain found %q", got)
	}
	_, err := relay.Apply(t.Context(), outbox.Registration{Name: "court", Patterns: []string{"scheduling:*"}, OnFailed: "block", From: "beginning"})
	outboxtest.Must(t, err)
	if got := outboxtest.List[string](d, "SELECT key FROM outbox.repair()"); len(got) != 0 {
		t.Errorf("repaired %q during a backfill", got)
	}
	outboxtest.Backfill(t, relay)
	if got := d.States("unseen"); got != "pending" {
		t.Errorf("its delivery is %q, want pending", got)
	}
	if n := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.missed"); n != 0 || missedTrouble(t, relay) != nil {
		t.Errorf("%d events still count", n)
	}
}

// An event that got a delivery, or was removed, after it was found is not repaired.
func TestRepairChecksAgain(t *testing.T) {
	url := pgtest.New(t)
	d, relay := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
	d.Sync("court")
	d.Past("INSERT INTO outbox.event (type, key, payload) SELECT 'x', 'k' || n, '{}' FROM generate_series(1, 3) AS n")
	if got := missedTrouble(t, relay); len(got) != 1 {
		t.Fatalf("maintain found %q", got)
	}
	d.Do("INSERT INTO outbox.delivery (sync, key, event_seq, event_id) SELECT 'court', key, seq, id FROM outbox.event WHERE key = 'k1'")
	d.Deliver(outboxtest.One[string](d, "SELECT id::text FROM outbox.event WHERE key = 'k1'"))
	d.Do("DELETE FROM outbox.event WHERE key = 'k2'")
	var repaired []string
	for page := []string{""}; len(page) > 0; repaired = append(repaired, page...) {
		page = outboxtest.List[string](d, "SELECT key FROM outbox.repair(1)")
	}
	if !cmp.Equal(repaired, []string{"k3"}) || d.States("k1") != "" || d.States("k3") != "pending" {
		t.Errorf("repaired %q", repaired)
	}
	if n := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.missed"); n != 0 {
		t.Errorf("%d events still count", n)
	}
}

// A logical subscription writes events without the trigger, and leaves the sequence of the subscriber as it was: this is also
// an upgrade by logical replication.
func TestEventsOfALogicalSubscription(t *testing.T) {
	server, publisher := pgtest.Own(t, pgtest.Options{Settings: map[string]string{"wal_level": "logical"}})
	name := "subscriber_" + strings.ToLower(rand.Text()[:10])
	outboxtest.Must(t, server.CreateDatabase(t.Context(), name, ""))
	subscriber := server.URL(name)
	up(t, publisher, migrations.Outbox)
	up(t, subscriber, migrations.Outbox)
	old, d := outboxtest.Connect(t, publisher), outboxtest.Connect(t, subscriber)
	old.Do("CREATE PUBLICATION upgrade FOR ALL TABLES")
	old.Do("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", name)
	old.Sync("court")
	c := old.Config()
	// As the server sees itself.
	address := fmt.Sprintf("host=127.0.0.1 port=%s dbname=%s user=%s password=%s", outboxtest.One[string](old, "SELECT current_setting('port')"), c.Database, c.User, c.Password)
	d.Do("TRUNCATE outbox.retention, outbox.goose_db_version") // as the copy has their rows
	d.Do(fmt.Sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION upgrade WITH (create_slot = false, copy_data = false)", name, address))
	t.Cleanup(func() {
		for _, statement := range []string{"ALTER SUBSCRIPTION " + name + " DISABLE", "ALTER SUBSCRIPTION " + name + " SET (slot_name = NONE)", "DROP SUBSCRIPTION " + name} {
			if _, err := d.Exec(context.Background(), statement); err != nil {
				t.Error(err)
			}
		}
	})
	event := old.Event("k")
	old.Deliver(event)
	old.Event("open")
	old.Do("UPDATE outbox.delivery SET attempts = 1")
	d.Until("everything has come", "SELECT EXISTS (SELECT FROM outbox.delivery WHERE attempts = 1) AND EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'delivered')")
	relay := outboxtest.OpenRelay(t, subscriber)
	if err := relay.CheckNumbers(t.Context()); !errors.Is(err, outbox.ErrNumbers) || !strings.Contains(err.Error(), "numbers up to 2 were used") {
		t.Errorf("the sequence: %v", err)
	}
	d.Do("SELECT setval('outbox.event_seq_seq', 2)")
	if got := missedTrouble(t, relay); got != nil {
		t.Errorf("after a subscription to all tables there is %q", got)
	}

	old.Do("DROP PUBLICATION upgrade")
	old.Do("CREATE PUBLICATION upgrade FOR TABLE outbox.event")
	d.Do("ALTER SUBSCRIPTION " + name + " REFRESH PUBLICATION WITH (copy_data = false)")
	old.Event("alone")
	d.Until("the event has come", "SELECT EXISTS (SELECT FROM outbox.event WHERE key = 'alone')")
	if got := missedTrouble(t, relay); len(got) != 2 || !strings.HasPrefix(got[0], "1 event(s)") || !strings.Contains(got[1], "numbers up to 3 were used") {
		t.Errorf("after a subscription to the events there is %q", got)
	}
	d.Do("SELECT outbox.repair()")
	if got := d.States("alone"); got != "pending" {
		t.Errorf("its delivery is %q", got)
	}
}

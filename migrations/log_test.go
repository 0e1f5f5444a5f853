package migrations_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
)

func TestLogIsAppendOnlyForEverybody(t *testing.T) {
	url := pgtest.New(t)
	admin := outboxtest.Connect(t, url)
	admin.Do("INSERT INTO outbox.delivery_log (sync, outcome) VALUES ('court', 'delivered')")
	admin.Past("INSERT INTO outbox.delivery_log (at, sync, outcome, claim) VALUES (now() - interval '5 years', 'court', 'delivered', gen_random_uuid())")
	tables := append(outboxtest.List[string](admin, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'outbox.delivery_log'::regclass"), "outbox.delivery_log")
	if len(tables) != 6 {
		t.Fatalf("tables of the log: %v, want the parent, the default partition and four months", tables)
	}
	replica := outboxtest.Connect(t, url)
	replica.Do("SET session_replication_role = replica") // ordinary triggers would not fire
	sessions := []struct {
		name  string
		d     outboxtest.Session
		words []string
	}{
		{"superuser and owner", admin, []string{"append-only", "new rows", "outbox.maintain"}},
		{"as a replica", replica, []string{"append-only"}},
		{"auditor", outboxtest.As(t, url, "outbox_auditor"), nil},
		{"operator", outboxtest.As(t, url, "outbox_operator"), nil},
		{"relay", outboxtest.As(t, url, "outbox_relay"), nil},
	}
	for _, s := range sessions {
		for _, table := range tables {
			for _, statement := range []string{
				"UPDATE %s SET outcome = 'failed'", "DELETE FROM %s", "DELETE FROM %s WHERE false", "TRUNCATE %s",
			} {
				statement := fmt.Sprintf(statement, table)
				t.Run(s.name+": "+statement, func(t *testing.T) { s.d.With(t).Refuses(denied, statement, s.words) })
			}
		}
	}
	for _, s := range sessions[2:4] {
		for _, table := range tables {
			s.d.Refuses(denied, "INSERT INTO "+table+" (id, at, sync, outcome) VALUES (1, now(), 'court', 'delivered')", nil)
		}
	}
	if n := outboxtest.One[int](admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'delivered'"); n != 2 {
		t.Errorf("%d rows left, want 2", n)
	}
}

func months(d outboxtest.Session) []string {
	d.T.Helper()
	return outboxtest.List[string](d, `SELECT right(inhrelid::regclass::text, 7) FROM pg_inherits
	   WHERE inhparent = 'outbox.delivery_log'::regclass AND inhrelid <> 'outbox.delivery_log_default'::regclass ORDER BY 1`)
}

func ahead(d outboxtest.Session, n int) []string {
	d.T.Helper()
	return outboxtest.List[string](d, "SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i), 'YYYY_MM') FROM generate_series(0, $1::int) AS i", n)
}

func maintain(d outboxtest.Session, args ...string) []string {
	d.T.Helper()
	return outboxtest.List[string](d, "SELECT regexp_replace(done, '\\d{4}_\\d\\d', 'M') || ' ' || n FROM outbox.maintain("+strings.Join(args, ", ")+")")
}

func TestPartitionsReachThreeMonthsAhead(t *testing.T) {
	d := outboxtest.Connect(t, pgtest.New(t))
	if got, want := months(d), ahead(d, 3); !slices.Equal(got, want) {
		t.Errorf("partitions %v after the migration, want %v", got, want)
	}
	if got := maintain(d); !slices.Equal(got, []string{"events removed 0"}) {
		t.Errorf("a second call did %v, want nothing", got)
	}
}

func TestMaintainMakesMissingPartitionsAndEmptiesTheDefault(t *testing.T) {
	url := pgtest.New(t)
	d, relay := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	// As if there was no call for months: the partitions of this month and the next are missing, and an old month never had one.
	this := ahead(d, 1)
	for _, month := range this {
		d.Do("DROP TABLE outbox.delivery_log_" + month)
	}
	d.Do("INSERT INTO outbox.delivery_log (sync, outcome) SELECT 'court', 'delivered' FROM generate_series(1, 3)")
	d.Past("INSERT INTO outbox.delivery_log (at, sync, outcome, claim) VALUES (now() - interval '5 months', 'court', 'retry', gen_random_uuid())")
	before := outboxtest.List[string](d, "SELECT to_jsonb(l)::text FROM outbox.delivery_log AS l ORDER BY id")
	if n := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.delivery_log_default"); n != 4 {
		t.Fatalf("%d rows in the default partition, want 4", n)
	}

	if got, want := maintain(relay), []string{"events removed 0", "partition created: delivery_log_M 1", "partition created: delivery_log_M 1", "partition created: delivery_log_M 1"}; !slices.Equal(got, want) {
		t.Errorf("maintain did %v, want %v", got, want)
	}
	if n := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.delivery_log_default"); n != 0 {
		t.Errorf("%d rows left in the default partition", n)
	}
	if after := outboxtest.List[string](d, "SELECT to_jsonb(l)::text FROM outbox.delivery_log AS l ORDER BY id"); !slices.Equal(before, after) {
		t.Errorf("rows changed while they were moved:\n%v\n%v", before, after)
	}
	for _, table := range append(months(d), "default") {
		d.Refuses(denied, "DELETE FROM outbox.delivery_log_"+table, []string{"append-only"})
		outboxtest.As(t, url, "outbox_auditor").Do("SELECT FROM outbox.delivery_log_" + table)
	}
}

func TestMaintainDoesNotWaitForAnAuditor(t *testing.T) {
	url := pgtest.New(t)
	d, auditor, relay := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_auditor"), outboxtest.As(t, url, "outbox_relay")
	this := ahead(d, 3)
	d.Do("DROP TABLE outbox.delivery_log_" + this[3])
	d.Do("DROP TABLE outbox.delivery_log_" + this[2])
	auditor.Do("BEGIN")
	auditor.Do("SELECT count(*) FROM outbox.delivery_log") // and goes for lunch

	if got, want := maintain(relay), []string{"events removed 0", "partition deferred, the log is in use: delivery_log_M 0"}; !slices.Equal(got, want) {
		t.Errorf("maintain did %v, want %v", got, want)
	}
	if got := months(d); !slices.Equal(got, this[:2]) {
		t.Errorf("partitions %v, want %v and no half-made one", got, this[:2])
	}
	d.Do("INSERT INTO outbox.delivery_log (sync, outcome) VALUES ('court', 'delivered')") // the log grows meanwhile
	auditor.Do("COMMIT")
	maintain(relay)
	if got := months(d); !slices.Equal(got, this) {
		t.Errorf("partitions %v once the auditor is done, want %v", got, this)
	}
}

// old attaches a partition for the month n months ago.
func old(d outboxtest.Session, n int) string {
	d.T.Helper()
	name := outboxtest.One[string](d, "SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => $1), 'YYYY_MM')", n)
	d.Past(fmt.Sprintf(`INSERT INTO outbox.delivery_log (at, sync, outcome, claim) VALUES ('%s-15', 'court', 'delivered', gen_random_uuid())`, strings.ReplaceAll(name, "_", "-")))
	return name
}

func TestLogRetentionDropsWholeExpiredPartitions(t *testing.T) {
	url := pgtest.New(t)
	d, auditor := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_auditor")
	ancient, edge, recent := old(d, 20), old(d, 12), old(d, 3)
	d.Do("SELECT outbox.maintain(keep_log => '10 years')")
	d.Do("UPDATE outbox.retention SET keep = '1 month' WHERE what = 'log'")
	if got := months(d); !slices.Equal(got[:3], []string{ancient, edge, recent}) {
		t.Fatalf("partitions %v", got)
	}
	auditor.Do("BEGIN")
	auditor.Do("SELECT count(*) FROM outbox.delivery_log")
	if got := maintain(d, "keep_log => '12 months'"); !slices.Contains(got, "drop deferred, the log is in use: delivery_log_M 0") {
		t.Errorf("behind an auditor maintain did %v", got)
	}
	auditor.Do("COMMIT")
	if got := maintain(d, "keep_log => '12 months'"); !slices.Contains(got, "partition dropped: delivery_log_M 1") {
		t.Errorf("maintain did %v", got)
	}
	// The month that ended less than twelve months ago stays whole.
	if got, want := months(d), append([]string{edge, recent}, ahead(d, 3)...); !slices.Equal(got, want) {
		t.Errorf("partitions %v, want %v", got, want)
	}
	if n := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.delivery_log"); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
	for _, args := range []string{"keep_log => '1 day'", "keep_events => '1 minute'"} {
		d.Refuses(badParameter, "SELECT * FROM outbox.maintain("+args+")", []string{"retention too short", "at least"})
	}
}

func TestEventRetentionKeepsUnfinishedEvents(t *testing.T) {
	url := pgtest.New(t)
	d, relay := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	unmatched := d.Event("unmatched")
	d.Sync("court", "scheduling:*")
	events := map[string]string{"unmatched": unmatched}
	for _, name := range []string{"pending", "failed", "sending", "delivered", "delivered lately", "replayed", "new"} {
		events[name] = d.Event(name)
	}
	d.Fail(events["failed"])
	d.Send(events["sending"])
	d.Deliver(events["delivered lately"])
	old := "now() - interval '100 days'"
	for _, name := range []string{"delivered", "replayed"} {
		d.Do("DELETE FROM outbox.delivery WHERE event_id = $1", events[name])
		d.Past("INSERT INTO outbox.delivery_log (at, sync, event_id, key, outcome, revision, claim) VALUES ("+old+", 'court', $1, $2, 'delivered', 1, gen_random_uuid())", events[name], name)
	}
	d.Do("SELECT outbox.replay('court', $1, 'r')", events["replayed"])
	d.Do("UPDATE outbox.event SET inserted_at = " + old + " WHERE key <> 'new'")

	// Between two pages of a backfill, no event is removed.
	d.Do("UPDATE outbox.sync SET backfill_seq = 0")
	for _, did := range maintain(relay) {
		if strings.HasPrefix(did, "events removed") {
			t.Errorf("maintain did %q while a sync was being registered", did)
		}
	}
	d.Do("UPDATE outbox.sync SET backfill_seq = NULL")

	maintain(relay)
	got := outboxtest.List[string](d, "SELECT key FROM outbox.event ORDER BY key")
	if want := []string{"delivered lately", "failed", "new", "pending", "replayed", "sending"}; !slices.Equal(got, want) {
		t.Errorf("events kept: %v, want %v", got, want)
	}
	if n := outboxtest.One[int](d, "SELECT pending::int FROM outbox.status WHERE sync IS NULL"); n != 0 {
		t.Errorf("%d unmatched events are still counted", n)
	}
	maintain(relay, "keep_events => '200 days'")
	if n := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.event"); n != 6 {
		t.Errorf("%d events, want 6", n)
	}
}

func TestReplayAndRetentionDoNotOverlookEachOther(t *testing.T) {
	arrange := func(t *testing.T) (url, id string) {
		t.Helper()
		url = pgtest.New(t)
		d := outboxtest.Connect(t, url)
		d.Sync("court")
		id = d.Event("k")
		d.Do("DELETE FROM outbox.delivery")
		d.Past("INSERT INTO outbox.delivery_log (at, sync, event_id, key, outcome, revision, claim) VALUES (now() - interval '100 days', 'court', $1, 'k', 'delivered', 1, gen_random_uuid())", id)
		d.Do("UPDATE outbox.event SET inserted_at = now() - interval '100 days'")
		return url, id
	}
	const replay = "SELECT outbox.replay('court', $1, 'r')"
	t.Run("an open replay keeps the event", func(t *testing.T) {
		url, id := arrange(t)
		d, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
		operator.Do("BEGIN")
		operator.Do(replay, id)
		d.Do("SELECT * FROM outbox.maintain()")
		operator.Do("COMMIT")
		d.Do("SELECT * FROM outbox.maintain()")
		if got := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.event JOIN outbox.delivery ON event_id = id"); got != 1 {
			t.Errorf("%d events with a delivery, want 1", got)
		}
	})
	t.Run("a replay behind an open removal says so", func(t *testing.T) {
		url, id := arrange(t)
		d, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
		d.Do("BEGIN")
		d.Do("SELECT * FROM outbox.maintain()")
		late := operator.Begin(replay, id)
		outboxtest.Connect(t, url).Blocked(operator.PgConn().PID())
		d.Do("COMMIT")
		operator.Judge(operator.Ended(late), noData, replay, []string{"past its retention"})
		if got := d.States("k"); got != "" {
			t.Errorf("delivery %q of an event that is gone", got)
		}
	})
}

func TestMaintainersAtOnce(t *testing.T) {
	url := pgtest.New(t)
	first, second := outboxtest.Connect(t, url), outboxtest.Connect(t, url)
	first.Do("BEGIN")
	first.Do("SELECT * FROM outbox.maintain()")
	got := maintain(second)
	if want := fmt.Sprintf("held: maintenance waits for pid %d of ", first.PgConn().PID()); len(got) != 1 || !strings.HasPrefix(got[0], want) {
		t.Errorf("a second maintainer did %v while the first works, want nothing, no waiting, and %q", got, want)
	}
	first.Do("COMMIT")
}

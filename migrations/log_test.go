package migrations_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

func TestLogIsAppendOnlyForEverybody(t *testing.T) {
	url := pgtest.New(t)
	admin := connect(t, url)
	admin.do("INSERT INTO outbox.delivery_log (sync, outcome) VALUES ('court', 'delivered')")
	admin.past("INSERT INTO outbox.delivery_log (at, sync, outcome, claim) VALUES (now() - interval '5 years', 'court', 'delivered', gen_random_uuid())")
	tables := append(list[string](admin, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'outbox.delivery_log'::regclass"), "outbox.delivery_log")
	if len(tables) != 6 {
		t.Fatalf("tables of the log: %v, want the parent, the default partition and four months", tables)
	}
	replica := connect(t, url)
	replica.do("SET session_replication_role = replica") // ordinary triggers would not fire
	sessions := []struct {
		name  string
		d     db
		words []string
	}{
		{"superuser and owner", admin, []string{"append-only", "new rows", "outbox.maintain"}},
		{"as a replica", replica, []string{"append-only"}},
		{"auditor", as(t, url, "outbox_auditor"), nil},
		{"operator", as(t, url, "outbox_operator"), nil},
		{"relay", as(t, url, "outbox_relay"), nil},
	}
	for _, s := range sessions {
		for _, table := range tables {
			for _, statement := range []string{
				"UPDATE %s SET outcome = 'failed'", "DELETE FROM %s", "DELETE FROM %s WHERE false", "TRUNCATE %s",
			} {
				statement := fmt.Sprintf(statement, table)
				t.Run(s.name+": "+statement, func(t *testing.T) { (db{s.d.Conn, t}).refuses(denied, statement, s.words) })
			}
		}
	}
	for _, s := range sessions[2:4] {
		for _, table := range tables {
			s.d.refuses(denied, "INSERT INTO "+table+" (id, at, sync, outcome) VALUES (1, now(), 'court', 'delivered')", nil)
		}
	}
	if n := one[int](admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'delivered'"); n != 2 {
		t.Errorf("%d rows left, want 2", n)
	}
}

func months(d db) []string {
	d.t.Helper()
	return list[string](d, `SELECT right(inhrelid::regclass::text, 7) FROM pg_inherits
	   WHERE inhparent = 'outbox.delivery_log'::regclass AND inhrelid <> 'outbox.delivery_log_default'::regclass ORDER BY 1`)
}

func ahead(d db, n int) []string {
	d.t.Helper()
	return list[string](d, "SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i), 'YYYY_MM') FROM generate_series(0, $1::int) AS i", n)
}

func (d db) maintain(args ...string) []string {
	d.t.Helper()
	return list[string](d, "SELECT regexp_replace(done, '\\d{4}_\\d\\d', 'M') || ' ' || n FROM outbox.maintain("+strings.Join(args, ", ")+")")
}

func TestPartitionsReachThreeMonthsAhead(t *testing.T) {
	d := connect(t, pgtest.New(t))
	if got, want := months(d), ahead(d, 3); !slices.Equal(got, want) {
		t.Errorf("partitions %v after the migration, want %v", got, want)
	}
	if got := d.maintain(); !slices.Equal(got, []string{"events removed 0"}) {
		t.Errorf("a second call did %v, want nothing", got)
	}
}

func TestMaintainMakesMissingPartitionsAndEmptiesTheDefault(t *testing.T) {
	url := pgtest.New(t)
	d, relay := connect(t, url), as(t, url, "outbox_relay")
	// As if nobody had called for months: this month's and the next one's are missing, and an old month never had one.
	this := ahead(d, 1)
	for _, month := range this {
		d.do("DROP TABLE outbox.delivery_log_" + month)
	}
	d.do("INSERT INTO outbox.delivery_log (sync, outcome) SELECT 'court', 'delivered' FROM generate_series(1, 3)")
	d.past("INSERT INTO outbox.delivery_log (at, sync, outcome, claim) VALUES (now() - interval '5 months', 'court', 'retry', gen_random_uuid())")
	before := list[string](d, "SELECT to_jsonb(l)::text FROM outbox.delivery_log AS l ORDER BY id")
	if n := one[int](d, "SELECT count(*)::int FROM outbox.delivery_log_default"); n != 4 {
		t.Fatalf("%d rows in the default partition, want 4", n)
	}

	if got, want := relay.maintain(), []string{"events removed 0", "partition created: delivery_log_M 1", "partition created: delivery_log_M 1", "partition created: delivery_log_M 1"}; !slices.Equal(got, want) {
		t.Errorf("maintain did %v, want %v", got, want)
	}
	if n := one[int](d, "SELECT count(*)::int FROM outbox.delivery_log_default"); n != 0 {
		t.Errorf("%d rows left in the default partition", n)
	}
	if after := list[string](d, "SELECT to_jsonb(l)::text FROM outbox.delivery_log AS l ORDER BY id"); !slices.Equal(before, after) {
		t.Errorf("rows changed while they were moved:\n%v\n%v", before, after)
	}
	for _, table := range append(months(d), "default") {
		d.refuses(denied, "DELETE FROM outbox.delivery_log_"+table, []string{"append-only"})
		as(t, url, "outbox_auditor").do("SELECT FROM outbox.delivery_log_" + table)
	}
}

func TestMaintainDoesNotWaitForAnAuditor(t *testing.T) {
	url := pgtest.New(t)
	d, auditor, relay := connect(t, url), as(t, url, "outbox_auditor"), as(t, url, "outbox_relay")
	this := ahead(d, 3)
	d.do("DROP TABLE outbox.delivery_log_" + this[3])
	d.do("DROP TABLE outbox.delivery_log_" + this[2])
	auditor.do("BEGIN")
	auditor.do("SELECT count(*) FROM outbox.delivery_log") // and goes for lunch

	if got, want := relay.maintain(), []string{"events removed 0", "partition deferred, the log is in use: delivery_log_M 0"}; !slices.Equal(got, want) {
		t.Errorf("maintain did %v, want %v", got, want)
	}
	if got := months(d); !slices.Equal(got, this[:2]) {
		t.Errorf("partitions %v, want %v and no half-made one", got, this[:2])
	}
	d.do("INSERT INTO outbox.delivery_log (sync, outcome) VALUES ('court', 'delivered')") // the log goes on meanwhile
	auditor.do("COMMIT")
	relay.maintain()
	if got := months(d); !slices.Equal(got, this) {
		t.Errorf("partitions %v once the auditor is done, want %v", got, this)
	}
}

// old attaches a partition for a month that is n months past.
func (d db) old(n int) string {
	d.t.Helper()
	name := one[string](d, "SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => $1), 'YYYY_MM')", n)
	d.past(fmt.Sprintf(`INSERT INTO outbox.delivery_log (at, sync, outcome, claim) VALUES ('%s-15', 'court', 'delivered', gen_random_uuid())`, strings.ReplaceAll(name, "_", "-")))
	return name
}

func TestLogRetentionDropsWholeExpiredPartitions(t *testing.T) {
	url := pgtest.New(t)
	d, auditor := connect(t, url), as(t, url, "outbox_auditor")
	ancient, edge, recent := d.old(20), d.old(12), d.old(3)
	d.do("SELECT outbox.maintain(keep_log => '10 years')")
	d.do("UPDATE outbox.retention SET keep = '1 month' WHERE what = 'log'")
	if got := months(d); !slices.Equal(got[:3], []string{ancient, edge, recent}) {
		t.Fatalf("partitions %v", got)
	}
	auditor.do("BEGIN")
	auditor.do("SELECT count(*) FROM outbox.delivery_log")
	if got := d.maintain("keep_log => '12 months'"); !slices.Contains(got, "drop deferred, the log is in use: delivery_log_M 0") {
		t.Errorf("behind an auditor maintain did %v", got)
	}
	auditor.do("COMMIT")
	if got := d.maintain("keep_log => '12 months'"); !slices.Contains(got, "partition dropped: delivery_log_M 1") {
		t.Errorf("maintain did %v", got)
	}
	// The month that ended less than twelve months ago stays whole.
	if got, want := months(d), append([]string{edge, recent}, ahead(d, 3)...); !slices.Equal(got, want) {
		t.Errorf("partitions %v, want %v", got, want)
	}
	if n := one[int](d, "SELECT count(*)::int FROM outbox.delivery_log"); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
	for _, args := range []string{"keep_log => '1 day'", "keep_events => '1 minute'"} {
		d.refuses(badParameter, "SELECT * FROM outbox.maintain("+args+")", []string{"retention too short", "at least"})
	}
}

func TestEventRetentionKeepsWhatIsNotFinished(t *testing.T) {
	url := pgtest.New(t)
	d, relay := connect(t, url), as(t, url, "outbox_relay")
	unmatched := d.event("unmatched")
	d.sync("court", "scheduling:*")
	events := map[string]string{"unmatched": unmatched}
	for _, name := range []string{"pending", "failed", "sending", "delivered", "delivered lately", "replayed", "new"} {
		events[name] = d.event(name)
	}
	d.fail(events["failed"])
	d.send(events["sending"])
	d.deliver(events["delivered lately"])
	old := "now() - interval '100 days'"
	for _, name := range []string{"delivered", "replayed"} {
		d.do("DELETE FROM outbox.delivery WHERE event_id = $1", events[name])
		d.past("INSERT INTO outbox.delivery_log (at, sync, event_id, key, outcome, revision, claim) VALUES ("+old+", 'court', $1, $2, 'delivered', 1, gen_random_uuid())", events[name], name)
	}
	d.do("SELECT outbox.replay('court', $1, 'r')", events["replayed"])
	d.do("UPDATE outbox.event SET inserted_at = " + old + " WHERE key <> 'new'")

	// Between two pages of a registration nothing goes.
	d.do("UPDATE outbox.sync SET backfill_seq = 0")
	for _, did := range relay.maintain() {
		if strings.HasPrefix(did, "events removed") {
			t.Errorf("maintain did %q while a sync was being registered", did)
		}
	}
	d.do("UPDATE outbox.sync SET backfill_seq = NULL")

	relay.maintain()
	got := list[string](d, "SELECT key FROM outbox.event ORDER BY key")
	if want := []string{"delivered lately", "failed", "new", "pending", "replayed", "sending"}; !slices.Equal(got, want) {
		t.Errorf("events kept: %v, want %v", got, want)
	}
	if n := one[int](d, "SELECT pending::int FROM outbox.status WHERE sync IS NULL"); n != 0 {
		t.Errorf("%d unmatched events are still counted", n)
	}
	relay.maintain("keep_events => '200 days'")
	if n := one[int](d, "SELECT count(*)::int FROM outbox.event"); n != 6 {
		t.Errorf("%d events, want 6", n)
	}
}

func TestReplayAndRetentionDoNotOverlookEachOther(t *testing.T) {
	arrange := func(t *testing.T) (url, id string) {
		t.Helper()
		url = pgtest.New(t)
		d := connect(t, url)
		d.sync("court")
		id = d.event("k")
		d.do("DELETE FROM outbox.delivery")
		d.past("INSERT INTO outbox.delivery_log (at, sync, event_id, key, outcome, revision, claim) VALUES (now() - interval '100 days', 'court', $1, 'k', 'delivered', 1, gen_random_uuid())", id)
		d.do("UPDATE outbox.event SET inserted_at = now() - interval '100 days'")
		return url, id
	}
	const replay = "SELECT outbox.replay('court', $1, 'r')"
	t.Run("an open replay keeps the event", func(t *testing.T) {
		url, id := arrange(t)
		d, operator := connect(t, url), as(t, url, "outbox_operator")
		operator.do("BEGIN")
		operator.do(replay, id)
		d.do("SELECT * FROM outbox.maintain()")
		operator.do("COMMIT")
		d.do("SELECT * FROM outbox.maintain()")
		if got := one[int](d, "SELECT count(*)::int FROM outbox.event JOIN outbox.delivery ON event_id = id"); got != 1 {
			t.Errorf("%d events with a delivery, want 1", got)
		}
	})
	t.Run("a replay behind an open removal says so", func(t *testing.T) {
		url, id := arrange(t)
		d, operator := connect(t, url), as(t, url, "outbox_operator")
		d.do("BEGIN")
		d.do("SELECT * FROM outbox.maintain()")
		late := operator.begin(replay, id)
		connect(t, url).blocked(operator.PgConn().PID())
		d.do("COMMIT")
		operator.judge(operator.ended(late), noData, replay, []string{"past its retention"})
		if got := d.states("k"); got != "" {
			t.Errorf("delivery %q of an event that is gone", got)
		}
	})
}

func TestMaintainersAtOnce(t *testing.T) {
	url := pgtest.New(t)
	first, second := connect(t, url), connect(t, url)
	first.do("BEGIN")
	first.do("SELECT * FROM outbox.maintain()")
	got := second.maintain()
	if want := fmt.Sprintf("held: maintenance waits for pid %d of ", first.PgConn().PID()); len(got) != 1 || !strings.HasPrefix(got[0], want) {
		t.Errorf("a second maintainer did %v beside the first, want nothing, no waiting, and %q", got, want)
	}
	first.do("COMMIT")
}

package migrations_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// A relay's login may write to the log only what it does: the end of a claim. It cannot set a time or
// another actor, and cannot write about deliveries that it has not claimed.
func TestRelayLoginCannotForgeTheLog(t *testing.T) {
	url := pgtest.New(t)
	admin, relay, login := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url), outboxtest.As(t, url, "outbox_relay")
	admin.Sync("court")
	claimed := admin.Event("claimed")
	d := outboxtest.Only(t, relay)
	pending := admin.Event("pending")
	finished := admin.Event("finished")
	admin.Deliver(finished)
	before := outboxtest.One[int](admin, "SELECT count(*)::int FROM outbox.delivery_log")

	const columns = "INSERT INTO outbox.delivery_log (sync, event_id, key, outcome, claim, relay) VALUES "
	row := func(event, key, outcome, claim string) string {
		return fmt.Sprintf(columns+"('court', '%s', '%s', '%s', '%s', 'relay-1')", event, key, outcome, claim)
	}
	invented := outboxtest.One[string](admin, "SELECT gen_random_uuid()::text")
	for name, tt := range map[string]struct {
		statement string
		words     []string
	}{
		"dated":                        {"INSERT INTO outbox.delivery_log (at, sync, outcome) VALUES (now() - interval '1 month', 'court', 'delivered')", nil},
		"dated now":                    {"INSERT INTO outbox.delivery_log (at, sync, outcome, claim) VALUES (now(), 'court', 'delivered', '" + d.Claim + "')", nil},
		"numbered":                     {"INSERT INTO outbox.delivery_log (id, sync, outcome) VALUES (1, 'court', 'delivered')", nil},
		"signed":                       {"INSERT INTO outbox.delivery_log (sync, outcome, actor) VALUES ('court', 'paused', 'judge')", nil},
		"into a partition":             {"INSERT INTO outbox.delivery_log_default (sync, outcome, claim) VALUES ('court', 'delivered', '" + d.Claim + "')", nil},
		"without a claim":              {fmt.Sprintf(columns+"('court', '%s', 'pending', 'delivered', NULL, 'relay-1')", pending), []string{"needs the claim"}},
		"invented claim, pending":      {row(pending, "pending", "delivered", invented), []string{"not claimed with " + invented}},
		"invented claim, sending":      {row(claimed, "claimed", "delivered", invented), []string{"not claimed with"}},
		"invented claim, finished":     {row(finished, "finished", "delivered", invented), []string{"not claimed with"}},
		"invented claim, no event":     {row(invented, "k", "delivered", invented), []string{"not claimed with"}},
		"invented claim, unknown":      {row(pending, "pending", "unknown", invented), []string{`"unknown"`, "not claimed with"}},
		"invented claim, lease lost":   {row(pending, "pending", "lease_lost", invented), []string{`"lease_lost"`, "not claimed with"}},
		"another delivery's claim":     {row(pending, "pending", "delivered", d.Claim), []string{"not claimed with"}},
		"another key":                  {row(claimed, "pending", "delivered", d.Claim), []string{"not claimed with"}},
		"a true row with a false one":  {row(claimed, "claimed", "delivered", d.Claim) + fmt.Sprintf(", ('court', '%s', 'pending', 'failed', '%s', 'relay-1')", pending, d.Claim), []string{`"failed" of event ` + pending}},
		"superseded, nothing open":     {fmt.Sprintf(columns+"('court', '%s', 'finished', 'superseded', NULL, 'relay-1')", finished), []string{`"superseded"`}},
		"superseded by nobody":         {fmt.Sprintf(columns+"('court', '%s', 'pending', 'superseded', NULL, NULL)", pending), nil},
		"claimed and recorded at once": {fmt.Sprintf("WITH c AS (INSERT INTO outbox.lane (sync, key, due_at, claim) VALUES ('court', 'pending', now(), '%s')) ", invented) + row(pending, "pending", "delivered", invented), []string{"not claimed with"}},
	} {
		t.Run(name, func(t *testing.T) { login.With(t).Refuses(denied, tt.statement, tt.words) })
	}
	for _, outcome := range []string{"requeued", "replayed", "discarded", "paused", "resumed", "retired", "sync_changed"} {
		for claim, text := range map[string]string{"with its claim": "'" + d.Claim + "'", "without a claim": "NULL"} {
			t.Run(outcome+" "+claim, func(t *testing.T) {
				condition, words := denied, []string{outcome, "written by the function that does it"}
				if text != "NULL" {
					condition, words = "delivery_log_claim_or_actor", nil
				}
				login.With(t).Refuses(condition, fmt.Sprintf(columns+"('court', '%s', 'claimed', '%s', %s, 'relay-1')", claimed, outcome, text), words)
			})
		}
	}
	if after := outboxtest.One[int](admin, "SELECT count(*)::int FROM outbox.delivery_log"); after != before {
		t.Errorf("%d rows were forged", after-before)
	}
	if !outboxtest.Record(t, relay, outboxtest.Delivered(d)) {
		t.Error("what is true was not recorded")
	}
}

// A relay's login logs an answer that came after its lease, although its claim has ended.
func TestRelayLoginLogsLostLeases(t *testing.T) {
	url := pgtest.New(t)
	admin, late := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
	admin.Sync("court")
	lost := func() *outbox.Delivery {
		t.Helper()
		admin.Event("k")
		return outboxtest.Only(t, late)
	}
	d := lost()
	admin.Dies()
	again := outboxtest.Only(t, outboxtest.OpenRelay(t, url))
	r := late.Record(t.Context(), "court", []outbox.Result{outboxtest.Delivered(d)})
	if outboxtest.Must(t, r.Err); !r.Lost[0] {
		t.Fatalf("a claim that was taken over was recorded: %+v", r)
	}
	if got, want := outboxtest.List[string](admin, "SELECT outcome || ' ' || claim FROM outbox.delivery_log ORDER BY id"), []string{"unknown " + d.Claim, "lease_lost " + d.Claim}; !slices.Equal(got, want) {
		t.Errorf("log %v, want %v", got, want)
	}
	later, recorded := outboxtest.OpenRelay(t, url), false
	for range 2 { // the late relay has touched the row: the first time finds where it is now
		recorded = recorded || outboxtest.Record(t, later, outboxtest.Delivered(again))
	}
	if !recorded {
		t.Error("the later claim was not recorded")
	}

	// After a failover or a restore, the database does not know the claim.
	d = lost()
	admin.Do("UPDATE outbox.lane SET claim = NULL, claimed_by = NULL, due_at = clock_timestamp()")
	r = late.Record(t.Context(), "court", []outbox.Result{outboxtest.Delivered(d)})
	if outboxtest.Must(t, r.Err); !r.Lost[0] {
		t.Fatalf("a claim that nobody knows was recorded: %+v", r)
	}
	got := outboxtest.One[string](admin, "SELECT concat_ws('|', outcome, claim, actor, reason) FROM outbox.delivery_log ORDER BY id DESC LIMIT 1")
	if want := "lease_lost|the answer came after the lease: delivered; this database does not know the claim " + d.Claim; got != want {
		t.Errorf("log row %s, want %s", got, want)
	}
}

// The database sets the time and the actor of each row.
func TestDatabaseSetsTimeAndActorOfALogRow(t *testing.T) {
	url := pgtest.New(t)
	d := outboxtest.Connect(t, url)
	d.Do("SET lockstep.actor = 'clerk'")
	who := login(t, url) + "/clerk"
	for _, outcome := range []string{"paused", "sync_changed", "delivered"} {
		got := outboxtest.One[string](d, `INSERT INTO outbox.delivery_log (at, sync, outcome, actor)
			VALUES (clock_timestamp() - interval '20 seconds', 'court', $1, 'judge')
			RETURNING concat_ws(' ', actor, (clock_timestamp() - at < interval '10 seconds')::text)`, outcome)
		if want := who + " true"; got != want {
			t.Errorf("%s: signed and dated %q, want %q", outcome, got, want)
		}
	}
	// Rows of relays have no actor. A claim does not permit another actor.
	if got := outboxtest.One[string](d, `INSERT INTO outbox.delivery_log (sync, outcome, actor, claim, relay)
		VALUES ('court', 'delivered', 'judge', gen_random_uuid(), 'relay-1') RETURNING coalesce(actor, '')`); got != "" {
		t.Errorf("a relay's row is signed %q", got)
	}
	for _, at := range []string{"now() - interval '1 month'", "now() - interval '2 minutes'", "now() + interval '1 day'", "'infinity'", "'-infinity'"} {
		for _, more := range []string{"actor) VALUES (%s, 'court', 'paused', 'judge')", "claim) VALUES (%s, 'court', 'delivered', gen_random_uuid())"} {
			d.Refuses(wrongState, fmt.Sprintf("INSERT INTO outbox.delivery_log (at, sync, outcome, "+more, at), []string{"cannot be dated", "docs/operators.md"})
		}
	}
}

// Each change of a sync that affects its receiver is logged, if it is made by the command, and also if it is made by a
// statement of the relay's login.
func TestChangesOfASyncAreLogged(t *testing.T) {
	url := pgtest.New(t)
	admin, relay, login := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url), outboxtest.As(t, url, "outbox_relay")
	admin.Sync("court", "a:*")
	relayLogin := outboxtest.One[string](login, "SELECT session_user::text")
	var seen int64 // of the log
	logged := func(want ...string) {
		t.Helper()
		got := outboxtest.List[string](admin, `SELECT concat_ws('|', outcome, actor, regexp_replace(reason, '\d{4}-\S+ \S+', 'T', 'g'))
			FROM outbox.delivery_log WHERE sync = 'court' AND id > $1 ORDER BY id`, seen)
		if !slices.Equal(got, want) {
			t.Errorf("log %q, want %q", got, want)
		}
		seen = outboxtest.One[int64](admin, "SELECT coalesce(max(id), 0) FROM outbox.delivery_log")
	}

	_, err := relay.Apply(t.Context(), outbox.Registration{Name: "court", Patterns: []string{"a:*", "b:*"}, OnFailed: "supersede", Notify: true, Actor: "clerk\u202e"})
	outboxtest.Must(t, err)
	storeLogin := outboxtest.One[string](admin, "SELECT DISTINCT split_part(actor, '/', 1) FROM outbox.delivery_log")
	by := "sync_changed|" + storeLogin + "/clerk?|"
	logged(by+"events: b:* added", by+"on_failed: block to supersede", by+"notify: f to t")
	if _, err := relay.Apply(t.Context(), outbox.Registration{Name: "court", Patterns: []string{"a:*", "b:*"}, OnFailed: "supersede", Notify: true}); err != nil {
		t.Fatal(err)
	}
	logged()

	login.Do("UPDATE outbox.sync SET patterns = '{*}'")
	by = "sync_changed|" + relayLogin + "|"
	logged(by+"events: a:* removed", by+"events: b:* removed", by+"events: * added")
	login.Do("UPDATE outbox.sync SET retired_at = now()")
	logged("retired|" + relayLogin)
	login.Do("UPDATE outbox.sync SET retired_at = NULL, on_failed = 'block'")
	logged(by+"on_failed: supersede to block", by+"retired: since T to no")
	login.Do("UPDATE outbox.sync SET last_delivered_at = now(), hold_reason = 'r', backfill_seq = 0")
	logged()

	operator := outboxtest.As(t, url, "outbox_operator")
	operator.Do("SELECT outbox.retire('court', 'the court moved')")
	operatorLogin := outboxtest.One[string](operator, "SELECT session_user::text")
	logged("retired|" + operatorLogin + "|the court moved")
	operator.Do("SELECT outbox.retire('court', 'again')")
	logged()

	// The row has the login that registered it, which cannot be changed.
	login.Do("INSERT INTO outbox.sync (name, patterns, registered_by, registered_at) VALUES ('other', '{*}', 'judge', '2020-01-01')")
	if got := outboxtest.One[string](admin, "SELECT registered_by || ' ' || (registered_at > now() - interval '1 hour')::text FROM outbox.sync WHERE name = 'other'"); got != relayLogin+" true" {
		t.Errorf("registered by %s, want %s true", got, relayLogin)
	}
	for _, change := range []string{"registered_by = 'judge'", "registered_at = '2020-01-01'", "name = 'another'"} {
		login.Refuses(wrongState, "UPDATE outbox.sync SET "+change+" WHERE name = 'other'", []string{`"other"`, "cannot be changed"})
	}
}

// The values that a relay may choose for a row are bounded: a time or number that programs cannot read would stay for
// ever.
func TestRowsThatARelayRecordsAreBounded(t *testing.T) {
	url := pgtest.New(t)
	admin, relay, login := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url), outboxtest.As(t, url, "outbox_relay")
	admin.Sync("court")
	admin.Event("k")
	d := outboxtest.Only(t, relay)
	const row = `INSERT INTO outbox.delivery_log (sync, event_id, event_seq, key, outcome, claim, relay, revision, answered_at)
		SELECT sync, event_id, event_seq, key, 'retry', claim, 'relay-1', %s, %s FROM outbox.open_delivery`
	for _, at := range []string{"'infinity'", "'-infinity'", "now() - interval '1 month'", "now() + interval '1 hour'"} {
		login.Refuses(checkFailed, fmt.Sprintf(row, "1", at), []string{"delivery_log_answered_before"})
	}
	login.Refuses(denied, fmt.Sprintf(row, "2147483647", "now()"), []string{"not claimed"})
	if !outboxtest.Record(t, relay, outboxtest.Delivered(d)) {
		t.Error("what is true was not recorded")
	}
}

// Settings of the caller's session change neither partitions nor patterns.
func TestSettingsOfTheSessionChangeNothing(t *testing.T) {
	url := pgtest.New(t)
	admin, login := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	months := func() []string {
		return outboxtest.List[string](admin, `SELECT pg_get_expr(c.relpartbound, c.oid) FROM pg_class AS c
			WHERE c.relname ~ '^delivery_log_[0-9]' AND c.relkind = 'r' ORDER BY c.relname`)
	}
	want := months()
	admin.Do("DROP TABLE outbox." + outboxtest.One[string](admin, "SELECT max(relname) FROM pg_class WHERE relname ~ '^delivery_log_[0-9]' AND relkind = 'r'"))
	login.Do("SET timezone = 'Asia/Kolkata'; SET datestyle = 'SQL, DMY'; SET standard_conforming_strings = off; SET escape_string_warning = off")
	login.Do("SELECT * FROM outbox.maintain()")
	if got := months(); !slices.Equal(got, want) {
		t.Errorf("partitions %v, want %v", got, want)
	}
	login.Do("INSERT INTO outbox.sync (name, patterns) VALUES ('court', '{a_b}')")
	if got := outboxtest.One[string](admin, "SELECT likes::text FROM outbox.sync"); got != `{"a\\_b"}` {
		t.Errorf("patterns %s", got)
	}
}

// A relay's login cannot pause or resume a sync as an operator.
func TestRelayLoginCannotTouchAnOperatorsHold(t *testing.T) {
	url := pgtest.New(t)
	admin, login, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay"), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	admin.Sync("other")
	operator.Do("SELECT outbox.pause('court', 'r')")
	login.Do("INSERT INTO outbox.hold (sync, kind, reason, by) VALUES ('court', 'auth', 'r', 'relay-1')")
	for _, statement := range []string{
		"DELETE FROM outbox.hold WHERE kind = 'operator'",
		"DELETE FROM outbox.hold",
		"UPDATE outbox.hold SET by = 'judge' WHERE kind = 'operator'",
		"UPDATE outbox.hold SET kind = 'window' WHERE kind = 'operator'",
		"UPDATE outbox.hold SET kind = 'operator', sync = 'other' WHERE kind = 'auth'",
		"INSERT INTO outbox.hold (sync, kind, reason, by) VALUES ('other', 'operator', 'r', 'judge')",
	} {
		login.Refuses(denied, statement, []string{"outbox.pause and outbox.resume"})
	}
	login.Do("DELETE FROM outbox.hold WHERE kind = 'auth'")
	operator.Do("SELECT outbox.resume('court')")
	if n := outboxtest.One[int](admin, "SELECT count(*)::int FROM outbox.hold"); n != 0 {
		t.Errorf("%d holds are left", n)
	}
}

// A name or a reason cannot move the cursor of a terminal or change the direction of the text around it.
func TestNamesAndReasonsAreClean(t *testing.T) {
	const dirty, want = "a\x1b[2J\tb\u202ec\u2066d\u200be\ufefff\u0085g é", "a?[2J b?c?d?e?f?g é"
	d := outboxtest.Connect(t, pgtest.New(t))
	d.Sync("court")
	d.Do("SELECT set_config('lockstep.actor', $1, false)", dirty)
	d.Do("SELECT outbox.pause('court', $1)", dirty)
	d.Fail(d.Event("k"))
	d.Do("SELECT outbox.requeue('court', reason => $1)", dirty)
	d.Do("SELECT set_config('lockstep.reason', $1, false)", dirty)
	d.Fail(d.Event("k2"))
	d.Do("UPDATE outbox.delivery SET state = 'pending' WHERE key = 'k2' AND state = 'failed'")
	got := outboxtest.List[string](d, "SELECT DISTINCT concat_ws('|', split_part(actor, '/', 2), reason) FROM outbox.delivery_log")
	if w := want + "|" + want; len(got) != 1 || got[0] != w {
		t.Errorf("log says %q, want %q", got, w)
	}
	if got := outboxtest.One[string](d, "SELECT concat_ws('|', split_part(by, '/', 2), reason) FROM outbox.hold"); got != want+"|"+want {
		t.Errorf("the hold says %q", got)
	}
}

// A relay's login cannot drop a log that the owner keeps, by a shorter retention in its call. The owner can make the
// retention shorter.
func TestMaintainTakesTheLongerRetention(t *testing.T) {
	url := pgtest.New(t)
	d, relay := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	old := old(d, 40)
	event := d.Event("k")
	d.Do("UPDATE outbox.event SET inserted_at = now() - interval '50 days' WHERE id = $1", event)
	d.Do("SELECT outbox.maintain()")
	there := func() string {
		return fmt.Sprint(slices.Contains(months(d), old), outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.event"))
	}
	maintain(relay, "'1 hour'", "'1 month'")
	maintain(relay)
	if got := there(); got != "true 1" {
		t.Errorf("what the owner keeps was dropped at the relay's word: %s", got)
	}
	for _, statement := range []string{
		"UPDATE outbox.retention SET keep = '1 month'", "DELETE FROM outbox.retention", "INSERT INTO outbox.retention VALUES ('log', '1 month')", "TRUNCATE outbox.retention",
	} {
		for _, role := range []string{"outbox_relay", "outbox_operator", "outbox_auditor"} {
			outboxtest.As(t, url, role).Refuses(denied, statement, nil)
		}
	}
	d.Do("DELETE FROM outbox.retention") // an accident
	maintain(relay, "'1 hour'", "'1 month'")
	if got := there(); got != "true 1" {
		t.Errorf("without rows in outbox.retention: %s", got)
	}
	d.Do("INSERT INTO outbox.retention VALUES ('events', '1 hour'), ('log', '3 years')")
	maintain(relay, "'100 days'", "'84 months'")
	if got := there(); got != "true 1" {
		t.Errorf("what the relay keeps longer was dropped: %s", got)
	}
	maintain(relay)
	if got := there(); got != "false 0" {
		t.Errorf("past both retentions it stays: %s", got)
	}
	for _, keep := range []string{"'1 day'", "'1201 months'", "'-1 month'"} {
		d.Refuses("retention_bounds", "UPDATE outbox.retention SET keep = "+keep+" WHERE what = 'log'", nil)
	}

	kept, err := outboxtest.OpenRelay(t, url).KeptLonger(t.Context(), "30 days", "1 month")
	outboxtest.Must(t, err)
	if len(kept) != 1 || kept[0].What != "log" || kept[0].Keep != "3 years" || kept[0].Asked != "1 month" {
		t.Errorf("kept longer than asked: %+v", kept)
	}
}

// No row of the log, and no other trouble, prevents the partitions of the next months.
func TestMaintainContinuesAfterTrouble(t *testing.T) {
	url := pgtest.New(t)
	d, relay := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	for _, at := range []string{"infinity", "-infinity", "1800-01-01", "2300-01-01"} {
		d.Past("INSERT INTO outbox.delivery_log (at, sync, outcome, claim) VALUES ($1::text::timestamptz, 'court', 'delivered', gen_random_uuid())", at)
	}
	expired := old(d, 90)
	d.Do("SELECT outbox.maintain()") // gives it a partition of its own, and drops it
	if slices.Contains(months(d), expired) {
		t.Fatal("an expired month stays")
	}
	expired = old(d, 90)
	d.Do("UPDATE outbox.retention SET keep = '1200 months' WHERE what = 'log'")
	d.Do("SELECT outbox.maintain()")
	d.Do("UPDATE outbox.retention SET keep = '84 months' WHERE what = 'log'")
	d.Do("CREATE VIEW public.somebodys AS SELECT * FROM outbox.delivery_log_" + expired)
	d.Do("ALTER TABLE outbox.event DISABLE TRIGGER fan_out")
	d.Do("CREATE FUNCTION public.broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''somebody''''s trigger''; END'")
	d.Do("CREATE TRIGGER broken BEFORE DELETE ON outbox.event FOR EACH ROW EXECUTE FUNCTION public.broken()")
	d.Event("k")
	d.Do("UPDATE outbox.event SET inserted_at = now() - interval '100 days'")
	next := ahead(d, 3)[1:]
	for _, month := range next {
		d.Do("DROP TABLE outbox.delivery_log_" + month)
	}
	if n, err := outboxtest.OpenRelay(t, url).LogMonthsAhead(t.Context()); err != nil || n != 0 {
		t.Errorf("%d months ahead, %v; want 0", n, err)
	}

	got := strings.Join(maintain(relay), "\n")
	for _, want := range []string{
		"trouble: events were not removed: somebody's trigger",
		"trouble: delivery_log_M could not be dropped: ",
		"trouble: 4 row(s) of the log have no possible time, from -infinity to infinity",
		"trouble: trigger fan_out of outbox.event is off; put it back with: ALTER TABLE outbox.event ENABLE TRIGGER fan_out",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("maintain did\n%s\nwant %q", got, want)
		}
	}
	if m := months(d); !slices.Equal(m[len(m)-3:], next) {
		t.Errorf("months %v, want them to end with %v", m, next)
	}
	if n, err := outboxtest.OpenRelay(t, url).LogMonthsAhead(t.Context()); err != nil || n != 3 {
		t.Errorf("%d months ahead, %v; want 3", n, err)
	}
	if n := outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.delivery_log_default"); n != 4 {
		t.Errorf("%d rows in the default partition, want the 4 without a possible time", n)
	}
}

// Every login may take an advisory lock of any number. A session that waits for it names the holder.
func TestHoldersOfAdvisoryLocksAreNamed(t *testing.T) {
	url := pgtest.New(t)
	d, stranger := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_auditor")
	relay := outboxtest.OpenRelay(t, url)
	d.Sync("court")
	stranger.Do("SET application_name = E'their report\\033'")
	// Since PostgreSQL 16 the server itself writes such a character as \x1b.
	shown := outboxtest.One[string](d, "SELECT outbox.clean(application_name) FROM pg_stat_activity WHERE pid = $1", stranger.PgConn().PID())
	name := fmt.Sprintf("pid %d of %s (%s)", stranger.PgConn().PID(), outboxtest.One[string](stranger, "SELECT session_user::text"), shown)

	stranger.Do("SELECT pg_advisory_lock(1869967988)")
	m, err := relay.Maintain(t.Context(), "90 days", "84 months")
	outboxtest.Must(t, err)
	if len(m.Held) != 1 || !strings.Contains(m.Held[0], name) || len(m.Done) != 0 {
		t.Errorf("behind a stranger's lock maintain came to %+v, want it to name %s", m, name)
	}
	stranger.Do("SELECT pg_advisory_unlock_all()")

	stranger.Do("SELECT pg_advisory_lock(1869967989)")
	d.Do("DROP TABLE outbox.delivery_log_" + ahead(d, 3)[3])
	m, err = relay.Maintain(t.Context(), "90 days", "84 months")
	outboxtest.Must(t, err)
	if len(m.Held) != 1 || !strings.Contains(m.Held[0], "the removal of events waits for "+name) || len(m.Done) != 1 {
		t.Errorf("behind a stranger's lock on retention maintain came to %+v, want the partition made, and %s named", m, name)
	}
	d.Do("UPDATE outbox.sync SET backfill_seq = 0, backfill_from = '-infinity', backfill_unseen = '{}'")
	_, _, err = relay.NewBackfill("court").Step(t.Context(), 100)
	if err == nil || !strings.Contains(err.Error(), "1869967989 is held by "+name) || !outbox.IsTemporary(err) {
		t.Errorf("a backfill behind it: %v", err)
	}
	stranger.Do("SELECT pg_advisory_unlock_all()")

	stranger.Do("SELECT pg_advisory_lock(1869967990)")
	_, err = relay.Register(t.Context(), []outbox.Registration{{Name: "other", Patterns: []string{"*"}, OnFailed: "block", From: "now"}})
	if err == nil || !strings.Contains(err.Error(), "1869967990 is held by "+name) || !outbox.IsTemporary(err) {
		t.Errorf("a registration behind it: %v", err)
	}
	stranger.Do("SELECT pg_advisory_unlock_all()")
	m, err = relay.Maintain(t.Context(), "90 days", "84 months")
	outboxtest.Must(t, err)
	if len(m.Held) != 0 {
		t.Errorf("held by %v although nobody holds it", m.Held)
	}
}

// A reference is removed when the database has no other row about its key.
func TestReferencesHaveRetention(t *testing.T) {
	url := pgtest.New(t)
	d, relay := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	d.Sync("court")
	d.Do("UPDATE outbox.retention SET keep = '2 months' WHERE what = 'log'")
	for _, key := range []string{"forgotten", "open", "logged lately", "updated lately"} {
		d.Do("INSERT INTO outbox.external_ref (sync, key, external_id, event_seq, updated_at) VALUES ('court', $1, 'X', 1, now() - interval '100 days')", key)
	}
	d.Do("UPDATE outbox.external_ref SET updated_at = now() WHERE key = 'updated lately'")
	d.Event("open")
	d.Past("INSERT INTO outbox.delivery_log (at, sync, key, outcome, claim) VALUES (now() - interval '50 days', 'court', 'logged lately', 'filtered', gen_random_uuid())")
	d.Past("INSERT INTO outbox.delivery_log (at, sync, key, outcome, claim) VALUES (now(), 'other', 'forgotten', 'delivered', gen_random_uuid())")
	// A reference is being recorded meanwhile: it is not removed, and the call does not wait for it.
	recording := outboxtest.Connect(t, url)
	recording.Do("BEGIN")
	recording.Do("INSERT INTO outbox.external_ref (sync, key, external_id, event_seq, updated_at) VALUES ('other', 'k', 'X', 1, now() - interval '100 days')")
	if got := maintain(relay); !slices.Contains(got, "references removed 1") {
		t.Errorf("maintain did %v", got)
	}
	recording.Do("COMMIT")
	recording.Do("BEGIN")
	recording.Do("UPDATE outbox.external_ref SET updated_at = now() WHERE sync = 'other'")
	maintain(relay) // while the recording is open
	recording.Do("COMMIT")
	if got, want := outboxtest.List[string](d, "SELECT key FROM outbox.external_ref ORDER BY key"), []string{"k", "logged lately", "open", "updated lately"}; !slices.Equal(got, want) {
		t.Errorf("references %v, want %v", got, want)
	}
	// Several calls find all old references of a large table. Each call reads a bounded part.
	d.Do("INSERT INTO outbox.external_ref (sync, key, external_id, event_seq, updated_at) SELECT 'court', 'many ' || n, repeat('x', 400), 1, now() - interval '100 days' FROM generate_series(1, 5000) AS n")
	for n := 0; outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.external_ref WHERE key LIKE 'many %'") > 0; n++ {
		if n == 20 {
			t.Fatal("after 20 calls some of 5000 references are left")
		}
		maintain(relay)
	}
}

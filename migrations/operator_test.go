package migrations_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

const anID = "018f0000-0000-7000-8000-0000000000ff"

// login is the user that a URL logs in.
func login(t testing.TB, databaseURL string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	return u.User.Username()
}

func TestUpdateOfStateIsACompleteRequeue(t *testing.T) {
	url := pgtest.New(t)
	admin := connect(t, url)
	operatorURL := pgtest.AsRole(t, url, "outbox_operator")
	operator := connect(t, operatorURL)
	relay := store(t, url)
	admin.sync("court")
	first := admin.event("k")
	admin.event("k")
	admin.fail(first)
	if d := claim(t, relay); len(d) != 0 || admin.lane("k") != "stopped" {
		t.Fatalf("claimed %d behind a failed one, lane %s", len(d), admin.lane("k"))
	}
	before := one[string](admin, "SELECT concat(event_seq, key, created_at, revision, body_sha256, total_attempts) FROM outbox.delivery WHERE event_id = $1::text::uuid", first)

	operator.do("SET lockstep.actor = 'Ada'")
	operator.do("SET lockstep.reason = 'courtroom added'")
	if n := operator.do("UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed' AND error_class = 'permanent'"); n != 1 {
		t.Fatalf("%d rows requeued, want 1", n)
	}

	if !one[bool](admin, `SELECT state = 'pending' AND attempts = 0 AND charged = 0 AND spent_ms = 0 AND crashes = 0
	       AND due_at BETWEEN now() - interval '1 minute' AND now()
	       AND num_nulls(error_class, error, claim, claimed_by, lease_until, mapping_version) = 6
	       AND (SELECT d.body IS NULL FROM outbox.delivery AS d WHERE d.event_id = o.event_id)
	  FROM outbox.open_delivery AS o WHERE event_id = $1::text::uuid`, first) {
		t.Error("the requeued row kept something of its old life")
	}
	after := one[string](admin, "SELECT concat(event_seq, key, created_at, revision, body_sha256, total_attempts) FROM outbox.delivery WHERE event_id = $1::text::uuid", first)
	if after != before {
		t.Errorf("place, age, digest and count of all attempts: %s, before %s", after, before)
	}
	if got := admin.states("k"); got != "pending queued" {
		t.Errorf("states of the key: %s", got)
	}
	if d := only(t, relay); d.Event.ID != first || d.Attempts != 0 || d.Body != nil {
		t.Errorf("claimed %+v, want the requeued one with a new life", d)
	}
	got := one[string](admin, `SELECT concat_ws('|', outcome, actor, reason, event_id, event_type, key, attempt, error_class, error) FROM outbox.delivery_log`)
	want := "requeued|" + login(t, operatorURL) + "/Ada|courtroom added|" + first + "|scheduling:updated|k|3|permanent|HTTP 422: no such courtroom"
	if got != want {
		t.Errorf("log row %s, want %s", got, want)
	}
}

func TestHandMadeTransitionsAreRefused(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := connect(t, url), as(t, url, "outbox_operator")
	admin.sync("court")
	put := map[string]struct {
		arrange func(id string)
		want    string // states of the key
	}{
		"pending": {func(string) {}, "pending"},
		"sending": {admin.send, "sending"},
		"failed":  {admin.fail, "failed"},
		"queued":  {func(string) {}, "pending queued"},
		"retry": {func(id string) {
			admin.do("UPDATE outbox.delivery SET state = 'retry', due_at = now() + interval '1 hour' WHERE event_id = $1", id)
		}, "retry"},
	}
	for from, put := range put {
		id := admin.event(from)
		if from == "queued" {
			id = admin.event(from)
		}
		put.arrange(id)
		for _, to := range []string{"pending", "queued", "sending", "retry", "failed", "done"} {
			if from == "failed" && to == "pending" {
				continue // the requeue
			}
			t.Run(from+" to "+to, func(t *testing.T) {
				const update = "UPDATE outbox.delivery SET state = $2 WHERE event_id = $1"
				words := []string{id, `"court"`, "is " + from, `"` + to + `"`, "Only failed deliveries can be requeued", "outbox.discard", "outbox.pause"}
				(db{operator.Conn, t}).refuses(wrongState, update, words, id, to)
				// Neither may the owner: the trigger guards, not the privileges.
				(db{admin.Conn, t}).refuses(wrongState, update, nil, id, to)
				if got := (db{admin.Conn, t}).states(from); got != put.want {
					t.Errorf("after the refusal: %s, want %s", got, put.want)
				}
			})
		}
	}
}

func TestOperatorIsRefusedWhatIsNotHis(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := connect(t, url), as(t, url, "outbox_operator")
	admin.sync("court")
	admin.fail(admin.event("k"))
	statements := []string{
		"DELETE FROM outbox.delivery",
		"TRUNCATE outbox.delivery",
		"INSERT INTO outbox.delivery (sync, key, event_seq, event_id) VALUES ('court', 'k', 99, gen_random_uuid())",
		"INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', '{}')",
		"UPDATE outbox.event SET payload = '{}'",
		"DELETE FROM outbox.event",
		"UPDATE outbox.sync SET patterns = '{x}'",
		"UPDATE outbox.sync SET hold_kind = NULL",
		"DELETE FROM outbox.sync",
		"INSERT INTO outbox.hold (sync, kind, reason, by) VALUES ('court', 'operator', 'r', 'me')",
		"DELETE FROM outbox.hold",
		"UPDATE outbox.external_ref SET etag = 'x'",
		"INSERT INTO outbox.delivery_log (sync, outcome) VALUES ('court', 'delivered')",
		"UPDATE outbox.delivery_log SET actor = 'x'",
		"DELETE FROM outbox.delivery_log",
		"TRUNCATE outbox.delivery_log",
		"INSERT INTO outbox.lane (sync, key, due_at) VALUES ('court', 'k', now())",
		"UPDATE outbox.lane SET due_at = now()",
		"DELETE FROM outbox.lane",
		"SELECT outbox.maintain()",
		"SELECT outbox.log_action(d, 'delivered', 'r') FROM outbox.delivery AS d",
		"SELECT outbox.emit('t', 'k', '{}')",
	}
	for _, column := range list[string](admin, "SELECT attname::text FROM pg_attribute WHERE attrelid = 'outbox.delivery'::regclass AND attnum > 0 AND attname <> 'state' AND attgenerated = ''") {
		statements = append(statements, fmt.Sprintf("UPDATE outbox.delivery SET %s = %[1]s", column), fmt.Sprintf("UPDATE outbox.delivery SET state = 'pending', %s = %[1]s", column))
	}
	for _, statement := range statements {
		t.Run(statement, func(t *testing.T) { (db{operator.Conn, t}).refuses(denied, statement, nil) })
	}
}

func TestOperatorsFunctionsRefuse(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := connect(t, url), as(t, url, "outbox_operator")
	admin.sync("court")
	pending, sending, failed := admin.event("p"), admin.event("s"), admin.event("f")
	admin.send(sending)
	admin.fail(failed)
	admin.do("INSERT INTO outbox.sync (name, patterns) VALUES ('later', '{*}')") // takes none of these events
	tests := []struct {
		name, condition, call string
		words                 []string
	}{
		{"requeue of an unknown sync", noData, "requeue('cuort')", []string{`"cuort" is not registered`, "Registered: court, later"}},
		{"requeue of no sync", noData, "requeue(NULL)", []string{"not registered"}},
		{"requeue of an event that waits", wrongState, "requeue('court', event_id => '" + pending + "')", []string{"no failed delivery", "it is pending", "why_not_delivered"}},
		{"requeue of an event being sent", wrongState, "requeue('court', event_id => '" + sending + "')", []string{"it is sending"}},
		{"requeue of an unknown event", wrongState, "requeue('court', event_id => '" + anID + "')", []string{"no open delivery", "outbox.replay"}},
		{"requeue of an event under another key", wrongState, "requeue('court', 'x', '" + failed + "')", []string{"no failed delivery", `of key "x"`}},
		{"discard of an unknown sync", noData, "discard('cuort', '" + failed + "', 'r')", []string{"not registered"}},
		{"discard without a reason", noReason, "discard('court', '" + failed + "', ' ')", []string{"a reason is required"}},
		{"discard with reason null", noReason, "discard('court', '" + failed + "', NULL)", []string{"a reason is required"}},
		{"discard of an event being sent", wrongState, "discard('court', '" + sending + "', 'r')", []string{"is being sent", "relay-1", "until", "outbox.pause"}},
		{"discard of an unknown event", noData, "discard('court', '" + anID + "', 'r')", []string{"no open delivery", "why_not_delivered"}},
		{"discard for a sync that never had it", noData, "discard('later', '" + failed + "', 'r')", []string{"no open delivery"}},
		{"replay of an unknown sync", noData, "replay('cuort', '" + failed + "', 'r')", []string{"not registered"}},
		{"replay without a reason", noReason, "replay('court', '" + failed + "', '')", []string{"a reason is required"}},
		{"replay of an unknown event", noData, "replay('court', '" + anID + "', 'r')", []string{"does not exist", "retention"}},
		{"replay of an event still open", wrongState, "replay('court', '" + failed + "', 'r')", []string{"still failed", "outbox.requeue"}},
		{"replay of an event never delivered", wrongState, "replay('later', '" + failed + "', 'r')", []string{"never delivered"}},
		{"pause of an unknown sync", noData, "pause('cuort', 'r')", []string{"not registered"}},
		{"pause without a reason", noReason, "pause('court', '')", []string{"a reason is required"}},
		{"resume of an unknown sync", noData, "resume('cuort')", []string{"not registered"}},
		{"retire of an unknown sync", noData, "retire('cuort', 'r')", []string{"not registered"}},
		{"retire without a reason", noReason, "retire('court', NULL)", []string{"a reason is required"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			(db{operator.Conn, t}).refuses(tt.condition, "SELECT outbox."+tt.call, tt.words)
		})
	}
	if n := one[int](admin, "SELECT count(*)::int FROM outbox.delivery_log"); n != 0 {
		t.Errorf("%d log rows about refused actions", n)
	}
}

func TestRequeueChoosesBySyncKeyAndEvent(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := connect(t, url), as(t, url, "outbox_operator")
	admin.sync("court")
	admin.sync("clinic")
	a, b := admin.event("a"), admin.event("b")
	tests := []struct {
		name, call, want string // deliveries that are pending afterwards
		n                int64
	}{
		{"all of a sync", "requeue('court')", "court/a court/b", 2},
		{"one key", "requeue('court', 'b')", "court/b", 1},
		{"one event", "requeue('clinic', event_id => '" + a + "')", "clinic/a", 1},
		{"key and event, with a reason", "requeue('clinic', 'b', '" + b + "', 'mapping repaired')", "clinic/b", 1},
		{"a key without failed deliveries", "requeue('clinic', 'c')", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			admin, operator := db{admin.Conn, t}, db{operator.Conn, t}
			admin.do("BEGIN")
			admin.fail(a)
			admin.fail(b)
			admin.do("COMMIT")
			logged := one[int](admin, "SELECT count(*)::int FROM outbox.delivery_log")
			if n := one[int64](operator, "SELECT outbox."+tt.call); n != tt.n {
				t.Errorf("requeued %d, want %d", n, tt.n)
			}
			got := strings.Join(list[string](admin, "SELECT sync || '/' || key FROM outbox.delivery WHERE state = 'pending' ORDER BY sync DESC, key"), " ")
			if got != tt.want {
				t.Errorf("pending are %s, want %s", got, tt.want)
			}
			rows := list[string](admin, "SELECT outcome || coalesce(' ' || reason, '') FROM outbox.delivery_log ORDER BY id OFFSET $1", logged)
			if int64(len(rows)) != tt.n {
				t.Errorf("log rows %v, want %d", rows, tt.n)
			}
			for _, row := range rows {
				want := "requeued"
				if strings.Contains(tt.call, "repaired") {
					want += " mapping repaired"
				}
				if row != want {
					t.Errorf("log row %q, want %q", row, want)
				}
			}
			admin.do("UPDATE outbox.delivery SET state = 'retry', due_at = now() WHERE state = 'pending'")
		})
	}
	if got := one[string](operator, "SELECT coalesce(current_setting('lockstep.reason', true), '')"); got != "" {
		t.Errorf("a requeue's reason %q stays for the statements after it", got)
	}
}

func TestDiscardGivesUpForGoodAndLetsTheNextGo(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := connect(t, url), as(t, url, "outbox_operator")
	admin.sync("court")
	first, second := admin.event("k"), admin.event("k")
	admin.fail(first)
	claim(t, store(t, url))
	if states, lane := admin.states("k"), admin.lane("k"); states != "failed queued" || lane != "stopped" {
		t.Fatalf("states %q, lane %s; want the second to wait behind the failed one", states, lane)
	}
	operator.do("SELECT outbox.discard('court', $1, 'hearing was in error')", first)
	if states, lane := admin.states("k"), admin.lane("k"); states != "pending" || lane != "due" {
		t.Errorf("states %q, lane %s; want the next of the key to be due", states, lane)
	}
	got := one[string](admin, "SELECT concat_ws('|', outcome, actor, reason, event_id, attempt, error_class) FROM outbox.delivery_log")
	if want := "discarded|" + login(t, operator.Config().ConnString()) + "|hearing was in error|" + first + "|3|permanent"; got != want {
		t.Errorf("log row %s, want %s", got, want)
	}
	if d := only(t, store(t, url)); d.Event.ID != second {
		t.Errorf("claimed %s, want the next of the key", d.Event.ID)
	}
	operator.refuses(noData, "SELECT outbox.discard('court', $1, 'again')", []string{"no open delivery"}, first)
	operator.refuses(wrongState, "SELECT outbox.requeue('court', event_id => $1)", []string{"no open delivery"}, first)
}

// deliver finishes the open delivery of an event, as a recording does.
func (d db) deliver(event string) {
	d.t.Helper()
	d.do(`WITH gone AS (DELETE FROM outbox.delivery WHERE event_id = $1 RETURNING *)
	      INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, attempt, outcome, code, request_sha256, revision, claim, relay)
	      SELECT sync, event_id, 'scheduling:updated', key, total_attempts + 1, 'delivered', 'HTTP 201', 'cd', revision, gen_random_uuid(), 'relay-1' FROM gone`, event)
	d.do(`UPDATE outbox.lane AS l SET claim = NULL, claimed_by = NULL, due_at = clock_timestamp(), crashes = 0
	       WHERE l.key = (SELECT key FROM outbox.event WHERE id = $1)`, event)
	d.do(`DELETE FROM outbox.lane AS l
	       WHERE l.key = (SELECT key FROM outbox.event WHERE id = $1)
	         AND NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = l.sync AND d.key = l.key)`, event)
}

func TestReplayIsANewDeliveryAtTheEndOfTheLine(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := connect(t, url), as(t, url, "outbox_operator")
	admin.sync("court")
	id := admin.event("k")
	admin.deliver(id)
	waiting := admin.event("k")
	for n := 2; n <= 4; n++ {
		operator.do("SELECT outbox.replay('court', $1, 'the court lost it')", id)
		order := list[string](admin, "SELECT event_id::text FROM outbox.delivery WHERE key = 'k' ORDER BY event_seq")
		if len(order) != 2 || order[0] != waiting || order[1] != id {
			t.Fatalf("line of the key: %v, want %s before the replayed %s", order, waiting, id)
		}
		got := one[string](admin, `SELECT concat_ws('|', state, revision, attempts, total_attempts, coalesce(body_sha256, 'none'), (event_seq > (SELECT max(seq) FROM outbox.event)))
		                             FROM outbox.delivery WHERE event_id = $1::text::uuid`, id)
		// The digest is left empty: with it the relay would count the revision up once more.
		if want := fmt.Sprintf("pending|%d|0|%d|none|t", n, n-1); got != want {
			t.Errorf("replay %d: %s, want %s", n-1, got, want)
		}
		operator.refuses(wrongState, "SELECT outbox.replay('court', $1, 'twice')", []string{"still queued"}, id)
		if n == 3 {
			operator.do("SELECT outbox.discard('court', $1, 'not needed')", id) // its revision is spent nevertheless
			admin.do("UPDATE outbox.sync SET last_delivered_at = now()")
			operator.do("SELECT outbox.replay('court', $1, 'needed')", id)
			if rev := one[int](admin, "SELECT revision FROM outbox.delivery WHERE event_id = $1::text::uuid", id); rev != 4 {
				t.Errorf("revision after a discarded replay %d, want 4", rev)
			}
			break
		}
		admin.deliver(id)
	}
	if n := one[int](admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'replayed' AND reason IN ('the court lost it', 'needed') AND actor IS NOT NULL AND event_id = $1::text::uuid", id); n != 3 {
		t.Errorf("%d replayed rows in the log, want 3", n)
	}
}

func TestReplaysAtOnceGiveOneDelivery(t *testing.T) {
	url := pgtest.New(t)
	admin, first, second := connect(t, url), as(t, url, "outbox_operator"), as(t, url, "outbox_operator")
	admin.sync("court")
	id := admin.event("k")
	admin.deliver(id)
	const replay = "SELECT outbox.replay('court', $1, 'r')"
	first.do("BEGIN")
	first.do(replay, id)
	late := second.begin(replay, id)
	admin.blocked(second.PgConn().PID())
	first.do("COMMIT")
	second.judge(second.ended(late), wrongState, replay, []string{"still pending"})
	if got := admin.states("k"); got != "pending" {
		t.Errorf("deliveries %q, want one", got)
	}
}

func TestHoldsOfDifferentKindsAreKeptApart(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := connect(t, url), as(t, url, "outbox_operator")
	relay := store(t, url)
	admin.sync("court")
	hold := func(kind, reason string) {
		t.Helper()
		admin.do("INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('court', $1, now() + interval '1 hour', $2, 'relay-1')", kind, reason)
	}
	steps := []struct {
		name string
		do   func()
		want string // kind|reason, as outbox.sync shows it
	}{
		{"window", func() { hold("window", "night") }, "window|night"},
		{"throttle over it", func() { hold("throttle", "HTTP 429") }, "throttle|HTTP 429"},
		{"breaker over it", func() { hold("breaker", "10 in a row") }, "breaker|10 in a row"},
		{"auth over it", func() { hold("auth", "HTTP 401") }, "auth|HTTP 401"},
		{"backfill over it", func() { hold("backfill", "registered") }, "backfill|registered"},
		{"pause over it", func() { operator.do("SELECT outbox.pause('court', 'court asked')") }, "operator|court asked"},
		{"pause again with another reason", func() { operator.do("SELECT outbox.pause('court', 'court asked twice')") }, "operator|court asked twice"},
		{"a weaker one ends", func() { admin.do("DELETE FROM outbox.hold WHERE kind = 'throttle'") }, "operator|court asked twice"},
		{"a probe lifts auth and breaker only", func() {
			if err := relay.Lift(t.Context(), "court", ""); err != nil {
				t.Fatal(err)
			}
		}, "operator|court asked twice"},
		{"resume lifts the operator's only", func() { operator.do("SELECT outbox.resume('court')") }, "backfill|registered"},
		{"resume without a pause", func() { operator.do("SELECT outbox.resume('court')") }, "backfill|registered"},
		{"backfill ends", func() { admin.do("DELETE FROM outbox.hold WHERE kind = 'backfill'") }, "window|night"},
		{"window ends", func() { admin.do("DELETE FROM outbox.hold WHERE kind = 'window'") }, "|"},
	}
	for _, step := range steps {
		step.do()
		got := one[string](admin, "SELECT coalesce(hold_kind, '') || '|' || coalesce(hold_reason, '') FROM outbox.sync WHERE name = 'court'")
		if got != step.want {
			t.Errorf("after %s: outbox.sync shows %s, want %s", step.name, got, step.want)
		}
		view := one[string](admin, "SELECT coalesce(hold, '') || '|' || coalesce(hold_reason, '') FROM outbox.status WHERE sync = 'court'")
		if view != step.want {
			t.Errorf("after %s: outbox.status shows %s, want %s", step.name, view, step.want)
		}
	}
	got := strings.Join(list[string](admin, "SELECT outcome || coalesce(' ' || reason, '') FROM outbox.delivery_log WHERE actor = $1 ORDER BY id",
		login(t, operator.Config().ConnString())), ", ")
	if want := "paused court asked, paused court asked twice, resumed"; got != want {
		t.Errorf("log: %s, want %s", got, want)
	}
}

func TestRetireEndsFanOutAndKeepsOpenWork(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := connect(t, url), as(t, url, "outbox_operator")
	admin.sync("court")
	admin.event("k")
	operator.do("SELECT outbox.retire('court', 'closed')")
	operator.do("SELECT outbox.retire('court', 'closed again')") // a notice, no second row
	admin.event("k")
	if got := admin.states("k"); got != "pending" {
		t.Errorf("deliveries %q, want the one from before", got)
	}
	if got := list[string](admin, "SELECT outcome || ' ' || reason FROM outbox.delivery_log"); len(got) != 1 || got[0] != "retired closed" {
		t.Errorf("log %v, want one row: retired closed", got)
	}
}

func TestActorIsTheLoginAndAtMostANameBesides(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := connect(t, url), as(t, url, "outbox_operator")
	admin.sync("court")
	name := login(t, operator.Config().ConnString())
	tests := []struct{ name, actor, want string }{
		{"nobody named", "", name},
		{"a person", "Ada Lovelace", name + "/Ada Lovelace"},
		{"a very long name", strings.Repeat("x", 500), name + "/" + strings.Repeat("x", 100)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			operator, admin := db{operator.Conn, t}, db{admin.Conn, t}
			operator.do("SELECT set_config('lockstep.actor', $1, false)", tt.actor)
			operator.do("SELECT outbox.pause('court', 'r')")
			got := one[string](admin, "SELECT actor FROM outbox.delivery_log ORDER BY id DESC LIMIT 1")
			if by := one[string](admin, "SELECT hold_by FROM outbox.sync"); got != tt.want || by != tt.want {
				t.Errorf("actor %q, hold by %q, want %q", got, by, tt.want)
			}
		})
	}
}

func TestHoldsThatChangeAtOnceDoNotOverlookEachOther(t *testing.T) {
	url := pgtest.New(t)
	admin, operator, relay := connect(t, url), as(t, url, "outbox_operator"), as(t, url, "outbox_relay")
	admin.sync("court")
	admin.do("INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('court', 'throttle', now(), 'HTTP 429', 'relay-1')")
	operator.do("BEGIN")
	operator.do("SELECT outbox.pause('court', 'night')")
	ends := relay.begin("DELETE FROM outbox.hold WHERE sync = 'court' AND kind = 'throttle'")
	admin.blocked(relay.PgConn().PID())
	operator.do("COMMIT")
	must(t, relay.ended(ends))
	if got := one[string](admin, "SELECT coalesce(hold_kind, 'none') FROM outbox.sync"); got != "operator" {
		t.Errorf("outbox.sync shows %s after a throttle that ended beside a pause, want operator", got)
	}
}

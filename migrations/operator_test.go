package migrations_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

const anID = "018f0000-0000-7000-8000-0000000000ff"

// login is the user of a URL.
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
	admin := outboxtest.Connect(t, url)
	operatorURL := pgtest.AsRole(t, url, "outbox_operator")
	operator := outboxtest.Connect(t, operatorURL)
	relay := outboxtest.OpenRelay(t, url)
	admin.Sync("court")
	first := admin.Event("k")
	admin.Event("k")
	admin.Fail(first)
	if d := outboxtest.Claim(t, relay); len(d) != 0 || admin.Lane("k") != "stopped" {
		t.Fatalf("claimed %d behind a failed one, lane %s", len(d), admin.Lane("k"))
	}
	before := outboxtest.One[string](admin, "SELECT concat(event_seq, key, created_at, revision, body_sha256, total_attempts) FROM outbox.delivery WHERE event_id = $1::text::uuid", first)

	operator.Do("SET lockstep.actor = 'Ada'")
	operator.Do("SET lockstep.reason = 'courtroom added'")
	if n := operator.Do("UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed' AND error_class = 'permanent'"); n != 1 {
		t.Fatalf("%d rows requeued, want 1", n)
	}

	if !outboxtest.One[bool](admin, `SELECT state = 'pending' AND attempts = 0 AND charged = 0 AND unclear = 0 AND spent_ms = 0 AND crashes = 0
	       AND due_at BETWEEN now() - interval '1 minute' AND now()
	       AND num_nulls(error_class, error, claim, claimed_by, lease_until) = 5
	       AND (SELECT d.body IS NULL FROM outbox.delivery AS d WHERE d.event_id = o.event_id)
	  FROM outbox.open_delivery AS o WHERE event_id = $1::text::uuid`, first) {
		t.Error("the requeued row kept something of its old life")
	}
	after := outboxtest.One[string](admin, "SELECT concat(event_seq, key, created_at, revision, body_sha256, total_attempts) FROM outbox.delivery WHERE event_id = $1::text::uuid", first)
	if after != before {
		t.Errorf("place, age, digest and count of all attempts: %s, before %s", after, before)
	}
	if got := admin.States("k"); got != "pending queued" {
		t.Errorf("states of the key: %s", got)
	}
	if d := outboxtest.Only(t, relay); d.Event.ID != first || d.Attempts != 0 || d.Body != nil {
		t.Errorf("claimed %+v, want the requeued one with a new life", d)
	}
	got := outboxtest.One[string](admin, `SELECT concat_ws('|', outcome, actor, reason, event_id, event_type, key, attempt, error_class, error) FROM outbox.delivery_log`)
	want := "requeued|" + login(t, operatorURL) + "/Ada|courtroom added|" + first + "|scheduling:updated|k|3|permanent|HTTP 422: no such courtroom"
	if got != want {
		t.Errorf("log row %s, want %s", got, want)
	}
}

func TestHandMadeTransitionsAreRefused(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	put := map[string]struct {
		arrange func(id string)
		want    string // states of the key
	}{
		"pending": {func(string) {}, "pending"},
		"sending": {admin.Send, "sending"},
		"failed":  {admin.Fail, "failed"},
		"queued":  {func(string) {}, "pending queued"},
		"retry": {func(id string) {
			admin.Do("UPDATE outbox.delivery SET state = 'retry', due_at = now() + interval '1 hour' WHERE event_id = $1", id)
		}, "retry"},
	}
	for from, put := range put {
		id := admin.Event(from)
		if from == "queued" {
			id = admin.Event(from)
		}
		put.arrange(id)
		for _, to := range []string{"pending", "queued", "sending", "retry", "failed", "done"} {
			if from == "failed" && to == "pending" {
				continue // the requeue
			}
			t.Run(from+" to "+to, func(t *testing.T) {
				const update = "UPDATE outbox.delivery SET state = $2 WHERE event_id = $1"
				words := []string{id, `"court"`, "is " + from, `"` + to + `"`, "Only failed deliveries can be requeued", "outbox.discard", "outbox.pause"}
				operator.With(t).Refuses(wrongState, update, words, id, to)
				// The owner may not do it either, because the trigger refuses it.
				admin.With(t).Refuses(wrongState, update, nil, id, to)
				if got := admin.With(t).States(from); got != put.want {
					t.Errorf("after the refusal: %s, want %s", got, put.want)
				}
			})
		}
	}
}

func TestOperatorIsRefusedEverythingElse(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	admin.Fail(admin.Event("k"))
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
	for _, column := range outboxtest.List[string](admin, "SELECT attname::text FROM pg_attribute WHERE attrelid = 'outbox.delivery'::regclass AND attnum > 0 AND attname <> 'state' AND attgenerated = ''") {
		statements = append(statements, fmt.Sprintf("UPDATE outbox.delivery SET %s = %[1]s", column), fmt.Sprintf("UPDATE outbox.delivery SET state = 'pending', %s = %[1]s", column))
	}
	for _, statement := range statements {
		t.Run(statement, func(t *testing.T) { operator.With(t).Refuses(denied, statement, nil) })
	}
}

func TestOperatorsFunctionsRefuse(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	pending, sending, failed := admin.Event("p"), admin.Event("s"), admin.Event("f")
	admin.Send(sending)
	admin.Fail(failed)
	admin.Do("INSERT INTO outbox.sync (name, patterns) VALUES ('later', '{*}')") // takes none of these events
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
		{"discard of everything of an unknown sync", noData, "discard_all('cuort', 'r')", []string{"not registered"}},
		{"discard of everything without a reason", noReason, "discard_all('court', '')", []string{"a reason is required"}},
		{"discard of everything of a sync that gets events", wrongState, "discard_all('court', 'r')", []string{`"court" still gets events`, "outbox.retire"}},
		{"replay of an unknown sync", noData, "replay('cuort', '" + failed + "', 'r')", []string{"not registered"}},
		{"replay without a reason", noReason, "replay('court', '" + failed + "', '')", []string{"a reason is required"}},
		{"replay of an unknown event", noData, "replay('court', '" + anID + "', 'r')", []string{"does not exist", "retention"}},
		{"replay of an event still open", wrongState, "replay('court', '" + failed + "', 'r')", []string{"still failed", "outbox.requeue"}},
		{"replay of an event never delivered", wrongState, "replay('later', '" + failed + "', 'r')", []string{"never delivered"}},
		{"pause of an unknown sync", noData, "pause('cuort', 'r')", []string{"not registered"}},
		{"pause without a reason", noReason, "pause('court', '')", []string{"a reason is required"}},
		{"pause that ends in the past", badParameter, "pause('court', 'r', clock_timestamp() - interval '1 second')", []string{"cannot end at", "later time"}},
		{"pause that ends never", badParameter, "pause('court', 'r', 'infinity')", []string{"cannot end at infinity", "outbox.resume"}},
		{"undo of the retirement of an unknown sync", noData, "resume_retired('cuort', 'r')", []string{"not registered"}},
		{"undo of a retirement without a reason", noReason, "resume_retired('court', ' ')", []string{"a reason is required"}},
		{"a reference of an unknown sync", noData, "set_reference('cuort', 'k', 'X', NULL, 'r')", []string{"not registered"}},
		{"a reference without a reason", noReason, "set_reference('court', 'k', 'X', NULL, '')", []string{"a reason is required"}},
		{"a reference without a key", badParameter, "set_reference('court', '', 'X', NULL, 'r')", []string{"needs a key"}},
		{"a reference with an id that is too long", badParameter, "set_reference('court', 'k', repeat('x', 513), NULL, 'r')", []string{`key "k"`, "512 bytes"}},
		{"a reference with an id that has a line break", badParameter, `set_reference('court', 'k', E'X\n', NULL, 'r')`, []string{"characters that print", "another record"}},
		{"a reference with an ETag that has a line break", badParameter, `set_reference('court', 'k', 'X', E'"1\n"', 'r')`, []string{"characters that print"}},
		{"a reference with an ETag without quotes", badParameter, "set_reference('court', 'k', 'X', 'v2', 'r')", []string{`ETag of key "k"`, `'"v2"'`, `W/`}},
		{"a reference with two ETags", badParameter, `set_reference('court', 'k', 'X', '"1", "2"', 'r')`, []string{"with its quotes"}},
		{"learned values in a list", badParameter, `set_reference('court', 'k', 'X', NULL, 'r', '["a"]')`, []string{`key "k"`, "object of texts"}},
		{"a learned value that is a number", badParameter, `set_reference('court', 'k', 'X', NULL, 'r', '{"n": 4}')`, []string{"object of texts", `{"versionNumber": "4"}`}},
		{"a learned value that is null", badParameter, `set_reference('court', 'k', 'X', NULL, 'r', '{"n": null}')`, []string{"object of texts"}},
		{"a learned value in a list", badParameter, `set_reference('court', 'k', 'X', NULL, 'r', '{"n": ["4"]}')`, []string{"object of texts"}},
		{"a learned value that is too long", badParameter, `set_reference('court', 'k', 'X', NULL, 'r', jsonb_build_object('n', repeat('x', 513)))`, []string{"learned value", "512 bytes"}},
		{"a learned value that has a line break", badParameter, `set_reference('court', 'k', 'X', NULL, 'r', '{"n": "a\nb"}')`, []string{"characters that print"}},
		{"a learned name that has a line break", badParameter, `set_reference('court', 'k', 'X', NULL, 'r', '{"a\nb": "4"}')`, []string{"characters that print"}},
		{"a learned value without a name", badParameter, `set_reference('court', 'k', 'X', NULL, 'r', '{"": "4"}')`, []string{"no empty name or value"}},
		{"a learned value that is empty", badParameter, `set_reference('court', 'k', 'X', NULL, 'r', '{"n": ""}')`, []string{"no empty name or value"}},
		{"too many learned values", badParameter, "set_reference('court', 'k', 'X', NULL, 'r', (SELECT jsonb_object_agg('n' || n, '4') FROM generate_series(1, 17) AS n))", []string{"at most 16 learned values"}},
		{"resume of an unknown sync", noData, "resume('cuort')", []string{"not registered"}},
		{"retire of an unknown sync", noData, "retire('cuort', 'r')", []string{"not registered"}},
		{"retire without a reason", noReason, "retire('court', NULL)", []string{"a reason is required"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			operator.With(t).Refuses(tt.condition, "SELECT outbox."+tt.call, tt.words)
		})
	}
	if n := outboxtest.One[int](admin, "SELECT count(*)::int FROM outbox.delivery_log"); n != 0 {
		t.Errorf("%d log rows about refused actions", n)
	}
}

func TestRequeueChoosesBySyncKeyAndEvent(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	admin.Sync("clinic")
	a, b := admin.Event("a"), admin.Event("b")
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
			admin, operator := admin.With(t), operator.With(t)
			admin.Do("BEGIN")
			admin.Fail(a)
			admin.Fail(b)
			admin.Do("COMMIT")
			logged := outboxtest.One[int](admin, "SELECT count(*)::int FROM outbox.delivery_log")
			if n := outboxtest.One[int64](operator, "SELECT outbox."+tt.call); n != tt.n {
				t.Errorf("requeued %d, want %d", n, tt.n)
			}
			got := strings.Join(outboxtest.List[string](admin, "SELECT sync || '/' || key FROM outbox.delivery WHERE state = 'pending' ORDER BY sync DESC, key"), " ")
			if got != tt.want {
				t.Errorf("pending are %s, want %s", got, tt.want)
			}
			rows := outboxtest.List[string](admin, "SELECT outcome || coalesce(' ' || reason, '') FROM outbox.delivery_log ORDER BY id OFFSET $1", logged)
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
			admin.Do("UPDATE outbox.delivery SET state = 'retry', due_at = now() WHERE state = 'pending'")
		})
	}
	if got := outboxtest.One[string](operator, "SELECT coalesce(current_setting('lockstep.reason', true), '')"); got != "" {
		t.Errorf("a requeue's reason %q stays for the statements after it", got)
	}
}

func TestDiscardGivesUpForGoodAndLetsTheNextGo(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	first, second := admin.Event("k"), admin.Event("k")
	admin.Fail(first)
	outboxtest.Claim(t, outboxtest.OpenRelay(t, url))
	if states, lane := admin.States("k"), admin.Lane("k"); states != "failed queued" || lane != "stopped" {
		t.Fatalf("states %q, lane %s; want the second to wait behind the failed one", states, lane)
	}
	operator.Do("SELECT outbox.discard('court', $1, 'hearing was in error')", first)
	if states, lane := admin.States("k"), admin.Lane("k"); states != "pending" || lane != "due" {
		t.Errorf("states %q, lane %s; want the next of the key to be due", states, lane)
	}
	got := outboxtest.One[string](admin, "SELECT concat_ws('|', outcome, actor, reason, event_id, attempt, error_class) FROM outbox.delivery_log")
	if want := "discarded|" + login(t, operator.Config().ConnString()) + "|hearing was in error|" + first + "|3|permanent"; got != want {
		t.Errorf("log row %s, want %s", got, want)
	}
	if d := outboxtest.Only(t, outboxtest.OpenRelay(t, url)); d.Event.ID != second {
		t.Errorf("claimed %s, want the next of the key", d.Event.ID)
	}
	operator.Refuses(noData, "SELECT outbox.discard('court', $1, 'again')", []string{"no open delivery"}, first)
	operator.Refuses(wrongState, "SELECT outbox.requeue('court', event_id => $1)", []string{"no open delivery"}, first)
}

func TestDiscardAllIsForASyncThatNobodyServes(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	relay := outboxtest.OpenRelay(t, url)
	admin.Sync("court")
	admin.Sync("other")
	failed, pending := admin.Event("k"), admin.Event("k")
	sent := admin.Event("s")
	admin.Fail(failed)
	h := outbox.NewHeartbeat("host", "v1", []string{"court"})
	outboxtest.Must(t, relay.Beat(t.Context(), h))
	claimed := outboxtest.Only(t, relay)
	if claimed.Event.ID != sent {
		t.Fatalf("claimed %+v", claimed)
	}
	operator.Do("SELECT outbox.retire('court', 'closed')")
	const all = "SELECT outbox.discard_all('court', 'the court closed')"
	operator.Refuses(wrongState, all, []string{"is served by relay-1", "restart the relay"})
	outboxtest.Must(t, relay.EndBeat(t.Context(), h))
	operator.Refuses(wrongState, all, []string{"are claimed by relay-1", "leases have ended"})
	operator.Do("BEGIN ISOLATION LEVEL REPEATABLE READ")
	operator.Refuses(wrongState, all, []string{"outbox.discard_all cannot see in a repeatable read transaction"})
	operator.Do("ROLLBACK")

	admin.Dies() // the relay's leases end
	if n := outboxtest.One[int64](operator, all); n != 3 {
		t.Errorf("%d discarded, want 3", n)
	}
	got := outboxtest.List[string](admin, "SELECT concat_ws(' ', outcome, attempt, reason, event_id) FROM outbox.delivery_log WHERE outcome <> 'retired' ORDER BY id")
	want := []string{"unknown 1 " + sent, "discarded 3 the court closed " + failed, "discarded 0 the court closed " + pending, "discarded 0 the court closed " + sent}
	if !slices.Equal(got, want) {
		t.Errorf("log %q, want %q", got, want)
	}
	if got := outboxtest.One[string](admin, "SELECT (SELECT count(*) FROM outbox.delivery WHERE sync = 'court') || ' ' || (SELECT count(*) FROM outbox.lane WHERE sync = 'court') || ' ' || (SELECT count(*) FROM outbox.delivery WHERE sync = 'other')"); got != "0 0 3" {
		t.Errorf("deliveries and lanes that are left, and deliveries of the other sync: %s", got)
	}
	// The relay was not dead but slow. Its answer is known, and changes nothing.
	r := relay.Record(t.Context(), "court", []outbox.Result{outboxtest.Delivered(claimed)})
	if r.Err != nil || !r.Lost[0] {
		t.Errorf("recorded %+v", r)
	}
	if n := outboxtest.One[int64](operator, all); n != 0 {
		t.Errorf("%d discarded at the second time", n)
	}
}

// A writer that began before the sync was retired commits while deliveries are being discarded.
//
//	writer:   inserts an event …                                          commits
//	operator:                    retires the sync, discards, logs it …             removes what it has logged
func TestDiscardAllRemovesNothingThatItDoesNotLog(t *testing.T) {
	url := pgtest.New(t)
	admin, operator, writer := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator"), outboxtest.As(t, url, "outbox_writer")
	admin.Sync("court")
	open := admin.Event("k")
	writer.Do("BEGIN")
	writer.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'late', '{}')")
	operator.Do("SELECT outbox.retire('court', 'closed')")
	admin.Do(`CREATE FUNCTION public.wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NEW; END $$`)
	admin.Do(`CREATE TRIGGER wait_for_test BEFORE INSERT ON outbox.delivery_log FOR EACH ROW EXECUTE FUNCTION public.wait_for_test()`)
	admin.Do("SELECT pg_advisory_lock(42)")
	const all = "SELECT outbox.discard_all('court', 'the court closed')"
	discarding := operator.Begin(all)
	admin.Blocked(operator.PgConn().PID())
	writer.Do("COMMIT")
	admin.Do("SELECT pg_advisory_unlock(42)")
	outboxtest.Must(t, operator.Ended(discarding))
	if got := outboxtest.List[string](admin, "SELECT event_id::text FROM outbox.delivery_log WHERE outcome = 'discarded'"); !slices.Equal(got, []string{open}) {
		t.Errorf("discarded %q, want %s", got, open)
	}
	if got := admin.States("late"); got != "pending" {
		t.Errorf("the late delivery is %q and not in the log, want it to be pending", got)
	}
	if n := outboxtest.One[int64](operator, all); n != 1 {
		t.Errorf("%d discarded at the second time, want the late one", n)
	}
}

func TestReplayIsANewDeliveryAtTheEndOfTheLane(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	id := admin.Event("k")
	admin.Deliver(id)
	waiting := admin.Event("k")
	for n := 2; n <= 4; n++ {
		operator.Do("SELECT outbox.replay('court', $1, 'the court lost it')", id)
		order := outboxtest.List[string](admin, "SELECT event_id::text FROM outbox.delivery WHERE key = 'k' ORDER BY event_seq")
		if len(order) != 2 || order[0] != waiting || order[1] != id {
			t.Fatalf("line of the key: %v, want %s before the replayed %s", order, waiting, id)
		}
		got := outboxtest.One[string](admin, `SELECT concat_ws('|', state, revision, attempts, total_attempts, coalesce(body_sha256, 'none'), (event_seq > (SELECT max(seq) FROM outbox.event)))
		                             FROM outbox.delivery WHERE event_id = $1::text::uuid`, id)
		// The digest is null. With it, the relay would raise the revision again.
		if want := fmt.Sprintf("pending|%d|0|%d|none|t", n, n-1); got != want {
			t.Errorf("replay %d: %s, want %s", n-1, got, want)
		}
		operator.Refuses(wrongState, "SELECT outbox.replay('court', $1, 'twice')", []string{"still queued"}, id)
		if n == 3 {
			operator.Do("SELECT outbox.discard('court', $1, 'not needed')", id) // its revision is spent nevertheless
			admin.Do("UPDATE outbox.sync SET last_delivered_at = now()")
			operator.Do("SELECT outbox.replay('court', $1, 'needed')", id)
			if rev := outboxtest.One[int](admin, "SELECT revision FROM outbox.delivery WHERE event_id = $1::text::uuid", id); rev != 4 {
				t.Errorf("revision after a discarded replay %d, want 4", rev)
			}
			break
		}
		admin.Deliver(id)
	}
	if n := outboxtest.One[int](admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'replayed' AND reason IN ('the court lost it', 'needed') AND actor IS NOT NULL AND event_id = $1::text::uuid", id); n != 3 {
		t.Errorf("%d replayed rows in the log, want 3", n)
	}
}

func TestReplaysAtOnceGiveOneDelivery(t *testing.T) {
	url := pgtest.New(t)
	admin, first, second := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator"), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	id := admin.Event("k")
	admin.Deliver(id)
	const replay = "SELECT outbox.replay('court', $1, 'r')"
	first.Do("BEGIN")
	first.Do(replay, id)
	late := second.Begin(replay, id)
	admin.Blocked(second.PgConn().PID())
	first.Do("COMMIT")
	second.Judge(second.Ended(late), wrongState, replay, []string{"still pending"})
	if got := admin.States("k"); got != "pending" {
		t.Errorf("deliveries %q, want one", got)
	}
}

func TestHoldsOfDifferentKindsAreKeptApart(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	relay := outboxtest.OpenRelay(t, url)
	admin.Sync("court")
	hold := func(kind, reason string) {
		t.Helper()
		admin.Do("INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('court', $1, now() + interval '1 hour', $2, 'relay-1')", kind, reason)
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
		{"pause over it", func() { operator.Do("SELECT outbox.pause('court', 'court asked')") }, "operator|court asked"},
		{"pause again with another reason", func() { operator.Do("SELECT outbox.pause('court', 'court asked twice')") }, "operator|court asked twice"},
		{"a weaker one ends", func() { admin.Do("DELETE FROM outbox.hold WHERE kind = 'throttle'") }, "operator|court asked twice"},
		{"a probe lifts auth and breaker only", func() {
			if err := relay.Lift(t.Context(), "court", ""); err != nil {
				t.Fatal(err)
			}
		}, "operator|court asked twice"},
		{"resume lifts the operator's only", func() { operator.Do("SELECT outbox.resume('court', reason => 'it is\nback')") }, "backfill|registered"},
		{"resume without a pause", func() { operator.Do("SELECT outbox.resume('court')") }, "backfill|registered"},
		{"backfill ends", func() { admin.Do("DELETE FROM outbox.hold WHERE kind = 'backfill'") }, "window|night"},
		{"window ends", func() { admin.Do("DELETE FROM outbox.hold WHERE kind = 'window'") }, "|"},
	}
	for _, step := range steps {
		step.do()
		got := outboxtest.One[string](admin, "SELECT coalesce(hold_kind, '') || '|' || coalesce(hold_reason, '') FROM outbox.sync WHERE name = 'court'")
		if got != step.want {
			t.Errorf("after %s: outbox.sync shows %s, want %s", step.name, got, step.want)
		}
		view := outboxtest.One[string](admin, "SELECT coalesce(hold, '') || '|' || coalesce(hold_reason, '') FROM outbox.status WHERE sync = 'court'")
		if view != step.want {
			t.Errorf("after %s: outbox.status shows %s, want %s", step.name, view, step.want)
		}
	}
	got := strings.Join(outboxtest.List[string](admin, "SELECT outcome || coalesce(' ' || reason, '') FROM outbox.delivery_log WHERE actor = $1 ORDER BY id",
		login(t, operator.Config().ConnString())), ", ")
	if want := "paused court asked, paused court asked twice, resumed it is back"; got != want {
		t.Errorf("log: %s, want %s", got, want)
	}
}

func TestPauseEndsByItself(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	relay := outboxtest.OpenRelay(t, url)
	admin.Sync("court")
	admin.Event("k")
	const held = "SELECT concat_ws(' ', hold, hold_until::text) FROM outbox.status WHERE sync = 'court'"
	for range 2 { // a pause that has ended does not change the next one
		operator.Do("SELECT outbox.pause('court', 'maintenance', '2099-01-31T18:00:00+00')")
		outboxtest.Must(t, relay.EndHolds(t.Context(), "court", time.Minute))
		if d := outboxtest.Claim(t, relay); len(d) != 0 {
			t.Fatal("claimed during the pause")
		}
		if got := outboxtest.One[string](admin, held); !strings.HasPrefix(got, "operator 2099-01-31") {
			t.Errorf("during the pause: %q", got)
		}
		if said := outboxtest.One[string](admin, "SELECT w FROM outbox.event AS e, outbox.why_not_delivered(e.id) AS w"); !strings.Contains(said, "(operator)") || !strings.Contains(said, " until 2099-01-31") {
			t.Errorf("during the pause: %s", said)
		}

		admin.Do("UPDATE outbox.hold SET until = clock_timestamp() - interval '1 second'") // as if that time had come
		if got := outboxtest.One[string](admin, held); got != "" {
			t.Errorf("after the pause: %q", got)
		}
		if d := outboxtest.Only(t, relay); d.Key != "k" {
			t.Fatalf("claimed %+v", d)
		}
		admin.Do("UPDATE outbox.lane SET claim = NULL, due_at = now()")
	}
	outboxtest.Must(t, relay.EndHolds(t.Context(), "court", time.Minute))
	if got := outboxtest.One[string](admin, "SELECT coalesce(hold_kind, '') || (SELECT count(*) FROM outbox.hold) FROM outbox.sync"); got != "0" {
		t.Errorf("the pause that has ended is still there: %s", got)
	}
	if got := outboxtest.List[string](admin, "SELECT outcome || ' ' || reason FROM outbox.delivery_log"); len(got) != 2 || got[0] != "paused until 2099-01-31T18:00:00Z: maintenance" {
		t.Errorf("log %q", got)
	}
}

func TestRetireEndsFanOutAndKeepsOpenWork(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	admin.Event("k")
	operator.Do("SELECT outbox.retire('court', 'closed')")
	operator.Do("SELECT outbox.retire('court', 'closed again')") // a notice, no second row
	admin.Event("k")
	if got := admin.States("k"); got != "pending" {
		t.Errorf("deliveries %q, want the one from before", got)
	}
	if got := outboxtest.List[string](admin, "SELECT outcome || ' ' || reason FROM outbox.delivery_log"); len(got) != 1 || got[0] != "retired closed" {
		t.Errorf("log %v, want one row: retired closed", got)
	}
}

func TestSetReferenceIsLogged(t *testing.T) {
	url := pgtest.New(t)
	admin, operatorURL := outboxtest.Connect(t, url), pgtest.AsRole(t, url, "outbox_operator")
	operator := outboxtest.Connect(t, operatorURL)
	admin.Sync("court")
	operator.Do("SET lockstep.actor = 'Ada'")
	operator.Do("SELECT outbox.set_reference('court', 'H-1', 'C-77', '\"1\"', 'from the court''s list')")
	operator.Do("SELECT outbox.set_reference('court', 'H-1', NULL, NULL, 'the court deleted it')")
	got := outboxtest.List[string](admin, "SELECT concat_ws('|', sync, key, outcome, external_id, actor, reason) FROM outbox.delivery_log ORDER BY id")
	by := login(t, operatorURL) + "/Ada|"
	want := []string{"court|H-1|reference_set|C-77|" + by + "from the court's list", "court|H-1|reference_set|" + by + "the court deleted it"}
	if !slices.Equal(got, want) {
		t.Errorf("log %q, want %q", got, want)
	}
	if got := outboxtest.One[string](admin, "SELECT concat_ws('|', external_id, etag, event_seq, times_set) FROM outbox.external_ref"); got != "0|2" {
		t.Errorf("reference %s", got)
	}
}

func TestLearnedValuesStayWithTheirRecord(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	for _, step := range []struct{ name, rest, want string }{
		{"set for the first time", `'C-1', NULL, 'r', '{"versionNumber": "1"}'`, `C-1|{"versionNumber": "1"}`},
		{"the same id", `'C-1', '"2"', 'r'`, `C-1|"2"|{"versionNumber": "1"}`},
		{"the same id, null", `'C-1', NULL, 'r', 'null'`, `C-1|{"versionNumber": "1"}`},
		{"other values", `'C-1', NULL, 'r', '{"part": "a", "n": "2"}'`, `C-1|{"n": "2", "part": "a"}`},
		{"no values", `'C-1', NULL, 'r', '{}'`, `C-1|{}`},
		{"values again", `'C-1', NULL, 'r', '{"n": "3"}'`, `C-1|{"n": "3"}`},
		{"another id", `'C-2', NULL, 'r'`, `C-2|{}`},
		{"another id with values", `'C-3', NULL, 'r', '{"n": "4"}'`, `C-3|{"n": "4"}`},
		{"no id", `'', NULL, 'r'`, `{}`},
		{"values without an id", `NULL, NULL, 'r', '{"n": "5"}'`, `{"n": "5"}`},
		{"still no id", `'', NULL, 'r'`, `{"n": "5"}`},
	} {
		operator.Do("SELECT outbox.set_reference('court', 'H-1', " + step.rest + ")")
		if got := outboxtest.One[string](admin, "SELECT concat_ws('|', external_id, etag, learned) FROM outbox.external_ref"); got != step.want {
			t.Errorf("%s: got %s, want %s", step.name, got, step.want)
		}
	}
}

func TestActorIsTheLoginAndAtMostOneName(t *testing.T) {
	url := pgtest.New(t)
	admin, operator := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator")
	admin.Sync("court")
	name := login(t, operator.Config().ConnString())
	tests := []struct{ name, actor, want string }{
		{"nobody named", "", name},
		{"a person", "Ada Lovelace", name + "/Ada Lovelace"},
		{"a very long name", strings.Repeat("x", 500), name + "/" + strings.Repeat("x", 100)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			operator, admin := operator.With(t), admin.With(t)
			operator.Do("SELECT set_config('lockstep.actor', $1, false)", tt.actor)
			operator.Do("SELECT outbox.pause('court', 'r')")
			got := outboxtest.One[string](admin, "SELECT actor FROM outbox.delivery_log ORDER BY id DESC LIMIT 1")
			if by := outboxtest.One[string](admin, "SELECT hold_by FROM outbox.sync"); got != tt.want || by != tt.want {
				t.Errorf("actor %q, hold by %q, want %q", got, by, tt.want)
			}
		})
	}
}

func TestHoldsThatChangeAtOnceDoNotOverlookEachOther(t *testing.T) {
	url := pgtest.New(t)
	admin, operator, relay := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator"), outboxtest.As(t, url, "outbox_relay")
	admin.Sync("court")
	admin.Do("INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('court', 'throttle', now(), 'HTTP 429', 'relay-1')")
	operator.Do("BEGIN")
	operator.Do("SELECT outbox.pause('court', 'night')")
	ends := relay.Begin("DELETE FROM outbox.hold WHERE sync = 'court' AND kind = 'throttle'")
	admin.Blocked(relay.PgConn().PID())
	operator.Do("COMMIT")
	outboxtest.Must(t, relay.Ended(ends))
	if got := outboxtest.One[string](admin, "SELECT coalesce(hold_kind, 'none') FROM outbox.sync"); got != "operator" {
		t.Errorf("outbox.sync shows %s after a throttle that ended during a pause, want operator", got)
	}
}

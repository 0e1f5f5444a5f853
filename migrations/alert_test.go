package migrations_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// raise calls outbox.raise_alerts as a relay does and returns type, sync and number of what it tells.
func raise(d outboxtest.Session) string {
	d.T.Helper()
	return strings.Join(outboxtest.List[string](d, "SELECT CASE WHEN type IS NULL THEN 'more' ELSE format('%s %s %s', type, sync, n) END FROM outbox.raise_alerts()"), ", ")
}

// told returns type and key of each delivery of an operator event to a sync, in its order.
func told(d outboxtest.Session, sync string) string {
	d.T.Helper()
	return strings.Join(outboxtest.List[string](d, `
SELECT e.type || ' ' || e.key FROM outbox.delivery AS d JOIN outbox.event AS e ON e.id = d.event_id
 WHERE d.sync = $1 AND e.type LIKE 'lockstep:%' ORDER BY e.seq`, sync), ", ")
}

func wantText(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// later makes the last message about failed and escalated deliveries old enough for the next one.
func later(d outboxtest.Session) {
	d.T.Helper()
	d.Do("UPDATE outbox.told SET told_at = told_at - interval '6 minutes' WHERE name <> 'held'")
}

func hold(d outboxtest.Session, sync, scope, kind, since string) {
	d.T.Helper()
	d.Do(`INSERT INTO outbox.hold (sync, scope, kind, until, reason, by, since)
	      VALUES ($1, $2, $3, clock_timestamp() + interval '1 hour', 'HTTP 401', 'relay-1', clock_timestamp() - $4::interval)`, sync, scope, kind, since)
}

func TestOperatorEventsGoToTheirOwnPatternsOnly(t *testing.T) {
	url := pgtest.New(t)
	d, r := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	d.Sync("court", "scheduling:*")
	d.Sync("all", "*")
	d.Sync("any", "lock*", "*:failed", "lockstep*")
	d.Sync("chat", "lockstep:*")
	d.Sync("pager", "scheduling:deleted", "lockstep:escalated", "lockstep:fail*")
	d.Sync("gone", "lockstep:*")
	d.Do("SELECT outbox.retire('gone', 'moved')")
	for _, sync := range []string{"court", "chat"} {
		d.Do("INSERT INTO outbox.delivery (sync, key, event_seq, event_id, state, due_at) VALUES ($1, 'H-1', 1000000, gen_random_uuid(), 'failed', 'infinity')", sync)
	}
	wantText(t, "raised", raise(r), "lockstep:failed chat 1, lockstep:failed court 1")
	for sync, want := range map[string]string{
		"court": "", "all": "", "any": "", "gone": "", "chat": "lockstep:failed court", "pager": "lockstep:failed chat, lockstep:failed court",
	} {
		wantText(t, "told to "+sync, told(d, sync), want)
	}
	id := outboxtest.One[string](d, "SELECT id::text FROM outbox.event WHERE key = 'chat'")
	for sync, want := range map[string]string{
		"chat": "chat: not sent: an operator event is not sent to the sync that it is about",
		"all":  "all: its patterns {*} do not match type lockstep:failed",
	} {
		wantText(t, "why not "+sync, outboxtest.One[string](d, "SELECT outbox.why_not_delivered($1, $2)", id, sync), want)
	}
	if n := outboxtest.One[int](d, "SELECT count(*) FROM outbox.unmatched"); n != 0 {
		t.Errorf("%d events are unmatched", n)
	}
	d.Do("SELECT outbox.find_missed(0, 1000)")
	if n := outboxtest.One[int](d, "SELECT count(*) FROM outbox.missed"); n != 0 {
		t.Errorf("%d events are missed", n)
	}
}

func TestNobodyElseWritesOperatorEvents(t *testing.T) {
	url := pgtest.New(t)
	d := outboxtest.Connect(t, url)
	d.Sync("chat", "lockstep:*")
	d.Sync("court", "*")
	words := []string{`event type "lockstep:failed" begins with lockstep: , and only outbox.raise_alerts() writes such events`, "Name your own"}
	const insert = "INSERT INTO outbox.event (type, key, payload) VALUES ('lockstep:failed', 'court', '{}')"
	w := outboxtest.As(t, url, "outbox_writer")
	for _, s := range []outboxtest.Session{d, w} {
		s.Refuses("42501", insert, words)
		s.Refuses("42501", "SELECT outbox.emit('lockstep:failed', 'court', '{}')", words)
		s.Refuses("42501", "INSERT INTO outbox.event (type, key, payload) SELECT v.type, 'k', '{}' FROM (VALUES ('a'), ('lockstep:failed')) AS v (type)", words)
	}
	w.Do("SELECT set_config('lockstep.raises_alerts', 'on', false)")
	w.Refuses("42501", insert, words)
	err := pgx.BeginFunc(t.Context(), w.Conn, func(tx pgx.Tx) error {
		return outbox.Append(t.Context(), tx, outbox.Event{Type: "lockstep:failed", Key: "court", Payload: []byte("{}")})
	})
	w.Judge(err, "42501", "Append", words)
	// After a call of raise_alerts in the same transaction.
	tx, err := d.Conn.Begin(t.Context())
	outboxtest.Must(t, err)
	d.Do("INSERT INTO outbox.delivery (sync, key, event_seq, event_id, state, due_at) VALUES ('court', 'H-1', 1000000, gen_random_uuid(), 'failed', 'infinity')")
	wantText(t, "raised", raise(d), "lockstep:failed court 1")
	d.Refuses("42501", insert, words)
	outboxtest.Must(t, tx.Rollback(t.Context()))
	for _, role := range []string{"outbox_relay", "outbox_operator", "outbox_auditor"} {
		s := outboxtest.As(t, url, role)
		s.Refuses("42501", insert, []string{"permission denied"})
		s.Refuses("42501", "SELECT outbox.write_operator_event('lockstep:failed', 'court', '{}')", []string{"permission denied"})
	}
	for _, role := range []string{"outbox_writer", "outbox_operator", "outbox_auditor"} {
		outboxtest.As(t, url, role).Refuses("42501", "SELECT * FROM outbox.raise_alerts()", []string{"permission denied"})
	}
	d.Refuses("55000", "INSERT INTO outbox.event (type, key, payload, inserted_at) VALUES ('lockstep:failed', 'court', '{}', '2026-01-01')", []string{"rows of a backup must not be inserted"})
	d.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('Lockstep:failed', 'k', '{}'), ('lockstep', 'k', '{}')")
}

// The row fails, is requeued and fails again.
func TestEachFailureIsToldOnce(t *testing.T) {
	url := pgtest.New(t)
	d, r := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	d.Sync("court", "scheduling:*")
	d.Sync("chat", "lockstep:*")
	one := d.Event("H-1")
	d.Fail(one)
	wantText(t, "first", raise(r), "lockstep:failed court 1")
	wantText(t, "again", raise(r), "")
	d.Do("SELECT outbox.requeue('court', 'H-1')")
	wantText(t, "requeued", raise(r), "")
	d.Fail(one)
	d.Fail(d.Event("H-2"))
	wantText(t, "within five minutes", raise(r), "")
	d.Fail(d.Event("H-3"))
	later(d)
	wantText(t, "after five minutes", raise(r), "lockstep:failed court 3")
	wantText(t, "told", told(d, "chat"), "lockstep:failed court, lockstep:failed court")
	// The clock is set back.
	d.Fail(d.Event("H-5"))
	d.Do("UPDATE outbox.told SET told_at = told_at + interval '1 day'")
	wantText(t, "the clock is set back", raise(r), "lockstep:failed court 1")
	// Corrected before they are told.
	d.Fail(d.Event("H-4"))
	wantText(t, "within five minutes", raise(r), "")
	d.Do("SELECT outbox.requeue('court')")
	later(d)
	wantText(t, "corrected", raise(r), "")
	d.Fail(d.Event("H-6"))
	wantText(t, "the first one that is told for long", raise(r), "lockstep:failed court 1")
}

func TestPayloadOfAFailure(t *testing.T) {
	url := pgtest.New(t)
	d, r := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	d.Sync("court", "scheduling:*")
	d.Sync("chat", "lockstep:*")
	d.Do("UPDATE outbox.sync SET escalate_at = '{at}' WHERE name = 'court'")
	year := time.Now().Year() + 1
	for i, month := range []int{9, 3, 7} {
		id := outboxtest.One[string](d, "INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', $1, $2) RETURNING id::text",
			fmt.Sprintf("H-%d", i), fmt.Sprintf(`{"at": "%d-%02d-01T09:00Z", "party": "Doe"}`, year, month))
		d.Fail(id)
	}
	raise(r)
	got := outboxtest.One[string](d, "SELECT (payload - 'since' - 'event_id')::text FROM outbox.event WHERE type = 'lockstep:failed'")
	want := fmt.Sprintf(`{"key": "H-1", "new": 3, "says": "sync \"court\" has 3 failed deliveries; the soonest is of key H-1, needed by %d-03-01 09:00:00+00, with permanent: HTTP 422: no such courtroom", "sync": "court", "remedy": "Correct the cause, then: lockstep requeue --sync court --all --reason …; or give them up with lockstep discard", "severity": "warning", "needed_by": "%[1]d-03-01T09:00:00+00:00"}`, year)
	wantText(t, "payload", got, want)
}

func TestHoldsAreToldWhenTheyBeginAndEnd(t *testing.T) {
	url := pgtest.New(t)
	d, r := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	d.Sync("court", "scheduling:*")
	d.Sync("chat", "lockstep:*")
	hold(d, "court", "", "breaker", "50 seconds")
	hold(d, "court", "", "throttle", "4 minutes")
	hold(d, "court", "", "window", "1 hour")
	hold(d, "court", "", "backfill", "1 hour")
	wantText(t, "short holds", raise(r), "")
	d.Do("UPDATE outbox.hold SET since = since - interval '2 minutes'")
	wantText(t, "long holds", raise(r), "lockstep:held court 1, lockstep:held court 1")
	wantText(t, "again", raise(r), "")
	d.Do("UPDATE outbox.hold SET until = until + interval '1 hour', probes = probes + 1")
	d.Do("DELETE FROM outbox.hold WHERE kind = 'throttle'")
	wantText(t, "one ends", raise(r), "lockstep:resumed court 1")
	d.Do("SELECT outbox.pause('court', 'the court moves')")
	d.Do("DELETE FROM outbox.hold WHERE kind = 'breaker'")
	wantText(t, "one ends and one begins", raise(r), "lockstep:resumed court 1, lockstep:held court 1")
	d.Do("SELECT outbox.resume('court')")
	wantText(t, "resumed", raise(r), "lockstep:resumed court 1")
	d.Do("SELECT outbox.pause('court', 'short', clock_timestamp() + interval '1 hour')")
	raise(r)
	d.Do("UPDATE outbox.hold SET until = clock_timestamp() WHERE kind = 'operator'")
	wantText(t, "a pause that is over", raise(r), "lockstep:resumed court 1")
	for _, scope := range []string{"a.example", "b.example", "c.example"} {
		hold(d, "court", scope, "auth", "0")
	}
	hold(d, "chat", "", "auth", "0")
	wantText(t, "destinations", raise(r), "lockstep:held chat 1, lockstep:held court 3")
	said := outboxtest.List[string](d, "SELECT payload ->> 'says' FROM outbox.event WHERE type LIKE 'lockstep:%' ORDER BY seq")
	want := []string{
		`sync "court" is on hold (breaker) by relay-1: HTTP 401`, `sync "court" is on hold (throttle) by relay-1: HTTP 401`,
		`sync "court" is not on hold (throttle) any more, but the sync is still on hold (backfill): HTTP 401`,
		`sync "court" is not on hold (breaker) any more, but the sync is still on hold (operator): the court moves`,
		`sync "court" is on hold (operator) by postgres: the court moves`,
		`sync "court" is not on hold (operator) any more, but the sync is still on hold (backfill): HTTP 401`,
		`sync "court" is on hold (operator) by postgres: short`,
		`sync "court" is not on hold (operator) any more, but the sync is still on hold (backfill): HTTP 401`,
		`3 destinations of sync "court", such as a.example, are on hold (auth) by relay-1: HTTP 401`,
	}
	if !slices.Equal(said, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
	}
}

// Two syncs carry the operator events about each other, and both refuse everything.
func TestOperatorEventsRaiseNone(t *testing.T) {
	url := pgtest.New(t)
	d, r := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	d.Sync("chat", "scheduling:*", "lockstep:*")
	d.Sync("mail", "lockstep:*")
	for _, sync := range []string{"chat", "mail"} {
		d.Do("UPDATE outbox.sync SET escalate_after = '1 second' WHERE name = $1", sync)
	}
	d.Event("H-1")
	rounds := []string{}
	for range 5 {
		d.Do("UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent' WHERE state <> 'failed'")
		d.Do("UPDATE outbox.delivery SET created_at = created_at - interval '10 minutes', escalates_at = escalates_at - interval '10 minutes'")
		later(d)
		if got := raise(r); got != "" {
			rounds = append(rounds, got)
		}
	}
	if got := strings.Join(rounds, "; "); got != "lockstep:failed chat 1, lockstep:escalated chat 1" {
		t.Errorf("told: %s", got)
	}
	d.Do("SELECT outbox.requeue('mail')")
	d.Do("UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity' WHERE sync = 'mail'")
	later(d)
	wantText(t, "requeued", raise(r), "")
}

// A key is told once, also if a later event of it escalates at another time.
func TestAKeyIsEscalatedOnce(t *testing.T) {
	url := pgtest.New(t)
	d, r := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	d.Sync("court", "scheduling:*")
	d.Sync("chat", "lockstep:*")
	d.Do("UPDATE outbox.sync SET escalate_at = '{at}', escalate_before = '1 day' WHERE name = 'court'")
	write := func(key string, in time.Duration) {
		d.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', $1, jsonb_build_object('at', $2::text))", key, time.Now().Add(in).UTC().Format(time.RFC3339))
	}
	pass := func() { // two minutes
		d.Do("UPDATE outbox.delivery SET created_at = created_at - interval '2 minutes', escalates_at = escalates_at - interval '2 minutes'")
		later(d)
	}
	write("H-1", 23*time.Hour)
	write("H-2", 48*time.Hour)
	wantText(t, "in its first minute", raise(r), "")
	pass()
	wantText(t, "escalated", raise(r), "lockstep:escalated court 1")
	write("H-1", 20*time.Hour) // it is moved
	pass()
	wantText(t, "moved", raise(r), "")
	write("H-3", 20*time.Hour)
	write("H-3", 19*time.Hour)
	pass()
	wantText(t, "another key", raise(r), "lockstep:escalated court 1")
	d.Do("DELETE FROM outbox.delivery WHERE key IN ('H-1', 'H-3')")
	wantText(t, "alert", strings.Join(outboxtest.List[string](d, "SELECT name FROM outbox.alert WHERE sync = 'court'"), " "), "")
	write("H-1", 20*time.Hour)
	pass()
	wantText(t, "not delivered again", raise(r), "lockstep:escalated court 1")
	if got := outboxtest.One[string](d, "SELECT key || ' ' || says FROM outbox.alert WHERE name = 'escalated'"); !strings.HasPrefix(got, `H-1 sync "court" has 1 escalated event: not delivered although needed soon, or not delivered for long; the soonest is of key H-1, needed by `) {
		t.Errorf("alert: %s", got)
	}
}

// A call that is cut off tells nothing, and one that waits for another call tells nothing twice.
func TestTwoRelaysTellOnce(t *testing.T) {
	url := pgtest.New(t)
	d, a, b := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay"), outboxtest.As(t, url, "outbox_relay")
	d.Sync("court", "scheduling:*")
	d.Sync("chat", "lockstep:*")
	d.Fail(d.Event("H-1"))
	hold(d, "court", "", "auth", "0")
	b.Do("SET lock_timeout = '1s'")
	const both = "lockstep:held court 1, lockstep:failed court 1"
	tx, err := a.Conn.Begin(t.Context())
	outboxtest.Must(t, err)
	wantText(t, "a", raise(a), both)
	wantText(t, "b beside a", raise(b), "")
	outboxtest.Must(t, tx.Rollback(t.Context())) // it crashes
	wantText(t, "nothing is told", told(d, "chat"), "")
	tx, err = b.Conn.Begin(t.Context())
	outboxtest.Must(t, err)
	wantText(t, "b", raise(b), both)
	outboxtest.Must(t, tx.Commit(t.Context()))
	wantText(t, "a after b", raise(a), "")
	// Its snapshot is older than what another relay has told: it is refused, or tells nothing.
	d.Do("DELETE FROM outbox.hold")
	tx, err = a.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	outboxtest.Must(t, err)
	outboxtest.One[int](a, "SELECT count(*) FROM outbox.told")
	wantText(t, "b", raise(b), "lockstep:resumed court 1")
	_, err = a.Exec(t.Context(), "SELECT outbox.raise_alerts()")
	a.Judge(err, "40001", "raise_alerts", []string{"concurrent"})
	outboxtest.Must(t, tx.Rollback(t.Context()))
	wantText(t, "told", told(d, "chat"), "lockstep:held court, lockstep:failed court, lockstep:resumed court")
}

// Several relays raise alerts while deliveries fail, and their sessions are killed. The operator events
// count each failure once.
func TestEachFailureIsCountedOnceWhileSessionsDie(t *testing.T) {
	url := pgtest.New(t)
	d, killer := outboxtest.Connect(t, url), outboxtest.Connect(t, url)
	d.Sync("court", "scheduling:*")
	d.Sync("chat", "lockstep:*")
	relay := pgtest.AsRole(t, url, "outbox_relay")
	// The pause between two messages is over at once.
	d.Do(`CREATE FUNCTION no_pause() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.told_at := NULL; RETURN NEW; END'`)
	d.Do("CREATE TRIGGER no_pause BEFORE UPDATE ON outbox.told FOR EACH ROW EXECUTE FUNCTION no_pause()")
	// The transaction that tells ends late, so that it can be killed.
	d.Do(`CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.01); RETURN NULL; END'`)
	d.Do("CREATE CONSTRAINT TRIGGER linger AFTER UPDATE ON outbox.told DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION linger()")
	ctx, stop := context.WithCancel(t.Context())
	var raising sync.WaitGroup
	var cut atomic.Int64
	for range 3 {
		raising.Go(func() {
			for ctx.Err() == nil {
				conn, err := pgx.Connect(t.Context(), relay)
				if err != nil {
					t.Error(err)
					return
				}
				for err == nil && ctx.Err() == nil {
					_, err = conn.Exec(t.Context(), "SELECT outbox.raise_alerts()")
				}
				if err != nil {
					cut.Add(1)
				}
				_ = conn.Close(t.Context())
			}
		})
	}
	const many = 400
	for i := range many {
		d.Do(`INSERT INTO outbox.delivery (sync, key, event_seq, event_id, state, due_at) VALUES ('court', 'H-' || $1::int, $1, gen_random_uuid(), 'failed', 'infinity')`, i+1)
		if i%10 == 0 {
			killer.Do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT outbox.raise_alerts()' AND state = 'active' ORDER BY random() LIMIT 1")
		}
	}
	d.Until("all is told", "SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE state = 'failed' AND NOT failure_told) AND NOT EXISTS (SELECT FROM outbox.told WHERE untold > 0)")
	stop()
	raising.Wait()
	if n := outboxtest.One[int](d, "SELECT sum((payload ->> 'new')::int) FROM outbox.event WHERE type = 'lockstep:failed'"); n != many {
		t.Errorf("%d failures were told, want %d", n, many)
	}
	if cut.Load() == 0 {
		t.Error("no call was cut off")
	}
}

// An operator who has requeued in an open transaction is not waited for.
func TestRowsInUseAreToldLater(t *testing.T) {
	url := pgtest.New(t)
	d, r, o := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay"), outboxtest.As(t, url, "outbox_operator")
	d.Sync("court", "scheduling:*")
	d.Fail(d.Event("H-1"))
	d.Fail(d.Event("H-2"))
	tx, err := o.Conn.Begin(t.Context())
	outboxtest.Must(t, err)
	o.Do("SELECT outbox.requeue('court', 'H-1')")
	r.Do("SET lock_timeout = '1s'")
	wantText(t, "H-1 is in use", raise(r), "lockstep:failed court 1")
	outboxtest.Must(t, tx.Rollback(t.Context()))
	later(d)
	wantText(t, "told later", raise(r), "lockstep:failed court 1")
}

// blocks returns how many blocks a statement reads.
func blocks(d outboxtest.Session, statement string) int {
	d.T.Helper()
	const plan = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
	var read []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	outboxtest.Must(d.T, json.Unmarshal([]byte(outboxtest.One[string](d, plan+statement)), &read))
	return read[0].Plan.Hit + read[0].Plan.Read
}

// Many failures at once are one event, and calls read little of a large table.
func TestManyFailuresAreOneEvent(t *testing.T) {
	url := pgtest.New(t)
	d, r := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	d.Sync("court", "scheduling:*")
	d.Sync("chat", "lockstep:*")
	const many = 25000
	d.Do(`INSERT INTO outbox.delivery (sync, key, event_seq, event_id, state, due_at, needed_by, escalates_at)
	      SELECT 'court', 'H-' || i, i, gen_random_uuid(), CASE WHEN i <= $1 THEN 'failed' ELSE 'pending' END,
	             CASE WHEN i <= $1 THEN 'infinity'::timestamptz ELSE now() END, now() + i * interval '1 minute', now() + i * interval '1 hour'
	        FROM generate_series(1, 4 * $1::int) AS i`, many)
	d.Do("ANALYZE outbox.delivery")
	got := []string{}
	for len(got) < 10 {
		got = append(got, raise(r))
		if got[len(got)-1] != "more" {
			break
		}
	}
	wantText(t, "raised", strings.Join(got, "; "), fmt.Sprintf("more; more; lockstep:failed court %d", many))
	if got := outboxtest.One[string](d, "SELECT key || ' ' || says FROM outbox.alert WHERE name = 'failed'"); !strings.HasPrefix(got, `H-1 sync "court" has more than 1000 failed deliveries; the soonest is of key H-1, needed by `) {
		t.Errorf("alert: %s", got)
	}
	raise(r) // index entries of earlier versions of the rows are passed once
	for statement, most := range map[string]int{"SELECT * FROM outbox.raise_alerts()": 1000, "SELECT * FROM outbox.alert": 3000} {
		if n := blocks(d, statement); n > most {
			t.Errorf("%s reads %d blocks, want at most %d", statement, n, most)
		}
	}
}

func TestAlertsSayWhatIsTrueNow(t *testing.T) {
	url := pgtest.New(t)
	d, auditor := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_auditor")
	alerts := func() string {
		t.Helper()
		return strings.Join(outboxtest.List[string](auditor, "SELECT concat_ws(' ', severity, name, sync, key) FROM outbox.alert ORDER BY 1"), ", ")
	}
	wantText(t, "empty database", alerts(), "")
	d.Sync("court", "scheduling:*")
	d.Sync("clinic", "clinic:*")
	d.Sync("old", "scheduling:*")
	d.Do("SELECT outbox.retire('old', 'closed')")
	wantText(t, "no relay", alerts(), "critical no_relay")
	d.Do("INSERT INTO outbox.heartbeat (instance, name, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay-1', '{court}', clock_timestamp(), clock_timestamp())")
	wantText(t, "relay", alerts(), "warning not_served clinic")
	d.Do("UPDATE outbox.heartbeat SET syncs = '{court, clinic}'")
	wantText(t, "all well", alerts(), "")
	d.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('other', 'k', '{}')")
	d.Past("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'H-0', '{}')")
	d.Do("SELECT outbox.find_missed(0, 1000)")
	wantText(t, "unmatched and missed", alerts(), "critical missed, info unmatched")
	d.Do("DELETE FROM outbox.unmatched")
	d.Do("SELECT outbox.repair()")
	d.Fail(d.Event("H-1"))
	hold(d, "court", "", "throttle", "10 minutes")
	hold(d, "clinic", "east", "auth", "0")
	hold(d, "clinic", "west", "auth", "0")
	d.Do("SELECT outbox.pause('clinic', 'closed today')")
	d.Do("UPDATE outbox.delivery SET escalates_at = clock_timestamp() WHERE key = 'H-0'")
	wantText(t, "much", alerts(), "critical escalated court H-0, critical held clinic, info held clinic, warning failed court H-1, warning held court")
	next := outboxtest.One[string](d, "SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY_MM')")
	d.Do("TRUNCATE outbox.hold")
	d.Do("UPDATE outbox.delivery SET escalates_at = NULL")
	d.Do("DELETE FROM outbox.delivery")
	d.Do("DROP TABLE outbox.delivery_log_" + next)
	wantText(t, "partition", alerts(), "warning no_partition")
}

func TestHeldDestinationsAreResumedByTheirScope(t *testing.T) {
	url := pgtest.New(t)
	d, r := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_relay")
	d.Sync("court", "scheduling:*")
	d.Sync("chat", "lockstep:*")
	remedies := func() string {
		t.Helper()
		raise(r)
		return strings.Join(append(
			outboxtest.List[string](d, "SELECT remedy FROM outbox.alert WHERE name = 'held'"),
			outboxtest.List[string](d, "SELECT payload ->> 'remedy' FROM outbox.event WHERE type = 'lockstep:held' ORDER BY seq DESC LIMIT 1")...), "\n")
	}
	for _, c := range []struct{ scope, resume string }{
		{"King's Court", `lockstep resume court --scope 'King'\''s Court'`},
		{"East", "lockstep resume court --scope 'East'"}, // the alert names the first of two destinations
		{"", "lockstep resume court"},
	} {
		d.Do("SELECT outbox.pause('court', 'they move', scope => $1)", c.scope)
		want := "Resume it when the reason has passed: " + c.resume
		wantText(t, "scope "+c.scope, remedies(), want+"\n"+want)
	}
}

// A transaction that is open for 15 minutes is told. Here the time is shorter.
func TestAnOldTransactionIsTold(t *testing.T) {
	url := pgtest.New(t)
	d, old := outboxtest.Connect(t, url), outboxtest.Connect(t, url)
	var view string
	for _, part := range strings.SplitAfter(outboxtest.One[string](d, "SELECT pg_get_viewdef('outbox.alert'::regclass)"), "UNION ALL") {
		if strings.Contains(part, "old_transaction") {
			view = strings.Replace(strings.TrimSuffix(strings.TrimSpace(part), ";"), "'00:15:00'", "'0'", 1)
		}
	}
	sentence := "SELECT says || ' / ' || remedy FROM (" + view + ") AS a (name, severity, since, says, remedy, sync, key, event_id)"
	old.Do("SET application_name = 'nightly report'")
	old.Do("BEGIN")
	old.Do("SELECT count(*) FROM outbox.event")
	said := strings.Join(outboxtest.List[string](d, sentence), "")
	for _, want := range []string{
		"been open for longer than 15 minutes, the oldest one of pid ", "application nightly report, idle in transaction",
		fmt.Sprintf("SELECT pg_terminate_backend(%d)", old.PgConn().PID()),
	} {
		if !strings.Contains(said, want) {
			t.Errorf("said %q, want %q", said, want)
		}
	}
	wantText(t, "now", strings.Join(outboxtest.List[string](d, "SELECT says FROM outbox.alert WHERE name = 'old_transaction'"), ""), "")
}

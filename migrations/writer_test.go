package migrations_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
)

func TestWriterInsertsInOneStatement(t *testing.T) {
	w := outboxtest.As(t, pgtest.New(t), "outbox_writer")
	tests := []struct{ name, sql string }{
		{"three columns", `INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:created', 'h1', '{"a": 1}')`},
		{"returning what the writer may know", `INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'h1', '{}') RETURNING id, seq`},
		{"all columns of a writer", `INSERT INTO outbox.event (id, type, key, version, payload, headers, occurred_at)
			VALUES (gen_random_uuid(), 't', 'h1', 7, '{}', '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}', '2027-01-31 09:00+00')`},
		{"an id that may exist is passed over", `INSERT INTO outbox.event (id, type, key, payload)
			SELECT '018f0000-0000-7000-8000-000000000001', 't', 'h1', '{}' FROM generate_series(1, 2) ON CONFLICT (id) DO NOTHING`},
		{"a key of 512 bytes", `INSERT INTO outbox.event (type, key, payload) VALUES ('t', repeat('é', 256), '{}')`},
		{"a type of 200 bytes", `INSERT INTO outbox.event (type, key, payload) VALUES (repeat('t', 200), 'k', '{}')`},
		{"a payload of exactly 1 MiB", `INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', jsonb_build_object('a', repeat('x', 1048576 - 9)))`},
		{"a name without members", `INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', '{}')`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { w.With(t).Do(tt.sql) })
	}
}

func TestDrawnIDsRiseWithTime(t *testing.T) {
	w := outboxtest.As(t, pgtest.New(t), "outbox_writer")
	const draw = "INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', '{}') RETURNING id::text"
	first := outboxtest.One[string](w, draw)
	w.Until("the millisecond passes", "SELECT clock_timestamp() > $1::timestamptz + interval '2 milliseconds'", time.Now())
	second := outboxtest.One[string](w, draw)
	if first >= second || first[14] != '7' || !strings.ContainsRune("89ab", rune(first[19])) {
		t.Errorf("ids %s and %s, want rising UUIDs of version 7", first, second)
	}
}

func TestWriterIsRefusedEverythingElse(t *testing.T) {
	url := pgtest.New(t)
	outboxtest.Connect(t, url).Sync("court")
	w := outboxtest.As(t, url, "outbox_writer")
	w.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', '{}')")
	tests := []struct{ name, condition, sql string }{
		{"reading payloads", denied, "SELECT payload FROM outbox.event"},
		{"reading keys", denied, "SELECT key FROM outbox.event"},
		{"returning the payload", denied, "INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', '{}') RETURNING payload"},
		{"update", denied, "UPDATE outbox.event SET payload = '{}'"},
		{"delete", denied, "DELETE FROM outbox.event"},
		{"truncate", denied, "TRUNCATE outbox.event"},
		{"seq given", alwaysDrawn, "INSERT INTO outbox.event (seq, type, key, payload) VALUES (1, 't', 'k', '{}')"},
		{"seq overridden", denied, "INSERT INTO outbox.event (seq, type, key, payload) OVERRIDING SYSTEM VALUE VALUES (1, 't', 'k', '{}')"},
		{"inserted_at given", denied, "INSERT INTO outbox.event (inserted_at, type, key, payload) VALUES (now(), 't', 'k', '{}')"},
		{"reading deliveries", denied, "SELECT FROM outbox.delivery"},
		{"making deliveries", denied, "INSERT INTO outbox.delivery (sync, key, event_seq, event_id) VALUES ('court', 'k', 9, gen_random_uuid())"},
		{"reading lanes", denied, "SELECT FROM outbox.lane"},
		{"making lanes", denied, "INSERT INTO outbox.lane (sync, key, due_at) VALUES ('court', 'k', now())"},
		{"view open_delivery", denied, "SELECT FROM outbox.open_delivery"},
		{"reading the log", denied, "SELECT FROM outbox.delivery_log"},
		{"writing the log", denied, "INSERT INTO outbox.delivery_log (sync, outcome) VALUES ('court', 'delivered')"},
		{"reading a partition of the log", denied, "SELECT FROM outbox.delivery_log_default"},
		{"reading syncs", denied, "SELECT FROM outbox.sync"},
		{"reading references", denied, "SELECT FROM outbox.external_ref"},
		{"view status", denied, "SELECT FROM outbox.status"},
		{"view failed", denied, "SELECT FROM outbox.failed"},
		{"view blocked_key", denied, "SELECT FROM outbox.blocked_key"},
		{"why_not_delivered", denied, "SELECT outbox.why_not_delivered(gen_random_uuid())"},
		{"requeue", denied, "SELECT outbox.requeue('court')"},
		{"discard", denied, "SELECT outbox.discard('court', gen_random_uuid(), 'r')"},
		{"replay", denied, "SELECT outbox.replay('court', gen_random_uuid(), 'r')"},
		{"pause", denied, "SELECT outbox.pause('court', 'r')"},
		{"maintain", denied, "SELECT outbox.maintain()"},
		{"drawing numbers", denied, "SELECT nextval('outbox.event_seq_seq')"},
		{"making tables", denied, "CREATE TABLE outbox.mine ()"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { w.With(t).Refuses(tt.condition, tt.sql, nil) })
	}
}

func TestEventChecksRefuseByName(t *testing.T) {
	url := pgtest.New(t)
	w := outboxtest.As(t, url, "outbox_writer")
	admin := outboxtest.Connect(t, url)
	admin.Do("CREATE TABLE big (payload jsonb)")
	admin.Do("GRANT SELECT ON big TO outbox_writer")
	admin.Do(`INSERT INTO big SELECT jsonb_build_object('a', repeat('x', 2000000))`)
	if outboxtest.One[int](admin, "SELECT pg_column_size(payload) FROM big") > 100_000 {
		t.Fatal("the large payload is not stored compressed, so the case tests nothing")
	}
	const values = "INSERT INTO outbox.event (type, key, payload) VALUES "
	tests := []struct{ name, condition, sql string }{
		{"empty type", "event_type_not_empty", values + "('', 'k', '{}')"},
		{"no type", notNull, values + "(NULL, 'k', '{}')"},
		{"long type", "event_type_size", values + "(repeat('t', 201), 'k', '{}')"},
		{"empty key", "event_key_not_empty", values + "('t', '', '{}')"},
		{"no key", notNull, values + "('t', NULL, '{}')"},
		{"long key", "event_key_size", values + "('t', repeat('k', 513), '{}')"},
		{"key long in bytes, not in characters", "event_key_size", values + "('t', repeat('é', 257), '{}')"},
		{"no payload", notNull, values + "('t', 'k', NULL)"},
		{"payload an array", "event_payload_is_object", values + "('t', 'k', '[]')"},
		{"payload a string", "event_payload_is_object", values + `('t', 'k', '"a"')`},
		{"payload null in JSON", "event_payload_is_object", values + "('t', 'k', 'null')"},
		{"large payload", "event_payload_size", values + "('t', 'k', jsonb_build_object('a', repeat('x', 1048576)))"},
		{"large payload, compressed in a table", "event_payload_size", "INSERT INTO outbox.event (type, key, payload) SELECT 't', 'k', payload FROM big"},
		{"large by escapes only", "event_payload_size", values + `('t', 'k', jsonb_build_object('a', repeat(E'\x01', 200000)))`},
		{"large by many members", "event_payload_size", values + "('t', 'k', (SELECT jsonb_object_agg(n, n) FROM generate_series(1, 80000) AS n))"},
		{"headers an array", "event_headers_is_object", "INSERT INTO outbox.event (type, key, payload, headers) VALUES ('t', 'k', '{}', '[]')"},
		{"large headers", "event_headers_size", "INSERT INTO outbox.event (type, key, payload, headers) VALUES ('t', 'k', '{}', jsonb_build_object('a', repeat('x', 16384)))"},
		{"large headers of few bytes", "event_headers_size", `INSERT INTO outbox.event (type, key, payload, headers) VALUES ('t', 'k', '{}', jsonb_build_object('a', repeat(E'\x01', 3000)))`},
		{"id used before", "event_pkey", "INSERT INTO outbox.event (id, type, key, payload) SELECT '018f0000-0000-7000-8000-000000000001', 't', 'k', '{}' FROM generate_series(1, 2)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { w.With(t).Refuses(tt.condition, tt.sql, nil) })
	}
	if n := outboxtest.One[int](admin, "SELECT count(*)::int FROM outbox.event"); n != 0 {
		t.Errorf("%d refused events were kept", n)
	}
}

func TestOddKeysKeepTheirOwnOrder(t *testing.T) {
	url := pgtest.New(t)
	admin := outboxtest.Connect(t, url)
	admin.Sync("court")
	w := outboxtest.As(t, url, "outbox_writer")
	// They are all different keys, even if a collation or a normalisation makes some of them equal.
	keys := []string{
		"case 1", "case 1 ", " case 1", "CASE 1", "Müller", "Mu\u0308ller", "ﬁle", "file", "👩\u200d⚖\ufe0f", "\u202egnirts", "a\tb", "a\nb",
		"%", "_", `\`, "'", `"`, "Ⅷ", "\u00a0", "\ufeffcase", "ß", "ss", "\U0010ffff",
	}
	for _, key := range keys {
		w.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('t', $1, '{}')", key)
		outboxtest.One[string](w, "SELECT outbox.emit('t', $1, '{}')::text", key)
	}
	if n := outboxtest.One[int](admin, "SELECT count(DISTINCT key)::int FROM outbox.delivery"); n != len(keys) {
		t.Errorf("%d keys, want %d", n, len(keys))
	}
	for _, key := range keys {
		if n := outboxtest.One[int](admin, "SELECT count(*)::int FROM outbox.delivery WHERE key = $1", key); n != 2 {
			t.Errorf("key %q has %d deliveries, want 2", key, n)
		}
	}
	w.Refuses("22021", "INSERT INTO outbox.event (type, key, payload) VALUES ('t', $1, '{}')", nil, "a\x00b")
}

func TestEmitWritesAnEvent(t *testing.T) {
	url := pgtest.New(t)
	admin, w := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_writer")
	tests := []struct {
		name, call string
		want       string // type, key, payload, version, headers
	}{
		{"three arguments", `emit('t:a', 'k', '{"a": 1}')`, `t:a|k|{"a": 1}||{}`},
		{"version", `emit('t:b', 'k', '{}', 7)`, `t:b|k|{}|7|{}`},
		{"headers", `emit('t:c', 'k', '{}', NULL, '{"tenant": "x"}')`, `t:c|k|{}||{"tenant": "x"}`},
		{"headers null", `emit('t:d', 'k', '{}', headers => NULL)`, `t:d|k|{}||{}`},
		{"id given", `emit('t:e', 'k', '{}', id => '018f0000-0000-7000-8000-000000000002')`, `t:e|k|{}||{}`},
		{"all by name", `emit(key => 'k2', type => 't:f', payload => '{}', version => 2, headers => '{}', id => NULL)`, `t:f|k2|{}|2|{}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := outboxtest.One[string](w.With(t), "SELECT outbox."+tt.call+"::text")
			got := outboxtest.One[string](admin.With(t), "SELECT concat_ws('|', type, key, payload::text, coalesce(version::text, ''), headers::text) FROM outbox.event WHERE id = $1::text::uuid", id)
			if got != tt.want {
				t.Errorf("%s wrote %s, want %s", tt.call, got, tt.want)
			}
		})
	}
	refused := []struct{ name, condition, call string }{
		{"id used before", "event_pkey", `emit('t', 'k', '{}', id => '018f0000-0000-7000-8000-000000000002')`},
		{"empty key", "event_key_not_empty", `emit('t', '', '{}')`},
		{"no key", notNull, `emit('t', NULL, '{}')`},
		{"payload an array", "event_payload_is_object", `emit('t', 'k', '[]')`},
	}
	for _, tt := range refused {
		t.Run(tt.name, func(t *testing.T) { w.With(t).Refuses(tt.condition, "SELECT outbox."+tt.call, nil) })
	}
}

func TestEmitBoundsTheKeysOfATransaction(t *testing.T) {
	w := outboxtest.As(t, pgtest.New(t), "outbox_writer")
	emit := func(prefix string, n int) string {
		return fmt.Sprintf("SELECT outbox.emit('t', '%s' || n, '{}') FROM generate_series(1, %d) AS n", prefix, n)
	}
	refusal := []string{"1000 keys in one transaction", "several transactions", "INSERT INTO outbox.event directly"}

	w.Do("BEGIN")
	w.Do(emit("a", 1000))
	w.Do(emit("a", 1000)) // known keys take no further lock
	w.Do("SAVEPOINT s")
	w.Refuses(tooMany, emit("b", 1), refusal)
	w.Do("ROLLBACK TO s")
	w.Do("SELECT outbox.emit('t', 'a7', '{}')")
	w.Do("COMMIT")

	w.Do(emit("b", 1000)) // a new transaction starts afresh
	w.Refuses(tooMany, emit("c", 1001), refusal)

	w.Do("BEGIN")
	w.Do("SAVEPOINT s")
	w.Do(emit("d", 1000))
	w.Do("ROLLBACK TO s") // gives the locks back
	w.Do(emit("e", 1000))
	w.Do("SAVEPOINT s")
	w.Refuses(tooMany, emit("f", 1), refusal)
	w.Do("ROLLBACK TO s")
	w.Do("COMMIT")
}

func TestEmitSerialisesAKey(t *testing.T) {
	url := pgtest.New(t)
	admin := outboxtest.Connect(t, url)
	login := pgtest.AsRole(t, url, "outbox_writer")
	first, second, other := outboxtest.Connect(t, login), outboxtest.Connect(t, login), outboxtest.Connect(t, login)

	first.Do("BEGIN")
	first.Do(`SELECT outbox.emit('t', 'k', '{"n": 1}')`)
	second.Do("BEGIN")
	waiting := second.Begin(`SELECT outbox.emit('t', 'k', '{"n": 2}')`)
	admin.Blocked(second.PgConn().PID())
	other.Do(`SELECT outbox.emit('t', 'another', '{"n": 0}')`)                                  // waits for nobody
	other.Do(`INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'plain', '{"n": 0}')`) // nor does an insert
	first.Do(`SELECT outbox.emit('t', 'k', '{"n": 1.5}'), outbox.emit('t', 'k', '{"n": 1.6}', id => gen_random_uuid())`)
	first.Do("COMMIT")
	if err := second.Ended(waiting); err != nil {
		t.Fatal(err)
	}
	second.Do("COMMIT")
	got := outboxtest.List[string](admin, "SELECT payload ->> 'n' FROM outbox.event WHERE key = 'k' ORDER BY seq")
	if strings.Join(got, " ") != "1 1.5 1.6 2" {
		t.Errorf("order by seq %v, want that of the commits", got)
	}
}

func TestWritersNeverWaitForEachOther(t *testing.T) {
	url := pgtest.New(t)
	admin := outboxtest.Connect(t, url)
	admin.Sync("court")
	first, second := outboxtest.As(t, url, "outbox_writer"), outboxtest.As(t, url, "outbox_writer")
	const insert = "INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', '{}')"
	// The strongest lock that a relay or an operator takes on a sync's row is that of an update.
	admin.Do("BEGIN")
	admin.Do("UPDATE outbox.sync SET last_delivered_at = now()")
	admin.Do("SELECT outbox.pause('court', 'maintenance')")
	first.Do("BEGIN")
	first.Do(insert)
	second.Do("SET lock_timeout = '1ms'")
	second.Do(insert)
	first.Do("COMMIT")
	admin.Do("ROLLBACK")
}

// A writer may read back id and seq of what it inserts, and nothing else. docs/databases.md has what drivers send by default.
func TestWhatAWriterMayReadBack(t *testing.T) {
	w := outboxtest.As(t, pgtest.New(t), "outbox_writer")
	const insert = "INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'k', '{}') RETURNING "
	w.Do(insert + "id, seq")
	for _, statement := range []string{insert + "*", "SELECT lastval()", "SELECT currval('outbox.event_seq_seq')"} {
		w.Refuses(denied, statement, nil)
	}
}

// Two transactions that emit the same keys wait for each other if both take the keys in the same order. If not, PostgreSQL
// ends one of them.
func TestEmitOfSeveralKeys(t *testing.T) {
	const emit = "SELECT outbox.emit('t', $1, '{}')"
	for name, c := range map[string]struct {
		first, second [2]string
		deadlock      bool
	}{
		"in one order":        {[2]string{"a", "b"}, [2]string{"a", "b"}, false},
		"in different orders": {[2]string{"a", "b"}, [2]string{"b", "a"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			url := pgtest.New(t)
			d, first, second := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_writer"), outboxtest.As(t, url, "outbox_writer")
			first.Do("BEGIN")
			second.Do("BEGIN")
			first.Do(emit, c.first[0])
			if !c.deadlock {
				waits := second.Begin(emit, c.second[0])
				d.Blocked(second.PgConn().PID())
				first.Do(emit, c.first[1])
				first.Do("COMMIT")
				outboxtest.Must(t, second.Ended(waits))
				second.Do(emit, c.second[1])
				second.Do("COMMIT")
				return
			}
			second.Do(emit, c.second[0])
			waits := first.Begin(emit, c.first[1])
			d.Blocked(first.PgConn().PID())
			_, err := second.Exec(t.Context(), emit, c.second[1])
			if other := first.Ended(waits); err == nil {
				err = other
			}
			second.Judge(err, "40P01", "emit", nil)
		})
	}
}

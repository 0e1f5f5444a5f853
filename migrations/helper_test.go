package migrations_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// The conditions that the surface answers with.
const (
	denied       = "42501" // insufficient_privilege
	checkFailed  = "23514" // check_violation
	duplicate    = "23505" // unique_violation
	notNull      = "23502" // not_null_violation
	alwaysDrawn  = "428C9" // generated_always
	wrongState   = "55000" // object_not_in_prerequisite_state
	noData       = "P0002" // no_data_found
	noReason     = "22004" // null_value_not_allowed
	tooMany      = "54000" // program_limit_exceeded
	badParameter = "22023" // invalid_parameter_value
	serialize    = "40001" // serialization_failure
)

// db is one session, closed when its test ends.
type db struct {
	*pgx.Conn
	t testing.TB
}

func connect(t testing.TB, url string) db {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return db{conn, t}
}

// as opens a session of a login that is a member of one group role only.
func as(t testing.TB, url, role string) db {
	t.Helper()
	return connect(t, pgtest.AsRole(t, url, role))
}

// do runs a statement that must succeed and returns the rows it affected.
func (d db) do(sql string, args ...any) int64 {
	d.t.Helper()
	tag, err := d.Exec(d.t.Context(), sql, args...)
	if err != nil {
		d.t.Fatalf("%.200s: %v", sql, err)
	}
	return tag.RowsAffected()
}

// past writes what an earlier time left behind: as a replica's session, in which
// the triggers that set a log row's time and refuse restored rows do not fire.
func (d db) past(sql string, args ...any) {
	d.t.Helper()
	d.do("SET session_replication_role = replica")
	d.do(sql, args...)
	d.do("RESET session_replication_role")
}

// refuses runs a statement that must fail with a SQLSTATE, or the constraint of
// that name, and whose message, detail and hint together contain all of words.
func (d db) refuses(condition, sql string, words []string, args ...any) {
	d.t.Helper()
	_, err := d.Exec(d.t.Context(), sql, args...)
	d.judge(err, condition, sql, words)
}

func (d db) judge(err error, condition, sql string, words []string) {
	d.t.Helper()
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		d.t.Errorf("%s: got %v, want it refused with %s", sql, err, condition)
		return
	}
	if pgErr.Code != condition && pgErr.ConstraintName != condition {
		d.t.Errorf("%s: refused with %s (constraint %q): %s; want %s", sql, pgErr.Code, pgErr.ConstraintName, pgErr.Message, condition)
	}
	said := pgErr.Message + "\n" + pgErr.Detail + "\n" + pgErr.Hint
	for _, word := range words {
		if !strings.Contains(said, word) {
			d.t.Errorf("%s: the refusal %q does not say %q", sql, said, word)
		}
	}
}

// one returns the only value of the only row of a query.
func one[T any](d db, sql string, args ...any) T {
	d.t.Helper()
	rows, err := d.Query(d.t.Context(), sql, args...)
	if err != nil {
		d.t.Fatalf("%.200s: %v", sql, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		d.t.Fatalf("%.200s: %v", sql, err)
	}
	return v
}

// list returns the only column of a query.
func list[T any](d db, sql string, args ...any) []T {
	d.t.Helper()
	rows, err := d.Query(d.t.Context(), sql, args...)
	if err != nil {
		d.t.Fatalf("%.200s: %v", sql, err)
	}
	v, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		d.t.Fatalf("%.200s: %v", sql, err)
	}
	return v
}

// sync registers a sync for all types unless patterns say otherwise.
func (d db) sync(name string, patterns ...string) {
	d.t.Helper()
	if len(patterns) == 0 {
		patterns = []string{"*"}
	}
	d.do("INSERT INTO outbox.sync (name, patterns) VALUES ($1, $2)", name, patterns)
}

// event inserts an event of a key and returns its id.
func (d db) event(key string) string {
	d.t.Helper()
	return one[string](d, "INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', $1, '{}') RETURNING id::text", key)
}

// states returns the states of a key's open deliveries, in their order.
func (d db) states(key string) string {
	d.t.Helper()
	return strings.Join(list[string](d, "SELECT state FROM outbox.open_delivery WHERE key = $1 ORDER BY sync, event_seq", key), " ")
}

// lane says how the lane of a key is: claimed, due, waits (for a time), stopped
// (for an operator or a backfill), or none.
func (d db) lane(key string) string {
	d.t.Helper()
	lanes := list[string](d, `
SELECT CASE WHEN claim IS NOT NULL THEN 'claimed' WHEN due_at = 'infinity' THEN 'stopped'
            WHEN due_at > clock_timestamp() THEN 'waits' ELSE 'due' END
  FROM outbox.lane WHERE key = $1 ORDER BY sync`, key)
	if len(lanes) == 0 {
		return "none"
	}
	return strings.Join(lanes, " ")
}

// fail makes the open delivery of an event failed, as a recording does.
func (d db) fail(event string) {
	d.t.Helper()
	d.do(`UPDATE outbox.delivery
	              SET state = 'failed', due_at = 'infinity', attempts = 3, total_attempts = 3, charged = 3, spent_ms = 900,
	                  error_class = 'permanent', error = 'HTTP 422: no such courtroom', body = 'old', body_sha256 = 'ab'
	            WHERE event_id = $1 AND state <> 'failed'`, event)
	d.do(`UPDATE outbox.lane AS l SET claim = NULL, claimed_by = NULL, due_at = 'infinity'
	       WHERE (l.sync, l.key) IN (SELECT d.sync, d.key FROM outbox.delivery AS d WHERE d.event_id = $1)`, event)
	if !one[bool](d, "SELECT count(*) > 0 AND bool_and(state = 'failed') FROM outbox.delivery WHERE event_id = $1::text::uuid", event) {
		d.t.Fatalf("event %s has no open delivery", event)
	}
}

// send claims the lane of an event, as a relay does.
func (d db) send(event string) {
	d.t.Helper()
	d.do(`INSERT INTO outbox.lane AS l (sync, key, due_at, claim, claimed_by)
	      SELECT sync, key, clock_timestamp() + interval '1 minute', gen_random_uuid(), 'relay-1' FROM outbox.delivery WHERE event_id = $1
	      ON CONFLICT (sync, key) DO UPDATE SET due_at = excluded.due_at, claim = excluded.claim, claimed_by = excluded.claimed_by`, event)
}

// dies ends the leases of all claims, as those of a relay that died.
func (d db) dies() {
	d.t.Helper()
	d.do("UPDATE outbox.lane SET due_at = clock_timestamp() - interval '1 second' WHERE claim IS NOT NULL")
}

// relay is the store of a relay with what it knows of new deliveries.
type relay struct {
	*outbox.Store
	arrivals outbox.Arrivals
}

// store opens the relay's side as a login of its group role.
func store(t testing.TB, url string) *relay {
	t.Helper()
	s, err := outbox.Open(t.Context(), pgtest.AsRole(t, url, "outbox_relay"), outbox.Options{Name: "relay-1", MaxConnections: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &relay{Store: s}
}

// blocked waits until the session of pid waits for a lock.
func (d db) blocked(pid uint32) {
	d.t.Helper()
	d.until("session waits for a lock", "SELECT cardinality(pg_blocking_pids($1)) > 0", int32(pid))
}

// waits waits until the session of pid waits in its statement: for a lock, or by
// the clock.
func (d db) waits(pid uint32) {
	d.t.Helper()
	d.until("session waits", "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND wait_event_type IN ('Lock', 'Timeout'))", int32(pid))
}

// until asks a question until the answer is yes.
func (d db) until(what, sql string, args ...any) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), time.Minute)
	defer cancel()
	for {
		var yes bool
		if err := d.QueryRow(ctx, sql, args...).Scan(&yes); err != nil {
			d.t.Fatalf("%s: %v", what, err)
		}
		if yes {
			return
		}
		select {
		case <-ctx.Done():
			d.t.Fatalf("not within a minute: %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// begin starts a statement in a session and returns the channel of its end.
func (d db) begin(sql string, args ...any) <-chan error {
	ended := make(chan error, 1)
	ctx := d.t.Context()
	go func() {
		_, err := d.Exec(ctx, sql, args...)
		ended <- err
	}()
	return ended
}

func (d db) ended(c <-chan error) error {
	d.t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(time.Minute):
		d.t.Fatal("the statement did not end within a minute")
		return nil
	}
}

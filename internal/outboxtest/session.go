// Package outboxtest is for tests that order each step of the outbox: it has sessions of the
// database, and a relay that claims and records when the test tells it to.
package outboxtest

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

// Session is a session of the database that is closed when its test ends.
type Session struct {
	*pgx.Conn
	T testing.TB
}

// Connect opens a session.
func Connect(t testing.TB, url string) Session {
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
	return Session{conn, t}
}

// With returns the session for a subtest.
func (d Session) With(t testing.TB) Session {
	t.Helper()
	return Session{d.Conn, t}
}

// As opens a session of a new login that is a member of one group role.
func As(t testing.TB, url, role string) Session {
	t.Helper()
	return Connect(t, pgtest.AsRole(t, url, role))
}

// Do runs a statement that must succeed and returns the rows it affected.
func (d Session) Do(sql string, args ...any) int64 {
	d.T.Helper()
	tag, err := d.Exec(d.T.Context(), sql, args...)
	if err != nil {
		d.T.Fatalf("%.200s: %v", sql, err)
	}
	return tag.RowsAffected()
}

// Past writes rows with an earlier time. It uses the session of a replica, in which the triggers
// do not run that set the time of a log row and refuse restored rows.
func (d Session) Past(sql string, args ...any) {
	d.T.Helper()
	d.Do("SET session_replication_role = replica")
	d.Do(sql, args...)
	d.Do("RESET session_replication_role")
}

// Refuses runs a statement that must fail with a SQLSTATE, or the constraint of
// that name, and whose message, detail and hint together contain all of words.
func (d Session) Refuses(condition, sql string, words []string, args ...any) {
	d.T.Helper()
	_, err := d.Exec(d.T.Context(), sql, args...)
	d.Judge(err, condition, sql, words)
}

// Judge checks the error of a statement that must fail, as Refuses does.
func (d Session) Judge(err error, condition, sql string, words []string) {
	d.T.Helper()
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		d.T.Errorf("%s: got %v, want it refused with %s", sql, err, condition)
		return
	}
	if pgErr.Code != condition && pgErr.ConstraintName != condition {
		d.T.Errorf("%s: refused with %s (constraint %q): %s; want %s", sql, pgErr.Code, pgErr.ConstraintName, pgErr.Message, condition)
	}
	said := pgErr.Message + "\n" + pgErr.Detail + "\n" + pgErr.Hint
	for _, word := range words {
		if !strings.Contains(said, word) {
			d.T.Errorf("%s: the refusal %q does not say %q", sql, said, word)
		}
	}
}

// One returns the only value of the only row of a query.
func One[T any](d Session, sql string, args ...any) T {
	d.T.Helper()
	rows, err := d.Query(d.T.Context(), sql, args...)
	if err != nil {
		d.T.Fatalf("%.200s: %v", sql, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	if err != nil {
		d.T.Fatalf("%.200s: %v", sql, err)
	}
	return v
}

// List returns the only column of a query.
func List[T any](d Session, sql string, args ...any) []T {
	d.T.Helper()
	rows, err := d.Query(d.T.Context(), sql, args...)
	if err != nil {
		d.T.Fatalf("%.200s: %v", sql, err)
	}
	v, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		d.T.Fatalf("%.200s: %v", sql, err)
	}
	return v
}

// Sync registers a sync for all types unless patterns say otherwise.
func (d Session) Sync(name string, patterns ...string) {
	d.T.Helper()
	if len(patterns) == 0 {
		patterns = []string{"*"}
	}
	d.Do("INSERT INTO outbox.sync (name, patterns) VALUES ($1, $2)", name, patterns)
}

// Event inserts an event of a key and returns its id.
func (d Session) Event(key string) string {
	d.T.Helper()
	return One[string](d, "INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', $1, '{}') RETURNING id::text", key)
}

// States returns the states of a key's open deliveries, in their order.
func (d Session) States(key string) string {
	d.T.Helper()
	return strings.Join(List[string](d, "SELECT state FROM outbox.open_delivery WHERE key = $1 ORDER BY sync, event_seq", key), " ")
}

// Lane returns the state of the lane of a key: claimed, due, waits (for a time), stopped (for an
// operator or a backfill), or none.
func (d Session) Lane(key string) string {
	d.T.Helper()
	lanes := List[string](d, `
SELECT CASE WHEN claim IS NOT NULL THEN 'claimed' WHEN due_at = 'infinity' THEN 'stopped'
            WHEN due_at > clock_timestamp() THEN 'waits' ELSE 'due' END
  FROM outbox.lane WHERE key = $1 ORDER BY sync`, key)
	if len(lanes) == 0 {
		return "none"
	}
	return strings.Join(lanes, " ")
}

// Fail sets the open delivery of an event to failed, as a recording does.
func (d Session) Fail(event string) {
	d.T.Helper()
	d.Do(`UPDATE outbox.delivery
	              SET state = 'failed', due_at = 'infinity', attempts = 3, total_attempts = 3, charged = 3, unclear = 2, spent_ms = 900,
	                  error_class = 'permanent', error = 'HTTP 422: no such courtroom', body = 'old', body_sha256 = 'ab'
	            WHERE event_id = $1 AND state <> 'failed'`, event)
	d.Do(`UPDATE outbox.lane AS l SET claim = NULL, claimed_by = NULL, due_at = 'infinity'
	       WHERE (l.sync, l.key) IN (SELECT d.sync, d.key FROM outbox.delivery AS d WHERE d.event_id = $1)`, event)
	if !One[bool](d, "SELECT count(*) > 0 AND bool_and(state = 'failed') FROM outbox.delivery WHERE event_id = $1::text::uuid", event) {
		d.T.Fatalf("event %s has no open delivery", event)
	}
}

// Send claims the lane of an event, as a relay does.
func (d Session) Send(event string) {
	d.T.Helper()
	d.Do(`INSERT INTO outbox.lane AS l (sync, key, due_at, claim, claimed_by)
	      SELECT sync, key, clock_timestamp() + interval '1 minute', gen_random_uuid(), 'relay-1' FROM outbox.delivery WHERE event_id = $1
	      ON CONFLICT (sync, key) DO UPDATE SET due_at = excluded.due_at, claim = excluded.claim, claimed_by = excluded.claimed_by`, event)
}

// Dies ends the leases of all claims, as if their relays had died.
func (d Session) Dies() {
	d.T.Helper()
	d.Do("UPDATE outbox.lane SET due_at = clock_timestamp() - interval '1 second' WHERE claim IS NOT NULL")
}

// Relay is the store of a relay with its Arrivals.
type Relay struct {
	*outbox.Store
	Arrivals outbox.Arrivals
}

// OpenRelay opens a store with a new login of the group role of relays.
func OpenRelay(t testing.TB, url string) *Relay {
	t.Helper()
	s, err := outbox.Open(t.Context(), pgtest.AsRole(t, url, "outbox_relay"), outbox.Options{Name: "relay-1", MaxConnections: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &Relay{Store: s}
}

// Blocked waits until the session of pid waits for a lock.
func (d Session) Blocked(pid uint32) {
	d.T.Helper()
	d.Until("session waits for a lock", "SELECT cardinality(pg_blocking_pids($1)) > 0", int32(pid))
}

// Waits waits until the session of pid waits in its statement, for a lock or in a sleep.
func (d Session) Waits(pid uint32) {
	d.T.Helper()
	d.Until("session waits", "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND state = 'active' AND wait_event_type IN ('Lock', 'Timeout'))", int32(pid))
}

// Until repeats a query until the result is true.
func (d Session) Until(what, sql string, args ...any) {
	d.T.Helper()
	ctx, cancel := context.WithTimeout(d.T.Context(), time.Minute)
	defer cancel()
	for {
		var yes bool
		if err := d.QueryRow(ctx, sql, args...).Scan(&yes); err != nil {
			d.T.Fatalf("%s: %v", what, err)
		}
		if yes {
			return
		}
		select {
		case <-ctx.Done():
			d.T.Fatalf("not within a minute: %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Begin starts a statement in a session and returns a channel for its error.
func (d Session) Begin(sql string, args ...any) <-chan error {
	ended := make(chan error, 1)
	ctx := d.T.Context()
	go func() {
		_, err := d.Exec(ctx, sql, args...)
		ended <- err
	}()
	return ended
}

// Ended returns the error of a statement that Begin started.
func (d Session) Ended(c <-chan error) error {
	d.T.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(time.Minute):
		d.T.Fatal("the statement did not end within a minute")
		return nil
	}
}

// Deliver finishes the open delivery of an event, as a recording does.
func (d Session) Deliver(event string) {
	d.T.Helper()
	d.Do(`WITH gone AS (DELETE FROM outbox.delivery WHERE event_id = $1 RETURNING *)
	      INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, attempt, outcome, code, request_sha256, revision, claim, relay)
	      SELECT sync, event_id, 'scheduling:updated', key, total_attempts + 1, 'delivered', 'HTTP 201', 'cd', revision, gen_random_uuid(), 'relay-1' FROM gone`, event)
	d.Do(`UPDATE outbox.lane AS l SET claim = NULL, claimed_by = NULL, due_at = clock_timestamp(), crashes = 0
	       WHERE l.key = (SELECT key FROM outbox.event WHERE id = $1)`, event)
	d.Do(`DELETE FROM outbox.lane AS l
	       WHERE l.key = (SELECT key FROM outbox.event WHERE id = $1)
	         AND NOT EXISTS (SELECT FROM outbox.delivery AS d WHERE d.sync = l.sync AND d.key = l.key)`, event)
}

// Must stops the test at an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Claim claims due lanes of the sync court, and releases lanes with nothing to send.
func Claim(t testing.TB, s *Relay) []*outbox.Delivery {
	t.Helper()
	c, err := s.Claim(t.Context(), outbox.ClaimRequest{Sync: "court", Capacity: 10, Lanes: 10, Lease: time.Minute}, &s.Arrivals)
	Must(t, err)
	Must(t, s.Record(t.Context(), "court", c.Idle).Err)
	return c.Deliveries
}

// Only claims exactly one due delivery. A relay checks a key again if its lane was claimed or locked,
// so the first poll may find nothing.
func Only(t testing.TB, s *Relay) *outbox.Delivery {
	t.Helper()
	var d []*outbox.Delivery
	for end := time.Now().Add(time.Minute); len(d) == 0; {
		if time.Now().After(end) {
			t.Fatal("claimed nothing for a minute, want one delivery")
		}
		d = Claim(t, s)
	}
	if len(d) != 1 {
		t.Fatalf("claimed %d deliveries, want 1", len(d))
	}
	return d[0]
}

// Delivered is the result of a delivery that the receiver accepted.
func Delivered(d *outbox.Delivery) outbox.Result {
	return outbox.Result{Delivery: d, Outcome: outbox.Delivered, Attempt: true, Code: "HTTP 201", AnsweredAt: time.Now()}
}

// Record records one result and releases the lane. It tries again, as a relay does: the first try may
// only find the new ctid of the row.
func Record(t testing.TB, s *Relay, r outbox.Result) bool {
	t.Helper()
	for range 3 {
		done := s.Record(t.Context(), "court", []outbox.Result{r})
		if Must(t, done.Err); done.Done[0] || done.Lost[0] {
			return done.Done[0]
		}
	}
	return false
}

// Backfill completes the registration of the sync court.
func Backfill(t testing.TB, s *Relay) {
	t.Helper()
	b := s.NewBackfill("court")
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		complete, _, err := b.Step(t.Context(), 100)
		Must(t, err)
		if complete {
			return
		}
	}
	t.Fatal("the registration is not complete after a minute")
}

// DeliverAll delivers until a key has no open delivery, and returns its events in the order of
// delivery. The test fails if a delivery is never claimed.
func DeliverAll(t *testing.T, d Session, s *Relay, key string) []string {
	t.Helper()
	for end := time.Now().Add(time.Minute); d.States(key) != ""; {
		if time.Now().After(end) {
			t.Fatalf("never claimed: %s, lane %s", d.States(key), d.Lane(key))
		}
		for _, c := range Claim(t, s) {
			Record(t, s, Delivered(c))
		}
	}
	if lane := d.Lane(key); lane != "none" {
		t.Errorf("nothing is open and the lane is %s", lane)
	}
	return List[string](d, "SELECT event_id::text FROM outbox.delivery_log WHERE outcome = 'delivered' AND key = $1 ORDER BY id", key)
}

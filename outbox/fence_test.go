package outbox_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const sync = "CourtCalendarSync"

// desk is a database with registered syncs and two relays' stores.
type desk struct {
	t    testing.TB
	pool *pgxpool.Pool
	a, b *outbox.Store
}

// newDesk registers the given syncs, by default one that takes everything.
func newDesk(t testing.TB, syncs ...outbox.Registration) *desk {
	t.Helper()
	if syncs == nil {
		syncs = []outbox.Registration{{Name: sync, Patterns: []string{"*"}, OnFailed: "block"}}
	}
	url := pgtest.New(t)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	d := &desk{t: t, pool: pool}
	for name, store := range map[string]**outbox.Store{"a": &d.a, "b": &d.b} {
		*store, err = outbox.Open(t.Context(), url, outbox.Options{Name: name, MaxConnections: 3})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*store).Close)
	}
	if _, err := d.a.Register(t.Context(), syncs); err != nil {
		t.Fatal(err)
	}
	for _, s := range syncs {
		fill := d.a.NewBackfill(s.Name)
		for complete := false; !complete; {
			if complete, _, err = fill.Step(t.Context(), 100); err != nil {
				t.Fatal(err)
			}
		}
	}
	return d
}

func (d *desk) exec(sql string, args ...any) {
	d.t.Helper()
	if _, err := d.pool.Exec(d.t.Context(), sql, args...); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
}

func (d *desk) text(sql string) string {
	d.t.Helper()
	var s string
	if err := d.pool.QueryRow(d.t.Context(), sql).Scan(&s); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
	return s
}

func (d *desk) emit(key string, n int) {
	d.t.Helper()
	d.exec(`INSERT INTO outbox.event (type, key, payload) VALUES ('x', $1, jsonb_build_object('n', $2::int))`, key, n)
}

func (d *desk) claim(s *outbox.Store, lease time.Duration) []*outbox.Delivery {
	d.t.Helper()
	c, err := s.Claim(d.t.Context(), outbox.ClaimRequest{Sync: sync, Budget: 100, Page: 200, Lease: lease})
	if err != nil {
		d.t.Fatal(err)
	}
	return c.Deliveries
}

func (d *desk) record(s *outbox.Store, outcome outbox.Outcome, claimed ...*outbox.Delivery) outbox.Recorded {
	d.t.Helper()
	var results []outbox.Result
	for _, c := range claimed {
		results = append(results, outbox.Result{Delivery: c, Outcome: outcome, Attempt: true, Code: "HTTP 200", AnsweredAt: time.Now()})
	}
	return s.Record(d.t.Context(), results, outbox.ClaimRequest{Sync: sync})
}

func (d *desk) log() string {
	return d.text(`SELECT coalesce(string_agg(relay || ' ' || outcome, ', ' ORDER BY id), '') FROM outbox.delivery_log`)
}

// A relay that was away longer than its lease comes back after another has
// taken the delivery over: whatever it has to say changes nothing.
func TestClaimThatIsGoneChangesNothing(t *testing.T) {
	tests := map[string]struct {
		other, late outbox.Outcome
		state, log  string
	}{
		"late success, the other is still sending": {"", outbox.Delivered, "sending", "a unknown, a lease_lost"},
		"late failure, the other is still sending": {"", outbox.Retry, "sending", "a unknown, a lease_lost"},
		"late failure, the other delivered":        {outbox.Delivered, outbox.Retry, "gone", "a unknown, b delivered, a lease_lost"},
		"late success, the other has it in retry":  {outbox.Retry, outbox.Delivered, "retry", "a unknown, b retry, a lease_lost"},
		"late unknown, the other delivered":        {outbox.Delivered, outbox.Unknown, "gone", "a unknown, b delivered, a lease_lost"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			late := d.claim(d.a, time.Millisecond)
			d.exec(`SELECT pg_sleep(0.01)`)
			c, err := d.b.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Budget: 1, Page: 10, Lease: time.Minute})
			if err != nil || len(c.Deliveries) != 1 || len(late) != 1 {
				t.Fatalf("claims: first %d, second %d, %v", len(late), len(c.Deliveries), err)
			}
			if test.other != "" {
				if r := d.record(d.b, test.other, c.Deliveries...); r.Err != nil || !r.Done[0] {
					t.Fatalf("the other's recording: %+v", r)
				}
			}
			r := d.record(d.a, test.late, late...)
			if r.Err != nil || r.Done[0] == r.Lost[0] {
				t.Errorf("late recording: done %v lost %v err %v", r.Done, r.Lost, r.Err)
			}
			if got := d.text(`SELECT coalesce((SELECT state FROM outbox.delivery), 'gone')`); got != test.state {
				t.Errorf("delivery is %s, want %s", got, test.state)
			}
			if got := d.log(); got != test.log {
				t.Errorf("log: %s, want %s", got, test.log)
			}
		})
	}
}

// The answer to a recording is lost: given again, it is found in the log.
func TestRecordingTwiceRecordsOnce(t *testing.T) {
	for _, outcome := range []outbox.Outcome{outbox.Delivered, outbox.Retry, outbox.Unknown, outbox.Failed} {
		t.Run(string(outcome), func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			claimed := d.claim(d.a, time.Minute)
			for i := range 2 {
				if r := d.record(d.a, outcome, claimed...); r.Err != nil || !r.Done[0] {
					t.Errorf("recording %d: %+v", i+1, r)
				}
			}
			if got, want := d.log(), "a "+string(outcome); got != want {
				t.Errorf("log: %s, want %s", got, want)
			}
		})
	}
}

// A psql session keeps a row locked: the others of the batch are recorded, the
// row itself as soon as it is free.
func TestLockedRowHoldsUpNobody(t *testing.T) {
	d := newDesk(t)
	for n := range 5 {
		d.emit(fmt.Sprint("H-", n), n)
	}
	claimed := d.claim(d.a, time.Minute)
	tx, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM outbox.delivery WHERE key = 'H-2' FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	r := d.record(d.a, outbox.Delivered, claimed...)
	var left []*outbox.Delivery
	for i, done := range r.Done {
		if !done {
			left = append(left, claimed[i])
		}
	}
	if r.Err != nil || len(left) != 1 || left[0].Key != "H-2" {
		t.Fatalf("left %v, err %v; want H-2 alone", left, r.Err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := d.record(d.a, outbox.Delivered, left...); r.Err != nil || !r.Done[0] {
		t.Errorf("after the lock: %+v", r)
	}
}

// Only the first unfinished delivery of a key is ever claimed, whatever its
// state; the rest of the key is parked and comes one by one.
func TestOnlyTheHeadOfAKeyIsClaimed(t *testing.T) {
	d := newDesk(t)
	for n := range 3 {
		d.emit("H-1", n)
	}
	head := d.claim(d.a, time.Minute)
	if len(head) != 1 || len(d.claim(d.b, time.Minute)) != 0 {
		t.Fatalf("claimed %d, want the head alone", len(head))
	}
	if got := d.text(`SELECT string_agg(state, ' ' ORDER BY event_seq) FROM outbox.delivery`); got != "sending queued queued" {
		t.Errorf("states: %s", got)
	}
	d.record(d.a, outbox.Retry, head...)
	if got := len(d.claim(d.b, time.Minute)); got != 1 {
		t.Fatalf("claimed %d at the retry, want 1", got)
	}
	d.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', claim = NULL, lease_until = NULL WHERE state = 'sending'`)
	if got := len(d.claim(d.b, time.Minute)); got != 0 {
		t.Errorf("claimed %d behind a failed head, want none", got)
	}
}

// The relay that finishes a delivery gets the next of its key in the same
// round trip.
func TestRecordClaimsTheNextOfTheKey(t *testing.T) {
	d := newDesk(t)
	for n := range 2 {
		d.emit("H-1", n)
	}
	head := d.claim(d.a, time.Minute)
	r := d.a.Record(t.Context(), []outbox.Result{{Delivery: head[0], Outcome: outbox.Delivered, Attempt: true}},
		outbox.ClaimRequest{Sync: sync, Budget: 1, Lease: time.Minute})
	if r.Err != nil || len(r.Claims.Deliveries) != 1 || string(r.Claims.Deliveries[0].Event.Payload) != `{"n": 1}` {
		t.Errorf("recorded %+v", r)
	}
}

// A writer's transaction and a relay's work never wait for each other.
func TestWritersNeverWaitForTheRelay(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	tx, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-1', '{"n": 2}')`); err != nil {
		t.Fatal(err)
	}
	claimed := d.claim(d.a, time.Minute) // beside the open writer of the same key
	if len(claimed) != 1 {
		t.Fatalf("claimed %d, want 1", len(claimed))
	}
	if r := d.record(d.a, outbox.Delivered, claimed...); r.Err != nil || !r.Done[0] {
		t.Errorf("recording beside an open writer: %+v", r)
	}
	holder, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(context.Background()) }()
	// The strongest thing a relay ever does, held open: every delivery and the sync's row locked.
	if _, err := holder.Exec(t.Context(), `SELECT FROM outbox.delivery FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Exec(t.Context(), `SELECT FROM outbox.sync FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	d.exec(`SET lock_timeout = '1s'; INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-1', '{"n": 3}'); RESET lock_timeout`)
}

// Events that come while the head is being sent, waits for a retry or failed
// wait behind it.
func TestNothingOvertakesAnUnfinishedHead(t *testing.T) {
	for _, outcome := range []outbox.Outcome{"", outbox.Retry, outbox.Failed} {
		t.Run("head "+string(outcome), func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			head := d.claim(d.a, time.Minute)
			if outcome != "" {
				results := []outbox.Result{{Delivery: head[0], Outcome: outcome, Attempt: true, Delay: time.Hour, Failed: outcome == outbox.Failed}}
				if r := d.a.Record(t.Context(), results, outbox.ClaimRequest{Sync: sync}); r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			d.emit("H-1", 2)
			for range 2 {
				if got := d.claim(d.b, time.Minute); len(got) != 0 {
					t.Errorf("claimed %s past the head", got[0].Event.Payload)
				}
			}
		})
	}
}

// A claim that was never used leaves no trace.
func TestReleaseLeavesTheDeliveryAsItWas(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	row := func() string {
		return d.text(`SELECT (to_jsonb(d) - 'due_at')::text FROM outbox.delivery AS d`)
	}
	before := row()
	claimed := d.claim(d.a, time.Minute)
	r := d.a.Record(t.Context(), []outbox.Result{{Delivery: claimed[0]}}, outbox.ClaimRequest{Sync: sync})
	if r.Err != nil || !r.Done[0] {
		t.Fatalf("release: %+v", r)
	}
	if after := row(); after != before {
		t.Errorf("released: %s\nbefore:   %s", after, before)
	}
	if got := d.log(); got != "" {
		t.Errorf("log: %s, want nothing", got)
	}
}

// What the finish of the head wakes does not wait for the slow check.
func TestFinishPromotesTheNext(t *testing.T) {
	d := newDesk(t)
	for n := range 3 {
		d.emit("H-1", n)
	}
	head := d.claim(d.a, time.Minute)
	if r := d.record(d.a, outbox.Delivered, head...); r.Err != nil || !r.Done[0] || !r.Claims.Woken || r.Claims.Asleep != nil {
		t.Fatalf("%+v, want it done, and the next woken for whoever claims it", r)
	}
	if got := d.states(); got != "pending queued" {
		t.Errorf("states: %s, want pending queued", got)
	}
}

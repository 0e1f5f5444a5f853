package outbox_test

import (
	"context"
	"fmt"
	"slices"
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
	t        testing.TB
	pool     *pgxpool.Pool
	a, b     *outbox.Store
	arrivals map[*outbox.Store]*outbox.Arrivals // what each relay knows of new deliveries
}

// newDesk registers the given syncs, by default one that takes everything.
func newDesk(t testing.TB, syncs ...outbox.Registration) *desk {
	t.Helper()
	return newDeskAt(t, pgtest.New(t), syncs...)
}

// newDeskAt is newDesk for a database that exists.
func newDeskAt(t testing.TB, url string, syncs ...outbox.Registration) *desk {
	t.Helper()
	if syncs == nil {
		syncs = []outbox.Registration{{Name: sync, Patterns: []string{"*"}, OnFailed: "block"}}
	}
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	d := &desk{t: t, pool: pool}
	login := pgtest.AsRole(t, url, "outbox_relay") // not the owner, who may write more into the log
	for name, store := range map[string]**outbox.Store{"a": &d.a, "b": &d.b} {
		*store, err = outbox.Open(t.Context(), login, outbox.Options{Name: name, MaxConnections: 3})
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

// known is the Arrivals of a relay, from its first claim on.
func (d *desk) known(s *outbox.Store) *outbox.Arrivals {
	if d.arrivals == nil {
		d.arrivals = map[*outbox.Store]*outbox.Arrivals{}
	}
	if d.arrivals[s] == nil {
		d.arrivals[s] = &outbox.Arrivals{}
	}
	return d.arrivals[s]
}

// poll claims up to capacity lanes once, and releases those that have nothing to send.
func (d *desk) poll(s *outbox.Store, capacity int, lease time.Duration) outbox.Claims {
	d.t.Helper()
	request := outbox.ClaimRequest{Sync: sync, Capacity: capacity, Lanes: capacity, Lease: lease, Wanted: wanted}
	c, err := s.Claim(d.t.Context(), request, d.known(s))
	if err != nil {
		d.t.Fatal(err)
	}
	d.giveBack(s, c)
	return c
}

func (d *desk) giveBack(s *outbox.Store, c outbox.Claims) {
	d.t.Helper()
	if r := s.Record(d.t.Context(), sync, c.Idle); r.Err != nil {
		d.t.Fatal(r.Err)
	}
}

// claim polls twice: the first poll may only make a waiting lane due.
func (d *desk) claim(s *outbox.Store) (claimed []*outbox.Delivery) {
	d.t.Helper()
	for range 2 {
		d.known(s).CheckAgainNow()
		claimed = append(claimed, d.poll(s, 100, time.Minute).Deliveries...)
	}
	return claimed
}

// suspect claims a suspect.
func (d *desk) suspect(s *outbox.Store) []*outbox.Delivery {
	d.t.Helper()
	c, err := s.ClaimOne(d.t.Context(), outbox.OneRequest{Sync: sync, Lease: time.Minute, Suspect: true})
	if err != nil {
		d.t.Fatal(err)
	}
	d.giveBack(s, c)
	return c.Deliveries
}

// endLease ends the leases of lanes.
func (d *desk) endLease() {
	d.t.Helper()
	d.exec(`UPDATE outbox.lane SET due_at = clock_timestamp() - interval '1 second' WHERE claim IS NOT NULL`)
}

// fail records deliveries as failed.
func (d *desk) fail(where string) {
	d.t.Helper()
	d.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent' WHERE ` + where)
	d.exec(`UPDATE outbox.lane SET due_at = 'infinity', claim = NULL, claimed_by = NULL
             WHERE (sync, key) IN (SELECT sync, key FROM outbox.delivery WHERE ` + where + `)`)
}

// states returns the states of open deliveries, by key.
func (d *desk) states() string {
	d.t.Helper()
	return d.text(`SELECT coalesce(string_agg(state, ' ' ORDER BY key, event_seq), 'none') FROM outbox.open_delivery`)
}

func numbers(ds []*outbox.Delivery) []int64 {
	var seqs []int64
	for _, d := range ds {
		seqs = append(seqs, d.Event.Seq)
	}
	return seqs
}

func (d *desk) record(s *outbox.Store, outcome outbox.Outcome, claimed ...*outbox.Delivery) outbox.Recorded {
	d.t.Helper()
	var results []outbox.Result
	for _, c := range claimed {
		results = append(results, outbox.Result{Delivery: c, Outcome: outcome, Attempt: true, Code: "HTTP 200", AnsweredAt: time.Now()})
	}
	return s.Record(d.t.Context(), sync, results)
}

func (d *desk) log() string {
	return d.text(`SELECT coalesce(string_agg(relay || ' ' || outcome, ', ' ORDER BY id), '') FROM outbox.delivery_log`)
}

// A relay records after its lease has ended and another relay has claimed the lane. The result
// changes nothing, whatever it is.
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
			late := d.claim(d.a)
			d.endLease()
			other := d.claim(d.b)
			if len(other) != 1 || len(late) != 1 {
				t.Fatalf("claims: first %d, second %d", len(late), len(other))
			}
			if test.other != "" {
				if r := d.record(d.b, test.other, other...); r.Err != nil || !r.Done[0] {
					t.Fatalf("the other's recording: %+v", r)
				}
			}
			r := d.record(d.a, test.late, late...)
			if r.Err != nil || r.Done[0] == r.Lost[0] {
				t.Errorf("late recording: done %v lost %v err %v", r.Done, r.Lost, r.Err)
			}
			if got := d.text(`SELECT coalesce((SELECT state FROM outbox.open_delivery), 'gone')`); got != test.state {
				t.Errorf("delivery is %s, want %s", got, test.state)
			}
			if got := d.log(); got != test.log {
				t.Errorf("log: %s, want %s", got, test.log)
			}
		})
	}
}

// The answer to a recording is lost. The second recording finds the first one in the log.
func TestRecordingTwiceRecordsOnce(t *testing.T) {
	for _, outcome := range []outbox.Outcome{outbox.Delivered, outbox.Retry, outbox.Unknown, outbox.Failed} {
		t.Run(string(outcome), func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			claimed := d.claim(d.a)
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

// A psql session has locked a row. The other results of the batch are recorded, and this one
// when the lock is released.
func TestLockedRowHoldsUpNobody(t *testing.T) {
	d := newDesk(t)
	for n := range 5 {
		d.emit(fmt.Sprint("H-", n), n)
	}
	claimed := d.claim(d.a)
	tx, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }() // or the pool waits for it, should the test fail
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

// Only the first delivery of a key is claimed, whatever its state. The others wait, and follow
// one by one.
func TestOnlyTheFirstOfAKeyIsClaimed(t *testing.T) {
	d := newDesk(t)
	for n := range 3 {
		d.emit("H-1", n)
	}
	head := d.claim(d.a)
	if len(head) != 1 || len(d.claim(d.b)) != 0 {
		t.Fatalf("claimed %d, want only the first", len(head))
	}
	if got := d.states(); got != "sending queued queued" {
		t.Errorf("states: %s", got)
	}
	d.record(d.a, outbox.Retry, head...)
	if got := len(d.claim(d.b)); got != 1 {
		t.Fatalf("claimed %d at the retry, want 1", got)
	}
	d.fail(`state = 'retry'`)
	if got := len(d.claim(d.b)); got != 0 {
		t.Errorf("claimed %d behind a failed first delivery, want none", got)
	}
}

// The first delivery of a lane is the one with the lowest number. Attempts, requeues and the
// order of the transactions do not change this.
func TestTheFirstOfALaneHasTheLowestNumber(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	older := d.begin(`SELECT pg_current_xact_id()`)
	d.emit("H-1", 2)
	if _, err := older.Exec(t.Context(), `INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'H-1', '{"n": 3}')`); err != nil {
		t.Fatal(err)
	}
	d.end(older, `COMMIT`)
	next := func(want int64) []*outbox.Delivery {
		t.Helper()
		claimed := d.claim(d.a)
		if got := numbers(claimed); !slices.Equal(got, []int64{want}) {
			t.Fatalf("claimed %v, want %d", got, want)
		}
		return claimed
	}
	d.record(d.a, outbox.Retry, next(1)...)
	first := next(1)
	r := d.a.Record(t.Context(), sync, []outbox.Result{{Delivery: first[0], Outcome: outbox.Delivered, Attempt: true, Stay: true}})
	if got := numbers(r.Next); r.Err != nil || !slices.Equal(got, []int64{2}) {
		t.Fatalf("Record returned %v, want 2: %v", got, r.Err)
	}
	d.record(d.a, outbox.Retry, r.Next...)
	d.fail(`event_seq = 2`)
	d.exec(`UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'`)
	next(2)
}

// A relay that records a finished delivery gets the next one of the key in the same round trip,
// if it asks for it. Otherwise the lane is released, and is due.
func TestRecordReturnsTheNextOfTheKey(t *testing.T) {
	for name, stay := range map[string]bool{"the lane is kept": true, "the lane is released": false} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			for n := range 3 {
				d.emit("H-1", n)
			}
			head := d.claim(d.a)
			r := d.a.Record(t.Context(), sync, []outbox.Result{{Delivery: head[0], Outcome: outbox.Delivered, Attempt: true, Stay: stay}})
			if r.Err != nil || !r.Done[0] {
				t.Fatalf("recorded %+v", r)
			}
			if stay && (len(r.Next) != 1 || string(r.Next[0].Event.Payload) != `{"n": 1}` || r.Next[0].Claim != head[0].Claim) {
				t.Errorf("Record returned %+v, want the second under the same claim", r.Next)
			}
			want := map[bool]string{true: "sending queued", false: "pending queued"}[stay]
			if got := d.states(); got != want {
				t.Errorf("states: %s, want %s", got, want)
			}
			if others := d.claim(d.b); !stay && !slices.Equal(numbers(others), []int64{2}) || stay && others != nil {
				t.Errorf("the other relay has claimed %v", numbers(others))
			}
		})
	}
}

// The lane of a key is closed with its last delivery.
func TestAFinishedKeyLeavesNoLane(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	d.emit("H-2", 1)
	claimed := d.claim(d.a)
	d.emit("H-2", 2)
	d.record(d.a, outbox.Delivered, claimed...)
	if got := d.text(`SELECT string_agg(key, ' ') FROM outbox.lane`); got != "H-2" {
		t.Errorf("lanes of %s, want H-2 alone", got)
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
	claimed := d.claim(d.a) // while a writer of the same key is open
	if len(claimed) != 1 {
		t.Fatalf("claimed %d, want 1", len(claimed))
	}
	if r := d.record(d.a, outbox.Delivered, claimed...); r.Err != nil || !r.Done[0] {
		t.Errorf("recording during an open writer: %+v", r)
	}
	holder, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(context.Background()) }()
	// The strongest locks that a relay takes, in an open transaction: on all deliveries and lanes, and on the sync's row.
	for _, table := range []string{"outbox.delivery", "outbox.lane", "outbox.sync"} {
		if _, err := holder.Exec(t.Context(), `SELECT FROM `+table+` FOR UPDATE`); err != nil {
			t.Fatal(err)
		}
	}
	d.exec(`SET lock_timeout = '1s'; INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-1', '{"n": 3}'); RESET lock_timeout`)
}

// The first delivery of a key is in flight, waits for a retry or has failed. New events of the
// key wait behind it.
func TestNothingOvertakesAnUnfinishedFirst(t *testing.T) {
	for _, outcome := range []outbox.Outcome{"", outbox.Retry, outbox.Failed} {
		t.Run("first "+string(outcome), func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			head := d.claim(d.a)
			if outcome != "" {
				results := []outbox.Result{{Delivery: head[0], Outcome: outcome, Attempt: true, Delay: time.Hour, Failed: outcome == outbox.Failed}}
				if r := d.a.Record(t.Context(), sync, results); r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			d.emit("H-1", 2)
			for range 2 {
				if got := d.claim(d.b); len(got) != 0 {
					t.Errorf("claimed %s before the first", got[0].Event.Payload)
				}
			}
		})
	}
}

// A claim that was released without an attempt changes nothing, and is not in the log.
func TestReleaseLeavesTheDeliveryAsItWas(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	row := func() string {
		return d.text(`SELECT to_jsonb(d)::text FROM outbox.delivery AS d`)
	}
	before := row()
	claimed := d.claim(d.a)
	r := d.a.Record(t.Context(), sync, []outbox.Result{{Delivery: claimed[0]}})
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

// The answer to a release is lost, and another relay claims the lane. The second release is
// done, and not a lost claim.
func TestAReleaseThatIsRepeatedIsDone(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	release := []outbox.Result{{Delivery: d.claim(d.a)[0]}}
	for range 2 {
		if r := d.a.Record(t.Context(), sync, release); r.Err != nil || !r.Done[0] || r.Lost[0] {
			t.Errorf("release: %+v", r)
		}
	}
}

// The attempt of a relay that died is logged once, also if the next relay does not get the
// answer of the statement that logs it.
func TestUnknownIsLoggedOnce(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	d.claim(d.a)
	d.endLease()
	idle, err := d.b.ClaimWithoutAnswer(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 9, Lanes: 9, Lease: time.Minute}, d.known(d.b))
	if err != nil || len(idle) != 1 {
		t.Fatalf("%d lanes, %v", len(idle), err)
	}
	if r := d.b.Record(t.Context(), sync, idle); r.Err != nil || !r.Done[0] {
		t.Fatalf("released: %+v", r)
	}
	again := d.claim(d.b)
	if len(again) != 1 || again[0].Attempts != 1 {
		t.Fatalf("claimed %+v, want one with the attempt of the relay that died", again)
	}
	if r := d.record(d.b, outbox.Delivered, again...); r.Err != nil || !r.Done[0] {
		t.Fatalf("recorded %+v", r)
	}
	if got := d.log(); got != "a unknown, b delivered" {
		t.Errorf("log: %s", got)
	}
}

// A result after the end of the lease shows that the relay did not die, so its lost claim is not
// counted as a crash.
func TestALateAnswerTakesACrashOffTheCount(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	late := d.claim(d.a)
	d.endLease()
	taken := d.claim(d.b)
	if len(taken) != 1 || taken[0].Crashes != 1 {
		t.Fatalf("taken over: %+v, want one crash", taken)
	}
	if r := d.record(d.a, outbox.Delivered, late...); r.Err != nil || !r.Lost[0] {
		t.Fatalf("the late answer: %+v", r)
	}
	if got := d.text(`SELECT concat_ws(' ', claimed_by, crashes) FROM outbox.lane`); got != "b 0" {
		t.Errorf("the lane is claimed by, and has crashes: %s, want b 0", got)
	}
}

// A backfill adds a delivery before the one in flight. It is sent before the next one.
func TestRecordReturnsTheFirstOfTheKey(t *testing.T) {
	for state, want := range map[string][]int64{"failed": nil, "pending": {1}} {
		t.Run(state, func(t *testing.T) {
			d := newDesk(t)
			for n := range 3 {
				d.emit("H-1", n)
			}
			d.exec(`DELETE FROM outbox.delivery WHERE event_seq = 1`)
			second := d.claim(d.a)
			d.exec(`INSERT INTO outbox.delivery (sync, key, event_seq, event_id) SELECT $1, key, seq, id FROM outbox.event WHERE seq = 1`, sync)
			if got := d.claim(d.b); got != nil {
				t.Errorf("claimed %v while another of the key is in flight", numbers(got))
			}
			if state == "failed" {
				d.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity' WHERE event_seq = 1`)
			}
			r := d.a.Record(t.Context(), sync, []outbox.Result{{Delivery: second[0], Outcome: outbox.Delivered, Attempt: true, Stay: true}})
			if got := numbers(r.Next); r.Err != nil || !slices.Equal(got, want) {
				t.Errorf("Record returned %v, %v; want %v", got, r.Err, want)
			}
			if got := d.claim(d.b); got != nil {
				t.Errorf("the other relay claimed %v", numbers(got))
			}
		})
	}
}

// A claim does not wait for locked rows. It claims the others.
func TestAClaimSkipsLockedRows(t *testing.T) {
	d := newDesk(t)
	for n := range 6 {
		d.emit(string(rune('a'+n)), n)
	}
	claimed := d.claim(d.a)
	d.record(d.a, outbox.Retry, claimed...) // the lanes are there and due
	tx, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM outbox.lane WHERE key IN ('a', 'b') FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT FROM outbox.delivery WHERE event_seq = 4 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	got := numbers(d.claim(d.b))
	slices.Sort(got)
	if !slices.Equal(got, []int64{3, 5, 6}) {
		t.Errorf("claimed %v, want 3, 5 and 6", got)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.afterAMoment()
	got = numbers(d.claim(d.b))
	slices.Sort(got)
	if !slices.Equal(got, []int64{1, 2, 4}) {
		t.Errorf("claimed %v after the locks, want 1, 2 and 4", got)
	}
}

// The capacity bounds a claim. The next claims take the other new keys and existing lanes, and
// each once.
func TestSmallClaimsBringEverythingOnce(t *testing.T) {
	for _, lanes := range []int{0, 1, 3} {
		t.Run(fmt.Sprint("lanes ", lanes), func(t *testing.T) {
			d := newDesk(t)
			for n := range 20 {
				d.emit(fmt.Sprint("H-", n), n)
			}
			if lanes > 0 {
				d.record(d.a, outbox.Retry, d.poll(d.a, 10, time.Minute).Deliveries...)
			}
			var got []int64
			for range 30 {
				request := outbox.ClaimRequest{Sync: sync, Capacity: 3, Lanes: lanes, Latest: 1, Lease: time.Minute}
				c, err := d.b.Claim(t.Context(), request, d.known(d.b))
				if err != nil || len(c.Deliveries) > 3 {
					t.Fatalf("claimed %d, %v; want 3 at most", len(c.Deliveries), err)
				}
				got = append(got, numbers(c.Deliveries)...)
			}
			slices.Sort(got)
			want := make([]int64, 20)
			for i := range want {
				want[i] = int64(i + 1)
			}
			if !slices.Equal(got, want) {
				t.Errorf("claimed %v, want each of 20 once", got)
			}
		})
	}
}

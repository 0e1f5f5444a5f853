package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	gosync "sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/outbox"
)

// begin opens a transaction. It is rolled back at the end of the test, at the latest.
func (d *desk) begin(statements ...string) pgx.Tx {
	d.t.Helper()
	tx, err := d.pool.Begin(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	for _, s := range statements {
		if _, err := tx.Exec(d.t.Context(), s); err != nil {
			d.t.Fatalf("%s: %v", s, err)
		}
	}
	return tx
}

// afterAMoment makes lanes due that are due in 60 ms. A lane with a locked row waits for 50 ms.
func (d *desk) afterAMoment() {
	d.t.Helper()
	d.exec(`
UPDATE outbox.lane SET due_at = clock_timestamp()
 WHERE ctid IN (SELECT ctid FROM outbox.lane
                 WHERE claim IS NULL AND due_at BETWEEN clock_timestamp() AND clock_timestamp() + interval '60 milliseconds'
                   FOR UPDATE SKIP LOCKED)`)
}

func (d *desk) end(tx pgx.Tx, how string) {
	d.t.Helper()
	if _, err := tx.Exec(d.t.Context(), how); err != nil {
		d.t.Fatalf("%s: %v", how, err)
	}
	d.afterAMoment()
}

// blocked starts do, and waits until a session waits in a statement that contains part. It
// returns a function that returns the result of do.
func blocked[T any](d *desk, part string, do func() T) (result func() T) {
	d.t.Helper()
	done := make(chan T, 1)
	go func() { done <- do() }()
	waiting.For(d.t, time.Minute, "somebody waits in "+part, func() bool {
		return d.text(fmt.Sprintf(`
SELECT EXISTS (SELECT FROM pg_stat_activity
                WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid() AND query LIKE '%%%s%%'
                  AND (wait_event_type = 'Lock' OR wait_event = 'PgSleep'))::text`, part)) == "true"
	})
	return func() T { return <-done }
}

// lanesAreWhole checks the rules of lanes.
func (d *desk) lanesAreWhole() {
	d.t.Helper()
	const broken = `SELECT coalesce(string_agg(concat_ws(' ', b.sync, b.key, 'breaks rule', b.rule, b.says), E'\n'), '') FROM (` + outbox.BrokenLanes + `) AS b`
	if got := d.text(broken); got != "" {
		d.t.Error(got)
	}
}

func delivered(ds ...*outbox.Delivery) (results []outbox.Result) {
	for _, c := range ds {
		results = append(results, outbox.Result{Delivery: c, Outcome: outbox.Delivered, Attempt: true, Ref: &outbox.Ref{ExternalID: "x"}})
	}
	return results
}

// The lane is closed while a new event of its key is committed.
//
//	a: claims event 1                 has delivered it, records: sees only event 1, closes the lane …     commits
//	writer:                                                                                            event 2 commits
//	b:                                                                                                 polls: the lane is claimed, so the key is to be checked
//	b:                                                                                                                polls again: no lane, opens it
func TestALaneClosedDuringANewEventIsOpenedAgain(t *testing.T) {
	for name, relay := range map[string]func(*desk) *outbox.Store{
		"the relay that has seen the event meanwhile": func(d *desk) *outbox.Store { return d.b },
		"the relay that closes the lane":              func(d *desk) *outbox.Store { return d.a },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			first := d.poll(d.a, 9, time.Minute).Deliveries
			d.poll(d.b, 9, time.Minute)
			holder := d.begin(`INSERT INTO outbox.external_ref (sync, key, event_seq) VALUES ('CourtCalendarSync', 'H-1', 0)`)
			recording := blocked(d, "record finished", func() outbox.Recorded { return d.a.Record(t.Context(), sync, delivered(first...)) })
			d.emit("H-1", 2)
			d.known(d.b).CheckAgainNow()
			if c := d.poll(d.b, 9, time.Minute); len(c.Deliveries) > 0 {
				t.Fatalf("claimed %v while the lane is claimed", numbers(c.Deliveries))
			}
			d.end(holder, "ROLLBACK")
			if r := recording(); r.Err != nil || !r.Done[0] || r.Next != nil {
				t.Fatalf("recorded %+v", r)
			}
			if got := d.text(`SELECT count(*)::text FROM outbox.lane`); got != "0" {
				t.Fatal("the lane was not closed: the test does not show what it is for")
			}
			s := relay(d)
			d.known(s).CheckAgainNow()
			if got := numbers(d.poll(s, 9, time.Minute).Deliveries); !slices.Equal(got, []int64{2}) {
				t.Errorf("claimed %v, want the second event", got)
			}
			d.lanesAreWhole()
		})
	}
}

// A writer gets an early number and commits late, after a later event of the key.
//
//	writer: event 1 …                                                              commits
//	other writer:      event 2 commits
//	relay:                              claims 2 and does something with it, polls         polls
func TestAnEarlyNumberThatCommitsLateIsSent(t *testing.T) {
	later := outbox.Result{Outcome: outbox.Retry, Attempt: true, Delay: time.Hour}
	failed := outbox.Result{Outcome: outbox.Failed, Attempt: true, Failed: true}
	done := outbox.Result{Outcome: outbox.Delivered, Attempt: true}
	for name, result := range map[string]*outbox.Result{
		"the lane is gone": &done, "the lane is claimed": nil, "the lane waits for a retry": &later, "the first has failed": &failed,
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			const write = `INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-1', '{}')`
			late := d.begin(write)
			d.exec(write)
			second := d.claim(d.a)
			if !slices.Equal(numbers(second), []int64{2}) {
				t.Fatalf("claimed %v, want the second", numbers(second))
			}
			if result != nil {
				r := *result
				r.Delivery = second[0]
				if got := d.a.Record(t.Context(), sync, []outbox.Result{r}); got.Err != nil || !got.Done[0] {
					t.Fatalf("recorded %+v", got)
				}
			}
			for n := range 3 { // the relay's snapshots leave the writer behind
				d.emit(fmt.Sprint("other ", n), n)
				d.record(d.a, outbox.Delivered, d.claim(d.a)...)
			}
			d.end(late, "COMMIT")
			got := d.claim(d.a)
			if result == nil {
				if got != nil {
					t.Fatalf("claimed %v while the second is in flight", numbers(got))
				}
				got = d.keep(d.a, second[0])
			}
			if !slices.Equal(numbers(got), []int64{1}) {
				t.Errorf("claimed %v, want the first", numbers(got))
			}
			d.lanesAreWhole()
		})
	}
}

// An operator requeues a failed delivery and does not commit yet.
//
//	operator: requeues event 1 …                                             commits or rolls back
//	writer:                       event 2 commits
//	relay:                                         polls                                        polls
func TestARequeueThatCommitsLateIsSent(t *testing.T) {
	for _, policy := range []string{"block", "supersede"} {
		for how, want := range map[string]string{
			"COMMIT":   "1 requeued, 1 delivered, 2 delivered",
			"ROLLBACK": map[string]string{"block": "", "supersede": "1 superseded, 2 delivered"}[policy],
		} {
			t.Run(policy+" "+how, func(t *testing.T) {
				d := newDesk(t, outbox.Registration{Name: sync, Patterns: []string{"*"}, OnFailed: policy})
				l := &keyLine{desk: d, key: "H-1", failing: map[int64]bool{1: true}}
				l.fails(1)
				l.failing[1] = false
				end := l.open("requeue", 1)
				l.write("x")
				l.run()
				if got := l.state(); got != "1 failed, 2 queued" {
					t.Fatalf("during the open requeue: %s", got)
				}
				end(how)
				l.run()
				const log = `SELECT coalesce(string_agg(event_seq || ' ' || outcome, ', ' ORDER BY id), '') FROM outbox.delivery_log WHERE outcome <> 'failed'`
				if got := d.text(log); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
				d.lanesAreWhole()
			})
		}
	}
}

// A failed delivery is requeued while a relay sends an earlier delivery of the lane.
//
//	relay:    event 2 has failed; event 1 came late and is in flight       records event 1               polls
//	operator:                                          requeues event 2 …                   commits
func TestARequeueDuringARecordingIsSent(t *testing.T) {
	d := newDesk(t)
	const write = `INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-1', '{}')`
	late := d.begin(write)
	d.exec(write)
	second := d.claim(d.a)
	d.a.Record(t.Context(), sync, []outbox.Result{{Delivery: second[0], Outcome: outbox.Failed, Attempt: true, Failed: true}})
	d.end(late, "COMMIT")
	first := d.claim(d.a)
	if !slices.Equal(numbers(first), []int64{1}) {
		t.Fatalf("claimed %v, want the first", numbers(first))
	}
	operator := d.begin(`UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'`)
	if got := d.keep(d.a, first[0]); got != nil {
		t.Fatalf("Record returned %v, whose requeue is not committed", numbers(got))
	}
	d.claim(d.a)
	d.end(operator, "COMMIT")
	if got := numbers(d.claim(d.a)); !slices.Equal(got, []int64{2}) {
		t.Errorf("claimed %v after the requeue, want the second", got)
	}
	d.lanesAreWhole()
}

// An operator discards a delivery and does not commit yet.
//
//	operator: discards event 1 …                                            commits or rolls back
//	relay:                        opens the lane, sends nothing, releases it                       polls
func TestADeliveryBeingDiscardedIsNotSent(t *testing.T) {
	for how, want := range map[string][]int64{"COMMIT": {2}, "ROLLBACK": {1}} {
		t.Run(how, func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			d.emit("H-1", 2)
			operator := d.begin(`SELECT outbox.discard(sync, event_id, 'not wanted') FROM outbox.delivery WHERE event_seq = 1`)
			if got := d.claim(d.a); got != nil {
				t.Fatalf("claimed %v, which is being discarded", numbers(got))
			}
			d.end(operator, how)
			if got := numbers(d.claim(d.a)); !slices.Equal(got, want) {
				t.Errorf("claimed %v, want %v", got, want)
			}
			d.lanesAreWhole()
		})
	}
}

// An operator discards a delivery that a relay has read and is just claiming.
//
//	relay:    opens or claims the lane, reads event 1 …                         commits, rolls back, or stays
//	operator:                                          locks event 1, waits …                                is refused, or has discarded it
func TestADiscardWaitsForAClaimInProgress(t *testing.T) {
	const isSending, tryAgain = "55000", "55P03"
	discards := map[string]string{
		"discard":     `SELECT outbox.discard(sync, event_id, 'not wanted') FROM outbox.delivery`,
		"discard_all": `SELECT outbox.discard_all('CourtCalendarSync', 'not wanted')`,
	}
	for name, discard := range discards {
		for _, laneIsThere := range []bool{false, true} {
			for how, want := range map[string]string{"COMMIT": isSending, "ROLLBACK": "", "SELECT 1": tryAgain} {
				t.Run(fmt.Sprintf("%s, %s, the lane is there %t", name, how, laneIsThere), func(t *testing.T) {
					d := newDesk(t)
					d.emit("H-1", 1)
					if laneIsThere {
						d.record(d.a, outbox.Retry, d.claim(d.a)...)
					}
					if name == "discard_all" {
						d.exec(`SELECT outbox.retire('CourtCalendarSync', 'closed')`)
					}
					relay := d.begin()
					claimed, err := d.a.ClaimIn(t.Context(), relay, outbox.ClaimRequest{Sync: sync, Capacity: 1, Lanes: 1, Lease: time.Minute}, &outbox.Arrivals{})
					if err != nil || len(claimed) != 1 {
						t.Fatalf("claimed %v, %v", numbers(claimed), err)
					}
					discarding := blocked(d, "outbox.discard", func() error {
						_, err := d.pool.Exec(t.Context(), discard)
						return err
					})
					d.end(relay, how)
					err = discarding()
					if refusal, _ := errors.AsType[*pgconn.PgError](err); refusal == nil && want != "" || refusal != nil && refusal.Code != want {
						t.Errorf("the discard: %v, want SQLSTATE %q", err, want)
					}
					want := map[string]string{"COMMIT": "1", "ROLLBACK": "0", "SELECT 1": "1"}[how]
					if got := d.text(`SELECT count(*)::text FROM outbox.delivery`); got != want {
						t.Errorf("%s deliveries are open, want %s", got, want)
					}
				})
			}
		}
	}
}

// Discards do not wait for each other, also if their transactions stay open.
func TestDiscardsDoNotWaitForEachOther(t *testing.T) {
	d := newDesk(t)
	for _, key := range []string{"H-1", "H-2"} {
		d.emit(key, 1)
	}
	d.record(d.a, outbox.Retry, d.claim(d.a)...)
	d.begin(`SELECT outbox.discard(sync, event_id, 'not wanted') FROM outbox.delivery WHERE key = 'H-1'`)
	d.exec(`SELECT outbox.discard(sync, event_id, 'not wanted') FROM outbox.delivery WHERE key = 'H-2'`)
}

// Two relays open lanes for the same keys.
//
//	a: opens lanes for the latest ten of twenty keys …                 commits
//	b:                                       opens lanes for all, waits        has the other ten
func TestTwoRelaysOpenEachLaneOnce(t *testing.T) {
	d := newDesk(t)
	d.poll(d.a, 9, time.Minute) // from now on it finds the latest first
	for n := range 20 {
		d.emit(fmt.Sprint("H-", n), n)
	}
	tx := d.begin()
	first, err := d.a.ClaimIn(t.Context(), tx, outbox.ClaimRequest{Sync: sync, Capacity: 10, Lanes: 10, Lease: time.Minute}, d.known(d.a))
	if err != nil || len(first) != 10 {
		t.Fatalf("claimed %v, %v", numbers(first), err)
	}
	claiming := blocked(d, "open lanes", func() outbox.Claims {
		c, err := d.b.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 100, Lanes: 100, Lease: time.Minute}, d.known(d.b))
		if err != nil {
			t.Error(err)
		}
		return c
	})
	d.end(tx, "COMMIT")
	all := slices.Concat(numbers(first), numbers(claiming().Deliveries))
	slices.Sort(all)
	if len(all) != 20 || len(slices.Compact(all)) != 20 {
		t.Errorf("claimed %v, want each of twenty once", all)
	}
	d.lanesAreWhole()
}

// Two relays find the same keys, one from the latest on and the other from the oldest on. Both
// wait in the middle for a third transaction that opens a lane. Relays open lanes in the order
// of the keys: in any other order, the two would wait for each other.
//
//	somebody: opens the lane m …                                   rolls back
//	a:                       opens lanes, waits                        has them all
//	b:                                    opens the same lanes, waits              has none
func TestRelaysOpenLanesInOneOrder(t *testing.T) {
	d := newDesk(t)
	d.poll(d.a, 9, time.Minute)
	for n := range 26 {
		d.emit(string(rune('a'+n)), n)
	}
	holder := d.begin(`INSERT INTO outbox.lane (sync, key, due_at) VALUES ('CourtCalendarSync', 'm', 'infinity')`)
	var claims []func() int
	for _, s := range []*outbox.Store{d.a, d.b} {
		known := d.known(s)
		claims = append(claims, blocked(d, "open lanes", func() int {
			c, err := s.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 100, Lanes: 100, Lease: time.Minute}, known)
			if err != nil {
				t.Error(err)
			}
			return len(c.Deliveries)
		}))
		waiting.For(t, time.Minute, "they wait", func() bool {
			return d.text(`SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == fmt.Sprint(len(claims))
		})
	}
	d.end(holder, "ROLLBACK")
	if a, b := claims[0](), claims[1](); a+b != 26 {
		t.Errorf("claimed %d and %d, want 26 together", a, b)
	}
	d.lanesAreWhole()
}

// The same many times, without pauses.
func TestRelaysOpenLanesTogether(t *testing.T) {
	d := newDesk(t)
	d.poll(d.a, 9, time.Minute)
	const rounds, each = 15, 200
	for round := range rounds {
		d.exec(`INSERT INTO outbox.event (type, key, payload) SELECT 'x', md5($1 || ' ' || n), '{}' FROM generate_series(1, $2::int) AS n`, fmt.Sprint(round), each)
		var mu gosync.Mutex
		var got []int64
		var relays gosync.WaitGroup
		for i, s := range []*outbox.Store{d.a, d.b, d.b} {
			known := &outbox.Arrivals{}
			if i == 0 {
				known = d.known(d.a)
			}
			relays.Go(func() {
				for range 2 {
					c, err := s.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: each, Lanes: each, Lease: time.Minute}, known)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					got = append(got, numbers(c.Deliveries)...)
					mu.Unlock()
				}
			})
		}
		relays.Wait()
		slices.Sort(got)
		if len(got) != each || len(slices.Compact(got)) != each {
			t.Fatalf("round %d: %d claimed, of %d deliveries", round, len(got), each)
		}
	}
	d.lanesAreWhole()
}

// everything claims until nothing is left, and checks that each number came once.
func (d *desk) everything(s *outbox.Store, capacity, want int) {
	d.t.Helper()
	var got []int64
	for range want/capacity + 10 {
		got = append(got, numbers(d.poll(s, capacity, time.Minute).Deliveries)...)
	}
	slices.Sort(got)
	if len(got) != want || len(slices.Compact(got)) != want {
		d.t.Errorf("%d claimed, each once; want %d", len(got), want)
	}
	d.lanesAreWhole()
}

const manyKeys = `INSERT INTO outbox.event (type, key, payload) SELECT 'x', $1 || n, '{}' FROM generate_series(1, $2::int) AS n`

// A transaction writes more events than one poll reads. It commits between two polls, or after a
// poll has seen it running.
func TestATransactionLargerThanAPollIsFoundWhole(t *testing.T) {
	const events = outbox.ArrivalPage*2 + 500
	for name, runs := range map[string]bool{"it began after the look": false, "it ran during the look": true} {
		for _, capacity := range []int{300, 5000} {
			t.Run(fmt.Sprintf("%s, capacity %d", name, capacity), func(t *testing.T) {
				d := newDesk(t)
				d.poll(d.a, 9, time.Minute)
				tx := d.begin()
				if _, err := tx.Exec(t.Context(), manyKeys, "large ", events); err != nil {
					t.Fatal(err)
				}
				if runs {
					for n := range 2 {
						d.emit("small", n)
						d.record(d.a, outbox.Delivered, d.poll(d.a, 9, time.Minute).Deliveries...)
					}
				}
				d.end(tx, "COMMIT")
				d.everything(d.a, capacity, events)
			})
		}
	}
}

// Events that are written while a relay scans older ones are found too.
//
//	relay:  scans the first page of many                scans the next, and so on to the end
//	writer:                                event commits                       event commits
func TestDeliveriesOfALongScanAreFound(t *testing.T) {
	for _, latest := range []int{0, 2} {
		t.Run(fmt.Sprint("latest ", latest), func(t *testing.T) {
			d := newDesk(t)
			const many = outbox.ArrivalPage + 200
			d.exec(manyKeys, "old ", many)
			var got []int64
			written := many
			for look := range 40 {
				request := outbox.ClaimRequest{Sync: sync, Capacity: 100, Lanes: 50, Latest: latest, Lease: time.Minute}
				c, err := d.a.Claim(t.Context(), request, d.known(d.a))
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, numbers(c.Deliveries)...)
				if look < 20 {
					d.emit(fmt.Sprint("new ", written), written)
					written++
				}
			}
			slices.Sort(got)
			if len(got) != written || len(slices.Compact(got)) != written {
				t.Errorf("%d claimed, want each of %d once", len(got), written)
			}
			d.lanesAreWhole()
		})
	}
}

// Many transactions run at once, and commit in another order than that of their beginnings.
func TestTransactionsThatCommitInAnyOrderAreFound(t *testing.T) {
	d := newDesk(t)
	config := d.pool.Config()
	var open []*pgx.Conn
	const writers = 25
	for n := range writers {
		conn, err := pgx.ConnectConfig(t.Context(), config.ConnConfig)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		for _, statement := range []string{`BEGIN`, fmt.Sprintf(`INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-%d', '{}')`, n)} {
			if _, err := conn.Exec(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		open = append(open, conn)
		if n%5 == 0 {
			d.poll(d.a, 9, time.Minute)
		}
	}
	var got []int64
	for step := range writers { // 0, 7, 14, 21, 3, …: each once
		n := step * 7 % writers
		if _, err := open[n].Exec(t.Context(), `COMMIT`); err != nil {
			t.Fatal(err)
		}
		c := d.poll(d.a, 9, time.Minute)
		if len(c.Deliveries) != 1 || c.Deliveries[0].Key != fmt.Sprint("H-", n) {
			t.Fatalf("after the commit of H-%d: claimed %v", n, numbers(c.Deliveries))
		}
		got = append(got, numbers(c.Deliveries)...)
	}
	if len(got) != writers {
		t.Errorf("claimed %d, want %d", len(got), writers)
	}
	d.lanesAreWhole()
}

// A prepared transaction counts as running until it is committed.
func TestAPreparedTransactionIsFoundOnceItCommits(t *testing.T) {
	d := newDesk(t)
	d.poll(d.a, 9, time.Minute)
	tx := d.begin(`INSERT INTO outbox.event (type, key, payload) VALUES ('x', 'H-1', '{}')`)
	name := "prepared in " + d.text(`SELECT current_database()`)
	d.end(tx, fmt.Sprintf(`PREPARE TRANSACTION '%s'`, name))
	for n := range 3 {
		d.emit("other", n)
		d.record(d.a, outbox.Delivered, d.poll(d.a, 9, time.Minute).Deliveries...)
	}
	d.exec(fmt.Sprintf(`COMMIT PREPARED '%s'`, name))
	if got := numbers(d.poll(d.a, 9, time.Minute).Deliveries); !slices.Equal(got, []int64{1}) {
		t.Errorf("claimed %v, want the prepared one", got)
	}
}

// Deliveries of a restored backup have the numbers of another cluster's transactions,
// which may be far beyond ours.
func TestDeliveriesOfAnotherClusterAreFoundAndStarveNobody(t *testing.T) {
	d := newDesk(t)
	const restored = outbox.ArrivalPage*2 + 10
	d.exec(manyKeys, "restored ", restored)
	d.exec(`UPDATE outbox.delivery SET changed_in = (8000000000000000000 + event_seq)::text::xid8`)
	for n := range 20 {
		d.emit(fmt.Sprint("ours ", n), n)
	}
	d.everything(d.a, 500, restored+20)
	if got := d.text(`SELECT count(*)::text FROM outbox.delivery WHERE changed_in >= pg_snapshot_xmax(pg_current_snapshot())`); got != "0" {
		t.Errorf("%s deliveries still have the number of a transaction of another cluster", got)
	}
	d.emit("next", 1)
	if c := d.poll(d.a, 500, time.Minute); len(c.Deliveries) != 1 || c.Unopened {
		t.Errorf("claimed %v of the next events, unopened: %t", numbers(c.Deliveries), c.Unopened)
	}
}

// The policy of a sync is changed while a failure is recorded by the old policy.
//
//	relay:   records that event 1 has failed, by the old policy …            commits
//	command:                                       changes the policy, waits          makes failed lanes due
//	relay:                                                                                           judges event 1
//
// Or the command is first, and the lane is due again when the policy is known.
func TestAPolicyThatChangesDuringARecordingIsObeyed(t *testing.T) {
	supersede := outbox.Registration{Name: sync, Patterns: []string{"*"}, OnFailed: "supersede"}
	for name, test := range map[string]func(*desk, []outbox.Result){
		"the recording is first": func(d *desk, failed []outbox.Result) {
			tx := d.begin()
			if r, err := d.a.RecordIn(t.Context(), tx, sync, failed); err != nil || !r.Done[0] {
				t.Fatalf("recorded %+v, %v", r, err)
			}
			applying := blocked(d, "FROM outbox.sync", func() error {
				_, err := d.b.Apply(t.Context(), supersede)
				return err
			})
			d.end(tx, "COMMIT")
			if err := applying(); err != nil {
				t.Fatal(err)
			}
		},
		"the change is first": func(d *desk, failed []outbox.Result) {
			holder := d.begin(`INSERT INTO outbox.external_ref (sync, key, event_seq) VALUES ('CourtCalendarSync', 'H-1', 0)`)
			recording := blocked(d, "record unfinished", func() outbox.Recorded { return d.a.Record(t.Context(), sync, failed) })
			if _, err := d.b.Apply(t.Context(), supersede); err != nil {
				t.Fatal(err)
			}
			d.end(holder, "ROLLBACK")
			if r := recording(); r.Err != nil || !r.Done[0] {
				t.Fatalf("recorded %+v", r)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			d.emit("H-1", 2)
			first := d.claim(d.a)
			test(d, []outbox.Result{{Delivery: first[0], Outcome: outbox.Failed, Failed: true, Attempt: true, Ref: &outbox.Ref{ExternalID: "x"}}})
			if got := numbers(d.claim(d.a)); !slices.Equal(got, []int64{2}) {
				t.Errorf("claimed %v, want the second, which supersedes the first", got)
			}
			if got := d.log(); got != "a failed, a superseded" {
				t.Errorf("log: %s", got)
			}
			d.lanesAreWhole()
		})
	}
}

// A claim cannot read its deliveries and releases its lanes. A later claim takes them.
//
//	operator: locks the table of events …                       commits
//	relay:    opens the lane, cannot read the event, releases it        polls again
func TestAClaimThatFailsLosesNothing(t *testing.T) {
	d := newDesk(t)
	impatient := openStore(t, d.pool.Config().ConnString()+"&lock_timeout=100ms", outbox.Options{Name: "impatient"})
	known := d.known(impatient)
	var idle []outbox.Result
	look := func() ([]int64, error) {
		c, err := impatient.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 9, Lanes: 9, Lease: time.Minute}, known)
		idle = c.Idle
		return numbers(c.Deliveries), err
	}
	for n := range 3 { // at the first look, and at later ones
		d.emit(fmt.Sprint("H-", n), n)
		holder := d.begin(`LOCK TABLE outbox.event IN ACCESS EXCLUSIVE MODE`)
		if got, err := look(); err == nil {
			t.Fatalf("claimed %v although the events cannot be read", got)
		}
		d.end(holder, "ROLLBACK")
		if r := impatient.Record(t.Context(), sync, idle); r.Err != nil { // what was claimed in vain is given back
			t.Fatal(r.Err)
		}
		if got, err := look(); err != nil || !slices.Equal(got, []int64{int64(n + 1)}) {
			t.Errorf("claimed %v, %v; want %d", got, err, n+1)
		}
	}
	d.lanesAreWhole()
}

// Keys whose first delivery has failed use no capacity of a claim: their lanes are opened
// unclaimed, and wait.
func TestLanesBehindFailedDeliveriesTakeNoCapacity(t *testing.T) {
	d := newDesk(t)
	for n := range 5 {
		d.emit(fmt.Sprint("Q-", n), 1)
	}
	d.exec(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent'`)
	d.emit("Z-1", 1)
	for n := range 5 {
		d.emit(fmt.Sprint("Q-", n), 2)
	}
	c := d.poll(d.a, 1, time.Minute)
	if len(c.Deliveries) != 1 || c.Deliveries[0].Key != "Z-1" {
		t.Errorf("claimed %v and %d idle, want Z-1", numbers(c.Deliveries), len(c.Idle))
	}
	if got := d.text(`SELECT count(*)::text FROM outbox.lane WHERE claim IS NULL AND due_at = 'infinity'`); got != "5" {
		t.Errorf("%s lanes wait for a failed delivery, want 5", got)
	}
}

// The oldest new keys come first, also if all new keys are among the latest. A steady stream of
// new keys must not delay one of them.
func TestTheOldestNewKeysComeFirst(t *testing.T) {
	d := newDesk(t)
	for n := range 6 {
		d.emit(fmt.Sprint("H-", n+1), 1)
	}
	c, err := d.a.Claim(t.Context(), outbox.ClaimRequest{Sync: sync, Capacity: 4, Latest: 1, Lease: time.Minute}, d.known(d.a))
	if err != nil {
		t.Fatal(err)
	}
	if got := numbers(c.Deliveries); !slices.Equal(got, []int64{1, 2, 3, 6}) {
		t.Errorf("claimed %v, want the three oldest and the latest", got)
	}
}

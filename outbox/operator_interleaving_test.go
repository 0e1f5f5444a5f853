package outbox_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// SQLSTATEs of the refusals of operators' functions.
const (
	wrongState = "55000" // object_not_in_prerequisite_state
	serialize  = "40001" // serialization_failure
)

// interleaving is a sync with one key, a relay, and sessions whose steps the test orders.
type interleaving struct {
	t        *testing.T
	url      string
	admin    outboxtest.Session
	operator outboxtest.Session
	relay    *outboxtest.Relay
	e        []string // the key's events, in order
}

func newInterleaving(t *testing.T, events int) *interleaving {
	t.Helper()
	url := pgtest.New(t)
	i := &interleaving{t: t, url: url, admin: outboxtest.Connect(t, url), operator: outboxtest.As(t, url, "outbox_operator"), relay: outboxtest.OpenRelay(t, url)}
	i.admin.Sync("court")
	for range events {
		i.e = append(i.e, i.admin.Event("k"))
	}
	return i
}

func (i *interleaving) expect(when, states, lane string) {
	i.t.Helper()
	if got := i.admin.States("k"); got != states {
		i.t.Errorf("%s: states %q, want %q", when, got, states)
	}
	if got := i.admin.Lane("k"); got != lane {
		i.t.Errorf("%s: the lane is %s, want %s", when, got, lane)
	}
}

// findsNothing lets the relay claim, which must bring nothing. It polls long enough to check keys again.
func (i *interleaving) findsNothing(when string) {
	i.t.Helper()
	for end := time.Now().Add(150 * time.Millisecond); time.Now().Before(end); {
		if d := outboxtest.Claim(i.t, i.relay); len(d) != 0 {
			i.t.Fatalf("%s: claimed %s, want nothing", when, d[0].Event.ID)
		}
	}
}

// finishBegins records the key's first delivery in a transaction that stays open.
func (i *interleaving) finishBegins() outboxtest.Session {
	i.t.Helper()
	finish := outboxtest.Connect(i.t, i.url)
	finish.Do("BEGIN")
	finish.Do("SELECT FROM outbox.lane WHERE key = 'k' FOR UPDATE")
	finish.Deliver(i.e[0])
	return finish
}

func (i *interleaving) drains(want ...string) {
	i.t.Helper()
	if got := outboxtest.DeliverAll(i.t, i.admin, i.relay, "k"); !slices.Equal(got, want) {
		i.t.Errorf("delivered %v, want %v", got, want)
	}
}

// An event gets a lane if it is committed while the lane of its key is being closed.
func TestInsertWhileItsLaneIsClosed(t *testing.T) {
	t.Run("the insert commits first", func(t *testing.T) {
		i := newInterleaving(t, 1)
		first := outboxtest.Only(t, i.relay)
		second := i.admin.Event("k")
		if !outboxtest.Record(t, i.relay, outboxtest.Delivered(first)) {
			t.Error("the first was not recorded")
		}
		i.expect("the lane stays open for the second", "pending", "due")
		i.drains(i.e[0], second)
	})
	t.Run("the close commits first", func(t *testing.T) {
		i := newInterleaving(t, 1)
		first := outboxtest.Only(t, i.relay)
		writer := outboxtest.Connect(t, i.url)
		writer.Do("BEGIN")
		second := writer.Event("k")
		if !outboxtest.Record(t, i.relay, outboxtest.Delivered(first)) {
			t.Error("the recording waited for a writer")
		}
		i.expect("closed", "", "none")
		writer.Do("COMMIT")
		i.drains(i.e[0], second)
	})
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		t.Run("a look while the close is open, "+end, func(t *testing.T) {
			i := newInterleaving(t, 1)
			outboxtest.Only(t, i.relay)
			finish := i.finishBegins()
			second := i.admin.Event("k")
			i.findsNothing("during an open close")
			i.expect("during an open close", "sending queued", "claimed")
			finish.Do(end)
			if end == "ROLLBACK" {
				i.findsNothing("while the claim holds")
				i.admin.Dies()
			}
			i.drains(i.e[0], second)
		})
	}
	t.Run("another relay looks while the close is open", func(t *testing.T) {
		i := newInterleaving(t, 1)
		outboxtest.Only(t, i.relay)
		finish := i.finishBegins()
		second := i.admin.Event("k")
		other := outboxtest.OpenRelay(t, i.url)
		if d := outboxtest.Claim(t, other); len(d) != 0 {
			t.Errorf("claimed %d while the one before it is unfinished", len(d))
		}
		finish.Do("COMMIT")
		if d := outboxtest.Only(t, other); d.Event.ID != second {
			t.Errorf("claimed %s, want the second", d.Event.ID)
		}
	})
}

// A recording does not wait for a locked lane: the result is recorded again later.
func TestRecordingWhileTheLaneIsLocked(t *testing.T) {
	i := newInterleaving(t, 2)
	other := i.admin.Event("other")
	claims := outboxtest.Claim(t, i.relay)
	holder := outboxtest.Connect(t, i.url)
	holder.Do("BEGIN")
	holder.Do("SELECT FROM outbox.lane WHERE key = 'k' FOR SHARE")
	var first *outbox.Delivery
	for _, d := range claims {
		r := i.relay.Record(t.Context(), "court", []outbox.Result{outboxtest.Delivered(d)})
		outboxtest.Must(t, r.Err)
		if d.Event.ID == other {
			if !r.Done[0] {
				t.Error("the recording of another key waits for the lock")
			}
			continue
		}
		if first = d; r.Done[0] || r.Lost[0] {
			t.Errorf("recorded %+v while the lane is locked, want neither done nor lost", r)
		}
	}
	holder.Do("COMMIT")
	if !outboxtest.Record(t, i.relay, outboxtest.Delivered(first)) {
		t.Error("not recorded after the lock was released")
	}
	i.drains(i.e...)
}

func TestClaimDuringADiscardOfTheFirst(t *testing.T) {
	for _, open := range []string{"with a lane", "without a lane"} {
		for _, state := range []string{"failed", "retry"} {
			for _, end := range []string{"COMMIT", "ROLLBACK"} {
				t.Run(open+", "+state+", "+end, func(t *testing.T) {
					i := newInterleaving(t, 2)
					lane := map[string]string{"failed": "stopped", "retry": "waits"}[state]
					if state == "failed" {
						i.admin.Fail(i.e[0])
					} else {
						i.admin.Do("UPDATE outbox.delivery SET state = 'retry', due_at = now() + interval '1 hour', attempts = 1 WHERE event_id = $1", i.e[0])
					}
					if open == "with a lane" {
						i.findsNothing("behind it")
						i.expect("with a lane", state+" queued", lane)
					}
					i.operator.Do("BEGIN")
					i.operator.Do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
					i.findsNothing("during an open discard")
					i.operator.Do(end)
					if end == "COMMIT" {
						i.drains(i.e[1])
						return
					}
					i.findsNothing("behind it, after the rollback")
					i.expect("after the rollback", state+" queued", lane)
					if state == "failed" {
						i.operator.Do("SELECT outbox.requeue('court')")
						i.drains(i.e...)
					}
				})
			}
		}
	}
}

func TestDiscardOfTheSecondWhileTheFirstIsRecorded(t *testing.T) {
	t.Run("discard first", func(t *testing.T) {
		i := newInterleaving(t, 3)
		first := outboxtest.Only(t, i.relay)
		i.expect("claimed", "sending queued queued", "claimed")
		i.operator.Do("BEGIN")
		i.operator.Do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
		if r := i.relay.Record(t.Context(), "court", []outbox.Result{outboxtest.Delivered(first)}); r.Done[0] || r.Lost[0] || r.Err != nil {
			t.Errorf("recorded %+v during the discard, want it left for the next try", r)
		}
		i.operator.Do("COMMIT")
		if !outboxtest.Record(t, i.relay, outboxtest.Delivered(first)) {
			t.Error("not recorded after the discard")
		}
		i.expect("the third can be sent", "pending", "due")
		i.drains(i.e[0], i.e[2])
	})
	t.Run("finish first", func(t *testing.T) {
		i := newInterleaving(t, 3)
		outboxtest.Only(t, i.relay)
		finish := i.finishBegins()
		late := i.operator.Begin("SELECT outbox.discard('court', $1, 'r')", i.e[1])
		i.admin.Waits(i.operator.PgConn().PID())
		finish.Do("COMMIT")
		outboxtest.Must(t, i.operator.Ended(late))
		i.expect("the third can be sent", "pending", "due")
		i.drains(i.e[0], i.e[2])
	})
	t.Run("discards of the second and the third, then the finish", func(t *testing.T) {
		i := newInterleaving(t, 4)
		first := outboxtest.Only(t, i.relay)
		other := outboxtest.As(t, i.url, "outbox_operator")
		i.operator.Do("BEGIN")
		i.operator.Do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
		other.Do("BEGIN")
		late := other.Begin("SELECT outbox.discard('court', $1, 'r')", i.e[2])
		i.admin.Waits(other.PgConn().PID())
		i.operator.Do("COMMIT")
		outboxtest.Must(t, other.Ended(late))
		if r := i.relay.Record(t.Context(), "court", []outbox.Result{outboxtest.Delivered(first)}); r.Done[0] || r.Lost[0] || r.Err != nil {
			t.Errorf("recorded %+v during the second discard, want it left for the next try", r)
		}
		other.Do("COMMIT")
		if !outboxtest.Record(t, i.relay, outboxtest.Delivered(first)) {
			t.Error("not recorded after the discards")
		}
		i.expect("the fourth can be sent", "pending", "due")
		i.drains(i.e[0], i.e[3])
	})
}

func TestOperatorsOpenTransactionHoldsOneKeyOnly(t *testing.T) {
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		t.Run(end, func(t *testing.T) {
			i := newInterleaving(t, 2)
			other := i.admin.Event("other")
			i.admin.Fail(i.e[0])
			i.operator.Do("BEGIN")
			i.operator.Do("UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'")
			// The relay does not wait for the operator: it sends the other key, and this key keeps its order.
			if d := outboxtest.Only(t, i.relay); d.Event.ID != other || !outboxtest.Record(t, i.relay, outboxtest.Delivered(d)) {
				t.Errorf("claimed %+v during the open requeue, want the other key's event, recorded", d)
			}
			i.findsNothing("during an open requeue")
			i.operator.Do(end)
			if end == "ROLLBACK" {
				i.findsNothing("after the rollback")
				i.operator.Do("SELECT outbox.requeue('court', 'k')")
			}
			i.drains(i.e...)
		})
	}
}

func TestClaimDoesNotWaitForADiscardOfTwoOfAKey(t *testing.T) {
	i := newInterleaving(t, 2)
	i.admin.Fail(i.e[0])
	i.findsNothing("behind a failed one")
	i.expect("behind a failed one", "failed queued", "stopped")
	i.operator.Do("BEGIN")
	i.operator.Do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
	i.operator.Do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	third, other := i.admin.Event("k"), i.admin.Event("other")
	if d := outboxtest.Only(t, i.relay); d.Event.ID != other {
		t.Errorf("claimed %s during the open discards, want the other key's event", d.Event.ID)
	}
	i.operator.Do("COMMIT")
	i.drains(third)
}

func TestClaimDoesNotWaitForARequeueAndADiscardOfOneDelivery(t *testing.T) {
	i := newInterleaving(t, 1)
	i.admin.Fail(i.e[0])
	i.operator.Do("BEGIN")
	i.operator.Do("SELECT outbox.requeue('court')")
	i.operator.Do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
	second, other := i.admin.Event("k"), i.admin.Event("other")
	if d := outboxtest.Only(t, i.relay); d.Event.ID != other {
		t.Errorf("claimed %s during the open discard, want the other key's event", d.Event.ID)
	}
	i.findsNothing("during the open discard")
	i.operator.Do("COMMIT")
	i.drains(second)
}

// A locked delivery is not sent. Its lane is released, and claimed again when the lock is
// released.
func TestDeliveryThatIsLockedWhileTheOneBeforeItFinishes(t *testing.T) {
	for _, strength := range []string{"FOR UPDATE", "FOR NO KEY UPDATE", "FOR KEY SHARE"} {
		t.Run(strength, func(t *testing.T) {
			i := newInterleaving(t, 2)
			first := outboxtest.Only(t, i.relay)
			i.operator.Do("BEGIN")
			i.operator.Do("SELECT FROM outbox.delivery WHERE event_id = $1 "+strength, i.e[1])
			r := i.relay.Record(t.Context(), "court", []outbox.Result{{Delivery: first, Outcome: outbox.Delivered, Attempt: true, Stay: true}})
			if outboxtest.Must(t, r.Err); !r.Done[0] {
				t.Fatal("the recording waited for an operator's lock on another delivery")
			}
			if len(r.Next) != 0 {
				t.Fatal("returned a locked delivery as the next")
			}
			i.findsNothing("while it is locked")
			i.operator.Do("ROLLBACK")
			i.drains(i.e...)
		})
	}
}

func TestOperatorAtRepeatableRead(t *testing.T) {
	begin := func(i *interleaving, level string) {
		i.operator.Do("BEGIN ISOLATION LEVEL " + level)
		i.operator.Do("SELECT count(*) FROM outbox.delivery") // takes the snapshot
	}
	for _, level := range []string{"REPEATABLE READ", "SERIALIZABLE"} {
		t.Run("discard is refused at "+level, func(t *testing.T) {
			i := newInterleaving(t, 1)
			begin(i, level)
			i.operator.Refuses(wrongState, "SELECT outbox.discard('court', $1, 'r')",
				[]string{"in a " + strings.ToLower(level) + " transaction", "BEGIN ISOLATION LEVEL READ COMMITTED"}, i.e[0])
			i.operator.Do("ROLLBACK")
			i.drains(i.e...)
		})
	}
	t.Run("replay of an event that was replayed meanwhile is refused", func(t *testing.T) {
		i := newInterleaving(t, 1)
		outboxtest.Record(t, i.relay, outboxtest.Delivered(outboxtest.Only(t, i.relay)))
		begin(i, "REPEATABLE READ")
		outboxtest.As(t, i.url, "outbox_operator").Do("SELECT outbox.replay('court', $1, 'r')", i.e[0])
		i.operator.Refuses(serialize, "SELECT outbox.replay('court', $1, 'r')", nil, i.e[0])
		i.operator.Do("ROLLBACK")
		i.drains(i.e[0], i.e[0])
	})
	t.Run("requeue of a row that was requeued meanwhile is refused", func(t *testing.T) {
		i := newInterleaving(t, 1)
		i.admin.Fail(i.e[0])
		begin(i, "REPEATABLE READ")
		outboxtest.As(t, i.url, "outbox_operator").Do("SELECT outbox.requeue('court')")
		i.operator.Refuses(serialize, "UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'", nil)
		i.operator.Do("ROLLBACK")
		if n := outboxtest.One[int](i.admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'requeued'"); n != 1 {
			t.Errorf("%d requeues in the log, want 1", n)
		}
		i.drains(i.e...)
	})
}

// A newer event supersedes the failed one, also if the event between them was discarded.
func TestSupersedeAfterADiscardOfTheNewerRow(t *testing.T) {
	i := newInterleaving(t, 3)
	i.admin.Do("UPDATE outbox.sync SET on_failed = 'supersede'")
	first := outboxtest.Only(t, i.relay)
	i.operator.Do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	if !outboxtest.Record(t, i.relay, outbox.Result{Delivery: first, Outcome: outbox.Failed, Failed: true, Attempt: true, Class: "permanent", Error: "no"}) {
		t.Fatal("the failure was not recorded")
	}
	i.drains(i.e[2])
	if n := outboxtest.One[int](i.admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'superseded' AND event_id = $1::text::uuid", i.e[0]); n != 1 {
		t.Errorf("%d superseded rows, want 1", n)
	}
}

func TestSupersedeDuringARequeueOfTheFailedRow(t *testing.T) {
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		t.Run(end, func(t *testing.T) {
			i := newInterleaving(t, 1)
			i.admin.Do("UPDATE outbox.sync SET on_failed = 'supersede'")
			i.admin.Fail(i.e[0])
			i.operator.Do("BEGIN")
			i.operator.Do("SELECT outbox.requeue('court')")
			newer := i.admin.Event("k")
			i.findsNothing("during an open requeue of the failed one")
			i.operator.Do(end)
			if end == "COMMIT" {
				i.drains(i.e[0], newer)
				return
			}
			i.drains(newer)
			if n := outboxtest.One[int](i.admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'superseded' AND event_id = $1::text::uuid", i.e[0]); n != 1 {
				t.Errorf("%d superseded rows, want 1", n)
			}
		})
	}
}

func TestClaimDuringARequeueOfTheFirst(t *testing.T) {
	for _, open := range []string{"with a lane", "without a lane"} {
		for _, end := range []string{"COMMIT", "ROLLBACK"} {
			t.Run(open+", "+end, func(t *testing.T) {
				i := newInterleaving(t, 2)
				i.admin.Fail(i.e[0])
				if open == "with a lane" {
					i.findsNothing("behind a failed one")
				}
				i.operator.Do("BEGIN")
				i.operator.Do("SELECT outbox.requeue('court')")
				i.findsNothing("behind an open requeue")
				i.operator.Do(end)
				if end == "ROLLBACK" {
					i.findsNothing("after the rollback")
					i.operator.Do("SELECT outbox.requeue('court')")
				}
				i.drains(i.e...)
			})
		}
	}
	t.Run("a claim is open: the requeue does not wait for it", func(t *testing.T) {
		i := newInterleaving(t, 2)
		i.admin.Fail(i.e[0])
		i.findsNothing("behind a failed one")
		claimer := outboxtest.Connect(t, i.url)
		claimer.Do("BEGIN")
		claimer.Send(i.e[0])
		outboxtest.Must(t, i.operator.Ended(i.operator.Begin("SELECT outbox.requeue('court')")))
		claimer.Do("ROLLBACK")
		i.expect("after both", "pending queued", "stopped") // until the relay looks
		i.drains(i.e...)
	})
}

// A replay gets its event_seq before it commits. An event that is written meanwhile has a later
// one, and may be claimed already.
func TestReplayThatCommitsWhileANewerEventIsBeingSent(t *testing.T) {
	open := func(t *testing.T) (i *interleaving, newer string) {
		t.Helper()
		i = newInterleaving(t, 1)
		i.drains(i.e...)
		i.operator.Do("BEGIN")
		i.operator.Do("SELECT outbox.replay('court', $1, 'r')", i.e[0])
		return i, i.admin.Event("k")
	}
	t.Run("the newer one is claimed: the replay waits for its end", func(t *testing.T) {
		i, newer := open(t)
		d := outboxtest.Only(t, i.relay)
		i.operator.Do("COMMIT")
		i.neverTwo(d)
		i.drains(i.e[0], newer, i.e[0])
	})
	t.Run("an event that commits while a later replay is being sent waits", func(t *testing.T) {
		i := newInterleaving(t, 1)
		i.drains(i.e...)
		writer := outboxtest.Connect(t, i.url)
		writer.Do("BEGIN")
		late := writer.Event("k")
		i.operator.Do("SELECT outbox.replay('court', $1, 'r')", i.e[0])
		d := outboxtest.Only(t, i.relay)
		writer.Do("COMMIT")
		i.neverTwo(d)
		i.drains(i.e[0], i.e[0], late)
	})
	t.Run("its relay died: the replay goes first", func(t *testing.T) {
		i, newer := open(t)
		outboxtest.Only(t, i.relay)
		i.operator.Do("COMMIT")
		i.findsNothing("while the claim holds")
		i.admin.Dies()
		if d := outboxtest.Only(t, i.relay); d.Event.ID != i.e[0] || !outboxtest.Record(t, i.relay, outboxtest.Delivered(d)) {
			t.Errorf("claimed %+v, want the replay, recorded", d)
		}
		i.drains(i.e[0], i.e[0], newer)
	})
	t.Run("the newer one is being claimed", func(t *testing.T) {
		i, newer := open(t)
		claimer := outboxtest.Connect(t, i.url)
		claimer.Do("BEGIN")
		claimer.Send(newer) // opens the lane
		i.operator.Do("COMMIT")
		late := make(chan []*outbox.Delivery, 1)
		go func() { // it waits for the end of that insert, as any insert of the same key does
			c, err := i.relay.Claim(t.Context(), outbox.ClaimRequest{Sync: "court", Capacity: 10, Lanes: 10, Lease: time.Minute}, &i.relay.Arrivals)
			if err != nil {
				t.Error(err)
			}
			late <- c.Deliveries
		}()
		i.admin.Until("the claim waits for the other", `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'relay-1' AND datname = current_database() AND wait_event_type = 'Lock')`)
		claimer.Do("COMMIT")
		if d := <-late; len(d) != 0 {
			t.Fatalf("claimed %d while another relay has the claim", len(d))
		}
		i.findsNothing("while the claim holds")
		i.admin.Dies()
		i.drains(i.e[0], i.e[0], newer)
	})
}

// neverTwo checks that nothing is claimed while a delivery is being sent.
func (i *interleaving) neverTwo(sending *outbox.Delivery) {
	i.t.Helper()
	if got := i.admin.Lane("k"); got != "claimed" {
		i.t.Errorf("the lane is %s, want claimed", got)
	}
	i.findsNothing("while another of the key is being sent")
	c, err := i.relay.ClaimOne(i.t.Context(), outbox.OneRequest{Sync: "court", Lease: time.Minute, Key: "k"})
	if err != nil || len(c.Deliveries) != 0 {
		i.t.Errorf("claimed %d of the key while another is being sent, %v", len(c.Deliveries), err)
	}
	if !outboxtest.Record(i.t, i.relay, outboxtest.Delivered(sending)) {
		i.t.Error("what was being sent is not recorded")
	}
	if d := outboxtest.Only(i.t, i.relay); !outboxtest.Record(i.t, i.relay, outboxtest.Delivered(d)) {
		i.t.Error("the other one is not recorded")
	}
}

func TestSyncRegisteredWhileWritersAreOpen(t *testing.T) {
	for _, level := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		t.Run(level, func(t *testing.T) {
			url := pgtest.New(t)
			admin, relay := outboxtest.Connect(t, url), outboxtest.OpenRelay(t, url)
			writer := outboxtest.As(t, url, "outbox_writer")
			admin.Event("before")
			writer.Do("BEGIN ISOLATION LEVEL " + level)
			writer.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'open', '{}')") // its snapshot knows no sync
			_, err := relay.Register(t.Context(), []outbox.Registration{{Name: "court", Patterns: []string{"*"}, OnFailed: "block"}})
			outboxtest.Must(t, err)
			b := relay.NewBackfill("court")
			for range 3 {
				complete, wait, err := b.Step(t.Context(), 100)
				if err != nil || complete || !wait {
					t.Fatalf("step: complete %t, wait %t, %v; want it to wait for the writer", complete, wait, err)
				}
			}
			reason := outboxtest.One[string](admin, "SELECT hold_reason FROM outbox.sync")
			if pid := outboxtest.One[string](writer, "SELECT pg_backend_pid()::text"); !strings.Contains(reason, "pid "+pid) {
				t.Errorf("the hold's reason %q does not name pid %s", reason, pid)
			}
			writer.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'later', '{}')")
			writer.Do("COMMIT")
			for complete := false; !complete; {
				complete, _, err = b.Step(t.Context(), 1)
				outboxtest.Must(t, err)
			}
			got := outboxtest.List[string](admin, "SELECT key FROM outbox.delivery ORDER BY event_seq")
			if want := []string{"before", "open", "later"}; !slices.Equal(got, want) {
				t.Errorf("deliveries of %v, want %v", got, want)
			}
			if outboxtest.One[bool](admin, "SELECT hold_kind IS NOT NULL FROM outbox.sync") {
				t.Error("the sync is still on hold")
			}
		})
	}
}

// A lane waits only for its first delivery. When that is discarded, the next one may be sent at
// once.
func TestDiscardMakesTheLaneDue(t *testing.T) {
	i := newInterleaving(t, 3)
	d := outboxtest.Only(t, i.relay)
	if !outboxtest.Record(t, i.relay, outbox.Result{Delivery: d, Outcome: outbox.Retry, Attempt: true, Class: "transient", Error: "HTTP 502", Delay: time.Hour}) {
		t.Fatal("the retry was not recorded")
	}
	i.expect("put off", "retry queued queued", "waits")
	i.operator.Do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	i.findsNothing("a discard further behind changes nothing for the first")
	i.expect("after the discard of the second", "retry queued", "waits")
	i.operator.Do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
	i.expect("after the discard of the first", "pending", "due")
	i.drains(i.e[2])
}

// An open discard locks its own delivery, and no other of the key.
func TestOpenDiscardFurtherBehindLeavesTheNextAlone(t *testing.T) {
	i := newInterleaving(t, 3)
	i.operator.Do("BEGIN")
	i.operator.Do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	const unlocked = "SELECT event_seq FROM outbox.delivery ORDER BY event_seq FOR UPDATE SKIP LOCKED"
	if got := outboxtest.List[int64](i.admin, unlocked); !slices.Equal(got, []int64{1, 3}) {
		t.Errorf("not locked during the open discard: %v, want the first and the third", got)
	}
	i.operator.Do("COMMIT")
	i.drains(i.e[0], i.e[2])
}

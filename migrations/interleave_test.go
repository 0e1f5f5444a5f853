package migrations_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// finishesAll delivers whatever comes until nothing is left, and returns the
// order of the key's events. It fails when a delivery is never claimed.
func finishesAll(t *testing.T, d db, s *relay, key string) []string {
	t.Helper()
	for end := time.Now().Add(time.Minute); d.states(key) != ""; {
		if time.Now().After(end) {
			t.Fatalf("never claimed: %s, lane %s", d.states(key), d.lane(key))
		}
		for _, c := range claim(t, s) {
			record(t, s, delivered(c))
		}
	}
	if lane := d.lane(key); lane != "none" {
		t.Errorf("nothing is open and the lane is %s", lane)
	}
	return list[string](d, "SELECT event_id::text FROM outbox.delivery_log WHERE outcome = 'delivered' AND key = $1 ORDER BY id", key)
}

// interleaving is a court with one key, a relay, and sessions to step by hand.
type interleaving struct {
	t        *testing.T
	url      string
	admin    db
	operator db
	relay    *relay
	e        []string // the key's events, in order
}

func newInterleaving(t *testing.T, events int) *interleaving {
	t.Helper()
	url := pgtest.New(t)
	i := &interleaving{t: t, url: url, admin: connect(t, url), operator: as(t, url, "outbox_operator"), relay: store(t, url)}
	i.admin.sync("court")
	for range events {
		i.e = append(i.e, i.admin.event("k"))
	}
	return i
}

func (i *interleaving) expect(when, states, lane string) {
	i.t.Helper()
	if got := i.admin.states("k"); got != states {
		i.t.Errorf("%s: states %q, want %q", when, got, states)
	}
	if got := i.admin.lane("k"); got != lane {
		i.t.Errorf("%s: the lane is %s, want %s", when, got, lane)
	}
}

// looks has the relay claim what it can, which must be nothing. It looks long
// enough for the keys that it looks at again.
func (i *interleaving) looks(when string) {
	i.t.Helper()
	for end := time.Now().Add(150 * time.Millisecond); time.Now().Before(end); {
		if d := claim(i.t, i.relay); len(d) != 0 {
			i.t.Fatalf("%s: claimed %s, want nothing", when, d[0].Event.ID)
		}
	}
}

// finishBegins is a recording of the key's first delivery that is not committed.
func (i *interleaving) finishBegins() db {
	i.t.Helper()
	finish := connect(i.t, i.url)
	finish.do("BEGIN")
	finish.do("SELECT FROM outbox.lane WHERE key = 'k' FOR UPDATE")
	finish.deliver(i.e[0])
	return finish
}

func (i *interleaving) drains(want ...string) {
	i.t.Helper()
	if got := finishesAll(i.t, i.admin, i.relay, "k"); !slices.Equal(got, want) {
		i.t.Errorf("delivered %v, want %v", got, want)
	}
}

// An event that commits while the lane of its key is being closed must not be
// left without a lane.
func TestInsertBesideTheCloseOfItsLane(t *testing.T) {
	t.Run("the insert commits first", func(t *testing.T) {
		i := newInterleaving(t, 1)
		first := only(t, i.relay)
		second := i.admin.event("k")
		if !record(t, i.relay, delivered(first)) {
			t.Error("the first was not recorded")
		}
		i.expect("the lane stays open for the second", "pending", "due")
		i.drains(i.e[0], second)
	})
	t.Run("the close commits first", func(t *testing.T) {
		i := newInterleaving(t, 1)
		first := only(t, i.relay)
		writer := connect(t, i.url)
		writer.do("BEGIN")
		second := writer.event("k")
		if !record(t, i.relay, delivered(first)) {
			t.Error("the recording waited for a writer")
		}
		i.expect("closed", "", "none")
		writer.do("COMMIT")
		i.drains(i.e[0], second)
	})
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		t.Run("a look while the close is open, "+end, func(t *testing.T) {
			i := newInterleaving(t, 1)
			only(t, i.relay)
			finish := i.finishBegins()
			second := i.admin.event("k")
			i.looks("beside an open close")
			i.expect("beside an open close", "sending queued", "claimed")
			finish.do(end)
			if end == "ROLLBACK" {
				i.looks("while the claim holds")
				i.admin.dies()
			}
			i.drains(i.e[0], second)
		})
	}
	t.Run("another relay looks while the close is open", func(t *testing.T) {
		i := newInterleaving(t, 1)
		only(t, i.relay)
		finish := i.finishBegins()
		second := i.admin.event("k")
		other := store(t, i.url)
		if d := claim(t, other); len(d) != 0 {
			t.Errorf("claimed %d while the one before it is unfinished", len(d))
		}
		finish.do("COMMIT")
		if d := only(t, other); d.Event.ID != second {
			t.Errorf("claimed %s, want the second", d.Event.ID)
		}
	})
}

// A recording does not wait for a lane that somebody has locked: the result is given again.
func TestRecordingBesideSomebodyWhoHasTheLaneLocked(t *testing.T) {
	i := newInterleaving(t, 2)
	other := i.admin.event("other")
	claims := claim(t, i.relay)
	holder := connect(t, i.url)
	holder.do("BEGIN")
	holder.do("SELECT FROM outbox.lane WHERE key = 'k' FOR SHARE")
	var first *outbox.Delivery
	for _, d := range claims {
		r := i.relay.Record(t.Context(), "court", []outbox.Result{delivered(d)})
		must(t, r.Err)
		if d.Event.ID == other {
			if !r.Done[0] {
				t.Error("the recording of another key waits for him")
			}
			continue
		}
		if first = d; r.Done[0] || r.Lost[0] {
			t.Errorf("recorded %+v beside who holds the lane, want neither done nor lost", r)
		}
	}
	holder.do("COMMIT")
	if !record(t, i.relay, delivered(first)) {
		t.Error("not recorded once the lane is free")
	}
	i.drains(i.e...)
}

func TestClaimBesideADiscardOfTheFirst(t *testing.T) {
	for _, open := range []string{"with a lane", "without a lane"} {
		for _, state := range []string{"failed", "retry"} {
			for _, end := range []string{"COMMIT", "ROLLBACK"} {
				t.Run(open+", "+state+", "+end, func(t *testing.T) {
					i := newInterleaving(t, 2)
					lane := map[string]string{"failed": "stopped", "retry": "waits"}[state]
					if state == "failed" {
						i.admin.fail(i.e[0])
					} else {
						i.admin.do("UPDATE outbox.delivery SET state = 'retry', due_at = now() + interval '1 hour', attempts = 1 WHERE event_id = $1", i.e[0])
					}
					if open == "with a lane" {
						i.looks("behind it")
						i.expect("with a lane", state+" queued", lane)
					}
					i.operator.do("BEGIN")
					i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
					i.looks("beside an open discard")
					i.operator.do(end)
					if end == "COMMIT" {
						i.drains(i.e[1])
						return
					}
					i.looks("behind it, after the rollback")
					i.expect("after the rollback", state+" queued", lane)
					if state == "failed" {
						i.operator.do("SELECT outbox.requeue('court')")
						i.drains(i.e...)
					}
				})
			}
		}
	}
}

func TestDiscardOfTheSecondBesideTheFinishOfTheFirst(t *testing.T) {
	t.Run("discard first", func(t *testing.T) {
		i := newInterleaving(t, 3)
		first := only(t, i.relay)
		i.expect("claimed", "sending queued queued", "claimed")
		i.operator.do("BEGIN")
		i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
		if r := i.relay.Record(t.Context(), "court", []outbox.Result{delivered(first)}); r.Done[0] || r.Lost[0] || r.Err != nil {
			t.Errorf("recorded %+v beside the discard, want it left for the next try", r)
		}
		i.operator.do("COMMIT")
		if !record(t, i.relay, delivered(first)) {
			t.Error("not recorded after the discard")
		}
		i.expect("the third can be sent", "pending", "due")
		i.drains(i.e[0], i.e[2])
	})
	t.Run("finish first", func(t *testing.T) {
		i := newInterleaving(t, 3)
		only(t, i.relay)
		finish := i.finishBegins()
		late := i.operator.begin("SELECT outbox.discard('court', $1, 'r')", i.e[1])
		i.admin.waits(i.operator.PgConn().PID())
		finish.do("COMMIT")
		must(t, i.operator.ended(late))
		i.expect("the third can be sent", "pending", "due")
		i.drains(i.e[0], i.e[2])
	})
	t.Run("discards of the second and the third, then the finish", func(t *testing.T) {
		i := newInterleaving(t, 4)
		first := only(t, i.relay)
		other := as(t, i.url, "outbox_operator")
		i.operator.do("BEGIN")
		i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
		other.do("BEGIN")
		late := other.begin("SELECT outbox.discard('court', $1, 'r')", i.e[2])
		i.admin.waits(other.PgConn().PID())
		i.operator.do("COMMIT")
		must(t, other.ended(late))
		if r := i.relay.Record(t.Context(), "court", []outbox.Result{delivered(first)}); r.Done[0] || r.Lost[0] || r.Err != nil {
			t.Errorf("recorded %+v beside the second discard, want it left for the next try", r)
		}
		other.do("COMMIT")
		if !record(t, i.relay, delivered(first)) {
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
			other := i.admin.event("other")
			i.admin.fail(i.e[0])
			i.operator.do("BEGIN")
			i.operator.do("UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'")
			// Nothing waits for him: the other key goes out, his key keeps its order.
			if d := only(t, i.relay); d.Event.ID != other || !record(t, i.relay, delivered(d)) {
				t.Errorf("claimed %+v beside the open requeue, want the other key's event, recorded", d)
			}
			i.looks("beside an open requeue")
			i.operator.do(end)
			if end == "ROLLBACK" {
				i.looks("after the rollback")
				i.operator.do("SELECT outbox.requeue('court', 'k')")
			}
			i.drains(i.e...)
		})
	}
}

func TestClaimDoesNotWaitForADiscardOfTwoOfAKey(t *testing.T) {
	i := newInterleaving(t, 2)
	i.admin.fail(i.e[0])
	i.looks("behind a failed one")
	i.expect("behind a failed one", "failed queued", "stopped")
	i.operator.do("BEGIN")
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	third, other := i.admin.event("k"), i.admin.event("other")
	if d := only(t, i.relay); d.Event.ID != other {
		t.Errorf("claimed %s beside the open discards, want the other key's event", d.Event.ID)
	}
	i.operator.do("COMMIT")
	i.drains(third)
}

func TestClaimDoesNotWaitForARequeueAndADiscardOfOneDelivery(t *testing.T) {
	i := newInterleaving(t, 1)
	i.admin.fail(i.e[0])
	i.operator.do("BEGIN")
	i.operator.do("SELECT outbox.requeue('court')")
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
	second, other := i.admin.event("k"), i.admin.event("other")
	if d := only(t, i.relay); d.Event.ID != other {
		t.Errorf("claimed %s beside the open discard, want the other key's event", d.Event.ID)
	}
	i.looks("beside the open discard")
	i.operator.do("COMMIT")
	i.drains(second)
}

// A delivery that somebody has locked is not sent. Its lane is given back, and
// claimed again when the lock is released.
func TestDeliveryThatIsLockedWhileTheOneBeforeItFinishes(t *testing.T) {
	for _, strength := range []string{"FOR UPDATE", "FOR NO KEY UPDATE", "FOR KEY SHARE"} {
		t.Run(strength, func(t *testing.T) {
			i := newInterleaving(t, 2)
			first := only(t, i.relay)
			i.operator.do("BEGIN")
			i.operator.do("SELECT FROM outbox.delivery WHERE event_id = $1 "+strength, i.e[1])
			r := i.relay.Record(t.Context(), "court", []outbox.Result{{Delivery: first, Outcome: outbox.Delivered, Attempt: true, Stay: true}})
			if must(t, r.Err); !r.Done[0] {
				t.Fatal("the recording waited for an operator's lock on another delivery")
			}
			if len(r.Next) != 0 {
				t.Fatal("went on with a delivery that somebody has locked")
			}
			i.looks("while it is locked")
			i.operator.do("ROLLBACK")
			i.drains(i.e...)
		})
	}
}

func TestOperatorAtRepeatableRead(t *testing.T) {
	begin := func(i *interleaving, level string) {
		i.operator.do("BEGIN ISOLATION LEVEL " + level)
		i.operator.do("SELECT count(*) FROM outbox.delivery") // takes the snapshot
	}
	for _, level := range []string{"REPEATABLE READ", "SERIALIZABLE"} {
		t.Run("discard is refused at "+level, func(t *testing.T) {
			i := newInterleaving(t, 1)
			begin(i, level)
			i.operator.refuses(wrongState, "SELECT outbox.discard('court', $1, 'r')",
				[]string{"in a " + strings.ToLower(level) + " transaction", "BEGIN ISOLATION LEVEL READ COMMITTED"}, i.e[0])
			i.operator.do("ROLLBACK")
			i.drains(i.e...)
		})
	}
	t.Run("replay of an event that was replayed meanwhile is refused", func(t *testing.T) {
		i := newInterleaving(t, 1)
		record(t, i.relay, delivered(only(t, i.relay)))
		begin(i, "REPEATABLE READ")
		as(t, i.url, "outbox_operator").do("SELECT outbox.replay('court', $1, 'r')", i.e[0])
		i.operator.refuses(serialize, "SELECT outbox.replay('court', $1, 'r')", nil, i.e[0])
		i.operator.do("ROLLBACK")
		i.drains(i.e[0], i.e[0])
	})
	t.Run("requeue of a row that was requeued meanwhile is refused", func(t *testing.T) {
		i := newInterleaving(t, 1)
		i.admin.fail(i.e[0])
		begin(i, "REPEATABLE READ")
		as(t, i.url, "outbox_operator").do("SELECT outbox.requeue('court')")
		i.operator.refuses(serialize, "UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'", nil)
		i.operator.do("ROLLBACK")
		if n := one[int](i.admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'requeued'"); n != 1 {
			t.Errorf("%d requeues in the log, want 1", n)
		}
		i.drains(i.e...)
	})
}

// Where failed ones are superseded, a newer event must not stay behind a failed
// one when what stood between them is gone.
func TestSupersedeAfterADiscardOfTheNewerRow(t *testing.T) {
	i := newInterleaving(t, 3)
	i.admin.do("UPDATE outbox.sync SET on_failed = 'supersede'")
	first := only(t, i.relay)
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	if !record(t, i.relay, outbox.Result{Delivery: first, Outcome: outbox.Failed, Failed: true, Attempt: true, Class: "permanent", Error: "no"}) {
		t.Fatal("the failure was not recorded")
	}
	i.drains(i.e[2])
	if n := one[int](i.admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'superseded' AND event_id = $1::text::uuid", i.e[0]); n != 1 {
		t.Errorf("%d superseded rows, want 1", n)
	}
}

func TestSupersedeBesideARequeueOfTheFailedRow(t *testing.T) {
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		t.Run(end, func(t *testing.T) {
			i := newInterleaving(t, 1)
			i.admin.do("UPDATE outbox.sync SET on_failed = 'supersede'")
			i.admin.fail(i.e[0])
			i.operator.do("BEGIN")
			i.operator.do("SELECT outbox.requeue('court')")
			newer := i.admin.event("k")
			i.looks("beside an open requeue of the failed one")
			i.operator.do(end)
			if end == "COMMIT" {
				i.drains(i.e[0], newer)
				return
			}
			i.drains(newer)
			if n := one[int](i.admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'superseded' AND event_id = $1::text::uuid", i.e[0]); n != 1 {
				t.Errorf("%d superseded rows, want 1", n)
			}
		})
	}
}

func TestClaimBesideARequeueOfTheFirst(t *testing.T) {
	for _, open := range []string{"with a lane", "without a lane"} {
		for _, end := range []string{"COMMIT", "ROLLBACK"} {
			t.Run(open+", "+end, func(t *testing.T) {
				i := newInterleaving(t, 2)
				i.admin.fail(i.e[0])
				if open == "with a lane" {
					i.looks("behind a failed one")
				}
				i.operator.do("BEGIN")
				i.operator.do("SELECT outbox.requeue('court')")
				i.looks("behind an open requeue")
				i.operator.do(end)
				if end == "ROLLBACK" {
					i.looks("after the rollback")
					i.operator.do("SELECT outbox.requeue('court')")
				}
				i.drains(i.e...)
			})
		}
	}
	t.Run("a claim is open: the requeue does not wait for it", func(t *testing.T) {
		i := newInterleaving(t, 2)
		i.admin.fail(i.e[0])
		i.looks("behind a failed one")
		claimer := connect(t, i.url)
		claimer.do("BEGIN")
		claimer.send(i.e[0])
		must(t, i.operator.ended(i.operator.begin("SELECT outbox.requeue('court')")))
		claimer.do("ROLLBACK")
		i.expect("after both", "pending queued", "stopped") // until the relay looks
		i.drains(i.e...)
	})
}

// A replay draws its place before it commits. What was written meanwhile has a
// later place, and may be on its way already.
func TestReplayThatCommitsWhileANewerEventIsBeingSent(t *testing.T) {
	open := func(t *testing.T) (i *interleaving, newer string) {
		t.Helper()
		i = newInterleaving(t, 1)
		i.drains(i.e...)
		i.operator.do("BEGIN")
		i.operator.do("SELECT outbox.replay('court', $1, 'r')", i.e[0])
		return i, i.admin.event("k")
	}
	t.Run("the newer one is claimed: the replay waits for its end", func(t *testing.T) {
		i, newer := open(t)
		d := only(t, i.relay)
		i.operator.do("COMMIT")
		i.neverTwo(d)
		i.drains(i.e[0], newer, i.e[0])
	})
	t.Run("the other way round: an event that commits while a later replay is being sent waits", func(t *testing.T) {
		i := newInterleaving(t, 1)
		i.drains(i.e...)
		writer := connect(t, i.url)
		writer.do("BEGIN")
		late := writer.event("k")
		i.operator.do("SELECT outbox.replay('court', $1, 'r')", i.e[0])
		d := only(t, i.relay)
		writer.do("COMMIT")
		i.neverTwo(d)
		i.drains(i.e[0], i.e[0], late)
	})
	t.Run("its relay died: the replay goes first", func(t *testing.T) {
		i, newer := open(t)
		only(t, i.relay)
		i.operator.do("COMMIT")
		i.looks("while the claim holds")
		i.admin.dies()
		if d := only(t, i.relay); d.Event.ID != i.e[0] || !record(t, i.relay, delivered(d)) {
			t.Errorf("claimed %+v, want the replay, recorded", d)
		}
		i.drains(i.e[0], i.e[0], newer)
	})
	t.Run("the newer one is just being claimed", func(t *testing.T) {
		i, newer := open(t)
		claimer := connect(t, i.url)
		claimer.do("BEGIN")
		claimer.send(newer) // opens the lane
		i.operator.do("COMMIT")
		late := make(chan []*outbox.Delivery, 1)
		go func() { // it waits for the end of that insert, as any insert of the same key does
			c, err := i.relay.Claim(t.Context(), outbox.ClaimRequest{Sync: "court", Room: 10, Lanes: 10, Lease: time.Minute}, &i.relay.arrivals)
			if err != nil {
				t.Error(err)
			}
			late <- c.Deliveries
		}()
		i.admin.until("the claim waits for the other", `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'relay-1' AND datname = current_database() AND wait_event_type = 'Lock')`)
		claimer.do("COMMIT")
		if d := <-late; len(d) != 0 {
			t.Fatalf("claimed %d beside another claim of the key", len(d))
		}
		i.looks("while the claim holds")
		i.admin.dies()
		i.drains(i.e[0], i.e[0], newer)
	})
}

// neverTwo checks that nothing is claimed beside a delivery under way.
func (i *interleaving) neverTwo(sending *outbox.Delivery) {
	i.t.Helper()
	if got := i.admin.lane("k"); got != "claimed" {
		i.t.Errorf("the lane is %s, want claimed", got)
	}
	i.looks("while another of the key is being sent")
	c, err := i.relay.ClaimOne(i.t.Context(), outbox.OneRequest{Sync: "court", Lease: time.Minute, Key: "k"})
	if err != nil || len(c.Deliveries) != 0 {
		i.t.Errorf("claimed %d of the key while another is being sent, %v", len(c.Deliveries), err)
	}
	if !record(i.t, i.relay, delivered(sending)) {
		i.t.Error("what was being sent is not recorded")
	}
	if d := only(i.t, i.relay); !record(i.t, i.relay, delivered(d)) {
		i.t.Error("the other one is not recorded")
	}
}

func TestSyncRegisteredBesideOpenWriters(t *testing.T) {
	for _, level := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		t.Run(level, func(t *testing.T) {
			url := pgtest.New(t)
			admin, relay := connect(t, url), store(t, url)
			writer := as(t, url, "outbox_writer")
			admin.event("before")
			writer.do("BEGIN ISOLATION LEVEL " + level)
			writer.do("INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'open', '{}')") // its snapshot knows no sync
			_, err := relay.Register(t.Context(), []outbox.Registration{{Name: "court", Patterns: []string{"*"}, OnFailed: "block"}})
			must(t, err)
			b := relay.NewBackfill("court")
			for range 3 {
				complete, wait, err := b.Step(t.Context(), 100)
				if err != nil || complete || !wait {
					t.Fatalf("step: complete %t, wait %t, %v; want it to wait for the writer", complete, wait, err)
				}
			}
			reason := one[string](admin, "SELECT hold_reason FROM outbox.sync")
			if pid := one[string](writer, "SELECT pg_backend_pid()::text"); !strings.Contains(reason, "pid "+pid) {
				t.Errorf("the hold's reason %q does not name pid %s", reason, pid)
			}
			writer.do("INSERT INTO outbox.event (type, key, payload) VALUES ('t', 'later', '{}')")
			writer.do("COMMIT")
			for complete := false; !complete; {
				complete, _, err = b.Step(t.Context(), 1)
				must(t, err)
			}
			got := list[string](admin, "SELECT key FROM outbox.delivery ORDER BY event_seq")
			if want := []string{"before", "open", "later"}; !slices.Equal(got, want) {
				t.Errorf("deliveries of %v, want %v", got, want)
			}
			if one[bool](admin, "SELECT hold_kind IS NOT NULL FROM outbox.sync") {
				t.Error("the sync is still on hold")
			}
		})
	}
}

// A lane waits for its first delivery only. What is behind a discarded one may be
// sent at once.
func TestDiscardMakesTheLaneDue(t *testing.T) {
	i := newInterleaving(t, 3)
	d := only(t, i.relay)
	if !record(t, i.relay, outbox.Result{Delivery: d, Outcome: outbox.Retry, Attempt: true, Class: "transient", Error: "HTTP 502", Delay: time.Hour}) {
		t.Fatal("the retry was not recorded")
	}
	i.expect("put off", "retry queued queued", "waits")
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	i.looks("a discard further behind changes nothing for the first")
	i.expect("after the discard of the second", "retry queued", "waits")
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
	i.expect("after the discard of the first", "pending", "due")
	i.drains(i.e[2])
}

// An open discard has its own delivery locked, and no other of the key.
func TestOpenDiscardFurtherBehindLeavesTheNextAlone(t *testing.T) {
	i := newInterleaving(t, 3)
	i.operator.do("BEGIN")
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	const free = "SELECT event_seq FROM outbox.delivery ORDER BY event_seq FOR UPDATE SKIP LOCKED"
	if got := list[int64](i.admin, free); !slices.Equal(got, []int64{1, 3}) {
		t.Errorf("free beside the open discard: %v, want the first and the third", got)
	}
	i.operator.do("COMMIT")
	i.drains(i.e[0], i.e[2])
}

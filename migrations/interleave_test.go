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
// order of the key's events. It fails when a row sleeps.
func finishesAll(t *testing.T, d db, s *outbox.Store, key string) []string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); d.states(key) != ""; {
		if time.Now().After(end) {
			t.Fatalf("asleep: %s", d.states(key))
		}
		for _, c := range claim(t, s, 10) {
			record(t, s, delivered(c))
		}
		_, _, err := s.RecheckParked(t.Context(), "court", outbox.ParkedCursor{}, 100)
		must(t, err)
	}
	return list[string](d, "SELECT event_id::text FROM outbox.delivery_log WHERE outcome = 'delivered' AND key = $1 ORDER BY id", key)
}

// interleaving is a court with one key, a relay, and sessions to step by hand.
type interleaving struct {
	t        *testing.T
	url      string
	admin    db
	operator db
	relay    *outbox.Store
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

func (i *interleaving) expect(when, want string) {
	i.t.Helper()
	if got := i.admin.states("k"); got != want {
		i.t.Errorf("%s: states %q, want %q", when, got, want)
	}
}

// finishesAndSleeps records the first of the key while somebody holds the second:
// it does not wait, and says that the key is to be given again.
func (i *interleaving) finishesAndSleeps(first *outbox.Delivery) {
	i.t.Helper()
	r := i.relay.Record(i.t.Context(), []outbox.Result{delivered(first)}, outbox.ClaimRequest{Sync: "court"})
	if !r.Done[0] || r.Err != nil {
		i.t.Errorf("recorded %+v beside who holds another row, want it done", r)
	}
	if want := []string{"k"}; !slices.Equal(r.Claims.Asleep, want) {
		i.t.Errorf("asleep: %v, want %v", r.Claims.Asleep, want)
	}
}

// wakes gives the key again, now that nobody holds its first.
func (i *interleaving) wakes() {
	i.t.Helper()
	r := i.relay.Record(i.t.Context(), nil, outbox.ClaimRequest{Sync: "court", Keys: []string{"k"}})
	if r.Err != nil || len(r.Claims.Asleep) > 0 {
		i.t.Errorf("given again: %+v, want nobody asleep", r)
	}
	if got := i.admin.states("k"); !strings.HasPrefix(got, "pending") {
		i.t.Errorf("given again: states %q, want the first to be pending", got)
	}
}

func (i *interleaving) drains(want ...string) {
	i.t.Helper()
	if got := finishesAll(i.t, i.admin, i.relay, "k"); !slices.Equal(got, want) {
		i.t.Errorf("delivered %v, want %v", got, want)
	}
}

func TestParkingBesideTheFinishOfTheRowInFront(t *testing.T) {
	t.Run("the finish is open: the row behind is left for the next look", func(t *testing.T) {
		i := newInterleaving(t, 2)
		if d := claim(t, i.relay, 10); len(d) != 1 || d[0].Event.ID != i.e[0] {
			t.Fatalf("claimed %+v", d)
		}
		// Back to the state before parking: the second was not seen yet.
		i.admin.do("UPDATE outbox.delivery SET state = 'pending', due_at = now() WHERE event_id = $1", i.e[1])
		finish := connect(t, i.url)
		finish.do("BEGIN")
		finish.deliver(i.e[0])
		if d := claim(t, i.relay, 10); len(d) != 0 {
			t.Errorf("claimed %d while the one before it is unfinished", len(d))
		}
		i.expect("beside an open finish", "sending pending") // parked now, it would sleep for ever
		finish.do("COMMIT")
		i.expect("after the finish", "pending")
		i.drains(i.e...)
	})
	t.Run("the parking is open: the finish waits for it and promotes", func(t *testing.T) {
		i := newInterleaving(t, 2)
		first := claim(t, i.relay, 10)[0]
		i.expect("claimed", "sending queued")
		// Another relay's parking holds the row in front shared.
		parker := connect(t, i.url)
		parker.do("BEGIN")
		parker.do("SELECT FROM outbox.delivery WHERE event_id = $1 FOR SHARE", i.e[0])
		if r := i.relay.Record(t.Context(), []outbox.Result{delivered(first)}, outbox.ClaimRequest{Sync: "court"}); r.Done[0] || r.Lost[0] {
			t.Errorf("recorded %+v beside a parker, want neither done nor lost", r)
		}
		parker.do("COMMIT")
		if !record(t, i.relay, delivered(first)) {
			t.Error("not recorded after the parker")
		}
		i.expect("promoted", "pending")
		i.drains(i.e...)
	})
}

func TestParkingBesideADiscardOfTheRowInFront(t *testing.T) {
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		t.Run(end, func(t *testing.T) {
			i := newInterleaving(t, 2)
			i.admin.fail(i.e[0])
			i.operator.do("BEGIN")
			i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
			if d := claim(t, i.relay, 10); len(d) != 0 {
				t.Errorf("claimed %d behind an open discard", len(d))
			}
			i.expect("beside an open discard", "failed pending")
			i.operator.do(end)
			if end == "COMMIT" {
				i.drains(i.e[1])
				return
			}
			if d := claim(t, i.relay, 10); len(d) != 0 {
				t.Errorf("claimed %d behind a failed one", len(d))
			}
			i.expect("after the rollback", "failed queued")
			i.operator.do("SELECT outbox.requeue('court')")
			i.drains(i.e...)
		})
	}
}

func TestDiscardOfTheSecondBesideTheFinishOfTheFirst(t *testing.T) {
	t.Run("discard first", func(t *testing.T) {
		i := newInterleaving(t, 3)
		first := claim(t, i.relay, 10)[0]
		i.expect("claimed", "sending queued queued")
		i.operator.do("BEGIN")
		i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
		if r := i.relay.Record(t.Context(), []outbox.Result{delivered(first)}, outbox.ClaimRequest{Sync: "court"}); r.Done[0] || r.Lost[0] || r.Err != nil {
			t.Errorf("recorded %+v beside the discard, want it left for the next try", r)
		}
		i.operator.do("COMMIT")
		if !record(t, i.relay, delivered(first)) {
			t.Error("not recorded after the discard")
		}
		i.expect("the third is awake without the net", "pending")
		i.drains(i.e[0], i.e[2])
	})
	t.Run("finish first", func(t *testing.T) {
		i := newInterleaving(t, 3)
		claim(t, i.relay, 1)
		finish := connect(t, i.url)
		finish.do("BEGIN")
		finish.deliver(i.e[0])
		late := i.operator.begin("SELECT outbox.discard('court', $1, 'r')", i.e[1])
		i.admin.blocked(i.operator.PgConn().PID())
		finish.do("COMMIT")
		must(t, i.operator.ended(late))
		i.expect("the third is awake without the net", "pending")
		i.drains(i.e[0], i.e[2])
	})
	t.Run("discards of the second and the third, then the finish", func(t *testing.T) {
		i := newInterleaving(t, 4)
		first := claim(t, i.relay, 10)[0]
		other := as(t, i.url, "outbox_operator")
		i.operator.do("BEGIN")
		i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
		other.do("BEGIN")
		late := other.begin("SELECT outbox.discard('court', $1, 'r')", i.e[2])
		i.admin.blocked(other.PgConn().PID())
		i.operator.do("COMMIT")
		must(t, other.ended(late))
		// The one in front is now the first: the discard that is still open must hold it.
		if r := i.relay.Record(t.Context(), []outbox.Result{delivered(first)}, outbox.ClaimRequest{Sync: "court"}); r.Done[0] {
			t.Error("the first was finished beside an open discard of the row behind it: the fourth may sleep")
		}
		other.do("COMMIT")
		if !record(t, i.relay, delivered(first)) {
			t.Error("not recorded after the discards")
		}
		i.expect("the fourth is awake without the net", "pending")
		i.drains(i.e[0], i.e[3])
	})
}

func TestOperatorsOpenTransactionHoldsOneRowOnly(t *testing.T) {
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		t.Run(end, func(t *testing.T) {
			i := newInterleaving(t, 2)
			other := i.admin.event("other")
			i.admin.fail(i.e[0])
			i.operator.do("BEGIN")
			i.operator.do("UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'")
			// Nothing waits for him: the other key goes out, his key keeps its order.
			d := claim(t, i.relay, 10)
			if len(d) != 1 || d[0].Event.ID != other || !record(t, i.relay, delivered(d[0])) {
				t.Errorf("claimed %+v beside the open requeue, want the other key's event, recorded", d)
			}
			if s := i.admin.states("k"); !strings.HasPrefix(s, "failed ") {
				t.Errorf("states %s beside an open requeue", s)
			}
			i.operator.do(end)
			if end == "ROLLBACK" {
				i.operator.do("SELECT outbox.requeue('court', 'k')")
			}
			i.drains(i.e...)
		})
	}
}

func TestDiscardOfTheThirdDoesNotKeepTheSecondAsleep(t *testing.T) {
	i := newInterleaving(t, 3)
	first := claim(t, i.relay, 10)[0]
	i.expect("claimed", "sending queued queued")
	i.operator.do("BEGIN")
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[2]) // holds the second, shared
	if !record(t, i.relay, delivered(first)) {
		t.Error("the recording waited for a discard of another row")
	}
	i.expect("promoted beside the open discard", "pending queued")
	i.operator.do("COMMIT")
	i.drains(i.e[:2]...)
}

func TestClaimDoesNotWaitForADiscardOfTwoOfAKey(t *testing.T) {
	i := newInterleaving(t, 2)
	i.admin.fail(i.e[0])
	claim(t, i.relay, 10)
	i.expect("parked", "failed queued")
	i.operator.do("BEGIN")
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[0]) // promotes the second
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	third, other := i.admin.event("k"), i.admin.event("other")
	if d := claim(t, i.relay, 10); len(d) != 1 || d[0].Event.ID != other {
		t.Errorf("claimed %+v beside the open discards, want the other key's event", d)
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
	if d := claim(t, i.relay, 10); len(d) != 1 || d[0].Event.ID != other {
		t.Errorf("claimed %+v beside the open discard, want the other key's event", d)
	}
	i.operator.do("COMMIT")
	i.drains(second)
}

func TestRowLockedWhileTheOneBeforeItFinishesIsWokenByTheNet(t *testing.T) {
	i := newInterleaving(t, 2)
	first := claim(t, i.relay, 10)[0]
	i.expect("claimed", "sending queued")
	i.operator.do("BEGIN")
	i.operator.do("SELECT FROM outbox.delivery WHERE event_id = $1 FOR UPDATE", i.e[1])
	if !record(t, i.relay, delivered(first)) {
		t.Fatal("the recording waited for an operator's lock on another row")
	}
	i.expect("promotion passed the locked row by", "queued")
	i.operator.do("ROLLBACK")
	if woken, _, err := i.relay.RecheckParked(t.Context(), "court", outbox.ParkedCursor{}, 100); err != nil || woken != 1 {
		t.Errorf("the net woke %d, %v; want 1", woken, err)
	}
	i.drains(i.e...)
}

func TestOperatorAtRepeatableRead(t *testing.T) {
	begin := func(i *interleaving) {
		i.operator.do("BEGIN ISOLATION LEVEL REPEATABLE READ")
		i.operator.do("SELECT count(*) FROM outbox.delivery") // takes the snapshot
	}
	t.Run("discard of the front, a parking later than his snapshot", func(t *testing.T) {
		i := newInterleaving(t, 1)
		i.admin.fail(i.e[0])
		begin(i)
		late := i.admin.event("k")
		claim(t, i.relay, 10)
		i.expect("parked behind his row", "failed queued")
		i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
		i.operator.do("COMMIT")
		i.drains(late) // his snapshot cannot promote it, the net does
	})
	t.Run("discard of a row that changed since his snapshot is refused", func(t *testing.T) {
		i := newInterleaving(t, 1)
		begin(i)
		d := only(t, i.relay)
		i.operator.refuses(serialize, "SELECT outbox.discard('court', $1, 'r')", nil, i.e[0])
		i.operator.do("ROLLBACK")
		if !record(t, i.relay, delivered(d)) {
			t.Error("the delivery under way was disturbed")
		}
	})
	t.Run("replay of an event that was replayed meanwhile is refused", func(t *testing.T) {
		i := newInterleaving(t, 1)
		record(t, i.relay, delivered(only(t, i.relay)))
		begin(i)
		as(t, i.url, "outbox_operator").do("SELECT outbox.replay('court', $1, 'r')", i.e[0])
		i.operator.refuses(serialize, "SELECT outbox.replay('court', $1, 'r')", nil, i.e[0])
		i.operator.do("ROLLBACK")
		i.drains(i.e[0], i.e[0])
	})
	t.Run("requeue of a row that was requeued meanwhile is refused", func(t *testing.T) {
		i := newInterleaving(t, 1)
		i.admin.fail(i.e[0])
		begin(i)
		as(t, i.url, "outbox_operator").do("SELECT outbox.requeue('court')")
		i.operator.refuses(serialize, "UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed'", nil)
		i.operator.do("ROLLBACK")
		if n := one[int](i.admin, "SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'requeued'"); n != 1 {
			t.Errorf("%d requeues in the log, want 1", n)
		}
		i.drains(i.e...)
	})
}

// A claim that looks through an older snapshot locks what was parked meanwhile,
// for as long as it runs.
func TestFinishBesideAClaimThatHoldsTheParkedRow(t *testing.T) {
	i := newInterleaving(t, 2)
	first := claim(t, i.relay, 10)[0]
	i.expect("claimed", "sending queued")
	claimer := connect(t, i.url)
	claimer.do("BEGIN")
	claimer.do("SELECT FROM outbox.delivery WHERE event_id = $1 FOR UPDATE SKIP LOCKED", i.e[1])
	i.finishesAndSleeps(first)
	claimer.do("COMMIT")
	i.wakes()
	i.drains(i.e...)
}

// Where failed ones are superseded, one that was parked must not stay behind a
// failed one when what stood between them is gone.
func TestSupersedeAfterADiscardOfTheNewerRow(t *testing.T) {
	i := newInterleaving(t, 3)
	i.admin.do("UPDATE outbox.sync SET on_failed = 'supersede'")
	claim(t, i.relay, 10)
	i.expect("parked", "sending queued queued")
	i.admin.do("UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', claim = NULL, claimed_by = NULL, lease_until = NULL WHERE event_id = $1", i.e[0])
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	i.expect("woken behind the failed one", "failed pending")
	i.drains(i.e[2])
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
			if d := claim(t, i.relay, 10); len(d) != 0 {
				t.Errorf("claimed %d beside an open requeue of the failed one", len(d))
			}
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

func TestParkingBesideARequeueOfTheRowInFront(t *testing.T) {
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		t.Run(end, func(t *testing.T) {
			i := newInterleaving(t, 2)
			i.admin.fail(i.e[0])
			i.operator.do("BEGIN")
			i.operator.do("SELECT outbox.requeue('court')")
			if d := claim(t, i.relay, 10); len(d) != 0 {
				t.Errorf("claimed %d behind an open requeue", len(d))
			}
			i.expect("left for the next look", "failed pending")
			i.operator.do(end)
			if end == "ROLLBACK" {
				i.operator.do("SELECT outbox.requeue('court')")
			}
			i.drains(i.e...)
		})
	}
	t.Run("the parking is open: the requeue does not wait for it", func(t *testing.T) {
		i := newInterleaving(t, 2)
		i.admin.fail(i.e[0])
		parker := connect(t, i.url)
		parker.do("BEGIN")
		parker.do("SELECT FROM outbox.delivery WHERE event_id = $1 FOR KEY SHARE", i.e[0])
		parker.do("UPDATE outbox.delivery SET state = 'queued', due_at = 'infinity' WHERE event_id = $1", i.e[1])
		must(t, i.operator.ended(i.operator.begin("SELECT outbox.requeue('court')")))
		parker.do("COMMIT")
		i.expect("after both", "pending queued")
		i.drains(i.e...)
	})
}

func TestParkingBehindAParkedRowBesideTheFinishOfTheFirst(t *testing.T) {
	i := newInterleaving(t, 2)
	first := claim(t, i.relay, 10)[0]
	i.expect("claimed", "sending queued")
	// Another relay parks a third, or an operator discards it: the second must stay, and may be promoted.
	parker := connect(t, i.url)
	parker.do("BEGIN")
	parker.do("SELECT FROM outbox.delivery WHERE event_id = $1 FOR KEY SHARE", i.e[1])
	if !record(t, i.relay, delivered(first)) {
		t.Error("not recorded beside a parking further behind")
	}
	i.expect("the second is awake without the net", "pending")
	parker.do("COMMIT")
	i.drains(i.e...)
}

func TestInsertBesideTheFinishOfTheRowInFront(t *testing.T) {
	t.Run("the insert commits first, and is parked", func(t *testing.T) {
		i := newInterleaving(t, 1)
		claim(t, i.relay, 1)
		finish := connect(t, i.url)
		finish.do("BEGIN")
		second := i.admin.event("k")
		claim(t, i.relay, 10)
		i.expect("parked before the finish", "sending queued")
		finish.deliver(i.e[0])
		finish.do("COMMIT")
		i.expect("promoted", "pending")
		i.drains(i.e[0], second)
	})
	t.Run("the finish commits first", func(t *testing.T) {
		i := newInterleaving(t, 1)
		first := claim(t, i.relay, 10)[0]
		writer := connect(t, i.url)
		writer.do("BEGIN")
		second := writer.event("k")
		if !record(t, i.relay, delivered(first)) {
			t.Error("the finish waited for a writer")
		}
		writer.do("COMMIT")
		i.expect("nothing in front", "pending")
		i.drains(i.e[0], second)
	})
	t.Run("the finish is open", func(t *testing.T) {
		i := newInterleaving(t, 1)
		claim(t, i.relay, 1)
		finish := connect(t, i.url)
		finish.do("BEGIN")
		finish.deliver(i.e[0])
		second := i.admin.event("k")
		if d := claim(t, i.relay, 10); len(d) != 0 {
			t.Errorf("claimed %d while the one before it is unfinished", len(d))
		}
		i.expect("left for the next look", "sending pending")
		finish.do("ROLLBACK")
		claim(t, i.relay, 10)
		i.expect("parked after all", "sending queued")
		finish.deliver(i.e[0])
		i.expect("promoted", "pending")
		i.drains(i.e[0], second)
	})
}

// A replay draws its place before it commits; what was written meanwhile lies
// behind it in the line, and may be on its way already.
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
		i, _ := open(t)
		only(t, i.relay)
		i.operator.do("COMMIT")
		i.admin.do("UPDATE outbox.delivery SET lease_until = clock_timestamp() - interval '1 second' WHERE state = 'sending'")
		if d := only(t, i.relay); d.Event.ID != i.e[0] || !record(t, i.relay, delivered(d)) {
			t.Errorf("claimed %+v, want the replay, recorded", d)
		}
		i.expect("the other is the next to be taken over", "sending")
	})
	t.Run("its relay died, and a claim through an older snapshot comes too late", func(t *testing.T) {
		i, newer := open(t)
		only(t, i.relay)
		i.admin.do("UPDATE outbox.delivery SET lease_until = clock_timestamp() - interval '1 second' WHERE state = 'sending'")
		claimer := connect(t, i.url)
		claimer.do("BEGIN ISOLATION LEVEL REPEATABLE READ")
		one[int](claimer, "SELECT count(*)::int FROM outbox.delivery")
		i.operator.do("COMMIT")
		if d := only(t, i.relay); d.Event.ID != i.e[0] {
			t.Fatalf("claimed %+v, want the replay", d)
		}
		claimer.refuses(serialize, "SELECT FROM outbox.delivery WHERE event_id = $1::text::uuid FOR UPDATE SKIP LOCKED", nil, newer)
		claimer.do("ROLLBACK")
	})
	t.Run("the newer one is just being claimed", func(t *testing.T) {
		i, newer := open(t)
		claimer := connect(t, i.url)
		claimer.do("BEGIN")
		claimer.send(newer)
		i.operator.do("COMMIT")
		if d := claim(t, i.relay, 10); len(d) != 0 {
			t.Fatalf("claimed %d beside another claim of the key", len(d))
		}
		claimer.do("ROLLBACK")
		i.drains(i.e[0], i.e[0], newer)
	})
	t.Run("a claim through an older snapshot comes too late", func(t *testing.T) {
		i, newer := open(t)
		claimer := connect(t, i.url)
		claimer.do("BEGIN ISOLATION LEVEL REPEATABLE READ")
		if n := one[int](claimer, "SELECT count(*)::int FROM outbox.delivery"); n != 1 {
			t.Fatalf("%d deliveries in the snapshot, want the newer one only", n)
		}
		i.operator.do("COMMIT")
		c, err := i.relay.Claim(t.Context(), outbox.ClaimRequest{Sync: "court", Budget: 1, Page: 1, Lease: time.Minute})
		must(t, err)
		if len(c.Deliveries) == 0 { // the page began with the newer one, which is parked now
			c.Deliveries = claim(t, i.relay, 1)
		}
		d := c.Deliveries[0]
		claimer.refuses(serialize, "SELECT FROM outbox.delivery WHERE event_id = $1::text::uuid FOR UPDATE SKIP LOCKED", nil, newer)
		claimer.do("ROLLBACK")
		if !record(t, i.relay, delivered(d)) {
			t.Error("not recorded")
		}
		i.drains(i.e[0], i.e[0], newer)
	})
}

// neverTwo checks that nothing is claimed beside a delivery under way.
func (i *interleaving) neverTwo(sending *outbox.Delivery) {
	i.t.Helper()
	i.expect("committed in front of what is being sent", "pending sending")
	if d := claim(i.t, i.relay, 10); len(d) != 0 {
		i.t.Errorf("claimed %d while another of the key is being sent", len(d))
	}
	c, err := i.relay.ClaimNext(i.t.Context(), outbox.ClaimRequest{Sync: "court", Budget: 1, Lease: time.Minute, Keys: []string{"k"}})
	if err != nil || len(c.Deliveries) != 0 {
		i.t.Errorf("claimed %d of the key while another is being sent, %v", len(c.Deliveries), err)
	}
	if !record(i.t, i.relay, delivered(sending)) {
		i.t.Error("what was being sent is not recorded")
	}
	if d := claim(i.t, i.relay, 10); len(d) != 1 || !record(i.t, i.relay, delivered(d[0])) {
		i.t.Errorf("claimed %d afterwards, want the other one, recorded", len(d))
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

// What waits behind a delivery under way may be passed by a walk that does not come
// back to it.
func TestDiscardMakesDueWhatAWalkHasPassed(t *testing.T) {
	i := newInterleaving(t, 3)
	i.admin.do("UPDATE outbox.delivery SET due_at = due_at - interval '1 hour'")
	const due = "SELECT event_seq FROM outbox.delivery WHERE due_at > now() - interval '1 minute'"
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	if got := list[int64](i.admin, due); len(got) > 0 {
		t.Errorf("a discard further behind made due %v", got)
	}
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[0])
	if got := list[int64](i.admin, due); !slices.Equal(got, []int64{3}) {
		t.Errorf("made due %v, want the third", got)
	}
	i.drains(i.e[2])
}

// While it is open it holds the next of its key only where it wakes it: a replay
// there would keep the first from being sent.
func TestOpenDiscardFurtherBehindLeavesTheNextAlone(t *testing.T) {
	i := newInterleaving(t, 3)
	i.operator.do("BEGIN")
	i.operator.do("SELECT outbox.discard('court', $1, 'r')", i.e[1])
	const free = "SELECT event_seq FROM outbox.delivery WHERE event_seq = 3 FOR UPDATE SKIP LOCKED"
	if got := list[int64](i.admin, free); !slices.Equal(got, []int64{3}) {
		t.Errorf("free beside the open discard: %v, want the third", got)
	}
	i.operator.do("COMMIT")
	i.drains(i.e[0], i.e[2])
}

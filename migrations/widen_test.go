package migrations_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// widening is a running sync that takes old:* at first, and more types later.
type widening struct {
	t        *testing.T
	url      string
	admin    outboxtest.Session
	operator outboxtest.Session
	relay    *outboxtest.Relay
}

func newWidening(t *testing.T) *widening {
	t.Helper()
	url := pgtest.New(t)
	w := &widening{t: t, url: url, admin: outboxtest.Connect(t, url), operator: outboxtest.As(t, url, "outbox_operator"), relay: outboxtest.OpenRelay(t, url)}
	_, err := w.relay.Register(t.Context(), []outbox.Registration{{Name: "court", Patterns: []string{"old:*"}, OnFailed: "block"}})
	outboxtest.Must(t, err)
	outboxtest.Backfill(t, w.relay)
	return w
}

func (w *widening) apply(from string, patterns ...string) {
	w.t.Helper()
	changed, err := w.relay.Apply(w.t.Context(), outbox.Registration{Name: "court", Patterns: patterns, OnFailed: "block", From: from})
	outboxtest.Must(w.t, err)
	if !changed {
		w.t.Fatalf("applying %v changed nothing", patterns)
	}
}

// writer is a session with an open transaction, which has a snapshot if its isolation level keeps one.
func (w *widening) writer(level string) outboxtest.Session {
	w.t.Helper()
	d := outboxtest.Connect(w.t, w.url)
	d.Do("BEGIN ISOLATION LEVEL " + level)
	outboxtest.One[int](d, "SELECT count(*)::int FROM outbox.sync")
	return d
}

// write inserts an event with a name of a key and a number, which gives its id.
func write(d outboxtest.Session, typ, name string) {
	d.T.Helper()
	key, _, _ := strings.Cut(name, "-")
	d.Do("INSERT INTO outbox.event (type, key, payload, headers) VALUES ($1, $2, '{}', jsonb_build_object('name', $3::text))", typ, key, name)
}

// expect compares the open deliveries of a key, in their order, with their states.
func (w *widening) expect(when, want string) {
	w.t.Helper()
	got := strings.Join(outboxtest.List[string](w.admin, `
SELECT concat_ws(' ', e.headers ->> 'name', d.state, CASE WHEN d.state = 'queued' THEN d.error_class END)
  FROM outbox.open_delivery AS d JOIN outbox.event AS e ON e.id = d.event_id ORDER BY d.key, d.event_seq`), ", ")
	if got != want {
		w.t.Errorf("%s: open are %q, want %q", when, got, want)
	}
}

// waits makes a step of a backfill, which must wait.
func (w *widening) waits(b *outbox.Backfill) {
	w.t.Helper()
	for range 2 {
		complete, wait, err := b.Step(w.t.Context(), 100)
		if err != nil || complete || !wait {
			w.t.Fatalf("step: complete %t, wait %t, %v; want it to wait", complete, wait, err)
		}
	}
}

// completes makes steps until the end. It returns the number of steps during which the sync was on hold.
func (w *widening) completes(b *outbox.Backfill, page int) (held int) {
	w.t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		complete, _, err := b.Step(w.t.Context(), page)
		outboxtest.Must(w.t, err)
		if complete {
			break
		}
		if outboxtest.One[bool](w.admin, "SELECT hold_kind IS NOT NULL FROM outbox.sync") {
			held++
		}
		if time.Now().After(end) {
			w.t.Fatalf("the backfill is not complete after a minute: %s", outboxtest.One[string](w.admin, "SELECT coalesce(backfill_reason, 'no reason') FROM outbox.sync"))
		}
	}
	if outboxtest.One[bool](w.admin, "SELECT backfill_reason IS NOT NULL OR settled IS NOT NULL OR hold_kind IS NOT NULL FROM outbox.sync") {
		w.t.Error("the sync still says that events are being added")
	}
	return held
}

// deliver sends deliveries until there was nothing to claim for a while, and returns them.
func (w *widening) deliver() []string {
	w.t.Helper()
	var names []string
	for last, idle := time.Now(), 0; idle < 3 || time.Since(last) < 120*time.Millisecond; idle++ {
		for claims := outboxtest.Claim(w.t, w.relay); len(claims) > 0; last, idle = time.Now(), 0 {
			var results []outbox.Result
			for _, d := range claims {
				names = append(names, d.Event.Headers["name"])
				result := outboxtest.Delivered(d)
				result.Stay = true
				results = append(results, result)
			}
			r := w.relay.Record(w.t.Context(), "court", results)
			outboxtest.Must(w.t, r.Err)
			claims = r.Next
		}
	}
	return names
}

func (w *widening) delivers(when string, want ...string) {
	w.t.Helper()
	if got := w.deliver(); !slices.Equal(got, want) {
		w.t.Errorf("%s: delivered %v, want %v", when, got, want)
	}
}

func TestWiderPatternsWhileWritersAreOpen(t *testing.T) {
	for _, level := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		t.Run(level, func(t *testing.T) {
			w := newWidening(t)
			write(w.admin, "new:a", "k-0") // committed before: not taken
			older := w.writer(level)
			write(older, "new:a", "a-1")
			w.apply("", "old:*", "new:*")
			b := w.relay.NewBackfill("court")
			w.waits(b)
			write(older, "new:a", "a-2")
			write(older, "old:a", "b-1")
			newer := outboxtest.Connect(t, w.url)
			newer.Do("BEGIN")
			write(newer, "new:a", "c-1")
			write(w.admin, "old:a", "c-2")
			write(w.admin, "new:a", "d-1")
			write(w.admin, "old:a", "d-2")
			write(w.admin, "old:a", "e-1")
			w.waits(b)
			w.delivers("during the open writers", "c-2", "e-1")
			w.expect("during the open writers", "d-1 queued backfill, d-2 queued")
			pid := outboxtest.One[string](older, "SELECT pg_backend_pid()::text")
			if why := outboxtest.One[string](w.operator, "SELECT backfill FROM outbox.status WHERE hold IS NULL AND sync = 'court'"); !strings.Contains(why, "pid "+pid) {
				t.Errorf("status says %q, want it to name pid %s", why, pid)
			}
			older.Do("COMMIT")
			w.completes(b, 1)
			newer.Do("COMMIT")
			_, err := w.relay.ReleaseBackfilled(t.Context(), "court", 100)
			outboxtest.Must(t, err)
			got := w.deliver()
			if w.expect("at the end", ""); len(got) != 6 {
				t.Errorf("delivered %v, want the other six", got)
			}
			for _, key := range []string{"a", "d"} { // each in order
				of := slices.DeleteFunc(slices.Clone(got), func(name string) bool { return name[:1] != key })
				if want := []string{key + "-1", key + "-2"}; !slices.Equal(of, want) {
					t.Errorf("delivered %v, want %v", of, want)
				}
			}
		})
	}
}

// A transaction that began between two changes sees the first and not the second.
func TestSecondChangeOfPatternsIsWaitedForToo(t *testing.T) {
	w := newWidening(t)
	first := w.writer("REPEATABLE READ")
	w.apply("", "old:*", "new:*")
	b := w.relay.NewBackfill("court")
	w.waits(b)
	second := w.writer("REPEATABLE READ")
	w.apply("", "old:*", "new:*", "third:*")
	first.Do("COMMIT")
	w.waits(b)
	write(second, "third:a", "a-1")
	second.Do("COMMIT")
	w.completes(b, 100)
	w.delivers("at the end", "a-1")
}

// Patterns that were removed meanwhile are not settled when they are added again.
func TestNarrowerPatternsDuringABackfill(t *testing.T) {
	w := newWidening(t)
	first := w.writer("REPEATABLE READ")
	w.apply("", "old:*", "new:*")
	write(w.admin, "new:a", "a-1")
	w.apply("", "old:a")
	write(w.admin, "old:a", "b-1")
	write(w.admin, "old:b", "b-2") // not taken
	narrow := w.writer("REPEATABLE READ")
	w.apply("", "old:*")
	write(w.admin, "old:a", "c-1")
	write(w.admin, "old:b", "d-1")
	w.delivers("old:a never stopped", "b-1", "c-1")
	w.expect("the others wait", "a-1 queued backfill, d-1 queued backfill")
	b := w.relay.NewBackfill("court")
	w.waits(b)
	first.Do("COMMIT")
	w.waits(b)
	write(narrow, "old:b", "e-1")
	narrow.Do("COMMIT")
	w.completes(b, 100)
	w.delivers("at the end", "a-1", "b-2", "d-1", "e-1")
}

func TestNarrowerPatternsWaitForNobody(t *testing.T) {
	for _, change := range [][]string{{"old:a"}, {"old:*:x", "old:a"}, {"old:*"}} {
		w := newWidening(t)
		w.writer("REPEATABLE READ")
		if !slices.Equal(change, []string{"old:*"}) {
			w.apply("", change...)
		}
		if outboxtest.One[bool](w.admin, "SELECT backfill_seq IS NOT NULL OR hold_kind IS NOT NULL FROM outbox.sync") {
			t.Errorf("a change to %v waits for open transactions", change)
		}
	}
}

func TestPatternsThatMayTakeMoreWait(t *testing.T) {
	for _, change := range [][]string{{"*"}, {"old*"}, {"*:a"}, {"old:*", "x"}} {
		w := newWidening(t)
		w.writer("REPEATABLE READ")
		w.apply("", change...)
		w.waits(w.relay.NewBackfill("court"))
		write(w.admin, "old:a", "a-1") // taken before, too
		w.expect(fmt.Sprint(change), "a-1 pending")
	}
}

// The relay that takes the backfill over waits for the transactions that are open then, and only once.
func TestRelayThatDiesDuringABackfill(t *testing.T) {
	w := newWidening(t)
	first := w.writer("REPEATABLE READ")
	w.apply("", "old:*", "new:*")
	write(w.admin, "new:a", "k-2")
	w.waits(w.relay.NewBackfill("court"))
	write(first, "new:a", "a-1")
	b := w.relay.NewBackfill("court")
	w.waits(b)
	first.Do("COMMIT")
	if complete, wait, err := b.Step(t.Context(), 1); complete || wait || err != nil {
		t.Fatalf("step: complete %t, wait %t, %v; want a page to be added", complete, wait, err)
	}
	last := w.writer("REPEATABLE READ") // sees the change
	w.completes(w.relay.NewBackfill("court"), 1)
	w.delivers("at the end", "k-2", "a-1")
	last.Do("COMMIT")
}

func TestDeliveriesThatWaitForABackfillStayQueued(t *testing.T) {
	w := newWidening(t)
	older := w.writer("REPEATABLE READ")
	w.apply("", "old:*", "new:*")
	write(w.admin, "old:a", "k-1")
	write(w.admin, "old:a", "k-2")
	write(w.admin, "new:a", "k-3")
	write(w.admin, "old:a", "k-4")
	next := outboxtest.Claim(t, w.relay)
	for n := range 2 {
		if len(next) != 1 {
			t.Fatalf("delivery %d of the key: %d to be sent, want 1", n+1, len(next))
		}
		result := outboxtest.Delivered(next[0])
		result.Stay = true
		r := w.relay.Record(t.Context(), "court", []outbox.Result{result})
		outboxtest.Must(t, r.Err)
		next = r.Next
	}
	if len(next) > 0 || w.admin.Lane("k") != "stopped" {
		t.Errorf("the recording returned %+v to be sent next, and the lane is %s; want nothing to be sent and the lane stopped", next, w.admin.Lane("k"))
	}
	const want = "k-3 queued backfill, k-4 queued"
	w.expect("after the recording", want)
	if released, err := w.relay.ReleaseBackfilled(t.Context(), "court", 100); released != 0 || err != nil {
		t.Errorf("released %d, %v", released, err)
	}
	w.expect("after a look at what waits", want)
	w.delivers("after all of it")
	older.Do("COMMIT")
	w.completes(w.relay.NewBackfill("court"), 100)
	w.delivers("at the end", "k-3", "k-4")
}

func TestOperatorAndDeliveriesThatWaitForABackfill(t *testing.T) {
	event := func(w *widening, name string) string {
		return outboxtest.One[string](w.admin, "SELECT id::text FROM outbox.event WHERE headers ->> 'name' = $1", name)
	}
	begin := func(t *testing.T) (*widening, *outbox.Backfill, outboxtest.Session) {
		t.Helper()
		w := newWidening(t)
		older := w.writer("REPEATABLE READ")
		w.apply("", "old:*", "new:*")
		write(w.admin, "old:a", "k-1")
		write(w.admin, "new:a", "k-2")
		write(w.admin, "old:a", "k-3")
		write(w.admin, "new:a", "k-4")
		outboxtest.Claim(t, w.relay)
		w.expect("at the beginning", "k-1 sending, k-2 queued backfill, k-3 queued, k-4 queued backfill")
		b := w.relay.NewBackfill("court")
		w.waits(b)
		return w, b, older
	}
	t.Run("a discard is for good, and lets the next go", func(t *testing.T) {
		w, b, older := begin(t)
		w.operator.Do("SELECT outbox.discard('court', $1, 'r')", event(w, "k-2"))
		w.admin.Deliver(event(w, "k-1"))
		w.expect("after the discard", "k-3 pending, k-4 queued backfill")
		w.delivers("after the discard", "k-3")
		older.Do("COMMIT")
		w.completes(b, 1)
		w.delivers("at the end", "k-4")
	})
	t.Run("a discard of the one in front does not wake it", func(t *testing.T) {
		w, b, older := begin(t)
		w.admin.Fail(event(w, "k-1"))
		w.operator.Do("SELECT outbox.discard('court', $1, 'r')", event(w, "k-1"))
		w.expect("after the discard", "k-2 queued backfill, k-3 queued, k-4 queued backfill")
		older.Do("COMMIT")
		w.completes(b, 1)
		w.delivers("at the end", "k-2", "k-3", "k-4")
	})
	t.Run("a requeue is refused", func(t *testing.T) {
		w, _, _ := begin(t)
		w.operator.Refuses(wrongState, "SELECT outbox.requeue('court', event_id => $1)", []string{"it is queued"}, event(w, "k-2"))
		w.operator.Refuses(wrongState, "UPDATE outbox.delivery SET state = 'pending' WHERE event_id = $1", []string{"Only failed"}, event(w, "k-2"))
	})
	for _, end := range []string{"COMMIT", "ROLLBACK"} {
		t.Run("an open discard at the end, "+end, func(t *testing.T) {
			w, b, older := begin(t)
			w.operator.Do("BEGIN")
			w.operator.Do("SELECT outbox.discard('court', $1, 'r')", event(w, "k-4"))
			older.Do("COMMIT")
			w.completes(b, 1)
			w.expect("during the open discard", "k-1 sending, k-2 queued, k-3 queued, k-4 queued backfill")
			w.operator.Do(end)
			released, err := w.relay.ReleaseBackfilled(t.Context(), "court", 100)
			outboxtest.Must(t, err)
			if want := map[string]int{"COMMIT": 0, "ROLLBACK": 1}[end]; released != want {
				t.Errorf("released %d, want %d", released, want)
			}
		})
	}
}

// A writer may begin during a backfill and commit after its end.
func TestWriterThatCommitsAfterTheEndOfABackfill(t *testing.T) {
	w := newWidening(t)
	older := w.writer("REPEATABLE READ")
	w.apply("", "old:*", "new:*")
	b := w.relay.NewBackfill("court")
	w.waits(b)
	during := w.writer("REPEATABLE READ")
	write(during, "new:a", "k-1")
	older.Do("COMMIT")
	w.completes(b, 100)
	write(during, "new:a", "k-2")
	during.Do("COMMIT")
	w.expect("committed late", "k-1 queued backfill, k-2 queued backfill")
	if released, err := w.relay.ReleaseBackfilled(t.Context(), "court", 100); released != 2 || err != nil {
		t.Errorf("released %d, %v; want both", released, err)
	}
	w.delivers("at the end", "k-1", "k-2")
}

func TestRetiredSyncThatLivesAgainSendsItsOpenWork(t *testing.T) {
	w := newWidening(t)
	write(w.admin, "old:a", "k-1")
	w.operator.Do("SELECT outbox.retire('court', 'r')")
	write(w.admin, "old:a", "k-2") // not taken
	older := w.writer("REPEATABLE READ")
	w.apply("", "old:*")
	write(older, "old:a", "k-3")
	write(w.admin, "old:a", "k-4")
	b := w.relay.NewBackfill("court")
	w.waits(b)
	w.delivers("during the open writer", "k-1")
	older.Do("COMMIT")
	w.completes(b, 100)
	w.delivers("at the end", "k-3", "k-4")
}

func TestUndoOfARetirementAddsWhatWasMissed(t *testing.T) {
	w := newWidening(t)
	write(w.admin, "old:a", "before-1")
	before := w.writer("READ COMMITTED")
	write(before, "old:a", "before-2") // fanned out, but not committed
	w.operator.Do("SELECT outbox.retire('court', 'a mistake')")
	write(w.admin, "old:a", "k-1")
	write(w.admin, "new:a", "k-2")       // another type
	older := w.writer("REPEATABLE READ") // it sees the sync retired
	w.operator.Do("SET lockstep.actor = 'Ada'")
	w.operator.Do("SELECT outbox.resume_retired('court', 'it was a mistake')")
	w.operator.Do("SELECT outbox.resume_retired('court', 'once more')") // a notice
	write(w.admin, "old:a", "k-4")
	write(older, "old:a", "k-3")
	b := w.relay.NewBackfill("court")
	w.waits(b)
	w.delivers("during the open writers", "before-1")
	older.Do("COMMIT")
	before.Do("COMMIT")
	w.completes(b, 1)
	w.delivers("at the end", "before-2", "k-1", "k-4", "k-3")
	got := outboxtest.List[string](w.admin, "SELECT concat_ws(' ', outcome, split_part(actor, '/', 2), reason) FROM outbox.delivery_log WHERE outcome IN ('retired', 'sync_changed') ORDER BY id")
	if len(got) != 2 || got[0] != "retired  a mistake" || !strings.HasPrefix(got[1], "sync_changed Ada retired: since ") || !strings.HasSuffix(got[1], " to no: it was a mistake") {
		t.Errorf("log %q", got)
	}
	if outboxtest.One[bool](w.admin, "SELECT retired_at IS NOT NULL FROM outbox.sync") {
		t.Error("the sync is still retired")
	}
}

// Older events must come before the due ones. The sync is on hold while they are added, but not while the backfill waits for
// transactions.
func TestOlderEventsHoldTheSyncOnlyWhileTheyAreAdded(t *testing.T) {
	t.Run("of the same types: every open transaction sees the sync", func(t *testing.T) {
		w := newWidening(t)
		w.operator.Do("SELECT outbox.retire('court', 'r')")
		write(w.admin, "old:a", "k-1")
		w.apply("", "old:*")
		w.completes(w.relay.NewBackfill("court"), 100)
		write(w.admin, "old:a", "k-2")
		w.writer("REPEATABLE READ")
		w.apply("beginning", "old:*")
		if d := outboxtest.Claim(t, w.relay); len(d) != 0 {
			t.Errorf("claimed %d while older events are being added", len(d))
		}
		w.completes(w.relay.NewBackfill("court"), 1)
		w.delivers("at the end", "k-1", "k-2")
	})
	t.Run("of more types", func(t *testing.T) {
		w := newWidening(t)
		write(w.admin, "new:a", "k-1")
		older := w.writer("REPEATABLE READ")
		w.apply("beginning", "old:*", "new:*")
		write(w.admin, "old:a", "k-2")
		b := w.relay.NewBackfill("court")
		w.waits(b)
		w.delivers("during the open writer", "k-2")
		write(w.admin, "old:a", "k-3")
		older.Do("COMMIT")
		if held := w.completes(b, 1); held == 0 {
			t.Error("the sync was not on hold while older events were being added")
		}
		w.delivers("at the end", "k-1", "k-3")
	})
}

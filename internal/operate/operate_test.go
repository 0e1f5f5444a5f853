package operate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// court is a database with one sync, and a person who operates it.
type court struct {
	outboxtest.Session
	maria outboxtest.Session
	url   string
}

func newCourt(t *testing.T) *court {
	t.Helper()
	url := pgtest.New(t)
	c := &court{outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_operator"), url}
	c.Sync("Court")
	return c
}

// another opens a session of one more operator.
func (c *court) another() outboxtest.Session {
	c.T.Helper()
	return outboxtest.As(c.T, c.url, "outbox_operator")
}

// failed writes an event of a key whose delivery fails with a class and an error.
func (c *court) failed(key, class, text string) string {
	c.T.Helper()
	event := c.Event(key)
	c.fail(event, class, text)
	return event
}

func (c *court) fail(event, class, text string) {
	c.T.Helper()
	c.failAgo(event, class, text, 0)
}

func (c *court) failAgo(event, class, text string, ago time.Duration) {
	c.T.Helper()
	c.Past(`WITH d AS (
	          UPDATE outbox.delivery
	             SET state = 'failed', due_at = 'infinity', attempts = 1, total_attempts = total_attempts + 1, error_class = $2, error = $3
	           WHERE event_id = $1::text::uuid AND state <> 'failed'
	          RETURNING *)
	      INSERT INTO outbox.delivery_log (at, sync, event_id, key, attempt, outcome, error_class, error, event_seq, revision, claim, relay)
	      SELECT clock_timestamp() - $4::interval, sync, event_id, key, total_attempts, 'failed', error_class, error, event_seq, revision, gen_random_uuid(), 'relay-1' FROM d`, event, class, text, ago)
}

// delivered writes a version of a key and records that the court has it.
func (c *court) delivered(key string, version int) string {
	c.T.Helper()
	event := outboxtest.One[string](c.Session, `INSERT INTO outbox.event (type, key, version, payload) VALUES ('scheduling:updated', $1, $2, '{}') RETURNING id::text`, key, version)
	c.deliver(event)
	return event
}

func (c *court) deliver(event string) {
	c.T.Helper()
	c.Do(`WITH gone AS (DELETE FROM outbox.delivery WHERE event_id = $1::text::uuid RETURNING *)
	      INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, attempt, outcome, event_seq, revision, claim, relay)
	      SELECT sync, event_id, 'scheduling:updated', key, total_attempts + 1, 'delivered', event_seq, revision, gen_random_uuid(), 'relay-1' FROM gone`, event)
}

func (c *court) choose(a Action, f Filter) Set {
	c.T.Helper()
	s, err := chooseNow(c.T.Context(), c.maria, a, f)
	if err != nil {
		c.T.Fatal(err)
	}
	return s
}

func (c *court) apply(o Order) Result {
	c.T.Helper()
	r, err := Apply(c.T.Context(), c.maria, Actor{"maria", "repaired"}, o)
	if err != nil {
		c.T.Fatal(err)
	}
	return r
}

// actions returns what people did, in order: the outcome and the event.
func (c *court) actions() []string {
	c.T.Helper()
	return outboxtest.List[string](c.Session, `SELECT concat_ws(' ', outcome, event_id, split_part(actor, '/', 2), reason) FROM outbox.delivery_log WHERE actor IS NOT NULL ORDER BY id`)
}

func ids(list []Delivery) (events []string) {
	for _, d := range list {
		events = append(events, d.EventID)
	}
	return events
}

func TestASetIsWhatTheFilterSelects(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	c.Sync("Clinic")
	h1 := c.Event("H-1")
	c.failAgo(h1, "permanent", "HTTP 422: No such Courtroom", time.Hour)
	h2, h3 := c.failed("H-2", "mapping", "field 100%_sure is missing"), c.failed("H-3", "mapping", "field x is missing")
	c.Event("H-4") // not failed
	all := func(events ...string) []string { return slices.Concat(events, events) }
	for name, test := range map[string]struct {
		filter Filter
		want   []string
		words  string
	}{
		"all":              {Filter{All: true}, all(h1, h2, h3), "failed deliveries, to any sync"},
		"of a sync":        {Filter{Sync: "Court", All: true}, []string{h1, h2, h3}, "failed deliveries to Court"},
		"of a key":         {Filter{Key: "H-2"}, all(h2), "failed deliveries of key H-2"},
		"of an event":      {Filter{Event: h3, Sync: "Clinic"}, []string{h3}, "failed deliveries of event " + h3 + " to Clinic"},
		"of a class":       {Filter{Class: "mapping", Sync: "Court"}, []string{h2, h3}, "failed deliveries to Court of class mapping"},
		"error, any case":  {Filter{Error: "no such courtROOM", Sync: "Court"}, []string{h1}, `failed deliveries to Court with "no such courtROOM" in the error`},
		"error, literally": {Filter{Error: "100%_", Sync: "Court"}, []string{h2}, `failed deliveries to Court with "100%_" in the error`},
		"error, no match":  {Filter{Error: "is%missing"}, nil, `failed deliveries with "is%missing" in the error, to any sync`},
		"within":           {Filter{Within: 30 * time.Minute, Sync: "Court"}, []string{h2, h3}, "failed deliveries to Court that failed since "},
		"until":            {Filter{Until: time.Now().Add(-30 * time.Minute), Sync: "Court"}, []string{h1}, "failed deliveries to Court that failed before "},
		"older":            {Filter{OlderThan: 30 * time.Minute, Sync: "Court"}, []string{h1}, "failed deliveries to Court that failed before "},
	} {
		s := c.choose(Requeue, test.filter)
		got := ids(s.First)
		slices.Sort(got)
		slices.Sort(test.want)
		if !slices.Equal(got, test.want) || s.Count != int64(len(test.want)) || !strings.HasPrefix(s.Words, test.words) {
			t.Errorf("%s: %d: %s %q, want %s %q", name, s.Count, got, s.Words, test.want, test.words)
		}
	}
	s := c.choose(Requeue, Filter{All: true})
	if want := []Group{{"Clinic", "mapping", 2}, {"Clinic", "permanent", 1}, {"Court", "mapping", 2}, {"Court", "permanent", 1}}; !slices.Equal(s.Groups, want) {
		t.Errorf("groups are %v, want %v", s.Groups, want)
	}
	if s.Oldest == nil || s.Newest == nil || !s.Oldest.Before(*s.Newest) {
		t.Errorf("oldest %v, newest %v", s.Oldest, s.Newest)
	}
}

func TestAFilterThatSelectsMoreThanIsMeantIsRefused(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	for name, test := range map[string]struct {
		action Action
		filter Filter
		want   string
	}{
		"nothing":              {Requeue, Filter{}, "would select everything"},
		"a sync alone":         {Requeue, Filter{Sync: "Court"}, "would select everything"},
		"error of a delivered": {Replay, Filter{Error: "x"}, "has no error"},
		"class of a delivered": {Replay, Filter{Class: "mapping"}, "has no error"},
		"retired requeue":      {Requeue, Filter{Sync: "Court", Retired: true}, "only discard"},
		"retired of a key":     {Discard, Filter{Sync: "Court", Retired: true, Key: "H-1"}, "only discard"},
		"the future":           {Requeue, Filter{All: true, AsOf: time.Now().Add(time.Hour)}, "the database's clock says"},
		"another action":       {"remove", Filter{All: true}, `no action "remove"`},
	} {
		if _, err := chooseNow(t.Context(), c.maria, test.action, test.filter); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// What a person has confirmed is what is done: nothing that failed later, and nothing that
// somebody has changed meanwhile.
func TestApplyChangesTheSetThatWasSeen(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	h1, h2 := c.failed("H-1", "permanent", "x"), c.failed("H-2", "permanent", "x")
	seen := c.choose(Requeue, Filter{All: true})
	later := c.failed("H-3", "permanent", "x")
	if r := c.apply(seen.Order()); r.Done != 2 {
		t.Errorf("%d requeued, want 2", r.Done)
	}
	if got, want := c.actions(), []string{"requeued " + h1 + " maria repaired", "requeued " + h2 + " maria repaired"}; !slices.Equal(got, want) {
		t.Errorf("the log says %q, want %q", got, want)
	}
	if got := c.States("H-3"); got != "failed" {
		t.Errorf("the delivery that failed later is %s", got)
	}

	// The same form once more: nothing of the set is left.
	_, err := Apply(t.Context(), c.maria, Actor{"maria", "again"}, seen.Order())
	changed, ok := errors.AsType[*ChangedError](err)
	if !ok || changed.Now.Count != 1 || !slices.Equal(ids(changed.Now.First), []string{later}) || !strings.Contains(err.Error(), "the set has changed: now 1") {
		t.Errorf("%v, want it refused with the set of now", err)
	}

	// A row that was requeued and failed again is another one, although it looks the same.
	seen = c.choose(Requeue, Filter{All: true})
	c.Do(`UPDATE outbox.delivery SET state = 'pending' WHERE event_id = $1::text::uuid AND state = 'failed'`, later)
	c.fail(later, "permanent", "x")
	if _, err := Apply(t.Context(), c.maria, Actor{"maria", "again"}, seen.Order()); err == nil {
		t.Error("a delivery that has failed once more was requeued")
	}
}

// A set that changes after it was compared, and before its rows are locked.
func TestASetThatChangesInTheLastMomentIsRefused(t *testing.T) {
	t.Parallel()
	for _, action := range []Action{Requeue, Discard} {
		c := newCourt(t)
		c.failed("H-1", "permanent", "x")
		h2 := c.failed("H-2", "permanent", "x")
		o := c.choose(action, Filter{All: true}).Order()
		psql := c.begin()
		psql.Do(`UPDATE outbox.delivery SET state = 'pending' WHERE event_id = $1::text::uuid AND state = 'failed'`, h2)
		done := make(chan error)
		go func() {
			_, err := Apply(t.Context(), c.maria, Actor{"maria", "repaired"}, o)
			done <- err
		}()
		c.Blocked(c.maria.PgConn().PID())
		psql.Do("COMMIT")
		if changed, ok := errors.AsType[*ChangedError](<-done); !ok || changed.Now.Count != 1 {
			t.Errorf("%s: %v, want it refused", action, changed)
		}
		if got := c.actions(); len(got) != 1 {
			t.Errorf("%s: the log says %q", action, got)
		}
		// Without a set that was seen, it takes what is left.
		o.Fingerprint = ""
		if r := c.apply(o); r.Done != 1 {
			t.Errorf("%s of %d", action, r.Done)
		}
	}
}

// begin opens a session in a transaction.
func (c *court) begin() outboxtest.Session {
	c.T.Helper()
	s := outboxtest.Connect(c.T, c.url)
	s.Do("BEGIN")
	return s
}

func TestPagesChangeEachDeliveryOnce(t *testing.T) {
	t.Parallel()
	for _, action := range []Action{Requeue, Discard, Replay} {
		c := newCourt(t)
		var want []string
		for n := range 25 {
			if key := fmt.Sprint("H-", n); action == Replay {
				want = append(want, c.delivered(key, 1))
			} else {
				want = append(want, c.failed(key, "permanent", "x"))
			}
		}
		seen := c.choose(action, Filter{All: true})
		// Two operators at once.
		type outcome struct {
			Result
			pages [][]Delivery
			err   error
		}
		outcomes := make(chan outcome)
		for _, s := range []outboxtest.Session{c.maria, c.another()} {
			go func() {
				var out outcome
				o := Order{Action: action, Filter: seen.Filter, pageSize: 4, Each: func(page []Delivery) error {
					out.pages = append(out.pages, page)
					return nil
				}}
				out.Result, out.err = Apply(t.Context(), s, Actor{"maria", "repaired"}, o)
				outcomes <- out
			}()
		}
		var done int64
		var got []string
		for range 2 {
			out := <-outcomes
			if out.err != nil {
				t.Fatal(action, out.err)
			}
			done += out.Done
			for _, page := range out.pages {
				if len(page) > 4 {
					t.Errorf("%s: a page of %d", action, len(page))
				}
				got = append(got, ids(page)...)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if done != 25 || !slices.Equal(got, want) || len(c.actions()) != 25 {
			t.Errorf("%s: %d done, %d shown, %d in the log, want 25 each", action, done, len(got), len(c.actions()))
		}
	}
}

// hearing writes an event about a hearing at a time.
func (c *court) hearing(key, at string) string {
	c.T.Helper()
	return outboxtest.One[string](c.Session, `INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', $1, jsonb_build_object('at', $2::text)) RETURNING id::text`, key, at)
}

func TestTheSoonestHearingIsFirst(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	c.Do(`UPDATE outbox.sync SET escalate_at = '{at}'`)
	var want []string
	for _, h := range []struct{ key, at string }{{"H-3", "2027-03-01"}, {"H-0", "unknown"}, {"H-1", "2027-01-01"}, {"H-2", "2027-02-01"}} {
		event := c.hearing(h.key, h.at)
		c.fail(event, "permanent", "x")
		want = append(want, event)
	}
	want = []string{want[2], want[3], want[0], want[1]}
	var got []string
	page := func(page []Delivery) error { got = append(got, ids(page)...); return nil }
	s := c.choose(Requeue, Filter{All: true})
	if !slices.Equal(ids(s.First), want) || s.SoonestNeededBy == nil || s.SoonestNeededBy.UTC().Format(time.DateOnly) != "2027-01-01" {
		t.Errorf("listed %s, want %s; the soonest is %s", ids(s.First), want, s.SoonestNeededBy)
	}
	c.apply(Order{Action: Requeue, Filter: Filter{All: true}, pageSize: 1, Each: page})
	if !slices.Equal(got, want) {
		t.Errorf("requeued in the order %s, want %s", got, want)
	}

	// A replay is sent after everything else of its key, so the order of a key's events
	// matters more than their times.
	for _, event := range want {
		c.deliver(event)
	}
	earlier := c.hearing("H-3", "2027-01-15")
	c.deliver(earlier)
	got = nil
	c.apply(Order{Action: Replay, Filter: Filter{All: true}, pageSize: 1, Each: page})
	if want := []string{want[0], want[2], earlier, want[1], want[3]}; !slices.Equal(got, want) {
		t.Errorf("replayed in the order %s, want %s", got, want)
	}
}

func TestListReadsTheWholeSet(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	c.Do(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'H-' || n, '{}' FROM generate_series(1, 1200) AS n`)
	c.Past(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity'`)
	var pages []int
	err := pgx.BeginTxFunc(t.Context(), c.maria, snapshot, func(tx pgx.Tx) error {
		s, err := Choose(t.Context(), tx, Requeue, Filter{All: true})
		if err != nil {
			return err
		}
		return s.List(t.Context(), tx, func(some []Delivery) error { pages = append(pages, len(some)); return nil })
	})
	if err != nil || !slices.Equal(pages, []int{1000, 200}) {
		t.Errorf("%d, %v", pages, err)
	}
}

func TestApplyThatIsStoppedDoesNotWaitForOthers(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	c.delivered("H-1", 1)
	seen := c.choose(Replay, Filter{All: true})
	other := outboxtest.Connect(t, c.url)
	other.Do("BEGIN")
	other.Do("SELECT pg_advisory_xact_lock($1)", pageLock)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := Apply(ctx, c.maria, Actor{"maria", "lost"}, seen.Order())
		ended <- err
	}()
	waiting.For(t, time.Minute, "Apply waits", func() bool {
		return outboxtest.One[bool](other, "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))")
	})
	cancel()
	select {
	case err := <-ended:
		if stopped, ok := errors.AsType[*StoppedError](err); !ok || stopped.Done != 0 {
			t.Errorf("got %v", err)
		}
	case <-time.After(20 * time.Second): // less than the minute that it waits at most
		t.Error("it goes on waiting")
		other.Do("ROLLBACK")
		t.Logf("it ended after that: %v", <-ended)
	}
}

func TestApplyThatIsStoppedCompletesItsPage(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	for n := range 10 {
		c.delivered(fmt.Sprint("H-", n), 1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	seen := c.choose(Replay, Filter{All: true})
	o := seen.Order()
	o.pageSize = 4
	o.Each = func([]Delivery) error { cancel(); return nil }
	_, err := Apply(ctx, c.maria, Actor{"maria", "lost"}, o)
	stopped, ok := errors.AsType[*StoppedError](err)
	if !ok || stopped.Done != 4 || stopped.Set.Count != 10 || !strings.Contains(err.Error(), "4 of 10 replayed") {
		t.Fatal(err)
	}
	// The relay delivers what was replayed. Those are not replayed again.
	for _, event := range outboxtest.List[string](c.Session, `SELECT event_id::text FROM outbox.delivery`) {
		c.deliver(event)
	}
	if r := c.apply(Order{Action: Replay, Filter: seen.Filter}); r.Done != 6 {
		t.Errorf("%d more replayed, want 6", r.Done)
	}
}

func TestARateBoundsThePagesAndTheTime(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	for n := range 5 {
		c.failed(fmt.Sprint("H-", n), "permanent", "x")
	}
	var pages []int
	var waits []time.Duration
	begun := time.Now()
	o := Order{
		Action: Requeue, Filter: Filter{All: true}, Rate: 2,
		Each: func(page []Delivery) error { pages = append(pages, len(page)); return nil },
		wait: func(_ context.Context, until time.Time) error { waits = append(waits, until.Sub(begun)); return nil },
	}
	c.apply(o)
	if !slices.Equal(pages, []int{2, 2, 1}) || len(waits) != 2 || waits[1]-waits[0] != time.Second {
		t.Errorf("pages of %d, waits until %s: want 2 2 1, and a second between the waits", pages, waits)
	}
}

func TestAnErrorInALaterPageSaysWhatWasDone(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	for n := range 6 {
		c.failed(fmt.Sprint("H-", n), "permanent", "x")
	}
	enough := errors.New("the disk is full")
	o := Order{Action: Requeue, Filter: Filter{All: true}, pageSize: 4, Each: func([]Delivery) error {
		c.Do(`REVOKE UPDATE (state) ON outbox.delivery FROM outbox_operator`)
		return nil
	}}
	if r, err := Apply(t.Context(), c.maria, Actor{"maria", "x"}, o); err == nil || r.Done != 4 || !strings.Contains(err.Error(), "4 of 6 were requeued, and the others were not changed") {
		t.Errorf("%d done, %v", r.Done, err)
	}
	c.Do(`GRANT UPDATE (state) ON outbox.delivery TO outbox_operator`)
	o.Each = func([]Delivery) error { return enough }
	if _, err := Apply(t.Context(), c.maria, Actor{"maria", "x"}, o); !errors.Is(err, enough) || !strings.Contains(err.Error(), "2 of 2 were requeued") {
		t.Error(err)
	}
}

// Somebody has a transaction open in psql and has gone home.
func TestALockThatStaysIsExplained(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	h1 := c.failed("H-1", "permanent", "x")
	c.begin().Do(`SELECT FROM outbox.delivery WHERE event_id = $1::text::uuid FOR UPDATE`, h1)
	_, err := Apply(t.Context(), c.maria, Actor{"maria", "x"}, Order{Action: Requeue, Filter: Filter{All: true}, lockWait: 100 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "nothing was changed: somebody has locked one of the deliveries for 100ms") {
		t.Error(err)
	}
}

// A page may be committed although its answer does not come.
func TestACommitWithoutAnAnswerIsUnclear(t *testing.T) {
	t.Parallel()
	for _, action := range []Action{Requeue, Discard} {
		c := newCourt(t)
		for n := range 6 {
			c.failed(fmt.Sprint("H-", n), "permanent", "x")
		}
		c.Do(`CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'`)
		f := Filter{All: true}
		breaks := func() {
			c.Do(`CREATE CONSTRAINT TRIGGER break AFTER INSERT ON outbox.delivery_log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION break()`)
		}
		want := "4 of 6 were requeued, perhaps 2 more were, and the others were not changed"
		if action == Discard {
			c.Do(`SELECT outbox.retire('Court', 'closed')`)
			f, want = Filter{Sync: "Court", Retired: true}, "0 of 6 were discarded, perhaps 6 more were"
			breaks()
		}
		o := Order{Action: action, Filter: f, pageSize: 4, Each: func([]Delivery) error {
			if action == Requeue {
				breaks()
			}
			return nil
		}}
		if _, err := Apply(t.Context(), c.maria, Actor{"maria", "x"}, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// The receiver keeps what it gets last. A replay must not put back an older state.
func TestAReplayThatWouldUndoANewerEventIsRefused(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	v1, v2 := c.delivered("H-1", 1), c.delivered("H-1", 2)
	refused := func(f Filter, want string) {
		t.Helper()
		_, err := chooseNow(t.Context(), c.maria, Replay, f)
		if _, ok := errors.AsType[*OutdatedError](err); !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it refused with %q", err, want)
		}
	}
	refused(Filter{Event: v1}, "Court got version 2 of key H-1 after version 1")
	if s := c.choose(Replay, Filter{Event: v1, Force: true}); s.Count != 1 {
		t.Errorf("%d selected by force", s.Count)
	}
	if s := c.choose(Replay, Filter{Key: "H-1"}); !slices.Equal(ids(s.First), []string{v2}) || s.Older != 1 {
		t.Errorf("of the key %s, want the newest", ids(s.First))
	}
	if s := c.choose(Replay, Filter{Key: "H-1", All: true}); !slices.Equal(ids(s.First), []string{v1, v2}) {
		t.Errorf("of the key %s, want both", ids(s.First))
	}
	v3 := c.failed("H-1", "permanent", "x")
	refused(Filter{Event: v2}, "event "+v3+" of key H-1 is newer than version 2 and still failed for Court")
	refused(Filter{Key: "H-1"}, "still failed")
	refused(Filter{Key: "H-1", All: true}, "still failed")

	// In a set of many keys, those that would be undone are left out.
	h2 := c.delivered("H-2", 1)
	s := c.choose(Replay, Filter{All: true})
	if !slices.Equal(ids(s.First), []string{h2}) || s.Outdated != 2 || s.FirstOutdated.NewerEventID != v3 || !slices.Equal(s.OutdatedKeys, []string{"H-1"}) {
		t.Errorf("selected %s, left out %d", ids(s.First), s.Outdated)
	}
	// Also if the newer event came after the set was read.
	o := s.Order()
	o.pageSize, o.Fingerprint = 1, ""
	o.Filter.Force = false
	h3 := c.delivered("H-3", 1)
	all := c.choose(Replay, Filter{All: true})
	o = Order{Action: Replay, Filter: all.Filter, pageSize: 1, Each: func([]Delivery) error {
		c.Event("H-3")
		return nil
	}}
	if r := c.apply(o); r.Done != 1 || r.Set.Count != 2 {
		t.Errorf("%d of %d replayed, want 1 of 2: %s", r.Done, r.Set.Count, h3)
	}
}

func TestDiscardOfAnEventSelectsEveryState(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	h1 := c.failed("H-1", "permanent", "x")
	behind := c.Event("H-1")
	seen := c.choose(Discard, Filter{Event: behind})
	if seen.Count != 1 || seen.First[0].State != "queued" || !strings.HasPrefix(seen.Words, "open deliveries of event") {
		t.Fatalf("%+v", seen)
	}
	c.apply(seen.Order())
	if got := c.States("H-1"); got != "failed" {
		t.Errorf("states %s, want the first alone", got)
	}
	h2 := c.Event("H-2")
	o := c.choose(Discard, Filter{Event: h2}).Order()
	c.Send(h2)
	if _, err := Apply(t.Context(), c.maria, Actor{"maria", "x"}, o); err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(err.Error(), "is being sent") {
		t.Error(err)
	}
	if got, want := c.actions(), []string{"discarded " + behind + " maria repaired"}; !slices.Equal(got, want) {
		t.Errorf("the log says %q, want %q; %s", got, want, h1)
	}
}

func TestDiscardOfARetiredSync(t *testing.T) {
	t.Parallel()
	c := newCourt(t)
	for n := range 7 {
		c.Event(fmt.Sprint("H-", n%3))
	}
	o := Order{Action: Discard, Filter: Filter{Sync: "Court", Retired: true}, pageSize: 3}
	if _, err := Apply(t.Context(), c.maria, Actor{"maria", "x"}, o); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Error(err)
	}
	c.Do(`SELECT outbox.retire('Court', 'closed')`)
	shown := 0
	o.Each = func(page []Delivery) error { shown += len(page); return nil }
	o.Fingerprint = c.choose(Discard, o.Filter).Fingerprint
	if r := c.apply(o); r.Done != 7 || shown != 7 {
		t.Errorf("%d discarded, %d shown, want 7", r.Done, shown)
	}
	if _, err := Apply(t.Context(), c.maria, Actor{"maria", "x"}, o); err == nil {
		t.Error("the set that is gone was discarded again")
	}
}

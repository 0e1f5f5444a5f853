package inspect

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// hearing is a database with one key that several tests tell the story of.
type hearing struct {
	outboxtest.Session
	auditor outboxtest.Session
	key     string
}

func newHearing(t *testing.T) *hearing {
	t.Helper()
	url := pgtest.New(t)
	h := &hearing{outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_auditor"), "H/2027 %+ü"}
	h.Sync("Court", "scheduling:*")
	h.Do(`INSERT INTO outbox.heartbeat (instance, name, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay-1', '{Court}', now(), now())`)
	return h
}

// emit inserts the next version of the hearing.
func (h *hearing) emit(version int) string {
	h.T.Helper()
	return outboxtest.One[string](h.Session, `INSERT INTO outbox.event (type, key, version, payload) VALUES ('scheduling:updated', $1, $2, '{"party": "Smith"}') RETURNING id::text`, h.key, version)
}

// deliver records that the court has an event.
func (h *hearing) deliver(event string) {
	h.T.Helper()
	h.Do(`WITH gone AS (DELETE FROM outbox.delivery WHERE event_id = $1::text::uuid RETURNING *)
	      INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, code, external_id, event_seq, revision, took_ms, claim, relay)
	      SELECT g.sync, g.event_id, e.type, g.key, e.version, g.total_attempts + 1, 'delivered', 'HTTP 201', 'C-1', g.event_seq, g.revision, 12, gen_random_uuid(), 'relay-1'
	        FROM gone AS g JOIN outbox.event AS e ON e.id = g.event_id`, event)
}

func (h *hearing) story() Story {
	h.T.Helper()
	story, err := ReadStory(h.T.Context(), h.auditor, h.key, 0)
	if err != nil {
		h.T.Fatal(err)
	}
	return story
}

// says checks the standing of the only lane, and that its sentences have texts.
func (h *hearing) says(want Standing, texts ...string) string {
	h.T.Helper()
	story := h.story()
	if len(story.Lanes) != 1 {
		h.T.Fatalf("%d lanes, want 1: %+v", len(story.Lanes), story)
	}
	standing, sentences := story.Lanes[0].Says(&story)
	if standing != want {
		h.T.Errorf("the lane is %q, want %q", standing, want)
	}
	said := ""
	for _, s := range sentences {
		said += s.In(time.UTC) + "\n"
	}
	for _, text := range texts {
		if !strings.Contains(said, text) {
			h.T.Errorf("does not say %q:\n%s", text, said)
		}
	}
	return said
}

func TestAStoryBeginsWithWhatTheReceiverHas(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	h.says404()
	first := h.emit(1)
	h.says(Waiting, "Court does not have version 1 (scheduling:updated) yet. It is about to be sent.")
	h.Send(first)
	h.says(Sending, "It is being sent now")
	h.Do(`DELETE FROM outbox.lane`)
	h.deliver(first)
	h.says(UpToDate, "Court has version 1 (scheduling:updated) since ")

	second := h.emit(2)
	h.Fail(second)
	h.emit(3)
	h.emit(4)
	said := h.says(Failed, "Court does not have version 2 (scheduling:updated): it was refused: HTTP 422: no such courtroom. It waits for a person.",
		"2 later events of this key wait behind it.", "It has version 1 (scheduling:updated) since ")
	if strings.Contains(said, "Smith") {
		t.Errorf("a payload is shown: %s", said)
	}

	operator := outboxtest.Connect(t, pgtest.AsRole(t, h.Config().ConnString(), "outbox_operator"))
	operator.Do(`SET lockstep.actor = 'maria'`)
	operator.Do(`SELECT outbox.discard('Court', $1::text::uuid, 'version 3 says the same')`, second)
	operator.Do(`SELECT outbox.pause('Court', 'the court moves house', now() + interval '2 hours')`)
	h.says(OnHold, "Court does not have version 3 (scheduling:updated) yet.", "Sending was paused by maria at ", "the court moves house. It continues at ", "1 later event of this key waits behind it.")
	story := h.story()
	lane := story.Lanes[0]
	if len(lane.Events) != 4 || *lane.Events[0].Version != 4 || lane.Events[3].Entries[0].ExternalID != "C-1" {
		t.Errorf("got %+v", lane.Events)
	}
	if e := lane.Events[2].Entries; len(e) != 1 || e[0].Says() != "maria gave it up" || e[0].Detail() != "version 3 says the same" {
		t.Errorf("got %+v", e)
	}
	if len(lane.Actions) != 1 || lane.Actions[0].Says() != "maria paused sending" {
		t.Errorf("got %+v", lane.Actions)
	}

	operator.Do(`SELECT outbox.resume('Court')`)
	h.Do(`INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('Court', 'auth', now(), 'HTTP 401', 'relay-1'),
		('Court', 'window', now() + interval '9 hours', 'outside its window, opens Thu 2027-03-11 08:00 UTC', 'relay-1')`)
	h.says(OnHold, "refuses our credentials: HTTP 401. It is about to be tried again.", "it is outside its window, opens Thu 2027-03-11 08:00 UTC. It continues at ")
	h.Do(`DELETE FROM outbox.hold`)
	h.Do(`UPDATE outbox.delivery SET state = 'retry', due_at = now() + interval '1 hour', attempts = 1, error_class = 'transient', error = 'POST 127.0.0.1/x: answered HTTP 500: disk full.'`)
	h.Do(`UPDATE outbox.heartbeat SET syncs = '{}'`)
	h.says(Waiting, "yet: HTTP 500: disk full. It will be tried again at ", "No running relay serves this sync")
}

// says404 checks that nothing is known of the key.
func (h *hearing) says404() {
	h.T.Helper()
	if story := h.story(); story.Known() {
		h.T.Errorf("something is known: %+v", story)
	}
}

// The log alone tells what became of events that retention has removed.
func TestAStoryAfterTheRetentionOfItsEvents(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	h.deliver(h.emit(1))
	h.deliver(h.emit(2))
	h.Do(`DELETE FROM outbox.event`)
	h.says(UpToDate, "Court has version 2 (scheduling:updated) since ")
	if lane := h.story().Lanes[0]; len(lane.Events) != 2 || *lane.Events[0].Version != 2 || !lane.Events[0].InsertedAt.IsZero() {
		t.Errorf("got %+v", lane.Events)
	}
}

// Somebody replayed an older event: the court has its state again.
func TestAStoryNamesAnOlderStateThatWasSentAgain(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	first := h.emit(1)
	h.deliver(first)
	h.deliver(h.emit(2))
	h.Do(`SELECT outbox.replay('Court', $1::text::uuid, 'a mistake')`, first)
	h.says(Waiting, "Court does not have version 1 (scheduling:updated) yet", "It has version 2")
	h.deliver(first)
	h.says(UpToDate, "Court has version 1 (scheduling:updated) since ", "It had got version 2 before", "an older version was sent again")
}

func TestAStoryOfEventsThatNobodyGets(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	h.Do(`INSERT INTO outbox.event (type, key, payload) VALUES ('clinic:closed', $1, '{}')`, h.key)
	if story := h.story(); len(story.Lanes) != 0 || len(story.Unmatched) != 1 || story.Unmatched[0].Type != "clinic:closed" {
		t.Errorf("got %+v", story)
	}
	h.Do(`SELECT outbox.retire('Court', 'a new system')`)
	h.emit(1)
	h.says(NotSent, "not sent: the sync was retired at ")
}

func TestALongStoryIsCut(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	first := h.emit(0)
	h.Fail(first)
	h.Do(`INSERT INTO outbox.event (type, key, version, payload) SELECT 'scheduling:updated', $1, n, '{}' FROM generate_series(1, 1100) AS n`, h.key)
	h.says(Failed, "does not have version 0", "more than 999 later events of this key wait behind it")
	lane := h.story().Lanes[0]
	if len(lane.Events) != mostOpen+1 || *lane.Events[0].Version != 1100 || lane.Events[len(lane.Events)-1].ID != first {
		t.Errorf("%d events from version %d", len(lane.Events), *lane.Events[0].Version)
	}

	h.Do(`DELETE FROM outbox.delivery`)
	h.Do(`INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, version, attempt, outcome, claim, relay)
	      SELECT 'Court', e.id, e.type, e.key, e.version, 1, CASE e.version WHEN 1 THEN 'delivered' ELSE 'filtered' END, gen_random_uuid(), 'relay-1'
	        FROM outbox.event AS e WHERE e.version BETWEEN 1 AND 250 ORDER BY e.version`)
	h.says(NotSent, "version 250 is not sent to Court", "It has version 1 (")
	story := h.story()
	if lane := story.Lanes[0]; len(lane.Events) != MostEvents || lane.Older != MostEntries-MostEvents || story.OlderThan == 0 {
		t.Errorf("%d events, %d older, older than %d", len(lane.Events), lane.Older, story.OlderThan)
	}
	older, err := ReadStory(t.Context(), h.auditor, h.key, story.OlderThan)
	if err != nil || older.OlderThan != 0 || len(older.Lanes[0].Events) != 50 || *older.Lanes[0].Events[49].Version != 1 || older.Before != story.OlderThan {
		t.Errorf("%v: older part: %+v", err, older)
	}
}

func TestAStatementOfAReadIsBounded(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	h.Do(`BEGIN; LOCK TABLE outbox.delivery_log IN ACCESS EXCLUSIVE MODE`)
	_, err := ReadStory(t.Context(), h.auditor, h.key, 0)
	h.Do(`ROLLBACK`)
	h.Judge(err, "57014", "a read that waits for a lock", []string{"statement timeout"})
}

func TestChangesSayWhoDidWhat(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	operator := outboxtest.Connect(t, pgtest.AsRole(t, h.Config().ConnString(), "outbox_operator"))
	for i := range 7 {
		h.Fail(outboxtest.One[string](h.Session, `INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'K-' || $1::int, '{}') RETURNING id::text`, i))
	}
	operator.Do(`SET lockstep.actor = 'maria'`)
	operator.Do(`SELECT outbox.requeue('Court', key => 'K-0', reason => 'first try')`)
	operator.Do(`SELECT outbox.requeue('Court', reason => 'the court repaired it')`)
	operator.Do(`SET lockstep.actor = 'jo'`)
	operator.Do(`SELECT outbox.pause('Court', 'moves house'), outbox.resume('Court')`)
	h.deliver(h.emit(1)) // rows of relays are no changes
	c, err := ReadChanges(t.Context(), h.auditor, ChangeFilter{})
	if err != nil || c.Older != 0 || len(c.List) != 4 {
		t.Fatalf("%v: got %+v", err, c)
	}
	if c.List[0].Says() != "jo resumed sending" || c.List[1].Says() != "jo paused sending" {
		t.Errorf("got %+v", c.List[:2])
	}
	if all := c.List[2]; all.Rows != 6 || len(all.Keys) != mostKeys || all.Reason != "the court repaired it" || !strings.HasSuffix(all.Actor, "/maria") {
		t.Errorf("got %+v", all)
	}
	for person, want := range map[string]int{"maria": 2, "jo": 2, "ria": 0, c.List[2].Actor: 2} {
		if c, err := ReadChanges(t.Context(), h.auditor, ChangeFilter{Person: person, Sync: "Court"}); err != nil || len(c.List) != want {
			t.Errorf("%s: %v: got %+v", person, err, c.List)
		}
	}
	if c, err := ReadChanges(t.Context(), h.auditor, ChangeFilter{Sync: "Other"}); err != nil || len(c.List) != 0 {
		t.Errorf("%v: got %+v", err, c.List)
	}
	if c, err := ReadChanges(t.Context(), h.auditor, ChangeFilter{Before: c.List[2].ID}); err != nil || len(c.List) != 2 {
		t.Errorf("%v: got %+v", err, c.List)
	}
	if c, err := ReadChanges(t.Context(), h.auditor, ChangeFilter{After: c.List[1].ID}); err != nil || len(c.List) != 1 || c.List[0].Outcome != "resumed" {
		t.Errorf("%v: got %+v", err, c.List)
	}
	for action, want := range map[string]int{"requeued": 2, "paused": 1, "discarded": 0} {
		if c, err := ReadChanges(t.Context(), h.auditor, ChangeFilter{Action: action}); err != nil || len(c.List) != want {
			t.Errorf("%s: %v: got %+v", action, err, c.List)
		}
	}
	paused := c.List[1].At
	for name, test := range map[string]struct {
		filter ChangeFilter
		want   int
	}{"since": {ChangeFilter{Since: paused}, 2}, "until": {ChangeFilter{Until: paused}, 2}} {
		if c, err := ReadChanges(t.Context(), h.auditor, test.filter); err != nil || len(c.List) != test.want {
			t.Errorf("%s: %v: got %+v", name, err, c.List)
		}
	}
}

func TestChangesAreReadInParts(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	const row = `INSERT INTO outbox.delivery_log (sync, event_id, key, outcome, actor, reason) `
	h.Past(row + `SELECT 'Court', gen_random_uuid(), 'old', 'discarded', 'ops/jo', 'x' FROM generate_series(1, 3)`)
	h.Past(row+`SELECT 'Court', gen_random_uuid(), 'K-' || n, 'requeued', 'ops/maria', 'again' FROM generate_series(1, $1) AS n`, mostRows+5)
	read := func(f ChangeFilter) Changes {
		t.Helper()
		c, err := ReadChanges(t.Context(), h.auditor, f)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	all := read(ChangeFilter{})
	if len(all.List) != 1 || all.List[0].Rows != mostRows || !all.List[0].Cut || all.Older == 0 || len(all.List[0].Keys) != mostKeys {
		t.Fatalf("got %+v", all)
	}
	all.Continue(read(ChangeFilter{Before: all.Older}))
	if len(all.List) != 2 || all.List[0].Rows != mostRows+5 || all.List[0].Cut || all.List[1].Rows != 3 || all.Older != 0 {
		t.Errorf("got %+v", all)
	}
	// A read that selects nothing says where to continue.
	jo := read(ChangeFilter{Person: "jo"})
	if len(jo.List) != 0 || jo.Older == 0 {
		t.Errorf("got %+v", jo)
	}
	jo.Continue(read(ChangeFilter{Person: "jo", Before: jo.Older}))
	if len(jo.List) != 1 || jo.Older != 0 {
		t.Errorf("got %+v", jo)
	}

	h.Past(row+`SELECT 'Court', NULL, NULL, 'paused', 'ops/jo', 'x' FROM generate_series(1, $1)`, MostChanges+1)
	page := read(ChangeFilter{})
	if len(page.List) != MostChanges || page.Older != page.List[MostChanges-1].ID || page.List[MostChanges-1].Cut {
		t.Errorf("%d changes, older than %d", len(page.List), page.Older)
	}
	if next := read(ChangeFilter{Before: page.Older}); next.List[0].Outcome != "paused" || next.List[1].Outcome != "requeued" {
		t.Errorf("got %+v", next.List)
	}
}

// statements counts the statements of a connection.
type statements struct{ n int }

func (s *statements) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.n++
	return ctx
}

func (s *statements) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A hundred syncs that take a key must not make its story a hundred times as slow.
func TestAStoryOfManySyncsTakesAsManyStatements(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	h.deliver(h.emit(1))
	config, err := pgx.ParseConfig(pgtest.AsRole(t, h.Config().ConnString(), "outbox_auditor"))
	if err != nil {
		t.Fatal(err)
	}
	var count statements
	config.Tracer = &count
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	read := func() (lanes, n int) {
		count.n = 0
		story, err := ReadStory(t.Context(), conn, h.key, 0)
		if err != nil {
			t.Fatal(err)
		}
		return len(story.Lanes), count.n
	}
	_, one := read()
	for n := range 29 {
		h.Sync(fmt.Sprintf("Court-%d", n), "scheduling:*")
	}
	h.emit(2)
	if lanes, many := read(); lanes != 30 || many != one {
		t.Errorf("%d lanes take %d statements, want 30 lanes and %d statements, as for one", lanes, many, one)
	}
}

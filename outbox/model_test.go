package outbox_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"pgregory.net/rapid"

	"github.com/hms-mkt/lockstep/outbox"
)

// Relays, writers and operators in any order, against a model in memory that
// says what may be claimed, what each delivery looks like and which rows the log
// has. Nothing runs at once: an operator's and a writer's transaction stay open
// over what the others do instead, and none of it may wait for them. Time is
// moved by changing due times and leases.
//
// A relay that looks at a sync twice, with enough room, must find all that may be sent:
// the first look may find only that a lane which waits is due.
func TestModel(t *testing.T) {
	tune(t, "rapid.checks", "60")
	tune(t, "rapid.steps", "40")
	d := newDesk(t,
		outbox.Registration{Name: "blocks", Patterns: []string{"*"}, OnFailed: "block"},
		outbox.Registration{Name: "supersedes", Patterns: []string{"*"}, OnFailed: "supersede", From: "beginning"})
	d.exec(`DO $$
DECLARE guarded regclass;
BEGIN
    FOR guarded IN SELECT tgrelid FROM pg_trigger WHERE tgname = 'append_only' LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER append_only', guarded); -- emptied between the runs
    END LOOP;
END $$`)
	rapid.Check(t, func(t *rapid.T) {
		d.exec(`TRUNCATE outbox.event, outbox.delivery, outbox.lane, outbox.delivery_log, outbox.external_ref, outbox.hold, outbox.unmatched RESTART IDENTITY`)
		d.exec(`UPDATE outbox.sync SET hold_kind = NULL, hold_until = NULL, hold_reason = NULL, hold_by = NULL`)
		m := &model{
			desk: d, refs: map[line]reference{}, newest: map[line]int{}, holds: map[string]map[outbox.HoldKind]*hold{"blocks": {}, "supersedes": {}},
			events: map[int]*event{}, lanes: map[line]*lane{},
			relays: []*relay{{name: "a", store: d.a}, {name: "b", store: d.b}},
		}
		defer m.close(t)
		t.Repeat(m.actions())
		m.drain(t)
	})
}

// tune sets a flag of rapid's unless the command line does.
func tune(t *testing.T, name, value string) {
	t.Helper()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	if given {
		return
	}
	before := flag.Lookup(name).Value.String()
	if err := flag.Set(name, value); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set(name, before) })
}

// line is what keeps an order.
type line struct{ sync, key string }

func (l line) String() string { return l.sync + "/" + l.key }

type event struct {
	n, seq  int
	key     string
	version *int64
	wanted  bool // by the filter of both syncs
}

// id is an event's; its number is easier to read in a trace.
func id(n int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012d", n) }

func number(id string) int {
	n, _ := strconv.Atoi(id[strings.LastIndex(id, "-")+1:])
	return n
}

// open is an unfinished delivery.
type open struct {
	line
	event, place int
	state        string // waiting, retry, failed
	later        bool   // not due yet

	attempts, total, charged, revision int

	seen   int  // step at which it was committed
	locked bool // by the operator's open transaction
}

func (o *open) String() string { return fmt.Sprintf("e%d>%s", o.event, o.line) }

// lane is that of a line, whether or not the database has a row for it.
type lane struct {
	claim   string // "" while nobody has it
	sends   *open  // what its claim is for, nil if nothing could be sent
	claimed int    // step at which that was claimed
	expired bool   // the lease has ended
	crashes int
	lost    string // a claim that ended without a word, of which no delivery was told yet
	locked  bool   // by the operator's open transaction
}

// release gives the claim back.
func (l *lane) release() { l.claim, l.sends, l.expired = "", nil, false }

// entry is a row of the log.
type entry struct {
	sync              string
	event             int
	outcome           string
	attempt, revision int
	claim             string
	relay             bool // written by a relay about an attempt of its own
}

type reference struct {
	externalID string
	version    *int64
	seq        int
}

// hold keeps whether its time has come: the end of a throttle, the next probe
// of the others.
type hold struct{ due bool }

// held is a claim that a relay remembers.
type held struct {
	relay    *relay
	d        *outbox.Delivery
	result   *outbox.Result // what it recorded, or tried to
	recorded bool
}

func (h *held) String() string {
	if h.d.Place == 0 {
		return fmt.Sprintf("%s:%s/%s", h.relay.name, h.d.Sync, h.d.Key)
	}
	return fmt.Sprintf("%s:e%d>%s", h.relay.name, number(h.d.Event.ID), h.d.Sync)
}

func (h *held) line() line { return line{h.d.Sync, h.d.Key} }

type relay struct {
	name     string
	store    *outbox.Store
	arrivals map[string]*outbox.Arrivals // by sync
}

func (r *relay) known(sync string) *outbox.Arrivals {
	if r.arrivals == nil {
		r.arrivals = map[string]*outbox.Arrivals{}
	}
	if r.arrivals[sync] == nil {
		r.arrivals[sync] = &outbox.Arrivals{}
	}
	return r.arrivals[sync]
}

// session is a transaction that stays open over several steps.
type session struct {
	tx       pgx.Tx
	snapshot bool            // REPEATABLE READ
	keys     map[string]bool // those it has written about
	syncs    map[string]bool // those whose hold it has changed
	touched  map[string]bool // the deliveries
	paused   map[string]bool // the syncs that were paused when it began
	replays  map[line][]int  // places of its replays, which only it sees
	commit   []func()        // what becomes true with it
}

type model struct {
	*desk
	step     int
	trace    []string
	seq      int
	open     []*open
	log      []entry
	refs     map[line]reference
	newest   map[line]int // event of the newest reference seen
	holds    map[string]map[outbox.HoldKind]*hold
	events   map[int]*event
	held     []*held
	lanes    map[line]*lane
	operator *session
	writer   *session
	begun    []pgx.Tx
	relays   []*relay
}

var (
	keys    = []string{"k1", "k2"}
	syncs   = []string{"blocks", "supersedes"}
	forever = time.Hour
)

// actions are what may happen, each as often as its weight says.
func (m *model) actions() map[string]func(*rapid.T) {
	actions := map[string]func(*rapid.T){}
	for _, a := range []struct {
		name   string
		weight int
		do     func(*rapid.T)
	}{
		{"insert", 3, m.insert},
		{"writer", 2, m.write},
		{"claim", 5, m.claimSome},
		{"suspect", 1, m.claimSuspect},
		{"record", 6, m.recordSome},
		{"record twice", 1, m.recordTwice},
		{"crash", 1, m.crash},
		{"expire", 2, m.expire},
		{"become due", 2, m.becomeDue},
		{"requeue", 1, m.requeueNow},
		{"discard", 1, m.discardNow},
		{"replay", 1, m.replayNow},
		{"pause", 1, m.pauseNow},
		{"operator", 5, m.operate},
		{"hold", 1, m.anyHold},
	} {
		for n := range a.weight {
			actions[fmt.Sprintf("%s %d", a.name, n+1)] = func(t *rapid.T) {
				m.step++
				a.do(t)
				m.compare(t)
			}
		}
	}
	return actions
}

// say adds a line to the trace that a failure prints.
func (m *model) say(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf("%3d  "+format, append([]any{m.step}, args...)...))
}

// pick draws one of a list, which must not be empty.
func pick[T any](t *rapid.T, label string, list []T) T {
	return list[rapid.IntRange(0, len(list)-1).Draw(t, label)]
}

func (m *model) relay(t *rapid.T) *relay {
	return pick(t, "relay", m.relays)
}

// within bounds what nobody may wait for.
func within(t *rapid.T, what string, do func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Second, errors.New("it waited for somebody's open transaction"))
	defer cancel()
	if err := do(ctx); err != nil {
		t.Fatalf("%s: %v (%v)", what, err, context.Cause(ctx))
	}
}

func (m *model) sql(t *rapid.T, statement string, args ...any) {
	within(t, statement, func(ctx context.Context) error {
		_, err := m.pool.Exec(ctx, statement, args...)
		return err
	})
}

// refused runs what the database must refuse.
func (m *model) refused(t *rapid.T, code, statement string, args ...any) {
	_, err := m.pool.Exec(t.Context(), statement, args...)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != code {
		t.Fatalf("%s %v: %v, want it refused with %s", statement, args, err, code)
	}
}

// of lists a line's open deliveries in order.
func (m *model) of(l line) []*open {
	var list []*open
	for _, o := range m.open {
		if o.line == l {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b *open) int { return cmp.Compare(a.place, b.place) })
	return list
}

// first is the first of a line, nil if there is none.
func (m *model) first(l line) *open {
	if row := m.of(l); len(row) > 0 {
		return row[0]
	}
	return nil
}

func (m *model) lane(l line) *lane {
	if m.lanes[l] == nil {
		m.lanes[l] = &lane{}
	}
	return m.lanes[l]
}

func (m *model) filter(keep func(*open) bool) []*open {
	var list []*open
	for _, o := range m.open {
		if keep(o) {
			list = append(list, o)
		}
	}
	return list
}

func (m *model) remove(o *open) {
	m.open = slices.DeleteFunc(m.open, func(other *open) bool { return other == o })
}

// at is the delivery at a place, nil if it is gone.
func (m *model) at(sync string, place int64) *open {
	for _, o := range m.open {
		if o.sync == sync && int64(o.place) == place {
			return o
		}
	}
	return nil
}

func (m *model) find(sync string, event int) *open {
	for _, o := range m.open {
		if o.sync == sync && o.event == event {
			return o
		}
	}
	return nil
}

// Writers ----------------------------------------------------------------

const (
	plain = `INSERT INTO outbox.event (type, key, payload, version, id) VALUES ($4, $1, '{}', $2, $3)`
	emit  = `SELECT outbox.emit($4, $1, '{}', $2, id => $3)`
)

// add writes an event; what it returns makes the event's deliveries visible.
func (m *model) add(t *rapid.T, exec func(context.Context, string, ...any) (pgconn.CommandTag, error), key string) (commit func()) {
	m.seq++
	e := &event{n: m.seq, seq: m.seq, key: key, wanted: rapid.IntRange(0, 2).Draw(t, "wanted") > 0}
	typ := "unwanted"
	if e.wanted {
		typ = "t"
	}
	if rapid.IntRange(0, 4).Draw(t, "version") > 0 {
		e.version = new(int64(e.seq))
	}
	within(t, "insert", func(ctx context.Context) error {
		_, err := exec(ctx, pick(t, "by", []string{plain, emit}), key, e.version, id(e.n), typ)
		return err
	})
	m.say("e%d of %s is written, wanted %t", e.n, key, e.wanted)
	return func() {
		m.events[e.n] = e
		for _, sync := range syncs {
			m.open = append(m.open, &open{line: line{sync, key}, event: e.n, place: e.seq, state: "waiting", revision: 1, seen: m.step})
		}
	}
}

// freeKeys are those that no other writer is busy with: a writer changes its
// own row of the key first, and so waits for the other.
func (m *model) freeKeys() []string {
	if m.writer == nil {
		return keys
	}
	return slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return m.writer.keys[k] })
}

func (m *model) insert(t *rapid.T) {
	free := m.freeKeys()
	if len(free) == 0 {
		t.SkipNow() // the open writer has every key
	}
	m.add(t, m.pool.Exec, pick(t, "key", free))()
}

// write takes a writer's transaction one step further.
func (m *model) write(t *rapid.T) {
	if m.writer == nil {
		m.writer = m.begin(t, pgx.TxOptions{})
		m.say("a writer begins")
	}
	switch w := m.writer; rapid.IntRange(0, 3).Draw(t, "writer") {
	case 0:
		m.writer = nil
		m.end(t, w, "the writer")
	default:
		key := pick(t, "key", keys)
		w.keys[key] = true
		w.commit = append(w.commit, m.add(t, w.tx.Exec, key))
	}
}

func (m *model) begin(t *rapid.T, options pgx.TxOptions) *session {
	tx, err := m.pool.BeginTx(context.WithoutCancel(t.Context()), options)
	if err != nil {
		t.Fatal(err)
	}
	m.begun = append(m.begun, tx)
	return &session{
		tx: tx, snapshot: options.IsoLevel == pgx.RepeatableRead,
		keys: map[string]bool{}, syncs: map[string]bool{}, touched: map[string]bool{}, paused: map[string]bool{},
		replays: map[line][]int{},
	}
}

// end commits or rolls back a session.
func (m *model) end(t *rapid.T, s *session, who string) {
	if rapid.IntRange(0, 2).Draw(t, "end") == 0 {
		m.say("%s rolls back", who)
		if err := s.tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		return
	}
	m.say("%s commits", who)
	if err := s.tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, f := range s.commit {
		f()
	}
}

// close ends what a failed run left open, and tells what it did.
func (m *model) close(t *rapid.T) {
	if t.Failed() {
		t.Logf("what happened, by step:\n%s", strings.Join(m.trace, "\n"))
	}
	for _, tx := range m.begun {
		_ = tx.Rollback(context.Background())
	}
}

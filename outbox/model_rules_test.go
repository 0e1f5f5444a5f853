package outbox_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/hms-mkt/lockstep/outbox"
)

// stored is a delivery as the database has it.
type stored struct {
	line            line
	place           int
	event           string
	state, shown    string // as it is kept, and as operators see it
	attempts, total int
	charged         int
	revision        int
	later           bool
}

func (m *model) stored(t *rapid.T) []stored {
	rows, err := m.pool.Query(t.Context(), `
SELECT d.sync, d.key, d.event_seq, d.event_id, d.state, o.state, d.attempts, d.total_attempts, d.charged, d.revision,
       d.due_at > clock_timestamp() AND d.due_at < 'infinity'
  FROM outbox.delivery AS d
  JOIN outbox.open_delivery AS o USING (sync, key, event_seq)
 ORDER BY d.sync, d.key, d.event_seq`)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s stored, err error) {
		err = row.Scan(&s.line.sync, &s.line.key, &s.place, &s.event, &s.state, &s.shown, &s.attempts, &s.total, &s.charged, &s.revision, &s.later)
		return s, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// newer reports whether o is of a later event than old, wherever it is in the
// lane, and the sync sends it.
func (m *model) newer(o, old *open) bool {
	e := m.events[o.event]
	return o.line == old.line && e.wanted && e.seq > m.events[old.event].seq
}

// notice follows what a relay's claim may do besides: it closes failed deliveries in
// favour of a newer event that nobody is just discarding.
func (m *model) notice(t *rapid.T) {
	rows := m.stored(t)
	before := slices.Clone(m.open)
	for _, o := range before {
		if slices.ContainsFunc(rows, func(s stored) bool { return s.line == o.line && s.place == o.place }) {
			continue
		}
		if o.sync != "supersedes" || o.state != "failed" || o.locked || m.lane(o.line).locked ||
			!slices.ContainsFunc(before, func(other *open) bool { return m.newer(other, o) && !other.locked }) {
			t.Fatalf("%s is gone, which was %s", o, o.state)
		}
		m.say("%s is superseded", o)
		m.log = append(m.log, entry{sync: o.sync, event: o.event, outcome: "superseded", attempt: o.total, revision: o.revision})
		m.remove(o)
	}
}

// nothingLeftToSupersede checks that no failed delivery is first of its lane while
// a newer event waits behind it.
func (m *model) nothingLeftToSupersede(t *rapid.T, sync string) {
	if sync != "supersedes" {
		return
	}
	for _, o := range m.open {
		if o.sync != sync || o.state != "failed" || m.busy(o.key) || m.first(o.line) != o {
			continue
		}
		for _, other := range m.of(o.line) {
			if m.newer(other, o) {
				t.Fatalf("%s is failed, but not superseded by %s", o, other)
			}
		}
	}
}

// noLaneIsBroken checks the rules of lanes where they must hold now.
func (m *model) noLaneIsBroken(t *rapid.T, now func(line) bool) {
	rows, err := m.pool.Query(t.Context(), outbox.BrokenLanes)
	if err != nil {
		t.Fatal(err)
	}
	var rule int
	var l line
	var says string
	if _, err := pgx.ForEachRow(rows, []any{&rule, &l.sync, &l.key, &says}, func() error {
		if rule == 2 || now(l) {
			t.Fatalf("lane %s breaks rule %d: %s", l, rule, says)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// compare checks the database against the model, and what must hold whatever
// the model says.
func (m *model) compare(t *rapid.T) {
	rows := m.stored(t)
	m.compareOpen(t, rows)
	m.compareLanes(t)
	m.noLaneIsBroken(t, func(line) bool { return false })
	m.compareLog(t, rows)
	m.compareHolds(t)
	m.compareReferences(t)
}

func (m *model) compareOpen(t *rapid.T, rows []stored) {
	slices.SortFunc(m.open, func(a, b *open) int {
		return cmp.Or(cmp.Compare(a.sync, b.sync), cmp.Compare(a.key, b.key), cmp.Compare(a.place, b.place))
	})
	for i, s := range rows {
		if i >= len(m.open) || m.open[i].line != s.line || m.open[i].place != s.place {
			t.Fatalf("delivery %+v is open; the model has %v", s, m.open)
		}
		o := m.open[i]
		got := s
		shown := map[string]string{"waiting": "pending"}
		kept := cmp.Or(shown[o.state], o.state)
		want := stored{o.line, o.place, id(o.event), kept, kept, o.attempts, o.total, o.charged, o.revision, o.later}
		switch {
		case o.state == "failed":
		case i > 0 && rows[i-1].line == s.line:
			want.shown = "queued"
		case m.lane(o.line).claim != "":
			want.shown = "sending"
		}
		if got != want {
			t.Fatalf("%s is %+v, want %+v", o, got, want)
		}
	}
	if len(rows) < len(m.open) {
		t.Fatalf("%s is gone; open are %v", m.open[len(rows)], m.open)
	}
	for line, l := range m.lanes {
		if l.sends == nil || l.expired {
			continue
		}
		for _, other := range m.of(line) {
			if other.place < l.sends.place && other.seen <= l.claimed {
				t.Fatalf("%s is sent before %s, which is %s", l.sends, other, other.state)
			}
		}
	}
}

func (m *model) compareLanes(t *rapid.T) {
	rows, err := m.pool.Query(t.Context(), `
SELECT sync, key, coalesce(claim::text, ''), claim IS NOT NULL AND due_at <= clock_timestamp(), crashes FROM outbox.lane`)
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		claim   string
		expired bool
		crashes int
	}
	stored := map[line]row{}
	var l line
	var r row
	if _, err := pgx.ForEachRow(rows, []any{&l.sync, &l.key, &r.claim, &r.expired, &r.crashes}, func() error {
		stored[l] = r
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, sync := range syncs {
		for _, key := range keys {
			lane := m.lane(line{sync, key})
			if got, want := stored[line{sync, key}], (row{lane.claim, lane.expired, lane.crashes}); got != want {
				t.Fatalf("lane %s/%s is %+v, want %+v", sync, key, got, want)
			}
		}
	}
}

func (m *model) compareLog(t *rapid.T, open []stored) {
	rows, err := m.pool.Query(t.Context(), `
SELECT sync, coalesce(event_id::text, ''), outcome, coalesce(attempt, 0), coalesce(revision, 0), coalesce(claim::text, ''), took_ms IS NOT NULL
  FROM outbox.delivery_log
 ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e entry, err error) {
		var event string
		err = row.Scan(&e.sync, &event, &e.outcome, &e.attempt, &e.revision, &e.claim, &e.relay)
		e.event = number(event)
		return e, err
	})
	if err != nil {
		t.Fatal(err)
	}
	type life struct{ attempts, finishes, replays int }
	lives := map[string]*life{}
	of := func(sync string, event int) *life {
		name := line{sync, id(event)}.String()
		if lives[name] == nil {
			lives[name] = &life{}
		}
		return lives[name]
	}
	for _, e := range got {
		l := of(e.sync, e.event)
		switch e.outcome {
		case "delivered", "duplicate", "accepted", "filtered", "superseded", "discarded":
			l.finishes++
		case "replayed":
			l.replays++
		}
		if e.attempt > 0 && e.claim != "" {
			if e.attempt != l.attempts+1 {
				t.Fatalf("e%d to %s: attempt %d follows attempt %d", e.event, e.sync, e.attempt, l.attempts)
			}
			l.attempts = e.attempt
		}
	}
	for _, e := range m.events {
		for _, sync := range syncs {
			lines := 0
			for _, s := range open {
				if s.line.sync == sync && s.event == id(e.n) {
					lines++
				}
			}
			if l := of(sync, e.n); lines > 1 || lines+l.finishes != 1+l.replays {
				t.Fatalf("e%d to %s: %d open, finished %d times, replayed %d times", e.n, sync, lines, l.finishes, l.replays)
			}
		}
	}
	for _, rows := range [][]entry{got, m.log} {
		slices.SortFunc(rows, func(a, b entry) int {
			return cmp.Or(cmp.Compare(a.sync, b.sync), cmp.Compare(a.event, b.event), cmp.Compare(a.outcome, b.outcome),
				cmp.Compare(a.attempt, b.attempt), cmp.Compare(a.revision, b.revision), cmp.Compare(a.claim, b.claim))
		})
	}
	if diff := gocmp.Diff(m.log, got, gocmp.AllowUnexported(entry{}), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("log (-model +database):\n%s", diff)
	}
}

func (m *model) compareHolds(t *rapid.T) {
	strongest := []outbox.HoldKind{outbox.HoldOperator, outbox.HoldAuth, outbox.HoldBreaker, outbox.HoldThrottle}
	want := map[string]string{}
	for _, sync := range syncs {
		shown := "none"
		for _, kind := range slices.Backward(strongest) {
			if m.holds[sync][kind] != nil {
				shown = string(kind)
			}
		}
		want[sync] = fmt.Sprintf("%s of %d", shown, len(m.holds[sync]))
	}
	got := map[string]string{}
	rows, err := m.pool.Query(t.Context(), `
SELECT name, coalesce(hold_kind, 'none') || ' of ' || (SELECT count(*) FROM outbox.hold WHERE sync = name)
  FROM outbox.sync`)
	if err != nil {
		t.Fatal(err)
	}
	var name, shown string
	if _, err := pgx.ForEachRow(rows, []any{&name, &shown}, func() error {
		got[name] = shown
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Fatalf("strongest hold of how many (-model +database):\n%s", diff)
	}
}

func (m *model) compareReferences(t *rapid.T) {
	rows, err := m.pool.Query(t.Context(), `SELECT sync, key, coalesce(external_id, ''), version, event_seq FROM outbox.external_ref`)
	if err != nil {
		t.Fatal(err)
	}
	got := map[line]reference{}
	var l line
	var r reference
	if _, err := pgx.ForEachRow(rows, []any{&l.sync, &l.key, &r.externalID, &r.version, &r.seq}, func() error {
		got[l] = r
		r.version = nil
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(m.refs, got, gocmp.AllowUnexported(reference{})); diff != "" {
		t.Fatalf("references (-model +database):\n%s", diff)
	}
	for l, r := range got {
		if r.seq < m.newest[l] {
			t.Fatalf("the reference of %s goes back from event %d to %d", l, m.newest[l], r.seq)
		}
		m.newest[l] = r.seq
	}
}

// drain ends what is open, wakes and requeues everything, and delivers it:
// nothing may be left.
func (m *model) drain(t *rapid.T) {
	m.step++
	if m.writer != nil {
		w := m.writer
		m.writer = nil
		m.end(t, w, "the writer")
	}
	if m.operator != nil {
		m.operatorEnds(t)
	}
	m.held = nil
	by := m.relays[0]
	for _, sync := range syncs {
		if m.holds[sync][outbox.HoldOperator] != nil {
			m.sql(t, resume, sync)
			m.resumed(sync)
		}
		if m.holds[sync][outbox.HoldThrottle] != nil {
			m.sql(t, `UPDATE outbox.hold SET until = clock_timestamp() WHERE sync = $1 AND kind = 'throttle'`, sync)
			m.holds[sync][outbox.HoldThrottle].due = true
		}
		within(t, "lift", func(ctx context.Context) error { return m.a.Lift(ctx, sync, "") })
		delete(m.holds[sync], outbox.HoldAuth)
		delete(m.holds[sync], outbox.HoldBreaker)
		for _, key := range keys {
			if l := (line{sync, key}); m.lane(l).claim != "" && !m.lane(l).expired {
				m.expireOne(t, l)
			}
		}
	}
	for _, o := range m.open {
		switch {
		case o.state == "failed":
			m.sql(t, requeueEvent, o.sync, id(o.event))
			m.requeued(o)
		case o.later:
			m.becomeDueOne(t, o)
		}
	}
	m.compare(t)
	for rounds := 2*len(m.open) + 4; len(m.open) > 0 || m.anyLane(t); rounds-- {
		if rounds == 0 {
			t.Fatalf("not drained: %v", m.open)
		}
		m.step++
		for _, sync := range syncs {
			r := outbox.ClaimRequest{Sync: sync, Room: enough, Lanes: enough, Lease: forever, Wanted: wanted}
			m.claim(t, by, r)
			for range keys {
				m.claimOne(t, by, outbox.OneRequest{Sync: sync, Lease: forever, Suspect: true, Wanted: wanted})
			}
		}
		for len(m.held) > 0 {
			h := m.held[0]
			m.held = m.held[1:]
			if h.d.Place > 0 {
				h.result = &outbox.Result{Delivery: h.d, Outcome: outbox.Delivered, Attempt: true, Stay: true}
			}
			m.record(t, []*held{h})
		}
		m.compare(t)
	}
}

// anyLane reports whether a lane is left.
func (m *model) anyLane(t *rapid.T) (some bool) {
	if err := m.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM outbox.lane)`).Scan(&some); err != nil {
		t.Fatal(err)
	}
	return some
}

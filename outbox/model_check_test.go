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
	line             line
	place            int
	event            string
	state            string
	attempts, total  int
	charged, crashes int
	revision         int
	claim            string
	later, expired   bool
}

func (m *model) stored(t *rapid.T) []stored {
	rows, err := m.pool.Query(t.Context(), `
SELECT sync, key, event_seq, event_id, state, attempts, total_attempts, charged, crashes, revision, coalesce(claim::text, ''),
       due_at > clock_timestamp() AND due_at < 'infinity', coalesce(lease_until < clock_timestamp(), false)
  FROM outbox.delivery
 ORDER BY sync, key, event_seq`)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s stored, err error) {
		err = row.Scan(&s.line.sync, &s.line.key, &s.place, &s.event, &s.state, &s.attempts, &s.total, &s.charged, &s.crashes, &s.revision, &s.claim, &s.later, &s.expired)
		return s, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// newer reports whether o is of a later event than old, wherever it is in the
// line, and the sync sends it.
func (m *model) newer(o, old *open) bool {
	e := m.events[o.event]
	return o.line == old.line && e.wanted && e.seq > m.events[old.event].seq
}

// notice follows what a relay's call may do besides: it parks what it finds
// behind another, and closes failed deliveries in favour of a newer event that
// nobody is just discarding.
func (m *model) notice(t *rapid.T) {
	rows := m.stored(t)
	before := slices.Clone(m.open)
	for _, o := range before {
		if i := slices.IndexFunc(rows, func(s stored) bool { return s.line == o.line && s.place == o.place }); i >= 0 {
			if rows[i].state == "queued" && o.state == "retry" && m.of(o.line)[0] != o {
				o.state, o.later = "waiting", false // parked behind what came in front late
			}
			continue
		}
		if o.sync != "supersedes" || o.state != "failed" || !o.free() ||
			!slices.ContainsFunc(before, func(other *open) bool { return m.newer(other, o) && !other.locked }) {
			t.Fatalf("%s is gone, which was %s", o, o.state)
		}
		m.say("%s is superseded", o)
		m.log = append(m.log, entry{sync: o.sync, event: o.event, outcome: "superseded", attempt: o.total, revision: o.revision})
		m.remove(o)
	}
}

// nothingLeftToSupersede checks that no failed delivery is first of these keys
// while a newer event, of which the call took notice, waits to be sent.
func (m *model) nothingLeftToSupersede(t *rapid.T, sync string, keys []string, noticed func(*open) bool) {
	if sync != "supersedes" {
		return
	}
	for _, o := range m.open {
		if o.sync != sync || o.state != "failed" || m.busy(o.key) || m.owed[o.line] || !slices.Contains(keys, o.key) || m.of(o.line)[0] != o {
			continue
		}
		for _, other := range m.of(o.line) {
			if m.newer(other, o) && other.state == "waiting" && !other.later && noticed(other) {
				t.Fatalf("%s is failed, but not superseded by %s", o, other)
			}
		}
	}
}

// compare checks the database against the model, and what must hold whatever
// the model says.
func (m *model) compare(t *rapid.T) {
	rows := m.stored(t)
	m.compareOpen(t, rows)
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
		first := i == 0 || rows[i-1].line != s.line
		o.parked = s.state == "queued"
		switch {
		case o.parked && first && !m.owed[o.line]:
			t.Fatalf("%s sleeps: it is parked, and nothing is in front of it", o)
		case o.state == "waiting" && !o.parked && s.state != "pending", o.state != "waiting" && s.state != o.state:
			t.Fatalf("%s is %s, want %s", o, s.state, o.state)
		}
		got := stored{s.line, s.place, s.event, "", s.attempts, s.total, s.charged, s.crashes, s.revision, s.claim, s.later, s.expired}
		want := stored{o.line, o.place, id(o.event), "", o.attempts, o.total, o.charged, o.crashes, o.revision, o.claim, o.later, o.expired}
		if got != want {
			t.Fatalf("%s is %+v, want %+v", o, got, want)
		}
	}
	if len(rows) < len(m.open) {
		t.Fatalf("%s is gone; open are %v", m.open[len(rows)], m.open)
	}
	for _, o := range m.open {
		if o.state != "sending" || o.expired {
			continue
		}
		for _, other := range m.of(o.line) {
			if other != o && other.state == "sending" && !other.expired {
				t.Fatalf("%s and %s are sent at once", o, other)
			}
			if other.place < o.place && other.seen <= o.claimed {
				t.Fatalf("%s is sent before %s, which is %s", o, other, other.state)
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
		within(t, "lift", func(ctx context.Context) error { return m.a.Lift(ctx, sync) })
		delete(m.holds[sync], outbox.HoldAuth)
		delete(m.holds[sync], outbox.HoldBreaker)
		for from, more := (outbox.ParkedCursor{}), true; more; more = from != (outbox.ParkedCursor{}) {
			within(t, "recheck", func(ctx context.Context) (err error) {
				_, from, err = m.a.RecheckParked(ctx, sync, from, 2)
				return err
			})
		}
	}
	clear(m.owed)
	for _, o := range m.open {
		switch {
		case o.state == "sending" && !o.expired:
			m.expireOne(t, o)
		case o.state == "failed":
			m.sql(t, requeueEvent, o.sync, id(o.event))
			m.requeued(o)
		case o.later:
			m.becomeDueOne(t, o)
		}
	}
	m.compare(t)
	for rounds := 4*len(m.open) + 4; len(m.open) > 0; rounds-- {
		if rounds == 0 {
			t.Fatalf("not drained: %v", m.open)
		}
		m.step++
		for _, sync := range syncs {
			r := outbox.ClaimRequest{Sync: sync, Budget: 2, Page: 2, Lease: forever, Wanted: wanted}
			for range 3 {
				r.From = m.claimOne(t, by, r).Next
			}
			m.claimOne(t, by, outbox.ClaimRequest{Sync: sync, Budget: 1, Page: 2, Lease: forever, Solo: true, Wanted: wanted})
		}
		for len(m.held) > 0 {
			h := m.held[0]
			m.held = m.held[1:]
			h.result = &outbox.Result{Delivery: h.d, Outcome: outbox.Delivered, Attempt: true}
			m.record(t, []*held{h}, 2)
		}
		m.compare(t)
	}
}

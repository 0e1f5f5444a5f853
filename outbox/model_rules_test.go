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

// The rules of the model.

// database is the content of the database after a step.
type database struct {
	deliveries []stored
	lanes      map[laneID]storedLane
	holds      map[string]string // by sync
	refs       map[laneID]reference
	log        []logRow
}

// stored is a delivery in the database.
type stored struct {
	laneID          laneID
	place           int
	event           string
	state, shown    string // as it is kept, and as operators see it
	attempts, total int
	charged         int
	revision        int
	notDue          bool
}

// storedLane is a lane in the database.
type storedLane struct {
	claim      string
	leaseEnded bool
	crashes    int
}

func (m *model) read(t *rapid.T) database {
	return database{m.stored(t), m.storedLanes(t), m.storedHolds(t), m.storedRefs(t), m.storedLog(t)}
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
		err = row.Scan(&s.laneID.sync, &s.laneID.key, &s.place, &s.event, &s.state, &s.shown, &s.attempts, &s.total, &s.charged, &s.revision, &s.notDue)
		return s, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (m *model) storedLanes(t *rapid.T) map[laneID]storedLane {
	rows, err := m.pool.Query(t.Context(), `
SELECT sync, key, coalesce(claim::text, ''), claim IS NOT NULL AND due_at <= clock_timestamp(), crashes FROM outbox.lane`)
	if err != nil {
		t.Fatal(err)
	}
	lanes := map[laneID]storedLane{}
	var l laneID
	var s storedLane
	if _, err := pgx.ForEachRow(rows, []any{&l.sync, &l.key, &s.claim, &s.leaseEnded, &s.crashes}, func() error {
		lanes[l] = s
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return lanes
}

func (m *model) storedHolds(t *rapid.T) map[string]string {
	rows, err := m.pool.Query(t.Context(), `
SELECT name, coalesce(hold_kind, 'none') || ' of ' || (SELECT count(*) FROM outbox.hold WHERE sync = name)
  FROM outbox.sync`)
	if err != nil {
		t.Fatal(err)
	}
	holds := map[string]string{}
	var name, shown string
	if _, err := pgx.ForEachRow(rows, []any{&name, &shown}, func() error {
		holds[name] = shown
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return holds
}

func (m *model) storedRefs(t *rapid.T) map[laneID]reference {
	rows, err := m.pool.Query(t.Context(), `SELECT sync, key, coalesce(external_id, ''), coalesce(learned ->> 'n', ''), version, event_seq, times_set FROM outbox.external_ref`)
	if err != nil {
		t.Fatal(err)
	}
	refs := map[laneID]reference{}
	var l laneID
	var r reference
	if _, err := pgx.ForEachRow(rows, []any{&l.sync, &l.key, &r.externalID, &r.learned, &r.version, &r.place, &r.set}, func() error {
		refs[l] = r
		r.version = nil
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return refs
}

// storedLog is the log in the order in which it was written.
func (m *model) storedLog(t *rapid.T) []logRow {
	rows, err := m.pool.Query(t.Context(), `
SELECT sync, coalesce(event_id::text, ''), outcome, coalesce(attempt, 0), coalesce(revision, 0), coalesce(claim::text, ''), took_ms IS NOT NULL
  FROM outbox.delivery_log
 ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	log, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r logRow, err error) {
		var event string
		err = row.Scan(&r.sync, &event, &r.outcome, &r.attempt, &r.revision, &r.claim, &r.relay)
		r.event = number(event)
		return r, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// The database agrees with the model -------------------------------------

func (m *model) deliveriesAgree(t *rapid.T, d database) {
	slices.SortFunc(m.open, func(a, b *delivery) int {
		return cmp.Or(cmp.Compare(a.sync, b.sync), cmp.Compare(a.key, b.key), cmp.Compare(a.place, b.place))
	})
	for i, s := range d.deliveries {
		if i >= len(m.open) || m.open[i].laneID != s.laneID || m.open[i].place != s.place {
			t.Fatalf("delivery %+v is open; the model has %v", s, m.open)
		}
		o := m.open[i]
		shown := map[string]string{"waiting": "pending"}
		kept := cmp.Or(shown[o.state], o.state)
		want := stored{o.laneID, o.place, id(o.event), kept, kept, o.attempts, o.total, o.charged, o.revision, o.notDue}
		switch {
		case o.state == "failed":
		case i > 0 && d.deliveries[i-1].laneID == s.laneID:
			want.shown = "queued"
		case m.lane(o.laneID).claim != "":
			want.shown = "sending"
		}
		if s != want {
			t.Fatalf("%s is %+v, want %+v", o, s, want)
		}
	}
	if len(d.deliveries) < len(m.open) {
		t.Fatalf("%s is gone; open are %v", m.open[len(d.deliveries)], m.open)
	}
}

func (m *model) lanesAgree(t *rapid.T, d database) {
	for _, sync := range syncs {
		for _, key := range keys {
			id := laneID{sync, key}
			l := m.lane(id)
			if got, want := d.lanes[id], (storedLane{l.claim, l.leaseEnded, l.crashes}); got != want {
				t.Fatalf("lane %s is %+v, want %+v", id, got, want)
			}
		}
	}
}

func (m *model) holdsAgree(t *rapid.T, d database) {
	strongest := []outbox.HoldKind{outbox.HoldOperator, outbox.HoldAuth, outbox.HoldBreaker, outbox.HoldThrottle, outbox.HoldWindow}
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
	if diff := gocmp.Diff(want, d.holds); diff != "" {
		t.Fatalf("strongest holds, and their number (-model +database):\n%s", diff)
	}
}

func (m *model) referencesAgree(t *rapid.T, d database) {
	if diff := gocmp.Diff(m.refs, d.refs, gocmp.AllowUnexported(reference{})); diff != "" {
		t.Fatalf("references (-model +database):\n%s", diff)
	}
}

// logAgrees ignores the order, because the rows of one transaction have no order.
func (m *model) logAgrees(t *rapid.T, d database) {
	want, got := slices.Clone(m.log), slices.Clone(d.log)
	for _, rows := range [][]logRow{want, got} {
		slices.SortFunc(rows, func(a, b logRow) int {
			return cmp.Or(cmp.Compare(a.sync, b.sync), cmp.Compare(a.event, b.event), cmp.Compare(a.outcome, b.outcome),
				cmp.Compare(a.attempt, b.attempt), cmp.Compare(a.revision, b.revision), cmp.Compare(a.claim, b.claim))
		})
	}
	if diff := gocmp.Diff(want, got, gocmp.AllowUnexported(logRow{}), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("log (-model +database):\n%s", diff)
	}
}

// 1. Nothing is lost -----------------------------------------------------

func (m *model) nothingIsLost(t *rapid.T, d database) {
	for _, e := range m.events {
		for _, sync := range syncs {
			open, finished, replays := 0, 0, 0
			for _, s := range d.deliveries {
				if s.laneID.sync == sync && s.event == id(e.n) {
					open++
				}
			}
			for _, r := range d.log {
				if r.sync != sync || r.event != e.n {
					continue
				}
				switch r.outcome {
				case "delivered", "duplicate", "accepted", "filtered", "superseded", "discarded":
					finished++
				case "replayed":
					replays++
				}
			}
			if open > 1 || open+finished != 1+replays {
				t.Fatalf("e%d to %s: %d open, finished %d times, replayed %d times", e.n, sync, open, finished, replays)
			}
		}
	}
}

// 2. Order ---------------------------------------------------------------

func (m *model) orderIsKept(t *rapid.T, _ database) {
	for id, l := range m.lanes {
		if l.sends == nil || l.leaseEnded {
			continue
		}
		for _, other := range m.of(id) {
			if other.place < l.sends.place && other.committed <= l.since {
				t.Fatalf("%s is sent before %s, which is %s", l.sends, other, other.state)
			}
		}
	}
}

func (m *model) claimsEnd(t *rapid.T, _ database) {
	m.noLaneIsBroken(t, func(laneID) bool { return false })
}

// noLaneIsBroken checks the rules of [outbox.BrokenLanes]: rule 2 for every lane, and the others
// for lanes of which a relay has just read everything.
func (m *model) noLaneIsBroken(t *rapid.T, seen func(laneID) bool) {
	rows, err := m.pool.Query(t.Context(), outbox.BrokenLanes)
	if err != nil {
		t.Fatal(err)
	}
	var rule int
	var l laneID
	var says string
	if _, err := pgx.ForEachRow(rows, []any{&rule, &l.sync, &l.key, &says}, func() error {
		if rule == 2 || seen(l) {
			t.Fatalf("lane %s breaks rule %d: %s", l, rule, says)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// newer reports whether o has a later event than old, at any position in the lane, and the sync
// sends it.
func (m *model) newer(o, old *delivery) bool {
	e := m.events[o.event]
	return o.laneID == old.laneID && e.wanted && e.seq > m.events[old.event].seq
}

// superseded applies a side effect of claims and recordings to the model: they close failed
// deliveries if there is a newer event that is not being discarded.
func (m *model) superseded(t *rapid.T) {
	rows := m.stored(t)
	before := slices.Clone(m.open)
	for _, o := range before {
		if slices.ContainsFunc(rows, func(s stored) bool { return s.laneID == o.laneID && s.place == o.place }) {
			continue
		}
		if o.sync != "supersedes" || o.state != "failed" || o.locked || m.lane(o.laneID).locked ||
			!slices.ContainsFunc(before, func(other *delivery) bool { return m.newer(other, o) && !other.locked }) {
			t.Fatalf("%s is gone, which was %s", o, o.state)
		}
		m.say("%s is superseded", o)
		m.log = append(m.log, logRow{sync: o.sync, event: o.event, outcome: "superseded", attempt: o.total, revision: o.revision})
		m.remove(o)
	}
}

// nothingIsLeftToSupersede checks that no failed delivery is first of its lane while
// a newer event waits behind it.
func (m *model) nothingIsLeftToSupersede(t *rapid.T, sync string) {
	if sync != "supersedes" {
		return
	}
	for _, o := range m.open {
		if o.sync != sync || o.state != "failed" || m.busy(o.key) || m.first(o.laneID) != o {
			continue
		}
		for _, other := range m.of(o.laneID) {
			if m.newer(other, o) {
				t.Fatalf("%s is failed, but not superseded by %s", o, other)
			}
		}
	}
}

// 3. At least once -------------------------------------------------------

func (m *model) attemptsAreNumbered(t *rapid.T, d database) {
	type of struct {
		sync  string
		event int
	}
	last := map[of]int{}
	for _, r := range d.log {
		if r.attempt == 0 || r.claim == "" {
			continue
		}
		if e := (of{r.sync, r.event}); r.attempt != last[e]+1 {
			t.Fatalf("e%d to %s: attempt %d follows attempt %d", r.event, r.sync, r.attempt, last[e])
		}
		last[of{r.sync, r.event}] = r.attempt
	}
}

func (m *model) referencesNeverGoBack(t *rapid.T, d database) {
	for l, r := range d.refs {
		if was := m.newest[l]; r.set < was.set || r.set == was.set && r.place < was.place {
			t.Fatalf("the reference of %s goes back from %+v to %+v", l, was, r)
		}
		m.newest[l] = r
	}
}

// 6. A healed fault drains by itself -------------------------------------

// everythingDrains ends every transaction, hold, lease and delay, requeues failed deliveries and
// delivers everything. Nothing may be left.
func (m *model) everythingDrains(t *rapid.T) {
	m.step++
	if m.writer != nil {
		w := m.writer
		m.writer = nil
		m.end(t, w, "the writer")
	}
	if m.operator != nil {
		m.operatorEnds(t)
	}
	m.claims = nil
	by := m.relays[0]
	for _, sync := range syncs {
		if m.holds[sync][outbox.HoldOperator] != nil {
			m.sql(t, resume, sync)
			m.resumed(sync)
		}
		m.sql(t, `UPDATE outbox.hold SET until = clock_timestamp() WHERE sync = $1 AND kind IN ('throttle', 'window')`, sync)
		for _, kind := range []outbox.HoldKind{outbox.HoldThrottle, outbox.HoldWindow} {
			if h := m.holds[sync][kind]; h != nil {
				h.due = true
			}
		}
		nobodyWaits(t, "lift", func(ctx context.Context) error { return m.a.Lift(ctx, sync, "") })
		delete(m.holds[sync], outbox.HoldAuth)
		delete(m.holds[sync], outbox.HoldBreaker)
		for _, key := range keys {
			if l := (laneID{sync, key}); m.lane(l).claim != "" && !m.lane(l).leaseEnded {
				m.leaseEnds(t, l)
			}
		}
	}
	for _, o := range m.open {
		switch {
		case o.state == "failed":
			m.sql(t, requeueEvent, o.sync, id(o.event))
			m.requeued(o)
		case o.notDue:
			m.becomeDue(t, o)
		}
	}
	m.rulesHold(t)
	for rounds := 2*len(m.open) + 4; len(m.open) > 0 || m.anyLane(t); rounds-- {
		if rounds == 0 {
			t.Fatalf("not drained: %v", m.open)
		}
		m.step++
		for _, sync := range syncs {
			r := outbox.ClaimRequest{Sync: sync, Capacity: enough, Lanes: enough, Lease: forever, Wanted: wanted}
			m.claim(t, by, r)
			for range keys {
				m.claimOne(t, by, outbox.OneRequest{Sync: sync, Lease: forever, Suspect: true, Wanted: wanted})
			}
		}
		for len(m.claims) > 0 {
			h := m.claims[0]
			m.claims = m.claims[1:]
			if h.d.Position > 0 {
				h.result = &outbox.Result{Delivery: h.d, Outcome: outbox.Delivered, Attempt: true, Stay: true}
			}
			m.record(t, []*heldClaim{h})
		}
		m.rulesHold(t)
	}
}

// anyLane reports whether a lane is left.
func (m *model) anyLane(t *rapid.T) (some bool) {
	if err := m.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM outbox.lane)`).Scan(&some); err != nil {
		t.Fatal(err)
	}
	return some
}

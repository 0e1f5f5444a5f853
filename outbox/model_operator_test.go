package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"pgregory.net/rapid"

	"github.com/hms-mkt/lockstep/outbox"
)

// The actions of operators.

// The privileges of an operator, with each way to requeue.
const (
	requeueUpdate = `UPDATE outbox.delivery SET state = 'pending' WHERE state = 'failed' AND sync = $1 AND key = $2`
	requeueKey    = `SELECT outbox.requeue($1, key => $2)`
	requeueEvent  = `SELECT outbox.requeue($1, event_id => $2)`
	discard       = `SELECT outbox.discard($1, $2, 'r')`
	replay        = `SELECT outbox.replay($1, $2, 'r')`
	pause         = `SELECT outbox.pause($1, 'r')`
	resume        = `SELECT outbox.resume($1)`
	setReference  = `SELECT outbox.set_reference($1, $2, $3, NULL, 'r', $4::jsonb)`
	lockRow       = `SELECT FROM outbox.delivery WHERE sync = $1 AND event_id = $2 FOR UPDATE`
	lockLane      = `SELECT FROM outbox.lane WHERE sync = $1 AND key = $2 FOR UPDATE`
)

// Codes of refusals: the state does not allow a change, or the snapshot of the
// transaction is too old for it.
const (
	notInState    = "55000"
	noSuchRow     = "P0002"
	serialization = "40001"
)

// busy reports whether the open operator has locked a row of a key. Another operator would wait
// for the lock.
func (m *model) busy(key string) bool { return m.operator != nil && m.operator.keys[key] }

// undisturbed are the deliveries of keys that the open operator has not changed.
func (m *model) undisturbed(list []*delivery) []*delivery {
	return slices.DeleteFunc(list, func(o *delivery) bool { return m.busy(o.key) })
}

// requeueNow requeues a failed delivery in one of three ways.
func (m *model) requeueNow(t *rapid.T) {
	failed := m.undisturbed(m.filter(func(o *delivery) bool { return o.state == "failed" }))
	if len(failed) == 0 {
		t.SkipNow() // nothing has failed
	}
	o := pick(t, "failed", failed)
	switch pick(t, "by", []string{"update", "key", "event"}) {
	case "update":
		m.sql(t, requeueUpdate, o.sync, o.key)
		failed = slices.DeleteFunc(failed, func(other *delivery) bool { return other.laneID != o.laneID })
	case "key":
		m.sql(t, requeueKey, o.sync, o.key)
		failed = slices.DeleteFunc(failed, func(other *delivery) bool { return other.laneID != o.laneID })
	default:
		m.sql(t, requeueEvent, o.sync, id(o.event))
		failed = []*delivery{o}
	}
	m.say("requeue of %v", failed)
	for _, o := range failed {
		m.requeued(o)
	}
}

func (m *model) requeued(o *delivery) {
	m.log = append(m.log, logRow{sync: o.sync, event: o.event, outcome: "requeued", attempt: o.total, revision: o.revision})
	o.state, o.notDue = "waiting", false
	o.attempts, o.charged = 0, 0
}

// discardNow discards a delivery. That is refused while it is being sent.
func (m *model) discardNow(t *rapid.T) {
	list := m.undisturbed(slices.Clone(m.open))
	if len(list) == 0 {
		t.SkipNow() // nothing is open
	}
	o := pick(t, "open", list)
	m.say("discard of %s, which is %s", o, o.state)
	if m.lane(o.laneID).claim != "" && o.state != "failed" && m.first(o.laneID) == o {
		m.refused(t, notInState, discard, o.sync, id(o.event))
		return
	}
	m.sql(t, discard, o.sync, id(o.event))
	if l := m.lane(o.laneID); l.claim == "" && m.first(o.laneID) == o {
		l.crashes = 0
	}
	m.discarded(o)
}

func (m *model) discarded(o *delivery) {
	m.log = append(m.log, logRow{sync: o.sync, event: o.event, outcome: "discarded", attempt: o.total, revision: o.revision})
	m.remove(o)
}

// replayNow replays an event. That is refused while a delivery of it is open.
func (m *model) replayNow(t *rapid.T) {
	l, e, ok := m.anyEvent(t)
	if !ok {
		t.SkipNow() // no event yet
	}
	o := m.find(l.sync, e.n)
	m.say("replay of e%d to %s, open: %v", e.n, l.sync, o)
	if o != nil {
		m.refused(t, notInState, replay, l.sync, id(e.n))
		return
	}
	m.sql(t, replay, l.sync, id(e.n))
	o, row := m.replayed(l, e)
	o.committed = m.step
	m.open, m.log = append(m.open, o), append(m.log, row)
}

// anyEvent draws a committed event of a key that the open operator has not changed.
func (m *model) anyEvent(t *rapid.T) (laneID, *event, bool) {
	var list []*event
	for n := 1; n <= m.seq; n++ {
		if e := m.events[n]; e != nil && !m.busy(e.key) {
			list = append(list, e)
		}
	}
	if len(list) == 0 {
		return laneID{}, nil, false
	}
	e := pick(t, "event", list)
	return laneID{pick(t, "sync", syncs), e.key}, e, true
}

// replayed takes the next number, for the end of the lane.
func (m *model) replayed(l laneID, e *event) (*delivery, logRow) {
	m.seq++
	o := &delivery{laneID: l, event: e.n, place: m.seq, state: "waiting"}
	for _, row := range m.log {
		if row.sync == l.sync && row.event == e.n {
			o.total, o.revision = max(o.total, row.attempt), max(o.revision, row.revision)
		}
	}
	o.revision++
	return o, logRow{sync: l.sync, event: e.n, outcome: "replayed", attempt: o.total, revision: o.revision}
}

// setReference sets the reference of a lane, whether or not it has one, perhaps to the id that it
// has. Learned values stay with that id, unless others are given.
func (m *model) setReference(t *rapid.T) {
	l := laneID{pick(t, "sync", syncs), pick(t, "key", keys)}
	was := m.refs[l]
	known := reference{externalID: was.externalID, learned: was.learned, set: was.set + 1}
	if rapid.Bool().Draw(t, "another id") {
		known.externalID, known.learned = fmt.Sprint("set", m.step), ""
	}
	var learned any
	switch pick(t, "learned", []string{"left out", "none", "given"}) {
	case "none":
		learned, known.learned = `{}`, ""
	case "given":
		learned, known.learned = fmt.Sprintf(`{"n": "set%d"}`, m.step), fmt.Sprint("set", m.step)
	}
	m.say("reference of %s set to %+v", l, known)
	m.sql(t, setReference, l.sync, l.key, known.externalID, learned)
	m.refs[l] = known
	m.log = append(m.log, logRow{sync: l.sync, outcome: "reference_set"})
}

// pauseNow pauses a sync, or resumes it.
func (m *model) pauseNow(t *rapid.T) {
	sync := pick(t, "sync", m.freeSyncs(t))
	if m.holds[sync][outbox.HoldOperator] == nil {
		m.say("pause of %s", sync)
		m.sql(t, pause, sync)
		m.paused(sync)
		return
	}
	m.say("resume of %s", sync)
	m.sql(t, resume, sync)
	m.resumed(sync)
}

func (m *model) paused(sync string) {
	m.holds[sync][outbox.HoldOperator] = &hold{}
	m.log = append(m.log, logRow{sync: sync, outcome: "paused"})
}

func (m *model) resumed(sync string) {
	delete(m.holds[sync], outbox.HoldOperator)
	m.log = append(m.log, logRow{sync: sync, outcome: "resumed"})
}

// operate makes a step in the operator's open transaction.
func (m *model) operate(t *rapid.T) {
	if m.operator == nil {
		level := pick(t, "level", []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead})
		m.operator = m.begin(t, pgx.TxOptions{IsoLevel: level})
		m.say("an operator begins, %s", level)
		m.tell(t, `SELECT count(*) FROM outbox.delivery`) // takes the snapshot
		for _, sync := range syncs {
			m.operator.paused[sync] = m.holds[sync][outbox.HoldOperator] != nil
		}
		return
	}
	switch pick(t, "operator", []string{"end", "requeue", "discard", "replay", "pause", "lock", "lock lane"}) {
	case "end":
		m.operatorEnds(t)
	case "requeue":
		m.openRequeue(t)
	case "discard":
		m.openDiscard(t)
	case "replay":
		m.openReplay(t)
	case "pause":
		m.openPause(t)
	case "lock":
		m.openLock(t)
	case "lock lane":
		m.openLockLane(t)
	}
}

func (m *model) operatorEnds(t *rapid.T) {
	o := m.operator
	m.unlock()
	m.end(t, o, "the operator")
	m.momentPasses(t)
}

// momentPasses makes lanes due that wait for a moment because the operator had locked their
// first delivery.
func (m *model) momentPasses(t *rapid.T) {
	m.sql(t, `UPDATE outbox.lane SET due_at = clock_timestamp() WHERE claim IS NULL AND due_at BETWEEN clock_timestamp() AND clock_timestamp() + interval '10 seconds'`)
}

func (m *model) unlock() {
	m.operator = nil
	for _, o := range m.open {
		o.locked = false
	}
	for _, l := range m.lanes {
		l.locked = false
	}
}

// tell runs a statement in the operator's transaction, and reports whether it found a row. The
// database may refuse it only for an old snapshot, which ends the transaction.
func (m *model) tell(t *rapid.T, statement string, args ...any) bool {
	var refusal *pgconn.PgError
	var tag pgconn.CommandTag
	nobodyWaits(t, statement, func(ctx context.Context) (err error) {
		tag, err = m.operator.tx.Exec(ctx, statement, args...)
		if errors.As(err, &refusal) && m.operator.snapshot && slices.Contains([]string{serialization, notInState, noSuchRow}, refusal.Code) {
			return nil
		}
		return err
	})
	if refusal == nil {
		return tag.RowsAffected() > 0
	}
	m.say("the operator is refused, %s, and rolls back", refusal.Message)
	_ = m.operator.tx.Rollback(t.Context())
	m.unlock()
	m.momentPasses(t)
	return false
}

// untouched are the deliveries that the open operator has not changed yet.
func (m *model) untouched(keep func(*delivery) bool) []*delivery {
	return m.filter(func(o *delivery) bool { return !m.operator.touched[o.String()] && keep(o) })
}

func (m *model) touch(o *delivery) {
	m.operator.keys[o.key], m.operator.touched[o.String()] = true, true
}

func (m *model) openRequeue(t *rapid.T) {
	list := m.untouched(func(o *delivery) bool { return o.state == "failed" })
	if len(list) == 0 {
		t.SkipNow() // nothing has failed
	}
	o, op := pick(t, "failed", list), m.operator
	m.say("in the operator's transaction: requeue of %s", o)
	if !m.tell(t, requeueEvent, o.sync, id(o.event)) {
		return
	}
	m.touch(o)
	o.locked = true
	op.commit = append(op.commit, func() { m.requeued(o) })
}

func (m *model) openDiscard(t *rapid.T) {
	op := m.operator
	list := m.untouched(func(o *delivery) bool {
		return m.lane(o.laneID).claim == "" || o.state == "failed" || op.first(m, o.laneID) != o.place
	})
	if len(list) == 0 {
		t.SkipNow() // nothing can be discarded
	}
	o := pick(t, "open", list)
	leads := op.first(m, o.laneID) == o.place
	m.say("in the operator's transaction: discard of %s, which is %s", o, o.state)
	if !m.tell(t, discard, o.sync, id(o.event)) {
		return
	}
	if op.snapshot {
		t.Fatalf("discarded %s, though an old snapshot may hide that it is being sent", o)
	}
	m.touch(o)
	op.touched["gone "+o.String()] = true
	o.locked = true
	l := m.lane(o.laneID)
	l.locked = l.locked || m.hasLane(t, o.laneID)
	clears := l.locked && leads && l.claim == ""
	op.commit = append(op.commit, func() {
		m.discarded(o)
		if clears {
			l.crashes = 0
		}
	})
}

// first is the first position of a lane as the session sees it: without its discards, and with
// its replays.
func (s *session) first(m *model, l laneID) int {
	first := 0
	for _, o := range m.of(l) {
		if !s.touched["gone "+o.String()] {
			first = o.place
			break
		}
	}
	for _, own := range s.replays[l] {
		if first == 0 || own < first {
			first = own
		}
	}
	return first
}

func (m *model) hasLane(t *rapid.T, l laneID) (has bool) {
	const statement = `SELECT EXISTS (SELECT FROM outbox.lane WHERE sync = $1 AND key = $2)`
	if err := m.pool.QueryRow(t.Context(), statement, l.sync, l.key).Scan(&has); err != nil {
		t.Fatal(err)
	}
	return has
}

func (m *model) openReplay(t *rapid.T) {
	l, e, ok := m.anyEvent(t)
	if !ok {
		t.SkipNow() // no event yet
	}
	op, still := m.operator, m.find(l.sync, e.n)
	if still != nil && !op.snapshot {
		t.SkipNow() // nothing to replay yet
	}
	m.say("in the operator's transaction: replay of e%d to %s", e.n, l.sync)
	if !m.tell(t, replay, l.sync, id(e.n)) {
		return
	}
	if still != nil {
		t.Fatalf("replayed, though an old snapshot hides that it is open: %s", still)
	}
	op.keys[l.key] = true
	o, row := m.replayed(l, e)
	op.replays[l] = append(op.replays[l], o.place)
	op.commit = append(op.commit, func() {
		o.committed = m.step
		m.open, m.log = append(m.open, o), append(m.log, row)
	})
}

func (m *model) openPause(t *rapid.T) {
	sync, op := pick(t, "sync", m.freeSyncs(t)), m.operator
	paused := m.holds[sync][outbox.HoldOperator] != nil
	if op.snapshot && paused != op.paused[sync] {
		t.SkipNow() // the session sees an older state
	}
	statement, effect := pause, m.paused
	if paused {
		statement, effect = resume, m.resumed
	}
	m.say("in the operator's transaction: %s of %s", statement, sync)
	if !m.tell(t, statement, sync) {
		return
	}
	op.syncs[sync] = true
	op.commit = append(op.commit, func() { effect(sync) })
}

// openLock locks a delivery, as a person in psql may.
func (m *model) openLock(t *rapid.T) {
	list := m.untouched(func(*delivery) bool { return true })
	if len(list) == 0 {
		t.SkipNow() // nothing is open
	}
	o := pick(t, "open", list)
	m.say("in the operator's transaction: lock of %s, which is %s", o, o.state)
	if !m.tell(t, lockRow, o.sync, id(o.event)) {
		return
	}
	m.touch(o)
	o.locked = true
}

// openLockLane locks a lane.
func (m *model) openLockLane(t *rapid.T) {
	l := laneID{pick(t, "sync", syncs), pick(t, "key", keys)}
	if !m.hasLane(t, l) {
		t.SkipNow() // there is none
	}
	m.say("in the operator's transaction: lock of the lane %s", l)
	if !m.tell(t, lockLane, l.sync, l.key) {
		return
	}
	m.operator.keys[l.key] = true
	m.lane(l).locked = true
}

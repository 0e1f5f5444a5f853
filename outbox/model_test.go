package outbox_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/hms-mkt/lockstep/outbox"
)

// TestModel is an executable specification of deliveries. A model in memory knows which answers
// the database may give. The test takes random actions of relays, writers and operators. It
// applies each action to the model and to the database. Then it checks that the two agree and
// that the rules hold.
//
// Read it in this order:
//
//  1. the state, which is [model] and the types before it,
//  2. [model.actions]: each has its condition and its effect,
//  3. [model.rules], which hold after every action, by the guarantees of
//     docs/guarantees.md.
//
// Nothing runs at the same time. Instead, one transaction of an operator and one of a writer
// stay open during other actions, which must not wait for them. Actions that change due times
// and leases take the place of time.
//
// A failure prints what happened, step by step.
func TestModel(t *testing.T) {
	tune(t, "rapid.checks", "60")
	tune(t, "rapid.steps", "40")
	d := newDesk(t,
		outbox.Registration{Name: "blocks", Patterns: []string{"*"}, OnFailed: "block"},
		outbox.Registration{Name: "supersedes", Patterns: []string{"*"}, OnFailed: "supersede", From: "beginning"})
	d.logMayBeEmptied()
	rapid.Check(t, func(t *rapid.T) {
		d.empty()
		m := &model{
			desk: d, events: map[int]*event{}, lanes: map[laneID]*lane{}, refs: map[laneID]reference{}, newest: map[laneID]reference{},
			holds:  map[string]map[outbox.HoldKind]*hold{"blocks": {}, "supersedes": {}},
			relays: []*relay{{name: "a", store: d.a}, {name: "b", store: d.b}},
		}
		defer m.close(t)
		t.Repeat(m.steps())
		m.everythingDrains(t)
	})
}

// 1. The state -----------------------------------------------------------

// Two syncs take every event, of two keys. One blocks a key behind its failed event,
// the other one supersedes it.
var (
	syncs = []string{"blocks", "supersedes"}
	keys  = []string{"k1", "k2"}
)

// event is an event that a writer has committed.
type event struct {
	n, seq  int // its number in the trace and its id, and its place in the order
	key     string
	version *int64
	wanted  bool // the filter of both syncs leaves it in
}

// delivery is an open delivery. A finished one is only in the log.
type delivery struct {
	laneID
	event, place int    // whose it is, and where it is in its lane
	state        string // waiting, retry or failed
	notDue       bool   // its delay has not ended

	attempts, total int // in this life, and ever
	charged         int // attempts that count for the budget
	revision        int // of its idempotency key

	committed int  // step from which on others see it
	locked    bool // by the operator's open transaction
}

func (o *delivery) String() string { return fmt.Sprintf("e%d>%s", o.event, o.laneID) }

// laneID names a lane: the queue of a key in a sync.
type laneID struct{ sync, key string }

func (l laneID) String() string { return l.sync + "/" + l.key }

// lane is a lane, whether or not the database has a row for it.
type lane struct {
	claim      string    // its token; empty while nobody has the lane
	sends      *delivery // what is sent under the claim; nil if nothing can be
	since      int       // step at which that was claimed
	leaseEnded bool
	crashes    int    // claims in a row that ended without a word
	unreported string // the first of them, until the log says of a delivery that its outcome is unknown
	locked     bool   // by the operator's open transaction
}

// heldClaim is a claim that a relay remembers, whether or not it is still valid.
type heldClaim struct {
	relay    *relay
	d        *outbox.Delivery
	refSet   int            // how often the reference had been set when it was claimed
	result   *outbox.Result // what the relay has recorded, or has tried to
	recorded bool
}

// relay is one process with its Arrivals of each sync. Its claims are those of the model that
// name it.
type relay struct {
	name     string
	store    *outbox.Store
	arrivals map[string]*outbox.Arrivals
}

// hold is a hold of a sync. After its time, a throttle has ended, and an auth or breaker hold may
// be probed.
type hold struct{ due bool }

// logRow is a row of the delivery log.
type logRow struct {
	sync              string
	event             int
	outcome           string
	attempt, revision int
	claim             string
	relay             bool // it is about an attempt of the relay that wrote it
}

// reference is the reference of a key.
type reference struct {
	externalID string
	learned    string // the value that it calls n
	version    *int64
	place      int // of the delivery that it was answered to; 0 if an operator has set it
	set        int // how often operators have set it
}

// session is a transaction of an operator or a writer that stays open over several steps. Its
// changes are not visible before it commits.
type session struct {
	tx       pgx.Tx
	snapshot bool             // it is at REPEATABLE READ, and sees what was true when it began
	keys     map[string]bool  // of which it has locked or written something
	syncs    map[string]bool  // whose hold it has changed
	touched  map[string]bool  // deliveries that it has changed, and the words "gone" and one that it has discarded
	paused   map[string]bool  // syncs that were paused when it began
	replays  map[laneID][]int // places of its replays
	commit   []func()         // what becomes true with its commit
}

// model is the whole state.
type model struct {
	*desk // the database

	seq    int // the last number drawn, by an event or a replay
	events map[int]*event
	open   []*delivery
	lanes  map[laneID]*lane
	holds  map[string]map[outbox.HoldKind]*hold // by sync
	log    []logRow
	refs   map[laneID]reference
	newest map[laneID]reference // as it was after the step before

	relays   []*relay
	claims   []*heldClaim
	operator *session // nil while none is open
	writer   *session

	step  int
	trace []string
	begun []pgx.Tx // all sessions, to be ended with the test
}

// 2. The actions ---------------------------------------------------------

// action is a possible step.
type action struct {
	name  string
	often int    // how often it is drawn, compared with the others
	needs string // what must be true before; if it is not, another action is drawn
	then  string // what is true afterwards, besides the rules
	do    func(*rapid.T)
}

func (m *model) actions() []action {
	return []action{
		// Writers, in model_writer_test.go.
		{
			"a writer inserts an event", 3,
			"a key about which the open writer has not written",
			"the event has a waiting delivery for each sync, at the end of its lane",
			m.insert,
		},
		{
			"the open writer takes a step", 2, "",
			"it has begun, or has written one more event, or has ended; its events are there with its commit, at the places that they had drawn before",
			m.write,
		},
		// Relays, in model_relay_test.go.
		{
			"a relay claims lanes", 5, "",
			"of a sync on hold nothing is claimed; otherwise at most as many lanes as the capacity allows, each with its first delivery, which is due, has not failed and is locked by nobody; with capacity for all of them, no such lane is left",
			m.claimLanes,
		},
		{
			"a relay claims a suspect", 1, "",
			"the same for one lane during whose claims two relays or more have died",
			m.claimSuspect,
		},
		{
			"a relay records results", 6,
			"a claim of which nothing is recorded",
			"if the claim is valid: a finished delivery is gone, another is retried later or has failed, and the lane is kept for its next delivery or released; if not: no delivery has changed, and the log says lease_lost where an attempt was made",
			m.recordSome,
		},
		{
			"a relay records a result once more", 1,
			"a result that is recorded",
			"nothing is recorded twice",
			m.recordTwice,
		},
		{
			"a relay dies", 1, "",
			"it has forgotten its claims and what it knew of arrivals; the database does not know yet",
			m.die,
		},
		// Time, in model_relay_test.go.
		{
			"a lease ends", 2,
			"a lane that is claimed",
			"another relay may claim it: then one more has died, and the log says that the outcome is unknown",
			m.aLeaseEnds,
		},
		{
			"a delay ends", 2,
			"a delivery that is not due",
			"it is due",
			m.aDelayEnds,
		},
		// Operators, in model_operator_test.go.
		{
			"an operator requeues", 1,
			"a failed delivery of a key that the open operator leaves alone",
			"it waits again, in its place, with a new budget; so do the others that have failed of its key, if the key was named",
			m.requeueNow,
		},
		{
			"an operator discards", 1,
			"an open delivery of a key that the open operator leaves alone",
			"it is gone; but the database refuses that while it is being sent",
			m.discardNow,
		},
		{
			"an operator replays", 1,
			"an event of a key that the open operator leaves alone",
			"it has a delivery at the end of its lane, with the next revision; but the database refuses that while one is open",
			m.replayNow,
		},
		{
			"an operator sets a reference", 1, "",
			"the next claim of that lane has it; attempts that were claimed before leave it as it is",
			m.setReference,
		},
		{
			"an operator pauses or resumes", 1,
			"a sync whose hold the open operator has not changed",
			"the sync is paused, or is not any more",
			m.pauseNow,
		},
		{
			"the open operator takes a step", 5, "",
			"it has begun, or has done one of these, or has locked a delivery or a lane, or has ended; what it did is true with its commit; a transaction with an old snapshot may be refused",
			m.operate,
		},
		// Holds, in model_relay_test.go.
		{
			"a relay does something about a hold", 1,
			"a sync whose hold the open operator has not changed",
			"the sync is put on hold, or its holds come to their time, or it is probed with one delivery, or holds are lifted, or those that have ended are removed",
			m.anyHold,
		},
	}
}

// 3. The rules -----------------------------------------------------------

// rule is a condition that holds after every step.
type rule struct {
	guarantee string // its number and name in docs/guarantees.md
	says      string
	holds     func(*rapid.T, database)
}

// These rules are in model_rules_test.go. Other rules are checked in the steps that they are
// about:
//
//   - 2, order: if the sync supersedes, a failed event is closed when a newer one is sent: [model.superseded], [model.nothingIsLeftToSupersede];
//   - 3, at least once: a result is recorded once: [model.recordTwice];
//   - 4, fencing: a claim that has ended changes nothing: [model.recorded];
//   - 5, our own faults: a lane whose relays died is claimed as a suspect only:
//     [model.claimable];
//   - 6, a healed fault drains by itself: [model.everythingDrains];
//   - 7, nobody waits for an open transaction: [nobodyWaits];
//   - 9, fairness: with enough capacity, everything that is due is claimed:
//     [model.everythingDueIsClaimed].
func (m *model) rules() []rule {
	return []rule{
		{"the model", "the deliveries are those of the model, in its states", m.deliveriesAgree},
		{"the model", "the lanes are those of the model, with its claims", m.lanesAgree},
		{"the model", "the holds are those of the model, and the sync shows the strongest", m.holdsAgree},
		{"the model", "the references are those of the model", m.referencesAgree},
		{"1. Nothing is lost", "an event is, for each sync, open or finished: once, and once more for each replay", m.nothingIsLost},
		{"2. Order", "nothing is sent while an earlier delivery of its lane is open that was there when it was claimed", m.orderIsKept},
		{"2. Order", "a claim has an end, after which the lane may be claimed again", m.claimsEnd},
		{"3. At least once", "the attempts of an event are numbered in the log without a gap", m.attemptsAreNumbered},
		{"3. At least once", "a reference never goes back to that of an earlier delivery of its lane, and not to one from before an operator set it", m.referencesNeverGoBack},
		{"the model", "the log has the rows of the model and no others", m.logAgrees},
	}
}

// steps are the actions as they are drawn, each followed by the check of the rules.
func (m *model) steps() map[string]func(*rapid.T) {
	steps := map[string]func(*rapid.T){}
	for _, a := range m.actions() {
		for n := range a.often {
			steps[fmt.Sprintf("%s (%d)", a.name, n+1)] = func(t *rapid.T) {
				m.step++
				defer func() {
					if t.Failed() {
						t.Logf("step %d: %s\nneeds: %s\nthen: %s", m.step, a.name, a.needs, a.then)
					}
				}()
				a.do(t)
				m.rulesHold(t)
			}
		}
	}
	return steps
}

// rulesHold checks the rules.
func (m *model) rulesHold(t *rapid.T) {
	d := m.read(t)
	for _, r := range m.rules() {
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("this breaks a rule of %q: %s", r.guarantee, r.says)
				}
			}()
			r.holds(t, d)
		}()
	}
}

package outbox_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/hms-mkt/lockstep/outbox"
)

// The actions of relays, of time and of holds.

// onHold reports whether a sync sends nothing.
func (m *model) onHold(sync string, probe bool) bool {
	for kind, h := range m.holds[sync] {
		switch kind {
		case outbox.HoldThrottle, outbox.HoldWindow:
			if !h.due {
				return true
			}
		case outbox.HoldAuth, outbox.HoldBreaker:
			if !probe {
				return true
			}
		default:
			return true
		}
	}
	return false
}

// claimable reports whether a relay may claim a lane: it has no claim, or the lease has ended.
func (m *model) claimable(l laneID, suspects bool) bool {
	lane := m.lane(l)
	crashes := lane.crashes
	if lane.leaseEnded {
		crashes++
	}
	return (lane.claim == "" || lane.leaseEnded) && !lane.locked && (crashes > 1) == suspects
}

// sendable reports whether o is the first of its lane and may be sent.
func (m *model) sendable(o *delivery) bool {
	return m.first(o.laneID) == o && o.state != "failed" && !o.notDue && !o.locked
}

// due are the deliveries that a claim may bring.
func (m *model) due(r outbox.OneRequest) []*delivery {
	if m.onHold(r.Sync, r.Probe) {
		return nil
	}
	return m.filter(func(o *delivery) bool {
		return o.sync == r.Sync && m.sendable(o) && m.claimable(o.laneID, r.Suspect) && (r.Key == "" || r.Key == o.key)
	})
}

// enough is a capacity for every lane of a sync.
const enough = 4

func (m *model) request(t *rapid.T) outbox.ClaimRequest {
	r := outbox.ClaimRequest{Sync: pick(t, "sync", syncs), Capacity: pick(t, "capacity", []int{1, 2, enough, enough}), Lease: forever, Wanted: wanted}
	r.Lanes = r.Capacity
	if r.Capacity < enough {
		r.Lanes, r.Latest = rapid.IntRange(0, r.Capacity).Draw(t, "lanes"), rapid.IntRange(0, r.Capacity).Draw(t, "latest")
	}
	return r
}

func (m *model) claimLanes(t *rapid.T) { m.claim(t, m.relay(t), m.request(t)) }

// claimSuspect claims a suspect.
func (m *model) claimSuspect(t *rapid.T) {
	m.claimOne(t, m.relay(t), outbox.OneRequest{Sync: pick(t, "sync", syncs), Lease: forever, Suspect: true, Wanted: wanted})
}

// claim polls once, or twice if the capacity is enough for everything: the first poll may only
// make a waiting lane due. After two polls everything that is due must be claimed.
func (m *model) claim(t *rapid.T, by *relay, r outbox.ClaimRequest) {
	known := by.known(r.Sync)
	if r.Capacity < enough {
		m.claimOnce(t, by, r, known)
		return
	}
	known.CheckAgainNow()
	m.claimOnce(t, by, r, known)
	known.CheckAgainNow()
	c := m.claimOnce(t, by, r, known)
	if !c.Unopened && !m.onHold(r.Sync, false) {
		m.everythingDueIsClaimed(t, by, r.Sync, c)
	}
}

// everythingDueIsClaimed checks that a relay has left nothing that is due, after two polls with
// enough capacity.
func (m *model) everythingDueIsClaimed(t *rapid.T, by *relay, sync string, c outbox.Claims) {
	all := outbox.OneRequest{Sync: sync}
	if left := m.due(all); len(left) > 0 {
		t.Fatalf("%s has polled %s twice, and left %v", by.name, sync, left)
	}
	all.Suspect = true
	if left := m.due(all); len(left) > 0 && !c.Suspects {
		t.Fatalf("%s is not told of the suspects %v", by.name, left)
	}
	m.nothingIsLeftToSupersede(t, sync)
	m.noLaneIsBroken(t, func(l laneID) bool { return l.sync == sync && !m.busy(l.key) })
}

// claimOnce claims, and checks the answer.
func (m *model) claimOnce(t *rapid.T, by *relay, r outbox.ClaimRequest, known *outbox.Arrivals) (c outbox.Claims) {
	nobodyWaits(t, by.name+" claims", func(ctx context.Context) (err error) {
		c, err = by.store.Claim(ctx, r, known)
		return err
	})
	m.say("%s claims of %s (capacity %d, lanes %d, latest %d): %s and %d idle", by.name, r.Sync, r.Capacity, r.Lanes, r.Latest, list(c.Deliveries), len(c.Idle))
	m.claimed(t, by, outbox.OneRequest{Sync: r.Sync}, r.Capacity, c)
	return c
}

// claimOne claims a single lane, and reports whether there was one.
func (m *model) claimOne(t *rapid.T, by *relay, r outbox.OneRequest) bool {
	var c outbox.Claims
	nobodyWaits(t, by.name+" claims one", func(ctx context.Context) (err error) {
		c, err = by.store.ClaimOne(ctx, r)
		return err
	})
	m.say("%s claims one of %s (key %q, suspect %t, probe %t): %s and %d idle", by.name, r.Sync, r.Key, r.Suspect, r.Probe, list(c.Deliveries), len(c.Idle))
	m.claimed(t, by, r, 1, c)
	return len(c.Deliveries) > 0
}

// claimed checks the answer to a claim with that capacity.
func (m *model) claimed(t *rapid.T, by *relay, r outbox.OneRequest, capacity int, c outbox.Claims) {
	onHold := m.onHold(r.Sync, r.Probe)
	if onHold != (c.Hold != nil) {
		t.Fatalf("claim says hold %+v, want a hold: %t", c.Hold, onHold)
	}
	if onHold && len(c.Deliveries)+len(c.Idle) > 0 || len(c.Deliveries)+len(c.Idle) > capacity {
		t.Fatalf("claimed %s and %d idle, on hold: %t", list(c.Deliveries), len(c.Idle), onHold)
	}
	m.superseded(t)
	for _, d := range c.Deliveries {
		m.take(t, by, r, d)
	}
	var idle []*heldClaim
	for i := range c.Idle {
		idle = append(idle, m.takeIdle(t, by, r, &c.Idle[i]))
	}
	if len(idle) > 0 && rapid.IntRange(0, 3).Draw(t, "releases") > 0 {
		m.record(t, idle)
	}
}

// take checks a claimed delivery, and adds it to the claims of the relay.
func (m *model) take(t *rapid.T, by *relay, r outbox.OneRequest, d *outbox.Delivery) {
	may := m.due(r)
	i := slices.IndexFunc(may, func(o *delivery) bool { return o.sync == d.Sync && int64(o.place) == d.Position })
	if i < 0 {
		t.Fatalf("claimed %s, which could not be claimed; only %v", list([]*outbox.Delivery{d}), may)
	}
	o := may[i]
	lane := m.lane(o.laneID)
	m.takeLane(lane, d.Claim)
	if lane.unreported != "" { // the log says that the outcome of that claim is unknown
		o.attempts++
		o.total++
		m.log = append(m.log, logRow{sync: o.sync, event: o.event, outcome: "unknown", attempt: o.total, revision: o.revision, claim: lane.unreported})
		lane.unreported = ""
	}
	lane.sends, lane.since = o, m.step
	if d.Event.ID != id(o.event) || d.Key != o.key || d.Attempts != o.attempts || d.Total != o.total || d.Charged != o.charged ||
		d.Crashes != lane.crashes || d.Revision != o.revision || d.Missing || d.Event.Seq != int64(m.events[o.event].seq) {
		t.Fatalf("claimed %+v, want %+v, crashes %d", *d, *o, lane.crashes)
	}
	if ref := m.refs[o.laneID]; d.Ref.ExternalID != ref.externalID || d.Ref.Learned["n"] != ref.learned || !equal(d.Ref.Version, ref.version) {
		t.Fatalf("claimed %s with reference %+v, want %+v", o, d.Ref, ref)
	}
	m.claims = append(m.claims, &heldClaim{relay: by, d: d, refSet: m.refs[o.laneID].set})
}

// takeIdle checks a claimed lane with nothing to send. The relay releases it.
func (m *model) takeIdle(t *rapid.T, by *relay, r outbox.OneRequest, result *outbox.Result) *heldClaim {
	h := &heldClaim{relay: by, d: result.Delivery, result: result}
	lane, first := m.lane(h.laneID()), m.first(h.laneID())
	if !m.claimable(h.laneID(), r.Suspect) || first != nil && m.sendable(first) {
		t.Fatalf("%s claimed the lane %s as idle; it is %+v, and its first is %+v", by.name, h.laneID(), lane, first)
	}
	m.takeLane(lane, h.d.Claim)
	m.claims = append(m.claims, h)
	return h
}

// takeLane sets the claim of a lane. If another relay had the lane, that relay counts as dead.
func (m *model) takeLane(l *lane, claim string) {
	if l.claim != "" {
		l.crashes++
		l.unreported = cmp.Or(l.unreported, l.claim) // while one is unreported, nothing was sent under those after it
	}
	l.claim, l.sends, l.leaseEnded = claim, nil, false
}

func equal(a, b *int64) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }

func list(ds []*outbox.Delivery) string {
	var names []string
	for _, d := range ds {
		names = append(names, fmt.Sprintf("e%d>%s/%s", number(d.Event.ID), d.Sync, d.Key))
	}
	return "[" + strings.Join(names, " ") + "]"
}

// results are the possible results of an attempt.
var results = []outbox.Result{
	{Outcome: outbox.Delivered, Attempt: true, Ref: &outbox.Ref{}},
	{Outcome: outbox.Delivered, Attempt: true},
	{Outcome: outbox.Duplicate, Attempt: true},
	{Outcome: outbox.Accepted, Attempt: true},
	{Outcome: outbox.Filtered},
	{Outcome: outbox.Retry, Attempt: true, Charge: true},
	{Outcome: outbox.Retry, Attempt: true, Delay: forever},
	{Outcome: outbox.Failed, Attempt: true, Failed: true, Charge: true},
	{Outcome: outbox.Failed, Failed: true},
	{Outcome: outbox.Unknown, Attempt: true, Charge: true},
	{Outcome: outbox.Unknown, Attempt: true, Failed: true},
	{}, // nothing was sent: the claim is given back
}

// recordSome records a result of one claim, and perhaps of the relay's other claims of
// that sync with it.
func (m *model) recordSome(t *rapid.T) {
	news := slices.DeleteFunc(slices.Clone(m.claims), func(h *heldClaim) bool { return h.recorded })
	if len(news) == 0 {
		t.SkipNow() // nothing is claimed
	}
	batch := []*heldClaim{pick(t, "claim", news)}
	if rapid.Bool().Draw(t, "batch") {
		for _, h := range news {
			if h.relay.name == batch[0].relay.name && h.d.Sync == batch[0].d.Sync &&
				!slices.ContainsFunc(batch, func(b *heldClaim) bool { return b.d.Key == h.d.Key }) {
				batch = append(batch, h)
			}
		}
	}
	for _, h := range batch {
		if h.d.Position == 0 || h.result != nil {
			continue // it gives the lane back, or was not recorded at the first try
		}
		r := pick(t, "result", results)
		r.Delivery, r.Stay = h.d, rapid.Bool().Draw(t, "stay")
		if r.Ref != nil {
			r.Ref = &outbox.Ref{ExternalID: fmt.Sprint("x", m.step), Learned: map[string]string{"n": fmt.Sprint(m.step)}}
		}
		h.result = &r
	}
	m.record(t, batch)
}

// recordTwice records a result again, as after a lost answer. The lost answer had the next
// delivery of the lane.
func (m *model) recordTwice(t *rapid.T) {
	old := slices.DeleteFunc(slices.Clone(m.claims), func(h *heldClaim) bool { return !h.recorded })
	if len(old) == 0 {
		t.SkipNow() // nothing is recorded
	}
	h := pick(t, "recorded", old)
	m.claims = slices.DeleteFunc(m.claims, func(o *heldClaim) bool { return o != h && o.laneID() == h.laneID() && o.d.Claim == h.d.Claim })
	m.record(t, []*heldClaim{h})
}

// record records results of one relay and sync, and checks the answer.
func (m *model) record(t *rapid.T, batch []*heldClaim) {
	by, sync := batch[0].relay, batch[0].d.Sync
	given := make([]outbox.Result, len(batch))
	for i, h := range batch {
		given[i] = *h.result
	}
	var got outbox.Recorded
	nobodyWaits(t, by.name+" records", func(ctx context.Context) error {
		got = by.store.Record(ctx, sync, given)
		return got.Err
	})
	m.recordMoved(t, by, sync, given, &got)
	var next []*delivery
	for i, h := range batch {
		o, done, lost := m.recorded(h)
		m.say("%s records %q (failed %t, stay %t) of %s: done %t, lost %t", by.name, h.result.Outcome, h.result.Failed, h.result.Stay, h, got.Done[i], got.Lost[i])
		if got.Done[i] != done || got.Lost[i] != lost {
			t.Fatalf("recorded: done %t, lost %t; want %t, %t", got.Done[i], got.Lost[i], done, lost)
		}
		h.recorded = done || lost
		if o != nil {
			next = append(next, o)
		}
	}
	m.say("the lanes go on with %s", list(got.Next))
	for _, d := range got.Next {
		i := slices.IndexFunc(next, func(o *delivery) bool { return int64(o.place) == d.Position && o.key == d.Key })
		if i < 0 || m.lane(next[i].laneID).claim != d.Claim {
			t.Fatalf("Record returned %s, want %v", list(got.Next), next)
		}
		next = slices.Delete(next, i, i+1)
		m.claims = append(m.claims, &heldClaim{relay: by, d: d, refSet: m.refs[laneID{d.Sync, d.Key}].set})
	}
	if len(next) > 0 {
		t.Fatalf("Record returned %s, and not %v", list(got.Next), next)
	}
}

// recordMoved records results again that were not recorded, as a relay does. If a lane was changed
// since the claim, the second try finds it.
func (m *model) recordMoved(t *rapid.T, by *relay, sync string, given []outbox.Result, got *outbox.Recorded) {
	var left []outbox.Result
	var places []int
	for i := range given {
		if !got.Done[i] && !got.Lost[i] {
			left, places = append(left, given[i]), append(places, i)
		}
	}
	nobodyWaits(t, by.name+" records again", func(ctx context.Context) error {
		again := by.store.Record(ctx, sync, left)
		for n, i := range places {
			got.Done[i], got.Lost[i] = again.Done[n], again.Lost[n]
		}
		got.Next = append(got.Next, again.Next...)
		return again.Err
	})
}

// recorded applies a result to the model. If its claim is not valid any more, no delivery
// changes. Next is the next delivery of a lane that is kept.
func (m *model) recorded(h *heldClaim) (next *delivery, done, lost bool) {
	r, l := h.result, m.lane(h.laneID())
	ours, o := l.claim == h.d.Claim, m.at(h.d.Sync, h.d.Position)
	if h.d.Position == 0 || r.Outcome == "" { // the relay gives the lane back
		switch {
		case ours && !l.locked:
			unreported := l.unreported
			m.settle(h, 0)
			if h.d.Position == 0 && m.first(h.laneID()) != nil {
				l.unreported = unreported // this result says nothing of it
			}
			return nil, true, false
		case ours:
			return nil, false, false
		}
		return nil, true, false // it has been given back, or somebody else has it
	}
	e := m.events[number(h.d.Event.ID)]
	row := logRow{sync: h.d.Sync, event: e.n, outcome: string(r.Outcome), revision: h.d.Revision, claim: h.d.Claim, relay: true}
	before := slices.ContainsFunc(m.log, func(l logRow) bool {
		return l.relay && l.claim == h.d.Claim && l.event == e.n && l.outcome != "lease_lost" && l.revision == h.d.Revision
	})
	if ours && o != nil && !o.locked && !l.locked {
		m.attempted(h, o, e, row)
		place := 0
		if r.Outcome.Finished() {
			place = o.place
		}
		return m.settle(h, place), true, false
	}
	if ours && o == nil && !l.locked { // it was recorded before, or is discarded
		next = m.settle(h, int(h.d.Position))
	}
	switch {
	case before && ours && o == nil && l.locked:
		return nil, false, false
	case before:
		return next, true, false
	case ours && o != nil:
		return nil, false, false
	case !r.Attempt:
		return next, false, true
	}
	if !l.locked {
		l.crashes = max(l.crashes-1, 0)
	}
	row.outcome = "lease_lost"
	if !slices.ContainsFunc(m.log, func(l logRow) bool { return l.sync == h.d.Sync && l.event == e.n && l.claim == h.d.Claim }) {
		row.claim = "" // the log has no row of it yet
	}
	m.log = append(m.log, row)
	return next, false, true
}

// attempted applies a result to its delivery.
func (m *model) attempted(h *heldClaim, o *delivery, e *event, row logRow) {
	r := h.result
	if r.Attempt {
		row.attempt = o.total + 1
		o.attempts, o.total = o.attempts+1, o.total+1
	}
	if r.Charge {
		o.charged++
	}
	m.log = append(m.log, row)
	if r.Outcome.Finished() {
		m.remove(o)
		if old := m.refs[o.laneID]; r.Ref != nil && o.place >= old.place && h.refSet == old.set {
			m.refs[o.laneID] = reference{r.Ref.ExternalID, r.Ref.Learned["n"], e.version, o.place, old.set}
		}
		return
	}
	o.notDue = r.Delay > 0
	switch {
	case r.Failed:
		o.state = "failed"
	case o.attempts > 0:
		o.state = "retry"
	default:
		o.state = "waiting"
	}
}

// settle keeps the lane for the next delivery, or releases it. Place is the position of the
// delivery that was finished, 0 if none was.
func (m *model) settle(h *heldClaim, place int) (next *delivery) {
	l, first := m.lane(h.laneID()), m.first(h.laneID())
	stays := h.result.Stay && place > 0 && l.crashes < 2 && !m.onHold(h.d.Sync, false)
	if place > 0 || first == nil || first.state == "failed" {
		l.crashes = 0
	}
	l.unreported = ""
	if stays && first != nil && m.sendable(first) {
		l.sends, l.since = first, m.step
		return first
	}
	l.release()
	return nil
}

// die makes a relay forget its claims and its Arrivals.
func (m *model) die(t *rapid.T) {
	by := m.relay(t)
	m.say("%s dies", by.name)
	m.claims = slices.DeleteFunc(m.claims, func(h *heldClaim) bool { return h.relay.name == by.name })
	by.arrivals = nil
}

// Time -------------------------------------------------------------------

func (m *model) aLeaseEnds(t *rapid.T) {
	var claimed []laneID
	for _, sync := range syncs {
		for _, key := range keys {
			if l := m.lane(laneID{sync, key}); l.claim != "" && !l.leaseEnded && !l.locked {
				claimed = append(claimed, laneID{sync, key})
			}
		}
	}
	if len(claimed) == 0 {
		t.SkipNow() // nothing is claimed
	}
	m.leaseEnds(t, pick(t, "claimed", claimed))
}

func (m *model) leaseEnds(t *rapid.T, l laneID) {
	m.say("the lease of %s ends", l)
	m.sql(t, `UPDATE outbox.lane SET due_at = clock_timestamp() - interval '1 second' WHERE sync = $1 AND key = $2`, l.sync, l.key)
	m.lane(l).leaseEnded = true
}

func (m *model) aDelayEnds(t *rapid.T) {
	waiting := m.filter(func(o *delivery) bool { return o.notDue && !o.locked && !m.lane(o.laneID).locked })
	if len(waiting) == 0 {
		t.SkipNow() // nothing waits for its time
	}
	m.becomeDue(t, pick(t, "waiting", waiting))
}

func (m *model) becomeDue(t *rapid.T, o *delivery) {
	m.say("%s is due", o)
	m.sql(t, `UPDATE outbox.delivery SET due_at = clock_timestamp() WHERE sync = $1 AND key = $2 AND event_seq = $3`, o.sync, o.key, o.place)
	if m.first(o.laneID) == o { // then its lane waits for the same time
		m.sql(t, `UPDATE outbox.lane SET due_at = clock_timestamp() WHERE sync = $1 AND key = $2 AND claim IS NULL AND due_at > clock_timestamp() AND due_at < 'infinity'`, o.sync, o.key)
	}
	o.notDue = false
}

// Holds ------------------------------------------------------------------

// freeSyncs are the syncs whose hold was not changed in an open transaction.
func (m *model) freeSyncs(t *rapid.T) []string {
	free := slices.DeleteFunc(slices.Clone(syncs), func(s string) bool { return m.operator != nil && m.operator.syncs[s] })
	if len(free) == 0 {
		t.SkipNow() // the operator has the holds of both syncs
	}
	return free
}

// anyHold does one of a relay's actions on holds.
func (m *model) anyHold(t *rapid.T) {
	free := m.freeSyncs(t)
	pick(t, "hold", []func(*rapid.T, []string){m.hold, m.window, m.holdEnds, m.probe, m.lift, m.lift, m.endHolds})(t, free)
}

func (m *model) hold(t *rapid.T, free []string) {
	sync := pick(t, "sync", free)
	by, kind := m.relay(t), pick(t, "kind", []outbox.HoldKind{outbox.HoldAuth, outbox.HoldBreaker, outbox.HoldThrottle})
	m.say("%s holds %s by %s", by.name, sync, kind)
	nobodyWaits(t, by.name+" holds", func(ctx context.Context) error { return by.store.Hold(ctx, sync, "", kind, forever, "r") })
	m.holds[sync][kind] = &hold{}
	m.untriedWait(t, sync)
}

// locked reports whether the open operator has a lock on a sync.
func (m *model) locked(sync string) bool { return m.operator != nil && m.operator.syncs[sync] }

// window opens or closes the window of a sync. It does not wait for the open operator: if the sync is
// locked, the relay is told that nothing has changed.
func (m *model) window(t *rapid.T, _ []string) {
	sync, by, open := pick(t, "sync", syncs), m.relay(t), rapid.Bool().Draw(t, "open")
	h := m.holds[sync][outbox.HoldWindow]
	changes := open && h != nil || !open && (h == nil || h.due)
	w := outbox.Window{Open: open, From: testsBegan.Add(-forever), Until: testsBegan.Add(24 * forever), Reason: "r"}
	var kept bool
	nobodyWaits(t, by.name+" keeps a window", func(ctx context.Context) (err error) {
		kept, _, err = by.store.KeepWindow(ctx, sync, w)
		return err
	})
	m.say("the window of %s is open: %t, kept by %s: %t", sync, open, by.name, kept)
	switch want := !changes || !m.locked(sync); {
	case kept != want:
		t.Fatalf("window kept: %t, want %t", kept, want)
	case kept && open:
		delete(m.holds[sync], outbox.HoldWindow)
	case kept:
		m.holds[sync][outbox.HoldWindow] = &hold{}
	}
}

// untriedWait removes the early probes with untried deliveries from the database. The model does
// not have them, because they are due within milliseconds.
func (m *model) untriedWait(t *rapid.T, sync string) {
	m.sql(t, `UPDATE outbox.hold SET untried_at = 'infinity' WHERE sync = $1 AND kind = 'auth'`, sync)
}

func (m *model) holdEnds(t *rapid.T, free []string) {
	sync := pick(t, "sync", free)
	m.say("the holds of %s come to their time", sync)
	m.sql(t, `UPDATE outbox.hold SET until = clock_timestamp() WHERE sync = $1 AND until IS NOT NULL`, sync)
	for kind, h := range m.holds[sync] {
		h.due = kind != outbox.HoldOperator
	}
}

// probe asks for a probe, and claims a delivery for it.
func (m *model) probe(t *rapid.T, free []string) {
	sync, by := pick(t, "sync", free), m.relay(t)
	granted, again := false, false
	for kind, h := range m.holds[sync] {
		granted = granted || h.due && (kind == outbox.HoldAuth || kind == outbox.HoldBreaker)
		again = again || !h.due
	}
	granted = granted && !again
	var probe outbox.Probe
	nobodyWaits(t, by.name+" probes", func(ctx context.Context) (err error) {
		probe, err = by.store.Probe(ctx, sync, "", forever)
		return err
	})
	ok := probe.Number > 0
	m.say("%s asks to probe %s: %t", by.name, sync, ok)
	if ok != granted {
		t.Fatalf("probe granted: %t, want %t", ok, granted)
	}
	if !ok {
		return
	}
	for kind, h := range m.holds[sync] {
		if kind == outbox.HoldAuth || kind == outbox.HoldBreaker {
			h.due = false
		}
	}
	for _, key := range append(probe.With, "") {
		if m.claimOne(t, by, outbox.OneRequest{Sync: sync, Lease: forever, Key: key, Probe: true, Wanted: wanted}) {
			break
		}
	}
	if rapid.Bool().Draw(t, "again") {
		nobodyWaits(t, by.name+" probes again", func(ctx context.Context) error {
			return by.store.ProbeAgain(ctx, sync, "", probe.Number, forever, true)
		})
		m.untriedWait(t, sync)
	}
}

func (m *model) lift(t *rapid.T, free []string) {
	sync, by := pick(t, "sync", free), m.relay(t)
	m.say("%s lifts the holds of %s", by.name, sync)
	nobodyWaits(t, by.name+" lifts", func(ctx context.Context) error { return by.store.Lift(ctx, sync, "") })
	delete(m.holds[sync], outbox.HoldAuth)
	delete(m.holds[sync], outbox.HoldBreaker)
}

// endHolds removes holds that have ended, and notes a delivery. Neither waits for the open
// operator: if a hold of the sync is locked, the next call does it.
func (m *model) endHolds(t *rapid.T, _ []string) {
	sync, by := pick(t, "sync", syncs), m.relay(t)
	m.say("%s removes ended holds of %s", by.name, sync)
	nobodyWaits(t, by.name+" removes ended holds", func(ctx context.Context) error { return by.store.EndHolds(ctx, sync, forever) })
	nobodyWaits(t, by.name+" notes a delivery", func(ctx context.Context) error {
		_, err := by.store.NoteDelivery(ctx, sync, time.Now())
		return err
	})
	for _, kind := range []outbox.HoldKind{outbox.HoldThrottle, outbox.HoldWindow} {
		if h := m.holds[sync][kind]; h != nil && h.due && !m.locked(sync) {
			delete(m.holds[sync], kind)
		}
	}
}

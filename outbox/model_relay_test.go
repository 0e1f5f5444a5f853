package outbox_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/hms-mkt/lockstep/outbox"
)

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

// sendable reports whether o is the first of its line and nothing else of the
// line is under way.
func (m *model) sendable(o *open) bool {
	row := m.of(o.line)
	return row[0] == o && !slices.ContainsFunc(row, func(other *open) bool {
		return other != o && other.state == "sending" && !other.expired
	})
}

// due says what a claim that walks the due rows takes.
func (m *model) due(r outbox.ClaimRequest) []*open {
	if m.onHold(r.Sync, r.Probe) {
		return nil
	}
	return m.filter(func(o *open) bool {
		ready := (o.state == "waiting" || o.state == "retry") && !o.later || o.state == "sending" && o.expired
		return o.sync == r.Sync && ready && m.sendable(o) && (o.crashes > 1) == r.Solo && o.free() && !m.mayBeUnderWay(o)
	})
}

// mayBeUnderWay reports whether the open operator has locked a row behind o that
// a claim would have to look at, since one of the two is a replay: what he keeps
// locked may be under way for all it knows.
func (m *model) mayBeUnderWay(o *open) bool {
	return slices.ContainsFunc(m.of(o.line), func(behind *open) bool {
		return behind.place > o.place && behind.locked && !behind.parked && behind.state != "failed" &&
			(o.revision > 1 || behind.revision > 1)
	})
}

// next says what a claim of certain keys takes.
func (m *model) next(r outbox.ClaimRequest, keys []string) []*open {
	if m.onHold(r.Sync, r.Probe) {
		return nil
	}
	return m.filter(func(o *open) bool {
		return o.sync == r.Sync && slices.Contains(keys, o.key) && o.state == "waiting" && m.sendable(o) && o.crashes <= 1 && o.free() &&
			!slices.ContainsFunc(m.open, func(replay *open) bool { return replay.line == o.line && replay.revision > 1 })
	})
}

func (m *model) request(t *rapid.T) outbox.ClaimRequest {
	r := outbox.ClaimRequest{
		Sync: pick(t, "sync", syncs), Budget: rapid.IntRange(1, 4).Draw(t, "budget"),
		Page: pick(t, "page", []int{100, 100, 1, 2}), Lease: forever,
	}
	if r.Solo = rapid.IntRange(0, 3).Draw(t, "solo") == 0; r.Solo {
		r.Budget = 1
	}
	r.Pass = rapid.Bool().Draw(t, "pass")
	return r
}

// passed is where the walk of a relay is, as far as it says.
func (m *model) passed(t *rapid.T) outbox.Cursor {
	return pick(t, "passed", []outbox.Cursor{{}, outbox.End()})
}

func (m *model) claimSome(t *rapid.T) { m.claimOne(t, m.relay(t), m.request(t)) }

// claimOne claims and checks what came. It returns how many rows were looked at
// and where to go on.
func (m *model) claimOne(t *rapid.T, by *relay, r outbox.ClaimRequest) outbox.Claims {
	must := slices.DeleteFunc(m.due(r), func(o *open) bool { return m.owed[o.line] })
	held := m.onHold(r.Sync, r.Probe)
	var c outbox.Claims
	within(t, by.name+" claims", func(ctx context.Context) (err error) {
		c, err = by.store.Claim(ctx, r)
		return err
	})
	m.say("%s claims of %s (budget %d, page %d, solo %t, probe %t): %s", by.name, r.Sync, r.Budget, r.Page, r.Solo, r.Probe, list(c.Deliveries))
	if held != (c.Hold != nil) {
		t.Fatalf("claim says hold %+v, want a hold: %t", c.Hold, held)
	}
	m.notice(t)
	may := append(m.due(r), m.next(r, keys)...) // of a key that a superseded delivery has left
	if r.Page < 100 || r.From != (outbox.Cursor{}) {
		must = nil
	}
	m.take(t, by, r, c.Deliveries, must, may)
	if r.Page >= 100 && !held && !r.Solo && r.From == (outbox.Cursor{}) && !c.More {
		m.nothingLeftToSupersede(t, r.Sync, keys)
	}
	return c
}

func (m *model) claimNext(t *rapid.T) {
	by, r := m.relay(t), m.request(t)
	wanted := []string{pick(t, "key", keys)}
	r.Keys, r.From = wanted, m.passed(t)
	must := m.next(r, wanted)
	var c outbox.Claims
	within(t, by.name+" claims the next", func(ctx context.Context) (err error) {
		c, err = by.store.ClaimNext(ctx, r)
		return err
	})
	m.say("%s claims the next of %s %v: %s", by.name, r.Sync, wanted, list(c.Deliveries))
	m.take(t, by, r, c.Deliveries, must, must)
}

// take checks claimed deliveries and gives them to the relay.
func (m *model) take(t *rapid.T, by *relay, r outbox.ClaimRequest, got []*outbox.Delivery, must, may []*open) {
	if least := min(r.Budget, len(must)); len(got) < least || len(got) > max(r.Budget, 0) {
		t.Fatalf("claimed %s, want %d to %d of %v", list(got), least, r.Budget, must)
	}
	for _, d := range got {
		i := slices.IndexFunc(may, func(o *open) bool { return o.sync == d.Sync && int64(o.place) == d.Place })
		if i < 0 {
			t.Fatalf("claimed %s, which could not be claimed; only %v", list([]*outbox.Delivery{d}), may)
		}
		o := may[i]
		may = slices.DeleteFunc(slices.Clone(may), func(other *open) bool { return other == o })
		if o.state == "sending" { // of a relay that did not come back
			o.attempts++
			o.total++
			m.log = append(m.log, entry{sync: o.sync, event: o.event, outcome: "unknown", attempt: o.total, revision: o.revision, claim: o.claim})
		}
		o.state, o.claim, o.expired, o.later, o.claimed = "sending", d.Claim, false, false, m.step
		o.crashes++
		if d.Event.ID != id(o.event) || d.Key != o.key || d.Attempts != o.attempts || d.Total != o.total || d.Charged != o.charged ||
			d.Crashes != o.crashes || d.Revision != o.revision || d.Missing || d.Event.Seq != int64(m.events[o.event].seq) {
			t.Fatalf("claimed %+v, want %+v", *d, *o)
		}
		if ref := m.refs[o.line]; d.Ref.ExternalID != ref.externalID || !equal(d.Ref.Version, ref.version) {
			t.Fatalf("claimed %s with reference %+v, want %+v", o, d.Ref, ref)
		}
		m.held = append(m.held, &held{relay: by, d: d})
	}
	for _, o := range must {
		if len(got) < r.Budget && o.state != "sending" {
			t.Fatalf("claimed %s, and left %s", list(got), o)
		}
	}
}

func equal(a, b *int64) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }

func list(ds []*outbox.Delivery) string {
	var names []string
	for _, d := range ds {
		names = append(names, fmt.Sprintf("e%d>%s/%s", number(d.Event.ID), d.Sync, d.Key))
	}
	return "[" + strings.Join(names, " ") + "]"
}

// What a relay says of an attempt.
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
	{}, // release
}

// recordSome records something about a claim, and perhaps about the relay's
// other claims of that sync with it.
func (m *model) recordSome(t *rapid.T) {
	news := slices.DeleteFunc(slices.Clone(m.held), func(h *held) bool { return h.result != nil })
	if len(news) == 0 {
		t.SkipNow() // nothing is claimed
	}
	batch := []*held{pick(t, "claim", news)}
	if rapid.Bool().Draw(t, "batch") {
		for _, h := range news {
			if h.relay.name == batch[0].relay.name && h.d.Sync == batch[0].d.Sync &&
				!slices.ContainsFunc(batch, func(b *held) bool { return b.d.Key == h.d.Key }) {
				batch = append(batch, h)
			}
		}
	}
	for _, h := range batch {
		r := pick(t, "result", results)
		r.Delivery = h.d
		if r.Ref != nil {
			r.Ref = &outbox.Ref{ExternalID: fmt.Sprint("x", m.step)}
		}
		h.result = &r
	}
	m.record(t, batch, pick(t, "budget", []int{0, 3}))
}

// recordTwice gives a result again, as after a lost answer.
func (m *model) recordTwice(t *rapid.T) {
	old := slices.DeleteFunc(slices.Clone(m.held), func(h *held) bool { return h.result == nil })
	if len(old) == 0 {
		t.SkipNow() // nothing is recorded
	}
	m.record(t, []*held{pick(t, "recorded", old)}, pick(t, "budget", []int{0, 3}))
}

func (m *model) record(t *rapid.T, batch []*held, budget int) {
	by := batch[0].relay
	next := outbox.ClaimRequest{Sync: batch[0].d.Sync, From: m.passed(t), Budget: budget, Lease: forever}
	given := make([]outbox.Result, len(batch))
	next.Keys = by.asleep[next.Sync]
	wanted, failed := slices.Clone(next.Keys), []string(nil)
	for i, h := range batch {
		given[i] = *h.result
		if h.result.Outcome.Finished() || h.result.Failed {
			wanted = append(wanted, h.d.Key)
		}
		if h.result.Failed {
			failed = append(failed, h.d.Key)
		}
	}
	var got outbox.Recorded
	within(t, by.name+" records", func(ctx context.Context) error {
		got = by.store.Record(ctx, given, next)
		return got.Err
	})
	m.recordMoved(t, by, given, &got, next)
	for i, h := range batch {
		done, lost := m.recorded(h)
		m.say("%s records %q (failed %t) of %s: done %t, lost %t", by.name, h.result.Outcome, h.result.Failed, h, got.Done[i], got.Lost[i])
		if got.Done[i] != done || got.Lost[i] != lost {
			t.Fatalf("recorded: done %t, lost %t; want %t, %t", got.Done[i], got.Lost[i], done, lost)
		}
	}
	m.notice(t)
	m.sleep(t, by, next.Sync, got.Claims.Asleep, append(failed, next.Keys...))
	m.nothingLeftToSupersede(t, next.Sync, failed)
	if len(wanted) > 0 {
		m.say("and goes on with %s", list(got.Claims.Deliveries))
		must := m.next(next, wanted)
		m.take(t, by, next, got.Claims.Deliveries, must, must)
	}
}

// recordMoved gives again what was left, as a relay does: a row that was changed
// since the claim is found at the second try.
func (m *model) recordMoved(t *rapid.T, by *relay, given []outbox.Result, got *outbox.Recorded, next outbox.ClaimRequest) {
	var left []outbox.Result
	var places []int
	for i := range given {
		if !got.Done[i] && !got.Lost[i] {
			left, places = append(left, given[i]), append(places, i)
		}
	}
	if len(left) == 0 {
		return
	}
	next.Budget -= len(got.Claims.Deliveries)
	within(t, by.name+" records again", func(ctx context.Context) error {
		again := by.store.Record(ctx, left, next)
		for n, i := range places {
			got.Done[i], got.Lost[i] = again.Done[n], again.Lost[n]
		}
		got.Claims.Deliveries = append(got.Claims.Deliveries, again.Claims.Deliveries...)
		got.Claims.Asleep = append(got.Claims.Asleep, again.Claims.Asleep...)
		return again.Err
	})
}

// sleep checks the keys that a relay is to give again: the open operator holds
// their first delivery. If that is failed, he may also hold it against being
// removed only, or nobody tried to supersede it, since the recording was of
// another one, and given twice. Should the relay crash, the slow check finds
// those that are parked.
func (m *model) sleep(t *rapid.T, by *relay, sync string, asleep, tried []string) {
	slices.Sort(asleep)
	by.asleep[sync] = slices.Compact(asleep)
	for _, key := range by.asleep[sync] {
		l := line{sync, key}
		first := m.of(l)[0]
		if !first.locked && (first.state != "failed" || slices.Contains(tried, key) && !first.shared) {
			t.Fatalf("%s could not be gone on with, and nobody has locked %s", l, first)
		}
		if first.locked {
			m.owed[l] = true
		}
	}
}

// recorded applies a result to the model, if its claim is still there.
func (m *model) recorded(h *held) (done, lost bool) {
	r, e := h.result, m.events[number(h.d.Event.ID)]
	i := slices.IndexFunc(m.open, func(o *open) bool { return o.sync == h.d.Sync && int64(o.place) == h.d.Place })
	var o *open
	if i >= 0 {
		o = m.open[i]
	}
	row := entry{sync: h.d.Sync, event: e.n, outcome: string(r.Outcome), revision: h.d.Revision, claim: h.d.Claim, relay: true}
	switch {
	case o != nil && o.claim == h.d.Claim:
		if !o.free() {
			return false, false
		}
	case slices.ContainsFunc(m.log, func(l entry) bool {
		return l.relay && l.claim == h.d.Claim && l.event == e.n && l.outcome != "lease_lost"
	}):
		return true, false
	case !r.Attempt:
		return false, true
	default:
		if o != nil && o.free() {
			least := 0
			if o.state == "sending" {
				least = 1
			}
			o.crashes = max(o.crashes-1, least)
		}
		row.outcome = "lease_lost"
		m.log = append(m.log, row)
		return false, true
	}
	if r.Attempt {
		row.attempt = o.total + 1
		o.attempts, o.total = o.attempts+1, o.total+1
	}
	if r.Charge {
		o.charged++
	}
	if r.Outcome != "" {
		m.log = append(m.log, row)
	}
	if r.Outcome.Finished() {
		m.remove(o)
		if old, known := m.refs[o.line]; r.Ref != nil {
			newer := e.seq >= old.seq
			if old.version != nil && e.version != nil {
				newer = *e.version >= *old.version
			}
			if !known || newer {
				m.refs[o.line] = reference{r.Ref.ExternalID, e.version, e.seq}
			}
		}
		return true, false
	}
	o.claim, o.expired, o.crashes = "", false, max(o.crashes-1, 0)
	o.later = r.Delay > 0
	switch {
	case r.Failed:
		o.state = "failed"
	case o.attempts > 0:
		o.state = "retry"
	default:
		o.state = "waiting"
	}
	return true, false
}

// crash makes a relay forget its claims.
func (m *model) crash(t *rapid.T) {
	by := m.relay(t)
	m.say("%s crashes", by.name)
	m.held = slices.DeleteFunc(m.held, func(h *held) bool { return h.relay.name == by.name })
	clear(by.asleep)
}

// recheck runs the slow check of parked rows over all of a sync.
func (m *model) recheck(t *rapid.T) {
	by, sync, page := m.relay(t), pick(t, "sync", syncs), pick(t, "page", []int{1, 100})
	m.say("%s rechecks the parked rows of %s", by.name, sync)
	for from, more := (outbox.ParkedCursor{}), true; more; more = from != (outbox.ParkedCursor{}) {
		within(t, by.name+" rechecks", func(ctx context.Context) (err error) {
			_, from, err = by.store.RecheckParked(ctx, sync, from, page)
			return err
		})
	}
	for l := range m.owed {
		if l.sync == sync && (m.operator == nil || !m.operator.keys[l.key]) {
			delete(m.owed, l)
		}
	}
}

// Time -------------------------------------------------------------------

func (m *model) expire(t *rapid.T) {
	sending := m.filter(func(o *open) bool { return o.state == "sending" && !o.expired && !o.locked })
	if len(sending) == 0 {
		t.SkipNow() // nothing is being sent
	}
	m.expireOne(t, pick(t, "sending", sending))
}

func (m *model) expireOne(t *rapid.T, o *open) {
	m.say("the lease of %s ends", o)
	m.sql(t, `UPDATE outbox.delivery SET lease_until = clock_timestamp() - interval '1 second' WHERE sync = $1 AND key = $2 AND event_seq = $3`, o.sync, o.key, o.place)
	o.expired = true
}

// age makes what is due older than a walk would come back to.
func (m *model) age(t *rapid.T) {
	m.say("an hour passes")
	m.sql(t, `
UPDATE outbox.delivery AS d SET due_at = d.due_at - interval '1 hour'
  FROM (SELECT ctid FROM outbox.delivery WHERE due_at < clock_timestamp() FOR UPDATE SKIP LOCKED) AS f
 WHERE d.ctid = f.ctid`)
}

func (m *model) becomeDue(t *rapid.T) {
	waiting := m.filter(func(o *open) bool { return o.later && !o.locked })
	if len(waiting) == 0 {
		t.SkipNow() // nothing waits for its time
	}
	m.becomeDueOne(t, pick(t, "waiting", waiting))
}

func (m *model) becomeDueOne(t *rapid.T, o *open) {
	m.say("%s is due", o)
	m.sql(t, `UPDATE outbox.delivery SET due_at = clock_timestamp() WHERE sync = $1 AND key = $2 AND event_seq = $3`, o.sync, o.key, o.place)
	o.later = false
}

// Holds ------------------------------------------------------------------

// freeSyncs are those whose hold no operator's open transaction has changed.
func (m *model) freeSyncs(t *rapid.T) []string {
	free := slices.DeleteFunc(slices.Clone(syncs), func(s string) bool { return m.operator != nil && m.operator.syncs[s] })
	if len(free) == 0 {
		t.SkipNow() // the operator has the holds of both syncs
	}
	return free
}

// anyHold does one of the things that a relay does about holds.
func (m *model) anyHold(t *rapid.T) {
	free := m.freeSyncs(t)
	pick(t, "hold", []func(*rapid.T, []string){m.hold, m.holdEnds, m.probe, m.lift, m.lift, m.endHolds})(t, free)
}

func (m *model) hold(t *rapid.T, free []string) {
	sync := pick(t, "sync", free)
	by, kind := m.relay(t), pick(t, "kind", []outbox.HoldKind{outbox.HoldAuth, outbox.HoldBreaker, outbox.HoldThrottle})
	m.say("%s holds %s by %s", by.name, sync, kind)
	within(t, by.name+" holds", func(ctx context.Context) error { return by.store.Hold(ctx, sync, kind, forever, "r") })
	m.holds[sync][kind] = &hold{}
	m.untriedWait(t, sync)
}

// untriedWait leaves the earlier probes with deliveries that were not tried yet
// out of the model: when they are due is a matter of milliseconds.
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

// probe asks for a probe and sends it.
func (m *model) probe(t *rapid.T, free []string) {
	sync, by := pick(t, "sync", free), m.relay(t)
	granted, again := false, false
	for kind, h := range m.holds[sync] {
		granted = granted || h.due && (kind == outbox.HoldAuth || kind == outbox.HoldBreaker)
		again = again || !h.due
	}
	granted = granted && !again
	var probe outbox.Probe
	within(t, by.name+" probes", func(ctx context.Context) (err error) {
		probe, err = by.store.Probe(ctx, sync, forever)
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
	m.claimOne(t, by, outbox.ClaimRequest{Sync: sync, Budget: 1, Page: 100, Lease: forever, Probe: true})
	if rapid.Bool().Draw(t, "again") {
		within(t, by.name+" probes again", func(ctx context.Context) error { return by.store.ProbeAgain(ctx, sync, probe.Number, forever, true) })
		m.untriedWait(t, sync)
	}
}

func (m *model) lift(t *rapid.T, free []string) {
	sync, by := pick(t, "sync", free), m.relay(t)
	m.say("%s lifts the holds of %s", by.name, sync)
	within(t, by.name+" lifts", func(ctx context.Context) error { return by.store.Lift(ctx, sync) })
	delete(m.holds[sync], outbox.HoldAuth)
	delete(m.holds[sync], outbox.HoldBreaker)
}

// endHolds does what must not wait even for an operator who is changing the
// sync's holds: it leaves them for the next time.
func (m *model) endHolds(t *rapid.T, _ []string) {
	sync, by := pick(t, "sync", syncs), m.relay(t)
	m.say("%s removes ended holds of %s", by.name, sync)
	within(t, by.name+" removes ended holds", func(ctx context.Context) error { return by.store.EndHolds(ctx, sync, forever) })
	within(t, by.name+" notes a delivery", func(ctx context.Context) error { return by.store.NoteDelivery(ctx, sync, time.Now()) })
	if h := m.holds[sync][outbox.HoldThrottle]; h != nil && h.due && (m.operator == nil || !m.operator.syncs[sync]) {
		delete(m.holds[sync], outbox.HoldThrottle)
	}
}

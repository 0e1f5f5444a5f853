package relay

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/hms-mkt/lockstep/outbox"
)

// destinations bound the deliveries in flight to each destination of a sync. One that
// does not answer leaves slots for the others. The scope is the destination's name. A
// delivery that may not start yet is parked: it waits in order, under its claim. When
// too many are parked, further ones are given back, and no lanes of that destination
// are claimed until half of the parked ones have started.
//
// It has no goroutines, no clock and no database: its caller says what happened and
// when. It is not safe for concurrent use.
type destinations struct {
	perDestination int     // most in flight to one; 0 is no bound of its own
	rate           float64 // attempts per second to one; 0 is no limit

	byScope     map[string]*destination
	open        int             // of these, how many are not on hold
	overflowing int             // of these, how many have had deliveries given back for lack of room, and no lanes claimed since
	parked      int             // deliveries that wait, to all
	bytes       int             // of their payloads and bodies
	returned    map[string]bool // scopes that lanes were given back into since they were asked for
}

// destination is what is known of one.
type destination struct {
	inFlight   int
	parked     []work
	limit      int           // most in flight since a hold has ended, one more with each success; 0 without a bound
	tokens     *rate.Limiter // nil without a limit
	seen       time.Time     // when something of it was claimed last
	hold       *outbox.Hold  // nil if it is not on hold
	heldAt     time.Duration // when that was known, since the process started; claims asked for earlier do not know it
	resumeAt   int           // no lanes of it are claimed while more than these are parked; -1 otherwise
	parkLimit  int           // how many may be parked: twice as many each time they run out although some were given back
	overflowed bool          // some were given back for lack of room since that changed
}

const (
	// forgetAfter is how long a destination without work keeps others from more than
	// their share of the slots. With half, a destination with one event a minute finds
	// all slots taken by a dead one more often. With double, a busy destination waits
	// longer for the rest.
	forgetAfter = time.Minute

	// busyOneIn is the share of the slots that one destination may have while others
	// have work. With one in four, a busy destination next to an idle one has half the
	// throughput. With three in four, one that does not answer leaves the others a
	// quarter.
	busyOneIn = 2

	// leastParked is how many may be parked for a destination at first. With half, a
	// destination that answers in a millisecond waits for claims until the number has
	// grown. With double, deliveries to one that answers in seconds reach the end of
	// their lease.
	leastParked = 8

	// mostParked is how far that number grows. Half slows down the fastest receivers.
	// With double, two of them take the whole capacity.
	mostParked = maxPrefetch / 4

	// mostDestinations is how many are remembered without work under way. With half
	// of it slow starts and rates are forgotten earlier where there are many; twice
	// of it costs memory.
	mostDestinations = 10_000
)

// get is the destination get a scope.
func (d *destinations) get(now time.Time, scope string) *destination {
	x := d.byScope[scope]
	if x == nil {
		if len(d.byScope) >= mostDestinations {
			d.forget(now, 0)
		}
		x = &destination{resumeAt: -1, parkLimit: leastParked}
		if d.byScope == nil {
			d.byScope = map[string]*destination{}
		}
		d.byScope[scope] = x
		d.open++
	}
	return x
}

// configure sets the bounds, also of the destinations that are there.
func (d *destinations) configure(each int, perSecond float64) {
	if d.rate != perSecond {
		for _, x := range d.byScope {
			x.tokens = nil
		}
	}
	d.perDestination, d.rate = each, perSecond
}

// allowed is how many deliveries to x may be in flight: its share of the slots while
// other destinations have work, and otherwise all but one, for the next destination.
func (d *destinations) allowed(x *destination, slots int) int {
	most := slots - 1
	if d.open > 1 {
		most = slots / busyOneIn
	}
	most = max(1, most)
	if d.perDestination > 0 {
		most = min(most, d.perDestination)
	}
	if x.limit > 0 {
		most = min(most, x.limit)
	}
	return most
}

// take starts a delivery to x, if one may start now.
func (d *destinations) take(now time.Time, x *destination, slots int) bool {
	if x.hold != nil || x.inFlight >= d.allowed(x, slots) {
		return false
	}
	if d.rate > 0 {
		if x.tokens == nil {
			x.tokens = rate.NewLimiter(rate.Limit(d.rate), max(1, int(d.rate/10)))
		}
		if !x.tokens.AllowN(now, 1) {
			return false
		}
	}
	x.inFlight++
	return true
}

// placement is what becomes of a delivery.
type placement int

const (
	startsNow  placement = iota
	isParked             // parked
	isReturned           // given back: the destination is on hold, or too many wait for it
)

// begin places a delivery that was claimed. slots are those that the sync can count
// on. A probe starts in spite of a hold.
func (d *destinations) begin(now time.Time, w work, slots int) placement {
	x := d.get(now, w.to)
	x.seen = now
	switch {
	case w.probe.granted():
		x.inFlight++
		return startsNow
	case x.hold != nil:
		return isReturned
	case len(x.parked) == 0 && d.take(now, x, slots):
		return startsNow
	case len(x.parked) >= x.parkLimit || d.parked >= maxPrefetch || d.bytes+w.size() > maxPrefetchBytes:
		if x.overflowed = true; x.resumeAt < 0 {
			x.resumeAt = len(x.parked) / 2
			d.overflowing++
		}
		return isReturned
	}
	x.parked = append(x.parked, w)
	d.parked++
	d.bytes += w.size()
	return isParked
}

// ended notes that an attempt is over, and returns the deliveries that may start
// for it.
func (d *destinations) ended(now time.Time, scope string, accepted bool, slots int) []work {
	x := d.get(now, scope)
	x.inFlight = max(0, x.inFlight-1)
	if accepted && x.limit > 0 {
		if x.limit++; x.limit >= slots {
			x.limit = 0
		}
	}
	return d.start(now, x, slots)
}

// start returns the parked deliveries to x that may start now.
func (d *destinations) start(now time.Time, x *destination, slots int) (starting []work) {
	for len(x.parked) > 0 && d.take(now, x, slots) {
		starting = append(starting, d.unpark(x, 1)...)
	}
	idle := len(x.parked) == 0 && x.inFlight < d.allowed(x, slots)
	if x.resumeAt >= 0 && len(x.parked) <= x.resumeAt && (len(x.parked) > 0 || idle) {
		x.resumeAt = -1
		d.overflowing--
	}
	if idle && x.overflowed {
		x.parkLimit, x.overflowed = min(2*x.parkLimit, mostParked), false
	}
	return starting
}

// unpark takes the first n out.
func (d *destinations) unpark(x *destination, n int) []work {
	out := append([]work(nil), x.parked[:n]...)
	clear(x.parked[:n]) // hold no payload
	if x.parked = x.parked[n:]; len(x.parked) == 0 {
		x.parked = nil
	}
	d.parked -= n
	for _, w := range out {
		d.bytes -= w.size()
	}
	return out
}

// ready returns the parked deliveries that may start by now, and those whose lease
// is too short for an attempt, which takes so long.
func (d *destinations) ready(now time.Time, slots int, attempt time.Duration) (starting, late []work) {
	if d.parked == 0 && d.overflowing == 0 {
		return nil, nil
	}
	for _, x := range d.byScope {
		n := 0
		for n < len(x.parked) && x.parked[n].leaseEnd.Sub(now) < attempt {
			n++
		}
		if n > 0 {
			late = append(late, d.unpark(x, n)...)
			x.parkLimit = leastParked
		}
		starting = append(starting, d.start(now, x, slots)...)
	}
	return starting, late
}

// all takes out everything that is parked.
func (d *destinations) all() (parked []work) {
	for _, x := range d.byScope {
		parked = append(parked, d.unpark(x, len(x.parked))...)
	}
	return parked
}

// busy are the scopes whose lanes are not to be claimed for now.
func (d *destinations) busy() (scopes []string) {
	if d.overflowing == 0 {
		return nil
	}
	for scope, x := range d.byScope {
		if x.resumeAt >= 0 {
			scopes = append(scopes, scope)
		}
	}
	return scopes
}

// held reports whether a scope is on hold.
func (d *destinations) held(scope string) bool {
	x := d.byScope[scope]
	return x != nil && x.hold != nil
}

// heldFirmly reports whether a scope has a hold that no probe ends, or one whose kind is not known yet.
func (d *destinations) heldFirmly(scope string) bool {
	x := d.byScope[scope]
	return x != nil && x.hold != nil && x.hold.Kind != outbox.HoldAuth && x.hold.Kind != outbox.HoldBreaker
}

// hold notes that a scope is on hold, as was known at the given time, and returns what
// was parked for it, to be given back. It reports whether that is new. A hold without
// a kind is one of which only the scope is known yet.
func (d *destinations) hold(now time.Time, h outbox.Hold, at time.Duration) (fresh bool, parked []work) {
	x := d.get(now, h.Scope)
	if x.hold == nil {
		d.open--
	} else if h.Kind == "" {
		h = *x.hold
	}
	fresh = x.hold == nil || x.hold.Kind != h.Kind
	x.hold, x.heldAt = &h, max(x.heldAt, at)
	return fresh, d.unpark(x, len(x.parked))
}

// settled sets the time from which on claims know of a hold.
func (d *destinations) settled(scope string, at time.Duration) {
	if x := d.byScope[scope]; x != nil && x.hold != nil {
		x.heldAt = at
	}
}

// release ends the holds that a claim, asked for at the given time, did not find
// any more, and returns them. A destination that was at its limit starts with one
// in flight.
func (d *destinations) release(asked time.Duration, held []string) (ended []outbox.Hold) {
	if len(d.byScope) == d.open {
		return nil
	}
	still := make(map[string]bool, len(held))
	for _, scope := range held {
		still[scope] = true
	}
	for scope, x := range d.byScope {
		if x.hold == nil || still[scope] || x.heldAt >= asked {
			continue
		}
		ended = append(ended, *x.hold)
		switch x.hold.Kind {
		case outbox.HoldBreaker, outbox.HoldThrottle, outbox.HoldWindow:
			x.limit = 1
		case outbox.HoldOperator, outbox.HoldBackfill, outbox.HoldAuth: // the receiver was not at its limit
		}
		x.hold, x.heldAt = nil, 0
		d.open++
	}
	return ended
}

// holds are those in force.
func (d *destinations) holds() (holds []outbox.Hold) {
	for _, x := range d.byScope {
		if x.hold != nil {
			holds = append(holds, *x.hold)
		}
	}
	return holds
}

// noteReturned remembers that a lane was given back into a scope.
func (d *destinations) noteReturned(scope string) {
	if d.returned == nil {
		d.returned = map[string]bool{}
	}
	if len(d.returned) < mostDestinations {
		d.returned[scope] = true
	}
}

// forget drops the destinations without work that were not seen for so long.
func (d *destinations) forget(now time.Time, unseen time.Duration) {
	for scope, x := range d.byScope {
		switch {
		case x.inFlight > 0, len(x.parked) > 0, x.hold != nil, now.Sub(x.seen) < unseen:
		case unseen > 0 && x.tokens != nil && x.tokens.TokensAt(now) < float64(x.tokens.Burst()):
		default:
			if x.resumeAt >= 0 {
				d.overflowing--
			}
			delete(d.byScope, scope)
			d.open--
		}
	}
}

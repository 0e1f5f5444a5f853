package relay

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/hms-mkt/lockstep/outbox"
)

// destinations bound the deliveries in flight to each destination of a sync. A destination
// that does not answer leaves slots for the others. The name of a destination is its scope.
//
// A delivery that may not start yet waits in memory: its relay keeps the claim, and
// deliveries start in their order. If too many wait, further ones are released, and no
// lanes of the destination are claimed until half of the waiting ones have started.
//
// destinations has no goroutines, no clock and no database: its caller tells it all events
// and their times. It is not safe for concurrent use.
type destinations struct {
	perDestination int     // most deliveries in flight to one destination; 0 means no limit
	rate           float64 // attempts per second to one destination; 0 means no limit

	byScope     map[string]*destination
	open        int             // of these, how many are not on hold
	overflowing int             // of these, how many have resumeAt set
	waiting     int             // waiting deliveries of all destinations
	bytes       int             // size of the payloads and bodies of waiting deliveries
	released    map[string]bool // scopes of lanes that were released since the last request
}

// destination is the state of one destination.
type destination struct {
	inFlight   int
	waiting    []work
	limit      int           // most in flight after a hold has ended; each success adds one; 0 means no limit
	tokens     *rate.Limiter // nil without a limit
	seen       time.Time     // when a delivery to it was last claimed
	hold       *outbox.Hold  // nil if it is not on hold
	heldAt     time.Duration // when the hold became known, since processStart; a claim that began earlier may not see it
	resumeAt   int           // while more deliveries than this wait, no lanes of it are claimed; -1: lanes are claimed
	waitLimit  int           // how many deliveries may wait; doubled if none wait any more after some were released
	overflowed bool          // deliveries were released since waitLimit changed, because too many waited
}

const (
	// forgetAfter is how long a destination without work is remembered. Until then, no other
	// destination gets more than its share of the slots. With half, a destination with one
	// event a minute more often finds all slots used by one that does not answer. With
	// double, a busy destination waits longer before it may use more slots.
	forgetAfter = time.Minute

	// busyOneIn is the share of the slots that one destination may have while others
	// have work. With one in four, a busy destination next to an idle one has half the
	// throughput. With three in four, one that does not answer leaves the others a
	// quarter.
	busyOneIn = 2

	// leastWaiting is how many deliveries may wait for a destination at first. With half, a
	// destination that answers in a millisecond waits for claims until the number has
	// grown. With double, deliveries to one that answers in seconds wait until their lease
	// ends.
	leastWaiting = 8

	// mostWaiting is how far that number grows. With half, the fastest receivers get less.
	// With double, two of them use the whole capacity.
	mostWaiting = maxPrefetch / 4

	// mostDestinations is how many destinations without work are remembered. With half,
	// limits and rates are forgotten earlier if there are many destinations. Double costs
	// memory.
	mostDestinations = 10_000
)

// get returns the destination of a scope, and adds it if it is not known.
func (d *destinations) get(now time.Time, scope string) *destination {
	x := d.byScope[scope]
	if x == nil {
		if len(d.byScope) >= mostDestinations {
			d.forget(now, 0)
		}
		x = &destination{resumeAt: -1, waitLimit: leastWaiting}
		if d.byScope == nil {
			d.byScope = map[string]*destination{}
		}
		d.byScope[scope] = x
		d.open++
	}
	return x
}

// configure sets the limits of all destinations, present and future.
func (d *destinations) configure(each int, perSecond float64) {
	if d.rate != perSecond {
		for _, x := range d.byScope {
			x.tokens = nil
		}
	}
	d.perDestination, d.rate = each, perSecond
}

// allowed is how many deliveries to x may be in flight. While other destinations have work,
// it is the share of x. Otherwise it is all slots but one, which is kept for the next
// destination.
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

// placement says what happens to a delivery now.
type placement int

const (
	startsNow  placement = iota // it is sent
	isWaiting                   // it waits in memory
	isReleased                  // it is released: the destination is on hold, or too many wait for it
)

// begin decides about a claimed delivery. slots is how many slots the sync can use. A probe
// starts in spite of a hold.
func (d *destinations) begin(now time.Time, w work, slots int) placement {
	x := d.get(now, w.to)
	x.seen = now
	switch {
	case w.probe.granted():
		x.inFlight++
		return startsNow
	case x.hold != nil:
		return isReleased
	case len(x.waiting) == 0 && d.take(now, x, slots):
		return startsNow
	case len(x.waiting) >= x.waitLimit || d.waiting >= maxPrefetch || d.bytes+w.size() > maxPrefetchBytes:
		if x.overflowed = true; x.resumeAt < 0 {
			x.resumeAt = len(x.waiting) / 2
			d.overflowing++
		}
		return isReleased
	}
	x.waiting = append(x.waiting, w)
	d.waiting++
	d.bytes += w.size()
	return isWaiting
}

// ended notes that an attempt has ended, and returns the waiting deliveries that may start
// now.
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

// start returns the waiting deliveries to x that may start now.
func (d *destinations) start(now time.Time, x *destination, slots int) (starting []work) {
	for len(x.waiting) > 0 && d.take(now, x, slots) {
		starting = append(starting, d.takeWaiting(x, 1)...)
	}
	idle := len(x.waiting) == 0 && x.inFlight < d.allowed(x, slots)
	if x.resumeAt >= 0 && len(x.waiting) <= x.resumeAt && (len(x.waiting) > 0 || idle) {
		x.resumeAt = -1
		d.overflowing--
	}
	if idle && x.overflowed {
		x.waitLimit, x.overflowed = min(2*x.waitLimit, mostWaiting), false
	}
	return starting
}

// takeWaiting removes the first n waiting deliveries of x and returns them.
func (d *destinations) takeWaiting(x *destination, n int) []work {
	out := append([]work(nil), x.waiting[:n]...)
	clear(x.waiting[:n]) // keep no payload in memory
	if x.waiting = x.waiting[n:]; len(x.waiting) == 0 {
		x.waiting = nil
	}
	d.waiting -= n
	for _, w := range out {
		d.bytes -= w.size()
	}
	return out
}

// ready returns the waiting deliveries that may start now, and those whose lease is too
// short for an attempt. attempt is the longest duration of an attempt.
func (d *destinations) ready(now time.Time, slots int, attempt time.Duration) (starting, late []work) {
	if d.waiting == 0 && d.overflowing == 0 {
		return nil, nil
	}
	for _, x := range d.byScope {
		n := 0
		for n < len(x.waiting) && x.waiting[n].leaseEnd.Sub(now) < attempt {
			n++
		}
		if n > 0 {
			late = append(late, d.takeWaiting(x, n)...)
			x.waitLimit = leastWaiting
		}
		starting = append(starting, d.start(now, x, slots)...)
	}
	return starting, late
}

// all removes all waiting deliveries and returns them.
func (d *destinations) all() (waiting []work) {
	for _, x := range d.byScope {
		waiting = append(waiting, d.takeWaiting(x, len(x.waiting))...)
	}
	return waiting
}

// busy returns the scopes whose lanes must not be claimed now.
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

// heldFirmly reports whether a scope has a hold that a probe cannot end, or a hold whose
// kind is not known yet.
func (d *destinations) heldFirmly(scope string) bool {
	x := d.byScope[scope]
	return x != nil && x.hold != nil && x.hold.Kind != outbox.HoldAuth && x.hold.Kind != outbox.HoldBreaker
}

// hold notes that a scope is on hold since the time at, or longer. It reports whether the
// hold is new, and returns the waiting deliveries of the scope: the caller releases them.
// A hold without a kind is one of which only the scope is known yet.
func (d *destinations) hold(now time.Time, h outbox.Hold, at time.Duration) (isNew bool, waiting []work) {
	x := d.get(now, h.Scope)
	if x.hold == nil {
		d.open--
	} else if h.Kind == "" {
		h = *x.hold
	}
	isNew = x.hold == nil || x.hold.Kind != h.Kind
	x.hold, x.heldAt = &h, max(x.heldAt, at)
	return isNew, d.takeWaiting(x, len(x.waiting))
}

// settled sets the time from which on claims see a hold.
func (d *destinations) settled(scope string, at time.Duration) {
	if x := d.byScope[scope]; x != nil && x.hold != nil {
		x.heldAt = at
	}
}

// release ends holds after a claim that began at the time asked, and returns them. held are
// the scopes that the claim found on hold: all other holds have ended. If the receiver was
// at its limit, the destination starts with one delivery in flight.
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

// holds returns the holds in force.
func (d *destinations) holds() (holds []outbox.Hold) {
	for _, x := range d.byScope {
		if x.hold != nil {
			holds = append(holds, *x.hold)
		}
	}
	return holds
}

// noteReleased remembers the scope of a lane that was released.
func (d *destinations) noteReleased(scope string) {
	if d.released == nil {
		d.released = map[string]bool{}
	}
	if len(d.released) < mostDestinations {
		d.released[scope] = true
	}
}

// forget removes the destinations without work that were not seen for the duration unseen.
func (d *destinations) forget(now time.Time, unseen time.Duration) {
	for scope, x := range d.byScope {
		switch {
		case x.inFlight > 0, len(x.waiting) > 0, x.hold != nil, now.Sub(x.seen) < unseen:
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

package relay

import (
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// schedule decides how many lanes of a sync are claimed next, of which kind, and for how
// long a lane is kept. It has no goroutines, no clock and no database: its caller tells it
// all events and their times. It is not safe for concurrent use.
type schedule struct {
	at       time.Time // when the pace was last measured
	recorded int64     // deliveries recorded by then
	ahead    float64   // lanes to claim beyond those in flight

	asked         time.Time // time of the last claim
	othersWait    bool      // by the last claim, other lanes or keys wait
	unopened      bool      // by the last claim, keys without a lane wait
	extraForLanes bool      // of the next odd number of lanes, the extra one is an existing lane
	credit        float64   // lanes for the latest deliveries that may be claimed before older ones
}

// load is the current work of a sync.
type load struct {
	slots    int   // deliveries that may be in flight now
	starting bool  // a hold has just ended: nothing is claimed ahead
	bounded  bool  // the sync has a bound of deliveries in flight: nothing is claimed ahead
	claimed  int   // lanes claimed and not yet released
	queued   int   // of these, deliveries that wait for a sender
	recorded int64 // deliveries recorded since the start
	payload  int64 // recent average size of a payload, in bytes
	tokens   int   // attempts that the rate limit allows now; -1 without a limit
}

const (
	// prefetchFor is the time for which the queue has work while the next claim runs. With
	// half, senders are idle while a slow database answers. With double, a killed relay has
	// twice as many unsent deliveries, which wait for the end of their lease.
	prefetchFor = 50 * time.Millisecond

	// maxPrefetch bounds the deliveries that are claimed ahead. With half, receivers that
	// answer at once get less. With double, a killed relay has more unsent deliveries.
	maxPrefetch = 1000

	// maxPrefetchBytes bounds the size of their payloads. With half, four events of a
	// megabyte are claimed at a time. With double, they take twice the memory.
	maxPrefetchBytes = 8 << 20

	// smallClaimWait is the shortest time between claims that would take less than a
	// quarter of the capacity, while senders have work. With half, there are twice as
	// many small claims. With double, senders of a fast receiver are idle.
	smallClaimWait = 20 * time.Millisecond

	// turn is how long a lane is kept while others wait. With half, lanes with many
	// events are released and claimed twice as often, which costs the database. With
	// double, a new key waits twice as long where more keys are busy than there are
	// workers.
	turn = 250 * time.Millisecond

	// latestOneIn is the share of lanes that are claimed for the latest deliveries while
	// older ones wait: one in four. With one in eight, half as many new hearings are
	// sent at once after an outage. With one in two, the backlog takes 50 % longer.
	latestOneIn = 4

	// newKeysOneIn is the share of lanes that are claimed for keys without a lane, while
	// such keys wait: one in two. The others are existing lanes. With one in four, new keys
	// wait behind retries and busy keys. With three in four, retries and busy keys wait
	// behind new keys.
	newKeysOneIn = 2
)

// capacity is how many lanes the sync should have claimed at the same time.
func (s *schedule) capacity(now time.Time, l load) int {
	if passed := now.Sub(s.at); passed > smallClaimWait {
		measured := float64(l.recorded-s.recorded) * float64(prefetchFor) / float64(passed)
		s.ahead = max(measured, s.ahead*3/4) // it falls slowly, because results are recorded in bursts
		s.at, s.recorded = now, l.recorded
	}
	ahead := min(int(s.ahead), maxPrefetch)
	if l.payload > 0 {
		ahead = min(ahead, int(maxPrefetchBytes/l.payload))
	}
	if l.slots == 0 || l.starting || l.bounded {
		ahead = 0
	}
	return l.slots + ahead
}

// next sets the numbers of lanes in the next request. A capacity of 0 means none now.
func (s *schedule) next(now time.Time, l load, r *outbox.ClaimRequest) {
	capacity := s.capacity(now, l)
	free := capacity - l.claimed
	if free < capacity/4 && l.queued > 0 && now.Sub(s.asked) < smallClaimWait {
		free = 0
	}
	if l.tokens >= 0 {
		free = min(free, l.tokens)
	}
	r.Capacity = max(free, 0)
	r.Lanes, r.Latest = r.Capacity, 0
	if s.unopened {
		if r.Lanes = r.Capacity / newKeysOneIn; r.Capacity%newKeysOneIn != 0 && s.extraForLanes {
			r.Lanes++
		}
		r.Latest = min(r.Capacity, int(s.credit))
	}
}

// answered learns from the answer to a request that next has filled in.
func (s *schedule) answered(now time.Time, r outbox.ClaimRequest, c outbox.Claims) {
	s.asked = now
	if r.Capacity%newKeysOneIn != 0 {
		s.extraForLanes = !s.extraForLanes
	}
	s.unopened = c.Unopened
	s.othersWait = c.Unopened || c.Due
	claimed := len(c.Deliveries)
	given := min(r.Latest, claimed)
	s.credit = min(s.credit-float64(given)+float64(claimed)/latestOneIn, float64(r.Capacity)/latestOneIn+1)
	if claimed < r.Capacity { // there were too few older ones
		s.credit = max(s.credit, 1)
	}
}

// stays reports whether the relay keeps a lane for its next delivery. claimed is when the
// lane was claimed, and took is how long the delivery took that was just finished.
func (s *schedule) stays(now, claimed time.Time, took time.Duration) bool {
	return !s.othersWait || now.Sub(claimed)+took <= turn
}

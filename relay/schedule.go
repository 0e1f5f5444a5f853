package relay

import (
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// schedule decides how many lanes of a sync are claimed next, of which kind, and
// for how long a lane is kept. It has no goroutines, no clock and no database: its
// caller says what happened and when. It is not safe for concurrent use.
type schedule struct {
	at       time.Time // when the pace was last measured
	recorded int64     // deliveries recorded by then
	ahead    float64   // lanes to claim beyond those in flight

	asked         time.Time // when lanes were last asked for
	othersWait    bool      // the last answer: others wait for a lane to be given back
	unopened      bool      // the last answer: keys wait that have no lane yet
	extraForLanes bool      // where the number of lanes to claim is odd: the extra one is a lane that exists
	credit        float64   // lanes that the latest deliveries may have before older ones
}

// load is the work of a sync that is under way.
type load struct {
	slots    int   // deliveries that may be in flight now
	starting bool  // a hold has just ended: nothing is claimed ahead
	claimed  int   // lanes claimed and not yet given back
	queued   int   // of these, deliveries that wait for a sender
	recorded int64 // deliveries ever recorded
	payload  int64 // recent average size of a payload, in bytes
	tokens   int   // attempts that the rate limit allows now; -1 without a limit
}

const (
	// prefetchFor is how long the queue lasts while the next claim is made. With half,
	// senders are idle while a slow database answers. With double, a relay that is
	// killed leaves twice as many unsent deliveries behind.
	prefetchFor = 50 * time.Millisecond

	// maxPrefetch bounds the deliveries that are claimed ahead. With half, receivers
	// that answer at once get less. With double, a killed relay leaves more behind.
	maxPrefetch = 1000

	// maxPrefetchBytes bounds their payloads. With half, events of a megabyte are
	// claimed in fours. With double, they take twice the memory.
	maxPrefetchBytes = 8 << 20

	// smallClaimWait is the shortest time between claims that would take less than a
	// quarter of the capacity, while senders have work. With half, there are twice as
	// many small claims. With double, senders of a fast receiver are idle.
	smallClaimWait = 20 * time.Millisecond

	// turn is how long a lane is kept while others wait. With half, lanes with many
	// events are given back and claimed twice as often, which costs the database. With
	// double, a new key waits twice as long where more keys are busy than there are
	// workers.
	turn = 250 * time.Millisecond

	// latestOneIn is the share of lanes that are claimed for the latest deliveries while
	// older ones wait: one in four. With one in eight, half as many new hearings are
	// sent at once after an outage. With one in two, the backlog takes half as long
	// again.
	latestOneIn = 4

	// newKeysOneIn is the share of lanes that are claimed for keys without a lane, while
	// such keys wait. The others are lanes that exist. With one in four, new keys wait
	// behind retries and busy keys. With three in four, those wait behind new keys.
	newKeysOneIn = 2
)

// capacity is how many lanes the sync should have claimed.
func (s *schedule) capacity(now time.Time, l load) int {
	if passed := now.Sub(s.at); passed > smallClaimWait {
		measured := float64(l.recorded-s.recorded) * float64(prefetchFor) / float64(passed)
		s.ahead = max(measured, s.ahead*3/4) // it falls slowly, since results are recorded in bursts
		s.at, s.recorded = now, l.recorded
	}
	ahead := min(int(s.ahead), maxPrefetch)
	if l.payload > 0 {
		ahead = min(ahead, int(maxPrefetchBytes/l.payload))
	}
	if l.slots == 0 || l.starting {
		ahead = 0
	}
	return l.slots + ahead
}

// next sets how many lanes to ask for; 0 is none for now.
func (s *schedule) next(now time.Time, l load, r *outbox.ClaimRequest) {
	capacity := s.capacity(now, l)
	free := capacity - l.claimed
	if free < capacity/4 && l.queued > 0 && now.Sub(s.asked) < smallClaimWait {
		free = 0
	}
	if l.tokens >= 0 {
		free = min(free, l.tokens)
	}
	r.Room = max(free, 0)
	r.Lanes, r.Fresh = r.Room, 0
	if s.unopened {
		if r.Lanes = r.Room / newKeysOneIn; r.Room%newKeysOneIn != 0 && s.extraForLanes {
			r.Lanes++
		}
		r.Fresh = min(r.Room, int(s.credit))
	}
}

// answered takes the answer to the request that next has filled in.
func (s *schedule) answered(now time.Time, r outbox.ClaimRequest, c outbox.Claims) {
	s.asked = now
	if r.Room%newKeysOneIn != 0 {
		s.extraForLanes = !s.extraForLanes
	}
	s.unopened = c.Unopened
	s.othersWait = c.Unopened || c.Due
	claimed := len(c.Deliveries)
	given := min(r.Fresh, claimed)
	s.credit = min(s.credit-float64(given)+float64(claimed)/latestOneIn, float64(r.Room)/latestOneIn+1)
	if claimed < r.Room { // there was more than enough for older ones
		s.credit = max(s.credit, 1)
	}
}

// stays reports whether the relay keeps a lane for its next delivery. The lane was
// claimed at the given time, and the delivery just finished took so long.
func (s *schedule) stays(now, claimed time.Time, took time.Duration) bool {
	return !s.othersWait || now.Sub(claimed)+took <= turn
}

package relay

import (
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// schedule decides how many lanes of a sync are claimed next, of which kind, and
// for how long a lane is kept. It has no goroutines, no clock and no database: it is
// told what happened and when, and answers. It is not safe for concurrent use.
type schedule struct {
	at       time.Time // when the pace was measured last
	recorded int64     // deliveries by then
	ahead    float64   // lanes to have claimed beyond those in flight

	asked    time.Time // when lanes were asked for last
	waiting  bool      // the last answer: somebody waits for a lane to be given back
	unopened bool      // the last answer: new keys wait that have no lane yet
	second   bool      // who gets the lane that is left over where the room is odd
	credit   float64   // lanes that the latest deliveries may have before older ones, saved up
}

// load is what a sync has under way.
type load struct {
	slots    int   // deliveries that may be in flight now
	starting bool  // a hold has just ended: nothing is claimed ahead
	claimed  int   // lanes claimed and not yet given back
	queued   int   // of these, deliveries that wait for a sender
	recorded int64 // deliveries ever recorded
	payload  int64 // bytes of a payload, on average lately
	tokens   int   // attempts that the rate limit allows now, -1 without a limit
}

const (
	// prefetchFor is for how long there is work in the queue. Half of it leaves
	// senders idle while the next claim is made on a slow database, twice of it
	// doubles what a relay that is killed leaves behind unsent.
	prefetchFor = 50 * time.Millisecond

	// maxPrefetch bounds the same in deliveries. Half of it costs throughput with
	// receivers that answer at once, twice of it the same as above.
	maxPrefetch = 1000

	// maxPrefetchBytes bounds the payloads that are claimed ahead. Half of it has
	// events of a megabyte claimed in fours, twice of it costs memory.
	maxPrefetchBytes = 8 << 20

	// patience is for how long a claim waits while less than a quarter of the lanes is
	// free and senders have work. Half of it makes twice as many small claims, twice of it
	// leaves senders of a fast receiver idle.
	patience = 20 * time.Millisecond

	// turn is how long a lane is kept while others wait. With half of it lanes with many
	// events are given back and claimed twice as often, which costs the database;
	// twice of it has a new key wait twice as long where more keys are busy than there
	// are workers.
	turn = 250 * time.Millisecond

	// freshOneIn is the share of the lanes that are claimed for the latest deliveries while
	// older ones wait. Half of it (one in eight) halves the rate of new hearings that
	// are sent at once after an outage; twice of it (one in two) has the backlog
	// take half as long again meanwhile.
	freshOneIn = 4
)

// capacity is how many lanes the sync should have claimed.
func (s *schedule) capacity(now time.Time, l load) int {
	if passed := now.Sub(s.at); passed > patience {
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

// next fills in how many lanes to ask for, 0 for none now.
func (s *schedule) next(now time.Time, l load, r *outbox.ClaimRequest) {
	most := s.capacity(now, l)
	room := most - l.claimed
	if room < most/4 && l.queued > 0 && now.Sub(s.asked) < patience {
		room = 0
	}
	if l.tokens >= 0 {
		room = min(room, l.tokens)
	}
	r.Room = max(room, 0)
	r.Lanes, r.Fresh = r.Room, 0
	if s.unopened { // new keys and lanes that are there have half each: with less, one kind waits for the other
		if r.Lanes = r.Room / 2; r.Room%2 == 1 && s.second {
			r.Lanes++
		}
		r.Fresh = min(r.Room, int(s.credit))
	}
}

// answered takes the answer of a claim for which next was asked.
func (s *schedule) answered(now time.Time, r outbox.ClaimRequest, c outbox.Claims) {
	s.asked = now
	if r.Room%2 == 1 {
		s.second = !s.second
	}
	s.unopened = c.Unopened
	s.waiting = c.Unopened || c.Due
	claimed := len(c.Deliveries)
	given := min(r.Fresh, claimed)
	s.credit = min(s.credit-float64(given)+float64(claimed)/freshOneIn, float64(r.Room)/freshOneIn+1)
	if claimed < r.Room { // older ones do not miss it
		s.credit = max(s.credit, 1)
	}
}

// stays reports whether a lane that was claimed at the given time goes on with
// its next delivery, when the one that was just finished took so long.
func (s *schedule) stays(now, claimed time.Time, took time.Duration) bool {
	return !s.waiting || now.Sub(claimed)+took <= turn
}

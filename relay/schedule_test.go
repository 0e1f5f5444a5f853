package relay

import (
	"math"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// ms is a time of a fake clock.
func ms(n int) time.Time { return time.UnixMilli(1_000_000 + int64(n)) }

// The capacity is the slots plus the work of 50 ms, by the number of recent recordings.
func TestCapacity(t *testing.T) {
	const mebibyte = 1 << 20
	type look struct {
		at       int // in milliseconds
		recorded int64
	}
	for name, test := range map[string]struct {
		looks []look // the last one's answer counts
		load  load   // at that look
		want  int
	}{
		"at first as many as can be sent":       {[]look{{0, 0}}, load{slots: 16}, 16},
		"what was recorded before is no pace":   {[]look{{0, 5000}}, load{slots: 16}, 16},
		"the work of 50 ms more":                {[]look{{0, 0}, {100, 200}}, load{slots: 16}, 16 + 100},
		"a pace that rises is followed at once": {[]look{{0, 0}, {100, 200}, {200, 800}}, load{slots: 16}, 16 + 300},
		"one that falls by a quarter each time": {[]look{{0, 0}, {100, 200}, {200, 240}}, load{slots: 16}, 16 + 75},
		"down to what it is":                    {[]look{{0, 0}, {100, 200}, {200, 240}, {300, 360}}, load{slots: 16}, 16 + 60},
		"no pace is measured over 20 ms":        {[]look{{0, 0}, {20, 200}}, load{slots: 16}, 16},
		"one is measured over 21 ms":            {[]look{{0, 0}, {21, 42}}, load{slots: 16}, 16 + 100},
		"the pace is kept between measurements": {[]look{{0, 0}, {100, 200}, {120, 4000}}, load{slots: 16}, 16 + 100},
		"at most a thousand":                    {[]look{{0, 0}, {50, 5000}}, load{slots: 16}, 16 + 1000},
		"just a thousand":                       {[]look{{0, 0}, {50, 1000}}, load{slots: 16}, 16 + 1000},
		"at most 8 MiB of payload":              {[]look{{0, 0}, {50, 1000}}, load{slots: 16, payload: mebibyte}, 16 + 8},
		"small payloads allow a thousand":       {[]look{{0, 0}, {50, 1000}}, load{slots: 16, payload: 8000}, 16 + 1000},
		"a payload too large to claim ahead":    {[]look{{0, 0}, {50, 1000}}, load{slots: 16, payload: 9 * mebibyte}, 16},
		"without a slot nothing":                {[]look{{0, 0}, {50, 1000}}, load{slots: 0}, 0},
		"after a hold nothing is claimed ahead": {[]look{{0, 0}, {50, 1000}}, load{slots: 1, starting: true}, 1},
		"nothing is claimed ahead of a bound":   {[]look{{0, 0}, {50, 1000}}, load{slots: 1, bounded: true}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var s schedule
			got := 0
			for _, l := range test.looks {
				test.load.recorded = l.recorded
				got = s.capacity(ms(l.at), test.load)
			}
			if got != test.want {
				t.Errorf("%d lanes, want %d", got, test.want)
			}
		})
	}
}

// The next request has the right numbers of lanes, by their kinds.
func TestNextClaim(t *testing.T) {
	for name, test := range map[string]struct {
		schedule                schedule // asked: the claim before was at 0 ms
		at                      int      // in milliseconds
		load                    load
		capacity, lanes, latest int
	}{
		"the whole capacity":                   {schedule{}, 5, load{slots: 16, tokens: -1}, 16, 16, 0},
		"claimed lanes use capacity":           {schedule{}, 5, load{slots: 16, claimed: 10, queued: 2, tokens: -1}, 6, 6, 0},
		"no capacity":                          {schedule{}, 5, load{slots: 16, claimed: 16, tokens: -1}, 0, 0, 0},
		"fewer slots than there were":          {schedule{}, 25, load{slots: 4, claimed: 16, queued: 9, tokens: -1}, 0, 0, 0},
		"a quarter of the capacity is enough":  {schedule{}, 5, load{slots: 16, claimed: 12, queued: 1, tokens: -1}, 4, 4, 0},
		"less waits while senders have work":   {schedule{}, 5, load{slots: 16, claimed: 13, queued: 1, tokens: -1}, 0, 0, 0},
		"but not where they have none":         {schedule{}, 5, load{slots: 16, claimed: 13, tokens: -1}, 3, 3, 0},
		"less waits for 19 ms":                 {schedule{}, 19, load{slots: 16, claimed: 15, queued: 1, tokens: -1}, 0, 0, 0},
		"but not for longer than 20":           {schedule{}, 20, load{slots: 16, claimed: 15, queued: 1, tokens: -1}, 1, 1, 0},
		"the rate limit":                       {schedule{}, 5, load{slots: 16, tokens: 3}, 3, 3, 0},
		"a rate limit that allows nothing now": {schedule{}, 5, load{slots: 16, tokens: 0}, 0, 0, 0},
		"a rate limit that allows more":        {schedule{}, 5, load{slots: 16, claimed: 8, tokens: 100}, 8, 8, 0},
		"half for keys that have no lane":      {schedule{unopened: true}, 5, load{slots: 16, tokens: -1}, 16, 8, 0},
		"of an odd number lanes have less":     {schedule{unopened: true}, 5, load{slots: 15, tokens: -1}, 15, 7, 0},
		"and the next time more":               {schedule{unopened: true, extraForLanes: true}, 5, load{slots: 15, tokens: -1}, 15, 8, 0},
		"an even number has no such turns":     {schedule{unopened: true, extraForLanes: true}, 5, load{slots: 16, tokens: -1}, 16, 8, 0},
		"one lane goes to keys without a lane": {schedule{unopened: true}, 5, load{slots: 1, tokens: -1}, 1, 0, 0},
		"and the next time to lanes":           {schedule{unopened: true, extraForLanes: true}, 5, load{slots: 1, tokens: -1}, 1, 1, 0},
		"the latest have their share":          {schedule{unopened: true, credit: 4.75}, 5, load{slots: 16, tokens: -1}, 16, 8, 4},
		"no more than the capacity":            {schedule{unopened: true, credit: 4}, 5, load{slots: 2, tokens: -1}, 2, 1, 2},
		"and none where nothing older waits":   {schedule{credit: 4}, 5, load{slots: 16, tokens: -1}, 16, 16, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := test.schedule
			s.asked, s.at = ms(0), ms(0)
			var r outbox.ClaimRequest
			s.next(ms(test.at), test.load, &r)
			if r.Capacity != test.capacity || r.Lanes != test.lanes || r.Latest != test.latest {
				t.Errorf("capacity %d, lanes %d, latest %d; want %d, %d, %d", r.Capacity, r.Lanes, r.Latest, test.capacity, test.lanes, test.latest)
			}
		})
	}
}

// claims makes so many requests in a backlog that satisfies each of them, and returns the sums of their
// numbers.
func claims(s *schedule, n, slots int) (sum outbox.ClaimRequest) {
	for i := range n {
		var r outbox.ClaimRequest
		s.next(ms(30*i), load{slots: slots, tokens: -1}, &r)
		s.answered(ms(30*i), r, outbox.Claims{Deliveries: make([]*outbox.Delivery, r.Capacity), Due: true, Unopened: true})
		sum.Capacity, sum.Lanes, sum.Latest = sum.Capacity+r.Capacity, sum.Lanes+r.Lanes, sum.Latest+r.Latest
	}
	return sum
}

// In a backlog, half of all claims are for existing lanes, and one in four is for the latest
// deliveries. This is true for a large capacity and for a capacity of one.
func TestSharesInABacklog(t *testing.T) {
	for _, slots := range []int{1, 2, 3, 4, 7, 16, 32, 100} {
		var s schedule
		claims(&s, 1, slots) // the first cannot know that there is a backlog
		sum := claims(&s, 400, slots)
		for what, got := range map[string]struct{ n, share float64 }{
			"lanes": {float64(sum.Lanes), 1. / 2}, "the latest": {float64(sum.Latest), 1. / 4},
		} {
			if want := got.share * float64(sum.Capacity); math.Abs(got.n-want) > float64(slots) {
				t.Errorf("%d slots: %v of %d claims for %s, want %v", slots, got.n, sum.Capacity, what, want)
			}
		}
	}
}

// The credit of the latest does not grow without bound while there are none, or while nothing is found.
func TestTheShareOfTheLatestIsBounded(t *testing.T) {
	all := func(n int) outbox.Claims {
		return outbox.Claims{Deliveries: make([]*outbox.Delivery, n), Unopened: true}
	}
	for name, test := range map[string]struct {
		credit  float64
		request outbox.ClaimRequest
		claimed int
		want    float64
	}{
		"a quarter of what is claimed":         {0, outbox.ClaimRequest{Capacity: 8}, 8, 2},
		"on top of what was left":              {1, outbox.ClaimRequest{Capacity: 16}, 8, 3},
		"one more than a quarter of a claim":   {3, outbox.ClaimRequest{Capacity: 16}, 16, 5},
		"of a smaller claim, too":              {4, outbox.ClaimRequest{Capacity: 2}, 2, 1.5},
		"less what they were given":            {4, outbox.ClaimRequest{Capacity: 16, Latest: 4}, 8, 2},
		"credit that was not used stays":       {2, outbox.ClaimRequest{Capacity: 4, Latest: 2}, 1, 1.25},
		"unused capacity gives credit for one": {0, outbox.ClaimRequest{Capacity: 16}, 1, 1},
		"as long as older ones leave some":     {0, outbox.ClaimRequest{Capacity: 1}, 1, 0.25},
		"a claim without capacity":             {0, outbox.ClaimRequest{Capacity: 0}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := schedule{credit: test.credit}
			s.answered(ms(0), test.request, all(test.claimed))
			if s.credit != test.want {
				t.Errorf("%v, want %v", s.credit, test.want)
			}
		})
	}
}

// The schedule uses the last answer until the next one.
func TestAnswered(t *testing.T) {
	for name, test := range map[string]struct {
		capacity          int
		claims            outbox.Claims
		waiting, unopened bool
		second            bool
	}{
		"nothing":                   {16, outbox.Claims{}, false, false, false},
		"lanes wait":                {16, outbox.Claims{Due: true}, true, false, false},
		"keys without a lane wait":  {16, outbox.Claims{Unopened: true}, true, true, false},
		"an odd number takes turns": {15, outbox.Claims{}, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := schedule{othersWait: !test.waiting, unopened: !test.unopened}
			s.answered(ms(7), outbox.ClaimRequest{Capacity: test.capacity}, test.claims)
			if s.othersWait != test.waiting || s.unopened != test.unopened || s.extraForLanes != test.second || s.asked != ms(7) {
				t.Errorf("%+v, want waiting %t, unopened %t, second %t", s, test.waiting, test.unopened, test.second)
			}
			s.answered(ms(8), outbox.ClaimRequest{Capacity: test.capacity}, test.claims)
			if s.extraForLanes {
				t.Error("the turn does not change back")
			}
		})
	}
}

// While others wait, a lane is kept for 250 ms, with the next attempt.
func TestStays(t *testing.T) {
	for name, test := range map[string]struct {
		waiting bool
		kept    int // since it was claimed, in milliseconds
		took    time.Duration
		want    bool
	}{
		"nobody waits":                     {false, 10_000, time.Second, true},
		"its turn is not over":             {true, 10, time.Millisecond, true},
		"the next ends with the turn":      {true, 150, 100 * time.Millisecond, true},
		"the next would end after it":      {true, 150, 101 * time.Millisecond, false},
		"its turn is over":                 {true, 251, 0, false},
		"one attempt takes as long":        {true, 200, 200 * time.Millisecond, false},
		"two short ones are within a turn": {true, 120, 120 * time.Millisecond, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := schedule{othersWait: test.waiting}
			if got := s.stays(ms(test.kept), ms(0), test.took); got != test.want {
				t.Errorf("stays: %t, want %t", got, test.want)
			}
		})
	}
}

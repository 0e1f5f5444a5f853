package relay

import (
	"slices"
	"sync"
	"time"
)

// slots bound the deliveries in flight. Each sync has some slots of its own, and the others
// are shared. If several syncs wait for a slot, the sync that uses the fewest gets the next
// one. So a slow receiver gets no more than its share. Within a sync, waiters are served in
// order. After a hold, a sync starts with a single slot and gets one more with each success:
// too many requests must not overload a receiver that has just recovered.
type slots struct {
	mu        sync.Mutex
	total     int
	shared    int // free shared slots
	shares    []*share
	exclusive []*exclusiveWaiter // the first one sends a suspect, or waits until its sync has nothing in flight
	closed    bool
}

func newSlots(workers, syncs int) (all *slots, reserve int) {
	reserve = max(1, workers/(2*syncs))
	shared := max(0, workers-reserve*syncs)
	return &slots{total: reserve*syncs + shared, shared: shared}, reserve
}

// share is one sync's part of the slots.
type share struct {
	all     *slots
	reserve int       // slots of its own
	most    int       // its concurrency
	limit   int       // current limit: most, but less after a hold
	lost    int       // workers with abandoned calls
	used    int       // slots in use
	waiting []*waiter // waiters in their order
	hanging *step     // begun while all workers have abandoned calls; nil in tests
}

// waiter waits for a slot.
type waiter struct {
	since time.Time
	got   chan bool // true with a slot, false if the wait ends without one
}

func (a *slots) share(reserve, most int) *share {
	s := &share{all: a, reserve: reserve, most: most, limit: most}
	a.shares = append(a.shares, s)
	return s
}

// acquire waits for a slot. It reports false if there will be none: the relay stops, or the
// sync has no worker left.
func (s *share) acquire() bool {
	a := s.all
	w := &waiter{since: time.Now(), got: make(chan bool, 1)}
	a.mu.Lock()
	if a.closed || s.allowed() == 0 {
		a.mu.Unlock()
		return false
	}
	s.waiting = append(s.waiting, w)
	a.grant()
	a.mu.Unlock()
	return <-w.got
}

// release frees a slot.
func (s *share) release() {
	a := s.all
	a.mu.Lock()
	defer a.mu.Unlock()
	s.free()
	a.grant()
}

// take counts a slot as used.
func (s *share) take() {
	if s.used >= s.reserve {
		s.all.shared--
	}
	s.used++
}

// free counts a slot as free.
func (s *share) free() {
	if s.used > s.reserve {
		s.all.shared++
	}
	s.used--
}

// grant gives free slots to waiters.
func (a *slots) grant() {
	if len(a.exclusive) > 0 && !a.exclusive[0].has && a.exclusive[0].share.used == 0 {
		a.exclusive[0].has = true
		a.exclusive[0].share.take()
		a.exclusive[0].got <- true
	}
	for {
		next := a.next()
		if next == nil {
			return
		}
		next.take()
		next.waiting[0].got <- true
		next.waiting = slices.Delete(next.waiting, 0, 1)
	}
}

// next returns the sync that gets the next slot. Of the syncs that may have one, it is the
// sync that uses the fewest. If several use as few, it is the one that has waited longest.
// It is nil if no waiter can be served.
func (a *slots) next() *share {
	var next *share
	for _, s := range a.shares {
		switch {
		case len(s.waiting) == 0, len(a.exclusive) > 0 && a.exclusive[0].share == s, s.used >= s.allowed(), s.used >= s.reserve && a.shared == 0:
		case next == nil, s.used < next.used, s.used == next.used && s.waiting[0].since.Before(next.waiting[0].since):
			next = s
		}
	}
	return next
}

// exclusiveWaiter waits until its sync has nothing in flight, to send a suspect.
type exclusiveWaiter struct {
	share *share
	has   bool
	got   chan bool
}

// acquireExclusive waits until the sync has nothing in flight, and takes a slot. Until
// releaseExclusive, no other delivery of the sync gets a slot. One sync at a time has this
// right, in the order of the calls. acquireExclusive reports false if the wait takes longer
// than timeout: then the sync sends as before.
func (s *share) acquireExclusive(timeout time.Duration) bool {
	a := s.all
	l := &exclusiveWaiter{share: s, got: make(chan bool, 1)}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return false
	}
	a.exclusive = append(a.exclusive, l)
	a.grant()
	a.mu.Unlock()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case got := <-l.got:
		return got
	case <-timer.C:
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if l.has {
		return true
	}
	a.exclusive = slices.DeleteFunc(a.exclusive, func(other *exclusiveWaiter) bool { return other == l })
	a.grant()
	return false
}

// releaseExclusive frees the slot of acquireExclusive.
func (s *share) releaseExclusive() {
	a := s.all
	a.mu.Lock()
	defer a.mu.Unlock()
	s.free()
	a.exclusive = slices.Delete(a.exclusive, 0, 1)
	a.grant()
}

// slow limits the sync to a single slot.
func (s *share) slow() {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	s.limit = 1
}

// grow raises the limit by one slot, up to the sync's concurrency.
func (s *share) grow() {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if s.limit < s.most {
		s.limit++
		s.all.grant()
	}
}

// starting reports whether a hold has just ended, so that the limit is still below the
// sync's concurrency.
func (s *share) starting() bool {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	return s.limit < s.most
}

// usable is how many slots the sync can use now: the slots that it uses, and those that are
// free. It is at least an equal share of all slots.
func (s *share) usable() int {
	a := s.all
	a.mu.Lock()
	defer a.mu.Unlock()
	return min(s.allowed(), max(max(s.used, s.reserve)+a.shared, a.total/len(a.shares)))
}

// allowed is how many deliveries of the sync may be in flight. The caller holds the lock.
func (s *share) allowed() int { return max(0, min(s.limit, s.most-s.lost)) }

// lose removes n workers from the sync. A negative n adds workers again. If no worker is
// left, acquire reports false at once.
func (s *share) lose(n int) {
	a := s.all
	a.mu.Lock()
	defer a.mu.Unlock()
	s.lost += n
	s.changed()
}

// changed acts on a change of most or lost. The caller holds the lock.
func (s *share) changed() {
	if s.allowed() == 0 {
		s.refuseWaiters()
	}
	switch h := s.hanging; {
	case h == nil:
	case s.lost < s.most:
		h.end()
	case h.since.Load() == 0:
		h.begin()
	}
	s.all.grant()
}

// refuseWaiters ends all waits for a slot of the sync: acquire reports false.
func (s *share) refuseWaiters() {
	for _, w := range s.waiting {
		w.got <- false
	}
	s.waiting = nil
}

// workers is how many workers of the sync are not lost.
func (s *share) workers() int {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	return max(0, s.most-s.lost)
}

// close ends all waits: acquire and acquireExclusive report false.
func (a *slots) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, s := range a.shares {
		s.refuseWaiters()
	}
	a.exclusive = slices.DeleteFunc(a.exclusive, func(l *exclusiveWaiter) bool {
		if !l.has {
			l.got <- false
		}
		return !l.has
	})
}

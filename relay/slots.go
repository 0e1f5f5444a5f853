package relay

import (
	"slices"
	"sync"
	"time"
)

// slots bound the deliveries in flight. Each sync has some of its own, the rest
// is shared. While several syncs wait for a slot, the next one goes to the sync
// with the fewest, so that a slow receiver gets no more than its share. Within a
// sync, waiters are served in order. After a hold a sync starts with a
// single slot and gains one per success, so that a system that just came back is
// not overrun.
type slots struct {
	mu        sync.Mutex
	total     int
	shared    int // free ones
	shares    []*share
	exclusive []*exclusiveWaiter // the first sends a suspect, or its sync's slots are kept free for it
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
	reserve int // slots of its own
	most    int // its concurrency
	limit   int // at present: most, except after a hold
	lost    int // workers with calls that do not return
	used    int
	waiting []*waiter // in the order in which they came
	hanging *step     // begun while no worker is left, since calls do not return; nil in tests
}

// waiter waits for a slot.
type waiter struct {
	since time.Time
	got   chan bool // a slot, or false when the relay gives up waiting
}

func (a *slots) share(reserve, most int) *share {
	s := &share{all: a, reserve: reserve, most: most, limit: most}
	a.shares = append(a.shares, s)
	return s
}

// acquire waits for a slot; it reports false when the relay gives up waiting.
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

// release gives a slot back.
func (s *share) release() {
	a := s.all
	a.mu.Lock()
	defer a.mu.Unlock()
	s.free()
	a.grant()
}

// take and free count a slot as used and as free.
func (s *share) take() {
	if s.used >= s.reserve {
		s.all.shared--
	}
	s.used++
}

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

// next is the sync that gets the next slot: of those that may have one the sync
// with the fewest, and of several the one that has waited longest. It is nil
// when no waiter can be served.
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

// exclusiveWaiter waits for the slots of its sync to be free, to send a suspect.
type exclusiveWaiter struct {
	share *share
	has   bool
	got   chan bool
}

// acquireExclusive waits until nothing else of the sync is in flight and takes a
// slot; until releaseExclusive no other delivery of the sync gets one. One sync at a
// time has that right, in the order in which they ask. It reports false when
// waiting takes longer than timeout; then the sync sends as before.
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

// releaseExclusive gives the slot of acquireExclusive back.
func (s *share) releaseExclusive() {
	a := s.all
	a.mu.Lock()
	defer a.mu.Unlock()
	s.free()
	a.exclusive = slices.Delete(a.exclusive, 0, 1)
	a.grant()
}

// slow goes back to a single slot; grow adds one, up to the sync's concurrency.
func (s *share) slow() {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	s.limit = 1
}

func (s *share) grow() {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if s.limit < s.most {
		s.limit++
		s.all.grant()
	}
}

// starting reports whether the sync has fewer slots than its concurrency, since
// a hold has just ended.
func (s *share) starting() bool {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	return s.limit < s.most
}

// usable is how many slots the sync can count on at present: those that it has or
// could have at once, and at least its equal share of all.
func (s *share) usable() int {
	a := s.all
	a.mu.Lock()
	defer a.mu.Unlock()
	return min(s.allowed(), max(max(s.used, s.reserve)+a.shared, a.total/len(a.shares)))
}

// allowed is how many deliveries of the sync may be in flight. The caller holds
// the lock.
func (s *share) allowed() int { return max(0, min(s.limit, s.most-s.lost)) }

// lose takes n workers from the sync, or gives -n back. Without any left,
// acquire reports false at once.
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

// refuseWaiters ends the wait for a slot of the sync: acquire reports false.
func (s *share) refuseWaiters() {
	for _, w := range s.waiting {
		w.got <- false
	}
	s.waiting = nil
}

// workers is how many workers the sync has that are not lost.
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

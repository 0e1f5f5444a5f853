package relay

import "sync"

// slots bound the deliveries in flight. Each sync has some of its own, the rest
// is shared: one that hangs cannot take the last slot of another. After a hold
// a sync starts with a single slot and gains one per success, so that a system
// that just came back is not run over.
type slots struct {
	mu     sync.Mutex
	freed  *sync.Cond
	shared int
	closed bool
}

func newSlots(workers, syncs int) (all *slots, reserve int) {
	reserve = max(1, workers/(2*syncs))
	all = &slots{shared: max(0, workers-reserve*syncs)}
	all.freed = sync.NewCond(&all.mu)
	return all, reserve
}

// share is one sync's part of the slots.
type share struct {
	all     *slots
	reserve int // slots of its own
	most    int // its concurrency
	limit   int // at present; most, but after a hold
	lost    int // workers with calls that do not return
	used    int
}

func (a *slots) share(reserve, most int) *share {
	return &share{all: a, reserve: reserve, most: most, limit: most}
}

// acquire waits for a slot; it reports false when the relay gives up waiting.
func (s *share) acquire() bool {
	a := s.all
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.closed && s.usable() > 0 && (s.used >= s.usable() || s.used >= s.reserve && a.shared == 0) {
		a.freed.Wait()
	}
	if a.closed || s.usable() == 0 {
		return false
	}
	if s.used >= s.reserve {
		a.shared--
	}
	s.used++
	return true
}

func (s *share) release() {
	a := s.all
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.used > s.reserve {
		a.shared++
	}
	s.used--
	a.freed.Broadcast()
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
		s.all.freed.Broadcast()
	}
}

func (s *share) current() int {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	return s.usable()
}

// usable is how many deliveries of the sync may be in flight; a.mu is held.
func (s *share) usable() int { return max(0, min(s.limit, s.most-s.lost)) }

// lose takes n workers from the sync, or gives -n back. Without any left,
// acquire reports false at once.
func (s *share) lose(n int) {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	s.lost += n
	s.all.freed.Broadcast()
}

// workers is how many workers the sync has that are not lost.
func (s *share) workers() int {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	return max(0, s.most-s.lost)
}

// close wakes everybody who waits.
func (a *slots) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.freed.Broadcast()
}

package relay

import (
	"sync"
	"time"
)

const (
	// breakerKeys is how many different keys must fail one after the other, with no
	// success between, before a destination is taken for down. One poisoned key never
	// holds the others.
	breakerKeys = 10

	// refusedKeys is how many different keys must be refused one after the other,
	// with no success between, before the credentials are taken for bad.
	refusedKeys = 3

	// refusedTimes is how often one key must be refused, with no other key accepted
	// since the first time, before the credentials are taken for bad.
	refusedTimes = 3

	// aloneTimes is how often one key must get doubtful answers after another key
	// was accepted, before its record is taken to be at fault.
	aloneTimes = 2

	// aloneFor is the least time between the first and the last of these, in
	// multiples of the first retry delay, and aloneMost the most that is asked for:
	// what lies in front of a receiver, and several nodes of one, may disagree for
	// seconds.
	aloneFor  = 10
	aloneMost = time.Minute

	// mostDoubts bounds the keys that are remembered, and mostScopeDoubts those of one
	// scope.
	mostDoubts      = 10_000
	mostScopeDoubts = 100

	// mostHealths is the number of scopes whose answers are remembered. With half, a
	// scope that fails now and then is forgotten earlier where there are many. Double
	// costs memory.
	mostHealths = 1000
)

// verdict is what a doubtful answer means.
type verdict int

const (
	undecided     verdict = iota // try again
	refusesAll                   // the receiver refuses everything: nothing is to be sent for now
	refusesRecord                // it is this record alone
)

// healths are those of a sync's scopes. It is safe for concurrent use.
type healths struct {
	firstDelay time.Duration
	whole      *health // of the empty scope

	mu   sync.Mutex
	by   map[string]*health
	used map[string]time.Time
}

func newHealths(firstDelay time.Duration) *healths {
	return &healths{firstDelay: firstDelay, whole: newHealth(firstDelay), by: map[string]*health{}, used: map[string]time.Time{}}
}

// of is the health of a scope. Where there are too many, the one that was asked for
// longest ago is forgotten.
func (h *healths) of(scope string) *health {
	if scope == "" {
		return h.whole
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.by[scope]
	if x == nil {
		if len(h.by) >= mostHealths {
			oldest := ""
			for other, at := range h.used {
				if oldest == "" || at.Before(h.used[oldest]) {
					oldest = other
				}
			}
			delete(h.by, oldest)
			delete(h.used, oldest)
		}
		x = newHealth(h.firstDelay)
		x.doubts = mostScopeDoubts
		h.by[scope] = x
	}
	h.used[scope] = time.Now()
	return x
}

// released notes that a hold of the whole sync has ended.
func (h *healths) released() {
	h.whole.released()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range h.by {
		x.released()
	}
}

// health remembers the latest answers of a receiver, or of one scope of it, to this
// relay. It is safe for concurrent use.
//
// A refusal (401, 403) and an answer without a reason (a 404 that may come from a
// gateway) can be about one record or about all. Accepted requests of other keys tell
// which. A request that began after the doubtful answer and was accepted shows that
// the receiver and the credentials work. A request that began earlier shows nothing:
// a token may have been renewed in between.
type health struct {
	minSpan time.Duration // least time between doubtful answers that condemn a record
	doubts  int           // most keys to remember with doubtful answers

	mu       sync.Mutex
	failed   map[string]struct{} // keys that failed since the last success
	doubted  map[string]*doubt   // keys that got doubtful answers, and nothing else since
	accepted [2]acceptance       // the latest beginnings of accepted requests, of two keys, the later one first

	refusedAt time.Time           // when the first refusal since the last success came; zero without one
	refused   map[string]struct{} // keys refused since, by requests that began after it
}

// doubt is about one key.
type doubt struct {
	first time.Time // when the first of the answers came
	times int       // such answers in a row
	alone int       // of these, after another key was accepted
	since time.Time // when the first of those came
}

// acceptance is a request that was accepted.
type acceptance struct {
	key   string
	began time.Time
}

func newHealth(firstDelay time.Duration) *health {
	return &health{
		minSpan: min(aloneFor*firstDelay, aloneMost), doubts: mostDoubts,
		failed: map[string]struct{}{}, doubted: map[string]*doubt{}, refused: map[string]struct{}{},
	}
}

// succeeded notes that a request for key, which began at the given time, was
// accepted.
func (h *health) succeeded(key string, began time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.failed)
	h.trusted()
	delete(h.doubted, key)
	switch latest := &h.accepted[0]; {
	case latest.key == key:
		if began.After(latest.began) {
			latest.began = began
		}
	case began.After(latest.began):
		h.accepted[1], *latest = *latest, acceptance{key, began}
	case began.After(h.accepted[1].began):
		h.accepted[1] = acceptance{key, began}
	}
}

// trusted forgets what speaks against the credentials. The caller holds the lock.
func (h *health) trusted() {
	h.refusedAt = time.Time{}
	clear(h.refused)
}

// answered notes that the receiver judged a message: it is not down.
func (h *health) answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.failed)
}

// released notes that a hold has ended: the receiver has its chance.
func (h *health) released() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.failed)
	h.trusted()
	for key, d := range h.doubted {
		if !h.othersAccepted(key, d.first) {
			d.times = 0
		}
	}
}

// fail notes a failure and reports whether the receiver counts as down.
func (h *health) fail(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.failed) < breakerKeys {
		h.failed[key] = struct{}{}
	}
	return len(h.failed) >= breakerKeys
}

// refuse notes that a request for key, which began and was answered at the given
// times, was refused. It reports what the refusal is about, as far as that can be
// known, and how often in a row it happened to key.
func (h *health) refuse(key string, began, answered time.Time) (about verdict, times int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, others := h.doubt(key, answered)
	if others {
		// The credentials were good after the first refusal: this refusal is no news about them.
		if len(h.refused) >= refusedKeys {
			return undecided, d.times
		}
		return h.judge(d, answered), d.times
	}
	switch {
	case h.refusedAt.IsZero():
		h.refusedAt = answered
	case began.After(h.refusedAt) && len(h.refused) < refusedKeys:
		h.refused[key] = struct{}{}
	}
	if len(h.refused) >= refusedKeys || d.times >= refusedTimes {
		return refusesAll, d.times
	}
	return undecided, d.times
}

// unexplained notes that a request for key got an answer without a reason, and
// reports whether that is about this record alone.
func (h *health) unexplained(key string, answered time.Time) (alone bool, times int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, others := h.doubt(key, answered)
	return others && h.judge(d, answered) == refusesRecord, d.times
}

// doubt counts a doubtful answer for key and reports whether another key was
// accepted since the first of them. The caller holds the lock.
func (h *health) doubt(key string, answered time.Time) (d *doubt, others bool) {
	d = h.doubted[key]
	if d == nil {
		for forgotten := range h.doubted {
			if len(h.doubted) < h.doubts {
				break
			}
			delete(h.doubted, forgotten)
		}
		d = &doubt{first: answered}
		h.doubted[key] = d
	}
	d.times++
	if others = h.othersAccepted(key, d.first); others {
		if d.alone++; d.alone == 1 {
			d.since = answered
		}
	}
	return d, others
}

// judge reports whether d is about one record. The caller holds the lock.
func (h *health) judge(d *doubt, answered time.Time) verdict {
	if d.alone >= aloneTimes && answered.Sub(d.since) >= h.minSpan {
		return refusesRecord
	}
	return undecided
}

// othersAccepted reports whether a request of another key was accepted that began
// after the given time. The caller holds the lock.
func (h *health) othersAccepted(key string, after time.Time) bool {
	latest := h.accepted[0]
	if latest.key == key {
		latest = h.accepted[1]
	}
	return latest.began.After(after)
}

// forget ends the doubts about a key. Its record has failed; the next record starts
// without doubts.
func (h *health) forget(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.doubted, key)
}

package relay

import (
	"sync"
	"time"
)

const (
	// breakerKeys is how many different keys must fail, with no success in between, before
	// a destination counts as down. One bad key alone never causes a hold.
	breakerKeys = 10

	// refusedKeys is how many different keys must be refused, with no success in between,
	// before the credentials count as bad.
	refusedKeys = 3

	// refusedTimes is how often one key must be refused, with no other key accepted since
	// the first time, before the credentials count as bad.
	refusedTimes = 3

	// aloneTimes is how often one key must get doubtful answers after another key was
	// accepted, before its record counts as the cause.
	aloneTimes = 2

	// aloneFor is the shortest time between the first and the last of these answers, in
	// multiples of the first retry delay. aloneMost is the longest time that is required.
	// The nodes of a receiver, and gateways in front of it, may give different answers for
	// seconds.
	aloneFor  = 10
	aloneMost = time.Minute

	// unclearTimes is how many answers a delivery may get that do not say whether the
	// receiver has the message. With the last one it fails.
	unclearTimes = 5

	// mostDoubts bounds the keys that are remembered for a whole sync, mostScopeDoubts
	// those for one scope.
	mostDoubts      = 10_000
	mostScopeDoubts = 100

	// mostHealths is the number of scopes whose answers are remembered. With half, a scope
	// that fails from time to time is forgotten earlier if there are many. Double costs
	// memory.
	mostHealths = 1000
)

// verdict is the meaning of a doubtful answer.
type verdict int

const (
	undecided     verdict = iota // try again
	refusesAll                   // the receiver refuses everything: send nothing for now
	refusesRecord                // the receiver refuses only this record
)

// healths has the health of each scope of a sync. It is safe for concurrent use.
type healths struct {
	firstDelay time.Duration
	whole      *health // health of the empty scope

	mu   sync.Mutex
	by   map[string]*health
	used map[string]time.Time
}

func newHealths(firstDelay time.Duration) *healths {
	return &healths{firstDelay: firstDelay, whole: newHealth(firstDelay), by: map[string]*health{}, used: map[string]time.Time{}}
}

// of returns the health of a scope. If there are too many, it forgets the one that was not
// used for the longest time.
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

// health remembers the latest answers that this relay got from a receiver, or from one
// scope of it. It is safe for concurrent use.
//
// Two kinds of answers are doubtful: a refusal (401, 403), and an answer without a reason
// (a 404 that may come from a gateway). Such an answer can be about one record or about
// all of them. Accepted requests of other keys show which. If such a request began after
// the doubtful answer, the receiver and the credentials work. A request that began earlier
// shows nothing: a token may have been renewed in between.
type health struct {
	minSpan time.Duration // shortest time between the doubtful answers that fail a record
	doubts  int           // most keys with doubtful answers to remember

	mu       sync.Mutex
	failed   map[string]struct{} // keys that failed since the last success
	doubted  map[string]*doubt   // keys that got doubtful answers, and were not accepted since
	accepted [2]acceptance       // the accepted requests of two keys that began last, the latest first

	refusedAt time.Time           // time of the first refusal since the last success; zero if there is none
	refused   map[string]struct{} // keys that were refused in requests that began after refusedAt
}

// doubt counts the doubtful answers for one key.
type doubt struct {
	first time.Time // time of the first of these answers
	times int       // number of these answers in a row
	alone int       // number of these answers after another key was accepted
	since time.Time // time of the first answer that alone counts
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

// succeeded notes that a request for key, which began at the given time, was accepted.
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

// trusted forgets all refusals of the credentials. The caller holds the lock.
func (h *health) trusted() {
	h.refusedAt = time.Time{}
	clear(h.refused)
}

// answered notes that the receiver gave a reasoned answer to a message: it is not down.
func (h *health) answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.failed)
}

// released notes that a hold has ended: earlier failures do not count any more.
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

// refuse notes that a request for key, which began and was answered at the given times, was
// refused. It reports whether the refusal is about everything or about this record, if
// that is known, and how often in a row key was refused.
func (h *health) refuse(key string, began, answered time.Time) (about verdict, times int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, others := h.doubt(key, answered)
	if others {
		// The credentials worked after the first refusal, so this one does not show that they are bad.
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

// unexplained notes that a request for key got an answer without a reason. It reports
// whether only this record gets such answers, and how often in a row it got one.
func (h *health) unexplained(key string, answered time.Time) (alone bool, times int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, others := h.doubt(key, answered)
	return others && h.judge(d, answered) == refusesRecord, d.times
}

// doubt counts a doubtful answer for key, and reports whether another key was accepted
// since the first of these answers. The caller holds the lock.
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

// forget removes the doubts about a key. Its delivery has failed, and the next one starts
// without doubts.
func (h *health) forget(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.doubted, key)
}

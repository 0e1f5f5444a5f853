package relay

import "sync"

// breakerKeys is how many different keys must fail one after the other, with no
// success between, before a sync is taken for down. One poisoned key never
// holds the others.
const breakerKeys = 10

// health remembers how a sync's receiver behaved since its last success.
type health struct {
	mu        sync.Mutex
	failed    map[string]struct{}
	forbidden map[string]struct{}
}

func newHealth() *health {
	return &health{failed: map[string]struct{}{}, forbidden: map[string]struct{}{}}
}

func (h *health) succeeded() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.failed)
	clear(h.forbidden)
}

// answered notes that the receiver judged a message: it is not down.
func (h *health) answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.failed)
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

// forbid notes a refusal and reports whether another key was refused too.
func (h *health) forbid(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.forbidden) < 2 {
		h.forbidden[key] = struct{}{}
	}
	return len(h.forbidden) > 1
}

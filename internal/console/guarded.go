package console

import "sync"

// guarded is a value that several goroutines read and replace.
type guarded[T any] struct {
	mu    sync.Mutex
	value T
}

func (g *guarded[T]) get() T {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.value
}

func (g *guarded[T]) set(value T) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.value = value
}

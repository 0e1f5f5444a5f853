// Package route finds what a configuration says for an event type.
package route

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
)

// Table maps event types to values of type T. A key is a type, or a pattern in which *
// is any number of characters. The zero value is empty.
type Table[T any] struct {
	entries  []entry[T] // the most specific first
	fallback T
}

type entry[T any] struct {
	pattern string
	value   T
}

// New returns a table of routes. A type that matches none gets fallback.
func New[T any](routes map[string]T, fallback T) Table[T] {
	t := Table[T]{fallback: fallback}
	for _, pattern := range slices.Sorted(maps.Keys(routes)) {
		t.entries = append(t.entries, entry[T]{pattern, routes[pattern]})
	}
	// Stable, so that patterns of one rank stay in the order of their text.
	slices.SortStableFunc(t.entries, func(a, b entry[T]) int { return cmp.Compare(specific(b.pattern), specific(a.pattern)) })
	return t
}

// Find returns the T of eventType. The exact type goes first, then the pattern with
// the most characters other than *, then the fallback.
func (t Table[T]) Find(eventType string) T {
	for _, e := range t.entries {
		if adapters.MatchType(e.pattern, eventType) {
			return e.value
		}
	}
	return t.fallback
}

// All are the values of the table, with the fallback, in any order.
func (t Table[T]) All() []T {
	all := []T{t.fallback}
	for _, e := range t.entries {
		all = append(all, e.value)
	}
	return all
}

// Shape names settings that make a body, for [adapters.Shaper].
func Shape(settings ...string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", settings))
	return hex.EncodeToString(sum[:4])
}

// specific ranks a pattern by its number of characters without *. A pattern without *
// ranks above all others.
func specific(pattern string) int {
	stars := strings.Count(pattern, "*")
	if stars == 0 {
		return 1 << 30
	}
	return len(pattern) - stars
}

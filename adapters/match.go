package adapters

import "strings"

// MatchType tells whether eventType is pattern, in which * stands for any
// characters, none included. Configurations name event types so, for a sync and
// for the routes of an adapter.
func MatchType(pattern, eventType string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == eventType
	}
	eventType, ok := strings.CutPrefix(eventType, first)
	if !ok {
		return false
	}
	for {
		part, next, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(eventType, part)
		}
		// The leftmost place leaves the most for what follows.
		_, after, found := strings.Cut(eventType, part)
		if !found {
			return false
		}
		eventType, rest = after, next
	}
}

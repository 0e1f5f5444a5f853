package adapters

import "strings"

// MatchType reports whether eventType matches pattern, in which * is any number of
// characters. Syncs and the routes of adapters name event types by such patterns.
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
		// The leftmost match leaves the most text for the parts that follow.
		_, after, found := strings.Cut(eventType, part)
		if !found {
			return false
		}
		eventType, rest = after, next
	}
}

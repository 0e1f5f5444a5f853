package outbox

import (
	"slices"
	"strings"
)

// covers reports whether each type that one of others matches is also matched by one of
// patterns. It may return false although the answer is yes.
func covers(patterns, others []string) bool {
	return !slices.ContainsFunc(others, func(other string) bool { return !covered(patterns, other) })
}

// covered reports whether one of patterns matches other as a text. The * of other is then
// an ordinary character, which only a * of the pattern matches. So the pattern matches
// everything that other matches. Types of operator events need a pattern of their own, see
// [OperatorEvents].
func covered(patterns []string, other string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return matches(p, other) && strings.HasPrefix(p, OperatorEvents) == strings.HasPrefix(other, OperatorEvents)
	})
}

// matches reports whether a pattern matches all of s. A * matches any characters, or none.
func matches(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(s, parts[0])
	if len(parts) == 1 || !ok {
		return ok && rest == ""
	}
	last := len(parts) - 1
	for _, part := range parts[1:last] {
		if _, rest, ok = strings.Cut(rest, part); !ok {
			return false
		}
	}
	return strings.HasSuffix(rest, parts[last])
}

// intersection returns patterns that match only types which both lists match. They may miss
// some of these types.
func intersection(a, b []string) []string {
	both := []string{}
	for _, p := range a {
		if covered(b, p) {
			both = append(both, p)
		}
	}
	for _, p := range b {
		if covered(a, p) && !slices.Contains(both, p) {
			both = append(both, p)
		}
	}
	return both
}

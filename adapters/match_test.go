package adapters_test

import (
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

func TestMatchType(t *testing.T) {
	tests := []struct {
		pattern, typ string
		want         bool
	}{
		{"scheduling:*", "scheduling:updated", true},
		{"scheduling:*", "scheduling:", true},
		{"scheduling:*", "scheduling", false},
		{"scheduling:*", "data:updated", false},
		{"*:updated", "data:updated", true},
		{"*:updated", "data:updated2", false},
		{"*", "", true},
		{"*", "anything", true},
		{"a*b*c", "abc", true},
		{"a*b*c", "aXbYbZc", true},
		{"a*b*c", "ac", false},
		{"a*a", "a", false},
		{"a*ab", "aab", true},
		{"**", "x", true},
		{"a.c", "abc", false},
		{"a?c", "abc", false},
		{"a_c", "abc", false},
		{"a%", "abc", false},
		{`a\*`, `a\b`, true},
		{"[ab]", "a", false},
		{"", "", true},
		{"", "a", false},
		{"scheduling:updated", "scheduling:updated", true},
		{"scheduling:updated", "Scheduling:updated", false},
		{"é*", "éa", true},
	}
	for _, tt := range tests {
		if got := adapters.MatchType(tt.pattern, tt.typ); got != tt.want {
			t.Errorf("MatchType(%q, %q) = %v", tt.pattern, tt.typ, got)
		}
	}
}

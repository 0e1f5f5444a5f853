package route_test

import (
	"testing"

	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

func TestMostSpecificPatternWins(t *testing.T) {
	table := route.New(map[string]string{
		"scheduling:*": "scheduling", "scheduling:can*": "can", "scheduling:cancelled": "exact", "*:closed": "closed", "a*b*c": "abc",
	}, "fallback")
	for eventType, want := range map[string]string{
		"scheduling:updated": "scheduling", "scheduling:canned": "can", "scheduling:cancelled": "exact", "scheduling:cancelled:by-mail": "can",
		"room:closed": "closed", "a-b-c": "abc", "acb": "fallback", "": "fallback",
	} {
		if got := table.Find(eventType); got != want {
			t.Errorf("%q: %s, want %s", eventType, got, want)
		}
	}
	if got := (route.Table[string]{}).Find("x"); got != "" {
		t.Errorf("an empty table: %q", got)
	}
}

package relay

import (
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/outbox"
)

// A wrong retention is refused when the relay is made, not when it maintains the log for the
// first time.
func TestRetentionIsChecked(t *testing.T) {
	for _, tc := range []struct {
		events, log outbox.Retention
		want        string
	}{
		{"", "", ""},
		{"1 hour", "1200 months", ""},
		{"90d", "", `keep events "90d" is not a time such as "90 days" or "84 months"`},
		{"", "7 lustra", `keep log "7 lustra" is not a time`},
		{"30 minutes", "", "keep events 30 minutes: want 1 hour to 1200 months"},
		{"", "3 weeks", "keep log 3 weeks: want 1 month to 1200 months"},
		{"101 years", "", "keep events 101 years: want 1 hour to 1200 months"},
	} {
		_, err := New(nil, Config{KeepEvents: tc.events, KeepLog: tc.log, Syncs: []Sync{{Name: "A", Events: []string{"*"}, Adapter: taker{}}}})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s, %s: got %v, want %q", tc.events, tc.log, err, tc.want)
		}
	}
}

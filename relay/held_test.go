package relay

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A lock of another relay's maintenance is logged as information. A lock that stays is an error,
// which is repeated after a pause.
func TestHeldMaintenanceIsAnErrorOnceItLasts(t *testing.T) {
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	began := time.Now()
	var h heldMaintenance
	for _, step := range []struct {
		after time.Duration
		by    []string
		want  string // level of what is said; empty for nothing
	}{
		{0, []string{"pid 1"}, "INFO"},
		{30 * time.Second, []string{"pid 1"}, ""},
		{61 * time.Second, []string{"pid 1"}, "ERROR"},
		{2 * time.Minute, []string{"pid 1"}, ""},
		{12 * time.Minute, []string{"pid 1"}, "ERROR"},
		{13 * time.Minute, nil, ""},
		{14 * time.Minute, []string{"pid 2"}, "INFO"},
	} {
		text.Reset()
		h.note(t.Context(), log, began.Add(step.after), step.by)
		if got := text.String(); step.want == "" && got != "" || !strings.Contains(got, step.want) || step.want != "" && !strings.Contains(got, step.by[0]) {
			t.Errorf("after %s it said %q, want level %q", step.after, got, step.want)
		}
	}
}

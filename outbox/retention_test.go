package outbox

import "testing"

func TestRetentionHours(t *testing.T) {
	for text, want := range map[Retention]float64{
		"90 days":                             90 * 24,
		"84 months":                           84 * 30 * 24,
		"1 year 6 months":                     18 * 30 * 24,
		"2 weeks":                             14 * 24,
		"0 months 7776000000000 microseconds": 90 * 24,
		"1 hour 30 minutes":                   1.5,
	} {
		if got, err := text.Hours(); err != nil || got < want-0.001 || got > want+0.001 {
			t.Errorf("%s: got %g, %v, want %g", text, got, err, want)
		}
	}
	for _, text := range []Retention{"", "90", "90d", "90 fortnights", "-1 day", "P90D", "90 days ago", "90 days;", "1.5 hours", "90  days"} {
		if got, err := text.Hours(); err == nil {
			t.Errorf("%q: got %g, want an error", text, got)
		}
	}
}

package outbox_test

import (
	"testing"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// Relay and server run on one machine with one clock, so the offset is the error of the
// measurement.
func TestClockOffsetIsWithinItsError(t *testing.T) {
	store, err := outbox.Open(t.Context(), pgtest.New(t), outbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for range 20 {
		ahead, within, err := store.ClockOffset(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ahead.Abs() > within {
			t.Errorf("ahead by %s, within %s", ahead, within)
		}
	}
}

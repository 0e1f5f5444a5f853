package relay_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

func TestDeliversMappedAndInOrder(t *testing.T) {
	w := newWorld(t)
	c := newCourt(accepts)
	w.lanes(20, 15)
	w.start("relay-1", sync1(c))
	w.drained()
	for n := 300; n < 600; n++ {
		w.emit(fmt.Sprintf("lane-%d", n%20), map[string]any{"n": n})
	}
	w.drained()
	if got := c.count(); got != 600 {
		t.Errorf("court got %d requests, want 600", got)
	}
	inOrder(t, c)
}

func TestRetriesUntilAccepted(t *testing.T) {
	w := newWorld(t)
	c := newCourt(func(_ context.Context, m adapters.Message, nth int) (adapters.Receipt, error) {
		if nth < 3 {
			return adapters.Receipt{Code: "HTTP 500"}, errors.New("HTTP 500")
		}
		return adapters.Receipt{Code: "HTTP 201"}, nil
	})
	w.start("relay-1", sync1(c))
	for n := range 30 {
		w.emit(fmt.Sprintf("H-%d", n%3), map[string]any{"n": n})
	}
	w.drained()
	inOrder(t, c)
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'retry'`); got != 60 {
		t.Errorf("%d retries logged, want 60", got)
	}
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered' AND attempt = 3`); got != 30 {
		t.Errorf("%d deliveries at the third attempt, want 30", got)
	}
}

// inOrder checks that the first attempts of each key follow the n of the payload.
func inOrder(t *testing.T, c *court) {
	t.Helper()
	last := map[string]int64{}
	seen := map[string]bool{}
	for _, m := range c.got() {
		if seen[m.ID] {
			continue
		}
		seen[m.ID] = true
		fields, err := m.Fields()
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		if _, err := fmt.Sscan(fmt.Sprint(fields["n"]), &n); err != nil {
			t.Fatal(err)
		}
		if before, ok := last[m.Key]; ok && n < before {
			t.Errorf("key %s: %d after %d", m.Key, n, before)
		}
		last[m.Key] = n
	}
}

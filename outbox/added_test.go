package outbox_test

import (
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// A sync takes more types while a delivery is in flight, and an earlier delivery of its key is
// added. That one waits for the end of the attempt: two of a key are never in flight.
func TestAnAddedEventWaitsForTheDeliveryBeingSent(t *testing.T) {
	const write = `INSERT INTO outbox.event (type, key, payload) VALUES ($1, 'k', '{}')`
	wider := outbox.Registration{Name: sync, Patterns: []string{"a", "b"}, OnFailed: "block"}
	tests := map[string]func(d *desk) (inFlight []*outbox.Delivery){
		"written by a transaction that began before the change": func(d *desk) []*outbox.Delivery {
			tx, err := d.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), write, "b"); err != nil {
				t.Fatal(err)
			}
			if _, err := d.a.Apply(t.Context(), wider); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			d.exec(write, "a")
			return d.claim(d.a)
		},
		"retained, and added from the beginning": func(d *desk) []*outbox.Delivery {
			d.exec(write, "b")
			d.exec(write, "a")
			claimed := d.claim(d.a)
			older := wider
			older.From = "beginning"
			if _, err := d.a.Apply(t.Context(), older); err != nil {
				t.Fatal(err)
			}
			return claimed
		},
	}
	for name, apply := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, outbox.Registration{Name: sync, Patterns: []string{"a"}, OnFailed: "block"})
			inFlight := apply(d)
			if len(inFlight) != 1 {
				t.Fatalf("%d in flight, want 1", len(inFlight))
			}
			added := d.a.NewBackfill(sync)
			for complete, end := false, time.Now().Add(time.Minute); !complete; {
				var err error
				if complete, _, err = added.Step(t.Context(), 100); err != nil {
					t.Fatal(err)
				}
				if time.Now().After(end) {
					t.Fatal("the addition does not end within a minute")
				}
			}
			if c := d.claim(d.b); len(c) != 0 {
				t.Errorf("claimed %v while another of the key is in flight", numbers(c))
			}
			if r := d.record(d.a, outbox.Delivered, inFlight...); r.Err != nil || !r.Done[0] {
				t.Fatalf("the recording: %+v", r)
			}
			c := d.claim(d.b)
			if len(c) != 1 || c[0].Event.Type != "b" || c[0].Class != "" {
				t.Errorf("claimed %+v after its end, want the added one", c)
			}
		})
	}
}

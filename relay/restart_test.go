package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// Relays start and stop at any moment, beside each other: while they still
// register, while they claim and while they send. Each ends without an error,
// leaves no claim and no goroutine behind.
func TestStartsAndStopsAtAnyMomentLeakNothing(t *testing.T) {
	w := newWorldAlone(t)
	config := sync1(newCourt(accepts))
	config.Logger = slog.New(slog.DiscardHandler)
	w.register(config)
	w.bulk(2000)
	before := goleak.IgnoreCurrent()
	once := func(name string, after time.Duration) error {
		store, err := outbox.Open(context.Background(), w.url, outbox.Options{Name: name, MaxConnections: 4})
		if err != nil {
			return err
		}
		defer store.Close()
		r, err := relay.New(store, config)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), after)
		defer cancel()
		return r.Run(ctx)
	}
	var group errgroup.Group
	for i := range 2 {
		group.Go(func() error {
			for n := range 25 {
				if err := once(fmt.Sprintf("relay-%d-%d", i, n), time.Duration(rand.IntN(60))*time.Millisecond); err != nil {
					return fmt.Errorf("start %d: %w", n, err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
	if n := w.claims(); n > 0 {
		t.Errorf("%d claims left behind", n)
	}
	w.start("last", config)
	w.drained()
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`); n != 2000 {
		t.Errorf("%d delivered, want 2000", n)
	}
}

// A relay that delivers something and is stopped at once has noted when, also
// where somebody holds the sync's row for a moment.
func TestTheLastDeliveryIsNotedAtAStop(t *testing.T) {
	w := newWorld(t)
	config := sync1(newCourt(accepts))
	w.register(config)
	r := w.start("relay-1", config)
	for n := range 15 {
		w.emit("H-1", map[string]any{"n": n})
		w.drained()
		if n%5 != 0 && n < 13 {
			continue
		}
		if n == 14 {
			tx, err := w.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), `SELECT FROM outbox.sync FOR UPDATE`); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(200*time.Millisecond, func() { _ = tx.Rollback(context.Background()) })
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		// The log has when the database was told, the note when the relay was.
		if late := query[string](w, `
SELECT coalesce(string_agg(format('%s delivered at %s, noted %s', l.event_id, l.at, s.last_delivered_at), '; '), '')
  FROM outbox.sync AS s JOIN outbox.delivery_log AS l ON l.sync = s.name AND l.outcome = 'delivered'
 WHERE s.last_delivered_at IS NULL OR s.last_delivered_at < l.at - interval '100 ms'`); late != "" {
			t.Fatal(late)
		}
		r = w.start("relay-1", config)
	}
}

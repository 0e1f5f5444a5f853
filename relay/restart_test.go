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

// Several relays start and stop at any moment: while they register, while they claim and while they
// send. Each ends without an error, and then has no claim and no goroutine.
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
	var left error
	w.within(patience, "no goroutine is left behind", func() bool { left = goleak.Find(before); return left == nil })
	if n := w.claims(); n > 0 {
		t.Errorf("%d claims left behind", n)
	}
	w.start("last", config)
	w.drained()
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`); n != 2000 {
		t.Errorf("%d delivered, want 2000", n)
	}
}

// noting tells when a call of NoteDelivery found the row locked.
type noting struct {
	*outbox.Store
	refused chan struct{}
}

func (s noting) NoteDelivery(ctx context.Context, sync string, at time.Time) (bool, error) {
	noted, err := s.Store.NoteDelivery(ctx, sync, at)
	if err == nil && !noted {
		select {
		case s.refused <- struct{}{}:
		default:
		}
	}
	return noted, err
}

// A relay delivers and is stopped at once. It has written the time of the delivery, also if the sync's
// row was locked for a moment.
func TestTheLastDeliveryIsNotedAtAStop(t *testing.T) {
	w := newWorld(t)
	config := sync1(newCourt(accepts))
	w.register(config)
	refused := make(chan struct{}, 1)
	start := func() *running {
		store, err := outbox.Open(t.Context(), w.url, outbox.Options{Name: "relay-1"})
		if err != nil {
			t.Fatal(err)
		}
		return w.startOn(noting{store, refused}, store.Close, config)
	}
	r := start()
	for n := range 15 {
		written := query[time.Time](w, `SELECT clock_timestamp()`)
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
			go func() {
				select {
				case <-refused:
				case <-t.Context().Done():
				}
				_ = tx.Rollback(context.Background())
			}()
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if noted := query[*time.Time](w, `SELECT last_delivered_at FROM outbox.sync`); noted == nil || noted.Before(written) {
			t.Fatalf("event %d was written at %s and delivered; the last delivery is noted at %v", n, written, noted)
		}
		r = start()
	}
}

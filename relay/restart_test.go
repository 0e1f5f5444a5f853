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
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'sending' OR crashes > 0`); n > 0 {
		t.Errorf("%d claims left behind", n)
	}
	w.start("last", config)
	w.drained()
	if n := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`); n != 2000 {
		t.Errorf("%d delivered, want 2000", n)
	}
}

package profiletest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// A relay on a database sends the same hearings to all three receivers. Some answers are lost.
func TestARelayKeepsAllThreeInStep(t *testing.T) {
	database := pgtest.New(t)
	ecf, ecfURL := newCourt(t, true)
	hmc := newComponent(t)
	_, hmcURL := serve(t, "hmc", hmc.answer)
	hmi := &gateway{t: t, hearings: map[string]map[string]any{}}
	hmiAPI, hmiURL := serve(t, "hmi", hmi.answer)
	everySeventh := func(n int) bool { return n%7 == 0 }
	ecf.lose, hmiAPI.lose = everySeventh, everySeventh

	store, err := outbox.Open(t.Context(), database, outbox.Options{Name: "relay-1"})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	c := relay.Config{Logger: slog.New(slog.DiscardHandler), Syncs: []relay.Sync{open(t, "ecf5", ecfURL), open(t, "hmc", hmcURL), open(t, "hmi", hmiURL)}}
	for i := range c.Syncs {
		c.Syncs[i].Retry.Initial = 10 * time.Millisecond
		c.Syncs[i].From = "beginning"
	}
	r, err := relay.New(store, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var plans []plan
	events := 0
	for seed := range uint64(30) {
		p := random(seed, names)
		plans = append(plans, p)
		events += len(p.events)
		for _, e := range p.events {
			if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return outbox.Append(t.Context(), tx, e) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	db := outboxtest.Connect(t, database)
	db.Until("everything is delivered, or something has failed", `SELECT EXISTS (SELECT FROM outbox.delivery WHERE state = 'failed') OR
		(SELECT count(*) = 3 * $1 FROM outbox.delivery_log WHERE outcome IN ('delivered', 'duplicate', 'accepted'))`, events)
	for _, failed := range outboxtest.List[string](db, `SELECT sync || ': ' || reason FROM outbox.delivery_log WHERE outcome = 'failed'`) {
		t.Fatal(failed)
	}

	for _, p := range plans {
		ecf.has(p)
		hmc.has(p)
		hmi.has(p)
	}
	if unknown := outboxtest.One[int](db, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'unknown'`); unknown == 0 {
		t.Error("no answer was lost")
	}
	if duplicates := outboxtest.One[int](db, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'duplicate' AND sync = 'CourtScheduling'`); duplicates == 0 || duplicates != ecf.doubles {
		t.Errorf("the log has %d duplicates, the court said it %d times", duplicates, ecf.doubles)
	}
}

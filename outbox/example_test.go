package outbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// A hearing is moved, and the event about it is written, in one transaction: both happen, or
// neither. The hearing's row is changed first, so the order of its events is the order of the
// commits.
func ExampleAppend() {
	ctx := context.Background()
	database, drop := pgtest.ForExample() // a migrated database
	defer drop()
	pool, err := pgxpool.New(ctx, database)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	_, err = pool.Exec(ctx, `
CREATE TABLE hearing (id text PRIMARY KEY, scheduled_at timestamptz NOT NULL, version bigint NOT NULL);
INSERT INTO hearing VALUES ('H-1', '2027-03-01T10:00:00-05:00', 1)`)
	if err != nil {
		log.Fatal(err)
	}

	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var version int64
		const move = `UPDATE hearing SET scheduled_at = $2, version = version + 1 WHERE id = $1 RETURNING version`
		if err := tx.QueryRow(ctx, move, "H-1", "2027-03-02T09:30:00-05:00").Scan(&version); err != nil {
			return err
		}
		payload, err := json.Marshal(map[string]any{"hearingId": "H-1", "scheduledAt": "2027-03-02T09:30:00-05:00"})
		if err != nil {
			return err
		}
		return outbox.Append(ctx, tx, outbox.Event{Type: "scheduling:updated", Key: "H-1", Version: &version, Payload: payload})
	})
	if err != nil {
		log.Fatal(err)
	}

	var typ, key string
	var version int64
	err = pool.QueryRow(ctx, `SELECT type, key, version FROM outbox.event`).Scan(&typ, &key, &version)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(typ, key, version)
	// Output: scheduling:updated H-1 2
}

// A relay registers a sync, claims due deliveries, sends them and records the results. Package
// relay does this for many deliveries at once, and it also renders and retries them.
func ExampleStore() {
	ctx := context.Background()
	database, drop := pgtest.ForExample()
	defer drop()
	store, err := outbox.Open(ctx, database, outbox.Options{Name: "relay-1"})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	const sync = "CourtCalendarSync"
	if _, err := store.Register(ctx, []outbox.Registration{{Name: sync, Patterns: []string{"scheduling:*"}, OnFailed: "block"}}); err != nil {
		log.Fatal(err)
	}
	backfill := store.NewBackfill(sync) // adds deliveries for the events that exist already
	for complete := false; !complete; {
		if complete, _, err = backfill.Step(ctx, 500); err != nil {
			log.Fatal(err)
		}
	}

	writer, err := pgx.Connect(ctx, database)
	if err != nil {
		log.Fatal(err)
	}
	defer writer.Close(ctx)
	if _, err := writer.Exec(ctx, `INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:created', 'H-1', '{"court": "NY-07"}')`); err != nil {
		log.Fatal(err)
	}

	var arrivals outbox.Arrivals
	claims, err := store.Claim(ctx, outbox.ClaimRequest{Sync: sync, Lease: time.Minute, Capacity: 10, Lanes: 10}, &arrivals)
	if err != nil {
		log.Fatal(err)
	}
	results := claims.Idle
	for _, d := range claims.Deliveries {
		fmt.Printf("send %s of %s: %s\n", d.Event.Type, d.Key, d.Event.Payload)
		results = append(results, outbox.Result{Delivery: d, Outcome: outbox.Delivered, Attempt: true, Code: "HTTP 201", AnsweredAt: time.Now()})
	}
	recorded := store.Record(ctx, sync, results)
	fmt.Println("recorded:", recorded.Done, recorded.Err)
	// Output:
	// send scheduling:created of H-1: {"court": "NY-07"}
	// recorded: [true] <nil>
}

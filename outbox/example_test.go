package outbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// A hearing is moved and the event about it is written in one transaction:
// either both happen or neither. The hearing's row is changed first, which
// makes the order of its events the order of the commits.
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

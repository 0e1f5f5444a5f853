// Package operate changes sets of deliveries on behalf of a person: it requeues, discards
// and replays them.
//
// A set is what a [Filter] selects as of one moment: deliveries that failed later are not
// in it, and neither are deliveries that were changed since. [Choose] counts and describes
// a set and changes nothing. [Apply] changes exactly that set, in pages of 1,000
// deliveries with one transaction each. Relays, writers and other operators may work at
// the same time: each delivery is changed at most once, and counted by the one who
// changed it.
package operate

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Beginner is a pool or a connection. Its login is a member of outbox_operator.
type Beginner interface {
	BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error)
}

// Actor is the person who acts, and the reason. Both are written to the delivery log.
type Actor struct{ Name, Reason string }

// act runs do in one transaction on behalf of a person.
func act(ctx context.Context, db Beginner, by Actor, do func(pgx.Tx) error) error {
	// Not the login's default: outbox.discard must see the newest claims of relays.
	return pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		const settings = `SELECT set_config('lockstep.actor', $1, true), set_config('lockstep.reason', $2, true)`
		if _, err := tx.Exec(ctx, settings, by.Name, by.Reason); err != nil {
			return err
		}
		return do(tx)
	})
}

// collect reads rows as values of T, whose fields are named like the columns.
func collect[T any](ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]T, error) {
	rows, _ := tx.Query(ctx, sql, args...) // CollectRows returns its error
	return pgx.CollectRows(rows, pgx.RowToStructByName[T])
}

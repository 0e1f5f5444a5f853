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
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Beginner is a pool or a connection. Its login is a member of outbox_operator.
type Beginner interface {
	BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error)
}

// Actor is the person who acts, and the reason. Both are written to the delivery log.
type Actor struct{ Name, Reason string }

// errUnclear says that the connection broke during COMMIT.
var errUnclear = errors.New("it is not known whether the transaction was committed")

// Act runs do in one transaction on behalf of a person. The database writes the name and
// the reason into the log.
func Act(ctx context.Context, db Beginner, by Actor, do func(pgx.Tx) error) error {
	isDone := false
	// Not the login's default: outbox.discard must see the newest claims of relays.
	err := pgx.BeginTxFunc(ctx, db, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		const settings = `SELECT set_config('lockstep.actor', $1, true), set_config('lockstep.reason', $2, true)`
		if _, err := tx.Exec(ctx, settings, by.Name, by.Reason); err != nil {
			return err
		}
		err := do(tx)
		isDone = err == nil
		return err
	})
	if refusal, ok := errors.AsType[*pgconn.PgError](err); err != nil && isDone && (!ok || refusal.SeverityUnlocalized != "ERROR") {
		return fmt.Errorf("%w: %w", errUnclear, err)
	}
	return err
}

// collect reads rows as values of T, whose fields are named like the columns.
func collect[T any](ctx context.Context, tx pgx.Tx, sql string, args ...any) ([]T, error) {
	rows, _ := tx.Query(ctx, sql, args...) // CollectRows returns its error
	return pgx.CollectRows(rows, pgx.RowToStructByName[T])
}

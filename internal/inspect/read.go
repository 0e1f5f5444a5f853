package inspect

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Beginner is a pool or a connection.
type Beginner interface {
	BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error)
}

// read runs do in one snapshot, which changes nothing, and bounds each of its statements.
func read(ctx context.Context, db Beginner, do func(pgx.Tx) error) error {
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	return pgx.BeginTxFunc(ctx, db, snapshot, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = '500ms'`); err != nil {
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

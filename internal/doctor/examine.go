package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/outbox"
)

// Options say what to examine.
type Options struct {
	// Connect opens a connection to the database.
	Connect func(ctx context.Context) (*pgx.Conn, error)

	// Store is of the same database.
	Store *outbox.Store

	// Version is that of this program.
	Version string

	// Config is the configuration. Default: none, and checks that need one are left out.
	Config *config.File

	// Network says whether to connect to the receivers of the configuration.
	Network bool

	// Tokens says whether to get a token from each token endpoint.
	Tokens bool

	// Also are more checks of a database whose schema fits.
	Also []Check

	oldTransaction time.Duration // from which a transaction is found; default: 15 minutes
}

// Examine makes all checks and returns what they find. If the database cannot be used, the
// checks that need it are left out.
func Examine(ctx context.Context, o Options) []Finding {
	found := o.database(ctx)
	if o.Config != nil && o.Network {
		found = append(found, run(ctx, o.receivers())...)
	}
	return found
}

// database makes the checks of the database.
func (o Options) database(ctx context.Context) []Finding {
	found := o.server().make(ctx)
	if _, err := o.Store.State(ctx); err != nil && sqlState(err) != insufficientPrivilege {
		return found
	}
	found = append(found, run(ctx, []Check{o.login(), o.schema()})...)
	if state, err := o.Store.State(ctx); err != nil || state.Version < outbox.Schema {
		return found
	}
	checks := []Check{
		o.drift(), o.triggers(), o.rowSecurity(), o.sequence(), o.clock(), o.zones(),
		o.transactions(), o.slots(), o.vacuum(), o.partitions(), o.relays(), o.alerts(), o.deliveries(),
	}
	return append(found, run(ctx, append(checks, o.Also...))...)
}

// read runs do in a transaction that changes nothing, on a connection of its own.
func (o Options) read(ctx context.Context, do func(pgx.Tx) error) error {
	conn, err := o.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // it was only read
	}()
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// The server ends the statement too, when the check is given up. Names have their schema and texts one form, whatever
		// the login's defaults are.
		const settings = `
SELECT set_config('statement_timeout', $1, true), set_config('search_path', 'pg_catalog, pg_temp', true), set_config('intervalstyle', 'postgres', true),
       set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, MDY', true)`
		if _, err := tx.Exec(ctx, settings, fmt.Sprint(timeout.Milliseconds())); err != nil {
			return err
		}
		return do(tx)
	})
}

// list reads rows as values of T, whose fields are named like the columns.
func list[T any](ctx context.Context, o Options, sql string, args ...any) (all []T, err error) {
	err = o.read(ctx, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, sql, args...) // CollectRows returns its error
		all, err = pgx.CollectRows(rows, pgx.RowToStructByName[T])
		return err
	})
	return all, err
}

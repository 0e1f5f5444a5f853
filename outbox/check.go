package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// ErrSchema reports a database whose schema this program cannot work with.
var ErrSchema = errors.New("outbox schema does not fit this program")

// ErrReadOnly reports a server that accepts no writes: a standby, or a primary that was
// demoted.
var ErrReadOnly = errors.New("database is read-only")

// State is the state of a database, as [Store.State] reads it.
type State struct {
	Version int64 // version of the outbox schema; 0: there is no schema
	Oldest  int64 // programs made for this schema version or a newer one work with the schema; 0: there is no schema

	ReadOnly  string // why the server accepts no writes, and what to do; empty if it accepts writes
	Isolation string // default isolation level of this login's transactions
}

// State reads the state of the database. It returns [ErrServer] if Lockstep does not work
// with the server.
func (s *Store) State(ctx context.Context) (State, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	var state State
	if err := CheckServer(ctx, s.pool); err != nil {
		return state, s.judge(ctx, err)
	}
	const server = `
SELECT to_regprocedure('outbox.oldest_relay()') IS NOT NULL,
       coalesce(` + readOnlyReason + `, ''),
       current_setting('transaction_isolation')`
	var migrated bool
	err := s.pool.QueryRow(ctx, server).Scan(&migrated, &state.ReadOnly, &state.Isolation)
	if err != nil || !migrated {
		return state, s.judge(ctx, err)
	}
	const schema = `
SELECT coalesce(max(version_id), 0), outbox.oldest_relay()
  FROM outbox.goose_db_version
 WHERE is_applied`
	err = s.pool.QueryRow(ctx, schema).Scan(&state.Version, &state.Oldest)
	return state, s.judge(ctx, err)
}

// ErrIsolation reports a login whose transactions are not READ COMMITTED. A relay must see
// what others commit during its transactions. [Open] sets the isolation level of its
// connections. Through a transaction pooler it cannot: there the login needs the right
// default.
var ErrIsolation = errors.New("transactions of this login are not READ COMMITTED")

// Check returns nil if a relay can work with the database. Otherwise it returns
// [ErrServer], [ErrReadOnly], [ErrIsolation], [ErrSchema] or the error of the call. ErrSchema means that
// there is no outbox schema, that it is older than this program needs, or that it is so
// new that this program does not work with it.
func (s *Store) Check(ctx context.Context) error {
	state, err := s.State(ctx)
	switch {
	case err != nil:
		return err
	case state.ReadOnly != "":
		return s.judge(ctx, fmt.Errorf("%w: %s", ErrReadOnly, state.ReadOnly))
	case state.Isolation != "read committed":
		return fmt.Errorf("%w but %s: set it for the login that relays use: ALTER ROLE … SET default_transaction_isolation = 'read committed'", ErrIsolation, state.Isolation)
	case state.Version == 0:
		return fmt.Errorf("%w: no outbox schema in this database; create it with: lockstep migrate up", ErrSchema)
	case state.Version < Schema:
		return fmt.Errorf("%w: it is version %d, this program needs %d; run: lockstep migrate up", ErrSchema, state.Version, Schema)
	case state.Oldest > Schema:
		return fmt.Errorf("%w: it is version %d, which serves programs made for version %d and newer, and this one is made for %d; install a newer lockstep",
			ErrSchema, state.Version, state.Oldest, Schema)
	}
	return nil
}

// ErrPrivilege reports a login without the privileges of a relay.
var ErrPrivilege = errors.New("this login may not relay")

// CheckPrivileges returns [ErrPrivilege] if the login does not have the privileges of a
// relay, which are those of the role outbox_relay, or if row-level security may hide rows
// from it.
func (s *Store) CheckPrivileges(ctx context.Context) error {
	const statement = `
SELECT current_user,
       has_table_privilege('outbox.delivery', 'SELECT') AND has_table_privilege('outbox.delivery', 'UPDATE')
       AND has_table_privilege('outbox.delivery', 'DELETE') AND has_table_privilege('outbox.lane', 'INSERT')
       AND has_table_privilege('outbox.lane', 'UPDATE') AND has_table_privilege('outbox.lane', 'DELETE') AND has_any_column_privilege('outbox.delivery_log', 'INSERT')
       AND has_table_privilege('outbox.hold', 'INSERT') AND has_table_privilege('outbox.external_ref', 'INSERT')
       AND has_table_privilege('outbox.heartbeat', 'INSERT'),
       (SELECT coalesce(string_agg(c.oid::regclass::text, ', ' ORDER BY c.relname), '')
          FROM pg_class AS c
         WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p') AND row_security_active(c.oid))`
	var login, hidden string
	var allowed bool
	if err := s.scan(ctx, []any{&login, &allowed, &hidden}, statement); err != nil {
		return err
	}
	login = pgx.Identifier{login}.Sanitize()
	switch {
	case !allowed:
		return fmt.Errorf("%w: grant it the role outbox_relay, as an administrator: GRANT outbox_relay TO %s", ErrPrivilege, login)
	case hidden != "":
		return fmt.Errorf("%w: row-level security may hide rows of %s from it; turn it off, as the owner: ALTER TABLE … DISABLE ROW LEVEL SECURITY, or exempt the login, as an administrator: ALTER ROLE %s BYPASSRLS",
			ErrPrivilege, hidden, login)
	}
	return nil
}

// ErrNumbers reports that new events would get numbers that are not in the order of the
// inserts.
var ErrNumbers = errors.New("the numbers of new events are not in order")

// CheckNumbers returns [ErrNumbers] if the sequence of event numbers was begun anew, or has
// a cache. The error has the remedy. Store.Maintain reports the same.
func (s *Store) CheckNumbers(ctx context.Context) error {
	var trouble *string
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error { // it reads whole tables
		return tx.QueryRow(ctx, `SELECT outbox.sequence_trouble()`).Scan(&trouble)
	})
	if err != nil || trouble == nil {
		return s.judge(ctx, err)
	}
	return fmt.Errorf("%w: %s", ErrNumbers, *trouble)
}

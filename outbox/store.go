package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Schema is the version of the outbox schema that this package works with:
// the oldest that has everything it needs. Newer schemas say themselves, in
// outbox.oldest_relay(), which programs they still serve.
const Schema = 1

// Options are the settings of a [Store]. The zero value means the defaults.
type Options struct {
	MaxConnections int           // connections of the pool; default 8
	Timeout        time.Duration // bound on each database call; default 10s
	Name           string        // application_name, and the relay's name in claims and the log; default "lockstep"
}

func (o Options) withDefaults() Options {
	if o.MaxConnections <= 0 {
		o.MaxConnections = 8
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Name == "" {
		o.Name = "lockstep"
	}
	return o
}

// Store is the relay's side of the outbox: it claims, records and releases
// deliveries, and keeps syncs and their holds. It holds no state but its
// connections and is safe for concurrent use.
type Store struct {
	pool    *pgxpool.Pool
	timeout time.Duration
	relay   string
}

// Open prepares a pool for the database at url. It does not connect: the first
// call does.
func Open(ctx context.Context, url string, o Options) (*Store, error) {
	o = o.withDefaults()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("outbox: the database URL cannot be parsed; want postgres://user:password@host:port/database") // the error may show the password
	}
	config.MaxConns = int32(o.MaxConnections)
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = 5 * time.Second
	}
	config.ConnConfig.RuntimeParams["application_name"] = o.Name
	if config.ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		pinPlans(config.ConnConfig.RuntimeParams)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("outbox: open pool: %w", err)
	}
	return &Store{pool: pool, timeout: o.Timeout, relay: o.Name}, nil
}

// pinPlans adds settings to the start of each connection. The hot statements
// are written for index walks; a planner that was misled by a skewed table must
// not turn to another plan. A transaction pooler refuses such settings; a URL
// for one names another default_query_exec_mode, since it cannot keep prepared
// statements either, and gets none of them.
func pinPlans(params map[string]string) {
	for name, value := range map[string]string{
		"jit": "off", "enable_seqscan": "off", "enable_bitmapscan": "off",
		"enable_hashjoin": "off", "enable_mergejoin": "off", "plan_cache_mode": "force_generic_plan",
		"lock_timeout": "2s", // what an operator keeps locked in an open transaction is not waited for
	} {
		if _, given := params[name]; !given {
			params[name] = value
		}
	}
}

// Close closes the connections. It waits for calls under way.
func (s *Store) Close() { s.pool.Close() }

// ErrSchema reports a database whose schema this program cannot work with.
var ErrSchema = errors.New("outbox schema does not fit this program")

// ErrReadOnly reports a server that accepts no writes: a standby, or a primary
// that was demoted.
var ErrReadOnly = errors.New("database is read-only")

// State is what a database says about itself.
type State struct {
	Version  int64 // of the schema; 0: there is none
	Oldest   int64 // the oldest schema version whose programs this schema serves; 0: there is none
	ReadOnly bool  // the server accepts no writes
}

// State asks the database for its state.
func (s *Store) State(ctx context.Context) (State, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const server = `
SELECT to_regprocedure('outbox.oldest_relay()') IS NOT NULL,
       pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean`
	var state State
	var migrated bool
	if err := s.pool.QueryRow(ctx, server).Scan(&migrated, &state.ReadOnly); err != nil || !migrated {
		return state, s.judge(err)
	}
	const schema = `
SELECT coalesce(max(version_id), 0), outbox.oldest_relay()
  FROM outbox.goose_db_version
 WHERE is_applied`
	err := s.pool.QueryRow(ctx, schema).Scan(&state.Version, &state.Oldest)
	return state, s.judge(err)
}

// Check makes sure that the server accepts writes, and that the schema is there
// and fits: it is not older than this program needs, and if it is newer, it
// still serves this program.
func (s *Store) Check(ctx context.Context) error {
	state, err := s.State(ctx)
	switch {
	case err != nil:
		return err
	case state.ReadOnly:
		return ErrReadOnly
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

// ErrPrivilege reports a login that may not do a relay's work.
var ErrPrivilege = errors.New("this login may not relay")

// CheckPrivileges makes sure that the login may do a relay's work.
func (s *Store) CheckPrivileges(ctx context.Context) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `
SELECT current_user,
       has_table_privilege('outbox.delivery', 'SELECT') AND has_table_privilege('outbox.delivery', 'UPDATE')
       AND has_table_privilege('outbox.delivery', 'DELETE') AND has_table_privilege('outbox.delivery_log', 'INSERT')
       AND has_table_privilege('outbox.hold', 'INSERT') AND has_table_privilege('outbox.external_ref', 'INSERT')`
	var login string
	var allowed bool
	if err := s.pool.QueryRow(ctx, statement).Scan(&login, &allowed); err != nil {
		return s.judge(err)
	}
	if !allowed {
		return fmt.Errorf("%w: grant it the role outbox_relay, as an administrator: GRANT outbox_relay TO %s", ErrPrivilege, pgx.Identifier{login}.Sanitize())
	}
	return nil
}

// deadline bounds a database call and names the bound in its error.
func (s *Store) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.timeout, fmt.Errorf("database did not answer within %s", s.timeout))
}

// Brief says what is wrong with the database without saying where it is and who
// connects, for places that anybody may read.
func Brief(err error) string {
	switch pgErr, ok := errors.AsType[*pgconn.PgError](err); {
	case errors.Is(err, ErrReadOnly), errors.Is(err, ErrSchema):
		return err.Error()
	case ok:
		return "the database says SQLSTATE " + pgErr.Code
	default:
		return "the database cannot be reached"
	}
}

// poolerHint names the way out where a transaction pooler stands between.
const poolerHint = "through a transaction pooler, add default_query_exec_mode=exec to the database URL"

// judge drops the pool's connections when the server turned read-only: they
// belong to a demoted primary.
func (s *Store) judge(err error) error {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && (pgErr.Code == "26000" || strings.Contains(pgErr.Message, "unsupported startup parameter")) {
		return fmt.Errorf("%w (%s)", err, poolerHint)
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "25006" {
		s.pool.Reset()
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return err
}

// IsTemporary reports whether a database error goes away by itself: the server
// is away, restarting, overloaded, or asked to repeat the transaction.
func IsTemporary(err error) bool {
	if err == nil {
		return false
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		// Connection, rollback, resources, in use, operator intervention; read-only,
		// no such database yet, input or output.
		for _, class := range []string{"08", "40", "53", "55", "57", "25006", "3D000", "58030"} {
			if strings.HasPrefix(pgErr.Code, class) {
				return true
			}
		}
		return false
	}
	var netErr net.Error
	var connErr *pgconn.ConnectError
	return errors.As(err, &connErr) || errors.As(err, &netErr) || pgconn.SafeToRetry(err) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, pgx.ErrTxClosed) || isBroken(err)
}

func isBroken(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF)
}

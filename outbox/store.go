package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
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
	MaxConnections int           // connections of the pool, besides the one of [Store.Listen]; default 8
	Timeout        time.Duration // bound on each database call, twelve times that on a long one; default 10s
	AnyHost        bool          // of several hosts in the URL, take the first that answers, though it accepts no writes
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
	pooler  bool // a transaction pooler stands between

	resets atomic.Int64 // how often all connections were dropped: another server may have answered since
}

// Open prepares a pool for the database at url. It does not connect: the first
// call does. Of several hosts in url it takes the one that accepts writes,
// unless url says otherwise with target_session_attrs, or o with AnyHost.
func Open(ctx context.Context, url string, o Options) (*Store, error) {
	o = o.withDefaults()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("outbox: the database URL cannot be parsed; want postgres://user:password@host:port/database") // the error may show the password
	}
	config.MaxConns = int32(o.MaxConnections)
	c := config.ConnConfig
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = o.Timeout / 2 // for each host: a dead one leaves time for the next
	}
	if config.PingTimeout == 0 {
		config.PingTimeout = o.Timeout / 4 // a connection that was idle is tried before it is used
	}
	if !o.AnyHost {
		PreferWritable(c, url)
	}
	// What a call that ran into its deadline leaves behind on the server is ended by pgx: it closes the connection and
	// sends a cancel request. Its CancelRequestContextWatcherHandler would keep the connection, at the price of a longer
	// wait for a server that is gone, and of cancels that arrive late and hit the next call.
	c.DialFunc = (&net.Dialer{
		Timeout:         c.ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount},
	}).DialContext
	c.RuntimeParams["application_name"] = o.Name
	// Else it is the database's own: text of a LATIN1 database would come as no UTF-8.
	c.RuntimeParams["client_encoding"] = "UTF8"
	pooler := c.DefaultQueryExecMode != pgx.QueryExecModeCacheStatement
	if !pooler {
		for name, value := range settings(o.Timeout) {
			if _, given := c.RuntimeParams[name]; !given {
				c.RuntimeParams[name] = value
			}
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("outbox: open pool: %w", err)
	}
	return &Store{pool: pool, timeout: o.Timeout, relay: o.Name, pooler: pooler}, nil
}

// PreferWritable makes a configuration that was parsed from url, and has several
// hosts, connect to the one that accepts writes. A url that names
// target_session_attrs is left as it is.
func PreferWritable(c *pgx.ConnConfig, url string) {
	// For target_session_attrs=any nothing is set either.
	chosen := c.ValidateConnect != nil || strings.Contains(url, "target_session_attrs") || os.Getenv("PGTARGETSESSIONATTRS") != ""
	// Fallbacks alone do not tell: sslmode=prefer has one, of the same server.
	several := slices.ContainsFunc(c.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.Host != c.Host || f.Port != c.Port })
	if several && !chosen {
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
}

// A peer that vanished is noticed after idle + interval × count, by either side.
const (
	keepAliveIdle     = 10 * time.Second
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 3
)

// closeTimeout bounds the wait for connections to close.
const closeTimeout = 3 * time.Second

// settings are those at the start of each connection. A transaction pooler
// refuses them; a URL for one names another default_query_exec_mode, since it
// cannot keep prepared statements either, and gets none of them.
func settings(timeout time.Duration) map[string]string {
	milliseconds := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	seconds := func(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }
	return map[string]string{
		// The hot statements are written for index walks; a planner that was misled by a skewed table must not turn to
		// another plan.
		"jit": "off", "enable_seqscan": "off", "enable_bitmapscan": "off",
		"enable_hashjoin": "off", "enable_mergejoin": "off", "plan_cache_mode": "force_generic_plan",
		// What others change meanwhile is looked at again, not answered with an error, whatever the login's default is.
		"default_transaction_isolation": "read committed",
		// What an operator keeps locked in an open transaction is not waited for.
		"lock_timeout": "2s",
		// The server ends what its client has given up or did not live to finish: nobody waits for the locks of a relay
		// that vanished. Store.inTx raises statement_timeout for long statements.
		"statement_timeout":                   milliseconds(timeout),
		"idle_in_transaction_session_timeout": milliseconds(timeout),
		"tcp_keepalives_idle":                 seconds(keepAliveIdle),
		"tcp_keepalives_interval":             seconds(keepAliveInterval),
		"tcp_keepalives_count":                strconv.Itoa(keepAliveCount),
		"tcp_user_timeout":                    milliseconds(keepAliveIdle + keepAliveCount*keepAliveInterval),
	}
}

// Close closes the connections. It waits for calls under way, but not for a
// server that does not answer: then connections are closed in the background.
func (s *Store) Close() {
	closed := make(chan struct{})
	go func() { s.pool.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(closeTimeout):
	}
}

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

	Isolation string // of this login's transactions
}

// State asks the database for its state.
func (s *Store) State(ctx context.Context) (State, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const server = `
SELECT to_regprocedure('outbox.oldest_relay()') IS NOT NULL,
       pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean,
       current_setting('transaction_isolation')`
	var state State
	var migrated bool
	if err := s.pool.QueryRow(ctx, server).Scan(&migrated, &state.ReadOnly, &state.Isolation); err != nil || !migrated {
		return state, s.judge(ctx, err)
	}
	const schema = `
SELECT coalesce(max(version_id), 0), outbox.oldest_relay()
  FROM outbox.goose_db_version
 WHERE is_applied`
	err := s.pool.QueryRow(ctx, schema).Scan(&state.Version, &state.Oldest)
	return state, s.judge(ctx, err)
}

// ErrIsolation reports a login whose transactions do not see what others commit
// meanwhile, which a relay depends on. It sets its own isolation level, but for a
// transaction pooler, where that has to be set for the login.
var ErrIsolation = errors.New("transactions of this login are not READ COMMITTED")

// Check makes sure that the server accepts writes, that transactions are READ
// COMMITTED, and that the schema is there and fits: it is not older than this
// program needs, and if it is newer, it still serves this program.
func (s *Store) Check(ctx context.Context) error {
	state, err := s.State(ctx)
	switch {
	case err != nil:
		return err
	case state.ReadOnly:
		return s.judge(ctx, ErrReadOnly)
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

// ErrPrivilege reports a login that may not do a relay's work.
var ErrPrivilege = errors.New("this login may not relay")

// CheckPrivileges makes sure that the login may do a relay's work.
func (s *Store) CheckPrivileges(ctx context.Context) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	const statement = `
SELECT current_user,
       has_table_privilege('outbox.delivery', 'SELECT') AND has_table_privilege('outbox.delivery', 'UPDATE')
       AND has_table_privilege('outbox.delivery', 'DELETE') AND has_table_privilege('outbox.lane', 'INSERT')
       AND has_table_privilege('outbox.lane', 'UPDATE') AND has_table_privilege('outbox.lane', 'DELETE') AND has_any_column_privilege('outbox.delivery_log', 'INSERT')
       AND has_table_privilege('outbox.hold', 'INSERT') AND has_table_privilege('outbox.external_ref', 'INSERT')`
	var login string
	var allowed bool
	if err := s.pool.QueryRow(ctx, statement).Scan(&login, &allowed); err != nil {
		return s.judge(ctx, err)
	}
	if !allowed {
		return fmt.Errorf("%w: grant it the role outbox_relay, as an administrator: GRANT outbox_relay TO %s", ErrPrivilege, pgx.Identifier{login}.Sanitize())
	}
	return nil
}

// deadline bounds a database call and names the bound in its error.
func (s *Store) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.timeout, silence(s.timeout))
}

// silence is a database that did not answer in the store's time.
type silence time.Duration

func (d silence) Error() string {
	return fmt.Sprintf("database did not answer within %s", time.Duration(d))
}

// Brief says what is wrong with the database without saying where it is and who
// connects, for places that anybody may read.
func Brief(err error) string {
	switch pgErr, ok := errors.AsType[*pgconn.PgError](err); {
	case errors.Is(err, ErrReadOnly), errors.Is(err, ErrSchema), errors.Is(err, ErrIsolation):
		return err.Error()
	case ok:
		return "the database says SQLSTATE " + pgErr.Code
	default:
		return "the database cannot be reached"
	}
}

// poolerHint names the way out where a transaction pooler stands between.
const poolerHint = "through a transaction pooler, add default_query_exec_mode=exec to the database URL"

// needsHint reports an error of a transaction pooler that was taken for a
// server: it refuses settings at the start, or mixes up prepared statements.
func needsHint(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == "26000" || pgErr.Code == "42P05" || strings.Contains(pgErr.Message, "unsupported startup parameter"))
}

// judge sees the error of every call, and the call's context. Where it says that
// the server is gone, going, or accepts no writes, all connections of the pool
// are dropped: the others lead to the same server, and each would cost a call to
// find that out. A caller who was less patient than the store finds out nothing.
func (s *Store) judge(ctx context.Context, err error) error {
	err = plain(err)
	_, silent := errors.AsType[silence](context.Cause(ctx))
	switch {
	case err == nil:
		return nil
	case needsHint(err):
		return fmt.Errorf("%w (%s)", err, poolerHint)
	case hasCode(err, readOnly), errors.Is(err, pgconn.ErrReadOnlyConnection):
		s.reset()
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	case errors.Is(err, ErrReadOnly), silent, isBroken(err) && !pgconn.Timeout(err),
		// connection, shutdown by an administrator, crash, starting up or in recovery, database dropped
		hasCode(err, "08", "57P01", "57P02", "57P03", "57P04"):
		s.reset()
	}
	return err
}

func (s *Store) reset() {
	s.resets.Add(1)
	s.pool.Reset()
}

// readOnly is what a standby says, or a primary that was demoted.
const readOnly = "25006"

// hasCode reports whether err is a server's error of one of the classes or
// codes.
func hasCode(err error, prefixes ...string) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(pgErr.Code, p) })
}

// NoSuchDatabase reports that the server has no database of that name.
func NoSuchDatabase(err error) bool { return hasCode(err, "3D000") }

// IsTemporary reports whether a database error goes away by itself: the server
// is away, restarting, overloaded, read-only, or asked to repeat the
// transaction.
func IsTemporary(err error) bool {
	if err == nil || needsHint(err) {
		return false
	}
	if errors.Is(err, ErrReadOnly) || errors.Is(err, pgconn.ErrReadOnlyConnection) {
		return true
	}
	if _, ok := errors.AsType[*pgconn.PgError](err); ok {
		// Connection; rollback, among them a standby's conflict with recovery; resources; in use; operator intervention;
		// read-only; a transaction that idled or lasted too long; no such database yet; input or output.
		return hasCode(err, "08", "40", "53", "55", "57", readOnly, "25P03", "25P04", "3D000", "58030")
	}
	_, refused := errors.AsType[*pgconn.ConnectError](err)
	return refused || isBroken(err) || pgconn.SafeToRetry(err) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, pgx.ErrTxClosed)
}

// IsConflict reports that the server asks to repeat a transaction because of
// what others do at the same time: a serialization failure, a deadlock, or a lock
// that was not to be had in time.
func IsConflict(err error) bool { return hasCode(err, "40", "55P03") }

// isBroken reports a connection that broke.
func isBroken(err error) bool {
	if _, refused := errors.AsType[*pgconn.ConnectError](err); refused {
		return false // there was none
	}
	_, network := errors.AsType[*net.OpError](err)
	return network || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, pgconn.ErrConnClosed)
}

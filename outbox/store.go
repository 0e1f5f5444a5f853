package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

// Schema is the oldest version of the outbox schema that this package works with. A newer
// schema says in outbox.oldest_relay() which programs work with it.
const Schema = 3

// Options are the settings of a [Store]. The zero value means the defaults.
type Options struct {
	MaxConnections int             // connections of the pool; [Store.Listen] has one more; default 8
	Timeout        time.Duration   // bound on each database call; a long one may take twelve times as long; default 10s
	AnyHost        bool            // connect to the first of several hosts that answers, even if it is read-only
	Tracer         pgx.QueryTracer // makes spans of database calls; default: none
	Name           string          // application_name, and name of the relay in claims and the log; default "lockstep"
}

func (o Options) withDefaults() Options {
	o.MaxConnections = cmp.Or(max(o.MaxConnections, 0), 8)
	o.Timeout = cmp.Or(max(o.Timeout, 0), 10*time.Second)
	o.Name = cmp.Or(o.Name, "lockstep")
	return o
}

// Store is the relay's side of the outbox. It claims and records deliveries, and manages
// syncs and their holds. It has no state but its connections. It is safe for concurrent
// use. [Open] makes one, and [Store.Close] closes its connections.
type Store struct {
	pool    *pgxpool.Pool
	timeout time.Duration
	relay   string
	pooler  bool // the connections go through a transaction pooler

	password atomic.Pointer[string] // of new connections; nil: the one in the URL

	resets atomic.Int64 // how often all connections were dropped: another server may have answered since
}

// Open prepares a pool for the database at url. It does not connect: the first call does. If
// url has several hosts, the pool connects to the one that accepts writes, unless url has
// target_session_attrs or o has AnyHost.
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
	// At the deadline of a call, pgx closes the connection and sends a cancel request. Its
	// CancelRequestContextWatcherHandler would keep the connection. But it would wait longer for a server that is gone, and
	// a late cancel request would cancel the next call.
	c.DialFunc = (&net.Dialer{
		Timeout:         c.ConnectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount},
	}).DialContext
	c.Tracer = o.Tracer
	c.RuntimeParams["application_name"] = o.Name
	UseFormats(c)
	set(c, map[string]string{"timezone": "UTC"})
	pooler := c.DefaultQueryExecMode != pgx.QueryExecModeCacheStatement
	if !pooler {
		set(c, map[string]string{
			"intervalstyle": "postgres", "bytea_output": "hex", "array_nulls": "on", "search_path": "pg_catalog, pg_temp", "idle_session_timeout": "0",
		})
		for name, value := range settings(o.Timeout) {
			if _, given := c.RuntimeParams[name]; !given {
				c.RuntimeParams[name] = value
			}
		}
	}
	s := &Store{timeout: o.Timeout, relay: o.Name, pooler: pooler}
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		s.SetPassword(c)
		return nil
	}
	if s.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("outbox: open pool: %w", err)
	}
	return s, nil
}

// UsePassword makes new connections log in with password. Open connections stay as they
// are.
func (s *Store) UsePassword(password string) { s.password.Store(&password) }

// SetPassword changes the configuration of a connection to the same database: it logs in with
// the password of [Store.UsePassword], if there is one.
func (s *Store) SetPassword(c *pgx.ConnConfig) {
	if password := s.password.Load(); password != nil {
		c.Password = *password
	}
}

// PreferWritable changes a configuration with several hosts, which was parsed from url: it
// connects to the host that accepts writes, unless url has target_session_attrs.
func PreferWritable(c *pgx.ConnConfig, url string) {
	// target_session_attrs=any sets no ValidateConnect, so the URL is searched too.
	chosen := c.ValidateConnect != nil || strings.Contains(url, "target_session_attrs") || os.Getenv("PGTARGETSESSIONATTRS") != ""
	// With sslmode=prefer there is a second entry for the same server.
	several := slices.ContainsFunc(c.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.Host != c.Host || f.Port != c.Port })
	if several && !chosen {
		c.ValidateConnect = ValidateWritable
	}
}

// Relay and server each notice that the other is gone after idle + interval × count.
const (
	keepAliveIdle     = 10 * time.Second
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 3
)

// closeTimeout is how long to wait for connections to close.
const closeTimeout = 3 * time.Second

// settings are sent at the start of each connection. A transaction pooler refuses them, so
// they are not sent through one. A URL for a pooler is known by its
// default_query_exec_mode: a pooler cannot keep prepared statements either.
func settings(timeout time.Duration) map[string]string {
	milliseconds := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	seconds := func(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }
	return map[string]string{
		// The statements of the hot path need index scans. Statistics of a skewed table must not mislead the planner.
		"jit": "off", "enable_seqscan": "off", "enable_bitmapscan": "off",
		"enable_hashjoin": "off", "enable_mergejoin": "off", "plan_cache_mode": "force_generic_plan",
		// A statement must see what others have committed meanwhile. The default of the login may be another level.
		"default_transaction_isolation": "read committed",
		// An operator may keep rows locked in an open transaction.
		"lock_timeout": "2s",
		// The server must end a statement that its client has given up, so that nobody waits for the locks of a relay that is
		// gone. Store.inTx raises statement_timeout.
		"statement_timeout":                   milliseconds(timeout),
		"idle_in_transaction_session_timeout": milliseconds(timeout),
		"tcp_keepalives_idle":                 seconds(keepAliveIdle),
		"tcp_keepalives_interval":             seconds(keepAliveInterval),
		"tcp_keepalives_count":                strconv.Itoa(keepAliveCount),
		"tcp_user_timeout":                    milliseconds(keepAliveIdle + keepAliveCount*keepAliveInterval),
	}
}

// Close closes the connections. It waits up to three seconds for calls in progress. After
// that, the remaining connections are closed in the background.
func (s *Store) Close() {
	closed := make(chan struct{})
	go func() { s.pool.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(closeTimeout):
	}
}

// deadline bounds a database call. The error of a call that takes longer names the bound.
func (s *Store) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.timeout, silence(s.timeout))
}

// exec runs a statement and returns how many rows it changed.
func (s *Store) exec(ctx context.Context, statement string, args ...any) (int64, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	tag, err := s.pool.Exec(ctx, statement, args...)
	return tag.RowsAffected(), s.judge(ctx, err)
}

// scan reads the single row of a statement.
func (s *Store) scan(ctx context.Context, into []any, statement string, args ...any) error {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	return s.judge(ctx, s.pool.QueryRow(ctx, statement, args...).Scan(into...))
}

// list reads the rows of a statement as structs.
func list[T any](ctx context.Context, s *Store, statement string, args ...any) ([]T, error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	rows, err := s.pool.Query(ctx, statement, args...)
	if err != nil {
		return nil, s.judge(ctx, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	return all, s.judge(ctx, err)
}

// inTx runs do in a transaction that may take twelve times as long as another call. Each
// statement sees everything that was committed before it: after do has waited for a lock,
// it must not read an older state. The caller passes the error to judge.
func (s *Store) inTx(ctx context.Context, do func(context.Context, pgx.Tx) error) error {
	bound := 12 * s.timeout
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("database did not finish the transaction within %s", bound))
	defer cancel()
	return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true)`, strconv.FormatInt(bound.Milliseconds(), 10)); err != nil {
			return err
		}
		return do(ctx, tx)
	})
}

// reset drops all connections.
func (s *Store) reset() {
	s.resets.Add(1)
	s.pool.Reset()
}

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/outbox"
)

// connectTimeout bounds the wait for a database that does not answer.
const connectTimeout = 5 * time.Second

// The group roles of which a command's login must be a member.
const (
	roleAuditor  = "outbox_auditor"
	roleOperator = "outbox_operator"
	roleRelay    = "outbox_relay"
)

// database is a command's connection to a database whose schema fits.
type database struct {
	app   *app
	conn  *pgx.Conn
	store *outbox.Store
	user  string
	role  string // what the login needs
}

// connect opens the database for a command whose login needs role. f is the
// configuration where it is read already, else nil.
func (a *app) connect(ctx context.Context, f *config.File, command, role string) (*database, error) {
	url, err := a.url(f)
	if err != nil {
		return nil, err
	}
	does := writes
	if role == roleAuditor {
		does = reads
	}
	conn, err := dial(ctx, url, "lockstep "+command, does, a)
	if err != nil {
		return nil, err
	}
	db := &database{app: a, conn: conn, user: conn.Config().User, role: role}
	db.store, err = outbox.Open(ctx, url, outbox.Options{MaxConnections: 2, AnyHost: does == reads, Name: "lockstep " + command})
	if err != nil {
		db.close()
		return nil, err
	}
	if err := db.check(ctx); err != nil {
		db.close()
		return nil, db.explain(err)
	}
	return db, nil
}

// purpose is what a command does with the database.
type purpose bool

const (
	reads  purpose = false
	writes purpose = true
)

// dial connects within the connect timeout, to the first host that answers or,
// for a command that writes, the first that accepts writes. The settings suit
// any pooler.
func dial(ctx context.Context, url, name string, does purpose, a *app) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(url)
	if err != nil {
		// The parser's message may quote parts of the URL, and so of a password.
		return nil, usagef("the database URL cannot be read: want postgres://user@host:5432/database, or keywords such as host=… dbname=…")
	}
	c.ConnectTimeout = connectTimeout
	c.RuntimeParams["application_name"] = name
	c.DefaultQueryExecMode = pgx.QueryExecModeExec
	if does == writes && c.ValidateConnect == nil { // no target_session_attrs
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	c.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { a.say("%s", n.Message) }
	bound := connectTimeout * time.Duration(hosts(c))
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("no answer within %s", bound))
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = context.Cause(ctx)
		}
		reason := err.Error()
		if refused, ok := errors.AsType[*pgconn.ConnectError](err); ok {
			reason = strings.TrimPrefix(outbox.ConnectReason(refused), address(c)+": ")
		}
		if errors.Is(err, pgconn.ErrReadOnlyConnection) {
			return nil, dialError{fmt.Sprintf("no host given for database %q accepts writes: %s; name the primary too", c.Database, reason), err}
		}
		return nil, dialError{fmt.Sprintf("database %q at %s cannot be reached: %s; check --database-url, DATABASE_URL or database.url",
			c.Database, address(c), reason), err}
	}
	return conn, nil
}

// dialError is a failed connection in one line.
type dialError struct {
	text string
	err  error
}

func (e dialError) Error() string { return e.text }
func (e dialError) Unwrap() error { return e.err }

// hosts counts the hosts that a URL names. A fallback may also be another way to the same host.
func hosts(c *pgx.ConnConfig) int {
	type host struct {
		name string
		port uint16
	}
	seen := map[host]struct{}{{c.Host, c.Port}: {}}
	for _, f := range c.Fallbacks {
		seen[host{f.Host, f.Port}] = struct{}{}
	}
	return len(seen)
}

func address(c *pgx.ConnConfig) string {
	if strings.HasPrefix(c.Host, "/") {
		return c.Host
	}
	return fmt.Sprintf("%s:%d", c.Host, c.Port)
}

// check makes sure that the schema fits. A standby is good enough to look at,
// and a login that may not read the schema's version is told by the next
// statement what it lacks.
func (db *database) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("no answer within %s", connectTimeout))
	defer cancel()
	err := db.store.Check(ctx)
	if errors.Is(err, outbox.ErrReadOnly) || sqlState(err) == insufficientPrivilege {
		return nil
	}
	return err
}

func (db *database) close() {
	if db.store != nil {
		db.store.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = db.conn.Close(ctx)
}

const insufficientPrivilege = "42501"

func sqlState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// explain says which role a refused login lacks.
func (db *database) explain(err error) error {
	if err == nil || sqlState(err) != insufficientPrivilege {
		return err
	}
	return fmt.Errorf("login %q may not do this: %w; it needs the role %s, which an administrator grants with: GRANT %[3]s TO %[4]s",
		db.user, err, db.role, pgx.Identifier{db.user}.Sanitize())
}

// act runs do in one transaction on behalf of actor, with reason at hand for
// the log rows that the database writes.
func (db *database) act(ctx context.Context, actor, reason string, do func(pgx.Tx) error) error {
	// Whatever the login's default is: outbox.discard must see what relays have just claimed.
	err := pgx.BeginTxFunc(ctx, db.conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		const settings = `SELECT set_config('lockstep.actor', $1, true), set_config('lockstep.reason', $2, true)`
		if _, err := tx.Exec(ctx, settings, actor, reason); err != nil {
			return err
		}
		return do(tx)
	})
	return db.explain(err)
}

// query collects rows of T, whose fields are named by db tags.
func query[T any](ctx context.Context, q interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, sql string, args ...any,
) ([]T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[T])
}

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/operate"
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

// database is a command's connection to a database whose schema fits this program.
type database struct {
	conn  *pgx.Conn
	store *outbox.Store
	user  string
	role  string // the role that the login needs
}

// with connects and calls do. The login of the command needs role. f is the
// configuration, or nil if the command has not read it.
func (a *app) with(cmd *cobra.Command, f *config.File, role string, do func(context.Context, *database) error) error {
	db, err := a.connect(cmd.Context(), f, cmd.CommandPath(), role)
	if err != nil {
		return err
	}
	defer db.close()
	return db.explain(do(cmd.Context(), db))
}

// connect opens the database under the name that its sessions show.
func (a *app) connect(ctx context.Context, f *config.File, name, role string) (*database, error) {
	url, err := a.url(f)
	if err != nil {
		return nil, err
	}
	anyHost := role == roleAuditor
	conn, err := a.dial(ctx, url, name, anyHost)
	if err != nil {
		return nil, err
	}
	db := &database{conn: conn, user: conn.Config().User, role: role}
	db.store, err = outbox.Open(ctx, url, outbox.Options{MaxConnections: 2, AnyHost: anyHost, Name: name})
	if err == nil {
		err = db.explain(db.check(ctx))
	}
	if err != nil {
		db.close()
		return nil, err
	}
	return db, nil
}

// dial connects within the connect timeout: to the first host that answers, or
// unless anyHost to the first host that accepts writes. Its settings suit any pooler.
func (a *app) dial(ctx context.Context, url, name string, anyHost bool) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(url)
	if err != nil {
		// The parser's message may quote parts of the URL, such as its password.
		return nil, usagef("the database URL cannot be read: want postgres://user@host:5432/database, or keywords such as host=… dbname=…")
	}
	c.ConnectTimeout = connectTimeout
	c.RuntimeParams["application_name"] = name
	outbox.UseFormats(c)
	c.DefaultQueryExecMode = pgx.QueryExecModeExec
	if !anyHost && c.ValidateConnect == nil { // the URL has no target_session_attrs
		c.ValidateConnect = outbox.ValidateWritable
	}
	c.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { a.say("%s", n.Message) }
	ctx, cancel := answerWithin(ctx, connectTimeout*time.Duration(hosts(c)))
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, c)
	if err == nil {
		return conn, nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = context.Cause(ctx)
	}
	address := fmt.Sprintf("%s:%d", c.Host, c.Port)
	if strings.HasPrefix(c.Host, "/") {
		address = c.Host
	}
	reason := err.Error()
	if refused, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		reason = strings.TrimPrefix(outbox.ConnectReason(refused), address+": ")
	}
	if errors.Is(err, pgconn.ErrReadOnlyConnection) {
		return nil, dialError{fmt.Sprintf("no host in the URL accepts writes to database %q: %s", c.Database, reason), err}
	}
	return nil, dialError{fmt.Sprintf("database %q at %s cannot be reached: %s; check --database-url, DATABASE_URL or database.url",
		c.Database, address, reason), err}
}

// answerWithin bounds ctx with an error that says that no answer came.
func answerWithin(ctx context.Context, bound time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, bound, fmt.Errorf("no answer within %s", bound))
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
	seen := map[string]bool{fmt.Sprint(c.Host, " ", c.Port): true}
	for _, f := range c.Fallbacks {
		seen[fmt.Sprint(f.Host, " ", f.Port)] = true
	}
	return len(seen)
}

// check makes sure that the schema fits. A standby passes, because it can be
// read. So does a login that may not read the schema's version: the error of
// its next statement says which role it lacks.
func (db *database) check(ctx context.Context) error {
	ctx, cancel := answerWithin(ctx, connectTimeout)
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

// explain adds to an error of missing rights which role the login lacks.
func (db *database) explain(err error) error {
	if sqlState(err) != insufficientPrivilege {
		return err
	}
	return fmt.Errorf("login %q may not do this: %w; it needs the role %s, which an administrator grants with: GRANT %[3]s TO %[4]s",
		db.user, err, db.role, pgx.Identifier{db.user}.Sanitize())
}

// act runs do in one transaction on behalf of o. The database writes o's name and
// reason into the log.
func (db *database) act(ctx context.Context, o operator, do func(pgx.Tx) error) error {
	return operate.Act(ctx, db.conn, operate.Actor{Name: o.name, Reason: o.reason}, do)
}

// query collects rows as values of T, whose fields are named like the columns.
func query[T any](ctx context.Context, q interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, sql string, args ...any,
) ([]T, error) {
	rows, _ := q.Query(ctx, sql, args...) // CollectRows returns its error
	return pgx.CollectRows(rows, pgx.RowToStructByName[T])
}

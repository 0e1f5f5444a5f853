package outbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrServer reports a server or a database that cannot have the outbox schema: another
// engine than PostgreSQL, an old version, or a database whose encoding is not UTF8.
var ErrServer = errors.New("this database cannot be used")

// oldestPostgreSQL is the oldest major version that works.
const oldestPostgreSQL = 15

// CheckServer returns nil if Lockstep works with the server and the database, and
// [ErrServer] if not. An engine that says that it is PostgreSQL is believed.
func CheckServer(ctx context.Context, on interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
},
) error {
	// The statement is simple, because other engines must understand it.
	const statement = `SELECT pg_catalog.version(), pg_catalog.current_setting('server_encoding')`
	var version, encoding string
	if err := on.QueryRow(ctx, statement).Scan(&version, &encoding); err != nil {
		return err
	}
	return judgeServer(version, encoding)
}

// postgreSQL is the beginning of version() of PostgreSQL and of engines derived from it.
var postgreSQL = regexp.MustCompile(`^PostgreSQL (\d+)`)

func judgeServer(version, encoding string) error {
	m := postgreSQL.FindStringSubmatch(version)
	major := 0
	if m != nil {
		major, _ = strconv.Atoi(m[1]) // too large a number gives the largest int
	}
	switch {
	case m == nil, strings.Contains(version, "-YB-"): // YugabyteDB says the version of PostgreSQL that it derives from
		return fmt.Errorf("%w: Lockstep needs PostgreSQL %d or newer, and this server is %q", ErrServer, oldestPostgreSQL, shortVersion(version))
	case major < oldestPostgreSQL:
		return fmt.Errorf("%w: Lockstep needs PostgreSQL %d or newer, and this server is %q: upgrade the server", ErrServer, oldestPostgreSQL, shortVersion(version))
	case encoding != "UTF8":
		return fmt.Errorf("%w: Lockstep needs a database in the encoding UTF8, and this one is in %s: create another one with CREATE DATABASE … TEMPLATE template0 ENCODING 'UTF8'",
			ErrServer, encoding)
	}
	return nil
}

// shortVersion is version() without the platform and the compiler.
func shortVersion(version string) string {
	short, _, _ := strings.Cut(version, " on ")
	return short[:min(len(short), 100)]
}

// UseFormats sets the formats of text on which statements, and the reading of answers,
// depend. The defaults of the login or the database may be others. A transaction pooler
// keeps these settings for each client.
func UseFormats(c *pgx.ConnConfig) {
	set(c, map[string]string{"client_encoding": "UTF8", "datestyle": "ISO, MDY", "standard_conforming_strings": "on"})
}

// set changes settings of a connection, also those of the URL. Their names are not
// case-sensitive.
func set(c *pgx.ConnConfig, settings map[string]string) {
	maps.DeleteFunc(c.RuntimeParams, func(name, _ string) bool {
		_, replaced := settings[strings.ToLower(name)]
		return replaced
	})
	maps.Copy(c.RuntimeParams, settings)
}

// readOnlyReason says why the server accepts no writes. It is null if the server accepts
// writes. The source of a setting names who has set it.
const readOnlyReason = `
CASE WHEN pg_is_in_recovery() THEN 'the server is a standby: add the primary to the URL'
     WHEN current_setting('transaction_read_only')::boolean
     THEN 'default_transaction_read_only is on, set '
          || CASE (SELECT s.source FROM pg_settings AS s WHERE s.name = 'default_transaction_read_only')
             WHEN 'user'          THEN 'for the login: turn it off with ALTER ROLE NAME RESET default_transaction_read_only'
             WHEN 'database'      THEN 'for the database: turn it off with ALTER DATABASE NAME RESET default_transaction_read_only'
             WHEN 'database user' THEN 'for the login in this database: turn it off with ALTER ROLE NAME IN DATABASE NAME RESET default_transaction_read_only'
             WHEN 'client'        THEN 'by the database URL or PGOPTIONS: remove it there'
             ELSE 'for the whole server, as some services do when the disk is full: let an administrator turn it off' END
END`

// ValidateWritable returns nil if the server of a new connection accepts writes. If not,
// the error says why. It is meant for ValidateConnect of a [pgconn.Config].
func ValidateWritable(ctx context.Context, conn *pgconn.PgConn) error {
	results, err := conn.Exec(ctx, "SELECT"+readOnlyReason).ReadAll()
	if err != nil {
		return err
	}
	if reason := results[0].Rows[0][0]; reason != nil {
		return fmt.Errorf("%w: %s", pgconn.ErrReadOnlyConnection, reason)
	}
	return nil
}

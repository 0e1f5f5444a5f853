// Package migrations has the database schema as embedded goose SQL files, and applies it:
//
//	err := migrations.Up(ctx, "postgres://owner@localhost/agency", migrations.Outbox)
//
// There are two sets: [Outbox], which every adopter needs, and [Scheduling], the tables of
// the reference scheduling module. Each set creates a schema of its name. goose's version
// table is in that schema. A relay does not apply migrations: it checks the schema at its
// start, and returns an error if the schema does not fit.
//
// The login of [Up] becomes the owner of the schema. Use other logins for relays and
// writers, and make them members of the group roles outbox_relay and outbox_writer. Up
// creates the roles if its login may do so. If not, an administrator runs the script of
// [Roles] first.
//
// # Files
//
// A migration is one goose file, set/NNNNN_name.sql. A long one is a folder,
// set/NNNNN_name, with a file for each subject. The files are joined in the order of their
// names. The first begins with "-- +goose Up", and the last with "-- +goose Down". The
// folder is still one version and one transaction. The next change of the outbox's schema
// is outbox/00004_name.sql. Each of its steps begins with SET LOCAL lock_timeout. If older
// programs cannot work with the new schema, it replaces the function outbox.oldest_relay.
package migrations

import (
	"context"
	"database/sql"
	_ "embed" // roles.sql
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"
)

//go:embed roles.sql
var roles string

// Set is a group of migrations that share a schema.
type Set struct {
	schema string
}

// The sets of migrations.
var (
	Outbox     = Set{schema: "outbox"}
	Scheduling = Set{schema: "scheduling"}
)

// String returns the name of the set, which is also its schema.
func (s Set) String() string { return s.schema }

// Status is the state of one migration.
type Status struct {
	Version int64
	Name    string
	Applied bool
}

// Up applies the missing migrations of a set to the database at a URL. Concurrent calls wait
// for each other.
//
// If other sessions have a lock that it needs, Up tries for five minutes. It pauses between
// the tries, so that writers can continue. Then it fails with an error that names the
// session. The migrations that were applied before stay applied.
//
// The connection must be direct, because a transaction pooler breaks the session lock. If
// the URL has several hosts, Up connects to the one that accepts writes.
func Up(ctx context.Context, databaseURL string, set Set, options ...Option) error {
	return change(ctx, databaseURL, set, options, func(ctx context.Context, m *migrator, p *goose.Provider) error {
		if _, err := p.Up(ctx); err != nil {
			return err
		}
		version, _, err := p.GetVersions(ctx) // may be the version of a newer program
		if err == nil {
			m.tell(fmt.Sprintf("schema %s is at version %d", set, version))
		}
		return err
	})
}

// Down reverts all migrations of the set. Without force it refuses to drop a delivery log
// that is not empty, or events that are not delivered. It does not drop the roles, because
// they belong to the whole cluster. It waits for locks as [Up] does.
func Down(ctx context.Context, databaseURL string, set Set, force bool, options ...Option) error {
	if force {
		options = append(options, func(m *migrator) { m.config.RuntimeParams["lockstep.force"] = "on" })
	}
	return change(ctx, databaseURL, set, options, func(ctx context.Context, _ *migrator, p *goose.Provider) error {
		_, err := p.DownTo(ctx, 0)
		return err
	})
}

// List returns the state of each migration of the set that this program knows, the oldest
// first. It changes nothing, and does not wait for a migration in progress.
func List(ctx context.Context, databaseURL string, set Set) ([]Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, listTimeout, fmt.Errorf("database did not answer within %s", listTimeout))
	defer cancel()
	m, err := newMigrator(databaseURL, set)
	if err != nil {
		return nil, err
	}
	var list []Status
	err = m.run(ctx, func(ctx context.Context, db *sql.DB, p *goose.Provider) error {
		var versioned bool
		if err := db.QueryRowContext(ctx, "SELECT to_regclass($1) IS NOT NULL", set.versions()).Scan(&versioned); err != nil {
			return connecting(err)
		}
		if !versioned { // goose would create the table
			for _, source := range p.ListSources() {
				list = append(list, Status{Version: source.Version, Name: source.Path})
			}
			return nil
		}
		all, err := p.Status(ctx)
		for _, m := range all {
			list = append(list, Status{Version: m.Source.Version, Name: m.Source.Path, Applied: m.State == goose.StateApplied})
		}
		return err
	})
	return list, err
}

// SQL returns the migrations of the set as one script for psql, for administrators who apply
// schema changes by hand. The script also records the versions, so that [Up] finds no
// missing migration.
func SQL(set Set) (string, error) {
	sources, err := fs.Glob(files, set.schema+"/*.sql")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("\\set ON_ERROR_STOP on\nBEGIN;\nSET LOCAL standard_conforming_strings = on;\n")
	// CREATE SCHEMA IF NOT EXISTS would need CREATE on the database, also if the schema exists.
	fmt.Fprintf(&b, "DO $$ BEGIN IF to_regnamespace('%s') IS NULL THEN CREATE SCHEMA %[1]s; END IF; END $$;\n", set.schema)
	fmt.Fprintf(&b, "CREATE TABLE IF NOT EXISTS %s (id integer PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY, version_id bigint NOT NULL, is_applied boolean NOT NULL, tstamp timestamp NOT NULL DEFAULT now());\n", set.versions())
	fmt.Fprintf(&b, "INSERT INTO %s (version_id, is_applied) SELECT 0, true WHERE NOT EXISTS (SELECT FROM %[1]s);\n\n", set.versions())
	for _, name := range sources {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return "", err
		}
		up, _, _ := strings.Cut(string(text), "-- +goose Down")
		fmt.Fprintf(&b, "-- %s\n", name)
		for line := range strings.Lines(up) {
			if !strings.HasPrefix(line, "-- +goose") {
				b.WriteString(line)
			}
		}
		var v int64
		if _, err := fmt.Sscanf(strings.TrimPrefix(name, set.schema+"/"), "%d_", &v); err != nil {
			return "", fmt.Errorf("migration %s has no version number: %w", name, err)
		}
		fmt.Fprintf(&b, "INSERT INTO %s (version_id, is_applied) VALUES (%d, true);\n\n", set.versions(), v)
	}
	b.WriteString("COMMIT;\n")
	return b.String(), nil
}

// Roles returns a script for psql that creates the group roles. An administrator runs it if
// the login of [Up] may not create roles.
func Roles() string { return roles }

const uniqueViolation = "23505"

func (s Set) versions() string { return s.schema + ".goose_db_version" }

// Option changes how [Up] and [Down] work.
type Option func(*migrator)

// Tell makes [Up] and [Down] call say with a sentence when they wait for a lock. At its end,
// Up calls it with the version of the schema.
func Tell(say func(sentence string)) Option { return func(m *migrator) { m.tell = say } }

// migrator is one call of Up, Down or List.
type migrator struct {
	config   *pgx.ConnConfig
	set      Set
	files    fs.FS
	lockWait time.Duration // longest wait for locks, over all tries
	tell     func(sentence string)

	pid     atomic.Uint32          // pid of the session that migrates
	blocker atomic.Pointer[string] // session that had the lock for which it last waited
}

func newMigrator(databaseURL string, set Set) (*migrator, error) {
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("database URL: %w", err)
	}
	// The files are written for these settings. The defaults of the login or the database may be others.
	maps.Copy(config.RuntimeParams, map[string]string{
		"application_name": "lockstep migrate", "client_encoding": "UTF8", "standard_conforming_strings": "on",
		"datestyle": "ISO, MDY", "idle_session_timeout": "0",
	})
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	return &migrator{config: config, set: set, files: files, lockWait: 5 * time.Minute, tell: func(string) {}}, nil
}

// Bounds on calls to the database. A migration itself has no bound.
const (
	connectTimeout = 5 * time.Second
	listTimeout    = 30 * time.Second
)

// change runs do, and repeats it while other sessions have a lock that it needs.
func change(ctx context.Context, databaseURL string, set Set, options []Option, do func(context.Context, *migrator, *goose.Provider) error) error {
	m, err := newMigrator(databaseURL, set)
	if err != nil {
		return err
	}
	if m.config.ValidateConnect == nil { // without target_session_attrs, connect to the host that accepts writes
		m.config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	for _, o := range options {
		o(m)
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300), lock.WithUnlockTimeout(1, 60)) // seconds, tries
	if err != nil {
		return err
	}
	return m.retry(ctx, func(ctx context.Context) error {
		return m.run(ctx, func(ctx context.Context, db *sql.DB, p *goose.Provider) error {
			if err := ensureSchema(ctx, db, set); err != nil {
				return err
			}
			return do(ctx, m, p)
		}, goose.WithSessionLocker(locker))
	})
}

func (m *migrator) run(ctx context.Context, do func(context.Context, *sql.DB, *goose.Provider) error, options ...goose.ProviderOption) error {
	db := stdlib.OpenDB(*m.config, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		m.pid.Store(conn.PgConn().PID())
		_, err := conn.Exec(ctx, "SET lock_timeout = '1s'") // for statements outside the files
		return err
	}))
	defer db.Close()
	source, err := fs.Sub(m.files, m.set.schema)
	if err != nil {
		return err
	}
	store, err := database.NewStore(goose.DialectPostgres, m.set.versions())
	if err != nil {
		return err
	}
	p, err := goose.NewProvider("", db, source, append(options, goose.WithStore(store))...)
	if err != nil {
		return err
	}
	return explain(do(ctx, db, p))
}

// connecting is the error of the first call on a connection.
func connecting(err error) error {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && strings.Contains(pgErr.Message, "unsupported startup parameter") {
		return fmt.Errorf("connect: %w; this is a connection pooler: name the database server itself, because a migration holds a lock of its session", err)
	}
	return fmt.Errorf("connect: %w", err)
}

func ensureSchema(ctx context.Context, db *sql.DB, set Set) error {
	var exists bool
	if err := db.QueryRowContext(ctx, "SELECT to_regnamespace($1) IS NOT NULL", set.schema).Scan(&exists); err != nil {
		return connecting(err)
	}
	if exists {
		return nil
	}
	_, err := db.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+set.schema)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == uniqueViolation {
		return nil // another migrator created it at the same moment
	}
	if err != nil {
		return fmt.Errorf("create schema %s: %w", set.schema, err)
	}
	return nil
}

// explain adds the database's hint to its message: goose shows only the message.
func explain(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Hint != "" {
		return fmt.Errorf("%w (hint: %s)", err, pgErr.Hint)
	}
	return err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// lab has one PostgreSQL server, and makes a new database on it for each measurement.
type lab struct {
	server     *pgtest.Server
	admin      *pgx.Conn
	postmaster int               // process id, 0 if unknown
	program    string            // this executable, run again for each child
	templates  map[string]string // filled databases by what they hold
	databases  int               // made so far
	copies     bool              // PostgreSQL 15 or newer: CREATE DATABASE copies files only when told
	scale      float64
	profiles   string // directories for evidence, empty for none
	statements string
	label      string // what is measured now, for progress
	odd        bool   // every other round takes its turns backwards
}

func newLab(ctx context.Context, o options) (*lab, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{o.profiles, o.statements} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	l := &lab{
		program: program, templates: map[string]string{}, scale: o.scale,
		profiles: o.profiles, statements: o.statements,
	}
	settings := map[string]string{"shared_buffers": "1GB"}
	if o.statements != "" {
		maps.Copy(settings, statementSettings)
	}
	l.server, err = pgtest.Start(ctx, pgtest.Options{Fsync: true, Settings: settings})
	if err != nil {
		return nil, err
	}
	l.admin, err = pgx.Connect(ctx, l.server.URL("postgres"))
	if err != nil {
		return nil, errors.Join(err, l.server.Stop())
	}
	l.postmaster = findPostmaster(ctx, l.admin)
	var version string
	if err := l.admin.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('server_version_num')::int >= 150000`).Scan(&version, &l.copies); err != nil {
		return nil, errors.Join(err, l.close())
	}
	fmt.Fprintf(os.Stderr, "bench: PostgreSQL %s, scale %g\n", version, o.scale)
	return l, nil
}

func (l *lab) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = l.admin.Close(ctx) // the server ends with it
	return l.server.Stop()
}

// note prints the current step on stderr.
func (l *lab) note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s: %s\n", time.Now().Format(time.TimeOnly), l.label, fmt.Sprintf(format, args...))
}

// size scales a number of rows.
func (l *lab) size(n int) int { return max(int(float64(n)*l.scale), 100) }

// lasting scales a duration.
func (l *lab) lasting(d time.Duration) time.Duration {
	return max(time.Duration(float64(d)*l.scale), 500*time.Millisecond)
}

// inTurn runs measurements one after the other, in reverse order in every other round, so that the order favours none.
func (l *lab) inTurn(steps ...func() error) error {
	for i := range steps {
		if l.odd {
			i = len(steps) - 1 - i
		}
		if err := steps[i](); err != nil {
			return err
		}
	}
	return nil
}

// samples measures n figures in turn.
func (l *lab) samples(n int, measure func(i int) (sample, error)) ([]sample, error) {
	list := make([]sample, n)
	steps := make([]func() error, n)
	for i := range steps {
		steps[i] = func() (err error) { list[i], err = measure(i); return err }
	}
	return list, l.inTurn(steps...)
}

// waitFor waits that long, unless ctx ends before.
func waitFor(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// database is one measurement's own.
type database struct {
	lab  *lab
	name string
	url  string
	conn *pgx.Conn
}

// database returns a new copy of the database that fill makes. fill runs once for each description of a content. The copy
// is a copy of the files.
func (l *lab) database(ctx context.Context, holds string, fill func(context.Context, *database) error) (*database, error) {
	template, ok := l.templates[holds]
	if !ok {
		l.note("prepare %s", holds)
		d, err := l.create(ctx, "")
		if err != nil {
			return nil, err
		}
		if err := fill(ctx, d); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", holds, err)
		}
		if _, err := d.conn.Exec(ctx, `VACUUM (FREEZE, ANALYZE)`); err != nil {
			return nil, err
		}
		if err := d.conn.Close(ctx); err != nil { // a template must not be in use
			return nil, err
		}
		template = d.name
		l.templates[holds] = template
	}
	d, err := l.create(ctx, template)
	if err != nil {
		return nil, err
	}
	_, err = l.admin.Exec(ctx, `CHECKPOINT`)
	return d, err
}

func (l *lab) create(ctx context.Context, template string) (*database, error) {
	l.databases++
	d := &database{lab: l, name: "bench_" + strconv.Itoa(l.databases)}
	sql := "CREATE DATABASE " + d.name
	if template != "" {
		sql += " TEMPLATE " + template
		if l.copies {
			sql += " STRATEGY file_copy"
		}
	}
	if _, err := l.admin.Exec(ctx, sql); err != nil {
		return nil, err
	}
	d.url = l.server.URL(d.name)
	var err error
	d.conn, err = pgx.Connect(ctx, d.url)
	return d, err
}

// drop removes the database.
func (d *database) drop(ctx context.Context) error {
	_ = d.conn.Close(ctx)
	return d.lab.server.DropDatabase(ctx, d.name)
}

// wait asks until the query, which yields a boolean, is true.
func (d *database) wait(ctx context.Context, query string) error {
	for {
		var is bool
		if err := d.conn.QueryRow(ctx, query).Scan(&is); err != nil || is {
			return err
		}
		if err := waitFor(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// tellOpen prints the first open deliveries of a measurement without progress.
func (d *database) tellOpen(ctx context.Context) {
	conn, err := pgx.Connect(ctx, d.url)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close(ctx) }()
	const query = `
SELECT format('%s of key %s is %s, created %s ago, due %s, lane due %s, claimed by %s: %s', d.event_seq, d.key, d.state, clock_timestamp() - d.created_at, d.due_at, l.due_at, l.claimed_by, w)
  FROM (SELECT * FROM outbox.delivery ORDER BY sync, key, event_seq LIMIT 5) AS d
  LEFT JOIN outbox.lane AS l ON l.sync = d.sync AND l.key = d.key
  LEFT JOIN LATERAL outbox.why_not_delivered(d.event_id, d.sync) AS w ON true`
	rows, _ := conn.Query(ctx, query)
	open, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return // it is River's
	}
	for _, row := range open {
		d.lab.note("nothing moves: %s", row)
	}
}

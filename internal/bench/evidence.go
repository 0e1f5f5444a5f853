package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// evidence names a file that explains a figure.
func (l *lab) evidence(dir, what, ending string) string {
	label := strings.NewReplacer(" ", "-", ":", "").Replace(l.label)
	return filepath.Join(dir, fmt.Sprintf("%s-%s-%d.%s", label, what, time.Now().UnixMilli(), ending))
}

// statementSettings make the server count its time by statement. Statements in triggers are counted separately.
var statementSettings = map[string]string{
	"shared_preload_libraries":          "pg_stat_statements",
	"pg_stat_statements.track":          "all",
	"pg_stat_statements.track_planning": "on",
}

// resetStatements sets the counters to zero.
func (l *lab) resetStatements(ctx context.Context) error {
	if l.statements == "" {
		return nil
	}
	if _, err := l.admin.Exec(ctx, `CREATE EXTENSION IF NOT EXISTS pg_stat_statements`); err != nil {
		return err
	}
	_, err := l.admin.Exec(ctx, `SELECT pg_stat_statements_reset()`)
	return err
}

// writeStatements writes the server's time by statement in a database since the reset. The time of a nested statement
// counts for both statements.
func (l *lab) writeStatements(ctx context.Context, d *database, what string) error {
	if l.statements == "" {
		return nil
	}
	const query = `
SELECT format('%10s ms %8s ms planning %8s calls %9s rows %10s buffers %10s WAL %s  %s', round(s.total_exec_time), round(s.total_plan_time), s.calls, s.rows,
              s.shared_blks_hit + s.shared_blks_read, pg_size_pretty(s.wal_bytes), CASE WHEN s.toplevel THEN ' ' ELSE 'T' END,
              left(regexp_replace(s.query, '\s+', ' ', 'g'), 100))
  FROM pg_stat_statements AS s
  JOIN pg_database AS b ON b.oid = s.dbid
 WHERE b.datname = $1
 ORDER BY s.total_exec_time DESC
 LIMIT 25`
	rows, err := l.admin.Query(ctx, query, d.name)
	if err != nil {
		return err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	return os.WriteFile(l.evidence(l.statements, what, "txt"), []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

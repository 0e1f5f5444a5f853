package migrations

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/sethvargo/go-retry"
)

// retry repeats do while other sessions have a lock that it needs. Each try waits for at
// most the lock_timeout of its migration, because writers wait behind an ALTER TABLE that
// waits. They continue before the next try.
func (m *migrator) retry(ctx context.Context, do func(context.Context) error) error {
	watched, end := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { m.watch(watched) })
	defer watching.Wait()
	defer end()

	pauses := retry.WithCappedDuration(5*time.Second, retry.NewExponential(500*time.Millisecond))
	var said string
	err := retry.Do(ctx, retry.WithMaxDuration(m.lockWait, pauses), func(ctx context.Context) error {
		m.blocker.Store(nil)
		err := do(ctx)
		if !isLocked(err) {
			return err
		}
		if reason := m.reason(err); reason != said {
			said = reason
			m.tell(fmt.Sprintf("waiting: %s; trying again for up to %s", reason, m.lockWait))
		}
		return retry.RetryableError(err)
	})
	if isLocked(err) {
		return fmt.Errorf("gave up after %s: %s: %w", m.lockWait, m.reason(err), err)
	}
	return err
}

// isLocked reports whether err is a lock timeout or a deadlock.
func isLocked(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pgErr.Code == "55P03" || pgErr.Code == "40P01")
}

// reason returns what the last try waited for, with the session if it is known.
func (m *migrator) reason(err error) string {
	if blocker := m.blocker.Load(); blocker != nil {
		return *blocker
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Message
	}
	return err.Error()
}

// watch notes which session has the lock that the migrating session waits for. After the
// wait has timed out, the database does not know it. If watch cannot open a second
// connection, the session stays unknown. The query of that session is not shown, because
// it may contain personal data.
func (m *migrator) watch(ctx context.Context) {
	const statement = `
SELECT coalesce('the lock on ' || l.relation::regclass, 'a lock (' || l.locktype || ')') || ' is held by '
       || string_agg(DISTINCT CASE blocking.pid
              WHEN 0 THEN 'a prepared transaction (see pg_prepared_xacts)'
              ELSE 'pid ' || blocking.pid || ' (' || concat_ws(', ',
                  coalesce('user ' || b.usename, b.backend_type),
                  'application ' || nullif(b.application_name, ''),
                  b.state,
                  'transaction since ' || to_char(b.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC') || ')'
              END, ' and ')
  FROM pg_locks AS l
 CROSS JOIN LATERAL unnest(pg_blocking_pids(l.pid)) AS blocking (pid)
  LEFT JOIN pg_stat_activity AS b ON b.pid = blocking.pid
 WHERE l.pid = $1 AND NOT l.granted
 GROUP BY l.relation, l.locktype`
	conn, err := pgx.ConnectConfig(ctx, m.config.Copy())
	if err != nil {
		return
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		var blocker string
		err := conn.QueryRow(ctx, statement, int32(m.pid.Load())).Scan(&blocker)
		switch {
		case err == nil:
			m.blocker.Store(&blocker)
		case !errors.Is(err, pgx.ErrNoRows):
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

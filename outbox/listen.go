package outbox

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Listen opens a connection that listens for the NOTIFY of syncs. It calls listening when
// the connection is ready, and wake with the name of the sync for each notification. It
// returns when ctx ends or the connection breaks. A transaction pooler delivers no
// notifications: then Listen only waits for the end of ctx.
func (s *Store) Listen(ctx context.Context, listening func(), wake func(sync string)) error {
	if s.pooler {
		<-ctx.Done()
		return nil
	}
	var conn *pgx.Conn
	bounded := func(call func(context.Context) error) error {
		ctx, cancel := s.deadline(ctx)
		defer cancel()
		return call(ctx)
	}
	err := bounded(func(ctx context.Context) (err error) {
		c := s.pool.Config().ConnConfig
		s.SetPassword(c)
		if conn, err = pgx.ConnectConfig(ctx, c); err == nil {
			_, err = conn.Exec(ctx, `LISTEN outbox`)
		}
		return err
	})
	if conn != nil {
		defer func() {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			_ = conn.Close(closing)
		}()
	}
	if err == nil {
		listening()
	}
	for err == nil {
		waiting, cancel := context.WithTimeout(ctx, s.timeout)
		var n *pgconn.Notification
		n, err = conn.WaitForNotification(waiting)
		quiet := waiting.Err() != nil && ctx.Err() == nil && !conn.IsClosed()
		cancel()
		switch {
		case err == nil:
			wake(n.Payload)
		case quiet:
			// The connection may be dead, or the server demoted.
			err = bounded(func(ctx context.Context) error { return checkWritable(ctx, conn) })
		}
	}
	return s.judge(ctx, err)
}

func checkWritable(ctx context.Context, conn *pgx.Conn) error {
	var readOnly bool
	err := conn.QueryRow(ctx, `SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean`).Scan(&readOnly)
	if err == nil && readOnly {
		return ErrReadOnly
	}
	return err
}

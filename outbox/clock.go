package outbox

import (
	"context"
	"time"
)

// ClockOffset measures how far the database's clock is ahead of this machine's;
// negative is behind. The true value lies within the second result of the first.
func (s *Store) ClockOffset(ctx context.Context) (ahead, within time.Duration, err error) {
	ctx, cancel := s.deadline(ctx)
	defer cancel()
	conn, err := s.pool.Acquire(ctx) // first: it may take long
	if err != nil {
		return 0, 0, s.judge(ctx, err)
	}
	defer conn.Release()
	var database time.Time
	asked := time.Now()
	if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&database); err != nil {
		return 0, 0, s.judge(ctx, err)
	}
	within = time.Since(asked) / 2
	return database.Sub(asked.Add(within).Round(0)), within, nil
}

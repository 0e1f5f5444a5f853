package relay_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/relay"
)

type noop struct{}

func (noop) Deliver(context.Context, adapters.Message) (adapters.Receipt, error) {
	return adapters.Receipt{Code: "HTTP 200"}, nil
}

// BenchmarkDrain drains a backlog of b.N events, four for each key, into an adapter that does
// nothing.
func BenchmarkDrain(b *testing.B) {
	w := newWorld(b)
	config := relay.Config{
		Workers: 32, Logger: slog.New(slog.DiscardHandler),
		Syncs: []relay.Sync{{Name: "CourtCalendarSync", Events: []string{"scheduling:*"}, Adapter: noop{}}},
	}
	r := w.start("register", config)
	w.eventually("registered", func() bool { return query[int](w, `SELECT count(*) FROM outbox.sync WHERE backfill_seq IS NULL`) == 1 })
	_ = r.stop()
	w.exec(`INSERT INTO outbox.event (type, key, payload)
SELECT 'scheduling:updated', 'H-' || n % greatest($1 / 4, 1), jsonb_build_object('hearingId', 'H-' || n, 'scheduledAt', '2027-03-01T10:00:00-05:00', 'location', '3A')
  FROM generate_series(1, $1) AS n`, b.N)
	w.exec(`VACUUM ANALYZE outbox.delivery`)
	b.ResetTimer()
	w.start("relay-1", config)
	w.drainedWithin(5 * time.Minute)
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

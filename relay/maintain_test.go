package relay_test

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// ahead notes the observed number of the log's partitions.
type ahead struct{ months atomic.Int64 }

func (a *ahead) MissingID(string)                    {}
func (a *ahead) LogAhead(months int)                 { a.months.Store(int64(months)) }
func (*ahead) Attempt(string, string, time.Duration) {}
func (*ahead) Claim(string, int, time.Duration)      {}
func (*ahead) LeaseLost(string)                      {}
func (*ahead) Alert(string, string, int64)           {}
func (*ahead) Clock(time.Duration)                   {}

// Another program's lock prevents new partitions of the log. The relay names that session, logs an
// error, and still delivers. It makes the partitions when the lock is released.
func TestMaintenanceBehindAStrangersLock(t *testing.T) {
	w := newWorld(t)
	stranger, err := pgx.Connect(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close(t.Context())
	for _, s := range []string{
		`SET application_name = 'their report'`,
		`SELECT pg_advisory_lock(1869967988)`,
		`UPDATE outbox.retention SET keep = '120 months' WHERE what = 'log'`,
	} {
		if _, err := stranger.Exec(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	w.exec(fmt.Sprintf(`DROP TABLE outbox.delivery_log_%s`,
		query[string](w, `SELECT to_char(date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY_MM')`)))
	var log logBuffer
	var said ahead
	said.months.Store(99)
	config := sync1(newCourt(accepts))
	config.Logger, config.Observer = slog.New(slog.NewTextHandler(&log, nil)), &said
	r := w.start("relay-1", config)
	for _, words := range []string{
		fmt.Sprintf("pid %d of ", stranger.PgConn().PID()), "(their report)",
		"level=ERROR msg=\"the delivery log has no partition for next month",
		`what=log kept="10 years" asked="84 months"`,
	} {
		w.eventually(words+" is said", func() bool { return log.contains(words) })
	}
	w.eventually("no month ahead is reported", func() bool { return said.months.Load() == 0 })
	w.emit("H-1", map[string]any{"n": 1})
	w.drained()
	if err := r.Ready(t.Context()); err != nil {
		t.Errorf("the relay is not ready: %v", err)
	}
	if _, err := stranger.Exec(t.Context(), `SELECT pg_advisory_unlock_all()`); err != nil {
		t.Fatal(err)
	}
	w.eventually("the partitions are made", func() bool { return said.months.Load() == 3 })
}

package relay_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/migrations"
)

// PostgreSQL is killed while deliveries are in flight. After its restart everything is delivered
// in order, without help.
func TestRecoversFromAKilledDatabase(t *testing.T) {
	server, url := pgtest.Own(t, pgtest.Options{Fsync: true})
	if err := migrations.Up(t.Context(), url, migrations.Outbox); err != nil {
		t.Fatal(err)
	}
	open := func() *world {
		pool, err := pgxpool.New(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return &world{t: t, url: url, pool: pool}
	}
	w := open()
	c := newCourt(accepts)
	config := sync1(c)
	config.Lease = 31 * time.Second // the least for an adapter that names no timeout
	w.register(config)
	w.lanes(100, 30)
	w.start("relay-1", config)
	w.eventually("busy", func() bool { return c.count() > 200 })
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	w = open()
	w.drainedWithin(90 * time.Second)
	inOrder(t, c)
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered'`); got != 3000 {
		t.Errorf("%d delivered, want 3000", got)
	}
	if got := query[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'failed'`); got != 0 {
		t.Errorf("%d failed: a fault of our own uses up no budget", got)
	}
}

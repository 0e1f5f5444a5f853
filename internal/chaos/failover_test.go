//go:build linux

package chaos

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// cluster is a world on a primary with a standby. The relays' URL names the two hosts, and has no other
// parameter.
type cluster struct {
	*world
	standby *pgtest.Server
}

// newCluster starts a cluster. A synchronous standby has every commit that was acknowledged.
func newCluster(r *run, synchronous bool) *cluster {
	r.Helper()
	// The standby does not sleep long before it sees that it is to be promoted.
	w := newServer(r, pgtest.Options{Route: pgtest.Local, Settings: map[string]string{"wal_retrieve_retry_interval": "100ms"}})
	standby, err := w.server.Standby(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = standby.Stop() })
	if synchronous {
		w.exec(`ALTER SYSTEM SET synchronous_standby_names = '*'`)
		w.exec(`SELECT pg_reload_conf()`)
	}
	c := &cluster{w, standby}
	c.until("the standby follows", `SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = $1)`,
		map[bool]string{true: "sync", false: "async"}[synchronous])
	host := w.address()
	second, err := url.Parse(standby.URL(""))
	if err != nil {
		r.Fatal(err)
	}
	w.pool.Close()
	w.connect(strings.Replace(w.url, host, host+","+second.Host, 1))
	return c
}

// promote makes the standby the primary.
func (c *cluster) promote() {
	c.t.Helper()
	if err := c.standby.Promote(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	c.pool.Reset()
	c.run.figures.kills++
}

// asksStandby is ask for the standby.
func asksStandby[T any](c *cluster, sql string, args ...any) T {
	c.t.Helper()
	conn, err := pgx.Connect(c.t.Context(), c.standby.URL("agency"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = conn.Close(c.t.Context()) }()
	var v T
	if err := conn.QueryRow(c.t.Context(), sql, args...).Scan(&v); err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// caughtUp waits until the standby has replayed everything that the primary wrote.
func (c *cluster) caughtUp() {
	c.t.Helper()
	at := ask[string](c.world, `SELECT pg_current_wal_lsn()::text`)
	c.within(patience, "the standby has caught up", func() bool {
		return asksStandby[bool](c, `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, at)
	})
}

// The primary is killed under traffic and its synchronous standby is promoted. Every acknowledged commit
// is there, so every invariant holds.
func TestFault11FailoverSynchronous(t *testing.T) {
	scenario(t, func(r *run) {
		c := newCluster(r, true)
		relays := []*process{c.start(careful()), c.start(careful())}
		c.registered()
		l := c.begin(loadSpec{writers: 6, keys: 50, rate: 300})
		l.reaches(of[int64](100, 1000) + r.random.Int64N(of[int64](100, 200)))
		if err := c.server.Kill(); err != nil {
			r.Fatal(err)
		}
		c.promote()
		l.reaches(l.written.Load() + of[int64](100, 1000))
		l.stop()
		for _, p := range relays {
			p.struggles(c.world, anything)
		}
		c.drain(expected{})
	})
}

// An asynchronous standby that was behind is promoted. Events that were written since are lost.
// Deliveries that were finished since are open again. They are sent again once, with the same key and
// the same bytes.
func TestFault11FailoverAsynchronous(t *testing.T) {
	scenario(t, func(r *run) {
		c := newCluster(r, false)
		c.start(careful())
		c.registered()
		c.exec(`SELECT outbox.pause($1, 'until the standby has fallen behind')`, theSync)
		c.book(names(20)...)
		c.caughtUp()
		standby, err := pgx.Connect(r.Context(), c.standby.URL("agency"))
		if err != nil {
			r.Fatal(err)
		}
		defer func() { _ = standby.Close(context.Background()) }()
		for _, sql := range []string{`ALTER SYSTEM SET primary_conninfo = ''`, `SELECT pg_reload_conf()`} {
			if _, err := standby.Exec(r.Context(), sql); err != nil {
				r.Fatal(err)
			}
		}
		c.until("the standby no longer follows", `SELECT NOT EXISTS (SELECT FROM pg_stat_replication)`)
		c.exec(`SELECT outbox.resume($1)`, theSync)
		c.book(names(30)...)
		c.until("all is delivered", `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`)
		if err := c.server.Kill(); err != nil {
			r.Fatal(err)
		}
		c.promote()
		if n := ask[int](c.world, `SELECT count(*) FROM outbox.event`); n != 20 {
			r.Fatalf("the promoted standby has %d events, want the 20 from before it fell behind", n)
		}
		c.exec(`SELECT outbox.resume($1)`, theSync)
		c.book(names(40)...)
		c.drain(expected{reopened: 1})
		if r.figures.duplicates != 20 {
			r.Errorf("%d events were accepted again, want the 20 that were open again", r.figures.duplicates)
		}
		if r.figures.events != 60 {
			r.Errorf("%d events in the end, want 60", r.figures.events)
		}
	})
}

// demote makes the primary refuse writes, while it stays up and keeps its
// connections.
func (w *world) demote() {
	w.t.Helper()
	w.exec(`ALTER SYSTEM SET default_transaction_read_only = on`)
	w.exec(`SELECT pg_reload_conf()`)
}

// sessions are the backends of the relays.
func (w *world) sessions() []int32 {
	w.t.Helper()
	return ask[[]int32](w, `
SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'relay-%'`)
}

// A planned switchover: the primary refuses writes, and keeps all its connections, while the standby is
// promoted. The relays move to the new primary.
func TestFault11Switchover(t *testing.T) {
	scenario(t, func(r *run) {
		c := newCluster(r, true)
		relays := []*process{c.start(careful()), c.start(careful())}
		c.registered()
		l := c.begin(loadSpec{writers: 6, keys: 50, rate: 300})
		l.reaches(of[int64](50, 200) + r.random.Int64N(of[int64](100, 200)))
		c.demote()
		c.until("writes have ended", `
SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = current_database())`)
		c.caughtUp()
		c.promote()
		l.reaches(l.written.Load() + of[int64](100, 200))
		l.stop()
		for _, p := range relays {
			p.struggles(c.world, anything)
		}
		c.drain(expected{})
		conn, err := pgx.Connect(r.Context(), c.server.URL("agency"))
		if err != nil {
			r.Fatal(err)
		}
		defer func() { _ = conn.Close(context.Background()) }()
		c.within(patience, "no relay is connected to the demoted primary", func() bool {
			var n int
			err := conn.QueryRow(r.Context(), `SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'relay-%'`).Scan(&n)
			return err == nil && n == 0
		})
	})
}

// A primary is demoted and stays up. The relay is not ready, and drops its connections. It continues
// without help when writes are accepted again.
func TestFault11PrimaryDemoted(t *testing.T) {
	scenario(t, func(r *run) {
		w := newServer(r, pgtest.Options{})
		p := w.start(careful())
		w.registered()
		l := w.begin(loadSpec{writers: 6, keys: 50, rate: 300})
		l.reaches(of[int64](50, 200) + r.random.Int64N(of[int64](100, 200)))
		before := w.sessions()
		w.demote()
		w.within(patience, "the relay calls itself not ready", func() bool {
			ready, why := p.ready()
			return !ready && strings.Contains(why, "read-only")
		})
		p.struggles(w, "25006")
		w.until("the relay's connections are new", `
SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = ANY ($1) AND application_name LIKE 'relay-%')`, before)
		w.exec(`ALTER SYSTEM RESET default_transaction_read_only`)
		w.exec(`SELECT pg_reload_conf()`)
		l.reaches(l.written.Load() + of[int64](100, 200))
		l.stop()
		w.drain(expected{})
		w.within(patience, "the relay is ready again", func() bool { ready, _ := p.ready(); return ready })
	})
}

//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
)

// careful is a relay whose deliveries fail at once if a fault of our own side
// costs them attempts.
func careful() relaySpec {
	return relaySpec{Syncs: []syncSpec{{Name: theSync, Attempts: 3}}}
}

// exact is one of which no lease and no request runs out of time, however slow
// the machine is: what it sends twice it sends by mistake.
func exact() relaySpec {
	s := careful()
	s.Lease, s.Syncs[0].Timeout = time.Minute, 20*time.Second
	return s
}

// struggles waits until a relay has failed to do something by the database, and
// said what.
func (p *process) struggles(w *world, with string) {
	p.t.Helper()
	w.within(patience, p.spec.Name+" complains of "+with, func() bool { return p.stderr.contains(with) })
}

const anything = "database call failed"

// onceEach checks that the court read exactly one request for each event.
func (w *world) onceEach() {
	w.t.Helper()
	requests := map[string]int{}
	for _, e := range w.court().Ledger() {
		requests[e.IdempotencyKey]++
	}
	for key, n := range requests {
		if n > 1 {
			w.t.Errorf("%s was sent %d times", key, n)
		}
	}
	if n := ask[int](w, `SELECT count(*) FROM outbox.event`); n != len(requests) {
		w.t.Errorf("%d events were sent, want %d", len(requests), n)
	}
}

// PostgreSQL is killed and restarted again and again under traffic.
func TestFault10PostgresKilled(t *testing.T) {
	scenario(t, func(r *run) {
		w := newServer(r, pgtest.Options{Fsync: true})
		relays := []*process{w.start(careful()), w.start(careful())}
		w.registered()
		l := w.begin(loadSpec{writers: 6, keys: 50, rate: 300})
		for n := range of(3, 8) {
			l.reaches(l.written.Load() + 100 + r.random.Int64N(100))
			end := w.server.Kill
			if n%3 == 1 {
				end = func() error { return w.server.Shutdown(r.Context()) }
			}
			if err := end(); err != nil {
				r.Fatal(err)
			}
			time.Sleep(r.between(0, 300*time.Millisecond)) // a while without any server
			if err := w.server.Boot(r.Context()); err != nil {
				r.Fatal(err)
			}
			r.figures.kills++
		}
		l.reaches(l.written.Load() + 100)
		l.stop()
		for _, p := range relays {
			p.struggles(w, anything)
		}
		w.drain(expected{})
	})
}

// cluster is a world on a primary with a standby; the relays' URL names both
// hosts and nothing else.
type cluster struct {
	*world
	standby *pgtest.Server
}

// newCluster starts one. A synchronous standby has every commit that was
// acknowledged.
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

// asksStandby is ask, of the standby.
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

// caughtUp waits until the standby has replayed all that the primary wrote.
func (c *cluster) caughtUp() {
	c.t.Helper()
	at := ask[string](c.world, `SELECT pg_current_wal_lsn()::text`)
	c.within(patience, "the standby has caught up", func() bool {
		return asksStandby[bool](c, `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, at)
	})
}

// The primary is killed under traffic and its synchronous standby promoted:
// nothing that was acknowledged is missing, so every invariant holds.
func TestFault11FailoverSynchronous(t *testing.T) {
	scenario(t, func(r *run) {
		c := newCluster(r, true)
		relays := []*process{c.start(careful()), c.start(careful())}
		c.registered()
		l := c.begin(loadSpec{writers: 6, keys: 50, rate: 300})
		l.reaches(of[int64](200, 1000) + r.random.Int64N(200))
		if err := c.server.Kill(); err != nil {
			r.Fatal(err)
		}
		c.promote()
		l.reaches(l.written.Load() + of[int64](200, 1000))
		l.stop()
		for _, p := range relays {
			p.struggles(c.world, anything)
		}
		c.drain(expected{})
	})
}

// An asynchronous standby that lagged is promoted. What was written since is
// gone; what was finished since is open again, and is sent again with the same
// key and the same bytes, once.
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

// A planned switch: the primary refuses writes but stays up with all its
// connections, while the standby is promoted. The relays leave it.
func TestFault11Switchover(t *testing.T) {
	scenario(t, func(r *run) {
		c := newCluster(r, true)
		relays := []*process{c.start(careful()), c.start(careful())}
		c.registered()
		l := c.begin(loadSpec{writers: 6, keys: 50, rate: 300})
		l.reaches(200 + r.random.Int64N(200))
		c.demote()
		c.until("writes have ended", `
SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = current_database())`)
		c.caughtUp()
		c.promote()
		l.reaches(l.written.Load() + 200)
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

// A primary that was demoted and stays up: the relay says that it is not ready,
// drops its connections, and goes on by itself when writes are accepted again.
func TestFault11PrimaryDemoted(t *testing.T) {
	scenario(t, func(r *run) {
		w := newServer(r, pgtest.Options{})
		p := w.start(careful())
		w.registered()
		l := w.begin(loadSpec{writers: 6, keys: 50, rate: 300})
		l.reaches(200 + r.random.Int64N(200))
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
		l.reaches(l.written.Load() + 200)
		l.stop()
		w.drain(expected{})
		w.within(patience, "the relay is ready again", func() bool { ready, _ := p.ready(); return ready })
	})
}

// The relay has one or two connections, and loses them to others, who use up
// all that the server has.
func TestFault12ConnectionsUsedUp(t *testing.T) {
	scenario(t, func(r *run) {
		w := newServer(r, pgtest.Options{Settings: map[string]string{"max_connections": "50"}})
		login := pgtest.AsRole(r, w.url, "outbox_relay")
		spec := careful()
		spec.Database, spec.Connections = login, 1+r.random.IntN(2)
		p := w.start(spec)
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 50, rate: 200})
		l.reaches(100)
		// The relay's sessions are ended until others have all the places.
		var others []*pgx.Conn
		w.within(patience, "the server is full", func() bool {
			w.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'relay-%'`)
			for {
				conn, err := pgx.Connect(r.Context(), login)
				if err != nil {
					return p.stderr.contains("53300")
				}
				others = append(others, conn)
			}
		})
		l.reaches(l.written.Load() + 100)
		for _, conn := range others {
			_ = conn.Close(r.Context())
		}
		l.reaches(l.written.Load() + 100)
		l.stop()
		w.drain(expected{})
	})
}

// Sessions of relays, that which listens among them, are ended again and again.
func TestFault12SessionsTerminated(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		spec := careful()
		spec.Syncs[0].Notify = true
		relays := []*process{w.start(spec), w.start(spec)}
		w.registered()
		l := w.begin(loadSpec{writers: 6, keys: 50, rate: 300})
		ended := 0
		for n := int64(100); ended < of(20, 100); n += 30 {
			l.reaches(n)
			ended += ask[int](w, `
SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
  FROM pg_stat_activity
 WHERE datname = current_database() AND application_name LIKE 'relay-%' AND random() < 0.7`)
		}
		l.stop()
		r.figures.kills += ended
		for _, p := range relays {
			p.struggles(w, anything)
		}
		w.drain(expected{})
		w.until("both listen again", listeners, 2)
	})
}

// listeners counts sessions that listen: their last statement is that, or the
// check that comes after a silence.
const listeners = `
SELECT count(*) = $1
  FROM pg_stat_activity
 WHERE datname = current_database() AND application_name LIKE 'relay-%'
   AND (query LIKE 'LISTEN%' OR query LIKE '%pg_is_in_recovery() OR current_setting%' AND query NOT LIKE '%goose%')`

// The connection that listens goes dead without a word, among others: polling
// finds the rows, and a check notices.
func TestFault12ListenHalfOpen(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		l := newLink(r, w.address())
		spec := careful()
		spec.Database, spec.DatabaseWait, spec.Syncs[0].Notify = w.through(l), time.Second, true
		p := w.start(spec)
		w.registered()
		w.until("it listens", listeners, 1)
		w.book(names(20)...)
		l.harm("timeout", answers, map[string]any{"timeout": 0})
		p.struggles(w, "to=listen")
		w.book(names(20)...)
		l.heal()
		w.drain(expected{})
		w.until("it listens again", listeners, 1)
	})
}

// bouncer is a PgBouncer in transaction mode.
type bouncer struct {
	t    testing.TB
	cmd  *exec.Cmd
	ini  string
	user *syscall.Credential // nil is ourselves
}

const nobody = 65534

// openDir is a t.TempDir that any account can enter.
func openDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for at := filepath.Dir(dir); at != filepath.Clean(os.TempDir()); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// hint is what the relay's URL has for it.
const hint = "&default_query_exec_mode=exec"

// newBouncer starts one that connects to the world's database as a login that
// may do a relay's work and nothing else. It returns the relays' URL, as
// docs/operators.md gives it.
func (w *world) newBouncer() (*bouncer, string) {
	w.t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer" // which is not on everybody's PATH
	}
	u, err := url.Parse(pgtest.AsRole(w.t, w.url, "outbox_relay"))
	if err != nil {
		w.t.Fatal(err)
	}
	role := u.User.Username()
	password, _ := u.User.Password()
	for name, value := range map[string]string{
		"jit": "off", "enable_seqscan": "off", "enable_bitmapscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off",
		"plan_cache_mode": "force_generic_plan",
		"lock_timeout":    "2s", "statement_timeout": "10s", "idle_in_transaction_session_timeout": "10s",
	} {
		w.exec(fmt.Sprintf(`ALTER ROLE %s SET %s = '%s'`, role, name, value))
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	_ = free.Close()
	ini := fmt.Sprintf(`[databases]
agency = host=%s port=%s dbname=%s user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
`, u.Hostname(), u.Port(), strings.TrimPrefix(u.Path, "/"), role, password, port)
	b := &bouncer{t: w.t, ini: filepath.Join(openDir(w.t), "pgbouncer.ini")}
	if err := os.WriteFile(b.ini, []byte(ini), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if os.Geteuid() == 0 { // as whom it refuses to run
		b.user = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := os.Chown(b.ini, nobody, nobody); err != nil {
			w.t.Fatal(err)
		}
	}
	b.start(program)
	w.t.Cleanup(b.kill)
	url := fmt.Sprintf("postgres://%s@127.0.0.1:%d/agency?sslmode=disable"+hint, role, port)
	w.within(patience, "PgBouncer answers", func() bool {
		conn, err := pgx.Connect(w.t.Context(), url)
		if err == nil {
			_ = conn.Close(w.t.Context())
		}
		return err == nil
	})
	return b, url
}

func (b *bouncer) start(program string) {
	b.t.Helper()
	b.cmd = exec.CommandContext(context.Background(), program, "-q", b.ini)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.user, Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		b.t.Fatalf("%v; install the package pgbouncer", err)
	}
}

func (b *bouncer) kill() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
}

// The whole relay works through PgBouncer in transaction mode, by polling
// alone: it registers, adds retained events, claims, records, maintains, holds
// and shows how it stands, without one complaint. Then PgBouncer is killed.
func TestFault12PgBouncer(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.book(names(50)...) // before any sync is registered
		b, through := w.newBouncer()
		unaware, err := outbox.Open(r.Context(), strings.TrimSuffix(through, hint), outbox.Options{})
		if err != nil {
			r.Fatal(err)
		}
		defer unaware.Close()
		if err := unaware.Check(r.Context()); outbox.IsTemporary(err) || !strings.Contains(err.Error(), hint[1:]) {
			r.Errorf("got %v, want an error that says what the URL lacks", err)
		}
		spec := careful()
		spec.Database, spec.Syncs[0].Notify, spec.Syncs[0].From = through, true, "beginning"
		p := w.start(spec)
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 50, rate: 300})
		l.reaches(200)
		w.exec(`SELECT outbox.pause($1, 'for a look')`, theSync)
		w.until("something waits", `SELECT count(*) > 20 FROM outbox.delivery WHERE sync = $1`, theSync)
		store, err := outbox.Open(r.Context(), through, outbox.Options{Name: "looker"})
		if err != nil {
			r.Fatal(err)
		}
		defer store.Close()
		list, err := store.Status(r.Context())
		if err != nil {
			r.Fatal(err)
		}
		if len(list) != 2 || list[0].Hold == nil || *list[0].Hold != "operator" || list[0].DueNow == 0 {
			r.Errorf("status through PgBouncer: %+v", list)
		}
		if _, _, err := store.Maintain(r.Context(), "90 days", "84 months"); err != nil {
			r.Error(err)
		}
		if err := store.Hold(r.Context(), theSync, outbox.HoldThrottle, 500*time.Millisecond, "asked to wait"); err != nil {
			r.Error(err)
		}
		w.exec(`SELECT outbox.resume($1)`, theSync)
		l.reaches(l.written.Load() + 200)
		if ready, why := p.ready(); !ready {
			r.Errorf("the relay is not ready: %s", why)
		}
		if p.stderr.contains(anything) {
			r.Errorf("the relay complained:\n%s", p.stderr)
		}
		if n := ask[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'`); n != 0 {
			r.Errorf("%d sessions of PgBouncer listen: nobody would hear it", n)
		}
		b.kill()
		r.figures.kills++
		p.struggles(w, anything)
		b.start(b.cmd.Path)
		w.exec(`
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename LIKE 'outbox_relay%'`)
		l.reaches(l.written.Load() + 200)
		l.stop()
		w.drain(expected{})
	})
}

// The link between relay and database is harmed in every way under traffic, and
// heals.
func TestFault13Link(t *testing.T) {
	t.Parallel()
	type harm struct {
		kind, direction string
		attributes      map[string]any
	}
	for name, harms := range map[string][]harm{
		"latency":            {{"latency", answers, map[string]any{"latency": 150, "jitter": 100}}, {"latency", requests, map[string]any{"latency": 50, "jitter": 50}}},
		"half-open requests": {{"timeout", requests, map[string]any{"timeout": 0}}},
		"half-open answers":  {{"timeout", answers, map[string]any{"timeout": 0}}},
		"dead":               {{"timeout", requests, map[string]any{"timeout": 0}}, {"timeout", answers, map[string]any{"timeout": 0}}},
		"reset":              {{"reset_peer", answers, map[string]any{"timeout": 30}}},
		"cut answers":        {{"limit_data", answers, map[string]any{"bytes": 3000}}, {"slicer", answers, map[string]any{"average_size": 64, "size_variation": 32, "delay": 10}}},
		"cut requests":       {{"limit_data", requests, map[string]any{"bytes": 7000}}},
	} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(r *run) {
				w := newWorld(r)
				link := newLink(r, w.address())
				spec := careful()
				spec.Database, spec.DatabaseWait, spec.Lease = w.through(link), time.Second, 5*time.Second
				p := w.start(spec)
				w.registered()
				l := w.begin(loadSpec{writers: 4, keys: 50, rate: 200})
				l.reaches(100)
				for _, h := range harms {
					link.harm(h.kind, h.direction, h.attributes)
				}
				if name != "latency" {
					p.struggles(w, anything)
				}
				l.reaches(l.written.Load() + 100)
				link.heal()
				l.reaches(l.written.Load() + 100)
				l.stop()
				w.drain(expected{})
				w.unlocked()
			})
		})
	}
}

// unlocked waits until no session but those that work hold anything locked:
// none of the relays' is left in a transaction.
func (w *world) unlocked() {
	w.t.Helper()
	w.until("no session of a relay is left in a transaction", `
SELECT NOT EXISTS (SELECT FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name LIKE 'relay-%'
                      AND xact_start < clock_timestamp() - interval '2 seconds')`)
}

// A recording is committed and the answer to it is lost: it is found in the
// log, and nothing is sent again.
func TestFault13CommitAnswerLost(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		link := newLink(r, w.address())
		spec := exact()
		spec.Database = w.through(link)
		p := w.start(spec)
		w.registered()
		release := w.stopInserts("outbox.delivery_log")
		w.book(names(30)...)
		w.stoppedBackend()
		link.harm("timeout", answers, map[string]any{"timeout": 0})
		release()
		w.until("the recording is committed", `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'delivered')`)
		p.struggles(w, "record deliveries")
		recorded := w.logged(`outcome = 'delivered'`)
		link.heal()
		w.drain(expected{})
		w.onceEach()
		if n := w.logged(`outcome IN ('unknown', 'lease_lost')`); recorded == 0 || n != 0 {
			r.Errorf("%d recordings lost their answer, %d are of unknown outcome", recorded, n)
		}
	})
}

// A relay is frozen in the middle of a transaction and holds its locks: the
// database ends its session, and another relay goes on.
func TestFault13FrozenInATransaction(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		release := w.stopInserts("outbox.sync")
		first := w.start(exact())
		w.stoppedBackend()
		first.signal(syscall.SIGSTOP)
		release()
		w.until("it idles in its transaction", `
SELECT EXISTS (SELECT FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = $1 AND state = 'idle in transaction')`, first.spec.Name)
		w.start(exact())
		w.registered()
		w.book(names(20)...)
		w.drain(expected{})
		first.signal(syscall.SIGCONT)
		w.book(names(20)...)
		w.drain(expected{})
		w.onceEach()
	})
}

// A recording and an operator's session lock each other out; the recording is
// the victim. It is repeated, the request is not.
func TestFault14Deadlock(t *testing.T) {
	scenario(t, func(r *run) {
		w := newServer(r, pgtest.Options{Settings: map[string]string{"deadlock_timeout": "300ms"}})
		p := w.start(exact())
		w.registered()
		w.book(names(10)...)
		w.until("each key has a reference", `SELECT count(*) = 10 FROM outbox.external_ref`)
		for range of(2, 10) {
			s := w.tx(`BEGIN`)
			s.exec(`SET LOCAL deadlock_timeout = '1min'`)
			s.exec(`SELECT FROM outbox.external_ref WHERE key = 'H-1' FOR UPDATE`)
			w.book(names(10)...)
			w.until("a recording waits for the reference", `SELECT EXISTS (SELECT FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = $1 AND wait_event_type = 'Lock' AND query LIKE '%record finished%')`, p.spec.Name)
			s.exec(`SELECT FROM outbox.delivery WHERE key = 'H-1' FOR UPDATE`)
			s.exec(`ROLLBACK`)
			r.figures.kills++
		}
		p.struggles(w, "40P01")
		w.drain(expected{})
		w.onceEach()
	})
}

// An operator locks the log for longer than a relay waits for a lock.
func TestFault14LogLocked(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		p := w.start(exact())
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 50, rate: 200})
		l.reaches(100)
		s := w.tx(`BEGIN`)
		s.exec(`LOCK TABLE outbox.delivery_log IN SHARE ROW EXCLUSIVE MODE`)
		p.struggles(w, "55P03")
		s.exec(`COMMIT`)
		l.reaches(l.written.Load() + 100)
		l.stop()
		w.drain(expected{})
		w.onceEach()
	})
}

// The database asks for repetitions: by errors that come with one in twenty
// results recorded, and by real conflicts of two relays whose sessions work at
// REPEATABLE READ.
func TestFault14Repetition(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		w.exec(`CREATE SEQUENCE refused`) // counts although the transaction is rolled back
		w.exec(`
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF random() < 0.05 THEN
        RAISE 'try again' USING ERRCODE = (ARRAY['40001', '40P01', '55P03'])[1 + nextval('public.refused') % 3];
    END IF;
    RETURN NEW;
END
$$`)
		w.exec(`
CREATE TRIGGER refuse BEFORE INSERT ON outbox.delivery_log FOR EACH ROW WHEN (NEW.outcome = 'delivered') EXECUTE FUNCTION refuse()`)
		spec := exact()
		spec.Database = w.url + "&default_transaction_isolation=repeatable%20read"
		w.start(spec)
		w.start(spec)
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 50, rate: 300, events: of(400, 3000)})
		l.wait()
		w.drain(expected{})
		w.onceEach()
		if n := ask[int](w, `SELECT last_value FROM refused`); n < 5 {
			r.Errorf("%d recordings were refused: too few to show anything", n)
		}
	})
}

// The disk fills up under traffic. What was acknowledged to writers survives;
// the relay waits, and resumes when there is space again.
func TestFault15DiskFull(t *testing.T) {
	if !inMountNamespace(t) {
		return
	}
	scenario(t, func(r *run) {
		disk := openDir(r)
		if err := syscall.Mount("lockstep", disk, "tmpfs", 0, "size=176m,mode=0711"); err != nil {
			r.Fatal(err)
		}
		r.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
		w := newServer(r, pgtest.Options{
			Route: pgtest.Local, Dir: disk,
			Settings: map[string]string{"min_wal_size": "32MB", "max_wal_size": "48MB", "wal_level": "minimal", "max_wal_senders": "0"},
		})
		p := w.start(careful())
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 50, rate: 200})
		l.reaches(100)

		w.exec(`CREATE TABLE ballast (bytes text)`)
		filler := filepath.Join(disk, "filler")
		file, err := os.Create(filler)
		if err != nil {
			r.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		w.within(patience, "the relay feels it", func() bool {
			for chunk := make([]byte, 1<<20); err == nil; {
				_, err = file.Write(chunk)
			}
			// What PostgreSQL has in reserve is used up too.
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			_, _ = w.pool.Exec(ctx, `INSERT INTO ballast SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 20000)`)
			_, err = file.Write([]byte{0})
			return p.stderr.contains(anything)
		})
		if !errors.Is(err, syscall.ENOSPC) {
			r.Fatalf("the disk is not full: %v", err)
		}
		time.Sleep(r.between(500*time.Millisecond, time.Second)) // under traffic
		acknowledged := l.written.Load()

		if err := os.Remove(filler); err != nil {
			r.Fatal(err)
		}
		_ = file.Close()
		w.within(patience, "the database accepts writes", func() bool {
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			_, err := w.pool.Exec(ctx, `TRUNCATE ballast`)
			if err != nil {
				_ = w.server.Boot(r.Context()) // if it gave up: it does where there is no space for its log
			}
			return err == nil
		})
		if n := ask[int64](w, `SELECT count(*) FROM outbox.event`); n < acknowledged {
			r.Errorf("%d events are there, %d were acknowledged", n, acknowledged)
		}
		l.reaches(l.written.Load() + 100)
		l.stop()
		w.drain(expected{})
	})
}

// envMounts tells this test binary that it may mount.
const envMounts = "LOCKSTEP_CHAOS_MOUNTS"

// inMountNamespace reports whether the test may mount what nobody else sees. If
// not, it runs the test again in a process that may. A user who is not root
// gets a user namespace besides, and there the one capability it takes.
func inMountNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envMounts) != "" {
		return true
	}
	t.Parallel()
	const sysAdmin = 21 // CAP_SYS_ADMIN
	attr := &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		attr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
			AmbientCaps: []uintptr{sysAdmin},
			Pdeathsig:   syscall.SIGKILL,
		}
	}
	args := []string{"-test.run=^" + t.Name() + "$", fmt.Sprint("-seeds=", *seeds), fmt.Sprint("-seed=", *seed), fmt.Sprint("-long=", *long)}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), envMounts+"=yes")
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSPC):
		t.Fatalf("%v: this scenario mounts a file system, and needs root on Linux or unprivileged user namespaces", err)
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	default:
		report.copy(t.Name(), string(out))
	}
	return false
}

// A backup is restored that is older than the latest deliveries. What was
// delivered since is sent again, with the same key and bytes; nothing of the
// backup is missing, and new events have new ids and numbers.
func TestFault26RestoredBackup(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		p := w.start(careful())
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 50, rate: 300, events: of(200, 2000)})
		l.wait()
		w.exec(`SELECT outbox.pause($1, 'until the backup is made')`, theSync)
		w.book(names(20)...)
		w.until("nothing is under way", `SELECT count(*) >= 20 AND count(*) FILTER (WHERE state = 'sending') = 0 FROM outbox.delivery`)
		open := ask[int](w, `SELECT count(*) FROM outbox.delivery`)
		backup := filepath.Join(r.TempDir(), "agency.dump")
		w.pg("pg_dump", "--format=custom", "--file="+backup, "--dbname="+w.url)
		w.exec(`SELECT outbox.resume($1)`, theSync)
		w.book(names(30)...)
		w.until("all is delivered", `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`)
		if err := p.stop(); err != nil {
			r.Fatal(err)
		}
		lost := map[string]bool{} // ids that the restored database does not know
		for _, id := range ask[[]string](w, `SELECT array_agg(id::text) FROM outbox.event`) {
			lost[id] = true
		}

		w.connect(pgtest.Empty(t))
		w.pg("pg_restore", "--exit-on-error", "--dbname="+w.url, backup)
		restored := ask[[]string](w, `SELECT array_agg(id::text) FROM outbox.event`)
		for _, id := range restored {
			delete(lost, id)
		}
		if len(lost) != 30 {
			r.Fatalf("%d events are not in the backup, want 30", len(lost))
		}
		w.start(careful())
		w.exec(`SELECT outbox.resume($1)`, theSync)
		again := w.begin(loadSpec{writers: 4, keys: 50, rate: 300, events: 100})
		again.wait()
		w.drain(expected{reopened: 1})
		if r.figures.duplicates != open {
			r.Errorf("%d events were accepted again, want the %d that were open in the backup", r.figures.duplicates, open)
		}
		if r.figures.events != len(restored)+100 {
			r.Errorf("%d events in the end, want %d", r.figures.events, len(restored)+100)
		}
		for _, id := range ask[[]string](w, `SELECT array_agg(id::text) FROM outbox.event`) {
			if lost[id] {
				r.Errorf("id %s was given twice", id)
			}
		}
	})
}

// pg runs one of the machine's PostgreSQL programs.
func (w *world) pg(program string, args ...string) {
	w.t.Helper()
	path, err := pgtest.Program(w.t.Context(), program)
	if err != nil {
		w.t.Fatal(err)
	}
	if out, err := exec.CommandContext(w.t.Context(), path, args...).CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

//go:build linux

package chaos

import (
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// careful is a relay with a small retry budget: if a fault of our own side costs budget, deliveries
// fail.
func careful() relaySpec {
	return relaySpec{Syncs: []syncSpec{{Name: theSync, Attempts: 3}}}
}

// exact is a relay with long leases and timeouts, which do not end even on a slow machine. If it sends
// something twice, that is a mistake.
func exact() relaySpec {
	s := careful()
	s.Lease, s.Syncs[0].Timeout = time.Minute, 20*time.Second
	return s
}

// struggles waits until a database call of a relay has failed and was logged.
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

// sturdy is a server that is killed and started again. Only the long form waits for the disk, because
// the data that a process has written survives its end.
func sturdy() pgtest.Options {
	return pgtest.Options{Fsync: *long, Settings: map[string]string{"shared_buffers": "64MB"}}
}

// PostgreSQL is killed and restarted again and again under traffic.
func TestFault10PostgresKilled(t *testing.T) {
	scenario(t, func(r *run) {
		w := newServer(r, sturdy())
		relays := []*process{w.start(careful()), w.start(careful())}
		w.registered()
		l := w.begin(loadSpec{writers: 6, keys: 50, rate: 300})
		for n := range of(2, 8) {
			l.reaches(l.written.Load() + of[int64](50, 100) + r.random.Int64N(of[int64](50, 100)))
			end := w.server.Kill
			if n%3 == 1 {
				end = func() error { return w.server.Shutdown(r.Context()) }
			}
			if err := end(); err != nil {
				r.Fatal(err)
			}
			waiting.StallFor(r.Context(), r.between(0, 300*time.Millisecond)) // without any server
			if err := w.server.Boot(r.Context()); err != nil {
				r.Fatal(err)
			}
			r.figures.kills++
		}
		l.reaches(l.written.Load() + of[int64](50, 100))
		l.stop()
		for _, p := range relays {
			p.struggles(w, anything)
		}
		w.drain(expected{})
	})
}

// The relay has one or two connections. It loses them to other programs, which use all connections of
// the server.
func TestFault12ConnectionsUsedUp(t *testing.T) {
	scenario(t, func(r *run) {
		w := newServer(r, pgtest.Options{Settings: map[string]string{"max_connections": "30"}})
		login := pgtest.AsRole(r, w.url, "outbox_relay")
		spec := careful()
		spec.Database, spec.Connections = login, 1+r.random.IntN(2)
		p := w.start(spec)
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 50, rate: 200})
		l.reaches(of[int64](50, 100))
		// The relay's sessions are ended until other programs have all connections.
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
		l.reaches(l.written.Load() + of[int64](50, 100))
		for _, conn := range others {
			_ = conn.Close(r.Context())
		}
		l.reaches(l.written.Load() + of[int64](50, 100))
		l.stop()
		w.drain(expected{})
	})
}

// Sessions of relays are ended again and again, also the one that listens.
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

// listeners counts sessions that listen. Their last statement is LISTEN, or the check after a time
// without notifications.
const listeners = `
SELECT count(*) = $1
  FROM pg_stat_activity
 WHERE datname = current_database() AND application_name LIKE 'relay-%'
   AND (query LIKE 'LISTEN%' OR query LIKE '%pg_is_in_recovery() OR current_setting%' AND query NOT LIKE '%goose%')`

// Connections die without an error, also the one that listens. Polls find the deliveries, and a check
// finds the dead connection.
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

// The link between relay and database has every kind of fault under traffic, and then none.
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
				l.reaches(of[int64](50, 100))
				for _, h := range harms {
					link.harm(h.kind, h.direction, h.attributes)
				}
				if name != "latency" {
					p.struggles(w, anything)
				}
				l.reaches(l.written.Load() + of[int64](50, 100))
				link.heal()
				l.reaches(l.written.Load() + of[int64](50, 100))
				l.stop()
				w.drain(expected{})
				w.unlocked()
			})
		})
	}
}

// unlocked waits until no idle session of a relay has an open transaction.
func (w *world) unlocked() {
	w.t.Helper()
	w.until("no session of a relay is left in a transaction", `
SELECT NOT EXISTS (SELECT FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name LIKE 'relay-%'
                      AND xact_start < clock_timestamp() - interval '2 seconds')`)
}

// A recording is committed and its answer is lost. The relay finds it in the log, and sends nothing
// again.
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
		// Claims whose answer was lost too end with their lease, as unknown, without a request.
		if n := w.logged(`outcome IN ('unknown', 'lease_lost') AND took_ms IS NOT NULL`); recorded == 0 || n != 0 {
			r.Errorf("%d recordings lost their answer, %d attempts are of unknown outcome", recorded, n)
		}
	})
}

// A relay is frozen in the middle of a transaction and has locks. The database ends its session, and
// another relay takes over.
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
		w.until("the first relay claims too", `
SELECT EXISTS (SELECT FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = $1 AND query LIKE '%claim lanes%')`, first.spec.Name)
		w.onceEach()
	})
}

// A recording and an operator's session are in a deadlock, and the database cancels the recording. The
// relay repeats the recording, but not the request.
func TestFault14Deadlock(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		spec := exact()
		spec.Database = w.url + "&deadlock_timeout=300ms"
		p := w.start(spec)
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
		l.reaches(of[int64](50, 100))
		s := w.tx(`BEGIN`)
		s.exec(`LOCK TABLE outbox.delivery_log IN SHARE ROW EXCLUSIVE MODE`)
		p.struggles(w, "55P03")
		s.exec(`COMMIT`)
		l.reaches(l.written.Load() + of[int64](50, 100))
		l.stop()
		w.drain(expected{})
		w.onceEach()
	})
}

// Deliveries that were claimed cannot be read while an operator locks the log. Their
// lanes are released, and claimed again.
func TestFault14ClaimsThatCannotBeRead(t *testing.T) {
	scenario(t, func(r *run) {
		w := newWorld(r)
		p := w.start(exact())
		w.registered()
		w.delivers(p)
		s := w.tx(`BEGIN`)
		s.exec(`LOCK TABLE outbox.delivery_log IN SHARE ROW EXCLUSIVE MODE`)
		w.book(names(10)...)
		p.struggles(w, `to="claim deliveries"`)
		s.exec(`COMMIT`)
		w.drain(expected{})
		w.onceEach()
	})
}

// The database asks two relays to repeat transactions, for one in twenty results.
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
		spec.Database = w.url // the trigger draws from a sequence of the owner's
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

// A backup is restored that is older than the latest deliveries. Everything that was
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
		w.until("nothing is in flight", `SELECT count(*) >= 20 AND count(*) FILTER (WHERE state = 'sending') = 0 FROM outbox.open_delivery`)
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

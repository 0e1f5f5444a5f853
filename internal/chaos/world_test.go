//go:build linux

package chaos

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/migrations"
	"github.com/hms-mkt/lockstep/outbox"
)

// busyMachine is a factor for times, because other scenarios run at the same time.
const busyMachine = 30 * time.Second

// patience is how long a scenario waits for something that must happen; see -patience.
var patience = 90 * time.Second

// lease is how long claims hold in these scenarios: a little more than twice
// the timeout of an attempt, the least that a relay takes.
const (
	lease          = 2500 * time.Millisecond
	attemptTimeout = time.Second
)

// theSync is the sync of most scenarios.
const theSync = "CourtCalendarSync"

// world is a migrated database, courts, writers and relay processes.
type world struct {
	t      testing.TB
	run    *run
	server *pgtest.Server // its own, where the scenario harms it
	url    string         // direct to the database, as its owner
	login  string         // the same as a login of relays, who may do less; empty on a server of its own
	pool   *pgxpool.Pool  // the same; not subject to faults between relay and database
	courts map[string]*court
	relays []*process
}

// court is a receiver: the simulated court and its address.
type court struct {
	*courtsim.Court
	url string
}

// newWorld gives a world on the server that all scenarios share.
func newWorld(r *run) *world {
	r.Helper()
	w := build(r, nil, pgtest.New(r))
	w.login = pgtest.AsRole(r, w.url, "outbox_relay")
	return w
}

// newServer gives a world on a PostgreSQL of its own, which can be harmed.
func newServer(r *run, o pgtest.Options) *world {
	r.Helper()
	server, database := pgtest.Own(r, o)
	if err := migrations.Up(r.Context(), database, migrations.Outbox); err != nil {
		r.Fatal(err)
	}
	return build(r, server, database)
}

func build(r *run, server *pgtest.Server, database string) *world {
	r.Helper()
	w := &world{t: r, run: r, server: server, courts: map[string]*court{}}
	w.connect(database)
	r.Cleanup(w.close)
	w.exec(`CREATE TABLE hearing (key text PRIMARY KEY, version bigint NOT NULL)`)
	w.addCourt(theSync)
	return w
}

// connect sets the database of a world: its writers and its new relays use it.
func (w *world) connect(database string) {
	w.t.Helper()
	config, err := pgxpool.ParseConfig(database)
	if err != nil {
		w.t.Fatal(err)
	}
	config.MaxConns = 20
	outbox.PreferWritable(config.ConnConfig, database)
	pool, err := pgxpool.NewWithConfig(w.t.Context(), config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(pool.Close)
	w.url, w.login, w.pool = database, "", pool
}

// close ends the relay processes. One that ended by itself is an error.
func (w *world) close() {
	for _, p := range w.relays {
		select {
		case <-p.ended:
			if !p.expects {
				w.t.Errorf("%s ended by itself: %v\n%s", p.spec.Name, p.err, p.stderr)
			}
		default:
			p.kill()
		}
		if w.t.Failed() {
			w.t.Logf("%s said:\n%s", p.spec.Name, p.stderr)
		}
	}
}

// addCourt starts a court for a sync.
func (w *world) addCourt(sync string) *court {
	w.t.Helper()
	c := &court{Court: courtsim.New(courtsim.Options{Seed: w.run.seed})}
	var err error
	if c.url, err = c.Start("127.0.0.1:0"); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	w.courts[sync] = c
	return c
}

// court returns the court of theSync.
func (w *world) court() *court { return w.courts[theSync] }

func (c *court) faults(t testing.TB, faults ...courtsim.Fault) {
	t.Helper()
	if err := c.SetFaults(faults); err != nil {
		t.Fatal(err)
	}
}

// fill sets the fields of a relay's configuration that its scenario leaves out.
func (w *world) fill(s relaySpec) relaySpec {
	s.Name = cmp.Or(s.Name, fmt.Sprint("relay-", len(w.relays)+1))
	s.Database = cmp.Or(s.Database, w.login, w.url)
	s.Workers = cmp.Or(s.Workers, 16)
	s.Connections = cmp.Or(s.Connections, 4)
	s.DatabaseWait = cmp.Or(s.DatabaseWait, 3*time.Second)
	s.Lease = cmp.Or(s.Lease, lease)
	s.Drain = cmp.Or(s.Drain, 20*time.Second)
	if s.Syncs == nil {
		s.Syncs = []syncSpec{{Name: theSync}}
	}
	for i := range s.Syncs {
		y := &s.Syncs[i]
		if y.Court == "" {
			y.Court = w.courts[y.Name].url
		}
		if y.Events == nil {
			y.Events = []string{"scheduling:*"}
		}
		y.Timeout = cmp.Or(y.Timeout, attemptTimeout)
	}
	return s
}

// register lets a relay register its syncs, and stops it again.
func (w *world) register(spec relaySpec) {
	w.t.Helper()
	p := w.start(spec)
	w.registered()
	if err := p.stop(); err != nil {
		w.t.Fatalf("the relay that registers: %v\n%s", err, p.stderr)
	}
}

// registered waits until every sync is registered.
func (w *world) registered() {
	w.t.Helper()
	w.until("every sync is registered", `SELECT EXISTS (SELECT FROM outbox.sync) AND NOT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NOT NULL)`)
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

func ask[T any](w *world, sql string, args ...any) T {
	w.t.Helper()
	var v T
	if err := w.pool.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// until waits until a query for a boolean returns true. It ignores errors while the database is away.
func (w *world) until(what, sql string, args ...any) {
	w.t.Helper()
	w.within(patience, what, func() bool {
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		defer cancel()
		var holds bool
		return w.pool.QueryRow(ctx, sql, args...).Scan(&holds) == nil && holds
	})
}

func (w *world) within(bound time.Duration, what string, holds func() bool) {
	w.t.Helper()
	waiting.For(w.t, bound, what, holds, w.dump)
}

func (w *world) dump() string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	rows, _ := w.pool.Query(ctx, `
SELECT * FROM (SELECT format('%s %s %s %s due %s lease %s by %s crashes %s attempts %s %s %s', sync, key, event_seq, state, due_at, lease_until, claimed_by, crashes, total_attempts, error_class, error)
                 FROM outbox.open_delivery ORDER BY sync, key, event_seq LIMIT 15) AS d
UNION ALL SELECT * FROM (SELECT format('lane: %s %s %s due %s claim %s of %s crashes %s', sync, scope, key, due_at, claim, claimed_by, crashes)
                           FROM outbox.lane ORDER BY sync, key LIMIT 15) AS l
UNION ALL SELECT format('hold: %s %s until %s: %s', sync, kind, until, reason) FROM outbox.hold
UNION ALL SELECT format('%s deliveries, now %s', count(*), clock_timestamp()) FROM outbox.delivery`)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err.Error()
	}
	return strings.Join(lines, "\n")
}

// tx is a session of its own with an open transaction.
func (w *world) tx(begin string) *session {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	s := &session{w.t, conn}
	s.exec(begin)
	return s
}

type session struct {
	t    testing.TB
	conn *pgx.Conn
}

func (s *session) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.conn.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

// book writes one event for each key, each in a transaction of its own.
func (w *world) book(keys ...string) {
	w.t.Helper()
	for _, key := range keys {
		if err := w.write(w.t.Context(), key, 0); err != nil {
			w.t.Fatal(err)
		}
	}
}

// names returns n keys.
func names(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint("H-", i)
	}
	return keys
}

// write changes a hearing and writes its event, as a writer should: its own row
// first. It takes its transaction id before anything else, and may linger
// before it commits.
func (w *world) write(ctx context.Context, key string, linger time.Duration) error {
	return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		const event = `
WITH mine AS MATERIALIZED (SELECT pg_current_xact_id()),
     changed AS (
    INSERT INTO hearing AS h (key, version) SELECT $1, 1 FROM mine
    ON CONFLICT (key) DO UPDATE SET version = h.version + 1
    RETURNING h.version
)
INSERT INTO outbox.event (type, key, version, payload)
SELECT 'scheduling:updated', $1, version, jsonb_build_object('hearingId', $1::text, 'scheduledAt', version::text, 'location', '3A')
  FROM changed`
		if _, err := tx.Exec(ctx, `SELECT pg_current_xact_id()`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, event, key); err != nil {
			return err
		}
		if linger == 0 {
			return nil
		}
		waiting.StallFor(ctx, linger)
		return ctx.Err()
	})
}

// emit writes an event of a writer without a row of its own.
func (w *world) emit(ctx context.Context, key string) error {
	const event = `
SELECT outbox.emit('scheduling:updated', $1::text, jsonb_build_object('hearingId', $1::text, 'scheduledAt', clock_timestamp()::text, 'location', '1B'))`
	_, err := w.pool.Exec(ctx, event, key)
	return err
}

// through is the relay's way to the database through l.
func (w *world) through(l *link) string {
	w.t.Helper()
	u, err := url.Parse(w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	u.Host = l.Listen
	return u.String()
}

// address is where the database listens.
func (w *world) address() string {
	w.t.Helper()
	u, err := url.Parse(w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	return u.Host
}

// unreliable has the faults of a court that mostly works: errors, lost answers, and answers cut in the middle.
func unreliable() []courtsim.Fault {
	return []courtsim.Fault{
		{Match: courtsim.Match{Probability: 0.015}, Do: courtsim.Action{Status: 500}},
		{Match: courtsim.Match{Probability: 0.005}, Do: courtsim.Action{Status: 503, RetryAfter: "0"}},
		{Match: courtsim.Match{Probability: 0.005}, Do: courtsim.Action{Drop: courtsim.DropAfter}},
		{Match: courtsim.Match{Probability: 0.005}, Do: courtsim.Action{Drop: courtsim.DropDuring}},
		{Match: courtsim.Match{Probability: 0.005}, Do: courtsim.Action{Drop: courtsim.DropBefore}},
	}
}

package relay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// court is an adapter that keeps a ledger and answers by a script.
type court struct {
	mu     sync.Mutex
	ledger []adapters.Message
	answer func(ctx context.Context, m adapters.Message, nth int) (adapters.Receipt, error)
	seen   map[string]int
}

func newCourt(answer func(ctx context.Context, m adapters.Message, nth int) (adapters.Receipt, error)) *court {
	return &court{answer: answer, seen: map[string]int{}}
}

func accepts(context.Context, adapters.Message, int) (adapters.Receipt, error) {
	return adapters.Receipt{Code: "HTTP 200"}, nil
}

func (c *court) Deliver(ctx context.Context, m adapters.Message) (adapters.Receipt, error) {
	c.mu.Lock()
	c.seen[m.ID]++
	nth := c.seen[m.ID]
	m.Body = slices.Clone(m.Body)
	c.ledger = append(c.ledger, m)
	c.mu.Unlock()
	return c.answer(ctx, m, nth)
}

func (c *court) got() []adapters.Message {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ledger)
}

// count returns how many requests there were.
func (c *court) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ledger)
}

// world is a migrated database, its connection as owner, and its relays.
type world struct {
	t    testing.TB
	url  string
	pool *pgxpool.Pool
}

// Its test runs in parallel with others, because most tests wait most of the time.
func newWorld(t testing.TB) *world {
	t.Helper()
	if t, ok := t.(*testing.T); ok {
		t.Parallel()
	}
	return newWorldAlone(t)
}

// newWorldAlone is a world for a test that must run alone.
func newWorldAlone(t testing.TB) *world {
	t.Helper()
	url := pgtest.New(t)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return &world{t: t, url: url, pool: pool}
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

func query[T any](w *world, sql string, args ...any) T {
	w.t.Helper()
	var v T
	if err := w.pool.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// emit writes an event in a transaction of its own and returns its id.
func (w *world) emit(key string, payload any) string {
	w.t.Helper()
	raw, err := json.Marshal(payload)
	if err != nil {
		w.t.Fatal(err)
	}
	return query[string](w, `SELECT outbox.emit('scheduling:updated', $1, $2)::text`, key, raw)
}

// relay is a running relay; stop returns what Run returned.
type running struct {
	*relay.Relay
	cancel context.CancelFunc
	done   chan error
}

func (r *running) stop() error {
	r.cancel()
	err := <-r.done
	r.done <- err
	return err
}

func (w *world) start(name string, config relay.Config) *running {
	w.t.Helper()
	return w.startAt(pgtest.AsRole(w.t, w.url, "outbox_relay"), name, config) // not the owner, who may write more into the log
}

// startAt starts a relay with another database URL.
func (w *world) startAt(url, name string, config relay.Config) *running {
	w.t.Helper()
	store, err := outbox.Open(w.t.Context(), url, outbox.Options{Name: name, MaxConnections: 4})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.startOn(store, store.Close, config)
}

// startOn starts a relay on a store, which closed closes after the relay's end.
func (w *world) startOn(store relay.Store, closed func(), config relay.Config) *running {
	w.t.Helper()
	if config.Logger == nil {
		config.Logger = slog.New(slog.NewTextHandler(testWriter{w.t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	r, err := relay.New(store, config)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	run := &running{Relay: r, cancel: cancel, done: make(chan error, 1)}
	go func() { run.done <- r.Run(ctx) }()
	w.t.Cleanup(func() {
		_ = run.stop()
		closed()
	})
	return run
}

// register registers the syncs of a configuration. No relay runs afterwards.
func (w *world) register(config relay.Config) {
	w.t.Helper()
	r := w.start("register", config)
	w.eventually("registered", func() bool {
		return query[int](w, `SELECT count(*) FROM outbox.sync WHERE backfill_seq IS NULL`) == len(config.Syncs)
	})
	if err := r.stop(); err != nil {
		w.t.Fatal(err)
	}
}

// bulk writes one event for each of n keys, in one transaction.
func (w *world) bulk(n int) {
	w.t.Helper()
	w.exec(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'B-' || n, '{"n":1}' FROM generate_series(1, $1) AS n`, n)
}

// delivered reports whether a key has no open delivery.
func (w *world) delivered(key string) func() bool {
	return func() bool {
		return query[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE key = $1)`, key)
	}
}

// claims is how many claims there are, and how many crashes.
func (w *world) claims() int {
	w.t.Helper()
	return query[int](w, `SELECT count(*) FROM outbox.lane WHERE claim IS NOT NULL OR crashes > 0`)
}

type testWriter struct{ testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.Logf("%s", p[:max(0, len(p)-1)])
	return len(p), nil
}

func sync1(a adapters.Adapter, change ...func(*relay.Sync)) relay.Config {
	s := relay.Sync{
		Name: "CourtCalendarSync", Events: []string{"scheduling:*"}, Adapter: a,
		Retry: relay.Retry{Initial: 20 * time.Millisecond, Max: 100 * time.Millisecond},
	}
	for _, c := range change {
		c(&s)
	}
	return relay.Config{Syncs: []relay.Sync{s}, Workers: 16, Poll: 20 * time.Millisecond, Drain: patience}
}

// makeDue ends the delay of a key's retry.
func (w *world) makeDue(key string) {
	w.t.Helper()
	w.exec(`UPDATE outbox.delivery SET due_at = clock_timestamp() WHERE key = $1 AND state = 'retry'`, key)
	w.exec(`UPDATE outbox.lane SET due_at = clock_timestamp() WHERE key = $1 AND claim IS NULL`, key)
}

// endLeases ends the leases of all claims of a relay.
func (w *world) endLeases(relay string) {
	w.t.Helper()
	w.exec(`UPDATE outbox.lane SET due_at = clock_timestamp() - interval '1 second' WHERE claimed_by = $1`, relay)
}

// extendLeases makes the leases longer, so that a slow recording on a busy machine does not lose its
// claim.
func (w *world) extendLeases() {
	w.t.Helper()
	w.exec(`UPDATE outbox.lane SET due_at = clock_timestamp() + interval '1 minute' WHERE claim IS NOT NULL AND due_at < clock_timestamp() + interval '30 seconds'`)
}

// counts waits until a query returns the number.
func (w *world) counts(what string, want int, sql string) {
	w.t.Helper()
	w.eventually(fmt.Sprint(what, ": ", want), func() bool { return query[int](w, sql) == want })
}

// noHolds waits until holds that have ended are removed.
func (w *world) noHolds() {
	w.t.Helper()
	w.counts("holds", 0, `SELECT count(*) FROM outbox.hold`)
}

// eventually waits until the condition holds.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	w.within(patience, what, holds)
}

// patience is how long tests wait for something that must happen.
const patience = time.Minute

func (w *world) within(bound time.Duration, what string, holds func() bool) {
	w.t.Helper()
	waiting.For(w.t, bound, what, holds, w.dump)
}

// drained waits until every delivery is finished. The last row of the log, the
// reference and the lane of a delivery are written together with its end. Tests must wait for
// changes in later transactions, such as the end of a hold or the time of the last delivery.
func (w *world) drained() {
	w.t.Helper()
	w.drainedWithin(patience)
}

func (w *world) drainedWithin(bound time.Duration) {
	w.t.Helper()
	w.within(bound, "every delivery finished", func() bool {
		return query[bool](w, `SELECT NOT EXISTS (SELECT FROM outbox.delivery) AND NOT EXISTS (SELECT FROM outbox.unmatched)
			AND EXISTS (SELECT FROM outbox.sync) AND NOT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NOT NULL)`)
	})
}

func (w *world) dump() string {
	rows, err := w.pool.Query(context.Background(), `
SELECT format('%s %s %s %s due %s lease %s crashes %s %s %s', sync, key, event_seq, state, due_at, lease_until, crashes, error_class, error) FROM outbox.open_delivery ORDER BY 1 LIMIT 20`)
	if err != nil {
		return err.Error()
	}
	defer rows.Close()
	text := ""
	for rows.Next() {
		var line string
		_ = rows.Scan(&line)
		text += line + "\n"
	}
	return text + fmt.Sprint(query[string](w, `SELECT coalesce(string_agg(format('%s %s %s', sync, kind, reason), '; '), 'no holds') FROM outbox.hold`))
}

package relay_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hms-mkt/lockstep/adapters/rest"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// A relay process of its own: this test binary, told so by its environment.
const (
	childDatabase = "LOCKSTEP_TEST_RELAY_DATABASE"
	childCourt    = "LOCKSTEP_TEST_RELAY_COURT"
)

// relayProcess runs a relay until it is killed.
func relayProcess() error {
	ctx := context.Background()
	adapter, err := rest.New(rest.Config{URL: os.Getenv(childCourt), Timeout: 500 * time.Millisecond})
	if err != nil {
		return err
	}
	store, err := outbox.Open(ctx, os.Getenv(childDatabase), outbox.Options{Name: fmt.Sprint("relay-", os.Getpid()), MaxConnections: 4})
	if err != nil {
		return err
	}
	r, err := relay.New(store, relay.Config{
		Lease: 2 * time.Second, Logger: slog.New(slog.DiscardHandler),
		Syncs: []relay.Sync{{
			Name: "CourtCalendarSync", Events: []string{"scheduling:*"}, Adapter: adapter,
			Retry: relay.Retry{Initial: 20 * time.Millisecond, Max: 500 * time.Millisecond},
		}},
	})
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

// ledger is what an unreliable court saw.
type ledger struct {
	mu      sync.Mutex
	entries []entry
	random  *rand.Rand
}

type entry struct {
	event, key, sha string
	version         int64
	accepted        bool // and the answer was sent; whether it arrived is another matter
}

func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var fields struct {
		Key     string
		Version int64
	}
	if err != nil || json.Unmarshal(body, &fields) != nil {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	sum := sha256.Sum256(body)
	e := entry{event: r.Header.Get("Idempotency-Key"), key: fields.Key, version: fields.Version, sha: hex.EncodeToString(sum[:])}
	l.mu.Lock()
	dice := l.random.IntN(1000)
	e.accepted = dice >= 20
	l.entries = append(l.entries, e)
	l.mu.Unlock()
	switch {
	case dice < 15:
		w.WriteHeader(http.StatusInternalServerError)
	case dice < 20:
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusBadGateway)
	case dice < 25: // accepted, and the answer is lost
		panic(http.ErrAbortHandler)
	default:
		w.WriteHeader(http.StatusCreated)
	}
}

// TestChaos lets relay processes be killed while writers of the same keys
// overlap and the court fails now and then, and holds the court's ledger
// against the events and the log.
func TestChaos(t *testing.T) {
	events, keys := 20000, 500
	if testing.Short() {
		events, keys = 3000, 100
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := newWorld(t)
	court := &ledger{random: rand.New(rand.NewPCG(seed, 1))}
	server := httptest.NewServer(court)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	defer server.Close()
	w.exec(`CREATE TABLE hearing (key text PRIMARY KEY, version bigint NOT NULL)`)
	w.exec(`INSERT INTO hearing SELECT 'H-' || n, 0 FROM generate_series(0, $1 - 1) AS n`, keys)

	start := func() *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childDatabase+"="+w.url, childCourt+"="+server.URL)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	relays := []*exec.Cmd{start(), start()}
	kill := func(i int) {
		_ = relays[i].Process.Kill()
		_ = relays[i].Wait()
	}
	defer func() { kill(0); kill(1) }()

	var writers errgroup.Group
	const parallel = 8
	for n := range parallel {
		random := rand.New(rand.NewPCG(seed, uint64(100+n)))
		writers.Go(func() error {
			for range events / parallel {
				if err := w.write(t.Context(), fmt.Sprint("H-", random.IntN(keys)), random.IntN(50) == 0); err != nil {
					return err
				}
			}
			return nil
		})
	}
	written := make(chan error, 1)
	go func() { written <- writers.Wait() }()

	random := rand.New(rand.NewPCG(seed, 2))
	kills := 0
	for done := false; !done; {
		select {
		case err := <-written:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		case <-time.After(time.Duration(500+random.IntN(1000)) * time.Millisecond):
			i := random.IntN(2)
			kill(i)
			relays[i] = start()
			kills++
		}
	}
	w.drainedWithin(2 * time.Minute)
	court.verify(t, w)
	t.Logf("%d events, %d kills, %d requests, log: %s", events, kills, len(court.entries),
		query[string](w, `SELECT string_agg(outcome || ' ' || n, ', ' ORDER BY n DESC) FROM (SELECT outcome, count(*) AS n FROM outbox.delivery_log GROUP BY 1) AS o`))
}

// write changes a hearing and writes its event, as a writer should: its own row
// first. Some transactions stay open for a while.
func (w *world) write(ctx context.Context, key string, linger bool) error {
	tx, err := w.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	var version int64
	if err := tx.QueryRow(ctx, `UPDATE hearing SET version = version + 1 WHERE key = $1 RETURNING version`, key).Scan(&version); err != nil {
		return err
	}
	payload, err := json.Marshal(map[string]any{"key": key, "version": version})
	if err != nil {
		return err
	}
	err = outbox.Append(ctx, tx, outbox.Event{Type: "scheduling:updated", Key: key, Version: &version, Payload: payload})
	if err != nil {
		return err
	}
	if linger {
		if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.2)`); err != nil {
			return err
		}
	}
	return tx.Commit(ctx)
}

// verify holds the ledger against the events (nothing lost, nothing out of
// order) and the log (nothing accepted twice without a reason, nothing seen
// that is not logged).
func (l *ledger) verify(t *testing.T, w *world) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	accepted := map[string]int{}
	bytes := map[string]string{}
	requests := map[string]int{}
	last := map[string]int64{}
	for _, e := range l.entries {
		id := e.event[1 : len(e.event)-1]
		requests[id]++
		if before, ok := bytes[id]; ok && before != e.sha {
			t.Errorf("event %s was sent with two bodies", id)
		}
		bytes[id] = e.sha
		if !e.accepted {
			continue
		}
		if accepted[id]++; accepted[id] > 1 {
			continue
		}
		if e.version != last[e.key]+1 {
			t.Errorf("key %s: version %d was first accepted after %d", e.key, e.version, last[e.key])
		}
		last[e.key] = e.version
	}
	rows, err := w.pool.Query(t.Context(), `
SELECT e.id::text,
       (SELECT count(*) FROM outbox.delivery_log AS l WHERE l.event_id = e.id AND l.outcome IN ('delivered', 'duplicate', 'accepted')),
       (SELECT count(*) FROM outbox.delivery_log AS l WHERE l.event_id = e.id AND l.outcome IN ('unknown', 'lease_lost')),
       (SELECT count(*) FROM outbox.delivery_log AS l WHERE l.event_id = e.id)
  FROM outbox.event AS e`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	total := 0
	for rows.Next() {
		var id string
		var done, unknown, logged int
		if err := rows.Scan(&id, &done, &unknown, &logged); err != nil {
			t.Fatal(err)
		}
		total++
		switch {
		case accepted[id] == 0:
			t.Errorf("event %s was lost", id)
		case done != 1:
			t.Errorf("event %s was recorded as finished %d times", id, done)
		case accepted[id] > 1+unknown:
			t.Errorf("event %s was accepted %d times, but only %d attempts ended unknown", id, accepted[id], unknown)
		case requests[id] > logged:
			t.Errorf("event %s: %d requests, %d log rows", id, requests[id], logged)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if total != len(accepted) {
		t.Errorf("%d events, %d accepted", total, len(accepted))
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/hms-mkt/lockstep/internal/console"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

const (
	busyKey = "A-busy" // has one row in a thousand of the log
	viewers = 4        // look at pages at the same time
	glance  = 100 * time.Millisecond
)

// consolePages are the pages that are measured. A %d is replaced by a number that differs each time.
var consolePages = []struct{ name, path string }{
	{"overview", "/"},
	{"story of a key", "/key/A-%d"},
	{"story of a key with 10,000 log rows", "/key/" + busyKey},
	{"failed deliveries", "/failed"},
	{"blocked keys", "/blocked"},
	{"one sync", "/sync/" + archiveSync},
	{"changes", "/changes"},
}

// pagesPart measures the pages of the console beside running traffic, with a large backlog and a large log.
func pagesPart() part {
	p := part{name: "pages"}
	for _, page := range consolePages {
		p.figures = append(p.figures, figure{
			Name: "console beside 1M open and 10M log rows: " + page.name + ", p95", Unit: "ms", Judged: byItself,
			Goal: 100, Stretch: 30, AtMost: true, Precision: 1,
		})
	}
	p.round = func(ctx context.Context, l *lab) ([]sample, error) {
		open, logged := l.size(1_000_000), l.size(10_000_000)
		holds := fmt.Sprintf("%d open deliveries and %d rows of the log", open, logged)
		d, err := l.database(ctx, holds, func(ctx context.Context, d *database) error { return d.fillForPages(ctx, open, logged) })
		if err != nil {
			return nil, err
		}
		samples, err := l.viewPages(ctx, d, open)
		if err != nil {
			return nil, err
		}
		return samples, d.drop(ctx)
	}
	return p
}

// fillForPages adds a sync on hold with so many open deliveries, of which one in fifty has failed, and a log of the last
// 30 days.
func (d *database) fillForPages(ctx context.Context, open, logged int) error {
	if err := d.register(ctx, courtSync, archiveSync); err != nil {
		return err
	}
	store, err := outbox.Open(ctx, d.url, outbox.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	archive := syncNamed(archiveSync)
	archive.From = "" // or the events would be searched once more
	archive.Escalate = outbox.Escalation{At: []string{"scheduledAt"}, Before: 24 * time.Hour}
	for _, r := range (relay.Config{Syncs: []relay.Sync{archive}}).Registrations() {
		if _, err := store.Apply(ctx, r); err != nil {
			return err
		}
	}
	if _, err := d.conn.Exec(ctx, `SELECT outbox.pause($1, 'benchmark')`, archiveSync); err != nil {
		return err
	}
	// Hearings of the next weeks, one a second.
	const events = `INSERT INTO outbox.event (type, key, payload)
SELECT 'archive:added', 'A-' || n % $1, jsonb_build_object('n', n, 'hearingId', 'A-' || n % $1, 'scheduledAt', to_jsonb(now() + n * interval '1 second'),
       'caseReference', 'NY-2027-' || n, 'location', '3A', 'judge', 'R. Alvarez', 'status', 'scheduled')
  FROM generate_series($2::bigint, $3::bigint) AS n`
	if err := inSteps(open, func(first, last int) error {
		_, err := d.conn.Exec(ctx, events, keysOf(open), first, last)
		return err
	}); err != nil {
		return err
	}
	const failed = `UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', attempts = 1, error_class = 'permanent',
       error = 'POST court.example/hearings: answered HTTP 422: room ' || event_seq || ' is not known'
 WHERE sync = $1 AND event_seq % 50 = 0`
	if _, err := d.conn.Exec(ctx, failed, archiveSync); err != nil {
		return err
	}
	return d.fillLog(ctx, open, logged)
}

// fillLog adds rows of the last 30 days. One in a thousand is of a person, and one in a thousand is about the busy key.
func (d *database) fillLog(ctx context.Context, open, logged int) error {
	// The partition of the month before this one, as outbox.maintain makes those to come.
	const before = `DO $$
DECLARE
    month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 month';
    part text := 'delivery_log_' || to_char(month, 'YYYY_MM');
BEGIN
    PERFORM outbox.maintain();
    EXECUTE format('CREATE TABLE outbox.%I (LIKE outbox.delivery_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', part);
    PERFORM outbox.guard_log_partition(('outbox.' || part)::regclass);
    EXECUTE format('ALTER TABLE outbox.delivery_log ATTACH PARTITION outbox.%I FOR VALUES FROM (%L) TO (%L)',
                   part, month AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC');
END
$$`
	if _, err := d.conn.Exec(ctx, before); err != nil {
		return err
	}
	// As a backup is loaded, so that rows keep their times.
	if _, err := d.conn.Exec(ctx, `SET session_replication_role = replica`); err != nil {
		return err
	}
	const rows = `INSERT INTO outbox.delivery_log (at, answered_at, sync, event_id, event_type, key, version, attempt, outcome, code, error_class, error,
       external_id, request_sha256, mapping_version, revision, event_seq, took_ms, claim, relay, actor, reason)
SELECT at, at, CASE WHEN n % 3 = 0 THEN $4 ELSE $5 END, gen_random_uuid(), 'archive:added', CASE WHEN n % 1000 = 1 THEN $6 ELSE 'A-' || n % $7 END,
       n, 1, CASE WHEN n % 1000 = 0 THEN 'requeued' WHEN n % 20 = 1 THEN 'retry' ELSE 'delivered' END,
       CASE WHEN n % 20 = 1 THEN 'HTTP 503' ELSE 'HTTP 201' END, CASE WHEN n % 20 = 1 THEN 'transient' END,
       CASE WHEN n % 20 = 1 THEN 'POST court.example/hearings: answered HTTP 503: maintenance' END,
       'CC-' || n, repeat('0', 64), '1', 1, n, 12, CASE WHEN n % 1000 <> 0 THEN gen_random_uuid() END, 'relay-1',
       CASE WHEN n % 1000 = 0 THEN 'agency_operator/' || CASE WHEN n % 7000 = 0 THEN 'maria' ELSE 'jo' END END,
       CASE WHEN n % 1000 = 0 THEN 'the court has repaired its list of rooms' END
  FROM (SELECT n, now() - interval '30 days' * (1 - n::float8 / $3) AS at FROM generate_series($1::bigint, $2::bigint) AS n) AS l`
	if err := inSteps(logged, func(first, last int) error {
		_, err := d.conn.Exec(ctx, rows, first, last, logged+1, archiveSync, courtSync, busyKey, 2*keysOf(open))
		return err
	}); err != nil {
		return err
	}
	_, err := d.conn.Exec(ctx, `RESET session_replication_role`)
	return err
}

// inSteps calls do for 1 to n in steps.
func inSteps(n int, do func(first, last int) error) error {
	const step = 100_000
	for first := 1; first <= n; first += step {
		if err := do(first, min(first+step-1, n)); err != nil {
			return err
		}
	}
	return nil
}

// viewPages measures the pages while a relay delivers 500 events a second.
func (l *lab) viewPages(ctx context.Context, d *database, open int) (_ []sample, err error) {
	pool, err := openPool(ctx, d.url, trafficWriters)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	site, err := l.start(ctx, childConfig{Role: "console", URL: d.url})
	if err != nil {
		return nil, err
	}
	defer site.stopInto(&err)
	address, err := site.address(ctx)
	if err != nil {
		return nil, err
	}
	l.note("the pages of the console")
	var seen []*views
	_, err = l.underTraffic(ctx, d, newTraffic(), insertEvent(pool), childConfig{Role: "relay", Syncs: []string{courtSync, archiveSync}},
		func(flowing context.Context) (err error) {
			seen, err = view(ctx, flowing, address, keysOf(open))
			return err
		})
	if err != nil {
		return nil, err
	}
	pool.Close()
	var samples []sample
	for i, page := range consolePages {
		took := seen[i].took
		l.note("%-36s %5d times, %d without an answer: p50 %6.1f ms, p95 %6.1f ms, p99 %6.1f ms", page.name, len(took), seen[i].refused,
			percentile(took, 50), percentile(took, 95), percentile(took, 99))
		samples = append(samples, sample{Ours: percentile(took, 95)})
	}
	return samples, site.stop()
}

// views are the times that one page took, in milliseconds.
type views struct {
	took    []float64
	refused int // of them, answered with an error because the database took too long
}

// view opens the pages in turn until flowing ends, and each at least once.
func view(ctx, flowing context.Context, address string, keys int) ([]*views, error) {
	seen := make([]*views, len(consolePages))
	for i := range seen {
		seen[i] = &views{}
	}
	var mu sync.Mutex
	var group errgroup.Group
	for viewer := range viewers {
		group.Go(func() error {
			for n := viewer; ; n++ {
				i := n % len(consolePages)
				path := consolePages[i].path
				if strings.Contains(path, "%d") {
					path = fmt.Sprintf(path, rand.IntN(keys))
				}
				began := time.Now()
				ok, err := get(ctx, address+path)
				if err != nil {
					return err
				}
				mu.Lock()
				seen[i].took = append(seen[i].took, milliseconds(time.Since(began)))
				if !ok {
					seen[i].refused++
				}
				mu.Unlock()
				select {
				case <-time.After(glance):
				case <-flowing.Done():
					if n-viewer >= len(consolePages) {
						return nil
					}
				}
			}
		})
	}
	return seen, group.Wait()
}

// get reads a page, and reports whether the database has answered in time.
func get(ctx context.Context, url string) (ok bool, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return false, err
	}
	switch answer.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusServiceUnavailable:
		return false, nil
	}
	return false, fmt.Errorf("%s answered %s", url, answer.Status)
}

// consoleChild serves the console.
func consoleChild(ctx context.Context, c childConfig, r *reporter) error {
	config, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return err
	}
	config.MaxConns = 3 // this and the mode are those of lockstep console
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	site, err := console.New(console.Config{
		Read: pool, Zone: time.UTC, Loopback: true,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: site.Handler()}
	first := r.now()
	first.URL = "http://" + listener.Addr().String()
	if err := r.print(first); err != nil {
		return err
	}
	serving := make(chan error, 1)
	go func() { serving <- server.Serve(listener) }()
	<-ctx.Done()
	_ = server.Close()
	if err := <-serving; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

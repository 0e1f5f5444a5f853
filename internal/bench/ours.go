package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
	"github.com/hms-mkt/lockstep/migrations"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

const (
	workers     = 32
	perKey      = 4.5 // events of a key: four or five
	courtSync   = "CourtCalendarSync"
	archiveSync = "ArchiveSync"
)

// syncNamed is a registered sync. The archive takes its own types of events. The others are courts, and take the same types.
func syncNamed(name string) relay.Sync {
	s := relay.Sync{Name: name, Events: []string{"scheduling:*"}, From: "beginning"}
	if name == archiveSync {
		s.Events = []string{"archive:*"}
	}
	return s
}

// register applies our schema and registers these syncs.
func (d *database) register(ctx context.Context, names ...string) error {
	if err := migrations.Up(ctx, d.url, migrations.Outbox); err != nil {
		return err
	}
	store, err := outbox.Open(ctx, d.url, outbox.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	var syncs []relay.Sync
	for _, name := range names {
		syncs = append(syncs, syncNamed(name))
	}
	if _, err := store.Register(ctx, relay.Config{Syncs: syncs}.Registrations()); err != nil {
		return err
	}
	for _, name := range names {
		b := store.NewBackfill(name)
		for complete := false; !complete; {
			if complete, _, err = b.Step(ctx, 1000); err != nil {
				return err
			}
		}
	}
	return nil
}

// payload is the payload of event n about a hearing.
const payload = `jsonb_build_object('n', n, 'hearingId', 'H-' || n, 'caseReference', 'NY-2027-' || n,
	'scheduledAt', '2027-03-01T10:00:00-05:00', 'location', '3A', 'judge', 'R. Alvarez', 'status', 'scheduled')`

// insertEvents adds events numbered from first to last over a number of keys.
const insertEvents = `INSERT INTO outbox.event (type, key, payload)
SELECT $1, $2 || n % $3, ` + payload + `
  FROM generate_series($4::bigint, $5::bigint) AS n`

// keysOf is the number of keys for n events, four or five to each.
func keysOf(n int) int { return max(1, int(float64(n)/perKey)) }

// load inserts n events of a type over keys, in pages.
func (d *database) load(ctx context.Context, eventType, keyPrefix string, n, keys int) error {
	const page = 20_000
	for first := 1; first <= n; first += page {
		if _, err := d.conn.Exec(ctx, insertEvents, eventType, keyPrefix, keys, first, min(first+page-1, n)); err != nil {
			return err
		}
	}
	return nil
}

// ours returns a database with n events waiting for one sync.
func (l *lab) ours(ctx context.Context, n, keys int) (*database, error) {
	return l.database(ctx, fmt.Sprintf("%d events on %d keys", n, keys), func(ctx context.Context, d *database) error {
		if err := d.register(ctx, courtSync); err != nil {
			return err
		}
		return d.load(ctx, "scheduling:updated", "H-", n, keys)
	})
}

// allRecorded is a query that is true if no delivery is open.
const allRecorded = `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`

// relayChild is a relay as a process. Its adapter does nothing, or posts to a
// sink.
func relayChild(ctx context.Context, c childConfig, r *reporter) error {
	debug.SetGCPercent(200) // as lockstep run does
	store, err := outbox.Open(ctx, c.URL, outbox.Options{Name: c.Name})
	if err != nil {
		return err
	}
	defer store.Close()
	var adapter adapters.Adapter = noop{c.Delay}
	if c.Sink != "" {
		if adapter, err = rest.New(rest.Config{URL: c.Sink}); err != nil {
			return err
		}
	}
	timeout := cmp.Or(c.Timeout, 15*time.Second)
	var syncs []relay.Sync
	for _, name := range append(c.Syncs, courtSync)[:max(len(c.Syncs), 1)] {
		s := syncNamed(name)
		s.Adapter, s.Notify = counting{adapter, r, timeout}, c.Notify
		if c.Slow == "" || name == c.Slow {
			s.Rate = c.Rate
		}
		if name == c.Slow {
			s.Adapter = counting{noop{c.SlowDelay}, &reporter{}, timeout}
		}
		syncs = append(syncs, s)
	}
	claims := &claimTimes{}
	running, err := relay.New(store, relay.Config{
		Syncs: syncs, Workers: cmp.Or(c.Workers, workers), Lease: c.Lease, Observer: claims,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	err = running.Run(ctx)
	r.claims = claims.found
	return err
}

// noop accepts everything after a delay.
type noop struct{ delay time.Duration }

func (n noop) Deliver(ctx context.Context, _ adapters.Message) (adapters.Receipt, error) {
	if n.delay > 0 {
		if err := waitFor(ctx, n.delay); err != nil {
			return adapters.Receipt{}, err
		}
	}
	return adapters.Receipt{Code: "HTTP 200"}, nil
}

// counting tells the reporter of every delivery.
type counting struct {
	adapters.Adapter
	reporter *reporter
	timeout  time.Duration
}

// AttemptTimeout implements the interface by which a relay learns the longest attempt.
func (c counting) AttemptTimeout() time.Duration { return c.timeout }

func (c counting) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	c.reporter.arrived(msg.Body)
	receipt, err := c.Adapter.Deliver(ctx, msg)
	if err == nil {
		c.reporter.done()
	}
	return receipt, err
}

// claimTimes observes the duration of claims that find work.
type claimTimes struct {
	mu    sync.Mutex
	found []claimTime
}

type claimTime struct {
	At   int64         `json:"at"` // Unix nanoseconds, when it ended
	Took time.Duration `json:"took"`
}

func (c *claimTimes) Claim(_ string, claimed int, took time.Duration) {
	if claimed == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.found = append(c.found, claimTime{time.Now().UnixNano(), took})
}

func (*claimTimes) Attempt(string, string, time.Duration) {}
func (*claimTimes) LeaseLost(string)                      {}
func (*claimTimes) Clock(time.Duration)                   {}
func (*claimTimes) MissingID(string)                      {}
func (*claimTimes) LogAhead(int)                          {}
func (*claimTimes) Alert(string, string, int64)           {}

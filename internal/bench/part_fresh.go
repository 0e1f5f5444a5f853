package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// freshCase is a situation in which a relay is busy when events of new keys are written.
type freshCase struct {
	what          string
	goal, stretch float64 // for the p99 from commit to adapter, in milliseconds
	backlog       int     // events that wait
	keys          int     // on so many keys
	syncs         []string
	rate          int           // events of new keys per second
	open          time.Duration // how long a writer keeps its transaction open after the insert
	relay         childConfig
	stopped       time.Duration // for so long one of two relays is stopped by SIGSTOP; 0: there is one relay
}

// freshCases have the goals of docs/guarantees.md, guarantee 9.
func freshCases() []freshCase {
	const old = 200_000
	var (
		three = []string{courtSync, courtSync + "2", courtSync + "3"}
		cases []freshCase
	)
	for _, c := range []struct {
		workers       int
		goal, stretch float64
	}{{32, 1500, 500}, {16, 1500, 800}, {8, 4000, 2500}, {4, 4000, 3500}} {
		const busyKeys, behindEach = 64, 200
		cases = append(cases, freshCase{
			what: fmt.Sprintf("64 busy keys, receiver of 200 ms, %d workers", c.workers), goal: c.goal, stretch: c.stretch,
			backlog: busyKeys * behindEach, keys: busyKeys, rate: 2,
			relay: childConfig{Workers: c.workers, Delay: 200 * time.Millisecond},
		})
	}
	return append(cases,
		freshCase{
			what: "200k old rows of other keys, receiver of 20 ms", goal: 2000, stretch: 200,
			backlog: old, keys: keysOf(old), rate: 20,
			relay: childConfig{Delay: 20 * time.Millisecond},
		},
		freshCase{
			what: "three busy syncs on 16 workers, one answers after 5 s", goal: 3000, stretch: 1000,
			backlog: 20_000, keys: keysOf(20_000), rate: 2, syncs: three,
			relay: childConfig{Workers: 16, Delay: 50 * time.Millisecond, Slow: three[2], SlowDelay: 5 * time.Second},
		},
		freshCase{
			what: "200k old rows, committed 1 s after its insert", goal: 1000, stretch: 300,
			backlog: old, keys: keysOf(old), rate: 3, open: time.Second,
			relay: childConfig{Delay: 20 * time.Millisecond},
		},
		freshCase{
			what: "a queue behind a rate limit of 20/s", goal: 2000, stretch: 1000,
			backlog: old, keys: keysOf(old), rate: 2,
			relay: childConfig{Rate: 20},
		},
		freshCase{
			what: "three busy syncs on 16 workers, one behind a rate limit of 20/s", goal: 3000, stretch: 300,
			backlog: 20_000, keys: keysOf(20_000), rate: 2, syncs: three,
			relay: childConfig{Workers: 16, Delay: 50 * time.Millisecond, Slow: three[2], Rate: 20},
		},
		freshCase{
			what: "one key with 100k events", goal: 2000, stretch: 200,
			backlog: 100_000, keys: 1, rate: 20,
		},
		freshCase{
			what: "200k old rows, one of two relays stopped for 8 s, leases of 6 s", goal: 8000, stretch: 2000,
			backlog: old, keys: keysOf(old), rate: 20, stopped: 8 * time.Second,
			relay: childConfig{Delay: 20 * time.Millisecond, Lease: 6 * time.Second, Timeout: 2500 * time.Millisecond},
		},
	)
}

// freshPart measures how long an event of a new key waits while a relay is busy with other keys. failedPart measures this
// with a million deliveries of failed keys.
func freshPart() part {
	cases := freshCases()
	p := part{name: "fresh"}
	for _, c := range cases {
		p.figures = append(p.figures, figure{
			Name: "new key beside " + c.what + ", p99", Unit: "ms", Judged: byItself, Goal: c.goal, Stretch: c.stretch, AtMost: true,
		})
	}
	p.round = func(ctx context.Context, l *lab) ([]sample, error) {
		return l.samples(len(cases), func(i int) (sample, error) {
			p99, err := l.freshKeys(ctx, cases[i])
			return sample{Ours: p99}, err
		})
	}
	return p
}

// freshKeys returns the 99th percentile of the time from the commit of a new key's event to the call of the adapter, in
// milliseconds. If there are several healthy syncs, the last call counts.
func (l *lab) freshKeys(ctx context.Context, c freshCase) (_ float64, err error) {
	if c.syncs == nil {
		c.syncs = []string{courtSync}
	}
	n := l.size(c.backlog)
	keys := min(c.keys, n)
	d, err := l.database(ctx, fmt.Sprintf("%d events on %d keys for %d sync(s)", n, keys, len(c.syncs)), func(ctx context.Context, d *database) error {
		if err := d.register(ctx, c.syncs...); err != nil {
			return err
		}
		return d.load(ctx, "scheduling:updated", "H-", n, keys)
	})
	if err != nil {
		return 0, err
	}
	pool, err := openPool(ctx, d.url, trafficWriters)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	l.note("new keys beside %s", c.what)
	c.relay.Role, c.relay.URL, c.relay.Syncs, c.relay.Numbered = "relay", d.url, c.syncs, true
	relays := []childConfig{c.relay}
	if c.stopped > 0 {
		relays = append(relays, c.relay)
	}
	g, err := l.start(ctx, relays...)
	if err != nil {
		return 0, err
	}
	defer g.stopInto(&err)
	if err := g.reach(ctx, 1, d); err != nil {
		return 0, err
	}
	lasts := l.lasting(30*time.Second) + 500*time.Millisecond
	flowing, cancel := context.WithTimeout(ctx, lasts)
	defer cancel()
	paused := make(chan error, 1)
	go func() { paused <- g.pause(flowing, lasts/3, l.lasting(c.stopped)) }()
	t := newTraffic()
	after := int64(c.backlog) // the numbers of new keys are none of the backlog's
	err = t.flowAt(ctx, flowing, c.rate, func(ctx context.Context, n int64) error { return insertFresh(ctx, pool, after+n, c.open) })
	if err := errors.Join(err, <-paused); err != nil {
		return 0, err
	}
	for _, sync := range c.syncs {
		if sync == c.relay.Slow {
			continue
		}
		if err := d.wait(ctx, `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = '`+sync+`' AND key >= 'fresh-' AND key < 'fresh.')`); err != nil {
			return 0, err
		}
	}
	if err := g.stop(); err != nil {
		return 0, err
	}
	arrivals := map[int64]int64{}
	for number, at := range g.arrivals() {
		arrivals[number-after] = at
	}
	if len(t.committed) == 0 {
		return 0, errors.New("no event of a new key was written")
	}
	pool.Close()
	return percentile(t.delays(arrivals, time.Time{}, time.Now()), 99), d.drop(ctx)
}

// insertFresh inserts one event of a key that has no other, and commits later.
func insertFresh(ctx context.Context, pool *pgxpool.Pool, n int64, later time.Duration) error {
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }() // after the commit it does nothing
	_, err = tx.Exec(ctx, `INSERT INTO outbox.event (type, key, payload) VALUES ($1, $2, $3)`,
		"scheduling:updated", fmt.Sprintf("fresh-%d", n), hearingNumber(n))
	if err != nil {
		return err
	}
	if err := waitFor(ctx, later); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// pause stops the first of several children for a while, as if its machine had stopped. It begins after the delay.
func (g *group) pause(ctx context.Context, delay, lasts time.Duration) error {
	if len(g.children) < 2 {
		return nil
	}
	_ = waitFor(ctx, delay) // if the traffic ends before, it is paused for a moment
	process := g.children[0].cmd.Process
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	_ = waitFor(ctx, lasts)
	return process.Signal(syscall.SIGCONT)
}

// arrivals returns the time of the first arrival of each numbered event. The children must have stopped.
func (g *group) arrivals() map[int64]int64 {
	first := map[int64]int64{}
	for _, ch := range g.children {
		for n, at := range ch.last.Arrivals {
			if before, ok := first[n]; !ok || at < before {
				first[n] = at
			}
		}
	}
	return first
}

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// freshCase is a relay that has much to do when events of new keys come.
type freshCase struct {
	what          string
	goal, stretch float64 // for the p99 from commit to adapter, in milliseconds
	backlog       int     // events that wait
	keys          int     // on so many keys
	syncs         []string
	rate          int // events of new keys per second
	relay         childConfig
}

// freshPart measures how long an event of a new key waits while a relay is busy
// with other keys. What it waits behind a million rows of failed keys is a figure of
// failedPart.
func freshPart() part {
	const busyKeys, behindEach = 64, 200
	var cases []freshCase
	for _, c := range []struct {
		workers       int
		goal, stretch float64
	}{{32, 1500, 500}, {16, 1500, 800}, {8, 4000, 2500}, {4, 4000, 3500}} {
		cases = append(cases, freshCase{
			what: fmt.Sprintf("64 busy keys, receiver of 200 ms, %d workers", c.workers), goal: c.goal, stretch: c.stretch,
			backlog: busyKeys * behindEach, keys: busyKeys, rate: 2,
			relay: childConfig{Workers: c.workers, Delay: 200 * time.Millisecond},
		})
	}
	three := []string{courtSync, courtSync + "2", courtSync + "3"}
	cases = append(cases,
		freshCase{
			what: "200k old rows of other keys, receiver of 20 ms", goal: 2000, stretch: 200,
			backlog: 200_000, keys: keysOf(200_000), rate: 20,
			relay: childConfig{Delay: 20 * time.Millisecond},
		},
		freshCase{
			what: "three busy syncs on 16 workers, one answers after 5 s", goal: 3000, stretch: 1000,
			backlog: 20_000, keys: keysOf(20_000), rate: 2, syncs: three,
			relay: childConfig{Workers: 16, Delay: 50 * time.Millisecond, Syncs: three, Slow: three[2], SlowDelay: 5 * time.Second},
		},
	)
	p := part{name: "fresh"}
	for _, c := range cases {
		p.figures = append(p.figures, figure{
			Name: "new key beside " + c.what + ", p99", Unit: "ms", Judged: byItself, Goal: c.goal, Stretch: c.stretch, AtMost: true,
		})
	}
	p.round = func(ctx context.Context, l *lab) ([]sample, error) {
		samples := make([]sample, len(cases))
		var turns []func() error
		for i, c := range cases {
			turns = append(turns, func() (err error) { samples[i].Ours, err = l.freshKeys(ctx, c); return err })
		}
		return samples, l.inTurn(turns...)
	}
	return p
}

// freshKeys returns the p99 of the time from the commit of a new key's event to the
// adapter, in milliseconds; where there are several healthy syncs, to the last.
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
	c.relay.Role, c.relay.URL, c.relay.Numbered = "relay", d.url, true
	g, err := l.start(ctx, c.relay)
	if err != nil {
		return 0, err
	}
	defer g.stopInto(&err)
	if err := g.reach(ctx, 1, d); err != nil {
		return 0, err
	}
	flowing, cancel := context.WithTimeout(ctx, l.lasting(30*time.Second)+2*time.Second)
	defer cancel()
	t := newTraffic()
	insert := insertFresh(pool)
	// Their numbers are none of the backlog's.
	after := int64(c.backlog)
	err = t.flowAt(ctx, flowing, c.rate, func(ctx context.Context, n int64) error { return insert(ctx, after+n) })
	if err != nil {
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
	last := g.last()
	arrivals := map[int64]int64{}
	for number, at := range last.Arrivals {
		arrivals[number-after] = at
	}
	if len(t.committed) == 0 {
		return 0, errors.New("no event of a new key was written")
	}
	pool.Close()
	return percentile(t.delays(arrivals, time.Time{}, time.Now()), 99), d.drop(ctx)
}

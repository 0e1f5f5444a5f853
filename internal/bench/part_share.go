package main

import (
	"context"
	"fmt"
)

// sharePart shares the same number of deliveries among syncs and among relay
// processes.
func sharePart() part {
	return part{
		name: "share",
		figures: []figure{
			{Name: "three syncs, deliveries per second", Against: "one sync", Unit: "/s", Judged: byRatio, Goal: 0.9, Stretch: 1.2},
			{Name: "three relay processes", Against: "one process", Unit: "/s", Judged: byRatio, Goal: 0.9, Stretch: 1.0},
		},
		round: func(ctx context.Context, l *lab) ([]sample, error) {
			n := l.size(120_000) / 3 * 3
			var one, three, processes *drained
			relays := func() []childConfig { return []childConfig{{Role: "relay"}, {Role: "relay"}, {Role: "relay"}} }
			err := l.inTurn(
				func() (err error) { one, err = l.drainOurs(ctx, n, keysOf(n)); return err },
				func() (err error) { three, err = l.drainThreeSyncs(ctx, n); return err },
				func() (err error) { processes, err = l.drainOurs(ctx, n, keysOf(n), relays()...); return err },
			)
			if err != nil {
				return nil, err
			}
			return []sample{compare(three, one), compare(processes, one)}, nil
		},
	}
}

// drainThreeSyncs drains n deliveries, a third of them to each of three syncs.
func (l *lab) drainThreeSyncs(ctx context.Context, n int) (*drained, error) {
	names := []string{courtSync, courtSync + "2", courtSync + "3"}
	d, err := l.database(ctx, fmt.Sprintf("%d events for three syncs", n/3), func(ctx context.Context, d *database) error {
		if err := d.register(ctx, names...); err != nil {
			return err
		}
		return d.load(ctx, "scheduling:updated", "H-", n/3, keysOf(n/3))
	})
	if err != nil {
		return nil, err
	}
	l.note("ours, three syncs")
	r, err := l.drain(ctx, d, n, allRecorded, nil, childConfig{Role: "relay", Syncs: names})
	if err != nil {
		return nil, err
	}
	return r, d.drop(ctx)
}

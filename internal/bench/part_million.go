package main

import (
	"context"
	"fmt"
)

// millionPart measures the cost of a large backlog.
func millionPart() part {
	return part{
		name: "million",
		figures: []figure{
			{Name: "1M backlog", Against: "100k backlog", Unit: "/s", Judged: byRatio, Goal: 0.90, Stretch: 1.0},
			{Name: "resident memory at 1M backlog", Unit: "MiB", Judged: byItself, Goal: 64, Stretch: 40, AtMost: true, Precision: 1},
		},
		round: func(ctx context.Context, l *lab) ([]sample, error) {
			var resident float64
			drain := func(n int, result **drained) func() error {
				return func() error {
					d, err := l.ours(ctx, n, keysOf(n))
					if err != nil {
						return err
					}
					l.note("ours, a backlog of %d", n)
					r, err := l.drain(ctx, d, n, allRecorded, nil, childConfig{Role: "relay"})
					if err != nil {
						return err
					}
					*result, resident = r, max(resident, r.resident())
					return d.drop(ctx)
				}
			}
			var large, small *drained
			if err := l.inTurn(drain(l.size(1_000_000), &large), drain(l.size(100_000), &small)); err != nil {
				return nil, err
			}
			return []sample{compare(large, small), {Ours: resident}}, nil
		},
	}
}

// holdPart delivers for one sync while another is on hold with a million deliveries. It compares this with the sync alone.
func holdPart() part {
	return part{
		name: "hold",
		figures: []figure{
			{Name: "beside a sync on hold with 1M rows", Against: "alone", Unit: "/s", Judged: byRatio, Goal: 0.95, Stretch: 1.0},
		},
		round: func(ctx context.Context, l *lab) ([]sample, error) {
			n := l.size(100_000)
			drain := func(waiting int, result **drained) func() error {
				return func() error {
					holds := fmt.Sprintf("%d events, and %d of a sync on hold", n, waiting)
					d, err := l.database(ctx, holds, func(ctx context.Context, d *database) error {
						if err := d.register(ctx, courtSync, archiveSync); err != nil {
							return err
						}
						if _, err := d.conn.Exec(ctx, `SELECT outbox.pause($1, 'benchmark')`, archiveSync); err != nil {
							return err
						}
						if err := d.load(ctx, "archive:added", "A-", waiting, keysOf(waiting)); err != nil {
							return err
						}
						return d.load(ctx, "scheduling:updated", "H-", n, keysOf(n))
					})
					if err != nil {
						return err
					}
					l.note("ours, %d rows on hold", waiting)
					recorded := `SELECT NOT EXISTS (SELECT FROM outbox.delivery WHERE sync = '` + courtSync + `')`
					r, err := l.drain(ctx, d, n, recorded, nil, childConfig{Role: "relay", Syncs: []string{courtSync, archiveSync}})
					if err != nil {
						return err
					}
					*result = r
					return d.drop(ctx)
				}
			}
			var beside, alone *drained
			if err := l.inTurn(drain(l.size(1_000_000), &beside), drain(0, &alone)); err != nil {
				return nil, err
			}
			return []sample{compare(beside, alone)}, nil
		},
	}
}

package main

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
)

// livePart delivers what a writer inserts at the same time, as fast as it can.
func livePart() part {
	const page = 100 // events in a transaction
	return part{
		name: "live",
		figures: []figure{{
			Name: "no-op adapter while a writer inserts", Against: "River", Unit: "/s", Judged: byRatio, Goal: 1.3, Stretch: 1.8,
		}},
		round: func(ctx context.Context, l *lab) ([]sample, error) {
			n := l.size(200_000)
			pages := func(insert func(first, last int) error) func() error {
				return func() error {
					for first := 1; first <= n; first += page {
						if err := insert(first, min(first+page-1, n)); err != nil {
							return err
						}
					}
					return nil
				}
			}
			var oursRun, riverRun *drained
			ours := func() (err error) {
				d, err := l.ours(ctx, 0, 1)
				if err != nil {
					return err
				}
				writer, err := pgxpool.New(ctx, d.url)
				if err != nil {
					return err
				}
				defer writer.Close()
				l.note("ours")
				oursRun, err = l.drain(ctx, d, n, allRecorded, pages(func(first, last int) error {
					_, err := writer.Exec(ctx, insertEvents, "scheduling:updated", "H-", keysOf(n), first, last)
					return err
				}), childConfig{Role: "relay"})
				if err != nil {
					return err
				}
				writer.Close()
				return d.drop(ctx)
			}
			river := func() (err error) {
				d, err := l.riverJobs(ctx, 0)
				if err != nil {
					return err
				}
				writer, err := newInserter(ctx, d.url)
				if err != nil {
					return err
				}
				defer writer.pool.Close()
				l.note("River")
				riverRun, err = l.drain(ctx, d, n, allWorked, pages(func(first, last int) error {
					return writer.insert(ctx, first, last)
				}), childConfig{Role: "river"})
				if err != nil {
					return err
				}
				writer.pool.Close()
				return d.drop(ctx)
			}
			if err := l.inTurn(ours, river); err != nil {
				return nil, err
			}
			return []sample{compare(oursRun, riverRun)}, nil
		},
	}
}

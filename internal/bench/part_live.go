package main

import (
	"context"
	"errors"
)

// livePart drains a backlog while a writer inserts. For ours and for River, it inserts four events in a transaction, five
// hundred times a second.
func livePart() part {
	return part{
		name: "live",
		figures: []figure{{
			Name: "the same while a writer inserts 2,000/s", Against: "River", Unit: "/s", Judged: byRatio, Goal: 1.3, Stretch: 1.8,
		}},
		round: func(ctx context.Context, l *lab) ([]sample, error) {
			n := l.size(200_000)
			var ours, river *drained
			err := l.inTurn(
				func() (err error) { ours, err = l.liveOurs(ctx, n); return err },
				func() (err error) { river, err = l.liveRiver(ctx, n); return err },
			)
			if err != nil {
				return nil, err
			}
			return []sample{compare(ours, river)}, nil
		},
	}
}

const perInsert = 4 // events in a transaction of the writer

func (l *lab) liveOurs(ctx context.Context, n int) (*drained, error) {
	d, err := l.ours(ctx, n, keysOf(n))
	if err != nil {
		return nil, err
	}
	pool, err := openPool(ctx, d.url, trafficWriters)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	l.note("ours")
	r, err := l.drainLive(ctx, d, n, childConfig{Role: "relay"}, func(ctx context.Context, first, last int64) error {
		_, err := pool.Exec(ctx, insertEvents, "scheduling:updated", "H-", keysOf(n), first, last)
		return err
	})
	if err != nil {
		return nil, err
	}
	pool.Close()
	return r, d.drop(ctx)
}

func (l *lab) liveRiver(ctx context.Context, n int) (*drained, error) {
	d, err := l.riverJobs(ctx, n)
	if err != nil {
		return nil, err
	}
	inserter, err := newInserter(ctx, d.url)
	if err != nil {
		return nil, err
	}
	defer inserter.pool.Close()
	l.note("River")
	r, err := l.drainLive(ctx, d, n, childConfig{Role: "river"}, func(ctx context.Context, first, last int64) error {
		return inserter.insert(ctx, int(first), int(last))
	})
	if err != nil {
		return nil, err
	}
	inserter.pool.Close()
	return r, d.drop(ctx)
}

// drainLive drains n of a backlog while insert adds events.
func (l *lab) drainLive(ctx context.Context, d *database, n int, config childConfig,
	insert func(ctx context.Context, first, last int64) error,
) (*drained, error) {
	flowing, cancel := context.WithCancel(ctx)
	written := make(chan error, 1)
	r, err := l.drain(ctx, d, n, `SELECT true`, func() error { // there are always some that are not recorded yet
		go func() {
			written <- newTraffic().flow(ctx, flowing, func(ctx context.Context, page int64) error {
				first := int64(n) + page*perInsert
				return insert(ctx, first, first+perInsert-1)
			})
		}()
		return nil
	}, config)
	cancel()
	if r == nil {
		return nil, err // the writer ends by the context
	}
	return r, errors.Join(err, <-written)
}

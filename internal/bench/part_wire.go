package main

import (
	"context"
	"errors"
	"time"
)

// wirePart sends to a sink that answers at once, and compares this with a bare HTTP client.
func wirePart() part {
	return part{
		name: "wire",
		figures: []figure{
			{Name: "HTTP sink at once, 32 workers", Against: "bare client", Unit: "/s", Judged: byRatio, Goal: 0.60, Stretch: 0.75},
			{Name: "everything on 32 keys, HTTP sink at once", Against: "spread keys", Unit: "/s", Judged: byRatio, Goal: 0.3, Stretch: 0.5},
			{Name: "relay CPU per delivery beyond the bare client's", Against: "bare client", Unit: "µs", Judged: byDifference, Goal: 15, Stretch: 8, AtMost: true, Precision: 1},
		},
		round: func(ctx context.Context, l *lab) (_ []sample, err error) {
			n := l.size(50_000)
			sink, url, err := l.sink(ctx, 0)
			if err != nil {
				return nil, err
			}
			defer sink.stopInto(&err)
			var bare, spread, narrow *drained
			err = l.inTurn(
				func() (err error) { bare, err = l.bareClient(ctx, url, n); return err },
				func() (err error) { spread, err = l.post(ctx, url, n, keysOf(n)); return err },
				func() (err error) { narrow, err = l.post(ctx, url, n, 32); return err },
			)
			if err != nil {
				return nil, err
			}
			return []sample{
				compare(spread, bare),
				compare(narrow, spread),
				{Ours: microseconds(spread.cpu()), Reference: microseconds(bare.cpu())},
			}, nil
		},
	}
}

// slowPart sends to a sink that answers slowly, as real receivers do.
func slowPart() part {
	return part{
		name: "slow",
		figures: []figure{
			{Name: "HTTP sink in 10 ms, 32 workers", Against: "bare client", Unit: "/s", Judged: byRatio, Goal: 0.95, Stretch: 0.98},
		},
		round: func(ctx context.Context, l *lab) (_ []sample, err error) {
			n := l.size(20_000)
			sink, url, err := l.sink(ctx, 10*time.Millisecond)
			if err != nil {
				return nil, err
			}
			defer sink.stopInto(&err)
			var bare, relay *drained
			err = l.inTurn(
				func() (err error) { bare, err = l.bareClient(ctx, url, n); return err },
				func() (err error) { relay, err = l.post(ctx, url, n, keysOf(n)); return err },
			)
			if err != nil {
				return nil, err
			}
			return []sample{compare(relay, bare)}, nil
		},
	}
}

func (l *lab) sink(ctx context.Context, delay time.Duration) (*group, string, error) {
	g, err := l.start(ctx, childConfig{Role: "sink", Delay: delay})
	if err != nil {
		return nil, "", err
	}
	url, err := g.address(ctx)
	if err != nil {
		return nil, "", errors.Join(err, g.stop())
	}
	return g, url, nil
}

// post has a relay post n events to a sink.
func (l *lab) post(ctx context.Context, url string, n, keys int) (*drained, error) {
	d, err := l.ours(ctx, n, keys)
	if err != nil {
		return nil, err
	}
	l.note("ours, %d keys", keys)
	r, err := l.drain(ctx, d, n, allRecorded, nil, childConfig{Role: "relay", Sink: url})
	if err != nil {
		return nil, err
	}
	return r, d.drop(ctx)
}

// bareClient sends n requests to a sink without a relay.
func (l *lab) bareClient(ctx context.Context, url string, n int) (_ *drained, err error) {
	l.note("bare client")
	g, err := l.start(ctx, childConfig{Role: "client", Sink: url, Requests: n})
	if err != nil {
		return nil, err
	}
	defer g.stopInto(&err)
	if err := g.reach(ctx, n, nil); err != nil {
		return nil, err
	}
	return &drained{group: g, n: n, ended: g.progressAt(n)}, nil
}

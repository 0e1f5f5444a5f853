package main

import "context"

// backlogPart drains a backlog into nothing, ours against River.
func backlogPart() part {
	return part{
		name: "backlog",
		figures: []figure{{
			Name: "no-op adapter, 200k backlog", Against: "River", Unit: "/s", Judged: byRatio, Goal: 1.8, Stretch: 2.5,
		}},
		round: func(ctx context.Context, l *lab) ([]sample, error) {
			n := l.size(200_000)
			var ours, river *drained
			err := l.inTurn(
				func() (err error) { ours, err = l.drainOurs(ctx, n, keysOf(n)); return err },
				func() (err error) { river, err = l.drainRiver(ctx, n); return err },
			)
			if err != nil {
				return nil, err
			}
			return []sample{compare(ours, river)}, nil
		},
	}
}

// drainOurs drains n events into nothing.
func (l *lab) drainOurs(ctx context.Context, n, keys int, relays ...childConfig) (*drained, error) {
	d, err := l.ours(ctx, n, keys)
	if err != nil {
		return nil, err
	}
	if len(relays) == 0 {
		relays = []childConfig{{Role: "relay"}}
	}
	l.note("ours, %d relay(s)", len(relays))
	r, err := l.drain(ctx, d, n, allRecorded, nil, relays...)
	if err != nil {
		return nil, err
	}
	return r, d.drop(ctx)
}

func (l *lab) drainRiver(ctx context.Context, n int) (*drained, error) {
	d, err := l.riverJobs(ctx, n)
	if err != nil {
		return nil, err
	}
	l.note("River")
	r, err := l.drain(ctx, d, n, allWorked, nil, childConfig{Role: "river"})
	if err != nil {
		return nil, err
	}
	return r, d.drop(ctx)
}

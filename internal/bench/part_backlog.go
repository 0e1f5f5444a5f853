package main

import "context"

// backlogPart drains a backlog into an adapter that does nothing. It compares ours with River, which has no keys. Ours has
// one event per key, four or five, and fifty.
func backlogPart() part {
	mixes := []struct {
		what                   string
		perKey                 float64
		rate, stretchRate      float64 // × River
		wal, stretchWAL        float64
		buffers, stretchBuffer float64
	}{
		{"", perKey, 1.8, 2.5, 0.45, 0.35, 1.6, 1.2},
		{", one event a key", 1, 1.2, 1.8, 0.45, 0.35, 1.6, 1.2},
		{", 50 events a key", 50, 1.8, 2.5, 0.40, 0.30, 1.6, 1.2},
	}
	p := part{name: "backlog"}
	for _, m := range mixes {
		p.figures = append(p.figures,
			figure{Name: "no-op adapter, 200k backlog" + m.what, Against: "River", Unit: "/s", Judged: byRatio, Goal: m.rate, Stretch: m.stretchRate},
			figure{Name: "… WAL per delivery" + m.what, Against: "River", Unit: "B", Judged: byRatio, Goal: m.wal, Stretch: m.stretchWAL, AtMost: true},
			figure{Name: "… buffers per delivery" + m.what, Against: "River", Unit: "", Judged: byRatio, Goal: m.buffers, Stretch: m.stretchBuffer, AtMost: true, Precision: 1},
		)
	}
	p.round = func(ctx context.Context, l *lab) ([]sample, error) {
		n := l.size(200_000)
		ours := make([]*drained, len(mixes))
		var river *drained
		turns := []func() error{func() (err error) { river, err = l.drainRiver(ctx, n); return err }}
		for i, m := range mixes {
			turns = append(turns, func() (err error) {
				ours[i], err = l.drainOurs(ctx, n, max(1, int(float64(n)/m.perKey)))
				return err
			})
		}
		if err := l.inTurn(turns...); err != nil {
			return nil, err
		}
		var samples []sample
		for _, o := range ours {
			samples = append(samples, compare(o, river),
				sample{Ours: o.each(o.wal), Reference: river.each(river.wal)},
				sample{Ours: o.each(o.buffers), Reference: river.each(river.buffers)})
		}
		return samples, nil
	}
	return p
}

// drainOurs drains n events into an adapter that does nothing.
func (l *lab) drainOurs(ctx context.Context, n, keys int, relays ...childConfig) (*drained, error) {
	d, err := l.ours(ctx, n, keys)
	if err != nil {
		return nil, err
	}
	if len(relays) == 0 {
		relays = []childConfig{{Role: "relay"}}
	}
	l.note("ours, %d relay(s)", len(relays))
	r, err := d.uses(ctx, func() (*drained, error) { return l.drain(ctx, d, n, allRecorded, nil, relays...) })
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
	r, err := d.uses(ctx, func() (*drained, error) { return l.drain(ctx, d, n, allWorked, nil, childConfig{Role: "river"}) })
	if err != nil {
		return nil, err
	}
	return r, d.drop(ctx)
}

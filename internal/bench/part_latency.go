package main

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"
)

// latencyPart measures how long an event takes under a steady 500 a second.
func latencyPart() part {
	return part{
		name: "latency",
		figures: []figure{
			{Name: "commit to adapter p50 at 500/s, NOTIFY", Against: "River", Unit: "ms", Judged: byRatio, Goal: 0.5, Stretch: 0.25, AtMost: true, Precision: 2},
			{Name: "commit to adapter p50 at 500/s, by polling", Unit: "ms", Judged: byItself, Goal: 5, Stretch: 2, AtMost: true, Precision: 2},
			{Name: "adapter to recorded p50", Against: "one single-row commit", Unit: "ms", Judged: byRatio, Goal: 2, Stretch: 1.5, AtMost: true, Precision: 2},
		},
		round: func(ctx context.Context, l *lab) ([]sample, error) {
			var notify, polling, river latency
			err := l.inTurn(
				func() (err error) { notify, err = l.oursLatency(ctx, true); return err },
				func() (err error) { polling, err = l.oursLatency(ctx, false); return err },
				func() (err error) { river, err = l.riverLatency(ctx); return err },
			)
			return []sample{
				{Ours: notify.toAdapter, Reference: river.toAdapter},
				{Ours: polling.toAdapter},
				{Ours: polling.toRecorded, Reference: polling.commit},
			}, err
		},
	}
}

// latency has the medians under traffic, in milliseconds.
type latency struct {
	toAdapter  float64 // from the commit
	toRecorded float64 // from the adapter
	commit     float64 // of a single row, meanwhile
}

func (l *lab) oursLatency(ctx context.Context, notify bool) (latency, error) {
	d, err := l.ours(ctx, 0, 1)
	if err != nil {
		return latency{}, err
	}
	if _, err := d.conn.Exec(ctx, `UPDATE outbox.sync SET notify = $1`, notify); err != nil {
		return latency{}, err
	}
	pool, err := openPool(ctx, d.url, trafficWriters+1)
	if err != nil {
		return latency{}, err
	}
	defer pool.Close()
	l.note("ours, NOTIFY: %t", notify)
	t := newTraffic()
	var recorded map[int64]time.Time
	var took []float64
	last, err := l.underTraffic(ctx, d, t, insertEvent(pool), childConfig{Role: "relay", Notify: notify},
		func(flowing context.Context) (err error) { recorded, err = t.recordings(ctx, flowing, d); return err },
		func(flowing context.Context) (err error) { took, err = commits(ctx, flowing, pool); return err })
	if err != nil {
		return latency{}, err
	}
	var toRecorded []float64
	for n, at := range recorded {
		toRecorded = append(toRecorded, milliseconds(at.Sub(time.Unix(0, last.Arrivals[n]))))
	}
	pool.Close()
	return latency{
		toAdapter:  median(t.delays(last.Arrivals, time.Time{}, time.Now())),
		toRecorded: median(toRecorded),
		commit:     median(took),
	}, d.drop(ctx)
}

func (l *lab) riverLatency(ctx context.Context) (latency, error) {
	d, err := l.riverJobs(ctx, 0)
	if err != nil {
		return latency{}, err
	}
	inserter, err := newInserter(ctx, d.url)
	if err != nil {
		return latency{}, err
	}
	defer inserter.pool.Close()
	l.note("River")
	t := newTraffic()
	last, err := l.underTraffic(ctx, d, t, inserter.insertJob, childConfig{Role: "river"})
	if err != nil {
		return latency{}, err
	}
	inserter.pool.Close()
	return latency{toAdapter: median(t.delays(last.Arrivals, time.Time{}, time.Now()))}, d.drop(ctx)
}

// underTraffic runs a child under traffic for ten seconds, calls meanwhile, and returns the last report of the child.
func (l *lab) underTraffic(ctx context.Context, d *database, t *traffic, insert func(context.Context, int64) error,
	config childConfig, meanwhile ...func(flowing context.Context) error,
) (_ report, err error) {
	config.URL, config.Numbered = d.url, true
	g, err := l.start(ctx, config)
	if err != nil {
		return report{}, err
	}
	defer g.stopInto(&err)
	if err := insert(ctx, 0); err != nil { // it has started when this one arrives
		return report{}, err
	}
	if err := g.reach(ctx, 1, d); err != nil {
		return report{}, err
	}
	flowing, cancel := context.WithTimeout(ctx, l.lasting(10*time.Second))
	defer cancel()
	var group errgroup.Group
	group.Go(func() error { return t.flow(ctx, flowing, insert) })
	for _, f := range meanwhile {
		group.Go(func() error { return f(flowing) })
	}
	if err := group.Wait(); err != nil {
		return report{}, err
	}
	if err := g.reach(ctx, len(t.committed)+1, d); err != nil {
		return report{}, err
	}
	if err := g.stop(); err != nil {
		return report{}, err
	}
	last := g.last()
	if len(last.Arrivals) == 0 {
		return report{}, errors.New("the child did not report when events arrived")
	}
	return last, nil
}

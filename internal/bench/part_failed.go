package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// failedPart measures traffic while the first events of ten thousand keys have failed,
// with a million rows behind them.
func failedPart() part {
	return part{
		name: "failed",
		figures: []figure{
			{Name: "10,000 failed heads, 1M rows behind them: p50 of claims", Against: "no failed heads", Unit: "ms", Judged: byRatio, Goal: 1.5, Stretch: 1.1, AtMost: true, Precision: 2},
			{Name: "… while they are looked at: fresh traffic, p99 commit to adapter", Unit: "ms", Judged: byItself, Goal: 300, Stretch: 100, AtMost: true},
		},
		round: func(ctx context.Context, l *lab) ([]sample, error) {
			var with, without busyWithFailed
			err := l.inTurn(
				func() (err error) {
					with, err = l.trafficWithFailed(ctx, l.size(10_000), l.size(1_000_000))
					return err
				},
				func() (err error) { without, err = l.trafficWithFailed(ctx, 0, 0); return err },
			)
			return []sample{{Ours: with.claims, Reference: without.claims}, {Ours: with.delay}}, err
		},
	}
}

// busyWithFailed is the result of trafficWithFailed.
type busyWithFailed struct {
	claims float64 // p50 of those that find work, in the last seconds, in milliseconds
	delay  float64 // p99 from commit to adapter before that, in milliseconds
}

// trafficWithFailed runs traffic while a relay scans the deliveries behind failed ones, and for some seconds after that.
func (l *lab) trafficWithFailed(ctx context.Context, heads, rows int) (_ busyWithFailed, err error) {
	d, err := l.database(ctx, fmt.Sprintf("%d failed heads, %d rows behind them", heads, rows), func(ctx context.Context, d *database) error {
		if err := d.register(ctx, courtSync); err != nil {
			return err
		}
		if err := d.load(ctx, "scheduling:updated", "F-", heads, max(heads, 1)); err != nil {
			return err
		}
		// As a relay records them; the triggers do not run.
		_, err := d.conn.Exec(ctx, `
SET session_replication_role = replica;
UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', attempts = 1, total_attempts = 1, error_class = 'permanent', error = 'HTTP 422';
RESET session_replication_role`)
		if err != nil {
			return err
		}
		return d.load(ctx, "scheduling:updated", "F-", rows, max(heads, 1))
	})
	if err != nil {
		return busyWithFailed{}, err
	}
	pool, err := openPool(ctx, d.url, trafficWriters)
	if err != nil {
		return busyWithFailed{}, err
	}
	defer pool.Close()
	l.note("traffic with %d failed heads", heads)
	g, err := l.start(ctx, childConfig{Role: "relay", URL: d.url, Numbered: true})
	if err != nil {
		return busyWithFailed{}, err
	}
	defer g.stopInto(&err)

	insert := insertEvent(pool)
	if err := insert(ctx, 0); err != nil { // it has started when this one arrives
		return busyWithFailed{}, err
	}
	if err := g.reach(ctx, 1, d); err != nil {
		return busyWithFailed{}, err
	}
	t := newTraffic()
	began := time.Now()
	var looked time.Time
	flowing, cancel := context.WithCancel(ctx)
	defer cancel()
	var group errgroup.Group
	group.Go(func() error { return t.flow(ctx, flowing, insert) })
	group.Go(func() error {
		defer cancel()
		// Each lane waits for its failed first delivery. The relay does not report when it has scanned the rest: that takes it less
		// than half a minute at full scale.
		query := fmt.Sprintf(`SELECT count(*) >= %d FROM outbox.lane WHERE sync = '%s' AND due_at = 'infinity'`, heads, courtSync)
		if err := d.wait(ctx, query); err != nil {
			return err
		}
		l.note("all lanes wait after %.1f s", time.Since(began).Seconds())
		for _, d := range []time.Duration{30 * time.Second, 6 * time.Second} {
			looked = time.Now()
			if err := waitFor(ctx, l.lasting(d)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return busyWithFailed{}, err
	}
	if err := g.reach(ctx, len(t.committed)+1, d); err != nil {
		return busyWithFailed{}, err
	}
	if err := g.stop(); err != nil {
		return busyWithFailed{}, err
	}
	last := g.last()
	var claims []float64
	for _, c := range last.Claims {
		if time.Unix(0, c.At).After(looked) {
			claims = append(claims, milliseconds(c.Took))
		}
	}
	if len(claims) == 0 {
		return busyWithFailed{}, errors.New("no claim found work in the last seconds")
	}
	pool.Close()
	return busyWithFailed{
		claims: median(claims),
		delay:  percentile(t.delays(last.Arrivals, began, looked), 99),
	}, d.drop(ctx)
}

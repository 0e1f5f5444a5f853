package main

import (
	"context"
	"fmt"
	"time"
)

// recoveryPart kills a relay with five hundred deliveries in flight. Another relay sends them.
func recoveryPart() part {
	receivers := []struct {
		what          string
		delay         time.Duration
		goal, stretch float64 // seconds
	}{
		{"50 ms", 50 * time.Millisecond, 2.05, 1},
		{"1 s", time.Second, 3, 2},
	}
	p := part{name: "recovery"}
	for _, r := range receivers {
		p.figures = append(p.figures, figure{
			Name: "500 claimed at kill -9, receiver of " + r.what + ": last one sent again after the lease", Unit: "s", Judged: byItself,
			Goal: r.goal, Stretch: r.stretch, AtMost: true, Precision: 2,
		})
	}
	p.round = func(ctx context.Context, l *lab) ([]sample, error) {
		return l.samples(len(receivers), func(i int) (sample, error) {
			seconds, err := l.recovery(ctx, receivers[i].delay)
			return sample{Ours: seconds}, err
		})
	}
	return p
}

// recovery returns the time from the end of the dead relay's leases until all its deliveries are recorded, in seconds.
func (l *lab) recovery(ctx context.Context, delay time.Duration) (_ float64, err error) {
	n := l.size(500)
	d, err := l.ours(ctx, n, n)
	if err != nil {
		return 0, err
	}
	l.note("%d claimed at kill -9, receiver of %s", n, delay)
	config := childConfig{Role: "relay", Name: "dies", URL: d.url, Workers: n, Lease: 6 * time.Second, Timeout: 2500 * time.Millisecond, Delay: time.Minute}
	dies, err := l.start(ctx, config)
	if err != nil {
		return 0, err
	}
	defer dies.stopInto(&err)
	claimed := fmt.Sprintf(`SELECT count(*) = %d FROM outbox.lane WHERE claimed_by = 'dies'`, n)
	if err := d.wait(ctx, claimed); err != nil {
		return 0, err
	}
	if err := dies.kill(); err != nil {
		return 0, err
	}
	var ends time.Time
	if err := d.conn.QueryRow(ctx, `SELECT max(due_at) FROM outbox.lane WHERE claimed_by = 'dies'`).Scan(&ends); err != nil {
		return 0, err
	}
	config.Name, config.Delay = "takes over", delay
	other, err := l.start(ctx, config)
	if err != nil {
		return 0, err
	}
	defer other.stopInto(&err)
	if err := d.wait(ctx, allRecorded); err != nil {
		return 0, err
	}
	var recovered time.Time
	if err := d.conn.QueryRow(ctx, `SELECT max(at) FROM outbox.delivery_log`).Scan(&recovered); err != nil {
		return 0, err
	}
	if err := other.stop(); err != nil {
		return 0, err
	}
	return recovered.Sub(ends).Seconds(), d.drop(ctx)
}

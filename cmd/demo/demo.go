package main

import (
	"context"
	"fmt"
	"io"
	"time"
)

// demo is one run of the demo.
type demo struct {
	options
	stdout   io.Writer
	progress *progress
	world    *world
	traffic  *traffic
	began    time.Time
	story    story
}

// story is what happened, for the report. Its times are by the database's clock.
type story struct {
	calmUntil time.Time     // both systems worked for events before this time
	troubles  []trouble     // each of one system alone
	killed    int           // deliveries that the killed relay had claimed
	takeover  time.Duration // from the kill until another relay had taken over all of them
}

// trouble is a time in which one system took nothing and the other one worked.
type trouble struct {
	system, other *system
	what          string // such as "down"
	from, until   time.Time
}

func (t trouble) took() time.Duration { return t.until.Sub(t.from) }

// during reports whether at is in the time of the trouble.
func (t trouble) during(at time.Time) bool { return !at.Before(t.from) && at.Before(t.until) }

func newDemo(o options, env func(string) (string, bool), stdout, stderr io.Writer) *demo {
	return &demo{options: o, stdout: stdout, progress: newProgress(stderr, o.plain, env), began: time.Now()}
}

// open starts everything.
func (d *demo) open(ctx context.Context) error {
	list, err := hearings(d.hearings)
	if err != nil {
		return err
	}
	d.progress.say("starting PostgreSQL, the scheduling module, a court, a clinic and two relays")
	if d.world, err = startWorld(ctx, d.seed); err != nil {
		return err
	}
	d.traffic = newTraffic(d.world.schedulingURL, list, d.seed)
	return nil
}

// play plays all scenes. It returns when both systems have every change.
func (d *demo) play(ctx context.Context) error {
	ctx = d.world.watchRelays(ctx)
	watching, stopWatching := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		d.watch(watching)
	}()
	err := d.scenes(ctx)
	stopWatching()
	<-watched
	d.progress.clear()
	return causeOr(ctx, err)
}

// conclude compares, reports and returns the exit code.
func (d *demo) conclude(ctx context.Context) (int, error) {
	f, err := d.world.facts(ctx)
	if err != nil {
		return 1, fmt.Errorf("reading the calendars and the database: %w", err)
	}
	v := judge(f, d.story)
	err = printReport(d.stdout, v, d.story, time.Since(d.began), d.progress.paint(d.stdout))
	if !v.agrees() {
		return 1, err
	}
	return 0, err
}

// close ends and removes everything that was started.
func (d *demo) close() error {
	d.progress.clear()
	if d.world == nil {
		return nil
	}
	return d.world.close()
}

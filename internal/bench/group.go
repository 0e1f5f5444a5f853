package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
)

// group is one child or several that share a database's work.
type group struct {
	children []*child
	changed  chan struct{} // a report came in

	mu     sync.Mutex
	series []progress // of all children together
	err    error
}

// progress is the sum of the children's progress.
type progress struct {
	at   time.Time
	done int64
	cpu  time.Duration
}

type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{}
	dies  atomic.Bool // it is killed
	url   chan string
	last  report // guarded by the group
	err   error  // when ended
}

// start starts children. They must be stopped.
func (l *lab) start(ctx context.Context, configs ...childConfig) (*group, error) {
	g := &group{changed: make(chan struct{}, 1)}
	for i, c := range configs {
		c.Name = cmp.Or(c.Name, fmt.Sprintf("%s-%d", c.Role, i+1))
		if l.profiles != "" && c.Role == "relay" {
			c.Profile = l.evidence(l.profiles, c.Name, "pprof")
		}
		if err := g.launch(ctx, l.program, c); err != nil {
			return nil, errors.Join(err, g.stop())
		}
	}
	return g, nil
}

func (g *group) launch(ctx context.Context, program string, c childConfig) error {
	config, err := json.Marshal(c)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ch := &child{cmd: cmd, stdin: stdin, ended: make(chan struct{}), url: make(chan string, 1)}
	g.children = append(g.children, ch)
	go func() {
		defer close(ch.ended)
		err := g.read(ch, stdout)
		if waited := cmd.Wait(); waited != nil && !ch.dies.Load() {
			err = fmt.Errorf("%s: %w", c.Name, waited)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		ch.err = err
		g.err = cmp.Or(g.err, err)
		g.wake()
	}()
	return nil
}

// read takes a child's reports until it ends.
func (g *group) read(ch *child, stdout io.Reader) error {
	lines := json.NewDecoder(stdout)
	for {
		var r report
		if err := lines.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if r.URL != "" {
			ch.url <- r.URL
		}
		g.mu.Lock()
		ch.last = r
		p := progress{at: time.Unix(0, r.At)}
		for _, other := range g.children {
			p.done += other.last.Done
			p.cpu += other.last.CPU
		}
		g.series = append(g.series, p)
		g.wake()
		g.mu.Unlock()
	}
}

func (g *group) wake() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// address waits for the URL of a sink or a console.
func (g *group) address(ctx context.Context) (string, error) {
	select {
	case url := <-g.children[0].url:
		return url, nil
	case <-g.children[0].ended:
		return "", errors.New("the server ended")
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// stalledAfter is how long a measurement may make no progress.
const stalledAfter = 2 * time.Minute

// reach waits until the children have done n together. If there is no progress for some seconds, it prints the open
// deliveries of the database, if there is one.
func (g *group) reach(ctx context.Context, n int, d *database) error {
	var done int64
	told := d == nil
	last := time.Now()
	for {
		g.mu.Lock()
		now, err := int64(0), g.err
		if len(g.series) > 0 {
			now = g.series[len(g.series)-1].done
		}
		g.mu.Unlock()
		if now > done {
			done, last = now, time.Now()
		}
		if !told && time.Since(last) > 5*time.Second {
			d.tellOpen(ctx)
			told = true
		}
		switch {
		case now >= int64(n):
			return nil
		case err != nil:
			return err
		case time.Since(last) > stalledAfter:
			return fmt.Errorf("nothing more is done since %s: %d of %d", stalledAfter, now, n)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.changed:
		case <-time.After(time.Second):
		}
	}
}

// progressAt returns when n were done, with an error of up to [reportEvery]. For 0 it is the last moment without any
// progress.
func (g *group) progressAt(n int) progress {
	g.mu.Lock()
	defer g.mu.Unlock()
	var last progress
	for _, p := range g.series {
		if p.done >= int64(n) && n > 0 {
			return p
		}
		if p.done > 0 && n == 0 {
			return last
		}
		last = p
	}
	return last
}

// stop ends the children, and returns when they have ended.
func (g *group) stop() error {
	var errs []error
	for _, ch := range g.children {
		_ = ch.stdin.Close() // they end by that
	}
	for _, ch := range g.children {
		select {
		case <-ch.ended:
		case <-time.After(time.Minute):
			_ = ch.cmd.Process.Kill() // it may just have ended
			<-ch.ended
			ch.err = cmp.Or(ch.err, errors.New("a child did not stop and was killed"))
		}
		errs = append(errs, ch.err)
	}
	return errors.Join(errs...)
}

// kill ends the children as kill -9 does.
func (g *group) kill() error {
	for _, ch := range g.children {
		ch.dies.Store(true)
		if err := ch.cmd.Process.Kill(); err != nil {
			return err
		}
		<-ch.ended
	}
	return nil
}

// drained is the result of a drain.
type drained struct {
	group *group
	n     int
	ended progress // everything is recorded

	server  time.Duration // CPU time of PostgreSQL, 0 if unknown or none
	wal     int64         // bytes that PostgreSQL wrote to its log
	buffers int64         // blocks that it looked for in its shared buffers, found or not
}

// drain runs children on a database until they have done n together and the query returns that everything is recorded.
// Then it stops them. If meanwhile is not nil, it runs first.
func (l *lab) drain(ctx context.Context, d *database, n int, recorded string, meanwhile func() error, configs ...childConfig) (_ *drained, err error) {
	for i := range configs {
		configs[i].URL = d.url
	}
	if err := l.resetStatements(ctx); err != nil {
		return nil, err
	}
	before := l.serverCPU()
	g, err := l.start(ctx, configs...)
	if err != nil {
		return nil, err
	}
	defer g.stopInto(&err)
	if meanwhile != nil {
		if err := meanwhile(); err != nil {
			return nil, err
		}
	}
	if err := g.reach(ctx, n, d); err != nil {
		return nil, err
	}
	if err := d.wait(ctx, recorded); err != nil {
		return nil, err
	}
	g.mu.Lock()
	ended := progress{at: time.Now(), cpu: g.series[len(g.series)-1].cpu}
	g.mu.Unlock()
	r := &drained{group: g, n: n, ended: ended, server: l.serverCPU() - before}
	return r, l.writeStatements(ctx, d, configs[0].Role)
}

// usage has PostgreSQL's counters for this database.
type usage struct{ wal, buffers int64 }

// uses runs a drain and adds the difference of PostgreSQL's counters.
func (d *database) uses(ctx context.Context, drain func() (*drained, error)) (*drained, error) {
	before, err := d.used(ctx)
	if err != nil {
		return nil, err
	}
	r, err := drain()
	if err != nil {
		return nil, err
	}
	after, err := d.used(ctx)
	if err != nil {
		return nil, err
	}
	r.wal, r.buffers = after.wal-before.wal, after.buffers-before.buffers
	return r, nil
}

// used reads the usage when there is no other connection: a session reports its block counters at its end, if not before.
func (d *database) used(ctx context.Context) (u usage, err error) {
	const alone = `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend')`
	if err := d.wait(ctx, alone); err != nil {
		return u, err
	}
	const query = `
SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, blks_hit + blks_read
  FROM pg_stat_database
 WHERE datname = $1`
	err = d.lab.admin.QueryRow(ctx, query, d.name).Scan(&u.wal, &u.buffers)
	return u, err
}

// perSecond is the throughput from the first delivery to the last recording.
func (r *drained) perSecond() float64 {
	return float64(r.n) / r.ended.at.Sub(r.group.progressAt(0).at).Seconds()
}

// cpu is the children's CPU time per delivery. It leaves out their start.
func (r *drained) cpu() time.Duration {
	return (r.ended.cpu - r.group.progressAt(0).cpu) / time.Duration(r.n)
}

// each divides a sum by the number of deliveries.
func (r *drained) each(sum int64) float64 { return float64(sum) / float64(r.n) }

// compare compares two drains.
func compare(ours, reference *drained) sample {
	return sample{
		Ours: ours.perSecond(), Reference: reference.perSecond(),
		OursCPU: ours.allCPU(), ReferenceCPU: reference.allCPU(),
	}
}

// allCPU is the CPU time per delivery of children and server together, in microseconds. On a shared machine it varies less
// than the throughput.
func (r *drained) allCPU() float64 {
	return microseconds(r.cpu() + r.server/time.Duration(r.n))
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// tenths returns the throughputs of the first and the last tenth.
func (r *drained) tenths() (first, last float64) {
	rate := func(from, to int) float64 {
		took := r.group.progressAt(to).at.Sub(r.group.progressAt(from).at)
		return float64(to-from) / took.Seconds()
	}
	return rate(0, r.n/10), rate(r.n-r.n/10, r.n)
}

// resident is the highest peak memory of a child, in MiB.
func (r *drained) resident() float64 {
	var most int64
	for _, ch := range r.group.children {
		most = max(most, ch.last.Resident)
	}
	return float64(most) / (1 << 20)
}

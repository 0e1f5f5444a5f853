//go:build linux

package chaos

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// figures are what a run of a scenario counted.
type figures struct {
	events     int
	kills      int
	attempts   int // requests that the receivers read
	duplicates int // acknowledged again, each after an attempt of which the outcome was not recorded
	lost       int
	disorder   int // first acknowledgements out of the order of the commits
	drain      time.Duration
	took       time.Duration
	failed     bool
}

func (f *figures) add(g figures) {
	f.events += g.events
	f.kills += g.kills
	f.attempts += g.attempts
	f.duplicates += g.duplicates
	f.lost += g.lost
	f.disorder += g.disorder
	f.drain = max(f.drain, g.drain)
	f.took += g.took
	f.failed = f.failed || g.failed
}

// report collects the figures of all scenarios. There is one per test binary, which is printed after the tests.
var report table

type table struct {
	mu    sync.Mutex
	print bool
	rows  map[string]*row
}

type row struct {
	figures
	seeds int
}

func (b *table) add(t *testing.T, f figures) {
	name, _, _ := strings.Cut(t.Name(), "/seed")
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rows == nil {
		b.rows = map[string]*row{}
	}
	if b.rows[name] == nil {
		b.rows[name] = &row{}
	}
	b.rows[name].seeds++
	b.rows[name].add(f)
}

// copy takes a scenario's row from the table that another process printed.
func (b *table) copy(test, printed string) {
	for line := range strings.Lines(printed) {
		var name string
		var r row
		var drain, took float64
		_, err := fmt.Sscanf(line, "%s %d %d %d %d %d %d %d %fs %fs", &name, &r.seeds, &r.events, &r.kills,
			&r.attempts, &r.duplicates, &r.lost, &r.disorder, &drain, &took)
		if err != nil || "Test"+name != test {
			continue
		}
		r.drain, r.took = time.Duration(drain*float64(time.Second)), time.Duration(took*float64(time.Second))
		b.mu.Lock()
		if b.rows == nil {
			b.rows = map[string]*row{}
		}
		b.rows[test] = &r
		b.mu.Unlock()
	}
}

// printing is a test run that ends with the table.
type printing struct{ m *testing.M }

func (p printing) Run() int {
	code := p.m.Run()
	if report.print {
		report.write()
	}
	return code
}

func (b *table) write() {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "SCENARIO\tSEEDS\tEVENTS\tKILLS\tATTEMPTS\tDUPLICATES\tLOST\tOUT OF ORDER\tDRAIN\tTOOK\t")
	line := func(name string, r row) {
		verdict := ""
		if r.failed {
			verdict = "FAILED"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%.1fs\t%.0fs\t%s\n", strings.TrimPrefix(name, "Test"), r.seeds, r.events, r.kills,
			r.attempts, r.duplicates, r.lost, r.disorder, r.drain.Seconds(), r.took.Seconds(), verdict)
	}
	var names []string
	var all row
	for name, r := range b.rows {
		names = append(names, name)
		all.add(r.figures)
		all.seeds = max(all.seeds, r.seeds)
	}
	slices.Sort(names)
	for _, name := range names {
		line(name, *b.rows[name])
	}
	line("all", all)
}

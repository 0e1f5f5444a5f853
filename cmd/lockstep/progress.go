package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/internal/output"
)

const (
	// reportEvery is how often progress is reported where no bar can be drawn.
	reportEvery = 10 * time.Second
	barColumns  = 24
)

// progress says on stderr how far a change of many deliveries is: as a bar on a terminal,
// otherwise as a line every ten seconds. It is used by one goroutine.
type progress struct {
	app         *app
	did         string // such as "requeued"
	done, total int64
	begun, said time.Time
	isBar       bool
	isDrawn     bool
}

func (a *app) newProgress(did string, total int64) *progress {
	now := time.Now()
	// A bar would break the rows of a JSON that goes to the same terminal.
	isBar := output.IsTerminal(a.stderr) && (a.format == output.Table || !output.IsTerminal(a.stdout))
	return &progress{app: a, did: did, total: total, begun: now, said: now, isBar: isBar}
}

// add counts n deliveries as done.
func (p *progress) add(n int) {
	p.done += int64(n)
	switch {
	case p.done >= p.total && !p.isDrawn: // a small set needs no bar
	case p.isBar:
		p.isDrawn = true
		_, _ = io.WriteString(p.app.stderr, "\r"+p.bar(output.Width(p.app.stderr))+"\x1b[K")
	case time.Since(p.said) >= reportEvery:
		p.said = time.Now()
		p.app.say("%s", p)
	}
}

// end ends the line of the bar.
func (p *progress) end() {
	if p.isDrawn {
		fmt.Fprintln(p.app.stderr)
	}
}

// String says how far it is, such as "requeued 2000 of 100000, 850/s, 1m55s left".
func (p *progress) String() string {
	said := fmt.Sprintf("%s %d of %d", p.did, p.done, p.total)
	if taken := time.Since(p.begun); taken >= time.Second && p.done > 0 {
		left := time.Duration(float64(taken) / float64(p.done) * float64(max(0, p.total-p.done)))
		perSecond := float64(p.done) / taken.Seconds()
		digits := 0
		if perSecond < 10 {
			digits = 1
		}
		said += fmt.Sprintf(", %.*f/s, %s left", digits, perSecond, age(left.Round(time.Second)))
	}
	return said
}

// bar draws the bar in at most so many columns.
func (p *progress) bar(columns int) string {
	filled := int(min(p.done, p.total) * barColumns / p.total)
	line := fmt.Sprintf("[%s%s] %s", strings.Repeat("#", filled), strings.Repeat(".", barColumns-filled), p)
	if len(line) >= columns {
		line = p.String()
	}
	return line[:min(len(line), max(0, columns-1))]
}

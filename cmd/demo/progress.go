package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/internal/output"
)

// plainEvery is the pause between lines of status when they cannot be redrawn.
const plainEvery = 2 * time.Second

// progress prints what happens. On a terminal, the status lines stay at the bottom and
// are redrawn. Without a terminal, one of them is printed from time to time. It is safe
// for concurrent use.
type progress struct {
	out    io.Writer
	live   bool
	colour bool
	width  func() int
	began  time.Time

	mu    sync.Mutex
	lines []string // of status, as last shown
	drawn int      // lines of status on the screen
	last  time.Time
}

func newProgress(out io.Writer, plain bool, env func(string) (string, bool)) *progress {
	dumb, _ := env("TERM")
	noColour, _ := env("NO_COLOR") // https://no-color.org: set and not empty
	fancy := !plain && dumb != "dumb"
	return &progress{
		out: out, began: time.Now(), last: time.Now(),
		width: func() int { return cmp.Or(output.Width(out), 80) },
		live:  fancy && output.IsTerminal(out), colour: fancy && noColour == "",
	}
}

// say writes a line that is not erased.
func (p *progress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.last = time.Now()
	at := fmt.Sprintf("%5.1fs", time.Since(p.began).Seconds())
	fmt.Fprintf(p.out, "%s  %s\n", p.paint(p.out).dim(at), fmt.Sprintf(format, args...))
	p.draw()
}

// show sets the lines of status.
func (p *progress) show(lines []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = lines
	if p.live {
		p.erase()
		p.draw()
		return
	}
	if len(lines) > 0 && time.Since(p.last) >= plainEvery {
		p.last = time.Now()
		_, line, _ := strings.Cut(lines[0], "  ") // without the bar, which is not redrawn
		fmt.Fprintf(p.out, "%5.1fs  %s\n", time.Since(p.began).Seconds(), line)
	}
}

// clear removes the lines of status from the screen.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.lines = nil
}

func (p *progress) erase() {
	if p.drawn > 0 {
		fmt.Fprintf(p.out, "\x1b[%dA\r\x1b[J", p.drawn)
		p.drawn = 0
	}
}

// draw writes the status lines, each cut to the terminal's width. A line that wraps
// would be several lines to erase.
func (p *progress) draw() {
	if !p.live {
		return
	}
	width := max(p.width()-1, 1)
	for _, line := range p.lines {
		if r := []rune(line); len(r) > width {
			line = string(r[:width])
		}
		fmt.Fprintln(p.out, p.paint(p.out).dim(line))
	}
	p.drawn = len(p.lines)
}

// paint returns the colours that may be used on w.
func (p *progress) paint(w io.Writer) palette {
	return palette{p.colour && output.IsTerminal(w)}
}

// palette colours text, or leaves it alone.
type palette struct{ on bool }

func (c palette) bold(s string) string  { return c.wrap("1", s) }
func (c palette) dim(s string) string   { return c.wrap("2", s) }
func (c palette) red(s string) string   { return c.wrap("1;31", s) }
func (c palette) green(s string) string { return c.wrap("32", s) }

func (c palette) wrap(code, s string) string {
	if !c.on {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/output"
	"github.com/hms-mkt/lockstep/outbox"
)

func (a *app) topCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "top",
		Short: "Show live in the terminal what waits, what is at risk, and why",
		Long: `Show the state of each sync, and the keys that are needed soonest while the receiver
does not have their newest event, again every two seconds. q or Ctrl-C ends it.
If the output is no terminal, it is written once.

It costs little beside a large backlog: no number is counted beyond 10,000. While
the database does not answer, it shows what was true last, and how old that is.
Times are UTC. The login needs the role outbox_auditor.`,
		Example: `  lockstep top`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.format != output.Table {
				return usagef("top is for people: for programs, use lockstep status --output %s", a.format)
			}
			url, err := a.url(nil)
			if err != nil {
				return err
			}
			return a.with(cmd, nil, roleAuditor, func(ctx context.Context, db *database) error {
				o, err := inspect.ReadOverview(ctx, db.conn)
				if err != nil {
					return err
				}
				screen, ok := a.stdout.(*os.File)
				if !ok || !output.IsTerminal(screen) {
					return writeTop(a.stdout, &o)
				}
				pool, err := consolePool(ctx, url, true, nil)
				if err != nil {
					return err
				}
				defer pool.Close()
				return (&top{pool: pool, screen: screen, last: &o, read: time.Now()}).run(ctx, a.stdin)
			})
		},
	}
}

const (
	topEvery    = 2 * time.Second
	resizeEvery = 250 * time.Millisecond // how often the size of the terminal is looked at
)

// top is the overview on a terminal.
type top struct {
	pool   *pgxpool.Pool
	screen *os.File
	last   *inspect.Overview
	read   time.Time // when last was read
	failed error     // why there is nothing newer
}

// run draws until ctx ends, or q or Ctrl-C comes from in.
func (t *top) run(ctx context.Context, in io.Reader) (err error) {
	const enter, leave = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l" // another screen without a cursor, and back
	ctx, end := context.WithCancel(ctx)
	defer end()
	if keyboard, ok := in.(*os.File); ok && term.IsTerminal(int(keyboard.Fd())) {
		before, err := term.MakeRaw(int(keyboard.Fd()))
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(int(keyboard.Fd()), before) }()
		go endAtKey(keyboard, end) // ends with the process
	}
	if _, err := io.WriteString(t.screen, enter); err != nil {
		return err
	}
	defer func() {
		_, werr := io.WriteString(t.screen, leave)
		err = errors.Join(err, werr)
	}()
	reads, sizes := time.NewTicker(topEvery), time.NewTicker(resizeEvery)
	defer reads.Stop()
	defer sizes.Stop()
	for ctx.Err() == nil {
		drawn, err := t.draw()
		if err != nil {
			return err
		}
		for same := true; same; {
			select {
			case <-ctx.Done():
				return nil
			case <-reads.C:
				t.refresh(ctx)
				same = false
			case <-sizes.C:
				now, err := t.size()
				if err != nil {
					return err
				}
				same = now == drawn
			}
		}
	}
	return nil
}

// size is that of a terminal, in characters.
type size struct{ columns, rows int }

func (t *top) size() (s size, err error) {
	s.columns, s.rows, err = term.GetSize(int(t.screen.Fd()))
	return s, err
}

// endAtKey calls end when q or Ctrl-C is pressed. A terminal in raw mode makes no signal.
func endAtKey(keyboard io.Reader, end func()) {
	const controlC = 3
	var key [1]byte
	for {
		if _, err := keyboard.Read(key[:]); err != nil {
			return
		}
		if key[0] == 'q' || key[0] == 'Q' || key[0] == controlC {
			end()
			return
		}
	}
}

// refresh reads again. If that fails, the last overview stays.
func (t *top) refresh(ctx context.Context) {
	ctx, cancel := answerWithin(ctx, topEvery)
	defer cancel()
	o, err := inspect.ReadOverview(ctx, t.pool)
	if t.failed = err; err != nil {
		if cause := context.Cause(ctx); cause != nil {
			t.failed = cause
		}
		return
	}
	t.last, t.read = &o, time.Now()
}

// draw fills the screen, and returns its size.
func (t *top) draw() (size, error) {
	s, err := t.size()
	if err != nil {
		return s, err
	}
	var text bytes.Buffer
	if t.failed != nil {
		fmt.Fprintf(&text, "As of %s ago: the database does not answer: %s\n", age(time.Since(t.read)), adapters.Clean(outbox.Cause(t.failed), 200))
	}
	if err := writeTop(output.Screen{Writer: &text, Columns: s.columns}, t.last); err != nil {
		return s, err
	}
	lines := strings.Split(strings.TrimRight(text.String(), "\n"), "\n")
	if room := max(1, s.rows-1); len(lines) > room {
		lines = append(lines[:room-1], fmt.Sprintf("… %d more lines: make the window taller", len(lines)-room+1))
	}
	lines = append(lines, "q ends")
	for i, line := range lines {
		lines[i] = output.Cut(line, s.columns) + "\x1b[K"
	}
	_, err = io.WriteString(t.screen, "\x1b[H"+strings.Join(lines, "\r\n")+"\x1b[J")
	return s, err
}

// writeTop writes an overview as text.
func writeTop(w io.Writer, o *inspect.Overview) error {
	relays := plural(o.Running(), "relay") + " running"
	if o.Running() == 0 {
		relays = "no relay is running; start one with: lockstep run"
	}
	if _, err := fmt.Fprintf(w, "%s  %s\n\n", o.At.UTC().Format(time.RFC3339), relays); err != nil {
		return err
	}
	var syncs []topSync
	for i := range o.Syncs {
		syncs = append(syncs, topSync{&o.Syncs[i], o.At})
	}
	if err := output.Rows(w, output.Table, syncs...); err != nil {
		return err
	}
	if len(o.AtRisk) == 0 && o.Past == 0 {
		return nil
	}
	more := ""
	if o.MoreRisk {
		more = fmt.Sprintf(", the first %d", len(o.AtRisk))
	}
	if _, err := fmt.Fprintf(w, "\nAt risk, the soonest first%s:\n", more); err != nil {
		return err
	}
	var risks []topRisk
	for i := range o.AtRisk {
		risks = append(risks, topRisk{&o.AtRisk[i], o.At})
	}
	if err := output.Rows(w, output.Table, risks...); err != nil || o.Past == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s open deliveries were needed before now.\n", o.Past)
	return err
}

// topSync is a line about a sync.
type topSync struct {
	*inspect.Sync
	at time.Time
}

func (topSync) Header() []string {
	return []string{"SYNC", "STATE", "OPEN", "FAILED", "BLOCKED", "OLDEST", "LAST DELIVERED", "NOTE"}
}

func (s topSync) Cells() []string {
	b := s.Backlog
	blocked, oldest, last := "", "", "never"
	if b.Counted() {
		blocked = fmt.Sprint(b.Blocked)
	}
	if b.Oldest != nil {
		oldest = age(s.at.Sub(*b.Oldest))
		if !b.Counted() {
			oldest += "+"
		}
	}
	if s.LastDeliveredAt != nil {
		last = age(s.at.Sub(*s.LastDeliveredAt)) + " ago"
	}
	var notes []string
	for _, h := range s.Holds {
		note := h.Says(s.at).In(time.UTC)
		if h.Until != nil && h.Until.After(s.at) {
			note += " That is in " + age(h.Until.Sub(s.at)) + "."
		}
		notes = append(notes, note)
	}
	if s.Backfill != "" {
		notes = append(notes, "Older events are added: "+s.Backfill+".")
	}
	return []string{s.Name, s.State(), b.Open.String(), b.Failed.String(), blocked, oldest, last, strings.Join(notes, " ")}
}

// topRisk is a line about a key that is needed soon.
type topRisk struct {
	*inspect.Stuck
	at time.Time
}

func (topRisk) Header() []string { return []string{"NEEDED IN", "KEY", "SYNC", "WHY"} }

func (r topRisk) Cells() []string {
	var why []string
	for _, s := range r.Says {
		why = append(why, s.In(time.UTC))
	}
	return []string{age(r.NeededBy.Sub(r.at)), r.Key, r.Sync, cmp.Or(strings.Join(why, " "), string(r.Standing))}
}

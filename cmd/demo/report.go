package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// mostProblems is how many problems are printed.
const mostProblems = 10

// printReport writes what the comparison found.
func printReport(w io.Writer, v verdict, s story, took time.Duration, c palette) error {
	var b bytes.Buffer
	b.WriteString("\n" + c.bold("Both calendars against the database, hearing by hearing") + "\n\n")
	printFigures(&b, v, c)
	b.WriteString("\n" + c.bold("While one system took nothing, the other got its changes") + "\n\n")
	for _, s := range v.Separations {
		fmt.Fprintf(&b, "  %-24s %d changes made: the %s took %d, the %s %d",
			fmt.Sprintf("%s %s for %s", s.system.name, s.what, seconds(s.took())), s.Made, s.system.name, s.Troubled, s.other.name, s.Other)
		if len(s.Times) > 0 {
			fmt.Fprintf(&b, " (p50 %s, p99 %s)", short(percentile(s.Times, 0.5)), short(percentile(s.Times, 0.99)))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n" + c.bold("From the clerk's commit to the answer") + "\n\n")
	printTimes(&b, v, s)
	if problems := v.problems(); len(problems) > 0 {
		b.WriteString("\n" + c.red("What does not agree") + "\n\n")
		for _, p := range problems[:min(len(problems), mostProblems)] {
			fmt.Fprintf(&b, "  %s\n", p)
		}
		if more := len(problems) - mostProblems; more > 0 {
			fmt.Fprintf(&b, "  and %d more\n", more)
		}
	} else {
		fmt.Fprintf(&b, "\n%s All %d hearings are at the court and at the clinic as they are in the database. It took %s.\n", c.green("✓"), v.Hearings, seconds(took))
	}
	b.WriteString(`
What to try next
  go run ./cmd/demo --keep              leave everything running, with pages: see and repair what waits
  go run ./cmd/demo --hearings 1000     more hearings; --seed N for other changes and other faults
  go run ./cmd/lockstep --help          the relay and the operator's commands
  docs/configuration.md                 connect your own events to your own systems
`)
	_, err := w.Write(b.Bytes())
	return err
}

// printFigures prints the figures, in a column for each system.
func printFigures(b *bytes.Buffer, v verdict, c palette) {
	line := func(name, remark string, cell func(*account) string) {
		fmt.Fprintf(b, "  %-21s", name)
		for _, a := range v.Accounts {
			b.WriteString(cell(a))
		}
		b.WriteString(strings.TrimRight("   "+remark, " ") + "\n")
	}
	line("", "", func(a *account) string { return fmt.Sprintf("%8s", a.name) })
	line("", "", func(a *account) string { return fmt.Sprintf("%8s", a.protocol) })
	plain := func(s string) string { return s }
	open := func(a *account) int { return a.Open }
	for _, f := range []struct {
		name, remark string
		n            func(*account) int
		bad          bool // unless it is 0
	}{
		{"hearings", fmt.Sprintf("%d of them cancelled", v.Cancelled), func(*account) int { return v.Hearings }, false},
		{"events", "one for each change, written in the transaction of the change", func(a *account) int { return a.Events }, false},
		{"attempts", "by the delivery log", func(a *account) int { return a.Attempts }, false},
		{"retries", "attempts beyond the first of an event", func(a *account) int { return a.Retries }, false},
		{"requests read", "by the system's ledger; the other attempts did not reach it", func(a *account) int { return a.Requests }, false},
		{"no answer", "the connection was cut after the request had been read", func(a *account) int { return a.Answers[""] }, false},
		{"duplicates absorbed", "sent again because the answer was lost; each was accepted once", func(a *account) int { return a.Duplicates }, false},
		{"lost", "", func(a *account) int { return a.Lost }, true},
		{"out of order", "", func(a *account) int { return a.OutOfOrder }, true},
		{"different", "time, room, status, version", func(a *account) int { return a.Different }, true},
		{"not in the log", "requests against the delivery log", func(a *account) int { return a.Unlogged }, true},
		{"sent needlessly", "sent again, although the answer was recorded", func(a *account) int { return a.Needless }, true},
		{"still open", "deliveries that are not finished", open, true},
	} {
		if f.name == "still open" && !slices.ContainsFunc(v.Accounts, func(a *account) bool { return open(a) > 0 }) {
			continue
		}
		line(f.name, f.remark, func(a *account) string {
			paint := plain
			if f.bad {
				paint = c.green
				if f.n(a) > 0 {
					paint = c.red
				}
			}
			return paint(fmt.Sprintf("%8d", f.n(a)))
		})
	}
	b.WriteString("\n")
	for _, a := range v.Accounts {
		fmt.Fprintf(b, "  the %s answered %s\n", a.name, answers(a.Answers))
	}
}

// printTimes writes a pair of columns for each system.
func printTimes(b *bytes.Buffer, v verdict, s story) {
	fmt.Fprintf(b, "  %-21s", "")
	for _, a := range v.Accounts {
		fmt.Fprintf(b, " %10s p50 %8s", a.name, "p99")
	}
	b.WriteString("\n")
	for _, calm := range []bool{true, false} {
		name, n := "all, faults included", 0
		if calm {
			name = "both were well"
		}
		fmt.Fprintf(b, "  %-21s", name)
		for _, a := range v.Accounts {
			times := a.Times
			if calm {
				times = slices.DeleteFunc(slices.Clone(times), func(t timing) bool { return !t.at.Before(s.calmUntil) })
			}
			n = max(n, len(times))
			fmt.Fprintf(b, " %14s %8s", short(percentile(times, 0.5)), short(percentile(times, 0.99)))
		}
		fmt.Fprintf(b, "   %d events\n", n)
	}
	fmt.Fprintf(b, "\n  The second line includes\n%s  The time starts at the event's insert, just before the commit.\n", pauses(v, s))
}

// answers counts a system's answers, the most frequent first.
func answers(by map[string]int) string {
	texts := slices.SortedFunc(maps.Keys(by), func(a, b string) int {
		return cmp.Or(cmp.Compare(by[b], by[a]), cmp.Compare(a, b))
	})
	var parts []string
	for _, text := range texts {
		if text != "" {
			parts = append(parts, fmt.Sprintf("%d × %s", by[text], text))
		}
	}
	return strings.Join(parts, ", ")
}

// pauses returns the reasons why deliveries waited, one on each line.
func pauses(v verdict, s story) string {
	var list []string
	for _, t := range s.troubles {
		list = append(list, fmt.Sprintf("%s of a %s that was %s", seconds(t.took()), t.system.name, t.what))
	}
	for _, a := range v.Accounts {
		n := 0
		for text := range pausing {
			n += a.Answers[text]
		}
		if n > 0 {
			list = append(list, fmt.Sprintf("%d answers by which the %s asked for a pause of 1s", n, a.name))
		}
	}
	if s.killed > 0 {
		list = append(list, fmt.Sprintf("%s until the killed relay's work was taken over (%d deliveries)", seconds(s.takeover), s.killed))
	}
	if len(list) == 0 {
		list = []string{"nothing"}
	}
	return "  - " + strings.Join(list, "\n  - ") + "\n"
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// short formats a duration with the digits that matter.
func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

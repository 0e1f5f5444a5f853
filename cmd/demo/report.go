package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// mostProblems is how many are printed.
const mostProblems = 10

// printReport writes what the comparison found.
func printReport(w io.Writer, v verdict, s story, took time.Duration, c palette) error {
	var b bytes.Buffer
	row := func(name string, n int, remark string) {
		fmt.Fprintf(&b, "  %-21s %6d   %s\n", name, n, remark)
	}
	bad := func(name string, n int, remark string) {
		figure := fmt.Sprintf("%6d", n)
		if n == 0 {
			figure = c.green(figure)
		} else {
			figure = c.red(figure)
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("  %-21s %s   %s", name, figure, remark), " ") + "\n")
	}
	b.WriteString("\n" + c.bold("The court's calendar against the database, hearing by hearing") + "\n\n")
	row("hearings", v.Hearings, fmt.Sprintf("%d of them cancelled", v.Cancelled))
	row("events", v.Events, "one for each change, written in the transaction of the change")
	row("attempts", v.Attempts, fmt.Sprintf("the court read %d of them; the rest did not get through to it", v.Requests))
	row("retries", v.Retries, "attempts beyond the first of an event")
	row("answers", v.Requests-v.Answers[0], answers(v.Answers))
	row("no answer", v.Answers[0], "the connection was cut after the court had read it")
	row("duplicates absorbed", v.Duplicates, "sent again because the answer was lost; the court took each once")
	bad("lost", v.Lost, "")
	bad("out of order", v.OutOfOrder, "")
	bad("different", v.Different, "time, room, status, version")
	bad("not in the log", v.Unlogged, "requests at the court against the delivery log")
	if v.Open > 0 {
		bad("still open", v.Open, "deliveries that are not finished")
	}
	b.WriteString("\n" + c.bold("From the clerk's commit to the court's answer") + "\n\n")
	calm := slices.DeleteFunc(slices.Clone(v.Times), func(t timing) bool { return !t.at.Before(s.calmUntil) })
	fmt.Fprintf(&b, "  %-21s %8s %8s\n", "", "p50", "p99")
	for _, line := range []struct {
		name  string
		times []timing
	}{{"the court was well", calm}, {"all, faults included", v.Times}} {
		fmt.Fprintf(&b, "  %-21s %8s %8s   %d events\n", line.name,
			short(percentile(line.times, 0.5)), short(percentile(line.times, 0.99)), len(line.times))
	}
	fmt.Fprintf(&b, "\n  The second line includes\n%s  The clock runs from the event's insert, just before the commit.\n", pauses(v, s))
	if len(v.Problems) > 0 {
		b.WriteString("\n" + c.red("What does not agree") + "\n\n")
		for _, p := range v.Problems[:min(len(v.Problems), mostProblems)] {
			fmt.Fprintf(&b, "  %s\n", p)
		}
		if more := len(v.Problems) - mostProblems; more > 0 {
			fmt.Fprintf(&b, "  and %d more\n", more)
		}
	} else {
		fmt.Fprintf(&b, "\n%s All %d hearings are at the court as they are in the database. It took %s.\n", c.green("✓"), v.Hearings, seconds(took))
	}
	b.WriteString(`
What to try next
  go run ./cmd/demo --keep              leave it running: ask it, pause it, break the court yourself
  go run ./cmd/demo --hearings 1000     more of it; --seed N for other changes and other faults
  go run ./cmd/lockstep --help          the relay and the operator's commands
  docs/configuration.md                 connect your own events to your own court
`)
	_, err := w.Write(b.Bytes())
	return err
}

// answers counts what the court said.
func answers(by map[int]int) string {
	var parts []string
	taken := 0
	for _, status := range slices.Sorted(maps.Keys(by)) {
		switch {
		case status == 0: // no answer
		case status < 300:
			taken += by[status]
		default:
			parts = append(parts, fmt.Sprintf("%d × %d", by[status], status))
		}
	}
	parts = append([]string{fmt.Sprintf("%d × 2xx", taken)}, parts...)
	return strings.Join(parts, ", ")
}

// pauses names what made deliveries wait, a line each.
func pauses(v verdict, s story) string {
	list := []string{fmt.Sprintf("%s of a court that was down", seconds(s.down))}
	if n := v.Answers[429] + v.Answers[503]; n > 0 {
		list = append(list, fmt.Sprintf("%d answers by which it asked for a pause of 1s", n))
	}
	if s.killed > 0 {
		list = append(list, fmt.Sprintf("%s until the killed relay's work was taken over (%d deliveries)", seconds(s.takeover), s.killed))
	}
	return "  - " + strings.Join(list, "\n  - ") + "\n"
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// short writes a duration with the digits that matter.
func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

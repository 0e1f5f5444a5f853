package main

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// table formats the results as Markdown. The columns are aligned, to be readable in a terminal too.
func table(results []result) string {
	lines := [][]string{{"figure", "ours", "reference", "ratio", "spread", "CPU, ours : reference", "rounds", "goal", "stretch", "met"}}
	for _, r := range results {
		lines = append(lines, r.line())
	}
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for n, line := range lines {
		for i, cell := range line {
			b.WriteString("| " + cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+1))
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, w := range widths {
				b.WriteString("|" + strings.Repeat("-", w+2))
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

func (r result) line() []string {
	quantity := func(v float64) string {
		return strings.TrimRight(strconv.FormatFloat(v, 'f', r.Precision, 64)+" "+r.Unit, " ")
	}
	// The judged value and its goals are a ratio or a quantity.
	judged := quantity
	if r.Judged == byRatio {
		judged = func(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }
	}
	sign := "≥ "
	if r.AtMost {
		sign = "≤ "
	}
	reference, ratio := "–", "–"
	if r.Judged != byItself {
		reference = quantity(r.reference())
		ratio = judged(r.value())
	}
	rounds := strconv.Itoa(len(r.Samples))
	if r.Scale != 1 {
		rounds += fmt.Sprintf(", scale %g", r.Scale)
	}
	cpu := "–"
	if ours, reference := r.cpu(); ours > 0 && reference > 0 {
		cpu = fmt.Sprintf("%.0f : %.0f µs", ours, reference)
	}
	least, most := r.spread()
	return []string{
		r.Name, quantity(r.ours()), reference, ratio,
		fmt.Sprintf("%s – %s", strings.TrimSuffix(judged(least), " "+r.Unit), judged(most)),
		cpu, rounds, sign + judged(r.Goal), judged(r.Stretch), r.verdict(),
	}
}

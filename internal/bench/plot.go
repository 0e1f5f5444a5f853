package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// plot draws each figure as a multiple of its goal; more is better. A bar ends at the median. The thin line spans the rounds.
// The dot is the stretch goal.
func plot(results []result) string {
	const (
		left, bar, row, most = 470, 420, 26, 3.0 // pixels, and the end of the axis in goals
		top                  = 34
	)
	height := top + row*len(results) + 30
	x := func(v float64) float64 { return left + bar*min(max(v, 0), most)/most }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", left+bar+90, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	for _, mark := range []float64{0, 1, 2, 3} {
		colour := "#dddddd"
		if mark == 1 {
			colour = "#222222"
		}
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s"/>`+"\n", x(mark), top-8, x(mark), height-24, colour)
		label := fmt.Sprintf("%g ×", mark)
		if mark == 1 {
			label = "goal"
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#444444">%s</text>`+"\n", x(mark), top-14, label)
	}
	for i, r := range results {
		y := top + row*i
		colour := "#2a7f4f"
		if !r.met(r.Goal) {
			colour = "#b5542c"
		}
		least, high := r.spread()
		from, to := x(r.progress(least)), x(r.progress(high))
		if r.AtMost {
			from, to = to, from
		}
		name := r.Name
		if r.Scale != 1 {
			name += fmt.Sprintf(" · %g", r.Scale)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" fill="#222222">%s</text>`+"\n", left-10, y+15, escape(name))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="14" fill="%s"/>`+"\n", left, y+4, x(r.progress(r.value()))-left, colour)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#000000" stroke-opacity="0.6"/>`+"\n", from, y+11, to, y+11)
		fmt.Fprintf(&b, `<circle cx="%.1f" cy="%d" r="3.5" fill="#ffffff" stroke="#222222"/>`+"\n", x(r.progress(r.Stretch)), y+11)
		value := r.line()[3]
		if r.Judged == byItself {
			value = r.line()[1]
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="#222222">%s</text>`+"\n", left+bar+10, y+15, escape(value))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" fill="#444444">bar: median · line: all rounds · circle: stretch goal · number after the name: scale of the sizes</text>`+"\n</svg>\n", left-140, height-8)
	return b.String()
}

// progress converts a judged value to a multiple of the goal; above 1 is better.
func (r result) progress(v float64) float64 {
	if !r.AtMost {
		return v / r.Goal
	}
	if v <= 0 {
		return 1e9 // better than any goal
	}
	return r.Goal / v
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}

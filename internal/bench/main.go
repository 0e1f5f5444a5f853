// Command bench measures Lockstep and its references on one PostgreSQL server, which it starts, and prints a table.
//
// A part measures one figure, or several figures in one run. Each round runs every chosen part once, ours and the reference
// alternately, each on a new database. Each relay, River client, HTTP client and sink is a separate process. The ratio
// within a round counts. The table shows the medians and the spread over the rounds. docs/performance.md explains the
// figures.
//
// If JSON files of earlier runs are named, bench prints their figures in one table, and measures nothing.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"
)

func main() {
	if config, ok := os.LookupEnv(childEnv); ok {
		if err := runChild(config); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.parts, "parts", "", "the parts whose names match this expression; default all")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each part is measured")
	flag.Float64Var(&o.scale, "scale", 1, "size of everything, relative to the sizes of the goals")
	flag.StringVar(&o.json, "json", "", "write the figures to this file too")
	flag.StringVar(&o.svg, "svg", "", "write a plot of the figures to this file too")
	flag.StringVar(&o.profiles, "cpuprofile", "", "write a CPU profile of each relay into this directory")
	flag.StringVar(&o.statements, "statements", "", "write into this directory what the server spent its time on, for each relay; this slows the server")
	flag.BoolVar(&o.list, "list", false, "list the parts and their figures")
	flag.Parse()
	o.files = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	parts, json, svg     string
	profiles, statements string
	rounds               int
	scale                float64
	list                 bool
	files                []string
}

// part measures figures that share their work.
type part struct {
	name    string
	figures []figure
	// round measures once; it returns a sample for each figure.
	round func(ctx context.Context, l *lab) ([]sample, error)
}

// parts are all that is measured, in the order of the table.
func parts() []part {
	return []part{
		backlogPart(), livePart(), slowPart(), wirePart(), heldPart(), millionPart(), failedPart(), freshPart(), recoveryPart(), holdPart(), latencyPart(), writerPart(), sharePart(), pagesPart(),
	}
}

func run(ctx context.Context, o options) error {
	chosen, err := regexp.Compile(o.parts)
	if err != nil {
		return err
	}
	list := slices.DeleteFunc(parts(), func(p part) bool { return !chosen.MatchString(p.name) })
	if o.list {
		for _, p := range list {
			for _, f := range p.figures {
				fmt.Printf("%-10s %s\n", p.name, f.Name)
			}
		}
		return nil
	}
	if len(o.files) > 0 {
		results, err := readResults(o.files)
		if err != nil {
			return err
		}
		return show(o, results)
	}
	results, err := measure(ctx, o, list)
	if len(results) == 0 {
		return err
	}
	return errors.Join(err, show(o, results))
}

// show prints the results and writes them to the files that are asked for.
func show(o options, results []result) error {
	fmt.Print(table(results))
	if o.json != "" {
		if err := writeResults(o.json, results); err != nil {
			return err
		}
	}
	if o.svg != "" {
		return os.WriteFile(o.svg, []byte(plot(results)), 0o644)
	}
	return nil
}

// measure runs the rounds, with every part once in each. After an error it also returns the earlier measurements.
func measure(ctx context.Context, o options, list []part) (results []result, err error) {
	if len(list) == 0 || o.rounds < 1 || o.scale <= 0 {
		return nil, errors.New("nothing to measure: no part of that name, or rounds or scale is not positive")
	}
	l, err := newLab(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = cmp.Or(err, l.close()) }()
	rounds := make([][][]sample, len(list)) // part, round, figure
	defer func() { results = collect(o, list, rounds) }()
	for round := range o.rounds {
		l.odd = round%2 == 1
		for i, p := range list {
			l.label = fmt.Sprintf("round %d of %d: %s", round+1, o.rounds, p.name)
			samples, err := p.round(ctx, l)
			if err == nil {
				err = sound(samples)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", l.label, err)
			}
			rounds[i] = append(rounds[i], samples)
		}
	}
	return nil, nil
}

// sound returns an error if a figure was not measured.
func sound(samples []sample) error {
	for _, s := range samples {
		if math.IsNaN(s.Ours) || math.IsNaN(s.Reference) {
			return errors.New("there was nothing to measure; the scale may be too small")
		}
	}
	return nil
}

// collect groups the samples of all rounds by figure.
func collect(o options, list []part, rounds [][][]sample) []result {
	var results []result
	for i, p := range list {
		for j, f := range p.figures {
			if len(rounds[i]) == 0 {
				continue
			}
			r := result{figure: f, Part: p.name, Scale: o.scale}
			for _, samples := range rounds[i] {
				r.Samples = append(r.Samples, samples[j])
			}
			results = append(results, r)
		}
	}
	return results
}

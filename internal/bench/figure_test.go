package main

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMedianIsTheMiddleOfTheValues(t *testing.T) {
	for name, c := range map[string]struct {
		values []float64
		want   float64
	}{
		"one":          {[]float64{3}, 3},
		"odd":          {[]float64{9, 1, 5}, 5},
		"even":         {[]float64{4, 1, 3, 100}, 3.5},
		"none is none": {nil, math.NaN()},
	} {
		t.Run(name, func(t *testing.T) {
			if got := median(c.values); got != c.want && !(math.IsNaN(got) && math.IsNaN(c.want)) {
				t.Errorf("got %g, want %g", got, c.want)
			}
		})
	}
}

func TestMedianLeavesTheValuesInTheirOrder(t *testing.T) {
	values := []float64{3, 1, 2}
	median(values)
	if diff := cmp.Diff([]float64{3, 1, 2}, values); diff != "" {
		t.Error(diff)
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for name, c := range map[string]struct {
		values  []float64
		p, want float64
	}{
		"p50 of a hundred":       {hundred, 50, 50},
		"p99 of a hundred":       {hundred, 99, 99},
		"p100 is the most":       {hundred, 100, 100},
		"p0 is the least":        {hundred, 0, 1},
		"p99 of few is the most": {[]float64{1, 2, 3}, 99, 3},
	} {
		t.Run(name, func(t *testing.T) {
			if got := percentile(c.values, c.p); got != c.want {
				t.Errorf("got %g, want %g", got, c.want)
			}
		})
	}
}

// The machine becomes three times slower from round to round. Within each round ours is twice the reference, and that
// ratio counts.
func TestRatioIsTakenWithinARound(t *testing.T) {
	r := result{
		figure:  figure{Judged: byRatio, Goal: 1.8, Stretch: 2.5},
		Samples: []sample{{Ours: 900, Reference: 450}, {Ours: 300, Reference: 150}, {Ours: 100, Reference: 40}},
	}
	if got := r.value(); got != 2 {
		t.Errorf("got a ratio of %g, want 2", got)
	}
	least, most := r.spread()
	if least != 2 || most != 2.5 {
		t.Errorf("got a spread of %g to %g, want 2 to 2.5", least, most)
	}
}

func TestVerdict(t *testing.T) {
	more := figure{Judged: byRatio, Goal: 1.8, Stretch: 2.5}
	less := figure{Judged: byItself, Goal: 64, Stretch: 40, AtMost: true}
	difference := figure{Judged: byDifference, Goal: 15, Stretch: 8, AtMost: true}
	for name, c := range map[string]struct {
		figure figure
		sample sample
		want   string
	}{
		"a goal missed":                {more, sample{Ours: 170, Reference: 100}, "no"},
		"a goal just reached":          {more, sample{Ours: 180, Reference: 100}, "yes"},
		"the stretch reached":          {more, sample{Ours: 250, Reference: 100}, "stretch"},
		"too much":                     {less, sample{Ours: 65}, "no"},
		"little enough":                {less, sample{Ours: 64}, "yes"},
		"less than the stretch":        {less, sample{Ours: 12}, "stretch"},
		"a difference that is too big": {difference, sample{Ours: 50, Reference: 30}, "no"},
		"a difference small enough":    {difference, sample{Ours: 40, Reference: 30}, "yes"},
		"no reference, no verdict":     {more, sample{Ours: 0, Reference: 0}, "no"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (result{figure: c.figure, Samples: []sample{c.sample}}).verdict(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestProgressIsInMultiplesOfTheGoal(t *testing.T) {
	more := result{figure: figure{Goal: 2}}
	less := result{figure: figure{Goal: 2, AtMost: true}}
	for name, c := range map[string]struct {
		result      result
		value, want float64
	}{
		"half of what is wanted":        {more, 1, 0.5},
		"twice what is wanted":          {more, 4, 2},
		"twice as much as is allowed":   {less, 4, 0.5},
		"half of what is allowed":       {less, 1, 2},
		"nothing where least is best":   {less, 0, 1e9},
		"below nothing, where it is so": {less, -1, 1e9},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.result.progress(c.value); got != c.want {
				t.Errorf("got %g, want %g", got, c.want)
			}
		})
	}
}

func TestRoundsOfSeveralFilesArePutTogetherByScale(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "1.json"), filepath.Join(dir, "2.json")
	a := figure{Name: "a", Judged: byRatio, Goal: 1}
	b := figure{Name: "b", Judged: byItself, Goal: 1, AtMost: true}
	write := func(path string, results ...result) {
		t.Helper()
		if err := writeResults(path, results); err != nil {
			t.Fatal(err)
		}
	}
	write(first, result{figure: a, Part: "p", Scale: 1, Samples: []sample{{Ours: 1, Reference: 2}}})
	write(second,
		result{figure: a, Part: "p", Scale: 1, Samples: []sample{{Ours: 3, Reference: 4}}},
		result{figure: b, Part: "q", Scale: 1, Samples: []sample{{Ours: 5}}},
		result{figure: b, Part: "q", Scale: 0.1, Samples: []sample{{Ours: 6}}})
	got, err := readResults([]string{first, second})
	if err != nil {
		t.Fatal(err)
	}
	want := []result{
		{figure: a, Part: "p", Scale: 1, Samples: []sample{{Ours: 1, Reference: 2}, {Ours: 3, Reference: 4}}},
		{figure: b, Part: "q", Scale: 1, Samples: []sample{{Ours: 5}}},
		{figure: b, Part: "q", Scale: 0.1, Samples: []sample{{Ours: 6}}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{})); diff != "" {
		t.Error(diff)
	}
}

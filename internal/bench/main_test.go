package main

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCollectTurnsRoundsIntoFigures(t *testing.T) {
	list := []part{
		{name: "one", figures: []figure{{Name: "a"}, {Name: "b"}}},
		{name: "never measured", figures: []figure{{Name: "c"}}},
	}
	rounds := [][][]sample{
		{{{Ours: 1}, {Ours: 10}}, {{Ours: 2}, {Ours: 20}}},
		nil,
	}
	want := []result{
		{figure: figure{Name: "a"}, Part: "one", Scale: 0.5, Samples: []sample{{Ours: 1}, {Ours: 2}}},
		{figure: figure{Name: "b"}, Part: "one", Scale: 0.5, Samples: []sample{{Ours: 10}, {Ours: 20}}},
	}
	if diff := cmp.Diff(want, collect(options{scale: 0.5}, list, rounds), cmp.AllowUnexported(result{})); diff != "" {
		t.Error(diff)
	}
}

func TestNothingIsNoFigure(t *testing.T) {
	if err := sound([]sample{{Ours: 1}, {Ours: math.NaN()}}); err == nil {
		t.Error("a median of nothing was taken for a figure")
	}
	if err := sound([]sample{{Ours: 1}, {Ours: 0, Reference: 2}}); err != nil {
		t.Error(err)
	}
}

// Each figure has its own name, because rounds are matched by name.
func TestFiguresHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range parts() {
		for _, f := range p.figures {
			if seen[f.Name] {
				t.Errorf("two figures are named %q", f.Name)
			}
			seen[f.Name] = true
			if f.Judged == byRatio && f.Against == "" {
				t.Errorf("%q is a ratio against nothing", f.Name)
			}
			if f.AtMost != (f.Stretch < f.Goal) {
				t.Errorf("%q: the stretch goal %g is no further than the goal %g", f.Name, f.Stretch, f.Goal)
			}
		}
	}
}

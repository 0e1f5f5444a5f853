package main

import (
	"encoding/json"
	"math"
	"os"
	"slices"
)

// judgement says which number is compared with the goal.
type judgement string

const (
	byRatio      judgement = "ratio"      // ours divided by the reference, within a round
	byDifference judgement = "difference" // ours less the reference, within a round
	byItself     judgement = "itself"     // ours alone
)

// figure is one line of the table.
type figure struct {
	Name      string    `json:"name"`
	Against   string    `json:"against,omitempty"` // what the reference is
	Unit      string    `json:"unit"`              // of ours and the reference
	Judged    judgement `json:"judged"`
	Goal      float64   `json:"goal"`
	Stretch   float64   `json:"stretch"`
	AtMost    bool      `json:"at_most"`   // less is better
	Precision int       `json:"precision"` // decimals of ours and the reference
}

// sample is a figure as measured in one round.
type sample struct {
	Ours      float64 `json:"ours"`
	Reference float64 `json:"reference,omitempty"`

	// CPU time per delivery of all processes and the server, in microseconds; zero if it was not measured.
	OursCPU      float64 `json:"ours_cpu,omitempty"`
	ReferenceCPU float64 `json:"reference_cpu,omitempty"`
}

// result is a figure with its samples, one per round.
type result struct {
	figure

	Part    string   `json:"part"`
	Scale   float64  `json:"scale"` // of all sizes, relative to those that the figure names
	Samples []sample `json:"samples"`
}

func (r result) ours() float64 {
	return median(each(r.Samples, func(s sample) float64 { return s.Ours }))
}

func (r result) reference() float64 {
	return median(each(r.Samples, func(s sample) float64 { return s.Reference }))
}

// cpu returns the CPU time per delivery of ours and the reference, zero if it was not measured.
func (r result) cpu() (ours, reference float64) {
	return median(each(r.Samples, func(s sample) float64 { return s.OursCPU })),
		median(each(r.Samples, func(s sample) float64 { return s.ReferenceCPU }))
}

// judged returns the value of each round that is compared with the goal.
func (r result) judged() []float64 {
	return each(r.Samples, func(s sample) float64 {
		switch r.Judged {
		case byRatio:
			return s.Ours / s.Reference
		case byDifference:
			return s.Ours - s.Reference
		default:
			return s.Ours
		}
	})
}

func (r result) value() float64 { return median(r.judged()) }

// spread returns the lowest and the highest value of the rounds.
func (r result) spread() (least, most float64) {
	values := r.judged()
	return slices.Min(values), slices.Max(values)
}

func (r result) met(bound float64) bool {
	v := r.value()
	if math.IsNaN(v) {
		return false
	}
	if r.AtMost {
		return v <= bound
	}
	return v >= bound
}

// verdict is a word that tells whether the figure meets its goal.
func (r result) verdict() string {
	switch {
	case r.met(r.Stretch):
		return "stretch"
	case r.met(r.Goal):
		return "yes"
	default:
		return "no"
	}
}

func each[T any](list []T, f func(T) float64) []float64 {
	var out []float64
	for _, v := range list {
		out = append(out, f(v))
	}
	return out
}

// median returns the middle of the values, between the middle two if their
// number is even; NaN if there are none.
func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	switch n := len(v); {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return v[n/2]
	default:
		return (v[n/2-1] + v[n/2]) / 2
	}
}

// percentile returns the lowest value for which p percent of all values are at most as high; NaN if there are none.
func percentile(values []float64, p float64) float64 {
	v := slices.Sorted(slices.Values(values))
	if len(v) == 0 {
		return math.NaN()
	}
	return v[max(0, int(math.Ceil(p/100*float64(len(v))))-1)]
}

func writeResults(path string, results []result) error {
	raw, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o644)
}

// readResults reads the figures of earlier runs. If several files have a figure at the same scale, their rounds are
// combined.
func readResults(paths []string) ([]result, error) {
	var all []result
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var results []result
		if err := json.Unmarshal(raw, &results); err != nil {
			return nil, err
		}
		for _, r := range results {
			same := func(o result) bool { return o.figure == r.figure && o.Scale == r.Scale }
			if i := slices.IndexFunc(all, same); i >= 0 {
				all[i].Samples = append(all[i].Samples, r.Samples...)
			} else {
				all = append(all, r)
			}
		}
	}
	return all, nil
}

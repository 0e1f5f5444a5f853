package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var shown = []result{
	{
		figure:  figure{Name: "backlog", Unit: "/s", Judged: byRatio, Goal: 1.8, Stretch: 2.5},
		Scale:   1,
		Samples: []sample{{30000, 15000, 60, 100}, {20000, 10000, 70, 110}, {28000, 10000, 80, 120}},
	},
	{
		figure:  figure{Name: "memory <peak>", Unit: "MiB", Judged: byItself, Goal: 64, Stretch: 40, AtMost: true, Precision: 1},
		Scale:   0.1,
		Samples: []sample{{Ours: 70.25}, {Ours: 66}},
	},
	{
		figure:  figure{Name: "CPU", Unit: "µs", Judged: byDifference, Goal: 15, Stretch: 8, AtMost: true},
		Scale:   1,
		Samples: []sample{{Ours: 42, Reference: 30}},
	},
}

func TestTable(t *testing.T) {
	want := `| figure        | ours     | reference | ratio | spread          | CPU, ours : reference | rounds       | goal       | stretch  | met |
|---------------|----------|-----------|-------|-----------------|-----------------------|--------------|------------|----------|-----|
| backlog       | 28000 /s | 10000 /s  | 2.00  | 2.00 – 2.80     | 70 : 110 µs           | 3            | ≥ 1.80     | 2.50     | yes |
| memory <peak> | 68.1 MiB | –         | –     | 66.0 – 70.2 MiB | –                     | 2, scale 0.1 | ≤ 64.0 MiB | 40.0 MiB | no  |
| CPU           | 42 µs    | 30 µs     | 12 µs | 12 – 12 µs      | –                     | 1            | ≤ 15 µs    | 8 µs     | yes |
`
	if diff := cmp.Diff(want, table(shown)); diff != "" {
		t.Error(diff)
	}
}

func TestPlotIsSoundXMLThatNamesEveryFigure(t *testing.T) {
	svg := plot(shown)
	d := xml.NewDecoder(strings.NewReader(svg))
	var text strings.Builder
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if chars, ok := token.(xml.CharData); ok {
			text.Write(chars)
		}
	}
	for _, r := range shown {
		if !strings.Contains(text.String(), r.Name) {
			t.Errorf("the plot does not name %q", r.Name)
		}
	}
}

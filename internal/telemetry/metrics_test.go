package telemetry

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/hms-mkt/lockstep/outbox"
)

var update = flag.Bool("update", false, "write the table of docs/metrics.md")

// everything returns all metrics of a relay to which everything has happened.
func everything(t *testing.T) []*dto.MetricFamily {
	t.Helper()
	m := NewMetrics(Build{Version: "v1.2.3", Revision: "abc"})
	s := m.Watch(source(func(context.Context) ([]outbox.Status, error) { return standing(), nil }), quiet())
	t.Cleanup(s.Close)
	m.Expect("Court")
	m.Attempt("Court", "delivered", time.Second)
	m.Claim("Court", 1, time.Second)
	m.LogAhead(3)
	all, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(f *dto.MetricFamily) bool { return !strings.HasPrefix(f.GetName(), "lockstep_") })
}

// The names and units are those that Prometheus recommends.
func TestMetricsHaveGoodNames(t *testing.T) {
	problems, err := promlint.NewWithMetricFamilies(everything(t)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// The table of docs/metrics.md has each metric, with its type, its labels and what it says of itself.
func TestMetricsAreDocumented(t *testing.T) {
	var table strings.Builder
	table.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, f := range everything(t) {
		labels := map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels["`"+l.GetName()+"`"] = true
			}
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()),
			strings.Join(slices.Sorted(maps.Keys(labels)), ", "), strings.ReplaceAll(f.GetHelp(), "|", `\|`))
	}
	path := filepath.Join("..", "..", "docs", "metrics.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), "<!-- metrics -->\n")
	_, after, ok2 := strings.Cut(rest, "<!-- end -->\n")
	want := before + "<!-- metrics -->\n" + table.String() + "<!-- end -->\n" + after
	switch {
	case !ok || !ok2:
		t.Fatal("docs/metrics.md has no place for the table")
	case want == string(text):
	case *update:
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	default:
		t.Error("docs/metrics.md does not say what the metrics are; write it with: go test ./internal/telemetry -run Documented -update")
	}
}

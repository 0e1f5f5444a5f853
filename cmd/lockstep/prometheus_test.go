package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/waiting"
)

var (
	rulesDir  = filepath.Join("..", "..", "deploy", "prometheus")
	dashboard = filepath.Join("..", "..", "deploy", "grafana", "lockstep.json")
)

// promtool runs Prometheus' own checks. Debian has it in the package prometheus.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "promtool", args...)
	cmd.Dir = rulesDir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestAlertRules(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "rules", "lockstep.rules.yaml")
	promtool(t, "check", "config", "prometheus.yaml")
	promtool(t, "test", "rules", "lockstep.rules.test.yaml")
}

// Each alert has a unit test and a runbook.
func TestEachAlertHasATestAndARunbook(t *testing.T) {
	t.Parallel()
	rules, tests := readFile(t, filepath.Join(rulesDir, "lockstep.rules.yaml")), readFile(t, filepath.Join(rulesDir, "lockstep.rules.test.yaml"))
	index := readFile(t, filepath.Join("..", "..", "docs", "runbooks.md"))
	pages := map[string]bool{}
	for _, rule := range strings.Split(rules, "- alert: ")[1:] {
		name, _, _ := strings.Cut(rule, "\n")
		_, page, _ := strings.Cut(rule, "/docs/runbooks/")
		page, _, _ = strings.Cut(page, "\n")
		pages[page] = true
		text := readFile(t, filepath.Join("..", "..", "docs", "runbooks", page))
		if !strings.HasPrefix(text, "# "+name+"\n") {
			t.Errorf("docs/runbooks/%s is not about %s", page, name)
		}
		if n := strings.Count(tests, "alertname: "+name+"\n"); n == 0 || !strings.Contains(tests, "alertname: "+name+"}") {
			t.Errorf("%s is not tested: it must fire and end", name)
		}
		if !strings.Contains(index, "["+name+"](runbooks/"+page+")") {
			t.Errorf("docs/runbooks.md does not list %s", name)
		}
	}
	files, err := os.ReadDir(filepath.Join("..", "..", "docs", "runbooks"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !pages[f.Name()] {
			t.Errorf("docs/runbooks/%s belongs to no alert", f.Name())
		}
	}
}

// The rules know every name of outbox.alert.
func TestTheRulesKnowTheViewsAlerts(t *testing.T) {
	w := newWorld(t)
	rules := readFile(t, filepath.Join(rulesDir, "lockstep.rules.yaml"))
	view := ask[string](w, `SELECT pg_get_viewdef('outbox.alert'::regclass)`)
	names := regexp.MustCompile(`'(\w+)'(?:::text| COLLATE "C"\)) AS name`).FindAllStringSubmatch(view, -1)
	if len(names) != 9 {
		t.Fatalf("the view has the names %v", names)
	}
	known := map[string]bool{}
	for _, n := range names {
		known[n[1]] = true
		if !strings.Contains(rules, fmt.Sprintf("lockstep_alerts{name=%q", n[1])) {
			t.Errorf("no rule is about %s", n[1])
		}
	}
	for _, n := range regexp.MustCompile(`lockstep_alerts\{name="(\w+)"`).FindAllStringSubmatch(rules, -1) {
		if !known[n[1]] {
			t.Errorf("a rule is about %s, which the view does not have", n[1])
		}
	}
}

// prometheus is a real one that scrapes relays.
type prometheus struct {
	t   *testing.T
	url string
}

// startPrometheus starts one with the rules for alerts, which need hold for only a second.
func startPrometheus(t *testing.T, targets ...string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	rules := readFile(t, filepath.Join(rulesDir, "lockstep.rules.yaml"))
	writeFile(t, filepath.Join(dir, "rules.yaml"), regexp.MustCompile(`(?m)^( +for:).*$`).ReplaceAllString(rules, "$1 1s"))
	writeFile(t, filepath.Join(dir, "prometheus.yaml"), fmt.Sprintf(`
global: {scrape_interval: 500ms, evaluation_interval: 500ms}
rule_files: [rules.yaml]
scrape_configs:
  - job_name: lockstep
    static_configs: [{targets: ["%s"]}]
`, strings.Join(targets, `", "`)))
	p := &prometheus{t: t, url: "http://" + freeAddress(t)}
	cmd := exec.CommandContext(t.Context(), "prometheus", "--config.file", filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--web.listen-address", strings.TrimPrefix(p.url, "http://"), "--log.level", "error")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; Debian has it in the package prometheus", err)
	}
	t.Cleanup(func() {
		if _ = cmd.Wait(); t.Failed() {
			t.Logf("prometheus said:\n%s", said.String())
		}
	})
	return p
}

// get asks Prometheus. Until it is up, data stays as it is.
func (p *prometheus) get(path string, query url.Values, data any) {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, p.url+path+"?"+query.Encode(), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode == http.StatusServiceUnavailable {
		return
	}
	if err := json.Unmarshal(body, &struct{ Data any }{data}); err != nil || answer.StatusCode != http.StatusOK {
		p.t.Fatalf("%s %v: %s: %s", path, query, answer.Status, body)
	}
}

// firing returns the alerts that fire, each with its sync.
func (p *prometheus) firing() (names []string) {
	var found struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	p.get("/api/v1/alerts", nil, &found)
	for _, a := range found.Alerts {
		if a.State == "firing" {
			names = append(names, strings.TrimPrefix(a.Labels["alertname"], "Lockstep")+strings.TrimSuffix(" "+a.Labels["sync"], " "))
		}
	}
	return names
}

// until waits until an alert fires, or does not any more.
func (p *prometheus) until(fires bool, name string) {
	p.t.Helper()
	waiting.For(p.t, waitTimeout, fmt.Sprintf("%s fires: %t", name, fires), func() bool { return slices.Contains(p.firing(), name) == fires })
}

// samples returns how many series a query gives now.
func (p *prometheus) samples(query string) int {
	var found struct{ Result []json.RawMessage }
	p.get("/api/v1/query", url.Values{"query": {query}}, &found)
	return len(found.Result)
}

// Three alerts fire in a real Prometheus that scrapes a real relay, and end when somebody has
// done what the runbook says. Every query of the dashboard finds something meanwhile.
func TestAlertsFireInPrometheus(t *testing.T) {
	w := newWorld(t)
	listens := freeAddress(t)
	w.configure(strings.Replace(fmt.Sprintf(courtYAML, w.court.URL), "127.0.0.1:0", listens, 1))
	relay := w.start("run")
	p := startPrometheus(t, listens)
	waiting.For(t, waitTimeout, "the relay is scraped", func() bool { return p.samples(`lockstep_status_up == 1`) == 1 })

	var refuses atomic.Int64
	w.court.answers(func(_ *http.Request, body string) int {
		if strings.Contains(body, "H-refused") {
			return http.StatusUnprocessableEntity
		}
		return int(refuses.Load())
	})
	refuses.Store(http.StatusCreated)
	w.emit("H-1", `{"hearingId": "H-1"}`)
	w.emit("H-refused", `{"hearingId": "H-refused"}`)
	p.until(true, "Failed CourtCalendarSync")

	refuses.Store(http.StatusUnauthorized)
	w.emit("H-2", `{"hearingId": "H-2"}`)
	p.until(true, "CredentialsRefused CourtCalendarSync")
	w.looksAtTheDashboard(p)
	refuses.Store(http.StatusCreated)
	p.until(false, "CredentialsRefused CourtCalendarSync")

	w.as(roleOperator).run("discard", "--sync", "CourtCalendarSync", "--key", "H-refused", "--reason", "entered by mistake").wants(t, 0)
	p.until(false, "Failed CourtCalendarSync")

	relay.stop(t, 0)
	p.until(true, "NoRelay")
	relay = w.start("run")
	p.until(false, "NoRelay")
	relay.stop(t, 0)
}

// looksAtTheDashboard runs every query of the dashboard. Those about things that have not
// happened may find nothing, but their metrics are in the documents.
func (w *world) looksAtTheDashboard(p *prometheus) {
	t := w.t
	t.Helper()
	type query struct{ Expr string }
	var d struct {
		Panels []struct {
			Title   string
			Targets []query
		}
		Annotations struct{ List []query }
	}
	if err := json.Unmarshal([]byte(readFile(t, dashboard)), &d); err != nil {
		t.Fatal(err)
	}
	rare := []string{"lockstep_scopes_paused", "lockstep_leases_lost_total", "changes("}
	documented := readFile(t, filepath.Join("..", "..", "docs", "metrics.md"))
	queries, empty := 0, []string{}
	look := func(title string, q query) {
		queries++
		for _, name := range regexp.MustCompile(`\blockstep_\w+`).FindAllString(q.Expr, -1) {
			if name = strings.TrimSuffix(name, "_bucket"); !strings.Contains(documented, "| `"+name+"` |") {
				t.Errorf("panel %q has the metric %s, which docs/metrics.md does not have", title, name)
			}
		}
		expr := strings.NewReplacer("$job", ".*", "$sync", ".*", "$__rate_interval", "10s").Replace(q.Expr)
		if p.samples(expr) == 0 && !slices.ContainsFunc(rare, func(r string) bool { return strings.Contains(expr, r) }) {
			empty = append(empty, title+": "+expr)
		}
	}
	for _, panel := range d.Panels {
		for _, q := range panel.Targets {
			look(panel.Title, q)
		}
	}
	for _, q := range d.Annotations.List {
		look("annotation", q)
	}
	if queries < 35 || len(empty) > 0 {
		t.Errorf("of %d queries, these find nothing:\n%s", queries, strings.Join(empty, "\n"))
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

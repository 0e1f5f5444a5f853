package webhook

import (
	"errors"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// page returns the guide's page on webhooks.
func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/adapters/webhook.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The guide's configuration has every key, and is accepted.
func TestGuideShowsACompleteConfiguration(t *testing.T) {
	_, text, _ := strings.Cut(page(t), "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	text = strings.NewReplacer("${HOOK_SECRET}", vectorHMAC, "${HOOK_SECRET_OLD}", vectorEd25519).Replace(text)
	var file struct {
		Adapter struct {
			Kind   string `yaml:"kind"`
			Config `yaml:",inline"`
		} `yaml:"adapter"`
	}
	if err := yaml.Load([]byte(text), &file, yaml.WithKnownFields()); err != nil {
		t.Fatal(err)
	}
	a, err := New(file.Adapter.Config)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for f := range reflect.TypeFor[Config]().Fields() {
		if key := f.Tag.Get("yaml"); !strings.Contains(text, "\n  "+key+":") {
			t.Errorf("the key %s is missing", key)
		}
	}
}

// Every single status in the guide's table has the class that the code gives it,
// and every exception in the code is in the guide.
func TestGuideShowsTheClasses(t *testing.T) {
	_, table, _ := strings.Cut(page(t), "| webhook's status | class |")
	table, _, _ = strings.Cut(table, "\n\n")
	outcomes, err := exchange.ParseOutcomes(statuses, nil)
	if err != nil {
		t.Fatal(err)
	}
	shown := map[int]bool{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			continue
		}
		class, _, _ := strings.Cut(strings.TrimSpace(cells[2]), ":")
		header := http.Header{}
		if strings.Contains(cells[1], "with a usable Retry-After") {
			header.Set("Retry-After", "7")
		}
		for _, digits := range regexp.MustCompile(`\b[0-9]{3}\b`).FindAllString(cells[1], -1) {
			status, err := strconv.Atoi(digits)
			if err != nil {
				t.Fatal(err)
			}
			shown[status] = true
			if got := outcomes.Class(exchange.Answer{Status: status, Header: header}); got != adapters.Class(class) {
				t.Errorf("the guide says that %d is %s, but it is %s", status, class, got)
			}
		}
	}
	for status := range statuses {
		if !shown[status] {
			t.Errorf("the guide does not show %d", status)
		}
	}
}

// The guide shows the receiver of the example, which is compiled and run.
func TestGuideShowsTheReceiverThatRuns(t *testing.T) {
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, found := strings.Cut(string(example), "\nfunc verify(")
	code, _, _ = strings.Cut(code, "\n}\n")
	if !found || !strings.Contains(page(t), "func verify("+code+"\n}\n") {
		t.Error("docs/adapters/webhook.md does not hold verify of example_test.go: copy it again")
	}
}

// The guide says which headers come with a payload.
func TestGuideShowsEveryPayload(t *testing.T) {
	text := page(t)
	for _, p := range payloads {
		_, h := p.render(hearing(), "t", "/agency")
		var missing error
		for name := range h {
			if name != "Accept" && name != "Content-Type" && !strings.Contains(text, "`"+strings.ToLower(name)+"`") {
				missing = errors.Join(missing, errors.New(name))
			}
		}
		if !regexp.MustCompile("(?m)^\\| `"+string(p)+"` \\|.*\\| `"+regexp.QuoteMeta(h.Get("Content-Type"))+"` \\|$").MatchString(text) || missing != nil {
			t.Errorf("%s: %v", p, missing)
		}
	}
}

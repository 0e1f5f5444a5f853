package soap

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
)

// page returns the guide's page on SOAP.
func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/adapters/soap.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The guide's configuration has every key, is accepted, and makes envelopes.
func TestGuideShowsACompleteConfiguration(t *testing.T) {
	_, text, _ := strings.Cut(page(t), "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	var file struct {
		Adapter struct {
			Kind   string `yaml:"kind"`
			Config `yaml:",inline"`
		} `yaml:"adapter"`
	}
	if err := yaml.Load([]byte(text), &file, yaml.WithKnownFields()); err != nil {
		t.Fatal(err)
	}
	a := fixed(t, file.Adapter.Config)
	for _, typ := range []reflect.Type{reflect.TypeFor[Config](), reflect.TypeFor[Addressing](), reflect.TypeFor[Security]()} {
		for f := range typ.Fields() {
			if key := f.Tag.Get("yaml"); !regexp.MustCompile(`(?m)^ +` + key + `:`).MatchString(text) {
				t.Errorf("the key %s is missing", key)
			}
		}
	}
	msg := hearing(`{"case_reference":"NY-07/4711","start_time":"2027-03-15T09:30:00-04:00","courtroom":"3A","parties":[{"name":"A & B","role":"plaintiff"}]}`)
	for eventType, want := range map[string]string{
		"scheduling:created":   `<cal:party role="plaintiff">A &amp; B</cal:party>`,
		"scheduling:cancelled": `<cal:CancelHearing><cal:reference>NY-07/4711</cal:reference></cal:CancelHearing>`,
	} {
		msg.Type = eventType
		envelope, err := render(t, a, msg)
		if err != nil || !strings.Contains(envelope, want) {
			t.Errorf("%s: %v in\n%s", eventType, err, envelope)
		}
	}
}

// Every fault that the guide names has the class of its row.
func TestGuideShowsTheClassesOfFaults(t *testing.T) {
	_, table, _ := strings.Cut(page(t), "| SOAP answer | class |")
	shown := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || !strings.HasPrefix(cells[1], " `") {
			continue
		}
		class, _, _ := strings.Cut(strings.TrimSpace(cells[2]), ";")
		class, _, _ = strings.Cut(class, ":")
		space := soap11
		for _, m := range regexp.MustCompile("`(?:(wss?[eu]):)?([A-Za-z]+)`").FindAllStringSubmatch(cells[1], -1) {
			switch m[1] {
			case "wsse":
				space = nsWSSE
			case "wsu":
				space = nsWSU
			}
			shown++
			f := &fault{codes: []name{{space, m[2]}}}
			if got := f.class(); got != adapters.Class(class) {
				t.Errorf("the guide says that %s is %s, but it is %s", m[2], class, got)
			}
		}
	}
	if want := len(security) + 2 + len(senders) + 1 + 2; shown != want {
		t.Errorf("the guide shows %d codes, want %d", shown, want)
	}
}

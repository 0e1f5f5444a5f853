package rest_test

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters/rest"
)

// The guide's configuration has every key, and is accepted.
func TestGuideShowsACompleteConfiguration(t *testing.T) {
	guide, err := os.ReadFile("../../docs/adapters/rest.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(guide), "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	var file struct {
		Adapter struct {
			Kind        string `yaml:"kind"`
			rest.Config `yaml:",inline"`
		} `yaml:"adapter"`
	}
	if err := yaml.Load([]byte(text), &file, yaml.WithKnownFields()); err != nil {
		t.Fatal(err)
	}
	newAdapter(t, file.Adapter.Config)
	for f := range reflect.TypeFor[rest.Config]().Fields() {
		if key := f.Tag.Get("yaml"); !strings.Contains(text, "\n  "+key+":") {
			t.Errorf("the key %s is missing", key)
		}
	}
}

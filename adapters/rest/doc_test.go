package rest_test

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

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
	if err := yaml.UnmarshalWithOptions([]byte(text), &file, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	newAdapter(t, file.Adapter.Config)
	for f := range reflect.TypeFor[rest.Config]().Fields() {
		if key := f.Tag.Get("yaml"); !strings.Contains(text, "\n  "+key+":") {
			t.Errorf("the key %s is missing", key)
		}
	}
}

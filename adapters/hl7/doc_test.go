package hl7

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// The guide's configuration has every key. A test of internal/config reads it.
func TestGuideShowsACompleteConfiguration(t *testing.T) {
	guide, err := os.ReadFile("../../docs/adapters/hl7.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(guide), "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	for f := range reflect.TypeFor[Config]().Fields() {
		if key := f.Tag.Get("yaml"); !strings.Contains(text, "\n  "+key+":") {
			t.Errorf("the key %s is missing", key)
		}
	}
	for f := range reflect.TypeFor[Message]().Fields() {
		if key := f.Tag.Get("yaml"); !strings.Contains(string(guide), key+":") {
			t.Errorf("the key %s is missing", key)
		}
	}
}

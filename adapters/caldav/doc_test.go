package caldav_test

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters/caldav"
)

// The guide's configuration has every key. A test of internal/config reads it.
func TestGuideShowsACompleteConfiguration(t *testing.T) {
	guide, err := os.ReadFile("../../docs/adapters/caldav.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(guide), "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	for f := range reflect.TypeFor[caldav.Config]().Fields() {
		if key := f.Tag.Get("yaml"); !strings.Contains(text, "\n  "+key+":") {
			t.Errorf("the key %s is missing", key)
		}
	}
	for _, field := range caldav.Fields {
		if !strings.Contains(string(guide), "`"+field+"`") {
			t.Errorf("the field %s is missing", field)
		}
	}
}

package adapters_test

import (
	"os"
	"strings"
	"testing"
)

// The guide shows the code of the example above, which is compiled and run.
func TestGuideShowsTheExampleThatRuns(t *testing.T) {
	guide, err := os.ReadFile("../docs/adapters.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(example), "// FileDrop puts")
	code, _, found := strings.Cut(code, "\nfunc Example()")
	if code = strings.TrimSpace(code); !found || !strings.Contains(string(guide), code) {
		t.Error("docs/adapters.md does not hold the FileDrop of example_test.go: copy it again")
	}
}

package adapters_test

import (
	"os"
	"strings"
	"testing"
)

// The guide shows the code of the example and its test, which are compiled and run.
func TestGuideShowsTheExampleThatRuns(t *testing.T) {
	guide, err := os.ReadFile("../docs/write-an-adapter.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(example), "// FileDrop puts")
	code, rest, _ := strings.Cut(code, "\nfunc Example()")
	_, test, found := strings.Cut(rest, "\nfunc TestFileDropConforms")
	for _, shown := range []string{code, test} {
		if shown = strings.TrimSpace(shown); !found || !strings.Contains(string(guide), shown) {
			t.Error("docs/write-an-adapter.md does not hold the FileDrop of example_test.go, or its test: copy them again")
		}
	}
}

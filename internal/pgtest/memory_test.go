package pgtest

import (
	"os"
	"testing"
)

func TestParentOfAServersDirectory(t *testing.T) {
	t.Setenv(EnvDir, "")
	memory := memoryDir(leastFree)
	if memory == "" { // no room in memory
		memory = os.TempDir()
	}
	given, named := t.TempDir(), t.TempDir()
	for _, c := range []struct {
		what string
		opts Options
		env  string
		want string
	}{
		{"throw-away data", Options{}, "", memory},
		{"a disk that matters", Options{Fsync: true}, "", os.TempDir()},
		{"named by the caller", Options{Dir: given}, named, given},
		{"named by the environment", Options{}, named, named},
	} {
		t.Setenv(EnvDir, c.env)
		if got := c.opts.parent(); got != c.want {
			t.Errorf("%s: got %s, want %s", c.what, got, c.want)
		}
	}
	if dir := memoryDir(1 << 60); dir != "" {
		t.Errorf("%s has an exbibyte free?", dir)
	}
}

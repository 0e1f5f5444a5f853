//go:build unix

package pgtest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// dirPrefix begins the names of the local route's directories.
const dirPrefix = "lockstep-pgtest-"

// makeDir makes a server's directory and locks it. The lock ends with our process, so a
// later [removeLeftovers] knows that nobody needs the directory.
func makeDir(parent string) (dir string, lock io.Closer, err error) {
	dir, err = os.MkdirTemp(parent, dirPrefix)
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	// The server's account must reach its data.
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return "", nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return dir, f, nil
}

// removeLeftovers removes the directories of killed processes. It skips those that it
// may not remove, which belong to other users. If a server still runs in a directory,
// it ends itself within a minute, because PostgreSQL checks for its lock file.
func removeLeftovers(parent string) {
	locks, _ := filepath.Glob(filepath.Join(parent, dirPrefix+"*", "lock"))
	for _, path := range locks {
		info, err := os.Lstat(path)
		// A directory with a young lock may not be finished yet.
		if err != nil || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
		_ = f.Close()
	}
}

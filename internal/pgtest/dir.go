//go:build unix

package pgtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// dirPrefix begins the names of the local route's directories.
const dirPrefix = "lockstep-pgtest-"

// makeDir makes a server's directory and locks it. The lock ends with our
// process, and tells a later [sweep] that nobody needs the directory any more.
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
	// The server's account has to get through to its data.
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

// sweep removes what killed processes have left behind. It keeps quiet about
// what it cannot remove: that is another user's.
func sweep(ctx context.Context, parent string) {
	locks, _ := filepath.Glob(filepath.Join(parent, dirPrefix+"*", "lock"))
	for _, path := range locks {
		info, err := os.Lstat(path)
		// A young lock may stand in a directory that is just being made.
		if err != nil || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			dir := filepath.Dir(path)
			endOrphan(ctx, dir)
			_ = os.RemoveAll(dir)
		}
		_ = f.Close()
	}
}

// endOrphan ends the server that still runs in dir, where the system could not
// end it together with its parent.
func endOrphan(ctx context.Context, dir string) {
	pidFile, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		return
	}
	first, _, _ := bytes.Cut(pidFile, []byte("\n"))
	pid, err := strconv.Atoi(string(first))
	if err != nil || pid <= 1 {
		return
	}
	// The number may be another process's by now: its command line tells.
	out, err := exec.CommandContext(ctx, "ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	if err == nil && bytes.Contains(out, []byte(dir)) {
		_ = syscall.Kill(pid, syscall.SIGQUIT)
	}
}

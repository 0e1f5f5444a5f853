//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// The disk becomes full under traffic. Every commit that was acknowledged to a writer survives. The relay
// waits, and resumes when there is space again.
func TestFault15DiskFull(t *testing.T) {
	if !inMountNamespace(t) {
		return
	}
	scenario(t, func(r *run) {
		disk := openDir(r)
		if err := syscall.Mount("lockstep", disk, "tmpfs", 0, "size=176m,mode=0711"); err != nil {
			r.Fatal(err)
		}
		r.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
		w := newServer(r, pgtest.Options{
			Route: pgtest.Local, Dir: disk,
			Settings: map[string]string{"min_wal_size": "32MB", "max_wal_size": "48MB", "wal_level": "minimal", "max_wal_senders": "0"},
		})
		p := w.start(careful())
		w.registered()
		l := w.begin(loadSpec{writers: 4, keys: 50, rate: 200})
		l.reaches(100)
		// While the disk is full, there is always a result to record.
		w.court().faults(r, courtsim.Fault{Do: courtsim.Action{Delay: courtsim.Duration(300 * time.Millisecond)}})

		w.exec(`CREATE TABLE ballast (bytes text)`)
		filler := filepath.Join(disk, "filler")
		file, err := os.Create(filler)
		if err != nil {
			r.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		w.within(patience, "the relay feels it", func() bool {
			for chunk := make([]byte, 1<<20); err == nil; {
				_, err = file.Write(chunk)
			}
			// The reserved WAL files of PostgreSQL are used up too.
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			_, _ = w.pool.Exec(ctx, `INSERT INTO ballast SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 20000)`)
			_, err = file.Write([]byte{0})
			return p.stderr.contains(anything)
		})
		if !errors.Is(err, syscall.ENOSPC) {
			r.Fatalf("the disk is not full: %v", err)
		}
		waiting.StallFor(r.Context(), r.between(500*time.Millisecond, time.Second)) // under traffic
		acknowledged := l.written.Load()

		if err := os.Remove(filler); err != nil {
			r.Fatal(err)
		}
		_ = file.Close()
		w.court().faults(r)
		w.within(patience, "the database accepts writes", func() bool {
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			_, err := w.pool.Exec(ctx, `TRUNCATE ballast`)
			if err != nil {
				_ = w.server.Boot(r.Context()) // if it gave up: it does where there is no space for its log
			}
			return err == nil
		})
		if n := ask[int64](w, `SELECT count(*) FROM outbox.event`); n < acknowledged {
			r.Errorf("%d events are there, %d were acknowledged", n, acknowledged)
		}
		l.reaches(l.written.Load() + 100)
		l.stop()
		w.drain(expected{})
	})
}

// envMounts tells this test binary that it may mount.
const envMounts = "LOCKSTEP_CHAOS_MOUNTS"

// inMountNamespace reports whether the test has a mount namespace of its own. If not, it runs the test
// again in a process that has one. For a user other than root, the process also has a user namespace,
// with the one capability that a mount needs.
func inMountNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envMounts) != "" {
		return true
	}
	t.Parallel()
	const sysAdmin = 21 // CAP_SYS_ADMIN
	attr := &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		attr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
			AmbientCaps: []uintptr{sysAdmin},
			Pdeathsig:   syscall.SIGKILL,
		}
	}
	args := []string{"-test.run=^" + t.Name() + "$", fmt.Sprint("-seeds=", *seeds), fmt.Sprint("-seed=", *seed), fmt.Sprint("-long=", *long)}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), envMounts+"=yes")
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSPC):
		t.Fatalf("%v: this scenario mounts a file system, and needs root on Linux or unprivileged user namespaces", err)
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	default:
		report.copy(t.Name(), string(out))
	}
	return false
}

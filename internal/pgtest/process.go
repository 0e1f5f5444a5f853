//go:build unix

package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"syscall"
)

// account is the user that runs the server's programs; PostgreSQL refuses root.
type account struct {
	credential *syscall.Credential // nil: ourselves
}

// serverAccount returns our own account or, for root, postgres or nobody.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return account{}, fmt.Errorf("pgtest: user %s: %w", name, err)
		}
		return account{&syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
	}
	return account{}, errors.New("pgtest: PostgreSQL does not run as root, and there is neither a user postgres nor nobody to run it as")
}

// own makes the account the owner of path.
func (a account) own(path string) error {
	if a.credential == nil {
		return nil
	}
	return os.Chown(path, int(a.credential.Uid), int(a.credential.Gid))
}

// run makes cmd run as the account.
func (a account) run(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: a.credential}
}

// process is a running postmaster.
type process struct {
	pid  int
	done chan struct{} // closed when it has ended
}

// startProcess starts cmd and waits for its end in the background.
func startProcess(cmd *exec.Cmd) (*process, error) {
	endWithParent(cmd.SysProcAttr)
	started := make(chan error)
	p := &process{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		// The kernel treats the thread that forked as the parent. That thread must live
		// as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // the server's log says how it ended
		}
	}()
	return p, <-started
}

// ended reports whether the postmaster has ended.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends the postmaster and its children as a crash would.
func (p *process) kill() {
	if p.ended() {
		return // another process may have this number now
	}
	// A stopped postmaster cannot fork and cannot react to the death of a child.
	_ = syscall.Kill(p.pid, syscall.SIGSTOP)
	pids := append([]int{p.pid}, children(p.pid)...)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.done
}

// interrupt ends the postmaster and its children in order: a fast shutdown.
func (p *process) interrupt(ctx context.Context) error {
	_ = syscall.Kill(p.pid, syscall.SIGINT)
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// quit ends the server at once. Its data is removed afterwards.
func (p *process) quit() {
	if p.ended() {
		return
	}
	_ = syscall.Kill(p.pid, syscall.SIGQUIT) // immediate shutdown
	<-p.done
}

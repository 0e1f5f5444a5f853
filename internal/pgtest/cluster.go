package pgtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"os/exec"
	"sync"
)

// kept is the cluster from which this test binary's servers are copied. It is a package
// variable for the same reason as [binary].
var kept cluster

// cluster is made by initdb once and copied for each server of a test binary. A copy
// takes a tenth of the time. [Main] turns this on, and removes the cluster at the end.
type cluster struct {
	parent   string // of its directory; "": nothing is kept
	password string // of the superuser; "": each server has its own

	mu   sync.Mutex
	made *local // never started; nil before the first server
}

// keep turns it on. It chooses the directory now, because a test may change the
// directory for temporary files.
func (c *cluster) keep() { c.parent, c.password = Options{}.parent(), rand.Text() }

// origin returns the cluster to copy, or nil if none is kept.
func (c *cluster) origin(ctx context.Context, bin string, user account) (*local, error) {
	if c.parent == "" {
		return nil, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made == nil {
		made := &local{bin: bin, user: user}
		err := made.makeData(c.parent)
		if err == nil {
			err = made.initdb(ctx, c.password)
		}
		if err != nil {
			_ = made.stop()
			return nil, err
		}
		c.made = made
	}
	return c.made, nil
}

// remove removes what is kept.
func (c *cluster) remove() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parent = ""
	if c.made == nil {
		return nil
	}
	return c.made.stop()
}

// copyData fills the data directory with a copy of the origin's.
func (l *local) copyData(ctx context.Context, origin *local) error {
	cmd := exec.CommandContext(ctx, "cp", "-R", origin.data()+"/.", l.data())
	l.user.run(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copying a cluster: %w\n%s", err, tail(out))
	}
	return nil
}

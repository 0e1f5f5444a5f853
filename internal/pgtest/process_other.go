//go:build unix && !linux

package pgtest

import "syscall"

// endWithParent does nothing. If our process is killed, its server ends itself after
// the next start has removed its directory.
func endWithParent(*syscall.SysProcAttr) {}

// children returns nothing: backends end themselves when the postmaster is gone.
func children(int) []int { return nil }

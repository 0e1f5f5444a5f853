//go:build unix && !linux

package pgtest

import "syscall"

// endWithParent does nothing: a server left behind by a killed process is ended
// by the sweep of the next start.
func endWithParent(*syscall.SysProcAttr) {}

// children returns nothing: backends end by themselves when they miss the postmaster.
func children(int) []int { return nil }

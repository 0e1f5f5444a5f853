package main

import (
	"os"
	"testing"
	"time"
)

func TestStatOfThisProcess(t *testing.T) {
	before, ok := readStat("/proc/self/stat")
	if !ok {
		t.Fatal("cannot be read")
	}
	if before.pid != os.Getpid() || before.parent != os.Getppid() {
		t.Errorf("got pid %d of parent %d, want %d of %d", before.pid, before.parent, os.Getpid(), os.Getppid())
	}
	for { // until it shows that we compute
		after, _ := readStat("/proc/self/stat")
		if after.own >= before.own+2*tick {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("CPU time does not rise")
		}
		for end := time.Now().Add(tick); time.Now().Before(end); {
			continue
		}
	}
}

package pgtest

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

// memoryDir returns the directory of a file system in memory. It returns "" unless so
// many bytes are free in the file system and in memory.
func memoryDir(free uint64) string {
	const (
		dir   = "/dev/shm"
		tmpfs = 0x01021994 // statfs(2)
	)
	var fs syscall.Statfs_t
	if syscall.Statfs(dir, &fs) != nil || fs.Type != tmpfs || fs.Bavail*uint64(fs.Bsize) < free {
		return ""
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(meminfo) {
		var kib uint64
		if n, _ := fmt.Sscanf(string(line), "MemAvailable: %d kB", &kib); n == 1 && kib<<10 >= free {
			return dir
		}
	}
	return ""
}

//go:build !linux

package pgtest

// memoryDir knows of no file system in memory.
func memoryDir(uint64) string { return "" }

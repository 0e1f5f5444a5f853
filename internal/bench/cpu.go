package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// tick is the unit of CPU times in /proc: USER_HZ, 100 on every Linux.
const tick = 10 * time.Millisecond

// serverCPU is the CPU time that the PostgreSQL server and all its processes have used so far. It is zero if /proc does not
// show them, for example if the server is in a container.
func (l *lab) serverCPU() time.Duration {
	processes, _ := filepath.Glob("/proc/[0-9]*/stat")
	var total time.Duration
	for _, path := range processes {
		s, ok := readStat(path)
		switch {
		case !ok:
		case s.pid == l.postmaster:
			total += s.own + s.reaped // its children that have ended
		case s.parent == l.postmaster:
			total += s.own
		}
	}
	return total
}

// findPostmaster finds the server's first process: the parent of our backend.
func findPostmaster(ctx context.Context, conn *pgx.Conn) int {
	var backend int
	if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`).Scan(&backend); err != nil {
		return 0
	}
	s, _ := readStat("/proc/" + strconv.Itoa(backend) + "/stat")
	command, _ := os.ReadFile("/proc/" + strconv.Itoa(s.parent) + "/comm")
	if strings.TrimSpace(string(command)) != "postgres" {
		return 0 // the number is of another namespace
	}
	return s.parent
}

// stat is the content of /proc/PID/stat.
type stat struct {
	pid, parent int
	own, reaped time.Duration
}

func readStat(path string) (stat, bool) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return stat{}, false // it ended meanwhile
	}
	// The name is in parentheses and may hold spaces.
	text := string(raw)
	end := strings.LastIndexByte(text, ')')
	if end < 0 {
		return stat{}, false
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 15 {
		return stat{}, false
	}
	number := func(i int) int { n, _ := strconv.Atoi(fields[i]); return n } // the kernel writes digits
	pid, _, _ := strings.Cut(text, " ")
	s := stat{
		parent: number(1),
		own:    time.Duration(number(11)+number(12)) * tick,
		reaped: time.Duration(number(13)+number(14)) * tick,
	}
	s.pid, _ = strconv.Atoi(pid)
	return s, true
}

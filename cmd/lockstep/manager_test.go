package main

import (
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// systemd is the socket on which a service manager listens.
type systemd struct {
	t    *testing.T
	conn *net.UnixConn
}

func (w *world) systemd(watchdog string) *systemd {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	w.env["NOTIFY_SOCKET"], w.env["WATCHDOG_USEC"] = path, watchdog
	return &systemd{w.t, conn}
}

// hears waits for a message that begins with want, and returns it.
func (s *systemd) hears(want string) string {
	s.t.Helper()
	if err := s.conn.SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
		s.t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	for {
		n, err := s.conn.Read(buffer)
		if err != nil {
			s.t.Fatalf("nothing that begins with %s: %v", want, err)
		}
		if text := string(buffer[:n]); strings.HasPrefix(text, want) {
			return text
		}
	}
}

func TestSystemdIsToldHowTheRelayIs(t *testing.T) {
	w := newWorld(t)
	s := w.systemd("400000")
	p := w.spawn(program(t))
	s.hears("READY=1")
	s.hears("WATCHDOG=1")
	s.hears("STATUS=relays events")
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if told := s.hears("RELOADING=1"); !strings.Contains(told, "MONOTONIC_USEC=") {
		t.Errorf("told %q", told)
	}
	s.hears("READY=1")
	s.hears("WATCHDOG=1")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.hears("STOPPING=1")
	p.exits(t, 0)
}

// A restart does not bring a database back, so the relay is started, alive and not ready.
func TestSystemdDoesNotRestartARelayThatWaitsForItsDatabase(t *testing.T) {
	w := newWorld(t)
	s := w.systemd("400000")
	w.env["DATABASE_URL"] = "postgres://nobody@" + freeAddress(t) + "/nothing"
	p := w.spawn(program(t))
	s.hears("READY=1")
	s.hears("STATUS=not ready: relay waits for its database: ")
	s.hears("WATCHDOG=1")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.hears("STOPPING=1")
	p.exits(t, 0)
}

package main

import (
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/waiting"
)

// Many more idle and slow clients than the process may have descriptors: a probe
// still gets its answer soon, and deliveries continue.
func TestIdleAndSlowClientsOfTheHealthPortDisturbNobody(t *testing.T) {
	w := newWorld(t)
	const descriptors = 100
	p := w.spawnAs("/bin/sh", "-c", fmt.Sprintf(`ulimit -n %d; exec "$0" run --log-format json`, descriptors), program(t))
	address := fmt.Sprint(p.says(t, "serving health and metrics")["address"])
	p.says(t, "relay running")
	dial := func() net.Conn {
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	for n := range 4 * descriptors {
		conn := dial()
		switch n % 3 {
		case 1: // begins a request
			_, _ = fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n")
		case 2: // sends many requests and reads no answer
			for range 20 {
				_, _ = fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
			}
		}
		if n%100 == 99 {
			waiting.For(t, waitTimeout, fmt.Sprintf("with %d clients a probe is answered", n+1), func() bool {
				return w.run("healthcheck", "--url", "http://"+address+"/readyz").code == 0
			})
			w.emit(fmt.Sprint("H-", n), `{"hearingId":"H"}`)
			w.eventually(nothingOpen)
		}
	}
	if n := ask[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome <> 'delivered'`); n > 0 {
		t.Errorf("%d attempts were not deliveries", n)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for line := range p.events {
		if strings.Contains(fmt.Sprint(line), "too many open files") {
			t.Errorf("said %v", line)
		}
	}
	p.exits(t, 0)
}

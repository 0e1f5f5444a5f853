//go:build linux

package chaos

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/waiting"
)

// PostgreSQL refuses connections for a while. A relay, idle or busy with a backlog, uses little CPU and
// logs little. It continues without help soon after the server is back.
func TestFault29DatabaseRefusesConnections(t *testing.T) {
	for name, busy := range map[string]bool{"idle": false, "busy": true} {
		t.Run(name, func(t *testing.T) {
			scenario(t, func(r *run) {
				w := newServer(r, sturdy())
				spec := exact()
				spec.Syncs[0].Notify, spec.Talks = true, true
				p := w.start(spec)
				w.registered()
				w.delivers(p)
				w.until("idle", `SELECT NOT EXISTS (SELECT FROM outbox.delivery)`)
				if busy {
					w.bulk(of(1000, 20_000))
					w.until("busy", `SELECT count(*) > 200 FROM outbox.delivery_log`)
				}
				outage := of(4*time.Second, time.Minute)
				if err := w.server.Shutdown(r.Context()); err != nil {
					r.Fatal(err)
				}
				r.figures.kills++
				p.struggles(w, anything)
				before := p.uses()
				waiting.StallFor(r.Context(), outage)
				used := p.uses().less(before)
				if err := w.server.Boot(r.Context()); err != nil {
					r.Fatal(err)
				}
				back := time.Now()
				r.Logf("%s, in %s of outage: %s", name, outage, used)
				minutes := outage.Minutes()
				// Each kind of call reports at once, then after 1, 2, 4 … seconds, then once a minute.
				if most := 30 + int(30*minutes); used.lines > most {
					r.Errorf("%d lines in %s, want at most %d\n%s", used.lines, outage, most, p.stderr)
				}
				if most := of(time.Second, 2*time.Second) + time.Duration(minutes*float64(2*time.Second)); used.cpu > most {
					r.Errorf("%s of CPU in %s, want at most %s", used.cpu, outage, most)
				}
				w.book("after the outage")
				w.until("it delivers again", `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'delivered' AND at > $1)`, back)
				r.Logf("delivers again %s after the server is back", time.Since(back).Round(10*time.Millisecond))
				w.drain(expected{})
				p.struggles(w, `msg="database call works again" to="claim deliveries" after=`)
				p.struggles(w, `msg="database call works again" to=listen after=`)
			})
		})
	}
}

// uses is the CPU time of a process and the size of its log so far.
type uses struct {
	cpu          time.Duration
	lines, bytes int
}

func (u uses) less(v uses) uses { return uses{u.cpu - v.cpu, u.lines - v.lines, u.bytes - v.bytes} }

func (u uses) String() string {
	return fmt.Sprintf("%d lines, %d bytes, %.2f s of CPU", u.lines, u.bytes, u.cpu.Seconds())
}

func (p *process) uses() uses {
	p.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	const ticks = 100 // a second; Linux has no other value in user space
	var user, system int
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		p.t.Fatal(err)
	}
	p.stderr.mu.Lock()
	defer p.stderr.mu.Unlock()
	return uses{time.Duration(user+system) * time.Second / ticks, p.stderr.lines, p.stderr.bytes}
}

package telemetry

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// maxClients is the largest number of connections of the server. It leaves descriptors
// for deliveries, even if the process may have only 256.
const maxClients = 50

// clients are the connections of a server. When there are too many, each new one closes
// an old one: the one that has been idle longest, or the slowest one if none is idle.
// So idle and slow clients cannot prevent a probe.
type clients struct {
	mu  sync.Mutex
	all map[net.Conn]client
}

type client struct {
	busy  bool // it has sent a request that is not answered yet
	since time.Time
}

// before reports whether c should be closed before d.
func (c client) before(d client) bool {
	if c.busy != d.busy {
		return !c.busy
	}
	return c.since.Before(d.since)
}

// note implements http.Server.ConnState.
func (c *clients) note(conn net.Conn, state http.ConnState) {
	if victim := c.update(conn, state); victim != nil {
		_ = victim.Close()
	}
}

func (c *clients) update(conn net.Conn, state http.ConnState) (victim net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state == http.StateClosed || state == http.StateHijacked {
		delete(c.all, conn)
		return nil
	}
	if c.all == nil {
		c.all = map[net.Conn]client{}
	}
	if _, known := c.all[conn]; !known && state != http.StateNew {
		return nil // closed to make space for a new one
	}
	c.all[conn] = client{state == http.StateActive, time.Now()}
	if state != http.StateNew || len(c.all) <= maxClients {
		return nil
	}
	for other, o := range c.all {
		if other != conn && (victim == nil || o.before(c.all[victim])) {
			victim = other
		}
	}
	delete(c.all, victim)
	return victim
}

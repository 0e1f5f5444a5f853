package exchange

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

// countingConn counts writes.
type countingConn struct {
	net.Conn
	writes *atomic.Int32
}

func (c countingConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func TestHeaderAndBodyGoOutInOneWrite(t *testing.T) {
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer receiver.Close()
	c := newClient(t, adapters.TLS{})
	var writes atomic.Int32
	dial := c.transport.DialContext
	c.transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return countingConn{conn, &writes}, err
	}
	send(t, c, receiver.URL)
	if n := writes.Load(); n != 1 {
		t.Errorf("one request went out in %d writes", n)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	const senders, each = 32, 100
	var opened atomic.Int32
	receiver := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"id":"7"}`))
	}))
	receiver.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	receiver.Start()
	defer receiver.Close()
	c := newClient(t, adapters.TLS{})
	var sending sync.WaitGroup
	for range senders {
		sending.Go(func() {
			for n := 0; n < each && !t.Failed(); n++ {
				send(t, c, receiver.URL)
			}
		})
	}
	sending.Wait()
	// While the first connections are opened, a request may use a connection that
	// another request is waiting for. The other one's connection is then kept for
	// later.
	if n := opened.Load(); n > 2*senders {
		t.Errorf("%d senders opened %d connections for %d requests", senders, n, senders*each)
	}
}

func send(t *testing.T, c *Client, to string) {
	t.Helper()
	target, err := url.Parse(to)
	if err != nil {
		t.Error(err)
		return
	}
	ans, err := c.Do(t.Context(), Request{Method: http.MethodPost, URL: target, Target: "court", Body: []byte(`{"a":1}`)})
	if err != nil || ans.Status != http.StatusOK {
		t.Errorf("answer %d, error %v", ans.Status, err)
	}
}

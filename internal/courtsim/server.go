package courtsim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// serverState is the listener of a court that was started.
type serverState struct {
	once   sync.Once
	server *http.Server
	done   chan struct{} // closed when Serve has returned
	err    error         // of Serve; read after done
}

// Start listens on addr (such as 127.0.0.1:0) and serves until [Court.Close].
// It returns the base URL. Call it at most once.
func (c *Court) Start(addr string) (string, error) {
	if c.srv.server != nil {
		return "", errors.New("courtsim: Start was called twice")
	}
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return "", fmt.Errorf("courtsim: %w; choose another address", err)
	}
	c.srv.server = &http.Server{
		Handler:           c,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          log.New(io.Discard, "", 0), // it would report only the scripted cuts
	}
	c.srv.done = make(chan struct{})
	go func() {
		defer close(c.srv.done)
		if err := c.srv.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			c.srv.err = err
		}
	}()
	return "http://" + ln.Addr().String(), nil
}

// Done returns a channel that is closed when a started court has stopped serving.
func (c *Court) Done() <-chan struct{} { return c.srv.done }

// Close ends every request that hangs, stops serving and returns the first error
// of the listener or of writing the ledger. If another server serves the court,
// such as an httptest.Server, call Close before closing that server. Later calls
// change nothing.
func (c *Court) Close() error {
	c.srv.once.Do(func() { close(c.closing) })
	var err error
	if c.srv.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if c.srv.server.Shutdown(ctx) != nil {
			err = c.srv.server.Close() // does not wait for callers that keep a request open
		}
		<-c.srv.done
		err = errors.Join(err, c.srv.err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(err, c.ledger.err)
}

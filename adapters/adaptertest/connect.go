package adaptertest

import (
	"net/http"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

// connecting: an [adapters.Connector] reaches its receiver without a request, and says so if
// it cannot.
func (s suite) connecting(t *testing.T) {
	requests := make(chan string, 100)
	serve := func(w http.ResponseWriter, r *http.Request) {
		requests <- r.Method
		s.Accept(w, r, read(t, r))
	}
	connect := func(t *testing.T, b *bench) error {
		c, ok := b.adapter.(adapters.Connector)
		if !ok {
			return nil
		}
		hosts := c.Hosts()
		if len(hosts) != 1 {
			t.Fatalf("%d hosts, want that of the receiver", len(hosts))
		}
		made, err := hosts[0].Connect(t.Context())
		checkError(t, err)
		if reached := err == nil; made.Reached != reached {
			t.Errorf("%s: reached is %t, and the error is %v", hosts[0].Address, made.Reached, err)
		}
		return err
	}
	t.Run("to a receiver", func(t *testing.T) {
		if err := connect(t, s.with(t, longTimeout, serve)); err != nil {
			t.Error(err)
		}
		if len(requests) > 0 {
			t.Errorf("it sent a request: %s", <-requests)
		}
	})
	t.Run("to nobody", func(t *testing.T) {
		b := s.at(t, "http://127.0.0.1:1", longTimeout)
		if _, ok := b.adapter.(adapters.Connector); ok && connect(t, b) == nil {
			t.Error("there is no error")
		}
	})
}

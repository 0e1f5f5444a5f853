package exchange

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// dropper answers the first request on every connection, keeps the connection
// alive, and drops it when the second request has been read.
func dropper(t *testing.T) (target *url.URL, requests *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	requests = new(atomic.Int32)
	serve := func(c net.Conn) {
		defer func() { _ = c.Close() }()
		r := bufio.NewReader(c)
		for n := 1; ; n++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			requests.Add(1)
			if n == 2 {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return &url.URL{Scheme: "http", Host: l.Addr().String(), Path: "/"}, requests
}

func TestDroppedKeepAliveConnectionIsNotAResend(t *testing.T) {
	for name, tc := range map[string]struct {
		method string
		body   []byte
	}{
		"POST with a body":      {http.MethodPost, []byte(`{"a":1}`)},
		"POST without a body":   {http.MethodPost, nil},
		"DELETE with a body":    {http.MethodDelete, []byte(`{"a":1}`)},
		"DELETE without a body": {http.MethodDelete, nil},
	} {
		t.Run(name, func(t *testing.T) {
			target, requests := dropper(t)
			c := newClient(t, adapters.TLS{})
			send := func() error {
				_, err := c.Do(t.Context(), Request{
					Method: tc.method, URL: target, Target: "court", Body: tc.body,
					Header: http.Header{"Idempotency-Key": {`"e-1"`}},
				})
				return err
			}
			if err := send(); err != nil {
				t.Fatalf("first request: %v", err)
			}
			if class := adapters.ClassOf(send()); class != adapters.ClassUnknown {
				t.Errorf("second request: class %s, want unknown", class)
			}
			if n := requests.Load(); n != 2 {
				t.Errorf("the receiver saw %d requests, want 2", n)
			}
		})
	}
}

// This shows that the test above proves something: without the exchange, net/http does
// send the request again.
func TestDroppedKeepAliveConnectionIsAResendWithNetHTTP(t *testing.T) {
	target, requests := dropper(t)
	transport := newTransport(nil)
	defer transport.CloseIdleConnections()
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, target.String(), bytes.NewReader([]byte(`{}`)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", `"e-1"`)
		res, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	if n := requests.Load(); n != 3 {
		t.Errorf("the receiver saw %d requests; net/http has changed, look at build again", n)
	}
}

func TestRequestWithoutABodyHasItsKeyAndLength(t *testing.T) {
	r := Request{
		Method: http.MethodPost, URL: &url.URL{Scheme: "http", Host: "court"},
		Header: http.Header{"Idempotency-Key": {`"e-1"`}},
	}
	var wire bytes.Buffer
	if err := r.build(context.Background()).Write(&wire); err != nil {
		t.Fatal(err)
	}
	got, err := http.ReadRequest(bufio.NewReader(&wire))
	if err != nil {
		t.Fatal(err)
	}
	if key := got.Header.Get("Idempotency-Key"); key != `"e-1"` || got.ContentLength != 0 || len(got.TransferEncoding) > 0 {
		t.Errorf("key %s, length %d, encoding %v", key, got.ContentLength, got.TransferEncoding)
	}
	if r.Header.Get("Idempotency-Key") == "" {
		t.Error("the caller's header was changed")
	}
}

func newClient(t *testing.T, o adapters.TLS) *Client {
	t.Helper()
	c, err := New(o, "", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

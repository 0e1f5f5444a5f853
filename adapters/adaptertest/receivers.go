package adaptertest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

const gigabyte = 1 << 30

// badReceivers: answers that are too long, too slow, or not HTTP.
func (s suite) badReceivers(t *testing.T) {
	t.Run("an answer of a gigabyte", func(t *testing.T) {
		var sent atomic.Int64
		stopped := make(chan struct{})
		b := s.with(t, longTimeout, func(w http.ResponseWriter, _ *http.Request) {
			defer close(stopped)
			w.WriteHeader(http.StatusInternalServerError)
			chunk := bytes.Repeat([]byte("x"), 1<<20)
			for sent.Load() < gigabyte {
				n, err := w.Write(chunk)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
		_, err := b.deliver(t.Context(), t, s.Message)
		b.wantClass(t, err, s.classes[500])
		<-stopped
		if n := sent.Load(); n > gigabyte/16 {
			t.Errorf("the receiver could send %d bytes before it was cut off", n)
		}
	})

	t.Run("a gzip bomb", func(t *testing.T) {
		bomb := gzipped(t, 256)
		b := s.with(t, longTimeout, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = w.Write(bomb)
		})
		grown := allocated(func() {
			_, err := b.deliver(t.Context(), t, s.Message)
			b.wantClass(t, err, s.classes[500])
		})
		if grown > 64<<20 {
			t.Errorf("%d bytes were allocated for a bomb of %d", grown, len(bomb))
		}
	})

	t.Run("a byte at a time", func(t *testing.T) {
		release := make(chan struct{})
		b := s.with(t, shortTimeout, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			drip(r.Context(), w, release)
		})
		defer close(release)
		_, err := b.deliver(t.Context(), t, s.Message)
		s.wantCut(t, b, err)
	})

	t.Run("the status line a byte at a time", func(t *testing.T) {
		release := make(chan struct{})
		b := s.with(t, shortTimeout, func(w http.ResponseWriter, r *http.Request) {
			conn := hijack(t, w)
			defer func() { _ = conn.Close() }()
			drip(r.Context(), conn, release)
		})
		defer close(release)
		_, err := b.deliver(t.Context(), t, s.Message)
		b.wantClass(t, err, adapters.ClassUnknown)
	})

	for name, raw := range map[string]string{
		"no HTTP":               canary + "\r\n\r\n",
		"a bad status":          "HTTP/1.1 " + canary + " OK\r\n\r\n",
		"a bad header":          "HTTP/1.1 200 OK\r\n" + canary + "\r\n\r\n",
		"a header without end":  "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat(canary, 40_000) + "\r\n\r\n",
		"nothing at all":        "",
		"half a header":         "HTTP/1.1 200 OK\r\nContent-Le",
		"two different lengths": "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) { s.raw(t, w, r, raw) })
			_, err := b.deliver(t.Context(), t, s.Message)
			b.wantClass(t, err, adapters.ClassUnknown)
		})
	}

	t.Run("a body cut short", func(t *testing.T) {
		b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) {
			s.raw(t, w, r, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"id\":")
		})
		_, err := b.deliver(t.Context(), t, s.Message)
		s.wantCut(t, b, err)
	})

	t.Run("a garbled error", func(t *testing.T) {
		b := s.with(t, longTimeout, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(http.StatusUnprocessableEntity)
			_, _ = io.WriteString(w, "this is not gzip")
		})
		_, err := b.deliver(t.Context(), t, s.Message)
		b.wantClass(t, err, s.classes[422])
	})

	t.Run("bytes that cannot be stored", func(t *testing.T) {
		for name, reason := range map[string]string{
			"NUL": "a\x00b", "invalid UTF-8": "a\xff\xfeb", "ANSI": "\x1b[31ma\x1b]0;x\x07b", "lines": "a\r\nlevel=error b",
			"length": strings.Repeat("all of the record ", 1000),
		} {
			b := s.with(t, longTimeout, func(w http.ResponseWriter, _ *http.Request) { s.Refuse(w, 422, reason) })
			_, err := b.deliver(t.Context(), t, s.Message) // checks the text
			b.wantClass(t, err, s.classes[422])
			if err != nil && strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%s: the error has lines of the receiver's: %q", name, err)
			}
		}
	})
}

// wantCut: a 2xx whose body was cut.
func (s suite) wantCut(t *testing.T, b *bench, err error) {
	t.Helper()
	if s.BodyDecides {
		b.wantClass(t, err, adapters.ClassUnknown)
		return
	}
	b.wantClass(t, err, adapters.ClassDelivered, adapters.ClassUnknown)
}

// noAnswer: timeouts, stops and missing receivers.
func (s suite) noAnswer(t *testing.T) {
	t.Run("the timeout names itself", func(t *testing.T) {
		release := make(chan struct{})
		b := s.with(t, shortTimeout, func(_ http.ResponseWriter, r *http.Request) { read(t, r); <-release })
		defer close(release)
		_, err := b.deliver(t.Context(), t, s.Message)
		b.wantClass(t, err, adapters.ClassUnknown)
		if err == nil || !strings.Contains(err.Error(), shortTimeout.String()) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the error does not name the timeout of %s: %v", shortTimeout, err)
		}
	})

	t.Run("stopped after it was sent", func(t *testing.T) {
		received, release := make(chan struct{}), make(chan struct{})
		b := s.with(t, longTimeout, func(_ http.ResponseWriter, r *http.Request) { read(t, r); close(received); <-release })
		defer close(release)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { <-received; cancel() }()
		_, err := b.deliver(ctx, t, s.Message)
		b.wantClass(t, err, adapters.ClassUnknown)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the error does not say that it was stopped: %v", err)
		}
	})

	t.Run("stopped before it was sent", func(t *testing.T) {
		var requests atomic.Int32
		b := s.with(t, longTimeout, func(http.ResponseWriter, *http.Request) { requests.Add(1) })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := b.deliver(ctx, t, s.Message)
		b.wantClass(t, err, adapters.ClassTransient)
		if n := requests.Load(); n != 0 {
			t.Errorf("the receiver saw %d requests", n)
		}
	})

	t.Run("nobody listens", func(t *testing.T) {
		checkLeaks(t)
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		_ = l.Close()
		b := s.at(t, "http://"+address, longTimeout)
		receipt, err := b.deliver(t.Context(), t, s.Message)
		b.wantClass(t, err, adapters.ClassTransient)
		if err == nil || receipt.Code != "" {
			t.Errorf("receipt %+v, error %v", receipt, err)
		}
	})

	t.Run("a kept-alive connection breaks", func(t *testing.T) {
		var requests atomic.Int32
		b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) {
			body := read(t, r)
			if requests.Add(1) == 2 {
				_ = hijack(t, w).Close()
				return
			}
			s.Accept(w, r, body)
		})
		for _, want := range []adapters.Class{adapters.ClassDelivered, adapters.ClassUnknown, adapters.ClassDelivered} {
			_, err := b.deliver(t.Context(), t, s.Message)
			b.wantClass(t, err, want)
		}
		if n := requests.Load(); n != 3 {
			t.Errorf("the receiver saw %d requests for 3 attempts", n)
		}
	})
}

// drip writes single bytes with pauses until the client closes the connection.
func drip(client context.Context, w io.Writer, release <-chan struct{}) {
	tick := time.NewTicker(shortTimeout / 10)
	defer tick.Stop()
	for range 10_000 {
		if _, err := io.WriteString(w, "H"); err != nil {
			return
		}
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		select {
		case <-tick.C:
		case <-client.Done():
			return
		case <-release:
			return
		}
	}
}

// raw reads the request and answers with exactly these bytes.
func (s suite) raw(t *testing.T, w http.ResponseWriter, r *http.Request, answer string) {
	t.Helper()
	read(t, r)
	conn := hijack(t, w)
	_, _ = io.WriteString(conn, answer)
	_ = conn.Close()
}

func hijack(t *testing.T, w http.ResponseWriter) net.Conn {
	t.Helper()
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Errorf("the receiver could not take over its connection: %v", err)
		panic(http.ErrAbortHandler)
	}
	return conn
}

// gzipped returns megabytes of zeros as gzip, one member (RFC 1952, 2.2) for each.
func gzipped(t *testing.T, megabytes int) []byte {
	t.Helper()
	var member bytes.Buffer
	z := gzip.NewWriter(&member)
	if _, err := z.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.Repeat(member.Bytes(), megabytes)
}

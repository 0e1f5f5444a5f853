package exchange

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
)

// brokenConn fails every write.
type brokenConn struct {
	net.Conn
	err error
}

func (c brokenConn) Write([]byte) (int, error) { return 1, c.err }

func TestWriteReportsNoErrorAfterAHangUp(t *testing.T) {
	write := func(err error) error { return &net.OpError{Op: "write", Err: os.NewSyscallError("write", err)} }
	other := errors.New("other")
	for name, tc := range map[string]struct {
		err  error
		n    int
		want error
	}{
		"broken pipe": {err: write(syscall.EPIPE), n: 4},
		"reset":       {err: write(syscall.ECONNRESET), n: 4},
		"closed here": {err: net.ErrClosed, n: 1, want: net.ErrClosed},
		"another":     {err: other, n: 1, want: other},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := readableConn{brokenConn{err: tc.err}}.Write([]byte("text"))
			if n != tc.n || !errors.Is(err, tc.want) {
				t.Errorf("got %d, %v, want %d, %v", n, err, tc.n, tc.want)
			}
		})
	}
}

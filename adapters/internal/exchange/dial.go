package exchange

import (
	"context"
	"errors"
	"net"
	"syscall"
)

// dial connects as net/http does by default. The connection outlives a failed write.
func dial(ctx context.Context, dialer *net.Dialer, network, address string) (net.Conn, error) {
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return readableConn{conn}, nil
}

// readableConn does not report a failed write if the other side has closed the
// connection. Its last bytes say more than "broken pipe": the TLS alert that refuses
// our certificate, or an early answer such as 413. Without such bytes, the next read
// fails in the same way.
type readableConn struct{ net.Conn }

func (c readableConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return len(p), nil
	}
	return n, err
}

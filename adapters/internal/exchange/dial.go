package exchange

import (
	"context"
	"errors"
	"net"
	"syscall"
)

// dial connects as net/http does by default, but for the patience of the connection.
func dial(ctx context.Context, dialer *net.Dialer, network, address string) (net.Conn, error) {
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return patientConn{conn}, nil
}

// patientConn does not fail a write because the other side has hung up: what it
// said before is still to be read, and tells more than "broken pipe". It may be
// the TLS alert that refuses our certificate, or an early answer such as 413.
// If there is nothing, the next read fails in the same way.
type patientConn struct{ net.Conn }

func (c patientConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return len(p), nil
	}
	return n, err
}

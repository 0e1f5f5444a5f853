package exchange

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"syscall"
)

// Dial connects to address, host and port, for a protocol that is not HTTP. With a config it
// makes the TLS handshake for the host's name too. what is that of [Failure]; the error is one
// of a message that was not sent.
func Dial(ctx context.Context, what, address string, config *tls.Config) (net.Conn, error) {
	p := new(progress)
	ctx = context.WithValue(ctx, progressKey{}, p)
	fail := func(err error) error { return Failure{What: what, Asked: p.asked.Load()}.Error(ctx, err) }
	conn, err := dial(ctx, new(net.Dialer), "tcp", address)
	if err != nil {
		return nil, fail(err)
	}
	if config == nil {
		return conn, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		_ = conn.Close() // nothing was sent
		return nil, fail(err)
	}
	config = config.Clone()
	config.ServerName = host
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // nothing was sent
		return nil, fail(err)
	}
	return secure, nil
}

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

package adapters

import (
	"context"
	"time"
)

// Connector is implemented by adapters that can connect to their receivers without sending a
// message, to find out what would prevent a delivery.
type Connector interface {
	// Hosts are the hosts that the operator wrote: those of the receiver and of token
	// endpoints, each once. Hosts that data names are not among them.
	Hosts() []Host

	// CertificateExpires says when the client certificate expires. It is zero if there is
	// none.
	CertificateExpires() time.Time
}

// Host is a host to which an adapter sends requests. Its functions are safe for concurrent
// use. Their errors show no secret.
type Host struct {
	Address string // host:port

	// Connect connects as a delivery would, through the same proxy and with the same trust,
	// and closes the connection. It sends no request to the host.
	Connect func(ctx context.Context) (Connection, error)

	// Token gets a token. It is nil unless this is a token endpoint.
	Token func(ctx context.Context) error
}

// Connection describes a connection that was made.
type Connection struct {
	Proxy   string    // host:port of the proxy; empty without one
	Reached bool      // the host itself was reached, not only the proxy, which connects for each request
	Expires time.Time // when the host's certificate, or one that it depends on, expires; zero without TLS
}

package exchange

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// ConnectTimeout bounds Connect.
const ConnectTimeout = 4 * time.Second

// Connect connects to host, with or without a port, and closes the connection. With https, it
// makes the TLS handshake too. It sends no request, except CONNECT to a proxy.
func (c *Client) Connect(ctx context.Context, scheme, host string) (adapters.Connection, error) {
	ctx, cancel := WithTimeout(ctx, ConnectTimeout)
	defer cancel()
	var made adapters.Connection
	t := c.transport.Clone()
	defer t.CloseIdleConnections()
	// A proxy with https is verified first, and the host last.
	t.TLSClientConfig.VerifyConnection = func(s tls.ConnectionState) error {
		made.Expires = Expires(s.VerifiedChains)
		return nil
	}
	p := new(progress)
	conn, err := t.NewClientConn(context.WithValue(ctx, progressKey{}, p), scheme, Address(scheme, host))
	proxy := p.proxy.Load()
	if proxy != nil {
		made.Proxy = *proxy
	}
	if err != nil {
		why := Describe(ctx, err)
		if refused, ok := errors.AsType[*proxyError](err); ok {
			return made, refused
		}
		if proxy != nil {
			why = fmt.Errorf("%w (proxy %s)", why, *proxy)
		}
		return made, why
	}
	made.Reached = proxy == nil || scheme == "https"
	_ = conn.Close() // nothing was sent
	if scheme != "https" {
		made.Expires = time.Time{} // of the proxy
	}
	return made, nil
}

// Address is the host of a URL with its port.
func Address(scheme, host string) string {
	u := url.URL{Host: host}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// Expires returns how long the host is trusted: the longest of its chains, each of which ends
// with the first of its certificates.
func Expires(chains [][]*x509.Certificate) (longest time.Time) {
	for _, chain := range chains {
		var first time.Time
		for _, cert := range chain {
			if first.IsZero() || cert.NotAfter.Before(first) {
				first = cert.NotAfter
			}
		}
		if first.After(longest) {
			longest = first
		}
	}
	return longest
}

// CertificateExpires says when the client certificate expires. It is zero if there is none.
func (c *Client) CertificateExpires() time.Time { return CertificateExpires(c.own) }

// CertificateExpires says when the client certificate of o expires. It is zero if there is
// none.
func CertificateExpires(o adapters.TLS) time.Time {
	if o.CertFile == "" {
		return time.Time{}
	}
	pair := keyPair{certFile: o.CertFile, keyFile: o.KeyFile}
	cert, err := pair.current()
	if err != nil || cert.Leaf == nil {
		return time.Time{}
	}
	return cert.Leaf.NotAfter
}

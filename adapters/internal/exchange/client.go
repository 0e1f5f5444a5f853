package exchange

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

const (
	// MaxAnswer is how much of an answer's body is read, after decompression.
	MaxAnswer = 64 << 10

	maxAnswerHeader = 64 << 10
	idleConnections = 128 // more than a relay has workers for one receiver
	idleTimeout     = 90 * time.Second
)

// Client makes exchanges with one receiver. It is safe for concurrent use.
type Client struct {
	transport *http.Transport
	timeout   time.Duration
	own       adapters.TLS // the files of the client certificate
}

// New returns a Client whose exchanges take at most timeout each, from the name lookup
// to the last byte of the answer. proxy is the URL of a proxy, or none. If it is empty,
// the proxy comes from the environment, as [http.ProxyFromEnvironment] describes. Errors
// name the wrong option.
//
// The client speaks HTTP/1.1, in which a request without an answer was either not sent
// or may have been processed, and is never sent again by the protocol.
func New(options adapters.TLS, proxy adapters.Secret, timeout time.Duration) (*Client, error) {
	config, tlsErr := TLSConfig(options)
	find, proxyErr := parseProxy(proxy.Reveal())
	if err := errors.Join(tlsErr, proxyErr); err != nil {
		return nil, err
	}
	config.NextProtos = []string{"http/1.1"}
	t := newTransport(config)
	t.Proxy = noting(find)
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return dial(ctx, new(net.Dialer), network, address)
	}
	return &Client{transport: t, timeout: timeout, own: options}, nil
}

func newTransport(config *tls.Config) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		OnProxyConnectResponse: connected,
		TLSClientConfig:        config,
		Protocols:              &protocols,
		MaxIdleConns:           idleConnections,
		MaxIdleConnsPerHost:    idleConnections,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
}

// Close closes the connections that are idle.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// TokenClient returns a client for the token endpoint, with the same trust and
// connections. It follows no redirects, because a redirected request would take the
// client's secret along. Only the context of each call bounds its time.
func (c *Client) TokenClient() *http.Client {
	return &http.Client{
		Transport:     tokenSpans{c.transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Request is one request to the receiver.
type Request struct {
	Method string
	URL    *url.URL    // not changed
	Target string      // the URL's name in errors: host and path of the template, nothing from data
	Header http.Header // not changed
	Body   []byte      // not changed

	// Longest is how much of the answer's body is read, for lists. Default: MaxAnswer.
	Longest int64

	// Spelled has, by canonical name, the names of headers that are sent in another
	// spelling. It has no name that net/http looks for.
	Spelled map[string]string

	// Payload has, as JSON, the values that a text from the answer must not repeat,
	// except Key, which every log names.
	Payload []byte
	Key     string

	// Proxy is the option proxy, whose password a text must not show.
	Proxy adapters.Secret

	// Secrets returns more values that it must not repeat, in addition to those of
	// Header and of the URL's query. It is called only for failures, and may be nil.
	Secrets func() []string
}

// Digest returns the SHA-256 of sent bytes in hexadecimal, as a receipt has it.
func Digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// Do sends r once. The error is nil if the receiver answered, with any status. Without
// an answer it is [adapters.Unknown] if the request was written, otherwise transient.
// If the receiver refused the client certificate, it is [adapters.Auth].
func (c *Client) Do(ctx context.Context, r Request) (Answer, error) {
	ctx, cancel := WithTimeout(ctx, c.timeout)
	defer cancel()
	ctx, span := startSpan(ctx, &r)
	answer, err := c.do(ctx, r)
	endSpan(span, answer, err)
	return answer, err
}

func (c *Client) do(ctx context.Context, r Request) (Answer, error) {
	p := new(progress)
	traced := context.WithValue(httptrace.WithClientTrace(ctx, p.trace()), progressKey{}, p)
	res, err := c.transport.RoundTrip(r.build(traced))
	if err != nil {
		return Answer{}, noAnswer(ctx, r, p, err)
	}
	defer func() { _ = res.Body.Close() }()
	return readAnswer(ctx, res, cmp.Or(r.Longest, MaxAnswer)), nil
}

// build makes a request that net/http cannot send a second time. When a kept-alive
// connection breaks, net/http repeats a request that looks safe by its method or its
// Idempotency-Key, if it has no body or can get the body again. The delivery log would
// not have such a repetition.
func (r Request) build(ctx context.Context) *http.Request {
	header := r.Header
	if header == nil {
		header = http.Header{}
	}
	req := (&http.Request{
		Method:        r.Method,
		URL:           r.URL,
		Host:          r.URL.Host,
		Header:        header,
		ContentLength: int64(len(r.Body)),
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
	}).WithContext(ctx)
	copied := false // most requests need no header of their own
	respell := func(canonical, spelled string) {
		values, ok := req.Header[canonical]
		if !ok {
			return
		}
		if !copied {
			req.Header, copied = maps.Clone(header), true
		}
		delete(req.Header, canonical)
		req.Header[spelled] = values
	}
	for canonical, spelled := range r.Spelled {
		respell(canonical, spelled)
	}
	if len(r.Body) > 0 {
		// net/http knows that this type does not block, and writes header and body at
		// once. GetBody stays nil, so net/http cannot get the body again.
		req.Body = io.NopCloser(bytes.NewReader(r.Body))
		return req
	}
	// Without a body only this header decides, and net/http looks for its canonical
	// name. On the wire, the case of a name does not matter (RFC 9110, 5.1).
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		respell(name, strings.ToLower(name))
	}
	return req
}

// progress is how far a request got.
type progress struct {
	conn    atomic.Pointer[net.Conn] // nil until there is one
	written atomic.Bool
	asked   atomic.Bool            // for a client certificate
	proxy   atomic.Pointer[string] // host of the proxy that the request goes through; nil without one
}

// progressKey is the key of a *progress in a context.
type progressKey struct{}

func (p *progress) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn:      func(info httptrace.GotConnInfo) { p.conn.Store(&info.Conn) },
		WroteHeaders: func() { p.written.Store(true) },
	}
}

// sent reports whether the receiver may have got the request: its headers were
// complete. After the end of ctx a connection is enough, because another goroutine may
// still be writing.
func (p *progress) sent(ctx context.Context) bool {
	return p.written.Load() || ctx.Err() != nil && p.conn.Load() != nil
}

// alert returns the TLS alert that ended the connection, or err if there is none.
// net/http reports the first failure, which may be a write after the alert was read. A
// broken tls.Conn returns its error again from Read.
func (p *progress) alert(err error) error {
	conn := p.conn.Load()
	if conn == nil {
		return err
	}
	if c, ok := (*conn).(*tls.Conn); ok && c.SetReadDeadline(time.Unix(1, 0)) != nil { // closed: Read cannot wait
		if _, alert := c.Read(make([]byte, 1)); alert != nil {
			if _, ok := refusedCertificate(alert, p.asked.Load()); ok {
				return alert
			}
		}
	}
	return err
}

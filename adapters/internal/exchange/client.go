package exchange

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
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
}

// New returns a Client whose exchanges take at most timeout each, from the name
// lookup to the last byte of the answer. Its errors name the TLS option at fault.
//
// It speaks HTTP/1.1: there a request that got no answer was either not sent or
// may have been acted upon, and nothing in between re-sends it. A proxy is taken
// from the environment, as [http.ProxyFromEnvironment] describes.
func New(options adapters.TLS, timeout time.Duration) (*Client, error) {
	config, err := tlsConfig(options)
	if err != nil {
		return nil, err
	}
	t := newTransport(config)
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return dial(ctx, new(net.Dialer), network, address)
	}
	return &Client{transport: t, timeout: timeout}, nil
}

func newTransport(config *tls.Config) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
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

// TokenClient returns a client for the token endpoint: the same trust and
// connections, and no redirects, because a redirected request would carry the
// client's secret along. Its time is bounded by the context of each call alone.
func (c *Client) TokenClient() *http.Client {
	return &http.Client{
		Transport:     c.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Request is one request to the receiver.
type Request struct {
	Method string
	URL    *url.URL    // not changed
	Target string      // what errors call the URL: its host and path template, nothing that came from data
	Header http.Header // not changed
	Body   []byte      // not changed

	// Payload holds, as JSON, the values that a text from the answer must not repeat.
	Payload []byte

	// Secrets returns more values that it must not repeat; those of Header and of the
	// URL's query are known. It is called for failures only, and may be nil.
	Secrets func() []string
}

// Preview tells what r asks of the receiver. What the configuration puts into
// the query is not shown.
func (r Request) Preview() adapters.Preview {
	u := *r.URL
	u.RawQuery = ""
	return adapters.Preview{Method: r.Method, URL: u.String(), ContentType: r.Header.Get("Content-Type"), Body: r.Body}
}

// Digest returns what a receipt says of bytes that were sent: their SHA-256 in
// hexadecimal.
func Digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// Do sends r once. The error is nil if the receiver answered, whatever it said;
// otherwise it is [adapters.Unknown] once the request was written, and transient
// before that. A client certificate that the receiver refused is [adapters.Auth].
func (c *Client) Do(ctx context.Context, r Request) (Answer, error) {
	ctx, cancel := WithTimeout(ctx, c.timeout)
	defer cancel()

	p := new(progress)
	traced := context.WithValue(httptrace.WithClientTrace(ctx, p.trace()), progressKey{}, p)
	res, err := c.transport.RoundTrip(r.build(traced))
	if err != nil {
		return Answer{}, noAnswer(ctx, r, p, err)
	}
	defer func() { _ = res.Body.Close() }()
	return readAnswer(ctx, res), nil
}

// build makes a request that net/http cannot send a second time. It would do so
// when a kept-alive connection breaks, for a request whose body can be had again
// or that has no body, if the method or an Idempotency-Key makes it look safe.
// Such a resend would be missing in the delivery log.
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
	if len(r.Body) > 0 {
		// net/http knows that this type does not block, and writes header and body
		// at once. GetBody stays nil, so it cannot have the body again.
		req.Body = io.NopCloser(bytes.NewReader(r.Body))
		return req
	}
	// Without a body only the header decides, which net/http looks up under its
	// canonical name. On the wire names have no case (RFC 9110, 5.1).
	req.Header = maps.Clone(header)
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if values, ok := req.Header[name]; ok {
			delete(req.Header, name)
			req.Header[strings.ToLower(name)] = values
		}
	}
	return req
}

// progress is how far a request got.
type progress struct {
	conn    atomic.Pointer[net.Conn] // nil until there is one
	written atomic.Bool
	asked   atomic.Bool // for a client certificate
}

// progressKey is the key of a *progress in a context.
type progressKey struct{}

func (p *progress) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GotConn:      func(info httptrace.GotConnInfo) { p.conn.Store(&info.Conn) },
		WroteHeaders: func() { p.written.Store(true) },
	}
}

// sent reports whether the receiver may have a request to act upon: its headers
// were complete. When ctx ended, the write may be under way in another
// goroutine, so a connection is enough.
func (p *progress) sent(ctx context.Context) bool {
	return p.written.Load() || ctx.Err() != nil && p.conn.Load() != nil
}

// alert returns the TLS alert that ended the connection, otherwise err. net/http
// reports what failed first, which may be the write after the alert was read; a
// broken tls.Conn returns its error again from Read.
func (p *progress) alert(err error) error {
	conn := p.conn.Load()
	if conn == nil {
		return err
	}
	if c, ok := (*conn).(*tls.Conn); ok && c.SetReadDeadline(time.Unix(1, 0)) != nil { // closed: Read cannot wait
		if _, alert := c.Read(make([]byte, 1)); alert != nil {
			if _, ok := p.refused(alert); ok {
				return alert
			}
		}
	}
	return err
}

package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// DefaultTimeout bounds an attempt if the configuration sets no timeout.
const DefaultTimeout = 15 * time.Second

// Limits of a configured timeout.
const (
	MinTimeout = 10 * time.Millisecond
	MaxTimeout = 10 * time.Minute
)

// Options are the options that all HTTP adapters share, and what one adapter adds to
// them. Errors use their names in the configuration.
type Options struct {
	Headers map[string]adapters.Secret
	Auth    adapters.Credentials
	TLS     adapters.TLS
	Proxy   adapters.Secret // URL, none, or empty for the environment's
	Timeout time.Duration   // default: DefaultTimeout
	Allow   adapters.Allow

	Hidden []adapters.Secret // values of bodies that no text may show

	Learned []string // names of learnt values that headers may have

	URLs        []*URL            // all URLs to which requests may go; nil ones are ignored
	Reserved    map[string]string // headers that the adapter itself sets, by canonical name, with the reason
	Credentials []string          // set options of the adapter, other than Auth, that may have credentials
}

// Endpoint sends requests as the options say. It is safe for concurrent use.
type Endpoint struct {
	client  *exchange.Client // for hosts that the operator wrote
	guarded *exchange.Client // for hosts that data names
	hosts   hosts
	headers []header
	spelled map[string]string // as in [exchange.Request]
	parse   func(field string, headers map[string]adapters.Secret) ([]header, error)
	auth    []authorizer
	urls    []*URL
	longest time.Duration
	proxy   func() adapters.Secret // a function, so that fmt does not see it
	hidden  func() []string        // a function, for the same reason
}

// New returns an Endpoint, which the caller closes. Its error reports everything that
// is wrong with o, each line with the option's name.
func New(o Options) (*Endpoint, error) {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	o.Auth = withDefaults(o.Auth)
	e := &Endpoint{parse: o.parseHeaders, urls: o.URLs, longest: o.Timeout, proxy: func() adapters.Secret { return o.Proxy }}
	e.hidden = func() (values []string) {
		for _, s := range o.Hidden {
			values = append(values, s.Reveal())
		}
		return values
	}
	var errs []error
	check := func(err error) { errs = append(errs, err) }
	if o.Timeout < MinTimeout || o.Timeout > MaxTimeout {
		check(fmt.Errorf("timeout: %s is not from %s to %s", o.Timeout, MinTimeout, MaxTimeout))
	}
	var err error
	e.headers, err = o.parseHeaders("", o.Headers)
	check(err)
	e.spelled = spelling(slices.Concat([]string{"SOAPAction"}, slices.Collect(maps.Keys(o.Headers)), authNames(o.Auth)))
	networks, err := parseNetworks(o.Allow.Networks)
	check(err)
	e.hosts, err = parseHosts(o)
	check(err)
	e.client, err = exchange.New(o.TLS, o.Proxy, o.Timeout)
	check(err)
	e.longest += tokenTime(o.Auth)
	if e.client != nil {
		e.guarded = e.client.Guarded(networks)
	}
	e.auth, err = parseAuth(o.Auth, o.Reserved, e.client)
	check(err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return e, nil
}

// AttemptTimeout is the longest time that Deliver can take.
func (e *Endpoint) AttemptTimeout() time.Duration { return e.longest }

// Destination returns the function of [adapters.Addresser] for an adapter whose
// requests go to one of urls. find returns the URL of a message.
func (e *Endpoint) Destination(urls []*URL, find func(adapters.Message) *URL) func(adapters.Message) string {
	if !slices.ContainsFunc(urls, func(u *URL) bool { return u != nil && u.FromData() }) {
		return nil
	}
	return func(msg adapters.Message) string { return find(msg).Destination(msg, e.hosts) }
}

// Fields are the mapped fields that the configured headers use.
func (e *Endpoint) Fields() []string {
	var names []string
	for _, h := range e.headers {
		names = append(names, h.value.Fields()...)
	}
	return names
}

// Close closes idle connections. Deliveries in flight are not disturbed.
func (e *Endpoint) Close() error { return errors.Join(e.client.Close(), e.guarded.Close()) }

// Request builds the request of one attempt, without authorization. It keeps and
// changes h, which must not be nil. Configured headers replace those in h. An error is
// permanent: this message cannot be sent.
func (e *Endpoint) Request(method string, to *URL, v *placeholder.Values, h http.Header, body []byte) (exchange.Request, error) {
	r, err := e.request(method, to, v, h, body)
	if err != nil {
		return r, adapters.Redacted(adapters.Permanent(fmt.Errorf("%s %s: nothing was sent: %w", method, to.Target(), err)))
	}
	return r, nil
}

func (e *Endpoint) request(method string, to *URL, v *placeholder.Values, h http.Header, body []byte) (exchange.Request, error) {
	u, err := to.expand(v, e.hosts)
	if err != nil {
		return exchange.Request{}, err
	}
	if err := e.header(v, h); err != nil {
		return exchange.Request{}, err
	}
	return exchange.Request{
		Method:  method,
		URL:     u,
		Target:  to.Target(),
		Header:  h,
		Spelled: e.spelled,
		Body:    body,
		Payload: v.Msg.Body,
		Key:     v.Msg.Key,
		Proxy:   e.proxy(),
		Secrets: e.hidden,
	}, nil
}

// Preview shows r as it would be sent. Credentials are masked: those of [Options.Auth], and
// those in headers and parameters whose names say so.
func (e *Endpoint) Preview(r exchange.Request) adapters.Preview {
	r.Header = r.Header.Clone()
	for name := range r.Header {
		if adapters.Sensitive(name) && name != "Idempotency-Key" {
			r.Header.Set(name, masked)
		}
	}
	for _, a := range e.auth {
		a.show(r)
	}
	p := adapters.Preview{Method: r.Method, URL: adapters.MaskQuery(r.URL.String()), Headers: map[string]string{}, ContentType: r.Header.Get("Content-Type"), Body: r.Body}
	for name, values := range r.Header {
		p.Headers[cmp.Or(e.spelled[name], name)] = strings.Join(values, ", ")
	}
	return p
}

// authorize sets all credentials of r. Two tokens together have the time of one, so that
// an attempt is not longer with them. The receiver does not say which of them it
// refuses, so refused drops all tokens.
func (e *Endpoint) authorize(ctx context.Context, r exchange.Request) (refused func(), err error) {
	if len(e.auth) > 1 {
		var cancel context.CancelFunc
		ctx, cancel = exchange.WithTimeout(ctx, tokenTimeout)
		defer cancel()
	}
	var drop []func()
	for _, a := range e.auth {
		one, err := a.authorize(ctx, r)
		if err != nil {
			return nil, err
		}
		drop = append(drop, one)
	}
	return func() {
		for _, one := range drop {
			one()
		}
	}, nil
}

// Deliver authorizes r and sends it once. judge turns the answer into a result. The
// receipt gets the digest of the body. A refused token is dropped, so that the next
// attempt fetches another.
func (e *Endpoint) Deliver(ctx context.Context, to *URL, r exchange.Request, judge func(exchange.Answer) (adapters.Receipt, error)) (adapters.Receipt, error) {
	refused, err := e.authorize(ctx, r)
	if err != nil {
		return adapters.Receipt{}, adapters.Redacted(adapters.Common(err))
	}
	client := e.client
	if to.FromData() {
		client = e.guarded
	}
	ans, err := client.Do(ctx, r)
	if err != nil {
		return adapters.Receipt{SHA256: exchange.Digest(r.Body)}, adapters.Redacted(err)
	}
	receipt, err := judge(ans)
	receipt.SHA256 = exchange.Digest(r.Body)
	if adapters.ClassOf(err) == adapters.ClassAuth {
		refused()
	}
	return receipt, adapters.Redacted(err)
}

package soap

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

// Adapter delivers messages to one SOAP service. It is safe for concurrent use.
type Adapter struct {
	endpoint   *endpoint.Endpoint
	operations route.Table[operation]
	known      *scope
	token      func() *token // of one attempt; nil without security
	externalID path
	idAt       string // Config.ExternalID, for messages
	require    string
	rules      []rule
	outcomes   exchange.Outcomes
	configured map[int]string // of outcomes
}

var (
	_ adapters.Adapter   = (*Adapter)(nil)
	_ adapters.Previewer = (*Adapter)(nil)
	_ adapters.FieldUser = (*Adapter)(nil)
	_ adapters.Addresser = (*Adapter)(nil)
	_ adapters.Connector = (*Adapter)(nil)
	_ adapters.Shaper    = (*Adapter)(nil)
)

// New returns an adapter for c. Its error reports everything that is wrong with
// c, each line with the field's name, and no secret.
func New(c Config) (*Adapter, error) { return newAdapter(c, newNonce, time.Now) }

func newAdapter(c Config, nonce func() []byte, now func() time.Time) (*Adapter, error) {
	c = c.withDefaults()
	a := &Adapter{known: declare(c.Namespaces, c.Version), configured: c.Outcomes, idAt: c.ExternalID, require: c.Require}
	var errs []error
	check := func(err error) { errs = append(errs, err) }
	if c.Version != Version11 && c.Version != Version12 {
		check(fmt.Errorf("version: %q is not one of %s, %s", c.Version, Version11, Version12))
	}
	errs = append(errs, checkNamespaces(c.Namespaces)...)
	var err error
	a.operations, err = parseOperations(c, a.known)
	check(err)
	check(c.Security.check())
	if c.Security.Kind != NoSecurity {
		a.token = func() *token { return newToken(c.Security, nonce(), now()) }
	}
	if a.externalID, err = parsePath(c.ExternalID, a.known); err != nil {
		check(fmt.Errorf("external_id: %w", err))
	}
	check(exchange.CheckRequire(c.Require, c.ExternalID))
	a.rules, err = parseAnswers(c.Answers, a.known)
	check(err)
	a.outcomes, err = exchange.ParseOutcomes(nil, c.Outcomes)
	check(err)
	a.endpoint, err = endpoint.New(c.options(a.urls()))
	check(err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return a, nil
}

func (c Config) options(urls []*endpoint.URL) endpoint.Options {
	o := endpoint.Options{
		Headers: c.Headers, Auth: c.Auth, TLS: c.TLS, Proxy: c.Proxy, Timeout: c.Timeout, Allow: c.Allow, URLs: urls,
		Reserved: map[string]string{"Content-Type": "comes from version and action", "Soapaction": "comes from action"},
	}
	if c.Security.Kind != NoSecurity {
		o.Credentials = append(o.Credentials, "security")
	}
	if c.Header != "" { // as for headers: some are credentials
		o.Credentials = append(o.Credentials, "header")
	}
	return o
}

func (a *Adapter) urls() []*endpoint.URL {
	var urls []*endpoint.URL
	for _, o := range a.operations.All() {
		urls = append(urls, o.url)
	}
	return urls
}

// AttemptTimeout is the longest time that Deliver can take.
func (a *Adapter) AttemptTimeout() time.Duration { return a.endpoint.AttemptTimeout() }

// Hosts implements [adapters.Connector].
func (a *Adapter) Hosts() []adapters.Host { return a.endpoint.Hosts() }

// CertificateExpires implements [adapters.Connector].
func (a *Adapter) CertificateExpires() time.Time { return a.endpoint.CertificateExpires() }

// Close closes idle connections. Deliveries in flight are not disturbed.
func (a *Adapter) Close() error { return a.endpoint.Close() }

// Shape implements [adapters.Shaper]. Header blocks do not count.
func (a *Adapter) Shape(msg adapters.Message) string { return a.operations.Find(msg.Type).shape }

// Destination implements [adapters.Addresser].
func (a *Adapter) Destination() func(adapters.Message) string {
	return a.endpoint.Destination(a.urls(), func(msg adapters.Message) *endpoint.URL { return a.operations.Find(msg.Type).url })
}

// Fields implements [adapters.FieldUser].
func (a *Adapter) Fields() []string {
	names := a.endpoint.Fields()
	for _, o := range a.operations.All() {
		names = append(names, o.url.Fields()...)
		for _, block := range o.header {
			names = block.fields(names)
		}
		if o.body != nil {
			names = o.body.fields(names)
		}
	}
	return names
}

// Deliver implements [adapters.Adapter].
//
// An answer is first searched for a fault, with any HTTP status. A 2xx without a SOAP
// message is [adapters.Unknown], because the service itself did not answer.
func (a *Adapter) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	o := a.operations.Find(msg.Type)
	t := a.attempt()
	req, err := a.request(o, msg, t)
	if err != nil {
		return adapters.Receipt{}, err
	}
	req.Secrets = func() []string { return append(t.secrets(), o.literals()...) }
	return a.endpoint.Deliver(ctx, o.url, req, func(ans exchange.Answer) (adapters.Receipt, error) {
		return a.judge(req, ans, msg)
	})
}

// Preview implements [adapters.Previewer].
func (a *Adapter) Preview(msg adapters.Message) (adapters.Preview, error) {
	t := a.attempt()
	t.mask()
	req, err := a.request(a.operations.Find(msg.Type), msg, t)
	if err != nil {
		return adapters.Preview{Method: http.MethodPost}, err
	}
	return a.endpoint.Preview(req), nil
}

// attempt returns the token of a new attempt, nil without security.
func (a *Adapter) attempt() *token {
	if a.token == nil {
		return nil
	}
	return a.token()
}

// request builds the request of one attempt, without authorization.
func (a *Adapter) request(o operation, msg adapters.Message, t *token) (exchange.Request, error) {
	if o.body == nil {
		return exchange.Request{}, adapters.Redacted(adapters.Permanent(fmt.Errorf("POST %s: nothing was sent: no body is configured for events of this type", o.url.Target())))
	}
	header := http.Header{
		"Accept":       {"text/xml, application/soap+xml"},
		"Content-Type": {o.contentType()},
	}
	if o.version != Version12 {
		header.Set("SOAPAction", `"`+o.action+`"`)
	}
	v := newValues(msg)
	req, err := a.endpoint.Request(http.MethodPost, o.url, v.message, header, nil)
	if err != nil {
		return req, err
	}
	if req.Body, err = o.write(v, req.URL, t); err != nil {
		return req, adapters.Redacted(adapters.Permanent(fmt.Errorf("POST %s: nothing was sent: %w", o.url.Target(), err)))
	}
	return req, nil
}

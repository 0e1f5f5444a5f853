package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

// statuses are the classes of Standard Webhooks 1.0.0 ("Delivery success and failure")
// that differ from those of other adapters. A receiver that is gone wants no more
// messages, and a gateway that fails is under load.
var statuses = map[int]adapters.Class{
	http.StatusGone:           adapters.ClassAuth,
	http.StatusBadGateway:     adapters.ClassThrottled,
	http.StatusGatewayTimeout: adapters.ClassThrottled,
}

// Adapter delivers messages to one webhook. It is safe for concurrent use.
type Adapter struct {
	endpoint *endpoint.Endpoint
	url      *endpoint.URL
	payload  Payload
	source   string
	types    route.Table[string]
	signers  []signer
	secrets  func() []string // values that no text may show; a function, so that fmt does not see them
	rules    exchange.Rules
	now      func() time.Time
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
func New(c Config) (*Adapter, error) {
	c = c.withDefaults()
	a := &Adapter{
		payload: c.Payload,
		source:  c.Source,
		types:   route.New(c.Types, ""),
		secrets: func() []string { return texts(c.Secrets) },
		now:     time.Now,
	}
	var errs []error
	check := func(err error) { errs = append(errs, err) }
	var err error
	a.url, err = parseURL(c.URL)
	check(err)
	a.signers, err = parseSecrets(c.Secrets)
	check(err)
	check(c.check())
	a.rules, err = exchange.ParseRules(exchange.RuleOptions{Protocol: statuses, Outcomes: c.Outcomes, Answers: c.Answers, Reason: c.Reason})
	check(err)
	a.endpoint, err = endpoint.New(endpoint.Options{
		Headers: c.Headers, Auth: c.Auth, TLS: c.TLS, Proxy: c.Proxy, Timeout: c.Timeout, Allow: c.Allow,
		URLs: []*endpoint.URL{a.url}, Reserved: c.Payload.reserved(),
	})
	check(err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return a, nil
}

// texts are the secrets with and without their prefix.
func texts(secrets []adapters.Secret) []string {
	var all []string
	for _, s := range secrets {
		_, encoded, _ := strings.Cut(s.Reveal(), "_")
		all = append(all, s.Reveal(), encoded)
	}
	return all
}

// AttemptTimeout is the longest time that Deliver can take.
func (a *Adapter) AttemptTimeout() time.Duration { return a.endpoint.AttemptTimeout() }

// Hosts implements [adapters.Connector].
func (a *Adapter) Hosts() []adapters.Host { return a.endpoint.Hosts() }

// CertificateExpires implements [adapters.Connector].
func (a *Adapter) CertificateExpires() time.Time { return a.endpoint.CertificateExpires() }

// Close closes idle connections. Deliveries in flight are not disturbed.
func (a *Adapter) Close() error { return a.endpoint.Close() }

// Fields implements [adapters.FieldUser].
func (a *Adapter) Fields() []string { return append(a.endpoint.Fields(), a.url.Fields()...) }

// Shape implements [adapters.Shaper].
func (a *Adapter) Shape(msg adapters.Message) string {
	name := a.types.Find(msg.Type)
	if a.payload == Standard && name == "" {
		return ""
	}
	return route.Shape(string(a.payload), name, a.source)
}

// Destination implements [adapters.Addresser].
func (a *Adapter) Destination() func(adapters.Message) string {
	return a.endpoint.Destination([]*endpoint.URL{a.url}, func(adapters.Message) *endpoint.URL { return a.url })
}

// Deliver implements [adapters.Adapter]. [adapters.Receipt.Ref] is never set.
func (a *Adapter) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	req, err := a.request(msg)
	if err != nil {
		return adapters.Receipt{}, err
	}
	return a.endpoint.Deliver(ctx, a.url, req, func(ans exchange.Answer) (adapters.Receipt, error) {
		return a.rules.Judge(req, ans)
	})
}

// Preview implements [adapters.Previewer]. The signatures are masked.
func (a *Adapter) Preview(msg adapters.Message) (adapters.Preview, error) {
	req, err := a.request(msg)
	if err != nil {
		return adapters.Preview{Method: http.MethodPost}, err
	}
	return a.endpoint.Preview(req), nil
}

// request builds the request of one attempt, without authorization.
func (a *Adapter) request(msg adapters.Message) (exchange.Request, error) {
	if err := checkID(msg.IdempotencyKey); err != nil {
		return exchange.Request{}, adapters.Redacted(adapters.Permanent(fmt.Errorf("POST %s: nothing was sent: header webhook-id: the key %w", a.url.Target(), err)))
	}
	eventType := a.types.Find(msg.Type)
	if eventType == "" {
		eventType = msg.Type
	}
	body, h := a.payload.render(msg, eventType, a.source)
	req, err := a.endpoint.Request(http.MethodPost, a.url, &placeholder.Values{Msg: msg}, h, body)
	if err != nil {
		return req, err
	}
	at := a.now()
	signed := content(msg.IdempotencyKey, at, body)
	signatures := make([]string, len(a.signers))
	for i, sign := range a.signers {
		signatures[i] = sign(signed)
	}
	req.Header.Set("Webhook-Id", msg.IdempotencyKey)
	req.Header.Set("Webhook-Timestamp", timestamp(at))
	req.Header.Set("Webhook-Signature", strings.Join(signatures, " "))
	req.Secrets = func() []string { return append(a.secrets(), signatures...) }
	return req, nil
}

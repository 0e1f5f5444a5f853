package rest

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

// Adapter delivers messages to one REST API. It is safe for concurrent use.
type Adapter struct {
	endpoint   *endpoint.Endpoint
	routes     route.Table[target]
	rules      exchange.Rules
	externalID exchange.Pointer
	idAt       string // ExternalID, for messages
	ifMatch    bool
}

var (
	_ adapters.Adapter   = (*Adapter)(nil)
	_ adapters.Previewer = (*Adapter)(nil)
	_ adapters.FieldUser = (*Adapter)(nil)
	_ adapters.Addresser = (*Adapter)(nil)
)

// New returns an adapter for c. Its error reports everything that is wrong with
// c, each line with the field's name, and no secret.
func New(c Config) (*Adapter, error) {
	c = c.withDefaults()
	a := &Adapter{ifMatch: c.IfMatch, idAt: c.ExternalID}
	var errs []error
	check := func(err error) { errs = append(errs, err) }
	var err error
	a.routes, err = parseRoutes(c)
	check(err)
	a.rules, err = exchange.ParseRules(exchange.RuleOptions{Outcomes: c.Outcomes, Answers: c.Answers, Reason: c.Reason, Require: c.Require})
	check(err)
	if a.externalID, err = exchange.ParsePointer(c.ExternalID); err != nil {
		check(fmt.Errorf("external_id: %w", err))
	}
	check(exchange.CheckRequire(c.Require, c.ExternalID))
	a.endpoint, err = endpoint.New(endpoint.Options{
		Headers: c.Headers, Auth: c.Auth, TLS: c.TLS, Proxy: c.Proxy, Timeout: c.Timeout, Allow: c.Allow,
		URLs: a.urls(), Reserved: map[string]string{"If-Match": "is set by if_match"},
	})
	check(err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return a, nil
}

// AttemptTimeout is the longest time that Deliver can take.
func (a *Adapter) AttemptTimeout() time.Duration { return a.endpoint.AttemptTimeout() }

// Close closes idle connections. Deliveries in flight are not disturbed.
func (a *Adapter) Close() error { return a.endpoint.Close() }

// Fields implements [adapters.FieldUser].
func (a *Adapter) Fields() []string {
	names := a.endpoint.Fields()
	for _, u := range a.urls() {
		names = append(names, u.Fields()...)
	}
	return names
}

// Destination implements [adapters.Addresser].
func (a *Adapter) Destination() func(adapters.Message) string {
	return a.endpoint.Destination(a.urls(), func(msg adapters.Message) *endpoint.URL { return a.routes.Find(msg.Type).url })
}

func (a *Adapter) urls() []*endpoint.URL {
	var urls []*endpoint.URL
	for _, to := range a.routes.All() {
		urls = append(urls, to.url)
	}
	return urls
}

// Deliver implements [adapters.Adapter].
//
// The status and the body of the answer decide: see [Config.Answers]. If the receiver's
// id is missing where [Config.Require] needs it, the result is [adapters.Unknown], and
// the same request is sent again to get the id.
func (a *Adapter) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	to := a.routes.Find(msg.Type)
	req, err := a.request(to, msg)
	if err != nil {
		return adapters.Receipt{}, err
	}
	return a.endpoint.Deliver(ctx, to.url, req, func(ans exchange.Answer) (adapters.Receipt, error) {
		receipt, err := a.rules.Judge(req, ans)
		if err != nil {
			return receipt, err
		}
		id, found := a.id(ans)
		if a.externalID != nil && !found {
			if receipt, err = a.rules.WithoutID(req, ans, receipt, msg.Ref.ExternalID != "", a.idAt); err != nil {
				return receipt, err
			}
		}
		receipt.Ref = a.ref(msg, ans, id)
		return receipt, nil
	})
}

// Preview implements [adapters.Previewer].
func (a *Adapter) Preview(msg adapters.Message) (adapters.Preview, error) {
	to := a.routes.Find(msg.Type)
	req, err := a.request(to, msg)
	if err != nil {
		return adapters.Preview{Method: to.method}, err
	}
	return a.endpoint.Preview(req), nil
}

// request builds the request of one attempt, without authorization.
func (a *Adapter) request(to target, msg adapters.Message) (exchange.Request, error) {
	req, err := a.endpoint.Request(to.method, to.url, &placeholder.Values{Msg: msg}, http.Header{
		"Accept":       {"application/json"},
		"Content-Type": {"application/json"},
	}, msg.Body)
	if err != nil {
		return req, err
	}
	if tag := msg.Ref.ETag; a.ifMatch && validETag(tag) && !strings.HasPrefix(tag, "W/") { // a weak tag never matches
		req.Header.Set("If-Match", tag)
	}
	return req, nil
}

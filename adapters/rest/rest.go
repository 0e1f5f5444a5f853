package rest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// Adapter delivers messages to one REST API. It is safe for concurrent use.
type Adapter struct {
	client     *exchange.Client
	router     router
	headers    []header
	authorize  authorizer
	outcomes   exchange.Outcomes
	externalID pointer
	ifMatch    bool
	longest    time.Duration
}

var _ adapters.Adapter = (*Adapter)(nil)

// New returns an adapter for c. Its error reports everything that is wrong with
// c, each line with the field's name, and no secret.
func New(c Config) (*Adapter, error) {
	c = c.withDefaults()
	a := &Adapter{ifMatch: c.IfMatch, longest: c.Timeout}
	var errs []error
	check := func(err error) { errs = append(errs, err) }
	if c.Timeout < MinTimeout || c.Timeout > MaxTimeout {
		check(fmt.Errorf("timeout: %s is not from %s to %s", c.Timeout, MinTimeout, MaxTimeout))
	}
	var err error
	a.router, err = parseRoutes(c)
	check(err)
	a.headers, err = parseHeaders(c)
	check(err)
	a.outcomes, err = exchange.ParseOutcomes(c.Outcomes)
	check(err)
	if a.externalID, err = parsePointer(c.ExternalID); err != nil {
		check(fmt.Errorf("external_id: %w", err))
	}
	a.client, err = exchange.New(c.TLS, c.Timeout)
	check(err)
	if c.Auth.Kind == AuthClientCredentials {
		a.longest += tokenTimeout
	}
	if a.client != nil {
		a.authorize, err = parseAuth(c.Auth, a.client)
		check(err)
	} else {
		check(c.Auth.check())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return a, nil
}

// AttemptTimeout is the longest time that Deliver can take.
func (a *Adapter) AttemptTimeout() time.Duration { return a.longest }

// Close closes idle connections. Deliveries under way are not disturbed.
func (a *Adapter) Close() error { return a.client.Close() }

// Deliver implements [adapters.Adapter].
//
// A 2xx counts as delivered whatever its body holds: the receiver said so. Only
// when the body was cut on its way, and held the id that the next event of the
// key may need, the result is [adapters.Unknown], so that the same request is
// sent again and the id is learnt.
func (a *Adapter) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	to := a.router.find(msg.Type)
	req, err := a.request(to, msg)
	if err != nil {
		return adapters.Receipt{}, adapters.Permanent(fmt.Errorf("%s %s: nothing was sent: %w", to.method, to.url.target, err))
	}
	refused, err := a.authorize(ctx, req.Header)
	if err != nil {
		return adapters.Receipt{}, err
	}
	ans, err := a.client.Do(ctx, req)
	if err != nil {
		return adapters.Receipt{}, err
	}
	receipt, err := a.outcomes.Judge(req, ans)
	switch {
	case adapters.ClassOf(err) == adapters.ClassAuth:
		refused()
		return receipt, err
	case err != nil:
		return receipt, err
	case ans.Cut != nil && a.externalID != nil && msg.Ref.ExternalID == "":
		return receipt, adapters.Unknown(fmt.Errorf("%s %s: answered %s, but the id that is expected in its body was cut off: %w",
			req.Method, req.Target, ans.Code(), ans.Cut))
	}
	receipt.Ref = a.ref(msg, ans)
	return receipt, nil
}

// Preview tells what Deliver would ask of the receiver for msg, without asking
// it. What the configuration puts into the URL's query is not shown.
func (a *Adapter) Preview(msg adapters.Message) (method, url string, err error) {
	to := a.router.find(msg.Type)
	req, err := a.request(to, msg)
	if err != nil {
		return to.method, "", fmt.Errorf("%s %s: %w", to.method, to.url.target, err)
	}
	u := *req.URL
	u.RawQuery = ""
	return req.Method, u.String(), nil
}

// request builds the request of one attempt, but for authorization.
func (a *Adapter) request(to route, msg adapters.Message) (exchange.Request, error) {
	v := &values{msg: msg}
	u, err := to.url.expand(v)
	if err != nil {
		return exchange.Request{}, err
	}
	h, err := a.header(v)
	if err != nil {
		return exchange.Request{}, err
	}
	return exchange.Request{
		Method: to.method,
		URL:    u,
		Target: to.url.target,
		Header: h,
		Body:   msg.Body,
		Hide:   func() []string { return exchange.Strings(msg.Body) },
	}, nil
}

package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
	"github.com/hms-mkt/lockstep/adapters/internal/route"
)

// Adapter delivers messages to one REST API. It is safe for concurrent use.
type Adapter struct {
	endpoint *endpoint.Endpoint
	routes   route.Table[choice]
	targets  []*target // those of routes, each once
	learned  []string  // names of learnt values
	warnings []string
	list     *list // nil: the records cannot be listed
}

var (
	_ adapters.Adapter   = (*Adapter)(nil)
	_ adapters.Previewer = (*Adapter)(nil)
	_ adapters.Router    = (*Adapter)(nil)
	_ adapters.Addresser = (*Adapter)(nil)
	_ adapters.Connector = (*Adapter)(nil)
	_ adapters.Shaper    = (*Adapter)(nil)
	_ adapters.Reader    = (*Adapter)(nil)
	_ adapters.Lister    = (*Adapter)(nil)
)

// New returns an adapter for c. Its error reports everything that is wrong with
// c, each line with the field's name, and no secret.
func New(c Config) (*Adapter, error) {
	learned, err := c.learnedNames()
	p := routeParser{learned: learned, errs: []error{err}}
	a := &Adapter{routes: p.parse(c), learned: learned}
	a.targets = p.targets
	if c.List != nil {
		top := a.routes.Find("")
		a.list = c.List.parse(&p, top.unknown.externalID, top.unknown.etag)
	}
	errs := p.errs
	var credentials []string
	if slices.ContainsFunc(p.targets, func(t *target) bool { return t.above != nil && len(t.headers) > 0 }) {
		credentials = []string{"the headers of routes"}
	}
	a.endpoint, err = endpoint.New(endpoint.Options{
		Headers: c.Headers, Auth: c.Auth, TLS: c.TLS, Proxy: c.Proxy, Timeout: c.Timeout, Allow: c.Allow,
		URLs: append(a.urls(), a.listURL()), Learned: learned, Hidden: c.Hidden, Credentials: credentials, Reserved: map[string]string{"If-Match": "is sent by Lockstep itself: use if_match"},
	})
	errs = append(errs, err)
	if a.endpoint != nil {
		errs = append(errs, p.setEndpoints(a.endpoint))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	a.warnings = slices.Concat(p.warnings, p.unknownIDs(), p.eventIDs())
	return a, nil
}

// AttemptTimeout is the longest time that Deliver can take.
func (a *Adapter) AttemptTimeout() time.Duration { return a.endpoint.AttemptTimeout() }

// Hosts implements [adapters.Connector].
func (a *Adapter) Hosts() []adapters.Host { return a.endpoint.Hosts() }

// CertificateExpires implements [adapters.Connector].
func (a *Adapter) CertificateExpires() time.Time { return a.endpoint.CertificateExpires() }

// Close closes idle connections. Deliveries in flight are not disturbed.
func (a *Adapter) Close() error { return a.endpoint.Close() }

// Route implements [adapters.Router].
func (a *Adapter) Route(msg adapters.Message) string { return a.find(msg).route.Name }

// Shape implements [adapters.Shaper].
func (a *Adapter) Shape(msg adapters.Message) string { return a.find(msg).body.shape }

// Routes implements [adapters.Router].
func (a *Adapter) Routes() []adapters.Route {
	routes := make([]adapters.Route, len(a.targets))
	for i, t := range a.targets {
		routes[i] = t.route
	}
	return routes
}

// Learned returns the names of the values that answers may teach, beside the id and the ETag.
func (a *Adapter) Learned() []string { return a.learned }

// Warnings returns what is allowed and probably a mistake, each with its field.
func (a *Adapter) Warnings() []string { return a.warnings }

// Destination implements [adapters.Addresser].
func (a *Adapter) Destination() func(adapters.Message) string {
	return a.endpoint.Destination(a.urls(), func(msg adapters.Message) *endpoint.URL { return a.find(msg).url })
}

// listURL is nil if the records cannot be listed.
func (a *Adapter) listURL() *endpoint.URL {
	if a.list == nil {
		return nil
	}
	return a.list.url
}

func (a *Adapter) urls() []*endpoint.URL {
	var urls []*endpoint.URL
	for _, t := range a.targets {
		urls = append(urls, t.url)
		if t.read != nil && !slices.Contains(urls, t.read.url) {
			urls = append(urls, t.read.url)
		}
	}
	return urls
}

// Deliver implements [adapters.Adapter].
//
// The status and the body of the answer decide: see [Config.Answers]. If the receiver's
// id is missing where [Config.Require] needs it, the result is [adapters.Unknown], and
// the same request is sent again to get the id.
func (a *Adapter) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	to := a.find(msg)
	req, chosen, err := to.request(msg)
	if to.skips && errors.Is(err, placeholder.ErrNoID) {
		return adapters.Receipt{Skipped: nothingToCancel}, nil
	}
	if err != nil {
		return adapters.Receipt{}, err
	}
	return to.endpoint.Deliver(ctx, to.url, req, func(ans exchange.Answer) (adapters.Receipt, error) {
		if to.gone(ans) {
			return adapters.Receipt{Code: ans.Code(), Ref: &adapters.Ref{}}, adapters.Conflict(fmt.Errorf(
				"%s %s: answered %s: the receiver has no such record any more, so its id is forgotten and the record is created again", req.Method, req.Target, ans.Code()))
		}
		receipt, err := to.rules.Judge(req, ans)
		if err != nil {
			return receipt, err
		}
		id := chosen
		if to.awaitsID() {
			id, _ = to.externalID.find(ans)
		}
		if receipt.Duplicate && to.creates && msg.Ref.ExternalID == "" {
			if id == "" {
				return adapters.Receipt{Code: ans.Code(), NoID: true}, adapters.Conflict(fmt.Errorf(
					"%s %s: answered %s: the receiver has a record for this key, but its id is not known, so it was not changed; %s", req.Method, req.Target, ans.Code(), placeholder.SetID))
			}
			return adapters.Receipt{Code: ans.Code(), Ref: to.ref(msg, ans, id)}, adapters.Conflict(fmt.Errorf(
				"%s %s: answered %s: the receiver has a record for this key, which this request did not change, so it is sent again as an update", req.Method, req.Target, ans.Code()))
		}
		if to.awaitsID() && id == "" {
			if receipt, err = to.rules.WithoutID(req, ans, receipt, msg.Ref.ExternalID != "", to.externalID.String()); err != nil {
				return receipt, err
			}
		}
		receipt.Ref, receipt.NoETag = to.ref(msg, ans, id), to.lacksTag(req, ans, receipt)
		receipt.More = a.more(msg)
		return receipt, nil
	})
}

const nothingToCancel = "nothing to cancel: no id of the receiver is known for this key, so nothing was sent (without_id: skip)"

// awaitsID reports whether an answer may have the receiver's id of the record.
func (t *target) awaitsID() bool {
	return t.externalID != nil && t.externalID.from.Value == "" && t.reference == updateReference
}

// gone reports whether the record is to be created again. A gateway in front of a receiver
// that is away may answer 404 too, so the answer must be the receiver's own.
func (t *target) gone(ans exchange.Answer) bool {
	return t.recreate && (ans.Status == http.StatusNotFound || ans.Status == http.StatusGone) && t.rules.Explains(ans)
}

// Preview implements [adapters.Previewer].
func (a *Adapter) Preview(msg adapters.Message) (adapters.Preview, error) {
	to := a.find(msg)
	req, _, err := to.request(msg)
	if to.skips && errors.Is(err, placeholder.ErrNoID) {
		return adapters.Preview{Method: to.method, Skipped: nothingToCancel}, nil
	}
	if err != nil {
		return adapters.Preview{Method: to.method}, err
	}
	return a.endpoint.Preview(req), nil
}

// request builds the request of one attempt, without authorization. id is the receiver's
// id if the sender chooses it.
func (t *target) request(msg adapters.Message) (req exchange.Request, id string, err error) {
	v := &placeholder.Values{Msg: msg}
	refuse := func(what string, err error) error {
		return adapters.Permanent(fmt.Errorf("%s %s: nothing was sent: %s: %w", t.method, t.url.Target(), what, err))
	}
	if id, err = t.externalID.choose(v); err != nil {
		return req, "", refuse("external_id", err)
	}
	body, err := t.body.render(v)
	if err != nil {
		return req, "", refuse("body", err)
	}
	h := http.Header{"Accept": {"application/json"}}
	if t.body.contentType != "" {
		h.Set("Content-Type", t.body.contentType)
	}
	if req, err = t.endpoint.Request(t.method, t.url, v, h, body); err != nil {
		return req, "", err
	}
	if t.body.kind == noBody {
		req.Header.Del("Content-Type")
	}
	if tag, ok := t.condition(msg.Ref); ok {
		req.Header.Set("If-Match", tag)
	}
	return req, id, nil
}

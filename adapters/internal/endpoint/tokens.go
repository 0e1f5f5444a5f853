package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// tokenTimeout bounds how long a delivery waits for a token.
const tokenTimeout = 10 * time.Second

// If a token endpoint asks for a pause without a duration, it gets no requests for
// firstPause. Each further pause is twice as long.
const (
	firstPause   = time.Second
	longestPause = time.Minute
)

// tokens gets tokens from an endpoint. It keeps the last one, and shares one fetch among
// all deliveries that wait for it.
type tokens struct {
	header string // that has the token
	scheme string // of the token endpoint
	host   string // of the token endpoint, for errors

	fetches singleflight.Group
	grant   grant // only a fetch uses it

	mu      sync.Mutex
	current *oauth2.Token // nil before the first fetch and after a refusal
	pause   pause
}

// pause is a time for which a token endpoint wants no requests.
type pause struct {
	until time.Time
	why   string
	asked int // pauses in a row
}

func newTokens(path string, a adapters.Credentials, client *exchange.Client) (authorizer, error) {
	g, err := newGrant(a, client)
	if err != nil {
		return nil, fmt.Errorf("%s.%w", path, err)
	}
	t := &tokens{header: http.CanonicalHeaderKey(a.Header), grant: g}
	if u, err := url.Parse(a.TokenURL); err == nil {
		t.scheme, t.host = u.Scheme, u.Host
	}
	return t, nil
}

func (t *tokens) authorize(ctx context.Context, r exchange.Request) (refused func(), err error) {
	token, err := t.get(ctx)
	if err != nil {
		return nil, err
	}
	r.Header.Set(t.header, "Bearer "+token.AccessToken)
	return func() { t.drop(token) }, nil
}

func (t *tokens) show(r exchange.Request) { r.Header.Set(t.header, "Bearer "+masked) }

// drop forgets token, unless it was replaced already.
func (t *tokens) drop(token *oauth2.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current == token {
		t.current = nil
	}
}

// get returns a valid token. The first delivery that needs one fetches it, within its
// own timeout. The others wait, and share a failure too, so that a token endpoint that
// is down does not get a request from each of them. If the first delivery is stopped,
// another one fetches the token.
func (t *tokens) get(ctx context.Context) (*oauth2.Token, error) {
	ctx, cancel := exchange.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	for {
		if token, err := t.kept(); token != nil || err != nil {
			return token, err
		}
		if ctx.Err() != nil {
			return nil, t.noToken(ctx, ctx.Err())
		}
		select {
		case <-ctx.Done():
		case result := <-t.fetches.DoChan("", func() (any, error) { return t.fetch(ctx), nil }):
			switch got := result.Val.(fetched); {
			case got.panicked != nil:
				panic(got.panicked)
			case !got.stopped:
				return got.token, got.err
			}
		}
	}
}

// kept returns the token if it is valid, or an error while the endpoint wants a pause.
// It returns neither if a token must be fetched.
func (t *tokens) kept() (*oauth2.Token, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current.Valid() {
		return t.current, nil
	}
	if wait := time.Until(t.pause.until); wait > 0 {
		return nil, adapters.Throttled(errors.New(t.pause.why), wait)
	}
	return nil, nil
}

// fetched is the result of a fetch.
type fetched struct {
	token    *oauth2.Token
	err      error
	stopped  bool // the delivery that asked for it was stopped
	panicked any  // a panic of the fetch, repeated in the waiting deliveries, where the relay recovers
}

// fetch fetches a token, unless another fetch has just ended. If ctx ended by its
// timeout, the endpoint has failed. Otherwise the delivery was stopped.
func (t *tokens) fetch(ctx context.Context) (f fetched) {
	defer func() { f.panicked = recover() }()
	if f.token, f.err = t.kept(); f.token != nil || f.err != nil {
		return f
	}
	f.token, f.err = t.ask(ctx)
	refusal, refused := errors.AsType[*oauth2.RetrieveError](f.err)
	bad, useless := errors.AsType[badAnswer](f.err)
	switch {
	case f.err == nil && placeholder.Plain(f.token.AccessToken) != nil:
		return fetched{err: adapters.Auth(fmt.Errorf("token endpoint %s: the token has control characters", t.host))}
	case f.err == nil:
		t.keep(f.token)
		return f
	case refused:
		return fetched{err: t.refusal(refusal)}
	case useless:
		return fetched{err: adapters.Auth(fmt.Errorf("token endpoint %s: %w", t.host, bad))}
	}
	return fetched{err: t.noToken(ctx, f.err), stopped: ctx.Err() != nil && !exchange.TimedOut(ctx)}
}

// ask requests a token. The secret is in the form or in a header, where the endpoint
// accepted it before. Until it has accepted one, ask tries the other place if the
// endpoint does not know the client (RFC 6749, 5.2): by its code, or by status 401
// alone.
func (t *tokens) ask(ctx context.Context) (*oauth2.Token, error) {
	if t.grant.style != oauth2.AuthStyleAutoDetect {
		return t.grant.request(ctx, t.grant.style)
	}
	token, err := t.grant.request(ctx, oauth2.AuthStyleInHeader)
	if err == nil {
		t.grant.style = oauth2.AuthStyleInHeader
		return token, nil
	}
	refusal, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok || refusal.ErrorCode != "invalid_client" && (refusal.ErrorCode != "" || refusal.Response.StatusCode != http.StatusUnauthorized) {
		return nil, err
	}
	if token, err = t.grant.request(ctx, oauth2.AuthStyleInParams); err == nil {
		t.grant.style = oauth2.AuthStyleInParams
	}
	return token, err
}

// refusal classifies an answer of the token endpoint without a token. The texts of
// oauth2's errors are not used, because they have the whole answer.
func (t *tokens) refusal(e *oauth2.RetrieveError) error {
	reason := reasonOf(e.Response, e.Body, t.grant.secrets())
	if reason == "" {
		reason = "without a reason that can be shown"
	}
	err := fmt.Errorf("token endpoint %s: answered HTTP %d: %s", t.host, e.Response.StatusCode, reason)
	wait, said := exchange.RetryAfter(e.Response.Header, time.Now)
	if said && wait > 0 || e.Response.StatusCode == http.StatusTooManyRequests {
		return adapters.Throttled(err, t.pauseFor(wait, err.Error()))
	}
	return adapters.Auth(err)
}

// reasonOf returns the reason in an answer of a token endpoint, without the secrets.
func reasonOf(res *http.Response, body []byte, secrets []string) string {
	return exchange.Answer{Status: res.StatusCode, Header: res.Header, Body: body}.Reason(func(text string) bool {
		return adapters.Repeats(text, nil, secrets...)
	})
}

// pauseFor stops requests to the endpoint for wait, or for longer each time if wait is
// 0. It returns for how long.
func (t *tokens) pauseFor(wait time.Duration, why string) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if wait <= 0 {
		wait = min(longestPause, firstPause<<min(t.pause.asked, 10))
	}
	t.pause = pause{until: time.Now().Add(wait), why: why, asked: t.pause.asked + 1}
	return wait
}

// keep keeps a new token, and forgets that the endpoint asked for a pause.
func (t *tokens) keep(token *oauth2.Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current, t.pause = token, pause{}
}

// noToken classifies the lack of a token. It is auth and holds the sync, whether the
// endpoint refuses or is down, because no message is at fault. A stopped delivery, and
// a machine without a free descriptor, say nothing about the endpoint.
func (t *tokens) noToken(ctx context.Context, err error) error {
	why := exchange.Describe(ctx, err)
	if ctx.Err() == nil && exchange.Exhausted(err) {
		return adapters.Local(fmt.Errorf("token endpoint %s: no token, nothing was sent to the receiver: %w", t.host, exchange.Exhaustion(why)))
	}
	class := adapters.ClassAuth
	if ctx.Err() != nil && !exchange.TimedOut(ctx) {
		class = adapters.ClassTransient
	}
	return adapters.Classify(class,
		fmt.Errorf("token endpoint %s: no token, nothing was sent to the receiver: %w", t.host, why))
}

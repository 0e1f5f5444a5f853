package exchange

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"

	"github.com/hms-mkt/lockstep/adapters"
)

// NoProxy is the option proxy of a client that connects directly.
const NoProxy = "none"

// parseProxy reads the option proxy. Empty means the proxy of the environment. Its error
// does not repeat the text, which may have a password.
func parseProxy(text string) (func(*http.Request) (*url.URL, error), error) {
	switch text {
	case "":
		return http.ProxyFromEnvironment, nil
	case NoProxy:
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" ||
		!slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
		return nil, errors.New("proxy: is not a URL such as http://user:password@proxy.example:3128; its scheme is http, https or socks5; none means no proxy")
	}
	return http.ProxyURL(u), nil
}

// noting returns find, which also notes in the request's progress which proxy it takes.
func noting(find func(*http.Request) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	if find == nil {
		return nil
	}
	return func(r *http.Request) (*url.URL, error) {
		u, err := find(r)
		if p, ok := r.Context().Value(progressKey{}).(*progress); ok && u != nil {
			p.proxy.Store(&u.Host)
		}
		return u, err
	}
}

// proxyError is an answer of a proxy that refuses to connect to the receiver.
type proxyError struct {
	host   string
	status int
}

func (e *proxyError) Error() string {
	says := "it refused the connection"
	switch e.status {
	case http.StatusProxyAuthRequired, http.StatusUnauthorized:
		says = "it wants other credentials: check proxy"
	case http.StatusForbidden:
		says = "it does not let requests to this host through: ask its operator"
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		says = "it could not connect to the receiver, or is overloaded"
	}
	return fmt.Sprintf("the proxy %s answered HTTP %d: %s", e.host, e.status, says)
}

// classify returns err with the class of e, and marks what all receivers behind the proxy share.
func (e *proxyError) classify(err error) error {
	switch e.status {
	case http.StatusProxyAuthRequired, http.StatusUnauthorized:
		return adapters.Common(adapters.Auth(err))
	case http.StatusForbidden:
		return adapters.Auth(err)
	}
	return adapters.Classify(adapters.ClassTransient, err)
}

func connected(_ context.Context, proxy *url.URL, _ *http.Request, res *http.Response) error {
	if res.StatusCode == http.StatusOK {
		return nil
	}
	return &proxyError{host: proxy.Host, status: res.StatusCode}
}

// unreachable reports whether err says that the proxy itself cannot be reached.
func unreachable(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == proxyConnect
}

// proxyConnect is the Op of the [net.OpError] with which net/http reports that it cannot
// connect to a proxy.
const proxyConnect = "proxyconnect"

package endpoint

import (
	"context"
	"slices"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// Hosts are those of [adapters.Connector].
func (e *Endpoint) Hosts() (hosts []adapters.Host) {
	add := func(scheme, host string, token func(context.Context) error) {
		h := adapters.Host{Address: exchange.Address(scheme, host), Token: token, Connect: func(ctx context.Context) (adapters.Connection, error) {
			return e.client.Connect(ctx, scheme, host)
		}}
		same := func(other adapters.Host) bool {
			return other.Address == h.Address && (other.Token == nil) == (h.Token == nil)
		}
		if !slices.ContainsFunc(hosts, same) {
			hosts = append(hosts, h)
		}
	}
	for _, u := range e.urls {
		if u != nil && !u.FromData() {
			add(u.scheme, u.host.Text(), nil)
		}
	}
	for _, a := range e.auth {
		if t, ok := a.(*tokens); ok {
			add(t.scheme, t.host, func(ctx context.Context) error {
				ctx, cancel := exchange.WithTimeout(ctx, exchange.ConnectTimeout)
				defer cancel()
				_, err := t.get(ctx)
				return adapters.Redacted(err)
			})
		}
	}
	return hosts
}

// CertificateExpires is that of [adapters.Connector].
func (e *Endpoint) CertificateExpires() time.Time { return e.client.CertificateExpires() }

package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/config"
)

// When the end of a certificate is found before it comes.
const (
	soonExpires  = 21 * 24 * time.Hour
	aboutExpires = 3 * 24 * time.Hour
)

// receivers checks, for each sync, each host that its adapter connects to and its client
// certificate. No request is sent, except for tokens if Tokens is set.
func (o Options) receivers() (checks []Check) {
	for _, s := range o.Config.Syncs {
		connector, ok := s.Adapter.Adapter.(adapters.Connector)
		if !ok {
			continue
		}
		hosts := connector.Hosts()
		for _, host := range hosts {
			checks = append(checks, o.host(s, host))
		}
		if addresser, ok := s.Adapter.Adapter.(adapters.Addresser); ok && addresser.Destination() != nil {
			checks = append(checks, Check{Name: "receiver", Fine: "its hosts that data names are not checked", Run: nothing}.about(s.Name))
		}
		if at := connector.CertificateExpires(); !at.IsZero() {
			checks = append(checks, Check{Name: "client certificate", Run: func(context.Context) ([]Finding, error) {
				return []Finding{expiry("the certificate in tls.cert_file", at, "ask the receiver's operator for a new one, and put it into the same files")}, nil
			}}.about(s.Name))
		}
	}
	return checks
}

func nothing(context.Context) ([]Finding, error) { return nil, nil }

// about returns the check as one about a sync.
func (c Check) about(sync string) Check {
	run, fine := c.Run, c.Fine
	c.Run = func(ctx context.Context) ([]Finding, error) {
		found, err := run(ctx)
		if len(found) == 0 && err == nil {
			found = []Finding{{Severity: OK, Says: fine}}
		}
		for i := range found {
			found[i].Sync = sync
		}
		return found, err
	}
	return c
}

// host checks one host of a sync.
func (o Options) host(s config.Sync, host adapters.Host) Check {
	name := "receiver"
	if host.Token != nil {
		name = "token endpoint"
	}
	return Check{Name: name, Run: func(ctx context.Context) ([]Finding, error) {
		made, err := host.Connect(ctx)
		if err != nil {
			return []Finding{problem("check url, proxy and tls of the sync, and the network from this machine",
				"%s: %v", host.Address, err)}, nil
		}
		if host.Token != nil && o.Tokens {
			if err := host.Token(ctx); err != nil {
				return []Finding{problem("check the credentials in auth", "%v", err)}, nil
			}
		}
		way := ""
		if made.Proxy != "" {
			way = ", through the proxy " + made.Proxy
		}
		switch {
		case !made.Reached:
			return []Finding{fine("%s: the proxy %s answers, and connects to the host when a request is sent", host.Address, made.Proxy)}, nil
		case made.Expires.IsZero():
			return []Finding{fine("%s: reached without TLS%s", host.Address, way)}, nil
		}
		return []Finding{expiry(host.Address+": reached"+way+"; its certificate", made.Expires, "tell its operator")}, nil
	}}.about(s.Name)
}

// expiry judges when a certificate expires.
func expiry(what string, at time.Time, remedy string) Finding {
	left := time.Until(at)
	day := at.UTC().Format(time.DateOnly)
	switch {
	case left <= 0:
		return problem(remedy, "%s expired on %s", what, day)
	case left < soonExpires:
		says := fmt.Sprintf("%s expires on %s, in %s", what, day, days(left))
		if left < aboutExpires {
			return problem(remedy, "%s", says)
		}
		return warning(remedy, "%s", says)
	}
	return fine("%s is valid until %s", what, day)
}

// days writes a time in days, or in hours if it is short.
func days(d time.Duration) string {
	if d < 48*time.Hour {
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

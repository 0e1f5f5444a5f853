package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// hosts are the hosts that data may name: names, *.suffix, or * for any.
type hosts []string

// name is a host name as DNS has it (RFC 1123, 2.1), lower case.
var name = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*$`)

// maxName is the longest host name (RFC 1035, 2.3.4, without the root).
const maxName = 253

func parseHosts(o Options) (hosts, error) {
	var (
		h    hosts
		errs []error
	)
	for i, text := range o.Allow.Hosts {
		host := strings.TrimSuffix(strings.ToLower(text), ".")
		bare := strings.TrimPrefix(host, "*.")
		if host != "*" && (!name.MatchString(bare) || len(bare) > maxName) {
			errs = append(errs, fmt.Errorf("allow.hosts[%d]: %q is not a host name such as court.example.gov, *.example.gov or *", i, text))
		}
		h = append(h, host)
	}
	fromData := slices.DeleteFunc(slices.Clone(o.URLs), func(u *URL) bool { return u == nil || !u.FromData() })
	if len(fromData) > 0 && len(h) == 0 {
		errs = append(errs, errors.New("allow.hosts: is required, because the host of a url has a placeholder: list the hosts that data may name"))
	}
	if proxy := o.Proxy.Reveal(); len(fromData) > 0 && proxy != "" && proxy != exchange.NoProxy {
		errs = append(errs, errors.New("proxy: is not used for a host from data, because the proxy would resolve its name: remove proxy"))
	}
	if slices.Contains(h, "*") {
		with := slices.Clone(o.Credentials)
		if o.Auth.Kind != adapters.NoCredentials {
			with = append(with, "auth")
		}
		if len(o.Headers) > 0 {
			with = append(with, "headers")
		}
		if o.TLS.CertFile != "" {
			with = append(with, "tls.cert_file")
		}
		if slices.ContainsFunc(fromData, func(u *URL) bool { return u.query.Text() != "" }) {
			with = append(with, "the query of a url")
		}
		if len(with) > 0 {
			errs = append(errs, fmt.Errorf("allow.hosts: * would send %s to any host that data names; list the hosts instead",
				strings.Join(with, ", ")))
		}
	}
	return h, errors.Join(errs...)
}

// has reports whether data may name host.
func (h hosts) has(host string) bool {
	return slices.ContainsFunc(h, func(allowed string) bool {
		suffix, below := strings.CutPrefix(allowed, "*")
		if below {
			return strings.HasSuffix(host, suffix) && host != suffix
		}
		return host == allowed
	})
}

func parseNetworks(texts []string) ([]netip.Prefix, error) {
	var (
		networks []netip.Prefix
		errs     []error
	)
	for i, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("allow.networks[%d]: %q is not a network such as 10.20.0.0/16 or fd00:20::/32", i, text))
			continue
		}
		networks = append(networks, p.Masked())
	}
	return networks, errors.Join(errs...)
}

package exchange

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
)

// Guarded returns a client for hosts that data names, with the same trust and timeout.
// It connects only to public addresses and those in allowed. It checks the resolved
// address just before it connects, so that no answer of a name server can evade the
// check. It uses no proxy, because a proxy would resolve the name itself.
func (c *Client) Guarded(allowed []netip.Prefix) *Client {
	t := newTransport(c.transport.TLSClientConfig)
	dialer := &net.Dialer{Control: func(_, address string, _ syscall.RawConn) error { return judge(address, allowed) }}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		return dial(ctx, dialer, network, address)
	}
	return &Client{transport: t, timeout: c.timeout}
}

// addressError refuses an address.
type addressError struct{ address netip.Addr }

func (e *addressError) Error() string {
	return fmt.Sprintf("the host that the message names has the address %s, which is not public: if it is right, list it in allow.networks", e.address)
}

func judge(address string, allowed []netip.Prefix) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("the address of the host cannot be judged: %w", err)
	}
	ip := at.Addr().Unmap().WithZone("")
	if slices.ContainsFunc(allowed, func(p netip.Prefix) bool { return p.Contains(ip) }) || public(ip) {
		return nil
	}
	return &addressError{ip}
}

// public reports whether ip is an address of the internet at large.
func public(ip netip.Addr) bool {
	return !slices.ContainsFunc(notPublic, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// notPublic are three kinds of networks: those that IANA's special purpose registries
// (RFC 6890) call not globally reachable, those that embed other addresses, and that of
// the only metadata service with a public address.
var notPublic = prefixes(
	"0.0.0.0/8",        // this network
	"10.0.0.0/8",       // private, RFC 1918
	"100.64.0.0/10",    // carriers, RFC 6598; Alibaba Cloud's metadata
	"127.0.0.0/8",      // loopback
	"168.63.129.16/32", // Azure's metadata
	"169.254.0.0/16",   // link-local, RFC 3927; metadata of most clouds
	"172.16.0.0/12",    // private
	"192.0.0.0/24",     // protocol assignments; Oracle Cloud's metadata
	"192.0.2.0/24",     // documentation
	"192.168.0.0/16",   // private
	"198.18.0.0/15",    // benchmarks, RFC 2544
	"198.51.100.0/24",  // documentation
	"203.0.113.0/24",   // documentation
	"224.0.0.0/3",      // multicast, reserved, broadcast
	"::/96",            // unspecified, loopback, IPv4-compatible
	"::ffff:0:0:0/96",  // IPv4-translated, RFC 2765
	"64:ff9b::/96",     // NAT64, RFC 6052
	"64:ff9b:1::/48",   // NAT64, RFC 8215
	"100::/64",         // discard
	"2001::/23",        // protocol assignments, Teredo
	"2001:db8::/32",    // documentation
	"2002::/16",        // 6to4
	"3fff::/20",        // documentation
	"5f00::/16",        // segment routing
	"fc00::/7",         // unique local; EC2's metadata
	"fe80::/10",        // link-local
	"fec0::/10",        // site-local, deprecated
	"ff00::/8",         // multicast
)

func prefixes(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		all[i] = netip.MustParsePrefix(text)
	}
	return all
}

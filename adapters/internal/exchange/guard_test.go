package exchange

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

func TestAddressesOfHostsFromData(t *testing.T) {
	allowed := []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd00:20::/32")}
	for address, ok := range map[string]bool{
		"93.184.215.14": true, "8.8.8.8": true, "2606:2800:21f:cb07:6820:80da:af6b:8b2c": true,
		"10.20.1.1": true, "::ffff:10.20.1.1": true, "fd00:20::7": true,

		"127.0.0.1": false, "127.1.2.3": false, "::1": false, "::": false, "0.0.0.0": false, "0.1.2.3": false,
		"10.0.0.1": false, "172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false, "100.64.0.1": false, "fc00::1": false,
		"169.254.169.254": false, "fd00:ec2::254": false, "168.63.129.16": false, "192.0.0.192": false, "100.100.100.200": false,
		"fe80::1": false, "fe80::1%eth0": false, "224.0.0.1": false, "255.255.255.255": false, "ff02::1": false, "240.0.0.1": false,
		"::ffff:127.0.0.1": false, "::127.0.0.1": false, "64:ff9b::7f00:1": false, "::ffff:0:7f00:1": false, "2002:7f00:1::": false, "2001::1": false,
	} {
		if err := judge(net.JoinHostPort(address, "443"), allowed); (err == nil) != ok {
			t.Errorf("%s: %v", address, err)
		}
	}
	if err := judge("court.example:443", allowed); err == nil || !strings.Contains(err.Error(), "cannot be judged") {
		t.Errorf("a name: %v", err)
	}
}

// A proxy would resolve the name itself, and the guard would judge the proxy.
func TestHostsFromDataAreReachedWithoutAProxy(t *testing.T) {
	c := newClient(t, adapters.TLS{})
	if c.transport.Proxy == nil {
		t.Error("hosts that the operator wrote are reached without the environment's proxy")
	}
	if guarded := c.Guarded(nil); guarded.transport.Proxy != nil {
		t.Error("hosts from data are reached by a proxy")
	}
}

//go:build linux

package chaos

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// link is a TCP proxy that can cause faults, between a relay and its database or between a relay and a
// court.
type link struct {
	*toxiproxy.Proxy
	t testing.TB
}

// newLink starts a link to an address.
func newLink(t testing.TB, to string) *link {
	t.Helper()
	to = strings.TrimPrefix(to, "http://")
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l := &link{toxiproxy.NewProxy(server, "link", "127.0.0.1:0", to), t}
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)
	return l
}

// Directions of a fault: to the server, or its answers.
const (
	requests = "upstream"
	answers  = "downstream"
)

// harm adds a fault to the link and to the connections that it has. Kinds and
// attributes are toxiproxy's.
func (l *link) harm(kind, direction string, attributes map[string]any) {
	l.t.Helper()
	toxic, err := json.Marshal(map[string]any{
		"name": kind + "_" + direction, "type": kind, "stream": direction, "toxicity": 1.0, "attributes": attributes,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.Toxics.AddToxicJson(strings.NewReader(string(toxic))); err != nil {
		l.t.Fatalf("%s: %v", toxic, err)
	}
}

// heal removes all faults. Bytes that were lost in a fault stay lost.
func (l *link) heal() {
	l.Toxics.ResetToxics(context.Background())
}

// cut breaks every connection and refuses new ones, until restore.
func (l *link) cut() { l.Stop() }

func (l *link) restore() {
	l.t.Helper()
	if err := l.Start(); err != nil {
		l.t.Fatal(err)
	}
}

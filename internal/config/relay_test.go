package config

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/hms-mkt/lockstep/relay"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

func TestRelayConfig(t *testing.T) {
	f := parseYAML(t, `
relay: {workers: 7, poll: 20ms, lease: 90s, drain: 0s, name: relay-a}
retention: {events: 30d, log: 12mo}
syncs:
  - name: Court
    events: ["a:*", b]
    when: key != ""
    from: now
    notify: true
    adapter: {kind: rest, url: "http://127.0.0.1:1/api"}
    mapping: {a: b}
    on_failed: supersede
    retry: {initial: 2s, max: 3s, jitter: 0%, max_age: 4h, attempts: 5}
    limits: {per: event.court, concurrency: 3, rate: 20/s}
`)
	got := f.RelayConfig()
	want := relay.Config{
		Workers: 7, Poll: 20 * time.Millisecond, Lease: 90 * time.Second, Drain: time.Nanosecond,
		KeepEvents: "0 months 2592000000000 microseconds", KeepLog: "12 months 0 microseconds",
		Syncs: []relay.Sync{{
			Name: "Court", Events: []string{"a:*", "b"}, When: `key != ""`, From: "now", Notify: true,
			Mapping: mapping.Mapping{Fields: []mapping.Field{{From: "a", To: "b"}}}, OnFailed: "supersede",
			Retry: relay.Retry{Initial: 2 * time.Second, Max: 3 * time.Second, Jitter: -1, MaxAge: 4 * time.Hour, Attempts: 5},
			Per:   "event.court", Concurrency: 3, Rate: 20,
		}},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(relay.Sync{}, "Adapter")); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if got.Syncs[0].Adapter == nil {
		t.Error("the adapter is lost")
	}
	if _, err := relay.New(nil, got); err != nil {
		t.Errorf("the relay refuses it: %v", err)
	}
}

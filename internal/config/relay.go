package config

import (
	"time"

	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// RelayConfig returns the file's settings for the relay. The caller sets Logger and
// Observer.
func (f *File) RelayConfig() relay.Config {
	c := relay.Config{
		Workers:    f.Relay.Workers,
		Poll:       f.Relay.Poll,
		Lease:      f.Relay.Lease,
		Drain:      max(f.Relay.Drain, time.Nanosecond), // in the relay's Config, 0 means the default
		KeepEvents: outbox.Retention(f.Retention.Events.Interval()),
		KeepLog:    outbox.Retention(f.Retention.Log.Interval()),
	}
	for _, s := range f.Syncs {
		to := s.relay()
		if to.Concurrency == c.Workers {
			to.Concurrency = 0 // the default: after a reload it is the number with which the relay started
		}
		c.Syncs = append(c.Syncs, to)
	}
	return c
}

func (s Sync) relay() relay.Sync {
	events := s.Events
	if s.Event != "" {
		events = []string{s.Event}
	}
	jitter := float64(s.Retry.Jitter)
	if jitter == 0 {
		jitter = -1 // in the relay's Config, 0 means the default and -1 none
	}
	return relay.Sync{
		Name:      s.Name,
		TypeNames: s.TypeNames,
		Events:    events,
		When:      s.When,
		From:      s.From,
		Notify:    s.Notify,
		Adapter:   s.Adapter.Adapter,
		Mapping:   s.mapping(),
		Routes:    s.Routes,
		OnFailed:  s.OnFailed,
		Escalate:  outbox.Escalation{At: s.Escalate.At, Zone: s.Escalate.Zone, Before: s.Escalate.Before, After: s.Escalate.After},
		Windows:   s.relayWindows(),
		Holidays:  s.Holidays,
		Retry: relay.Retry{
			Initial: s.Retry.Initial, Max: s.Retry.Max, Jitter: jitter,
			MaxAge: s.Retry.MaxAge, Attempts: s.Retry.Attempts,
		},
		Per:         s.Limits.Per,
		Concurrency: s.Limits.Concurrency,
		MaxInFlight: s.Limits.MaxInFlight,
		Rate:        float64(s.Limits.Rate),
	}
}

package config

import (
	"time"

	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// RelayConfig returns the file's settings as the relay takes them. Logger and
// Observer are left to the caller.
func (f *File) RelayConfig() relay.Config {
	c := relay.Config{
		Workers:    f.Relay.Workers,
		Poll:       f.Relay.Poll,
		Lease:      f.Relay.Lease,
		Drain:      max(f.Relay.Drain, time.Nanosecond), // 0 is a choice here, and the default there
		KeepEvents: outbox.Retention(f.Retention.Events.Interval()),
		KeepLog:    outbox.Retention(f.Retention.Log.Interval()),
	}
	for _, s := range f.Syncs {
		to := s.relay()
		if to.Concurrency == c.Workers {
			to.Concurrency = 0 // the default: at a reload it is what the relay started with
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
		jitter = -1 // none is a choice here, and the default there
	}
	return relay.Sync{
		Name:     s.Name,
		Events:   events,
		When:     s.When,
		From:     s.From,
		Notify:   s.Notify,
		Adapter:  s.Adapter.Adapter,
		Mapping:  s.mapping(),
		OnFailed: s.OnFailed,
		Retry: relay.Retry{
			Initial: s.Retry.Initial, Max: s.Retry.Max, Jitter: jitter,
			MaxAge: s.Retry.MaxAge, Attempts: s.Retry.Attempts,
		},
		Per:         s.Limits.Per,
		Concurrency: s.Limits.Concurrency,
		Rate:        float64(s.Limits.Rate),
	}
}

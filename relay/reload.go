package relay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/hms-mkt/lockstep/outbox"
)

// Reload gives a running relay a new configuration. For each sync it replaces the condition,
// mapping, adapter, retry and limits. It checks the whole configuration first: after an
// error nothing has changed. An attempt in flight ends with the settings that it began
// with, and the next attempt uses the new ones. A body that was rendered before does not
// change.
//
// Reload cannot apply other changes. It returns a sentence about each of them. It is safe
// for concurrent use, also before Run.
func (r *Relay) Reload(config Config) (left []string, err error) {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	if err := config.withDefaults().validate(); err != nil {
		return nil, err
	}
	left = r.config.fixed(config.withDefaults())
	config.Workers = r.config.Workers // the default concurrency of a sync is the number of workers, which does not change
	config = config.withDefaults()
	wanted := map[string]Sync{}
	for _, s := range config.Syncs {
		wanted[s.Name] = s
	}
	next := make([]*pipeline, len(r.pipelines))
	merged := r.config
	merged.Syncs = nil
	var problems []error
	for i, p := range r.pipelines {
		was := p.now().sync
		s, ok := wanted[was.Name]
		if !ok {
			left = append(left, fmt.Sprintf("sync %q is not in the configuration any more: it runs until the restart", was.Name))
			s = was
		}
		delete(wanted, was.Name)
		if !slices.Equal(s.Events, was.Events) || s.OnFailed != was.OnFailed || !s.Escalate.Equal(was.Escalate) {
			left = append(left, fmt.Sprintf("sync %q: events, on_failed and escalate are changed with: lockstep sync apply %s", s.Name, s.Name))
		}
		if s.Notify != was.Notify {
			left = append(left, fmt.Sprintf("sync %q: notify needs a restart", s.Name))
			s.Notify = was.Notify
		}
		merged.Syncs = append(merged.Syncs, s)
		if next[i], err = compileSync(s); err != nil {
			problems = append(problems, fmt.Errorf("sync %q: %w", s.Name, err))
		}
	}
	for _, s := range config.Syncs {
		if _, ok := wanted[s.Name]; ok {
			left = append(left, fmt.Sprintf("sync %q is new: it needs a restart", s.Name))
		}
	}
	// Check again together with the settings that do not change, such as the lease.
	if err := errors.Join(append(problems, merged.validate())...); err != nil {
		return nil, err
	}
	for i, p := range r.pipelines {
		p.replace(next[i])
	}
	for _, p := range r.pipelines {
		for _, hold := range p.holds() {
			if hold.Kind != outbox.HoldAuth {
				continue
			}
			p.inDatabase("set the next probe", func(ctx context.Context) error { // probe with the new credentials at once
				return r.store.ProbeAgain(ctx, p.sync.Name, hold.Scope, math.MaxInt32, 0, false)
			})
			p.wake()
		}
	}
	return left, nil
}

// fixed returns a sentence about each setting of the relay itself that differs in next.
func (c Config) fixed(next Config) (names []string) {
	for _, s := range []struct {
		name string
		same bool
	}{
		{"workers", c.Workers == next.Workers},
		{"poll", c.Poll == next.Poll},
		{"lease", c.Lease == next.Lease},
		{"drain", c.Drain == next.Drain},
		{"retention", c.KeepEvents == next.KeepEvents && c.KeepLog == next.KeepLog},
	} {
		if !s.same {
			names = append(names, s.name+" needs a restart")
		}
	}
	return names
}

// replace makes next the sync's pipeline.
func (s *state) replace(next *pipeline) {
	was := s.now()
	next.state = s
	if next.rate != nil && next.sync.Rate == was.sync.Rate {
		next.rate = was.rate // attempts of the last second count
	}
	// The size of the queue bounds the concurrency. This changes nothing, because the workers are fewer.
	next.sync.Concurrency = min(next.sync.Concurrency, cap(s.queue)/2-maxPrefetch)
	next.bound()
	s.current.Store(next)
	s.slots.resize(next.senders())
	select {
	case s.resized <- struct{}{}:
	default:
	}
	next.wake()
}

// resize changes the sync's concurrency.
func (s *share) resize(most int) {
	s.all.mu.Lock()
	defer s.all.mu.Unlock()
	if s.limit == s.most || s.limit > most {
		s.limit = most
	}
	s.most = most
	s.changed()
}

package relay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/hms-mkt/lockstep/outbox"
)

// Reload takes a new configuration over while the relay runs: of each sync its
// condition, mapping, adapter, retry and limits. Everything is checked first;
// after an error nothing has changed. An attempt under way ends with the
// adapter and the schedule that it began with, which may take as long as its
// timeout; the next one takes the new. A body that was rendered before keeps its bytes.
//
// Other changes do not take effect. Reload returns them, a sentence each. It is
// safe for concurrent use, also before Run.
func (r *Relay) Reload(config Config) (left []string, err error) {
	r.reloading.Lock()
	defer r.reloading.Unlock()
	if err := config.withDefaults().validate(); err != nil {
		return nil, err
	}
	left = r.config.fixed(config.withDefaults())
	config.Workers = r.config.Workers // a sync without a concurrency of its own keeps what the relay started with
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
		if !slices.Equal(s.Events, was.Events) || s.OnFailed != was.OnFailed {
			left = append(left, fmt.Sprintf("sync %q: events and on_failed are changed with: lockstep sync apply %s", s.Name, s.Name))
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
	// Once more with what stays as it is, the lease for instance.
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
			p.inDatabase("set the next probe", func(ctx context.Context) error { // new credentials are tried at once
				return r.store.ProbeAgain(ctx, p.sync.Name, hold.Scope, math.MaxInt32, 0, false)
			})
			p.wake()
		}
	}
	return left, nil
}

// fixed names the settings of the relay itself in which next differs.
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
		next.rate = was.rate // what was sent lately counts
	}
	// The queue has room for so many claims. More are never under way: workers bound them.
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

package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

// Mapping is [mapping.Mapping], for services that embed a relay.
type Mapping = mapping.Mapping

// Field is [mapping.Field].
type Field = mapping.Field

// Computed is [mapping.Computed].
type Computed = mapping.Computed

// TimeFormat is [mapping.TimeFormat].
type TimeFormat = mapping.TimeFormat

// TracerProvider is [trace.TracerProvider] of OpenTelemetry.
type TracerProvider = trace.TracerProvider

// Config is the configuration of a relay. Zero values mean the defaults. Only Syncs has no
// default.
type Config struct {
	Syncs      []Sync
	Workers    int              // deliveries in flight in this process; default 32
	Poll       time.Duration    // longest pause between polls; default 50ms
	Lease      time.Duration    // how long a claim lasts; at least twice any adapter's timeout; default 60s
	Drain      time.Duration    // how long a stop waits for deliveries in flight; default 20s
	KeepEvents outbox.Retention // finished events are removed after this, 1 hour to 1200 months; default "90 days"
	KeepLog    outbox.Retention // log partitions are dropped after this, 1 month to 1200 months; default "84 months"
	Version    string           // version of the program, for outbox.relay; default: none
	Logger     *slog.Logger     // default slog.Default()
	Observer   Observer         // default: none
	Tracing    TracerProvider   // makes a span of each attempt; default: that of the package otel, which makes none unless the program sets it
}

// Sync connects event types to an external system.
type Sync struct {
	Name    string
	Events  []string         // event types; * matches any characters, or none
	When    string           // expression that selects events, see [mapping.CompileFilter]; empty selects every event
	From    string           // beginning, now or an RFC 3339 time; required if the database has other syncs already
	Notify  bool             // writers also tell relays of new events by NOTIFY
	Adapter adapters.Adapter // makes the attempts
	Mapping Mapping          // the zero Mapping sends the payload unchanged

	// Routes are the mappings of single routes of the Adapter, by the names that
	// [adapters.Router] gives them. The other routes have Mapping.
	Routes map[string]Mapping

	// TypeNames are the event types that the settings of the Adapter name, for a warning
	// about an event whose type is almost the same.
	TypeNames []string

	Escalate outbox.Escalation // when people are told that an event is not delivered yet; default: never

	Windows  []Window // when deliveries may start; at other times the sync is on hold; default: always
	Holidays []Date   // on these days no window begins

	OnFailed    string  // block: a failed delivery blocks its key; supersede: a newer event replaces it; default block
	Retry       Retry   // when and how often an attempt is repeated
	Per         string  // expression that names the destination of an event, see [mapping.CompileScope]; if set, Concurrency and Rate apply to each destination
	Concurrency int     // deliveries in flight in this process; default Config.Workers
	Rate        float64 // attempts per second in this process; 0 means no limit

	// MaxInFlight bounds the deliveries that this process claims at a time, whatever Per,
	// Concurrency and the workers allow. Nothing is claimed ahead, so that no claimed delivery
	// waits behind a connection while its lease runs out. The adapter may have a bound too,
	// see [adapters.Bounded]; the smaller one counts. Default: no bound.
	MaxInFlight int
}

// inFlight is how many deliveries of the sync may be in flight. If Concurrency is for each
// destination, the number of workers bounds the sum.
func (s Sync) inFlight(workers int) int {
	n := s.Concurrency
	if s.Per != "" {
		n = workers
	}
	if most := s.maxInFlight(); most > 0 {
		n = min(n, most)
	}
	return n
}

// maxInFlight is the smaller bound of MaxInFlight and the adapter, or 0 if there is none.
func (s Sync) maxInFlight() int {
	most := s.MaxInFlight
	if a, ok := s.Adapter.(adapters.Bounded); ok {
		if own := max(1, a.MaxInFlight()); most == 0 || own < most {
			most = own
		}
	}
	return most
}

// Retry has the delays between attempts and the retry budget.
type Retry struct {
	Initial  time.Duration // delay after the first failure, doubled each time; default 1s
	Max      time.Duration // longest delay; default 15m
	Jitter   float64       // the delay varies by up to this share of it in both directions; 0 to 1; default 0.2, negative means none
	MaxAge   time.Duration // longest time since the first attempt, without holds and faults of our own side; default 72h
	Attempts int           // most attempts that count; 0 means no bound
}

// Observer is told of attempts and claims, for metrics. Its methods must be safe for
// concurrent use and return at once.
type Observer interface {
	Attempt(sync, outcome string, took time.Duration)   // an attempt has ended; outcome as in the delivery log
	Claim(sync string, claimed int, took time.Duration) // a claim has brought this many deliveries
	LeaseLost(sync string)                              // a result came after the claim was lost
	Clock(ahead time.Duration)                          // by how much the database's clock is ahead of this machine's
	MissingID(sync string)                              // an answer lacked the receiver's id, which later messages of its key need
	Alert(event, sync string, n int64)                  // an operator event such as lockstep:escalated was told, about n deliveries, keys or destinations
	LogAhead(months int)                                // for how many months after this one the delivery log has partitions: 3 is normal, alert at 0
}

func (c Config) withDefaults() Config {
	if c.Workers == 0 {
		c.Workers = 32
	}
	if c.Poll == 0 {
		c.Poll = 50 * time.Millisecond
	}
	if c.Lease == 0 {
		c.Lease = time.Minute
	}
	if c.Drain == 0 {
		c.Drain = 20 * time.Second
	}
	if c.KeepEvents == "" {
		c.KeepEvents = "90 days"
	}
	if c.KeepLog == "" {
		c.KeepLog = "84 months"
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	syncs := make([]Sync, len(c.Syncs))
	for i, s := range c.Syncs {
		syncs[i] = s.withDefaults(c.Workers)
	}
	c.Syncs = syncs
	return c
}

func (s Sync) withDefaults(workers int) Sync {
	if s.OnFailed == "" {
		s.OnFailed = "block"
	}
	if s.Concurrency == 0 {
		s.Concurrency = workers
	}
	s.Retry = s.Retry.withDefaults()
	return s
}

func (r Retry) withDefaults() Retry {
	if r.Initial == 0 {
		r.Initial = time.Second
	}
	if r.Max == 0 {
		r.Max = 15 * time.Minute
	}
	if r.Jitter == 0 {
		r.Jitter = 0.2
	}
	if r.MaxAge == 0 {
		r.MaxAge = 72 * time.Hour
	}
	return r
}

// timed is an adapter that bounds its own attempts.
type timed interface {
	AttemptTimeout() time.Duration
}

// AttemptTimeout is how long an attempt of the sync may take: the adapter's own
// AttemptTimeout, or 15 seconds. A lease must be at least twice as long.
func (s Sync) AttemptTimeout() time.Duration {
	if t, ok := s.Adapter.(timed); ok {
		return t.AttemptTimeout()
	}
	return 15 * time.Second
}

// validate reports all mistakes at once.
func (c Config) validate() error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if len(c.Syncs) == 0 {
		bad("no syncs: a relay needs at least one")
	}
	if c.Workers < 1 || c.Workers > 10000 {
		bad("workers %d: want 1 to 10000", c.Workers)
	}
	if c.Poll < time.Millisecond || c.Poll > time.Minute {
		bad("poll %s: want 1ms to 1m", c.Poll)
	}
	if c.Drain < 0 {
		bad("drain %s: must not be negative", c.Drain)
	}
	const month = 30 * 24
	for _, keep := range []struct {
		name   string
		value  outbox.Retention
		least  float64 // hours
		bounds string
	}{
		{"keep events", c.KeepEvents, 1, "1 hour to 1200 months"},
		{"keep log", c.KeepLog, month, "1 month to 1200 months"},
	} {
		if hours, err := keep.value.Hours(); err != nil {
			bad("%s %w", keep.name, err)
		} else if hours < keep.least || hours > 1200*month {
			bad("%s %s: want %s", keep.name, keep.value, keep.bounds)
		}
	}
	names := map[string]bool{}
	for _, s := range c.Syncs {
		if names[s.Name] {
			bad("sync %q: the name is used twice", s.Name)
		}
		names[s.Name] = true
		if s.Name == "" {
			bad("a sync has no name")
		}
		if len(s.Events) == 0 {
			bad("sync %q: no event types", s.Name)
		}
		if s.Adapter == nil {
			bad("sync %q: no adapter", s.Name)
			continue
		}
		if timeout := s.AttemptTimeout(); c.Lease < 2*timeout {
			bad("sync %q: a lease of %s is shorter than twice its adapter's timeout of %s: raise relay.lease or lower the timeout", s.Name, c.Lease, timeout)
		}
		if s.OnFailed != "block" && s.OnFailed != "supersede" {
			bad("sync %q: on_failed %q: want block or supersede", s.Name, s.OnFailed)
		}
		for i, w := range s.Windows {
			if err := w.validate(); err != nil {
				bad("sync %q: window %d: %w", s.Name, i+1, err)
			}
		}
		switch {
		case len(s.Windows) > maxWindows:
			bad("sync %q: %d windows: want at most %d", s.Name, len(s.Windows), maxWindows)
		case len(s.Holidays) > maxHolidays:
			bad("sync %q: %d holidays: want at most %d", s.Name, len(s.Holidays), maxHolidays)
		case len(s.Holidays) > 0 && len(s.Windows) == 0:
			bad("sync %q: holidays have an effect on windows only, and there are none", s.Name)
		}
		if s.Concurrency < 1 || s.Rate < 0 || s.MaxInFlight < 0 {
			bad("sync %q: limits must not be negative", s.Name)
		}
		if r := s.Retry; r.Initial < 0 || r.Max < r.Initial || r.MaxAge < 0 || r.Attempts < 0 || r.Jitter > 1 {
			bad("sync %q: retry: want 0 < initial <= max, max_age and attempts not negative, jitter at most 100%%", s.Name)
		}
	}
	return errors.Join(problems...)
}

func (s Sync) registration() outbox.Registration {
	return outbox.Registration{Name: s.Name, Patterns: s.Events, OnFailed: s.OnFailed, Notify: s.Notify, Escalate: s.Escalate, From: s.From}
}

// Registrations returns the syncs as [outbox.Store.Register] and [outbox.Store.Apply] take
// them.
func (c Config) Registrations() []outbox.Registration {
	var regs []outbox.Registration
	for _, s := range c.withDefaults().Syncs {
		regs = append(regs, s.registration())
	}
	return regs
}

type nobody struct{}

func (nobody) Attempt(string, string, time.Duration) {}
func (nobody) Claim(string, int, time.Duration)      {}
func (nobody) LeaseLost(string)                      {}
func (nobody) Clock(time.Duration)                   {}
func (nobody) MissingID(string)                      {}
func (nobody) Alert(string, string, int64)           {}
func (nobody) LogAhead(int)                          {}

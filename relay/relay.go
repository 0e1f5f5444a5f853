package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hms-mkt/lockstep/outbox"
)

// Relay runs the pipelines of a configuration. Several relays, in one process
// or many, share the work of a database.
type Relay struct {
	store     Store
	config    Config
	log       *slog.Logger
	troubles  *troubles // database calls that fail
	slots     *slots
	pipelines []*pipeline
	decoding  gate  // of the payloads that expressions read
	steps     steps // what the loops do at the moment; also these two
	register  *step
	maintain  *step
	reloading sync.Mutex
	ready     atomic.Bool
	cut       atomic.Bool // the drain ran out
	waiting   atomic.Pointer[string]

	evaluationPeriod time.Duration
}

// ErrNotDrained is returned by Run when deliveries were under way at the end
// of the drain. They were cut off. The log has their outcome; if the database
// was away too, the relay that takes them over records it.
var ErrNotDrained = errors.New("stopped before all deliveries under way were finished")

// New checks the configuration and prepares a relay. It connects to nothing.
func New(store Store, config Config) (*Relay, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	r := &Relay{
		store: store, config: config, log: config.Logger, troubles: newTroubles(config.Logger),
		decoding: newGate(), evaluationPeriod: min(evaluationPeriod, config.Lease/(4*evaluationPeriods)),
	}
	r.register = r.steps.add("registration of syncs", maintainBound)
	r.maintain = r.steps.add("maintenance", maintainBound)
	all, reserve := newSlots(config.Workers, len(config.Syncs))
	r.slots = all
	var problems []error
	for _, s := range config.Syncs {
		p, err := newPipeline(r, s, all.share(reserve, s.inFlight(config.Workers)))
		if err != nil {
			problems = append(problems, fmt.Errorf("sync %q: %w", s.Name, err))
			continue
		}
		r.pipelines = append(r.pipelines, p)
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return r, nil
}

// Run relays until ctx ends, then stops claiming, waits up to Config.Drain for
// deliveries under way, releases the rest and returns nil, or ErrNotDrained. A
// server that is not there yet is waited for. A database that does not exist, a
// login that is refused, a schema that does not fit, now or after a migration
// later, or a sync that must say where it starts, ends Run with an error. A
// relay runs once.
func (r *Relay) Run(ctx context.Context) error {
	if err := r.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	r.waiting.Store(nil)
	r.ready.Store(true)
	defer r.ready.Store(false)
	r.log.InfoContext(ctx, "relay running", "syncs", len(r.pipelines), "workers", r.config.Workers)

	// Stopping has two steps: ctx ends claiming, attempts ends what is under way.
	attempts, cutOff := context.WithCancel(context.WithoutCancel(ctx))
	defer cutOff()
	var sending sync.WaitGroup
	claiming, ctx := errgroup.WithContext(ctx)
	loop := func(name string, run func(context.Context)) {
		claiming.Go(func() error { return r.supervise(name, func() error { run(ctx); return nil }) })
	}
	for _, p := range r.pipelines {
		loop("claim for sync "+p.sync.Name, func(ctx context.Context) { p.claimLoop(ctx, attempts) })
		sending.Go(func() { p.send(attempts) })
	}
	loop("registration", r.registerLoop)
	loop("maintenance", r.maintainLoop)
	loop("listen", r.listenLoop)
	loop("clock", r.clockLoop)
	loop("watch", r.watchLoop)
	claiming.Go(func() error { return r.supervise("schema", func() error { return r.watchSchema(ctx) }) })

	<-ctx.Done()
	r.ready.Store(false)
	r.log.InfoContext(ctx, "relay stopping", "drain", r.config.Drain)
	drained := time.AfterFunc(r.config.Drain, func() {
		r.cut.Store(true)
		r.slots.close()
		cutOff()
	})
	claimed, sent := make(chan error, 1), make(chan struct{})
	go func() {
		claimed <- claiming.Wait()
		for _, p := range r.pipelines {
			p.drain()
		}
		sending.Wait()
		close(sent)
	}()
	select {
	case <-sent:
	case <-attempts.Done():
		select {
		case <-sent:
		case <-time.After(2 * stopGrace):
			r.log.ErrorContext(ctx, "an adapter does not return although its context has ended: leaving it behind")
		}
	}
	drained.Stop()
	var left error
	select {
	case left = <-claimed:
	default: // the adapter keeps a claimer
	}
	if r.cut.Load() {
		return errors.Join(left, ErrNotDrained)
	}
	r.log.InfoContext(ctx, "relay stopped")
	return left
}

// Ready reports why the relay cannot do its work now, nil if it can: it runs,
// the database accepts writes and no loop is stuck.
func (r *Relay) Ready(ctx context.Context) error {
	if !r.ready.Load() {
		if reason := r.waiting.Load(); reason != nil {
			return errors.New("relay waits for its database: " + *reason)
		}
		return errors.New("relay is starting or stopping")
	}
	if err := r.steps.stuck(); err != nil {
		return err
	}
	if err := r.store.Check(ctx); err != nil {
		return errors.New(outbox.Brief(err)) // the pipelines log the whole of it
	}
	return nil
}

// prepare waits for the database and registers the syncs.
func (r *Relay) prepare(ctx context.Context) error {
	calls := r.caller("start", "")
	calls.says = "database is not ready, waiting"
	for {
		err := r.store.Check(ctx)
		if err == nil {
			err = r.store.CheckPrivileges(ctx)
		}
		if err == nil {
			var known map[string]outbox.Registered
			known, err = r.store.Register(ctx, r.config.Registrations())
			if err == nil {
				r.compare(ctx, known)
				calls.worked(ctx)
				return nil
			}
		}
		// A name that is wrong at the start is a mistake; while the relay runs, a database that is gone is waited for.
		if ctx.Err() != nil || !outbox.IsTemporary(err) || outbox.NoSuchDatabase(err) {
			return err
		}
		r.waiting.Store(new(outbox.Brief(err)))
		sleep(ctx, calls.failed(ctx, err))
	}
}

// compare logs where the configuration and the database's rows differ. The rows win.
func (r *Relay) compare(ctx context.Context, known map[string]outbox.Registered) {
	for _, p := range r.pipelines {
		if row := known[p.sync.Name]; !row.Matches(p.sync.registration()) {
			r.log.WarnContext(ctx, "sync is configured differently in the database, which rules; change it with: lockstep sync apply",
				"sync", p.sync.Name, "database_events", row.Patterns, "database_on_failed", row.OnFailed, "retired", row.Retired)
		}
	}
}

// registerLoop completes registrations: it adds retained events to new syncs.
func (r *Relay) registerLoop(ctx context.Context) {
	running := map[string]*outbox.Backfill{}
	reading, adding := r.caller("read syncs", ""), map[string]*caller{}
	for _, p := range r.pipelines {
		adding[p.sync.Name] = r.caller("add retained events", p.sync.Name)
	}
	defer r.register.end()
	for ctx.Err() == nil {
		pause, failed := time.Second, time.Duration(0)
		r.register.begin()
		known, err := r.store.Syncs(ctx)
		if err != nil {
			failed = reading.failed(ctx, err)
		} else {
			reading.worked(ctx)
		}
		for _, p := range r.pipelines {
			name := p.sync.Name
			if !known[name].Backfilling {
				delete(running, name)
				continue
			}
			if running[name] == nil {
				running[name] = r.store.NewBackfill(name)
			}
			complete, wait, err := running[name].Step(ctx, 2000)
			if err != nil {
				failed = max(failed, adding[name].failed(ctx, err))
				continue
			}
			adding[name].worked(ctx)
			switch {
			case complete:
				r.log.InfoContext(ctx, "sync registered", "sync", name)
				p.wake()
			case wait:
				pause = min(pause, 100*time.Millisecond)
			default:
				pause = 0
			}
		}
		r.register.end()
		sleep(ctx, max(pause, failed))
	}
}

// watchSchema returns an error when a migration has made this program too old. Only a
// newer program can continue from there.
func (r *Relay) watchSchema(ctx context.Context) error {
	calls := r.caller("check the schema", "")
	for ctx.Err() == nil {
		switch err := r.store.Check(ctx); {
		case errors.Is(err, outbox.ErrSchema):
			r.log.ErrorContext(ctx, "schema has changed under this relay, which ends", "error", err)
			return err
		case err != nil:
			sleep(ctx, max(calls.failed(ctx, err), time.Second))
		default:
			calls.worked(ctx)
			sleep(ctx, time.Second)
		}
	}
	return nil
}

// listenLoop wakes pipelines by NOTIFY where a sync asks for it. Polling finds
// everything anyway.
func (r *Relay) listenLoop(ctx context.Context) {
	wanted := map[string]*pipeline{}
	for _, p := range r.pipelines {
		if p.sync.Notify {
			wanted[p.sync.Name] = p
		}
	}
	if len(wanted) == 0 {
		return
	}
	calls := r.caller("listen", "")
	for ctx.Err() == nil {
		err := r.store.Listen(ctx, func() { calls.worked(ctx) }, func(name string) {
			if p, ok := wanted[name]; ok {
				p.wake()
			}
		})
		sleep(ctx, calls.failed(ctx, err))
	}
}

func (r *Relay) caller(what, sync string) *caller {
	return &caller{troubles: r.troubles, what: what, sync: sync}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

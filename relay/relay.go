package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/hms-mkt/lockstep/outbox"
)

// Relay sends the deliveries of the syncs in its configuration. Several relays, in one
// process or in many, share the work of a database. [New] makes one.
type Relay struct {
	store     Store
	config    Config
	log       *slog.Logger
	tracer    trace.Tracer
	troubles  *troubles // database calls that fail
	slots     *slots
	pipelines []*pipeline
	decoding  gate  // bounds the payloads that expressions read at a time
	steps     steps // the current steps of all loops
	register  *step // the step of registerLoop
	maintain  *step // the step of maintainLoop
	reloading sync.Mutex
	ready     atomic.Bool
	cut       atomic.Bool            // the drain took too long, and attempts were cut off
	waiting   atomic.Pointer[string] // why Run waits for the database

	evaluationPeriod time.Duration
}

// ErrNotDrained is the error of [Relay.Run] if deliveries were in flight at the end of the
// drain. Their attempts were cut off, and the log has them as unknown. If the database could
// not be reached either, the relay that takes the deliveries over logs them.
var ErrNotDrained = errors.New("stopped before all deliveries in flight were finished")

// New checks the configuration and prepares a relay. The error names every mistake in the
// configuration. New calls neither the database nor a receiver.
func New(store Store, config Config) (*Relay, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	r := &Relay{
		store: store, config: config, log: config.Logger, tracer: newTracer(config.Tracing), troubles: newTroubles(config.Logger),
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

// Run sends deliveries until ctx ends. Then it stops claiming, waits up to Config.Drain for
// deliveries in flight, releases the others and returns nil, or [ErrNotDrained]. Call Run
// once.
//
// If the database server cannot be reached, Run waits for it. Run returns an error at once
// if the database does not exist, if the login is refused, if the schema does not fit this
// program (see [outbox.ErrSchema]), or if a new sync must say where it starts (see
// [outbox.ErrNeedsFrom]). It also returns an error if a later migration makes the schema
// unfit for this program.
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

	defer r.beat(ctx)()

	// A stop has two steps: the end of ctx stops claims, the end of attempts cuts off the attempts in flight.
	attempts, cutOff := context.WithCancel(context.WithoutCancel(ctx))
	defer cutOff()
	var sending sync.WaitGroup
	claiming, ctx := errgroup.WithContext(ctx)
	loop := func(name string, run func(context.Context)) {
		claiming.Go(func() error { return r.supervise(name, func() error { run(ctx); return nil }) })
	}
	for _, p := range r.pipelines {
		loop("claim for sync "+p.sync.Name, func(ctx context.Context) { p.claimLoop(ctx, attempts) })
		loop("confirm for sync "+p.sync.Name, p.confirmLoop)
		sending.Go(func() { p.send(attempts) })
	}
	loop("registration", r.registerLoop)
	loop("maintenance", r.maintainLoop)
	loop("listen", r.listenLoop)
	loop("clock", r.clockLoop)
	loop("alerts", r.alertLoop)
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
			r.log.ErrorContext(ctx, "an adapter does not return although its context has ended: abandoning it")
		}
	}
	drained.Stop()
	var left error
	select {
	case left = <-claimed:
	default: // a claimer waits for the adapter
	}
	if r.cut.Load() {
		return errors.Join(left, ErrNotDrained)
	}
	r.log.InfoContext(ctx, "relay stopped")
	return left
}

// Ready returns nil if the relay can work now: it runs, the database accepts writes and no
// loop is stuck. If not, the error has the reason, without secrets and addresses. Ready
// calls the database, and is safe for concurrent use.
func (r *Relay) Ready(ctx context.Context) error {
	if !r.ready.Load() {
		if reason := r.waiting.Load(); reason != nil {
			return errors.New("relay waits for its database: " + *reason)
		}
		return errors.New("relay is starting or stopping")
	}
	if err := r.Alive(); err != nil {
		return err
	}
	if err := r.store.Check(ctx); err != nil {
		return errors.New(outbox.Brief(err)) // the pipelines log the full error
	}
	return nil
}

// Alive returns nil unless a loop of the relay is stuck: a call to the database or to an
// adapter has not returned long after its deadline. The error names the loops. A restart
// may help then. It does not help against a database or a receiver that is away, which the
// relay waits for: then Alive is nil. Alive returns at once and is safe for concurrent use.
func (r *Relay) Alive() error { return r.steps.stuck() }

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
			err = r.store.CheckNumbers(ctx)
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
		// At the start, a database that does not exist is a wrong name. While the relay runs, it waits for the database.
		if ctx.Err() != nil || !outbox.IsTemporary(err) || outbox.NoSuchDatabase(err) {
			return err
		}
		r.waiting.Store(new(outbox.Brief(err)))
		sleep(ctx, calls.failed(ctx, err))
	}
}

// compare logs each sync whose configuration differs from its row in the database. The row
// applies.
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

// listenLoop makes pipelines poll at once after a NOTIFY, for syncs that ask for it. It only
// saves time: polls find every delivery without it.
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

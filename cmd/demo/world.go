package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/console"
	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/scheduling"
	"github.com/hms-mkt/lockstep/internal/telemetry"
	"github.com/hms-mkt/lockstep/migrations"
)

// world is everything that the demo starts: a database, the scheduling module, a
// court, a clinic and two relays.
type world struct {
	dir           string
	configFile    string
	databaseURL   string
	schedulingURL string
	consoleURL    string // empty until it is started
	token         string // of the console
	pool          *pgxpool.Pool
	court, clinic *system
	password      string // of the clinic
	limits        string // of the court, in the configuration

	mu     sync.Mutex
	relays map[string]*relayProcess // by name; the last process of each
	fail   context.CancelCauseFunc

	closers []func() error
}

// Texts with {{placeholders}} for the parts that differ from run to run.
var (
	//go:embed lockstep.yaml
	lockstepYAML string
	//go:embed hints.txt
	hints string // all its indented lines work when pasted into a shell, one after the other
)

// fill replaces the placeholders in a text.
func (w *world) fill(text string) string {
	return strings.NewReplacer(
		"{{config}}", w.configFile, "{{dir}}", w.dir, "{{database}}", w.databaseURL, "{{password}}", w.password,
		"{{court}}", w.court.url, "{{clinic}}", w.clinic.url, "{{scheduling}}", w.schedulingURL, "{{limits}}", w.limits,
		"{{console}}", w.consoleURL, "{{token}}", w.token,
	).Replace(text)
}

// dropTimeout bounds the removal of the database.
const dropTimeout = 10 * time.Second

// startWorld starts everything. If it fails, it ends everything that it has started.
func startWorld(ctx context.Context, seed uint64) (_ *world, err error) {
	w := &world{court: newCourt(), clinic: newClinic(), password: rand.Text(), token: rand.Text(), relays: map[string]*relayProcess{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.dir, err = os.MkdirTemp("", "lockstep-demo-"); err != nil {
		return nil, err
	}
	w.atEnd(func() error { return os.RemoveAll(w.dir) })
	if err := w.startDatabase(ctx); err != nil {
		return nil, err
	}
	if err := w.startSystems(seed); err != nil {
		return nil, err
	}
	if err := w.startScheduling(ctx); err != nil {
		return nil, err
	}
	w.configFile = filepath.Join(w.dir, "lockstep.yaml")
	if err := os.WriteFile(w.configFile, []byte(w.fill(lockstepYAML)), 0o600); err != nil {
		return nil, err
	}
	w.atEnd(w.stopRelays)
	for _, name := range []string{relay1, relay2} {
		if err := w.startRelay(ctx, name); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// atEnd makes close call f, before the functions that were given earlier.
func (w *world) atEnd(f func() error) { w.closers = append(w.closers, f) }

// close ends everything, the last started first. It may be called twice.
func (w *world) close() error {
	var errs []error
	for _, f := range slices.Backward(w.closers) {
		errs = append(errs, f())
	}
	w.closers = nil
	return errors.Join(errs...)
}

func (w *world) startDatabase(ctx context.Context) error {
	server, err := pgtest.Start(ctx, pgtest.Options{})
	if err != nil {
		return err
	}
	w.atEnd(server.Stop)
	name := "lockstep_demo_" + strings.ToLower(rand.Text()[:10])
	if err := server.CreateDatabase(ctx, name, ""); err != nil {
		return err
	}
	if server.Route() == pgtest.URL { // the user's server, which keeps running
		w.atEnd(func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
			defer cancel()
			return server.DropDatabase(ctx, name)
		})
	}
	w.databaseURL = server.URL(name)
	for _, set := range []migrations.Set{migrations.Outbox, migrations.Scheduling} {
		if err := migrations.Up(ctx, w.databaseURL, set); err != nil {
			return fmt.Errorf("migrate %s: %w", set, err)
		}
	}
	if w.pool, err = pgxpool.New(ctx, w.databaseURL); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	w.atEnd(func() error { w.pool.Close(); return nil })
	return nil
}

// systems returns the court and the clinic.
func (w *world) systems() []*system { return []*system{w.court, w.clinic} }

func (w *world) startSystems(seed uint64) error {
	if err := w.court.run(courtsim.Options{Seed: seed}); err != nil {
		return err
	}
	w.atEnd(w.court.sim.Close)
	if err := w.clinic.run(courtsim.Options{Seed: seed + 1, Username: "agency", Password: w.password}); err != nil {
		return err
	}
	w.atEnd(w.clinic.sim.Close)
	return nil
}

// startScheduling serves the scheduling module's API.
func (w *world) startScheduling(ctx context.Context) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("scheduling: %w", err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	served := make(chan error, 1)
	go func() {
		served <- scheduling.Serve(ctx, ln, scheduling.New(w.pool, nil), scheduling.Pages{Zone: londonZone}, slog.New(slog.DiscardHandler))
	}()
	w.atEnd(func() error { stop(); return <-served })
	w.schedulingURL = "http://" + ln.Addr().String()
	return nil
}

// startConsole serves the pages of lockstep run. The demo's relays have none, because they
// are started again and again.
func (w *world) startConsole(ctx context.Context) error {
	zone, err := time.LoadLocation(londonZone)
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	pages, err := console.New(console.Config{
		Read: w.pool, Operate: w.pool, Zone: zone, Loopback: true, Version: "demo", Log: log,
		Users: []console.User{{Name: operator, Token: adapters.Secret(w.token), May: console.Operate}},
	})
	if err != nil {
		return err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("console: %w", err)
	}
	server := telemetry.Serve(ln, pages.Handler(), log)
	w.atEnd(server.Close)
	w.atEnd(func() error { pages.Close(); return nil })
	w.consoleURL = "http://" + ln.Addr().String()
	return nil
}

// The relays' names.
const (
	relay1 = "relay-1"
	relay2 = "relay-2"
)

// startRelay starts a relay, or starts it again after it was killed.
func (w *world) startRelay(ctx context.Context, name string) error {
	p, err := startRelay(ctx, name, w.dir, w.configFile, "DATABASE_URL="+w.databaseURL, "CLINIC_PASSWORD="+w.password)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.relays[name] = p
	w.supervise(p)
	return nil
}

// watchRelays returns a context that ends when a relay ends by itself.
func (w *world) watchRelays(ctx context.Context) context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx, w.fail = context.WithCancelCause(ctx)
	for _, p := range w.relays {
		w.supervise(p)
	}
	return ctx
}

// supervise fails the watched context when p ends by itself. Caller holds mu.
func (w *world) supervise(p *relayProcess) {
	fail := w.fail
	if fail == nil {
		return // nobody watches the relays yet
	}
	go func() {
		<-p.done // ends at the latest when the world is closed
		if err := p.failure(); err != nil {
			fail(err)
		}
	}()
}

func (w *world) relay(name string) *relayProcess {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.relays[name]
}

// stopRelays stops the relays at the same time.
func (w *world) stopRelays() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var group errgroup.Group
	for _, p := range w.relays {
		group.Go(p.stop)
	}
	return group.Wait()
}

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/scheduling"
	"github.com/hms-mkt/lockstep/migrations"
)

// world is everything that runs: a database, the scheduling module, a court, a
// clinic and two relays.
type world struct {
	dir           string
	configFile    string
	databaseURL   string
	schedulingURL string
	pool          *pgxpool.Pool
	court, clinic *system
	password      string // of the clinic

	mu     sync.Mutex
	relays []*relayProcess // running or ended
	fail   context.CancelCauseFunc

	closers []func() error
}

// closeTimeout bounds each step of the cleaning up.
const closeTimeout = 10 * time.Second

// startWorld starts everything. What it had started before an error is gone
// when it returns.
func startWorld(ctx context.Context, seed uint64) (_ *world, err error) {
	w := &world{court: newCourt(), clinic: newClinic(), password: rand.Text()}
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
	if err := os.WriteFile(w.configFile, []byte(lockstepYAML(w.court, w.clinic)), 0o600); err != nil {
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

// atEnd has close call f, before what was given earlier.
func (w *world) atEnd(f func() error) { w.closers = append(w.closers, f) }

// close ends everything, the last started first. Calling it twice is allowed.
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
	if server.Route() == pgtest.URL { // that server stays
		w.atEnd(func() error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
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
	if err := w.clinic.run(courtsim.Options{Seed: seed + 1, Username: clinicUser, Password: w.password}); err != nil {
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
	quiet := slog.New(slog.DiscardHandler)
	srv := &http.Server{
		Handler:           scheduling.NewHandler(scheduling.New(w.pool), quiet),
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(quiet.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	w.atEnd(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		err := srv.Shutdown(ctx)
		if err != nil {
			_ = srv.Close() // cut off what is left
		}
		if end := <-served; !errors.Is(end, http.ErrServerClosed) {
			err = errors.Join(err, end)
		}
		return err
	})
	w.schedulingURL = "http://" + ln.Addr().String()
	return nil
}

// The relays' names.
const (
	relay1 = "relay-1"
	relay2 = "relay-2"
)

// startRelay starts a relay, or one again that was killed.
func (w *world) startRelay(ctx context.Context, name string) error {
	p, err := startRelay(ctx, name, w.dir, w.configFile, "DATABASE_URL="+w.databaseURL, clinicPassword+"="+w.password)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.relays = slices.DeleteFunc(w.relays, func(old *relayProcess) bool { return old.name == name })
	w.relays = append(w.relays, p)
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
		return // not watched yet
	}
	go func() {
		<-p.done // at the latest when the world is closed
		if err := p.failure(); err != nil {
			fail(err)
		}
	}()
}

func (w *world) relay(name string) *relayProcess {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.relays {
		if p.name == name {
			return p
		}
	}
	return nil
}

// stopRelays stops the relays at the same time.
func (w *world) stopRelays() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	errs := make([]error, len(w.relays))
	var wg sync.WaitGroup
	for i, p := range w.relays {
		wg.Go(func() { errs[i] = p.stop() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

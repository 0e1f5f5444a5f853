package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/console"
	"github.com/hms-mkt/lockstep/internal/telemetry"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

func (a *app) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Relay events until stopped",
		Long: `Relay events until stopped. Several relays may run on one database and share
the work. The relay waits for a database that does not answer yet.

SIGINT or SIGTERM stops the relay: it claims nothing more, and deliveries in
flight have relay.drain to finish. If that is not enough, it exits with 4. A
second signal more than a second later ends it at once, also with 4. It exits
with 1 if a migration makes the schema too new for this program, or if at the
start the database does not exist or refuses the login.

The relay reads the configuration again when the file, or a file that a ${file:…}
names, has changed, and on SIGHUP. If it is wrong, the log says what is wrong and
where, and nothing changes. Otherwise conditions, mappings, adapters with
their credentials and routes, retry and limits take effect with the next
delivery. The log names changes that need a restart or lockstep sync apply.

The relay serves the console (/), health (/livez, /readyz) and metrics (/metrics)
at listen. An empty listen turns them off. The login needs the role outbox_relay.

With OTEL_EXPORTER_OTLP_ENDPOINT, attempts are exported as spans of OpenTelemetry.`,
		Example: `  lockstep run
  lockstep run --config court.yaml --log-format json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			signals := make(chan os.Signal, 1)
			signal.Notify(signals, syscall.SIGHUP) // which would end the process otherwise
			defer signal.Stop(signals)
			files := new(config.Watch)
			f, err := a.loadBy(files.Load)
			if err != nil {
				return err
			}
			url, err := a.url(f)
			if err != nil {
				return err
			}
			return a.relay(cmd.Context(), f, files, url, signals)
		},
	}
}

// calmCollector lets twice as much garbage accumulate, unless GOGC says otherwise. For
// the few megabytes of a relay, the collector would run some fifty times a second. This
// costs about 6 MiB and saves some 7 % of the relay's CPU.
func calmCollector() {
	const ordinary, calm = 100, 200
	if before := debug.SetGCPercent(calm); before != ordinary {
		debug.SetGCPercent(before)
	}
}

// relay runs a relay with its health and metrics.
func (a *app) relay(ctx context.Context, f *config.File, files *config.Watch, url string, hangups <-chan os.Signal) error {
	calmCollector()
	zones, err := mapping.ZoneVersion()
	if err != nil {
		return usageError{err}
	}
	name := f.Relay.Name
	if name == "" {
		name = relayName()
	}
	traces, err := a.tracing(ctx, name)
	if err != nil {
		return err
	}
	defer traces.close(ctx, a.log)
	log := slog.New(inTrace{a.log.Handler()}).With("relay", name)
	// Not ctx: after the stop, the store still records the deliveries in flight.
	store, err := outbox.Open(context.WithoutCancel(ctx), url, outbox.Options{MaxConnections: f.Database.MaxConnections, Name: name, Tracer: traces.database})
	if err != nil {
		return usagef("the database URL cannot be used: want postgres://user@host:5432/database, or keywords such as host=… dbname=…")
	}
	defer store.Close()

	b := thisBuild()
	metrics := telemetry.NewMetrics(telemetry.Build{Version: b.Version, Revision: b.Revision})
	for _, s := range f.Syncs {
		metrics.Expect(s.Name)
	}
	c := f.RelayConfig()
	c.Logger, c.Observer, c.Version, c.Tracing = log, metrics, b.Version, traces.tracers()
	r, err := relay.New(store, c)
	if err != nil {
		return usageError{err}
	}
	status := metrics.Watch(store, log)
	defer status.Close()
	var pages *console.Console // nil: there are none
	if f.Listen != "" {
		l, err := listen(ctx, f.Listen)
		if err != nil {
			return err
		}
		handler, stopPages := metrics.Handler(r.Alive, r.Ready), func() {}
		if !f.Console.Off {
			var stop func()
			pages, stop, err = a.console(context.WithoutCancel(ctx), f, url, store.SetPassword, l.Addr())
			if err != nil {
				_ = l.Close()
				return err
			}
			handler, stopPages = withConsole(handler, pages.Handler()), stop
			log.InfoContext(ctx, "serving the console", "address", l.Addr().String())
		}
		server := telemetry.Serve(secure(l, f.ListenTLS, log), handler, log)
		defer func() {
			stopPages()
			if err := server.Close(); err != nil {
				log.WarnContext(ctx, "health and metrics did not stop cleanly", "error", err)
			}
		}()
		log.InfoContext(ctx, "serving health and metrics", "address", l.Addr().String())
	}
	manager := newManager(r, log)
	reload := &reloader{manager: manager, files: files, app: a, relay: r, pages: pages, store: store, metrics: metrics, log: log, started: f, url: url, current: f}
	reloading, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { reload.loop(reloading, hangups) })
	group.Go(func() { manager.loop(reloading) })
	defer func() { stop(); group.Wait() }()
	logWarnings(ctx, log, f.Warnings)
	log.InfoContext(ctx, "lockstep starting", "version", b.Version, "schema", b.Schema, "zones", zones, "syncs", len(f.Syncs))
	err = r.Run(ctx)
	switch sqlState(err) {
	case insufficientPrivilege:
		return fmt.Errorf("this login may not run a relay: %w; an administrator must grant it the role %s", err, roleRelay)
	case "3D000", "28P01", "28000": // no such database, wrong password, login refused
		return fmt.Errorf("%w; check --database-url, DATABASE_URL or database.url", err)
	}
	return err
}

// listen binds the address before the relay sends anything, so that a second
// relay started by mistake with the same configuration fails first.
func listen(ctx context.Context, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen %s: the port is in use, perhaps by another relay: choose another listen address, or write listen: \"\" for none", address)
	}
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w: choose another listen address, or write listen: \"\" for none", address, err)
	}
	return l, nil
}

// relayName returns the relay's name in claims and in the log.
func relayName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "lockstep"
	}
	var random [2]byte
	_, _ = rand.Read(random[:]) // never fails
	return fmt.Sprintf("%s-%d-%s", host, os.Getpid(), hex.EncodeToString(random[:]))
}

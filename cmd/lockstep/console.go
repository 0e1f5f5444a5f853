package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/console"
	"github.com/hms-mkt/lockstep/internal/telemetry"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

func (a *app) consoleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "console",
		Short: "Serve the pages about the syncs until stopped, without a relay",
		Long: `Serve the pages about the syncs until stopped, at the address listen of the
configuration. lockstep run serves the same pages. Use this command on a machine
that runs no relay, for example with the URL of a standby.

The login of the database needs the role outbox_auditor. Without console.users and
console.user_header, the pages are for reading only, and only for this machine.`,
		Example: `  lockstep console
  lockstep console --config court.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var files config.Watch
			f, err := a.loadBy(files.Load)
			if err != nil {
				return err
			}
			url, err := a.url(f)
			if err != nil {
				return err
			}
			return a.serveConsole(cmd.Context(), &files, f, url)
		},
	}
}

// serveConsole serves the pages alone until ctx ends.
func (a *app) serveConsole(ctx context.Context, files *config.Watch, f *config.File, url string) error {
	switch {
	case f.Listen == "":
		return usagef("listen is empty: name the address of the pages, such as listen: 127.0.0.1:9464")
	case f.Console.Off:
		return usagef("console.off is true: remove it to serve the pages")
	}
	l, err := listen(ctx, f.Listen)
	if err != nil {
		return err
	}
	pages, stopPages, err := a.console(ctx, f, url, nil, l.Addr())
	if err != nil {
		_ = l.Close()
		return err
	}
	server := telemetry.Serve(secure(l, f.ListenTLS, a.log), pages.Handler(), a.log)
	a.log.InfoContext(ctx, "serving the console", "address", l.Addr().String())
	a.watchUsers(ctx, files, pages)
	stopPages()
	return server.Close()
}

// console returns the pages that are served at an address. Call the function that it returns
// before the server is closed: it ends the requests that are being answered. login may
// change how a connection to the database at url logs in; nil changes nothing.
func (a *app) console(ctx context.Context, f *config.File, url string, login func(*pgx.ConnConfig), address net.Addr) (*console.Console, func(), error) {
	zone, err := mapping.LoadZone(f.Console.Zone)
	if err != nil {
		return nil, nil, usagef("console.zone: %w", err)
	}
	tcp, ok := address.(*net.TCPAddr)
	c := console.Config{
		Zone: zone, UserHeader: f.Console.UserHeader, Proxies: f.Console.Networks(), Operators: f.Console.Operators,
		Users: usersOf(f), Loopback: ok && tcp.IP.IsLoopback(), Version: thisBuild().Version, Log: a.log,
	}
	if c.Read, err = consolePool(ctx, url, true, login); err != nil {
		return nil, nil, err
	}
	if operator := f.Console.OperatorURL.Reveal(); operator != "" {
		if c.Operate, err = consolePool(ctx, operator, false, nil); err != nil {
			c.Read.Close()
			return nil, nil, fmt.Errorf("console.operator_url: %w", err)
		}
	}
	closePools := func() {
		c.Read.Close()
		if c.Operate != nil {
			c.Operate.Close()
		}
	}
	pages, err := console.New(c)
	if err != nil {
		closePools()
		return nil, nil, err
	}
	running, end := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { pages.Run(running) })
	return pages, func() {
		end()
		group.Wait()
		pages.Close()
		closePools()
	}, nil
}

// usersOf returns the people who may log in at the pages.
func usersOf(f *config.File) (users []console.User) {
	for _, u := range f.Console.Users {
		user := console.User{Name: u.Name, Token: u.Token}
		if u.May == "operate" {
			user.May = console.Operate
		}
		users = append(users, user)
	}
	return users
}

// watchUsers gives the pages the users of the configuration when its files have changed, until
// ctx ends. Another change needs a restart.
func (a *app) watchUsers(ctx context.Context, files *config.Watch, pages *console.Console) {
	ticks := time.NewTicker(watchInterval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		next, changed, err := files.Changed()
		switch {
		case !changed:
		case err != nil:
			if problems, ok := errors.AsType[config.Problems](err); ok {
				logProblems(ctx, a.log, problems)
				err = errors.New(plural(len(problems), "problem"))
			}
			a.log.ErrorContext(ctx, "configuration not reloaded, nothing has changed", "error", err)
		default:
			pages.UseUsers(usersOf(next))
			a.log.InfoContext(ctx, "console.users reloaded; other changes need a restart")
		}
	}
}

// withConsole serves the pages at all addresses that health and metrics do not have.
func withConsole(metrics, pages http.Handler) http.Handler {
	mux := http.NewServeMux()
	for _, path := range []string{"/livez", "/readyz", "/metrics"} {
		mux.Handle(path, metrics)
	}
	mux.Handle("/", pages)
	return mux
}

// consoleConnections is how many connections the pages use at most.
const consoleConnections = 3

// consolePool prepares the connections of the pages. The first page connects: to any host of
// the URL, or to the one that accepts writes.
func consolePool(ctx context.Context, url string, anyHost bool, login func(*pgx.ConnConfig)) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, usagef("the database URL cannot be used: want postgres://user@host:5432/database, or keywords such as host=… dbname=…")
	}
	c.MaxConns = consoleConnections
	c.ConnConfig.ConnectTimeout = connectTimeout
	c.ConnConfig.RuntimeParams["application_name"] = "lockstep console"
	outbox.UseFormats(c.ConnConfig)
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // suits any pooler
	if !anyHost {
		outbox.PreferWritable(c.ConnConfig, url)
	}
	if login != nil {
		c.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
			login(c)
			return nil
		}
	}
	return pgxpool.NewWithConfig(ctx, c)
}

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/console"
	"github.com/hms-mkt/lockstep/internal/telemetry"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// watchInterval is how often a relay looks for changes of its files. A change is used
// when it was seen twice.
const watchInterval = time.Second

// reloader reads the configuration again while a relay runs.
type reloader struct {
	manager *manager
	files   *config.Watch
	app     *app
	relay   *relay.Relay
	pages   *console.Console // nil: there are none
	store   *outbox.Store
	metrics *telemetry.Metrics
	log     *slog.Logger
	started *config.File // with which the process started
	url     string       // of the database, with the password in use
	current *config.File // the configuration in use
}

// loop reloads at each signal, and when the files have changed, until ctx ends.
func (r *reloader) loop(ctx context.Context, signals <-chan os.Signal) {
	ticks := time.NewTicker(watchInterval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			next, err := r.app.loadBy(r.files.Load)
			r.use(ctx, next, err)
		case <-ticks.C:
			if next, changed, err := r.files.Changed(); changed {
				r.use(ctx, next, err)
			}
		}
	}
}

// use gives the configuration next to the relay. wrong is why it could not be read.
func (r *reloader) use(ctx context.Context, next *config.File, wrong error) {
	r.manager.reloading()
	defer r.manager.reloaded()
	name, _ := r.app.file()
	left, err := []string(nil), wrong
	if wrong == nil {
		left, err = r.replace(next)
	}
	r.metrics.Reloaded(err == nil)
	if err != nil {
		if problems, ok := errors.AsType[config.Problems](err); ok {
			logProblems(ctx, r.log, problems)
			err = errors.New(plural(len(problems), "problem"))
		}
		r.log.ErrorContext(ctx, "configuration not reloaded, nothing has changed", "file", name, "error", err)
		return
	}
	replaced := r.current.Syncs
	time.AfterFunc(r.started.Relay.Lease, func() { // after this, no attempt uses them any more
		for _, s := range replaced {
			if c, ok := s.Adapter.Adapter.(io.Closer); ok {
				_ = c.Close()
			}
		}
	})
	r.current = next
	logWarnings(ctx, r.log, next.Warnings)
	for _, what := range left {
		r.log.WarnContext(ctx, "configuration change not applied", "file", name, "change", what)
	}
	r.log.InfoContext(ctx, "configuration reloaded", "file", name, "not_taken_over", len(left))
}

// replace gives next to the relay. left names the changes that have no effect.
func (r *reloader) replace(next *config.File) (left []string, err error) {
	database, err := r.app.url(next)
	if err != nil {
		return nil, err
	}
	c := next.RelayConfig()
	c.Logger, c.Observer = r.log, r.metrics
	if left, err = r.relay.Reload(c); err != nil {
		return nil, err
	}
	if database != r.url && withoutPassword(database) == withoutPassword(r.url) {
		if login, err := pgx.ParseConfig(database); err == nil {
			r.store.UsePassword(login.Password)
			r.url = database
		}
	}
	if r.pages != nil {
		r.pages.UseUsers(usersOf(next))
	}
	pages := next.Console
	pages.Users = r.started.Console.Users
	for _, s := range []struct {
		name string
		same bool
	}{
		{"database", database == r.url && next.Database.MaxConnections == r.started.Database.MaxConnections},
		{"listen", next.Listen == r.started.Listen},
		{"listen_tls", next.ListenTLS == r.started.ListenTLS},
		{"console, except its users,", reflect.DeepEqual(pages, r.started.Console)},
		{"relay.name", next.Relay.Name == r.started.Relay.Name},
	} {
		if !s.same {
			left = append(left, s.name+" needs a restart")
		}
	}
	return left, nil
}

// passwordKeyword matches the password in the keywords of a database URL.
var passwordKeyword = regexp.MustCompile(`\bpassword\s*=\s*(?:'(?:[^'\\]|\\.)*'|\S*)`)

// withoutPassword is a database's URL, or its keywords, without the password.
func withoutPassword(database string) string {
	u, err := url.Parse(database)
	if err != nil || u.User == nil {
		return passwordKeyword.ReplaceAllString(database, "")
	}
	u.User = url.User(u.User.Username())
	return u.String()
}

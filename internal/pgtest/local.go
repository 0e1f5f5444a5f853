package pgtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errGone says that a server process ended while it was expected to start.
var errGone = errors.New("the server process ended")

// local is a server run from the machine's own PostgreSQL programs.
type local struct {
	bin    string // directory of initdb and postgres
	dir    string // everything about this server, locked while the process lives
	lock   io.Closer
	user   account
	env    []string // of the server process
	port   int
	admin  string
	server *process // nil when killed or stopped
}

// startLocal creates a cluster in a temporary directory and starts it.
func startLocal(ctx context.Context, opts Options) (*Server, error) {
	bin, err := findPrograms(ctx, debianPrograms)
	if err != nil {
		return nil, err
	}
	user, err := serverAccount()
	if err != nil {
		return nil, err
	}
	parent := opts.parent()
	removeLeftovers(parent)

	password := cmp.Or(kept.password, rand.Text())
	l := &local{bin: bin, user: user, env: opts.Env}
	return l.start(ctx, parent, password, func(ctx context.Context) error {
		origin, err := kept.origin(ctx, bin, user)
		switch {
		case err != nil:
			return err
		case origin != nil:
			err = l.copyData(ctx, origin)
		default:
			err = l.initdb(ctx, password)
		}
		if err != nil {
			return err
		}
		return l.configure(opts)
	})
}

// leastFree is the memory that must be free before servers keep their data in it.
// A few servers with a dozen databases each need less than half of it.
const leastFree = 4 << 30

// parent is the directory for a server's directory. Databases are created more than ten
// times faster in memory than on most disks. For a server with fsync the disk matters.
func (o Options) parent() string {
	dir := cmp.Or(o.Dir, os.Getenv(EnvDir))
	if dir == "" && !o.Fsync {
		dir = memoryDir(leastFree)
	}
	return cmp.Or(dir, os.TempDir())
}

// standby copies the cluster of a running server into a new directory and starts it as
// a standby.
func (l *local) standby(ctx context.Context, primary url.URL) (*Server, error) {
	password, _ := primary.User.Password()
	s := &local{bin: l.bin, user: l.user}
	return s.start(ctx, filepath.Dir(l.dir), password, func(ctx context.Context) error {
		cmd := s.command(ctx, "pg_basebackup",
			"--pgdata="+s.data(), "--dbname="+primary.String(), "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("pg_basebackup: %w\n%s", err, tail(out))
		}
		return nil
	})
}

// start makes a directory, calls fill to put a cluster into it, and starts its server.
// The superuser of the cluster has the given password.
func (l *local) start(ctx context.Context, parent, password string, fill func(context.Context) error) (_ *Server, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("pgtest: starting PostgreSQL from %s: %w", l.bin, err)
			_ = l.stop()
		}
	}()
	if err := l.makeData(parent); err != nil {
		return nil, err
	}
	if err := fill(ctx); err != nil {
		return nil, err
	}
	admin := url.URL{
		Scheme: "postgres", User: url.UserPassword("postgres", password),
		Path: "/postgres", RawQuery: "sslmode=disable",
	}
	for {
		if l.port, err = freePort(ctx); err != nil {
			return nil, err
		}
		admin.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(l.port))
		l.admin = admin.String()
		err = l.launch(ctx)
		if err == nil {
			return &Server{route: Local, admin: admin, engine: l}, nil
		}
		// Another process may have taken the port in the meantime.
		if !errors.Is(err, errPortTaken) || ctx.Err() != nil {
			return nil, err
		}
	}
}

// makeData makes the server's directory, with an empty one for its data.
func (l *local) makeData(parent string) (err error) {
	if l.dir, l.lock, err = makeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(l.data(), 0o700); err != nil {
		return err
	}
	return l.user.own(l.data())
}

func (l *local) data() string { return filepath.Join(l.dir, "data") }
func (l *local) log() string  { return filepath.Join(l.dir, "server.log") }

// initdb creates the cluster.
func (l *local) initdb(ctx context.Context, password string) error {
	pwfile := filepath.Join(l.dir, "password")
	if err := os.WriteFile(pwfile, []byte(password), 0o600); err != nil {
		return err
	}
	defer func() { _ = os.Remove(pwfile) }()
	if err := l.user.own(pwfile); err != nil {
		return err
	}
	cmd := l.command(ctx, "initdb",
		"--pgdata="+l.data(), "--username=postgres", "--auth=scram-sha-256", "--pwfile="+pwfile,
		"--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, tail(out))
	}
	return nil
}

// configure writes the settings.
func (l *local) configure(opts Options) error {
	conf, err := os.OpenFile(filepath.Join(l.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	settings := baseSettings(opts)
	settings["listen_addresses"] = "127.0.0.1"
	settings["unix_socket_directories"] = ""
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(conf, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	return conf.Close()
}

// baseSettings are those of every server that is started here.
func baseSettings(opts Options) map[string]string {
	settings := map[string]string{
		"max_connections":           "200",
		"max_prepared_transactions": "20",
		"timezone":                  "UTC",
		"lc_messages":               "C",
		"jit":                       "off", // costs more than it gains with the rows of a test
	}
	if !opts.Fsync {
		// synchronous_commit is on: a commit must survive a kill.
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
		settings["max_wal_size"] = "256MB" // the directory may be in memory
	}
	maps.Copy(settings, opts.Settings)
	return settings
}

var errPortTaken = errors.New("the port is taken")

// launch starts the server process and waits until it answers.
func (l *local) launch(ctx context.Context) error {
	logFile, err := os.OpenFile(l.log(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }()
	// The process outlives ctx, which bounds only the start.
	cmd := l.command(context.WithoutCancel(ctx), "postgres", "-D", l.data(), "-p", strconv.Itoa(l.port))
	cmd.Env = append(cmd.Env, l.env...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	p, err := startProcess(cmd)
	if err != nil {
		return err
	}
	err = awaitReady(ctx, l.admin, p.done)
	if err == nil {
		l.server = p
		return nil
	}
	p.kill()
	said, _ := os.ReadFile(l.log())
	if bytes.Contains(said, []byte("could not bind")) {
		err = fmt.Errorf("%w: %w", errPortTaken, err)
	}
	return fmt.Errorf("%w; the server's log ends with:\n%s", err, tail(said))
}

func (l *local) kill(context.Context) error {
	if l.server == nil {
		return errNotRunning
	}
	l.server.kill()
	l.server = nil
	return nil
}

func (l *local) shutdown(ctx context.Context) error {
	if l.server == nil {
		return errNotRunning
	}
	err := l.server.interrupt(ctx)
	if err == nil {
		l.server = nil
	}
	return err
}

func (l *local) boot(ctx context.Context) error {
	if l.server != nil && l.server.ended() {
		l.server = nil // it crashed
	}
	if l.server != nil || l.dir == "" {
		return errors.New("only a server that was ended can be booted")
	}
	for {
		err := l.launch(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		// A backend that was busy when its postmaster was killed may live for a moment.
		busy := errors.Is(err, errPortTaken) || strings.Contains(err.Error(), "pre-existing shared memory block")
		if !busy {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (l *local) stop() error {
	if l.server != nil {
		l.server.quit()
		l.server = nil
	}
	if l.dir == "" {
		return nil
	}
	err := os.RemoveAll(l.dir)
	l.dir = ""
	return errors.Join(err, l.lock.Close())
}

// command prepares one of PostgreSQL's programs, run as the server's account
// and without this process's PG… variables.
func (l *local) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(l.bin, program), args...)
	cmd.Dir = l.dir
	cmd.Env = []string{"PATH=" + l.bin + ":" + os.Getenv("PATH"), "HOME=" + l.dir, "LC_ALL=C"}
	if path, ok := os.LookupEnv("LD_LIBRARY_PATH"); ok {
		cmd.Env = append(cmd.Env, "LD_LIBRARY_PATH="+path)
	}
	l.user.run(cmd)
	return cmd
}

// tail returns the end of a program's output, for an error message.
func tail(out []byte) string {
	const most = 2000
	out = bytes.TrimSpace(out)
	return strings.ToValidUTF8(string(out[max(0, len(out)-most):]), "?")
}

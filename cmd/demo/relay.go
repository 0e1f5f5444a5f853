package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// relayMode, as the first argument, makes this program a relay. The demo runs itself
// again, so that each relay is a process that can be killed.
const relayMode = "relay-process"

// relayName is the variable from which the configuration takes the relay's name.
const relayName = "LOCKSTEP_DEMO_RELAY"

// relayMain relays until stdin ends, which also happens when the demo dies.
// The demo handles the signals of the terminal.
func relayMain(args []string, env func(string) (string, bool), stdin io.Reader, stderr io.Writer) int {
	signal.Ignore(os.Interrupt, syscall.SIGHUP)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		stop()
	}()
	if err := runRelay(ctx, args, env, stderr); err != nil {
		fmt.Fprintf(stderr, "relay: %v\n", err)
		return 1
	}
	return 0
}

func runRelay(ctx context.Context, args []string, env func(string) (string, bool), stderr io.Writer) error {
	if len(args) != 1 {
		return errors.New("want one argument, the configuration file")
	}
	f, err := config.Load(args[0], env)
	if err != nil {
		return err
	}
	// Not ctx: after the stop, the store still records the deliveries in flight.
	store, err := outbox.Open(context.WithoutCancel(ctx), f.Database.URL.Reveal(),
		outbox.Options{MaxConnections: f.Database.MaxConnections, Name: f.Relay.Name})
	if err != nil {
		return err
	}
	defer store.Close()
	c := f.RelayConfig()
	c.Logger = slog.New(slog.NewTextHandler(stderr, nil))
	if info, ok := debug.ReadBuildInfo(); ok {
		c.Version = info.Main.Version
	}
	r, err := relay.New(store, c)
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

// relayProcess is a relay in a process of its own.
type relayProcess struct {
	name     string
	cmd      *exec.Cmd
	stdin    io.Closer
	log      string // file
	expected atomic.Bool
	done     chan struct{} // closed when it has ended
	err      error         // how it ended; read after done
}

// startRelay starts a relay whose log goes to a file in dir. It gets secrets in
// its environment, as NAME=value.
func startRelay(ctx context.Context, name, dir, configFile string, secrets ...string) (*relayProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("%s: cannot find this program to run it again: %w", name, err)
	}
	p := &relayProcess{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own descriptor
	// Not ctx: the end of stdin stops it, so that it can finish the deliveries in
	// flight.
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), self, relayMode, configFile)
	p.cmd.Env = append(append(os.Environ(), secrets...), relayName+"="+name)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// failure returns why the process ended unexpectedly, or nil if it was stopped. Call it
// after done.
func (p *relayProcess) failure() error {
	if p.expected.Load() {
		return nil
	}
	b, _ := os.ReadFile(p.log) // without the log the error says less
	if i := bytes.LastIndexByte(bytes.TrimSpace(b), '\n'); i >= 0 {
		b = b[i:]
	}
	return fmt.Errorf("%s ended by itself (%w): %.500s", p.name, p.err, bytes.TrimSpace(b))
}

// kill ends the process like a crash.
func (p *relayProcess) kill() error {
	p.expected.Store(true)
	err := p.cmd.Process.Kill()
	<-p.done
	return err
}

// stop lets the relay finish the deliveries in flight, for its drain and one more
// second.
func (p *relayProcess) stop() error {
	p.expected.Store(true)
	_ = p.stdin.Close() // closed already if the process has ended
	select {
	case <-p.done:
		return nil
	case <-time.After(3 * time.Second):
	}
	return p.kill()
}

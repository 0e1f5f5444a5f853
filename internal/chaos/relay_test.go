//go:build linux

package chaos

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
)

// envRelay tells this test binary to be a relay, and which.
const envRelay = "LOCKSTEP_CHAOS_RELAY"

// relaySpec is a relay process.
type relaySpec struct {
	Name         string
	Database     string
	Syncs        []syncSpec
	Workers      int
	Connections  int
	DatabaseWait time.Duration // bound on each database call
	Lease        time.Duration
	Drain        time.Duration
	Stop         stopSpec
	Talks        bool // logs what is no trouble too
}

type syncSpec struct {
	Name        string
	Court       string   // base URL
	Hosts       []string // that data may name, where the base URL has a placeholder
	Token       string   // bearer token; empty is none
	CAFile      string   // whom to trust; empty is the machine's authorities
	Events      []string
	From        string
	OnFailed    string
	Notify      bool
	Timeout     time.Duration
	Courtroom   string // the court's name of that field; default courtroom
	Attempts    int    // retry budget
	Concurrency int
}

// stopSpec is a point where a relay process stops and reports it. It continues when the test tells it to.
type stopSpec struct {
	Point string // claimed: before the request is sent; answered: before the answer is recorded
	Key   string // of which key; empty is any
	Do    string // stop (default), exit or panic
	Once  bool   // only the first time
}

// Points at which a relay process can stop. In a recording, and before its
// commit, the database stops it: see world.stopRecording.
const (
	claimed  = "claimed"
	answered = "answered"
)

// handles is the message of a relay process that it handles SIGTERM from now on.
const handles = "handles signals"

// relayMain runs a relay until SIGTERM. It writes reports to descriptor 3 and reads commands from descriptor 4.
func relayMain() error {
	var spec relaySpec
	if err := json.Unmarshal([]byte(os.Getenv(envRelay)), &spec); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer context.AfterFunc(ctx, stop)() // a second signal ends it at once
	stops := &stops{spec: spec.Stop, say: os.NewFile(3, "say"), resume: make(chan struct{})}
	stops.tell(handles)
	go stops.listen(os.NewFile(4, "told"))
	level := slog.LevelWarn
	if spec.Talks {
		level = slog.LevelInfo
	}
	config := relay.Config{
		Workers: spec.Workers, Lease: spec.Lease, Drain: spec.Drain,
		Logger:   slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
		Observer: &stops.claims,
	}
	for _, s := range spec.Syncs {
		to := rest.Config{
			URL: s.Court + "/api/calendar", Timeout: s.Timeout, ExternalID: rest.Source{Path: "/id"}, Outcomes: map[int]string{409: "duplicate"},
			TLS: adapters.TLS{CAFile: s.CAFile},
		}
		if s.Hosts != nil {
			to.Allow = adapters.Allow{Hosts: s.Hosts, Networks: []string{"127.0.0.0/8"}}
		}
		if s.Token != "" {
			to.Auth = adapters.Credentials{Kind: adapters.Bearer, Token: adapters.Secret(s.Token)}
		}
		adapter, err := rest.New(to)
		if err != nil {
			return err
		}
		config.Syncs = append(config.Syncs, relay.Sync{
			Name: s.Name, Events: s.Events, From: s.From, OnFailed: s.OnFailed, Notify: s.Notify, Concurrency: s.Concurrency,
			Adapter: stopping{adapter, stops},
			Mapping: relay.Mapping{Fields: []relay.Field{
				{From: "hearingId", To: "case_reference"},
				{From: "scheduledAt", To: "start_time"},
				{From: "location", To: cmp.Or(s.Courtroom, "courtroom")},
				{From: "padding", To: "padding", Optional: true},
			}},
			Retry: relay.Retry{Initial: 20 * time.Millisecond, Max: 500 * time.Millisecond, Attempts: s.Attempts},
		})
	}
	store, err := outbox.Open(context.WithoutCancel(ctx), spec.Database, outbox.Options{
		Name: spec.Name, MaxConnections: spec.Connections, Timeout: spec.DatabaseWait,
	})
	if err != nil {
		return err
	}
	defer store.Close()
	r, err := relay.New(store, config)
	if err != nil {
		return err
	}
	stops.ready = r.Ready
	return r.Run(ctx)
}

// stopping is a REST adapter with stop points around its attempts.
type stopping struct {
	*rest.Adapter
	stops *stops
}

func (s stopping) Deliver(ctx context.Context, m adapters.Message) (adapters.Receipt, error) {
	s.stops.at(claimed, m.Key)
	receipt, err := s.Adapter.Deliver(ctx, m)
	s.stops.at(answered, m.Key)
	return receipt, err
}

// stops is the relay process's end of the two pipes.
type stops struct {
	spec   stopSpec
	ready  func(context.Context) error
	resume chan struct{}
	claims claims

	mu   sync.Mutex
	say  io.Writer
	done bool
}

func (s *stops) tell(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.say, format+"\n", args...)
}

func (s *stops) at(point, key string) {
	if s.spec.Point != point || s.spec.Key != "" && s.spec.Key != key {
		return
	}
	s.mu.Lock()
	done := s.done
	s.done = s.spec.Once
	s.mu.Unlock()
	if done {
		return
	}
	s.tell("at %s %s", point, key)
	switch s.spec.Do {
	case "exit":
		os.Exit(7)
	case "panic":
		panic("the adapter panics at " + key)
	default:
		<-s.resume
	}
}

// listen reads commands: go continues all stopped goroutines, ready and load ask for a report.
func (s *stops) listen(told io.Reader) {
	lines := bufio.NewScanner(told)
	for lines.Scan() {
		switch lines.Text() {
		case "go":
			close(s.resume)
		case "ready":
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			s.tell("ready %v", s.ready(ctx))
			cancel()
		case "load":
			runtime.GC()
			s.tell("load %d", runtime.NumGoroutine())
		case "poor": // no file can be opened any more
			s.tell("poor %v", setFiles(3))
		case "rich":
			s.tell("rich %v", setFiles(enough))
		case "claims":
			s.tell("claims %d", s.claims.quick())
		}
	}
}

// enough is more open files than any relay here needs.
const enough = 1024

func setFiles(n uint64) error {
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: enough})
}

// claims keeps how long a relay's claims took.
type claims struct {
	mu   sync.Mutex
	took []time.Duration
}

func (*claims) Attempt(string, string, time.Duration) {}
func (*claims) LeaseLost(string)                      {}
func (*claims) Clock(time.Duration)                   {}
func (*claims) MissingID(string)                      {}
func (*claims) LogAhead(int)                          {}
func (*claims) Alert(string, string, int64)           {}

func (c *claims) Claim(_ string, claimed int, took time.Duration) {
	if claimed == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = append(c.took, took/time.Duration(claimed))
}

// quick is the 10th percentile of the time of a claim per delivery, since its last call. A busy machine changes this
// percentile least.
func (c *claims) quick() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.took) == 0 {
		return 0
	}
	slices.Sort(c.took)
	quick := c.took[len(c.took)/10]
	c.took = c.took[:0]
	return quick
}

// process is a running relay process.
type process struct {
	t       testing.TB
	spec    relaySpec
	cmd     *exec.Cmd
	tell    io.WriteCloser
	said    chan string
	handles chan struct{} // closed once it handles signals
	ended   chan struct{}
	err     error // how it ended, after ended
	stderr  *tail
	expects bool // to be killed or to fail: its end is no surprise
}

// start starts a relay process. Fields that spec leaves out are filled in.
func (w *world) start(spec relaySpec) *process {
	w.t.Helper()
	spec = w.fill(spec)
	raw, err := json.Marshal(spec)
	if err != nil {
		w.t.Fatal(err)
	}
	say, saying := pipe(w.t)
	told, telling := pipe(w.t)
	p := &process{t: w.t, spec: spec, tell: telling, said: make(chan string, 10000), handles: make(chan struct{}), ended: make(chan struct{}), stderr: &tail{}}
	p.cmd = exec.CommandContext(context.WithoutCancel(w.t.Context()), os.Args[0]) // ended by close, which says what it said
	p.cmd.Env = append(os.Environ(), envRelay+"="+string(raw), "NO_PROXY=*")
	p.cmd.Stderr = p.stderr
	p.cmd.ExtraFiles = []*os.File{saying, told}
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	_ = saying.Close()
	_ = told.Close()
	go func() {
		lines := bufio.NewScanner(say)
		for lines.Scan() {
			if lines.Text() == handles {
				close(p.handles)
				continue
			}
			p.said <- lines.Text()
		}
		p.err = p.cmd.Wait()
		_ = say.Close()
		_ = telling.Close()
		close(p.ended)
	}()
	w.relays = append(w.relays, p)
	return p
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// hears waits until the process reports a line that begins with want, and returns the rest of the line.
func (p *process) hears(want string) string {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line := <-p.said:
			if rest, ok := strings.CutPrefix(line, want); ok {
				return strings.TrimSpace(rest)
			}
		case <-p.ended:
			p.t.Fatalf("%s ended (%v) before it said %q\n%s", p.spec.Name, p.err, want, p.stderr)
		case <-timeout:
			p.t.Fatalf("%s did not say %q within %s\n%s", p.spec.Name, want, patience, p.stderr)
		}
	}
}

// asks asks the process a question and returns its answer.
func (p *process) asks(question string) string {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.tell, question); err != nil {
		p.t.Fatalf("%s does not listen: %v\n%s", p.spec.Name, err, p.stderr)
	}
	return p.hears(question)
}

// ready reports whether the relay is ready, and the reason if it is not.
func (p *process) ready() (bool, string) {
	p.t.Helper()
	reason := p.asks("ready")
	return reason == "<nil>", reason
}

// goroutines is how many the relay has.
func (p *process) goroutines() int {
	p.t.Helper()
	n, err := strconv.Atoi(p.asks("load"))
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

// claims asks for the result of quick.
func (p *process) claims() time.Duration {
	p.t.Helper()
	n, err := strconv.ParseInt(p.asks("claims"), 10, 64)
	if err != nil || n == 0 {
		p.t.Fatalf("%s claimed nothing (%v)", p.spec.Name, err)
	}
	return time.Duration(n)
}

// peakMemory is the most memory that the process had resident, in bytes.
func (p *process) peakMemory() int {
	p.t.Helper()
	return p.status("VmHWM")
}

// residentMemory is the memory that the process has resident, in bytes.
func (p *process) residentMemory() int {
	p.t.Helper()
	return p.status("VmRSS")
}

func (p *process) status(field string) int {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		var kib int
		if n, _ := fmt.Sscanf(string(line), field+": %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	p.t.Fatalf("no %s in the process's status", field)
	return 0
}

// resume lets the process continue from where it stopped.
func (p *process) resume() {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.tell, "go"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
}

// kill ends the process as kill -9 does.
func (p *process) kill() {
	p.t.Helper()
	p.expects = true
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// stop ends the process as an operator does, and returns its error.
func (p *process) stop() error {
	p.t.Helper()
	p.expects = true
	select {
	case <-p.handles:
	case <-p.ended:
	case <-time.After(patience):
	}
	p.signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.kill()
		p.t.Errorf("%s did not stop at SIGTERM\n%s", p.spec.Name, p.stderr)
	}
	return p.err
}

// tail keeps the end of what is written to it, and counts it.
type tail struct {
	mu           sync.Mutex
	text         []byte
	lines, bytes int
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.lines += bytes.Count(p, []byte("\n"))
	t.bytes += len(p)
	const most = 8000
	if len(t.text) > 2*most {
		t.text = bytes.Clone(t.text[len(t.text)-most:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

func (t *tail) contains(s string) bool { return strings.Contains(t.String(), s) }

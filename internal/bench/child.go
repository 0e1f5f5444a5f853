package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// childEnv is the environment variable with the configuration of a child. If it is set, this program is a child.
const childEnv = "LOCKSTEP_BENCH_CHILD"

// childConfig configures a child. A child runs until its standard input ends.
type childConfig struct {
	Role     string // relay, river, client, sink or console
	Name     string
	URL      string        // of the database
	Sink     string        // where to post to; empty: an adapter that does nothing
	Syncs    []string      // that the relay serves; default CourtCalendarSync
	Notify   bool          // the relay listens
	Requests int           // of the client
	Delay    time.Duration // of the answers of the sink, or of the relay's adapter
	Slow     string        // a sync that is slower than the others; its arrivals are not reported
	Workers  int           // of the relay; default 32
	Lease    time.Duration // of the relay's claims; default that of relays
	Timeout  time.Duration // of an attempt; default 15 seconds
	Numbered bool          // report when each numbered event arrived, at the last sync that it went to
	Profile  string        // file for a CPU profile

	SlowDelay time.Duration // of the answers of the slow sync's adapter
	Rate      float64       // deliveries per second, of the slow sync if there is one, else of each
}

var roles = map[string]func(context.Context, childConfig, *reporter) error{
	"relay": relayChild, "river": riverChild, "client": clientChild, "sink": sinkChild, "console": consoleChild,
}

// report is a line that a child prints.
type report struct {
	At       int64           `json:"at"` // Unix nanoseconds
	Done     int64           `json:"done"`
	CPU      time.Duration   `json:"cpu"`                // user and system, so far
	URL      string          `json:"url,omitempty"`      // of a sink or a console, once
	Resident int64           `json:"resident,omitempty"` // most bytes ever, in the last report
	Arrivals map[int64]int64 `json:"arrivals,omitempty"` // by the event's number, in the last report
	Claims   []claimTime     `json:"claims,omitempty"`   // that found work, in the last report
}

// reportEvery is the pause between the reports of a child.
const reportEvery = 10 * time.Millisecond

// runChild runs as the child that config describes.
func runChild(config string) error {
	var c childConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	role, ok := roles[c.Role]
	if !ok {
		return fmt.Errorf("unknown role %q", c.Role)
	}
	if c.Profile != "" {
		f, err := os.Create(c.Profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // until the parent says so, or is gone
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	r := &reporter{out: json.NewEncoder(os.Stdout), numbered: c.Numbered, arrivals: map[int64]int64{}}
	if err := r.print(r.now()); err != nil { // before anything is done: what follows counts from here
		return err
	}
	sampling, stopSampling := context.WithCancel(ctx)
	var sampler sync.WaitGroup
	sampler.Go(func() { r.sample(sampling) })
	err := role(ctx, c, r)
	stopSampling()
	sampler.Wait()
	last := r.now()
	last.Resident, last.Arrivals, last.Claims = mostResident(), r.arrivals, r.claims
	return errors.Join(err, r.print(last))
}

// reporter counts what a child does and prints it. It is safe for concurrent use.
type reporter struct {
	count    atomic.Int64
	numbered bool

	mu       sync.Mutex // guards arrivals
	arrivals map[int64]int64
	claims   []claimTime

	printing sync.Mutex
	out      *json.Encoder
}

func (r *reporter) done() { r.count.Add(1) }

var numberField = regexp.MustCompile(`"n": ?(\d+)`)

// arrived notes the time at which the event with this body arrived.
func (r *reporter) arrived(body []byte) {
	if !r.numbered {
		return
	}
	if found := numberField.FindSubmatch(body); found != nil {
		n, _ := strconv.ParseInt(string(found[1]), 10, 64) // digits
		r.arrivedNumber(n)
	}
}

func (r *reporter) arrivedNumber(n int64) {
	if !r.numbered {
		return
	}
	at := time.Now().UnixNano()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrivals[n] = at
}

func (r *reporter) now() report {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage) // cannot fail for oneself
	return report{
		At: time.Now().UnixNano(), Done: r.count.Load(),
		CPU: time.Duration(usage.Utime.Nano() + usage.Stime.Nano()),
	}
}

func (r *reporter) print(line report) error {
	r.printing.Lock()
	defer r.printing.Unlock()
	return r.out.Encode(line)
}

func (r *reporter) sample(ctx context.Context) {
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	for {
		if r.print(r.now()) != nil {
			return // nobody reads any more
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// mostResident is the peak memory of this process, in bytes. The kernel's ru_maxrss would include the parent's.
func mostResident() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}

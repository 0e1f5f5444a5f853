package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hms-mkt/lockstep/internal/operate"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// terminal is a terminal with a person, who types and reads.
type terminal struct {
	program *os.File // what the program has as its input or output
	person  *os.File

	mu   sync.Mutex
	text strings.Builder // what the person has read
}

// newTerminal opens a terminal of 80 columns.
func newTerminal(t *testing.T) *terminal {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(person.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	c := &terminal{program: program, person: person}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for r := bufio.NewReader(person); ; {
			b, err := r.ReadByte()
			if err != nil {
				return
			}
			c.mu.Lock()
			c.text.WriteByte(b)
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		program.Close() // then the person can read nothing more
		<-ended
		person.Close()
	})
	return c
}

func (c *terminal) read() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// waits until the person has read a text.
func (c *terminal) waits(t *testing.T, text string) {
	t.Helper()
	waiting.For(t, waitTimeout, text, func() bool { return strings.Contains(c.read(), text) })
}

func (c *terminal) types(t *testing.T, text string) {
	t.Helper()
	if _, err := c.person.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// atTerminal runs a command line whose input and messages are those of a terminal.
func (w *world) atTerminal(c *terminal, args ...string) <-chan result {
	done := make(chan result, 1)
	go func() {
		var stdout bytes.Buffer
		code := run(w.t.Context(), args, w.lookup, c.program, &stdout, c.program)
		done <- result{code: code, stdout: stdout.String()}
	}()
	return done
}

func TestAPersonIsAskedAboutALargeSet(t *testing.T) {
	w := manyFailed(t, 150)
	const question = "Requeue 150 deliveries? [y/N] "
	for _, answer := range []string{"n\n", "\n", "what\n"} {
		c := newTerminal(t)
		done := w.atTerminal(c, "requeue", "--all", "-o", "json")
		c.waits(t, question)
		for _, says := range []string{"failed deliveries, to any sync: 150 as of ", "permanent", "135"} {
			if !strings.Contains(c.read(), says) {
				t.Errorf("the question does not say %q: %s", says, c.read())
			}
		}
		c.types(t, answer)
		(<-done).wants(t, exitFailed)
		c.waits(t, "lockstep: nothing was changed, because the answer was not y")
	}
	if n := ask[int](w, countFailed); n != 150 {
		t.Fatalf("%d are failed, want 150", n)
	}

	// The set that the person has seen is the set that is changed.
	c := newTerminal(t)
	done := w.atTerminal(c, "requeue", "--all")
	c.waits(t, question)
	w.run("discard", "--class", "mapping", "--reason", "x").wants(t, 0, "15 deliveries discarded")
	c.types(t, "y\n")
	(<-done).wants(t, exitFailed)
	c.waits(t, "nothing was changed: the set has changed: now 135; run the same command again to see them")

	c = newTerminal(t)
	done = w.atTerminal(c, "requeue", "--all", "-o", "json")
	c.waits(t, "Requeue 135 deliveries? [y/N] ")
	c.types(t, "y\n")
	if rows := decode[[]operate.Delivery](t, (<-done).wants(t, 0)); len(rows) != 135 || ask[int](w, countFailed) != 0 {
		t.Errorf("%d requeued", len(rows))
	}
}

func TestYesAsksNothing(t *testing.T) {
	w := manyFailed(t, 150)
	c := newTerminal(t)
	(<-w.atTerminal(c, "requeue", "--all", "--yes", "--rate", "100/s")).wants(t, 0)
	c.waits(t, "150 deliveries requeued")
	if got := c.read(); strings.Contains(got, "[y/N]") || !strings.Contains(got, "\r[################........] requeued 100 of 150") || !strings.Contains(got, "\r[########################] requeued 150 of 150, ") {
		t.Errorf("the terminal shows %q", got)
	}
}

// starts runs a command line as a process whose terminal is c, so that Ctrl-C is a signal.
func (w *world) starts(c *terminal, args ...string) *exec.Cmd {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), program(w.t), args...)
	for name, value := range w.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.program, c.program, c.program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	return cmd
}

func TestCtrlCAtTheTerminalChangesNothingMore(t *testing.T) {
	const ctrlC = "\x03"
	w := manyFailed(t, 150)
	c := newTerminal(t)
	asks := w.starts(c, "requeue", "--all")
	c.waits(t, "Requeue 150 deliveries? [y/N] ")
	c.types(t, ctrlC)
	_ = asks.Wait()
	c.waits(t, "lockstep: interrupted")
	if code := asks.ProcessState.ExitCode(); code != exitFailed || ask[int](w, countFailed) != 150 {
		t.Errorf("exit code %d, %d are failed", code, ask[int](w, countFailed))
	}

	c = newTerminal(t)
	works := w.starts(c, "requeue", "--all", "--yes", "--rate", "1/m")
	c.waits(t, "] requeued 1 of 150")
	c.types(t, ctrlC)
	_ = works.Wait()
	c.waits(t, "lockstep: stopped: 1 of 150 requeued, the others were not changed; to continue, run the same command with --as-of 2")
	if code := works.ProcessState.ExitCode(); code != exitFailed || ask[int](w, countFailed) != 149 {
		t.Errorf("exit code %d, %d are failed", code, ask[int](w, countFailed))
	}
}

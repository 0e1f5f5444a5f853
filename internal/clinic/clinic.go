// Package clinic starts the HL7 interface of a clinic, for tests. Its MLLP server, its parser
// and its acknowledgements are those of python-hl7, which we did not write.
package clinic

import (
	"bufio"
	"context"
	_ "embed" // the program
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

//go:embed clinic.py
var program []byte

// Clinic is a running receiver. It ends with the test. Its methods are safe for concurrent
// use.
type Clinic struct {
	t       *testing.T
	Address string // host:port

	mu  sync.Mutex
	in  io.WriteCloser
	out *bufio.Reader
}

// Appointment is what the clinic has for one SCH-1.
type Appointment struct {
	Status string   `json:"status"` // booked or cancelled
	Filler string   `json:"filler"` // the clinic's own id
	Events []string `json:"events"` // what was done to it, such as S12
	Start  string   `json:"start"`  // SCH-11.4 of the last message
	Room   string   `json:"room"`   // AIL-3.1
	Title  string   `json:"title"`  // SCH-7.2, without escapes
}

// The ways in which it answers a message that it keeps. A name that begins with A or C is an
// acknowledgement code.
const (
	Normal     = "normal"
	Lost       = "lost"        // it keeps the message and breaks the connection
	LostBefore = "lost before" // it breaks the connection without keeping the message
	FirstLost  = "first lost"  // Lost or LostBefore, in turn, when a message comes for the first time
	Silent     = "silent"      // it keeps the message and says nothing
	Other      = "other"       // MSA-2 names another message
	Twice      = "twice"       // the acknowledgement comes two times
)

// Start starts a clinic on a free port. The library comes from Debian's package python3-hl7.
func Start(t *testing.T) *Clinic {
	t.Helper()
	return start(t)
}

// StartTLS is Start with TLS: with the PEM files of its certificate and key, and of the
// authorities of clients, which is empty if clients need no certificate.
func StartTLS(t *testing.T, certFile, keyFile, clientCA string) *Clinic {
	t.Helper()
	return start(t, certFile, keyFile, clientCA)
}

func start(t *testing.T, arguments ...string) *Clinic {
	t.Helper()
	const python = "/usr/bin/python3"
	if out, err := exec.CommandContext(t.Context(), python, "-c", "import hl7.mllp").CombinedOutput(); err != nil {
		t.Fatalf("the Python library hl7 is missing (internal/testtools/install.sh python3-hl7): %s", out)
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "clinic.py")
	if err := os.WriteFile(script, program, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), python, append([]string{script}, arguments...)...)
	cmd.Stderr = log
	c := &Clinic{t: t}
	if c.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("the clinic says: %s", text)
		}
	})
	var at struct{ Port int }
	c.read(&at)
	c.Address = fmt.Sprintf("127.0.0.1:%d", at.Port)
	return c
}

func (c *Clinic) read(into any) {
	line, err := c.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, into)
	}
	if err != nil {
		panic(fmt.Sprintf("the clinic's program: %q, %v", line, err)) // also on other goroutines than the test's
	}
}

func (c *Clinic) do(command string, into any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := io.WriteString(c.in, command+"\n"); err != nil {
		panic(fmt.Sprintf("the clinic's program: %v", err))
	}
	c.read(into)
}

// Always says how it answers from now on.
func (c *Clinic) Always(how string) { c.do("always "+how, new(any)) }

// Next says how it answers the next messages, one after the other.
func (c *Clinic) Next(how ...string) {
	c.do("next "+strings.Join(how, ","), new(any))
}

// Away makes the clinic unreachable, or reachable again. Its connections end.
func (c *Clinic) Away(away bool) {
	if away {
		c.do("away", new(any))
	} else {
		c.do("back", new(any))
	}
}

// Seen are the control ids of all messages that came, in their order, repeated ones too.
func (c *Clinic) Seen() (ids []string) {
	c.do("seen", &ids)
	return ids
}

// Held are the messages that were kept, by control id.
func (c *Clinic) Held() (messages map[string]string) {
	c.do("held", &messages)
	return messages
}

// Appointments are the appointments by SCH-1.
func (c *Clinic) Appointments() (all map[string]Appointment) {
	c.do("appointments", &all)
	return all
}

package adaptertest_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/adaptertest"
)

// mllp sends HL7 version 2 messages over MLLP, the protocol of most clinics. It keeps its
// connections, and has one message in flight on each.
type mllp struct {
	address string
	timeout time.Duration
	defect  string // a mistake that the suite must catch; empty in the right adapter

	mu     sync.Mutex
	idle   []net.Conn
	closed bool
}

// The bytes around a message.
const (
	startBlock = '\v'
	endBlock   = "\x1c\r"
	maxAnswer  = 64 << 10 // bytes
)

// controlID is what a clinic knows a message by. HL7 before version 2.7 allows 20
// characters, which is too short for an event's id.
func controlID(idempotencyKey string) string {
	sum := sha256.Sum256([]byte(idempotencyKey))
	return base32.StdEncoding.EncodeToString(sum[:])[:20]
}

var escapeHL7 = strings.NewReplacer(`\`, `\E\`, "|", `\F\`, "^", `\S\`, "&", `\T\`, "~", `\R\`, "\r", `\X0D\`)

func (a *mllp) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	if err := ctx.Err(); err != nil {
		return adapters.Receipt{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, a.timeout, fmt.Errorf("mllp: no answer within %s: %w", a.timeout, context.DeadlineExceeded))
	defer cancel()
	id := controlID(msg.IdempotencyKey)
	body := fmt.Appendf(nil, "MSH|^~\\&|AGENCY|SCHED|CLINIC||%s||SIU^S14|%s|P|2.5.1\rNTE|1||%s\r",
		msg.OccurredAt.UTC().Format("20060102150405-0700"), id, escapeHL7.Replace(string(msg.Body)))
	sum := sha256.Sum256(body)
	receipt := adapters.Receipt{SHA256: hex.EncodeToString(sum[:])}

	conn, err := a.connect(ctx)
	if err != nil {
		return receipt, fmt.Errorf("mllp: %w", err) // nothing was sent: transient
	}
	if a.defect != "context ignored" {
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		defer stop()
	}
	answer, err := exchange(conn, body)
	if err != nil {
		_ = conn.Close() // a late answer must not meet the next message
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if a.defect == "lost is transient" {
			return receipt, err
		}
		return receipt, adapters.Unknown(err)
	}
	code, of := acknowledged(answer)
	if of != id && a.defect != "id not compared" {
		_ = conn.Close()
		return receipt, adapters.Unknown(errors.New("mllp: the answer is to another message"))
	}
	a.release(conn)
	receipt.Code = adapters.Clean(code, 8)
	switch code {
	case "AA", "CA":
		receipt.Ref = &adapters.Ref{Version: msg.Version}
		return receipt, nil
	default:
		return receipt, adapters.Permanent(errors.New("mllp: refused")) // AE, AR, CE, CR
	}
}

// connect returns a kept connection that is alive, or a new one.
func (a *mllp) connect(ctx context.Context) (net.Conn, error) {
	for {
		a.mu.Lock()
		var conn net.Conn
		if last := len(a.idle) - 1; last >= 0 {
			conn, a.idle = a.idle[last], a.idle[:last]
		}
		a.mu.Unlock()
		if conn == nil {
			return new(net.Dialer).DialContext(ctx, "tcp", a.address)
		}
		if alive(conn) {
			return conn, nil
		}
		_ = conn.Close()
	}
}

// alive reports whether the peer has neither closed the connection nor sent anything.
func alive(conn net.Conn) bool {
	if conn.SetReadDeadline(time.Now().Add(time.Millisecond)) != nil {
		return false
	}
	_, err := conn.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded) && conn.SetDeadline(time.Time{}) == nil
}

func (a *mllp) release(conn net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || conn.SetDeadline(time.Time{}) != nil {
		_ = conn.Close()
		return
	}
	a.idle = append(a.idle, conn)
}

// Close closes idle connections; those in use are closed when their attempt ends.
func (a *mllp) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, conn := range a.idle {
		_ = conn.Close()
	}
	a.idle = nil
	return nil
}

// Preview implements [adapters.Previewer] for a protocol without methods and URLs.
func (a *mllp) Preview(adapters.Message) (adapters.Preview, error) {
	return adapters.Preview{Method: "SIU^S14", URL: "mllp://" + a.address, ContentType: "x-application/hl7-v2+er7"}, nil
}

func exchange(conn net.Conn, message []byte) ([]byte, error) {
	if err := writeBlock(conn, message); err != nil {
		return nil, fmt.Errorf("mllp: %w", err)
	}
	answer, err := readBlock(bufio.NewReader(io.LimitReader(conn, maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("mllp: no answer: %w", err)
	}
	return answer, nil
}

func writeBlock(w io.Writer, message []byte) error {
	_, err := w.Write(slices.Concat([]byte{startBlock}, message, []byte(endBlock)))
	return err
}

func readBlock(r *bufio.Reader) ([]byte, error) {
	var block []byte
	for !bytes.HasSuffix(block, []byte(endBlock)) {
		b, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		block = append(block, b)
	}
	return bytes.TrimSuffix(bytes.TrimPrefix(block, []byte{startBlock}), []byte(endBlock)), nil
}

// acknowledged returns MSA-1 and MSA-2: the code, and the message that it is about.
func acknowledged(answer []byte) (code, of string) {
	for segment := range strings.SplitSeq(string(answer), "\r") {
		if fields := strings.Split(segment, "|"); fields[0] == "MSA" && len(fields) >= 3 {
			return fields[1], fields[2]
		}
	}
	return "", ""
}

// clinic is an MLLP server.
type clinic struct {
	t       *testing.T
	address string

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	held     []adaptertest.Held
	answer   adaptertest.Answer
	serving  sync.WaitGroup
}

func openClinic(t *testing.T) *clinic {
	t.Helper()
	c := &clinic{t: t, address: "127.0.0.1:0", conns: map[net.Conn]bool{}, answer: adaptertest.Normal}
	c.away(false)
	t.Cleanup(func() {
		c.away(true)
		c.serving.Wait()
	})
	return c
}

func (c *clinic) away(away bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if away {
		_ = c.listener.Close()
		for conn := range c.conns {
			_ = conn.Close()
		}
		return
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", c.address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.listener, c.address = l, l.Addr().String()
	c.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.mu.Lock()
			c.conns[conn] = true
			c.mu.Unlock()
			c.serving.Go(func() { c.serve(conn) })
		}
	})
}

func (c *clinic) serve(conn net.Conn) {
	defer func() {
		_ = conn.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.conns, conn)
	}()
	r := bufio.NewReader(conn)
	for {
		message, err := readBlock(r)
		if err != nil {
			return
		}
		id := strings.Split(string(message), "|")[9]
		switch c.keep(id, message) {
		case adaptertest.Lost:
			return
		case adaptertest.Silent:
			continue
		case adaptertest.Other:
			id = controlID("another message")
		default:
		}
		if writeBlock(conn, []byte("MSH|^~\\&|CLINIC||AGENCY|SCHED|20270301||ACK|A1|P|2.5.1\rMSA|AA|"+id+"\r")) != nil {
			return
		}
	}
}

// keep keeps a message once, and returns how to answer.
func (c *clinic) keep(id string, message []byte) adaptertest.Answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.ContainsFunc(c.held, func(h adaptertest.Held) bool { return h.Key == id }) {
		c.held = append(c.held, adaptertest.Held{Key: id, Body: message})
	}
	return c.answer
}

func (c *clinic) receiver(defect string) adaptertest.Receiver {
	return adaptertest.Receiver{
		Adapter: &mllp{address: c.address, timeout: time.Minute, defect: defect},
		Held: func() []adaptertest.Held {
			c.mu.Lock()
			defer c.mu.Unlock()
			return slices.Clone(c.held)
		},
		Away: c.away,
		Answer: func(how adaptertest.Answer) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.answer = how
			return true
		},
		Key: controlID,
	}
}

func TestMLLPConforms(t *testing.T) {
	adaptertest.RunWith(t, func(t *testing.T, _ adapters.Secret) adaptertest.Receiver {
		t.Helper()
		return openClinic(t).receiver("")
	})
}

// mllpDefect is the environment variable that makes TestDefectiveMLLP run.
const mllpDefect = "ADAPTERTEST_MLLP_DEFECT"

// [TestTheSuiteCatchesWrongMLLP] runs TestDefectiveMLLP in separate processes, where it fails.
func TestDefectiveMLLP(t *testing.T) {
	if defect := os.Getenv(mllpDefect); defect != "" {
		adaptertest.RunWith(t, func(t *testing.T, _ adapters.Secret) adaptertest.Receiver {
			t.Helper()
			return openClinic(t).receiver(defect)
		})
	}
}

func TestTheSuiteCatchesWrongMLLP(t *testing.T) {
	for defect, test := range map[string]string{
		"lost is transient": "the_answer_is_lost",
		"id not compared":   "the_answer_is_to_another_message",
		"context ignored":   "stopped_while_it_waits",
	} {
		t.Run(defect, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDefectiveMLLP$", "-test.v")
			cmd.Env = append(os.Environ(), mllpDefect+"="+defect)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestDefectiveMLLP/"+test+" ") {
				t.Errorf("%s passes, %v\n%.5000s", test, err, out)
			}
		})
	}
}

package hl7

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

// The bytes around a message in MLLP (HL7 Transport Specification: MLLP, release 1).
const (
	startBlock = '\x0b'
	endBlock   = "\x1c\r"
)

// pool keeps at most a fixed number of connections, each with one message in flight. It is
// safe for concurrent use.
type pool struct {
	address string
	config  *tls.Config   // nil without TLS
	slots   chan struct{} // one for each connection in use

	mu     sync.Mutex
	idle   []net.Conn
	closed bool
}

func newPool(c Config) (*pool, error) {
	p := &pool{address: c.Address, slots: make(chan struct{}, max(c.Connections, 1))}
	if c.TLS == nil {
		return p, nil
	}
	var err error
	p.config, err = exchange.TLSConfig(*c.TLS)
	return p, err
}

// get waits for a connection: one that is kept and alive, or a new one. The caller gives it
// back with put. what is what is sent, for messages.
func (p *pool) get(ctx context.Context, what string) (net.Conn, error) {
	stopped := func() error { return exchange.Failure{What: what}.Error(ctx, ctx.Err()) }
	if ctx.Err() != nil {
		return nil, stopped()
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, stopped()
	}
	for {
		conn := p.kept()
		if conn == nil {
			break
		}
		if alive(conn) {
			return conn, nil
		}
		_ = conn.Close()
	}
	conn, err := exchange.Dial(ctx, what, p.address, p.config)
	if err != nil {
		<-p.slots
		return nil, err
	}
	return conn, nil
}

// kept takes a connection that is not in use, nil if there is none.
func (p *pool) kept() net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 {
		return nil
	}
	conn := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	return conn
}

// put gives back a connection. keep says that its last answer was the right one and nothing
// follows it. Any other connection is closed, so that a late answer cannot meet the next
// message.
func (p *pool) put(conn net.Conn, keep bool) {
	defer func() { <-p.slots }()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !keep || p.closed {
		_ = conn.Close()
		return
	}
	p.idle = append(p.idle, conn)
}

// close closes the connections that are not in use. The others are closed when their answer
// has come.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, conn := range p.idle {
		_ = conn.Close()
	}
	p.idle = nil
}

// glance is how long alive looks for a byte.
const glance = time.Millisecond

// alive reports whether the receiver has neither closed the connection nor sent anything,
// such as a second answer.
func alive(conn net.Conn) bool {
	if conn.SetReadDeadline(time.Now().Add(glance)) != nil {
		return false
	}
	_, err := conn.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded) && conn.SetDeadline(time.Time{}) == nil
}

// past is a deadline that ends all reading and writing.
var past = time.Unix(1, 0)

// send writes a message and reads the answer. clean says that nothing follows the answer. The
// message may have arrived, whatever the error.
func send(ctx context.Context, conn net.Conn, what string, message []byte) (answer []byte, clean bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	r := bufio.NewReader(io.LimitReader(conn, exchange.MaxAnswer+1))
	if _, err = conn.Write(slices.Concat([]byte{startBlock}, message, []byte(endBlock))); err == nil {
		answer, err = readBlock(r)
	}
	alone := stop() // otherwise ctx has ended, and the deadline is in the past
	var bad frameError
	var cut cutError
	switch {
	case errors.As(err, &bad):
		return nil, false, adapters.Unknown(fmt.Errorf("%s: sent, but %w", what, bad))
	case errors.As(err, &cut):
		return nil, false, adapters.Unknown(fmt.Errorf("%s: sent, but the answer has no end (0x1C 0x0D): %w", what, exchange.Describe(ctx, cut.error)))
	case err != nil:
		return nil, false, exchange.Failure{What: what, Sent: true}.Error(ctx, err)
	}
	return answer, alone && r.Buffered() == 0, nil
}

// frameError is an answer that is not framed as MLLP says.
type frameError string

func (e frameError) Error() string { return string(e) }

// cutError is why the end of an answer did not come.
type cutError struct{ error }

func (e cutError) Unwrap() error { return e.error }

// readBlock reads one framed message.
func readBlock(r *bufio.Reader) ([]byte, error) {
	first, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	if first != startBlock {
		return nil, frameError("the answer does not begin with the start block of MLLP (0x0B): check address and tls")
	}
	var block []byte
	for !bytes.HasSuffix(block, []byte(endBlock)) {
		b, err := r.ReadByte()
		switch {
		case errors.Is(err, io.EOF) && len(block) >= exchange.MaxAnswer:
			return nil, frameError(fmt.Sprintf("the answer is longer than %d bytes", exchange.MaxAnswer))
		case err != nil:
			return nil, cutError{err}
		}
		block = append(block, b)
	}
	return bytes.TrimSuffix(block, []byte(endBlock)), nil
}

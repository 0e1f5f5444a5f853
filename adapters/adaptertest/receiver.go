package adaptertest

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

// Receiver is a receiver whose protocol is not HTTP, with the adapter that sends to it.
type Receiver struct {
	// Adapter delivers to the receiver. If it has a method Close() error, the
	// suite calls it at the end. Required.
	Adapter adapters.Adapter

	// Held returns the messages that the receiver has accepted, in any order. A message
	// that came several times is in it once. Required.
	Held func() []Held

	// Away makes the receiver unreachable, or reachable again. The receiver keeps its
	// messages. Required.
	Away func(away bool)
}

// Held is a message as its receiver has it.
type Held struct {
	Key  string // the idempotency key
	Body []byte // what was sent, without freshness fields such as a nonce
}

// RunWith runs the tests that apply to every protocol. Each test calls open for a new
// receiver. The adapter must send secret in the protocol's way; a protocol without
// credentials ignores it.
func RunWith(t *testing.T, open func(t *testing.T, secret adapters.Secret) Receiver) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*exam, *testing.T)
	}{
		{"a message arrives", (*exam).arrives},
		{"attempts are the same", (*exam).attempts},
		{"many at once", (*exam).manyAtOnce},
		{"out of reach", (*exam).outOfReach},
		{"stopped before it was sent", (*exam).stopped},
		{"printing the adapter", (*exam).printing},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			r := open(t, "secret-"+canary)
			if c, ok := r.Adapter.(io.Closer); ok {
				t.Cleanup(func() {
					if err := c.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
				})
			}
			msg := hearing()
			msg.Body = []byte(strings.Replace(string(msg.Body), "{", `{"canary":"`+canary+`",`, 1))
			test.run(&exam{bench: bench{adapter: r.Adapter}, Receiver: r, msg: msg}, t)
		})
	}
}

// exam is one test with its receiver. Its message has the canary in it.
type exam struct {
	bench
	Receiver
	msg adapters.Message
}

func (e *exam) arrives(t *testing.T) {
	receipt, err := e.deliver(t.Context(), t, e.msg)
	e.wantClass(t, err, adapters.ClassDelivered)
	if receipt.Code == "" {
		t.Error("the receipt has no code")
	}
	held := e.Held()
	if len(held) != 1 || held[0].Key != e.msg.IdempotencyKey || len(held[0].Body) == 0 {
		t.Fatalf("the receiver holds %+v, want one message with key %s", held, e.msg.IdempotencyKey)
	}
	if receipt.SHA256 == "" && string(held[0].Body) != string(e.msg.Body) {
		t.Errorf("the receipt has no digest, although not the message's body was sent but %s", held[0].Body)
	}
}

// attempts: a message that is sent twice is accepted once, with the same bytes.
func (e *exam) attempts(t *testing.T) {
	var first Held
	for e.msg.Attempt = 1; e.msg.Attempt <= 3; e.msg.Attempt++ {
		_, err := e.deliver(t.Context(), t, e.msg)
		e.wantClass(t, err, adapters.ClassDelivered)
		held := e.Held()
		if len(held) != 1 {
			t.Fatalf("after attempt %d the receiver holds %d messages", e.msg.Attempt, len(held))
		}
		if e.msg.Attempt == 1 {
			first = held[0]
		}
		if held[0].Key != first.Key || string(held[0].Body) != string(first.Body) {
			t.Errorf("attempt %d made %s of %s", e.msg.Attempt, held[0].Body, first.Body)
		}
	}
}

func (e *exam) manyAtOnce(t *testing.T) {
	want := e.deliverMany(t, e.msg)
	keys := map[string]bool{}
	for _, h := range e.Held() {
		keys[h.Key] = true
	}
	if len(keys) != want {
		t.Errorf("the receiver holds %d keys, want %d", len(keys), want)
	}
}

// outOfReach: an unreachable receiver loses no message, and gets all of them when it is
// back.
func (e *exam) outOfReach(t *testing.T) {
	e.Away(true)
	_, err := e.deliver(t.Context(), t, e.msg)
	e.wantClass(t, err, adapters.ClassTransient, adapters.ClassUnknown)
	e.Away(false)
	e.msg.Attempt++
	_, err = e.deliver(t.Context(), t, e.msg)
	e.wantClass(t, err, adapters.ClassDelivered)
	if n := len(e.Held()); n != 1 {
		t.Errorf("the receiver holds %d messages, want 1", n)
	}
}

func (e *exam) stopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := e.deliver(ctx, t, e.msg)
	e.wantClass(t, err, adapters.ClassTransient)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the error does not say that it was stopped: %v", err)
	}
	if held := e.Held(); len(held) != 0 {
		t.Errorf("the receiver holds %d messages", len(held))
	}
}

func (e *exam) printing(t *testing.T) { checkPrinting(t, e.adapter) }

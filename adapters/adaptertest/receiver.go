package adaptertest

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

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
	// messages, and its connections end. Required.
	Away func(away bool)

	// Answer says how the receiver answers from now on. It reports false if the
	// protocol has no such answer: a file share does not answer at all. Required.
	Answer func(Answer) bool

	// Key returns what the receiver has instead of an idempotency key. HL7 version 2,
	// for example, allows 20 characters, so the key is derived. Default: the
	// idempotency key itself.
	Key func(idempotencyKey string) string
}

// Held is a message as its receiver has it.
type Held struct {
	Key  string // the idempotency key, or what Receiver.Key makes of it
	Body []byte // what was sent, without freshness fields such as a nonce
}

// Answer is a way in which a receiver answers. It accepts and keeps the message in each.
type Answer string

// The ways in which a receiver answers.
const (
	Normal Answer = "normal" // says that it has the message
	Silent Answer = "silent" // keeps the connection open and says nothing
	Lost   Answer = "lost"   // breaks the connection instead of an answer
	Other  Answer = "other"  // says that it has another message, as a late answer does
)

// RunWith runs the tests that apply to every protocol. Each test calls open for a new
// receiver, which answers normally. The adapter must send secret in the protocol's way; a
// protocol without credentials ignores it.
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
		{"stopped while it waits", (*exam).stoppedWaiting},
		{"the answer is lost", (*exam).lost},
		{"the answer is to another message", (*exam).other},
		{"printing the adapter", (*exam).printing},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			r := open(t, "secret-"+canary)
			if r.Key == nil {
				r.Key = func(key string) string { return key }
			}
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
	if key := e.Key(e.msg.IdempotencyKey); len(held) != 1 || held[0].Key != key || len(held[0].Body) == 0 {
		t.Fatalf("the receiver holds %+v, want one message with key %s", held, key)
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
// back. The adapter may have kept a connection from before.
func (e *exam) outOfReach(t *testing.T) {
	earlier := e.msg
	earlier.ID, earlier.IdempotencyKey = "event-0", "event-0"
	_, err := e.deliver(t.Context(), t, earlier)
	e.wantClass(t, err, adapters.ClassDelivered)
	e.Away(true)
	_, err = e.deliver(t.Context(), t, e.msg)
	e.wantClass(t, err, adapters.ClassTransient, adapters.ClassUnknown)
	e.Away(false)
	e.msg.Attempt++
	_, err = e.deliver(t.Context(), t, e.msg)
	e.wantClass(t, err, adapters.ClassDelivered)
	if n := len(e.Held()); n != 2 {
		t.Errorf("the receiver holds %d messages, want 2", n)
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

// stoppedWaiting: a stop ends an attempt that waits for its answer. The receiver has the
// message, so the result is unknown.
func (e *exam) stoppedWaiting(t *testing.T) {
	if !e.answer(t, Silent) {
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		_, err := e.adapter.Deliver(ctx, e.msg)
		checkError(t, err)
		e.wantClass(t, err, adapters.ClassUnknown)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the error does not say that it was stopped: %v", err)
		}
	}()
	if !within(prompt, func() bool { return len(e.Held()) > 0 }) {
		t.Errorf("the receiver does not have the message after %s", prompt)
	}
	cancel()
	select {
	case <-returned:
	case <-time.After(prompt):
		t.Errorf("Deliver still waits %s after its context ended", prompt)
		e.Away(true) // ends the connection
		<-returned
		e.Away(false)
	}
	e.again(t)
}

// lost: the receiver has the message, and its answer does not arrive.
func (e *exam) lost(t *testing.T) {
	if e.answer(t, Lost) {
		_, err := e.deliver(t.Context(), t, e.msg)
		e.wantClass(t, err, adapters.ClassUnknown)
		e.again(t)
	}
}

// other: the receiver answers to another message, which says nothing about this one.
func (e *exam) other(t *testing.T) {
	if e.answer(t, Other) {
		_, err := e.deliver(t.Context(), t, e.msg)
		e.wantClass(t, err, adapters.ClassUnknown)
		e.again(t)
	}
}

// answer reports whether the receiver can answer so.
func (e *exam) answer(t *testing.T, how Answer) bool {
	t.Helper()
	if e.Answer == nil {
		t.Fatal("Receiver.Answer is required: return false if the protocol has no answers")
	}
	return e.Answer(how)
}

// again sends the message to a receiver that answers normally. The receiver must have it
// once.
func (e *exam) again(t *testing.T) {
	t.Helper()
	e.Answer(Normal)
	e.msg.Attempt++
	_, err := e.deliver(t.Context(), t, e.msg)
	e.wantClass(t, err, adapters.ClassDelivered)
	if n := len(e.Held()); n != 1 {
		t.Errorf("the receiver holds %d messages, want 1", n)
	}
}

// within waits until the condition holds, and reports whether it did so in time.
func within(bound time.Duration, holds func() bool) bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	over := time.After(bound)
	for !holds() {
		select {
		case <-tick.C:
		case <-over:
			return holds()
		}
	}
	return true
}

func (e *exam) printing(t *testing.T) { checkPrinting(t, e.adapter) }

package adaptertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/hms-mkt/lockstep/adapters"
)

// Harness tells the suite about an adapter and its protocol.
type Harness struct {
	// New builds the adapter for a receiver. If the adapter has a method
	// Close() error, the suite calls it at the end. Required.
	New func(t *testing.T, s Setup) adapters.Adapter

	// Accept writes the protocol's answer to an accepted message. Required.
	Accept func(w http.ResponseWriter, r *http.Request, body []byte)

	// Refuse writes an answer with the given status, and with reason in the protocol's
	// form of a reason. It must keep header fields that are already set. Required.
	Refuse func(w http.ResponseWriter, status int, reason string)

	// Key returns the idempotency key of a request. Required.
	Key func(r *http.Request, body []byte) string

	// Stable returns the part of a request's body that must be the same on every
	// attempt. Default: the whole body.
	Stable func(body []byte) []byte

	// Classes are the protocol's exceptions to [DefaultClasses]. Default: none.
	Classes map[int]adapters.Class

	// Holds writes the answer to a read: the receiver has held as it was sent, or nothing if
	// held is nil. Required for an [adapters.Reader] that reads Message.
	Holds func(w http.ResponseWriter, r *http.Request, held *adapters.Message)

	// Listed writes the answer to the only page of a list, which has held. Required for an
	// [adapters.Lister] that lists.
	Listed func(w http.ResponseWriter, r *http.Request, held adapters.Message)

	// Message is sent in all tests. Some tests add a member "canary" to its Body.
	// Default: a small hearing.
	Message adapters.Message

	// BodyDecides says that a 2xx alone does not mean delivered, because the body has
	// the result. Then a cut answer must be unknown; otherwise it may count as
	// delivered. Default: false.
	BodyDecides bool
}

// Setup configures an adapter under test.
type Setup struct {
	URL     string          // of the receiver, used as it is
	Timeout time.Duration   // of one attempt
	Secret  adapters.Secret // credential that the adapter must send in the protocol's way
}

// DefaultClasses returns the class of each status that the suite tries, except 2xx. The
// classes are those of answers with a reason, for adapters without exceptions.
func DefaultClasses() map[int]adapters.Class {
	m := map[int]adapters.Class{}
	for class, statuses := range map[adapters.Class][]int{
		adapters.ClassPermanent: {301, 302, 303, 307, 308, 400, 404, 405, 406, 410, 413, 414, 415, 422, 501, 505},
		adapters.ClassAuth:      {401, 407},
		adapters.ClassForbidden: {403},
		adapters.ClassTransient: {408, 425, 500, 502, 503, 504, 507},
		adapters.ClassConflict:  {409, 412},
		adapters.ClassThrottled: {429},
	} {
		for _, s := range statuses {
			m[s] = class
		}
	}
	return m
}

// canary is in everything that must not appear in an error.
const canary = "canary-7f3a9c"

const (
	longTimeout  = 20 * time.Second // of adapters that must not need it
	shortTimeout = 150 * time.Millisecond
	prompt       = 5 * time.Second // more than any machine needs, less than longTimeout
	maxErrorText = 1024            // bytes
)

// Run runs the suite for an adapter that speaks HTTP.
func Run(t *testing.T, h Harness) {
	if h.Stable == nil {
		h.Stable = func(body []byte) []byte { return body }
	}
	if h.Message.Type == "" {
		h.Message = hearing()
	}
	s := suite{Harness: h, classes: DefaultClasses()}
	maps.Copy(s.classes, h.Classes)

	for _, group := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"statuses", s.statuses},
		{"Retry-After", s.retryAfter},
		{"requests", s.requests},
		{"bad receivers", s.badReceivers},
		{"no answer", s.noAnswer},
		{"secrets", s.secrets},
		{"redirects", s.redirects},
		{"gateways", s.gateways},
		{"reads", s.reads},
		{"steps", s.steps},
		{"lists", s.lists},
		{"connecting", s.connecting},
	} {
		t.Run(group.name, group.run)
	}
}

func hearing() adapters.Message {
	version := int64(3)
	return adapters.Message{
		ID:             "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81",
		IdempotencyKey: "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81",
		Type:           "scheduling:updated",
		Key:            "hearing-7",
		Version:        &version,
		OccurredAt:     time.Date(2027, 3, 1, 14, 0, 0, 0, time.UTC),
		Attempt:        1,
		Body:           []byte(`{"hearingId":"7","startsAt":"2027-03-15T09:30:00-04:00"}`),
		Headers:        map[string]string{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		Ref:            adapters.Ref{ExternalID: "ext-7", ETag: `"v2"`},
	}
}

// suite is a harness with its defaults filled in.
type suite struct {
	Harness
	classes map[int]adapters.Class
}

// bench is one receiver and the adapter that talks to it.
type bench struct {
	suite
	adapter adapters.Adapter
	url     string
}

// with starts a receiver and an adapter. At the end of the test all goroutines of both
// must have ended.
func (s suite) with(t *testing.T, timeout time.Duration, serve http.HandlerFunc) *bench {
	t.Helper()
	checkLeaks(t)
	server := httptest.NewUnstartedServer(serve)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return s.at(t, server.URL, timeout)
}

// at makes an adapter for a receiver at url, which may not exist.
func (s suite) at(t *testing.T, url string, timeout time.Duration) *bench {
	t.Helper()
	url += "/in?sig=" + canary
	a := s.New(t, Setup{URL: url, Timeout: timeout, Secret: adapters.Secret("secret-" + canary)})
	if c, ok := a.(io.Closer); ok {
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	return &bench{suite: s, adapter: a, url: url}
}

func checkLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := goleak.Find(before); err != nil {
			t.Errorf("goroutines are left: %v", err)
		}
	})
}

// deliver makes one attempt and makes the checks that apply to every attempt.
func (b *bench) deliver(ctx context.Context, t *testing.T, msg adapters.Message) (adapters.Receipt, error) {
	t.Helper()
	body, headers := bytes.Clone(msg.Body), maps.Clone(msg.Headers)
	start := time.Now()
	receipt, err := b.adapter.Deliver(ctx, msg)
	if took := time.Since(start); took > prompt {
		t.Errorf("Deliver took %s, want less than %s", took, prompt)
	}
	if !bytes.Equal(msg.Body, body) || !maps.Equal(msg.Headers, headers) {
		t.Errorf("Deliver changed the message")
	}
	if !storable(receipt.Code) {
		t.Errorf("the code %q cannot be stored", receipt.Code)
	}
	checkError(t, err)
	return receipt, err
}

// deliverMany delivers msg under many keys from many goroutines at once, and
// returns how many keys there were.
func (b *bench) deliverMany(t *testing.T, msg adapters.Message) int {
	t.Helper()
	const workers, each = 16, 4
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for n := range each {
				own := msg
				own.ID = fmt.Sprintf("event-%d-%d", worker, n)
				own.IdempotencyKey = own.ID
				_, err := b.deliver(t.Context(), t, own)
				b.wantClass(t, err, adapters.ClassDelivered)
			}
		})
	}
	wg.Wait()
	return workers * each
}

// checkError checks the text of err and of everything it wraps.
func checkError(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := err.Error()
	if len(text) > maxErrorText {
		t.Errorf("an error text of %d bytes is too long: %.300q", len(text), text)
		return
	}
	if !storable(text) {
		t.Errorf("an error text cannot be stored: %q", text)
	}
	if strings.Contains(text, canary) {
		t.Errorf("the error text shows a secret: %s", text)
	}
	switch e := err.(type) { //nolint:errorlint // all wrapped errors are checked
	case interface{ Unwrap() error }:
		checkError(t, e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			checkError(t, inner)
		}
	}
}

func storable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) && r != '\n'
	})
}

func (b *bench) wantClass(t *testing.T, err error, want ...adapters.Class) {
	t.Helper()
	got := adapters.ClassOf(err)
	if !slices.Contains(want, got) {
		t.Errorf("class %s, want %v: %v", got, want, err)
	}
}

// read returns a request's body.
func read(t *testing.T, r *http.Request) []byte {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil && !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("the receiver could not read the request: %v", err)
	}
	return body
}

// ledger is a receiver's record of what it has read.
type ledger struct {
	mu   sync.Mutex
	read []Held
}

func (l *ledger) add(h Held) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read = append(l.read, h)
}

func (l *ledger) all() []Held {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.read
}

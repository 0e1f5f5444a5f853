package adaptertest

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// reads: an adapter that reads back what the receiver has. A read changes nothing, and what
// cannot be read is never taken for an answer: then a booking would be made twice, or never.
func (s suite) reads(t *testing.T) {
	silent := s.with(t, longTimeout, func(http.ResponseWriter, *http.Request) {})
	reader, ok := silent.adapter.(adapters.Reader)
	switch reads := ok && reader.Reads(s.Message); {
	case !reads && s.Holds == nil:
		return
	case !reads:
		t.Fatal("Holds is set, but the adapter does not read this message")
	case s.Holds == nil:
		t.Fatal("the adapter reads back: set Holds")
	}
	msg := s.Message
	for name, tc := range map[string]struct {
		held *adapters.Message
		want adapters.Standing
	}{"it has the message": {&msg, adapters.Equal}, "it has nothing": {nil, adapters.Absent}} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var methods []string
			b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				methods = append(methods, r.Method)
				mu.Unlock()
				s.Holds(w, r, tc.held)
			})
			reading, err := b.read(t.Context(), t, msg)
			if err != nil || reading.Standing != tc.want {
				t.Errorf("standing %d, %v; want %d", reading.Standing, err, tc.want)
			}
			if reading.Code == "" || !storable(reading.Code) {
				t.Errorf("the code %q cannot be stored", reading.Code)
			}
			if len(methods) == 0 || slices.ContainsFunc(methods, func(m string) bool {
				return slices.Contains([]string{http.MethodPut, http.MethodPatch, http.MethodDelete}, m)
			}) {
				t.Errorf("requests %v: a read makes some, and changes nothing", methods)
			}
		})
	}
	for _, status := range []int{401, 403, 429, 500, 503} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) {
				dump, err := httputil.DumpRequest(r, true)
				if err != nil {
					t.Errorf("dump: %v", err)
				}
				s.Refuse(w, status, "did not like "+canary+" in "+string(dump))
			})
			reading, err := b.read(t.Context(), t, msg)
			if b.wantClass(t, err, s.classes[status]); err == nil {
				t.Errorf("a refusal is a reading: %+v", reading)
			}
		})
	}
	for name, answer := range map[string]http.HandlerFunc{
		"a page":         func(w http.ResponseWriter, _ *http.Request) { page(w, http.StatusOK) },
		"a page at 404":  func(w http.ResponseWriter, _ *http.Request) { page(w, http.StatusNotFound) },
		"no answer":      func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"a cut answer":   func(w http.ResponseWriter, _ *http.Request) { cut(w) },
		"nothing at all": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) },
	} {
		t.Run(name, func(t *testing.T) {
			if reading, err := s.with(t, longTimeout, answer).read(t.Context(), t, msg); err == nil {
				t.Errorf("it is a reading: %+v", reading)
			}
		})
	}
	t.Run("a timeout", func(t *testing.T) {
		end := make(chan struct{})
		b := s.with(t, shortTimeout, func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-end:
			case <-r.Context().Done():
			}
		})
		defer close(end)
		if reading, err := b.read(t.Context(), t, msg); err == nil {
			t.Errorf("it is a reading: %+v", reading)
		}
	})
}

// read makes one reading and makes the checks that apply to every reading.
func (b *bench) read(ctx context.Context, t *testing.T, msg adapters.Message) (adapters.Reading, error) {
	t.Helper()
	start := time.Now()
	reading, err := b.adapter.(adapters.Reader).Read(ctx, msg)
	if took := time.Since(start); took > prompt {
		t.Errorf("Read took %s, want less than %s", took, prompt)
	}
	checkError(t, err)
	return reading, err
}

func page(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, "<!DOCTYPE html>\n<html><head><title>Maintenance</title></head><body>We will be back.</body></html>")
}

func cut(w http.ResponseWriter) {
	w.Header().Set("Content-Length", "1000")
	_, _ = io.WriteString(w, "{")
	panic(http.ErrAbortHandler)
}

// steps: each call makes one request that changes something, and the message ends.
func (s suite) steps(t *testing.T) {
	const most = 16 // the relay's bound
	var mu sync.Mutex
	changes := 0
	b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains([]string{http.MethodGet, http.MethodHead, "REPORT", "PROPFIND"}, r.Method) {
			mu.Lock()
			changes++
			mu.Unlock()
		}
		s.Accept(w, r, read(t, r))
	})
	msg := s.Message
	for step := range most {
		msg.Step = step
		if step > 0 {
			msg.IdempotencyKey = fmt.Sprintf("%s/%d", s.Message.IdempotencyKey, step+1)
		}
		receipt, err := b.deliver(t.Context(), t, msg)
		b.wantClass(t, err, adapters.ClassDelivered)
		if changes != step+1 {
			t.Fatalf("%d requests that change something after %d calls", changes, step+1)
		}
		if !receipt.More {
			return
		}
		if receipt.Ref != nil {
			msg.Ref = *receipt.Ref
		}
	}
	t.Errorf("it has more than %d steps", most)
}

// lists: an adapter that lists finds what it is to find, and a list that breaks off is an
// error, never a smaller calendar.
func (s suite) lists(t *testing.T) {
	lister, ok := s.with(t, longTimeout, func(http.ResponseWriter, *http.Request) {}).adapter.(adapters.Lister)
	switch lists := ok && lister.Lists() == nil; {
	case !lists && s.Listed == nil:
		return
	case !lists:
		t.Fatal("Listed is set, but the adapter does not list")
	case s.Listed == nil:
		t.Fatal("the adapter lists: set Listed")
	}
	list := func(t *testing.T, serve http.HandlerFunc) (all []adapters.Entry, want adapters.Entry, err error) {
		t.Helper()
		l := s.with(t, longTimeout, serve).adapter.(adapters.Lister)
		if want, err = l.Entry(s.Message); err != nil {
			t.Fatal(err)
		}
		err = l.List(t.Context(), adapters.Window{}, func(e adapters.Entry) error { all = append(all, e); return nil })
		checkError(t, err)
		return all, want, err
	}
	t.Run("what is there", func(t *testing.T) {
		all, want, err := list(t, func(w http.ResponseWriter, r *http.Request) { s.Listed(w, r, s.Message) })
		if err != nil || len(all) != 1 {
			t.Fatalf("%d entries, %v; want 1", len(all), err)
		}
		if got := all[0]; got.Key != want.Key || got.Cancelled != want.Cancelled || !maps.Equal(got.Fields, want.Fields) {
			t.Errorf("listed %+v, want %+v", got, want)
		}
	})
	for name, answer := range map[string]http.HandlerFunc{
		"a refusal":    func(w http.ResponseWriter, _ *http.Request) { s.Refuse(w, http.StatusServiceUnavailable, "busy") },
		"a page":       func(w http.ResponseWriter, _ *http.Request) { page(w, http.StatusOK) },
		"no answer":    func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"a cut answer": func(w http.ResponseWriter, _ *http.Request) { cut(w) },
	} {
		t.Run(name, func(t *testing.T) {
			if all, _, err := list(t, answer); err == nil {
				t.Errorf("it is a calendar of %d entries", len(all))
			}
		})
	}
}

package adaptertest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// statuses: what each status means, and that its code is in the receipt.
func (s suite) statuses(t *testing.T) {
	for _, status := range slices.Sorted(maps.Keys(s.classes)) {
		class := s.classes[status]
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			b := s.with(t, longTimeout, func(w http.ResponseWriter, _ *http.Request) { s.Refuse(w, status, "no such room") })
			receipt, err := b.deliver(t.Context(), t, s.Message)
			b.wantClass(t, err, class)
			if want := fmt.Sprintf("HTTP %d", status); !strings.Contains(receipt.Code, want) {
				t.Errorf("code %q, want one with %q", receipt.Code, want)
			}
		})
	}
	t.Run("accepted", func(t *testing.T) {
		b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) { s.Accept(w, r, read(t, r)) })
		receipt, err := b.deliver(t.Context(), t, s.Message)
		b.wantClass(t, err, adapters.ClassDelivered)
		if receipt.Code == "" {
			t.Error("the receipt has no code")
		}
	})
}

// gateways: a gateway answers instead of the receiver and does not know the protocol.
func (s suite) gateways(t *testing.T) {
	for name, answer := range map[string]struct{ contentType, body string }{
		"a page":  {"text/html", "<!DOCTYPE html>\n<html><head><title>Maintenance</title></head><body>We will be back.</body></html>"},
		"text":    {"text/plain; charset=utf-8", "default backend - 404"},
		"nothing": {"", ""},
	} {
		statuses := []int{302, 400, 404, 405, 419}
		if name == "a page" {
			statuses = append(statuses, 200) // a login page
		}
		for _, status := range statuses {
			t.Run(fmt.Sprintf("%d with %s", status, name), func(t *testing.T) {
				b := s.with(t, longTimeout, func(w http.ResponseWriter, _ *http.Request) {
					if answer.contentType != "" {
						w.Header().Set("Content-Type", answer.contentType)
					}
					w.Header().Set("Location", "/maintenance")
					w.WriteHeader(status)
					_, _ = io.WriteString(w, answer.body)
				})
				receipt, err := b.deliver(t.Context(), t, s.Message)
				b.wantClass(t, err, adapters.ClassUnexplained)
				if status == 200 && !adapters.IsUnknown(err) {
					t.Errorf("the receiver may have it, but the error is not Unknown: %v", err)
				}
				if want := fmt.Sprintf("HTTP %d", status); !strings.Contains(receipt.Code, want) {
					t.Errorf("code %q, want one with %q", receipt.Code, want)
				}
			})
		}
	}
}

// retryAfter: the forms of Retry-After, on a throttling status and on others.
func (s suite) retryAfter(t *testing.T) {
	now := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC) // the receiver's clock, which need not be ours
	for name, tc := range map[string]struct {
		value  string
		want   time.Duration
		usable bool
	}{
		"seconds":          {value: "17", want: 17 * time.Second, usable: true},
		"date":             {value: now.Add(90 * time.Second).Format(http.TimeFormat), want: 90 * time.Second, usable: true},
		"date in the past": {value: now.Add(-time.Hour).Format(http.TimeFormat), usable: true},
		"garbage":          {value: "in a while"},
		"negative":         {value: "-17"},
		"10^9":             {value: "1000000000", want: time.Hour, usable: true},
		"beyond int64":     {value: strings.Repeat("9", 40), want: time.Hour, usable: true},
		"not given":        {},
		"date too late":    {value: now.AddDate(1, 0, 0).Format(http.TimeFormat), want: time.Hour, usable: true},
	} {
		for _, status := range []int{429, 500, 503} {
			t.Run(fmt.Sprintf("%d %s", status, name), func(t *testing.T) {
				b := s.with(t, longTimeout, func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Date", now.Format(http.TimeFormat))
					if tc.value != "" {
						w.Header().Set("Retry-After", tc.value)
					}
					s.Refuse(w, status, "busy")
				})
				_, err := b.deliver(t.Context(), t, s.Message)
				class := s.classes[status]
				if status == 503 && class == adapters.ClassTransient && tc.usable {
					class = adapters.ClassThrottled
				}
				b.wantClass(t, err, class)
				if got := adapters.RetryDelay(err); got != tc.want {
					t.Errorf("wait %s, want %s", got, tc.want)
				}
			})
		}
	}
}

// requests: what is sent, in attempts one after the other and at the same time.
func (s suite) requests(t *testing.T) {
	t.Run("attempts are the same", func(t *testing.T) {
		var seen ledger
		b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) {
			body := read(t, r)
			seen.add(Held{Key: s.Key(r, body), Body: s.Stable(body)})
			if len(seen.all()) == 1 {
				s.Refuse(w, 500, "try again")
				return
			}
			s.Accept(w, r, body)
		})
		msg := s.Message
		for msg.Attempt = 1; msg.Attempt <= 3; msg.Attempt++ {
			_, err := b.deliver(t.Context(), t, msg)
			if msg.Attempt == 1 {
				b.wantClass(t, err, s.classes[500])
			} else {
				b.wantClass(t, err, adapters.ClassDelivered)
			}
		}
		got := seen.all()
		if len(got) != 3 {
			t.Fatalf("the receiver saw %d requests for 3 attempts", len(got))
		}
		for i, e := range got {
			if e.Key != msg.IdempotencyKey {
				t.Errorf("attempt %d has idempotency key %q, want %q", i+1, e.Key, msg.IdempotencyKey)
			}
			if len(e.Body) == 0 || string(e.Body) != string(got[0].Body) {
				t.Errorf("attempt %d has another body than attempt 1, or none: %s", i+1, e.Body)
			}
		}
	})

	t.Run("the digest is of what was sent", func(t *testing.T) {
		for name, answer := range map[string]func(http.ResponseWriter, *http.Request, []byte){
			"accepted":  s.Accept,
			"refused":   func(w http.ResponseWriter, _ *http.Request, _ []byte) { s.Refuse(w, 422, "no such room") },
			"no answer": func(http.ResponseWriter, *http.Request, []byte) { panic(http.ErrAbortHandler) },
		} {
			var seen ledger
			b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) {
				body := read(t, r)
				seen.add(Held{Body: body})
				answer(w, r, body)
			})
			receipt, _ := b.deliver(t.Context(), t, s.Message)
			got := seen.all()
			if len(got) != 1 {
				t.Fatalf("%s: the receiver saw %d requests", name, len(got))
			}
			told := cmp.Or(receipt.SHA256, digest(s.Message.Body))
			if want := digest(got[0].Body); told != want {
				t.Errorf("%s: the receipt's digest is %s, what was sent has %s", name, told, want)
			}
		}
	})

	t.Run("many at once", func(t *testing.T) {
		var seen ledger
		b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) {
			body := read(t, r)
			seen.add(Held{Key: s.Key(r, body)})
			s.Accept(w, r, body)
		})
		want := b.deliverMany(t, s.Message)
		count := map[string]int{}
		for _, e := range seen.all() {
			count[e.Key]++
		}
		if len(count) != want {
			t.Errorf("the receiver saw %d keys, want %d", len(count), want)
		}
		for key, n := range count {
			if n != 1 {
				t.Errorf("%d requests for %s", n, key)
			}
		}
	})
}

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

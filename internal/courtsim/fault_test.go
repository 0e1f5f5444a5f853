package courtsim_test

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

func script(t *testing.T, s string) []courtsim.Fault {
	t.Helper()
	f, err := courtsim.ParseFaults([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestWhichRequestsAreStruck shows the counting of a rule: S for struck.
func TestWhichRequestsAreStruck(t *testing.T) {
	tests := []struct{ name, match, want string }{
		{"no condition strikes all", `{}`, "SSSSSSSS"},
		{"first", `{"first":3}`, "SSS....."},
		{"after", `{"after":6}`, "......SS"},
		{"after and first", `{"after":2,"first":2}`, "..SS...."},
		{"every third", `{"every":3}`, "..S..S.."},
		{"after and every", `{"after":1,"every":3}`, "...S..S."},
		{"another method", `{"method":"DELETE"}`, "........"},
		{"the case", `{"key":"H-1","first":1}`, "S......."},
		{"another case", `{"key":"H-2"}`, "........"},
		{"the idempotency key", `{"key":"k4"}`, "....S..."},
		{"never by chance", `{"probability":1e-12}`, "........"},
		{"always by chance", `{"probability":1}`, "SSSSSSSS"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, courtsim.Options{Faults: script(t, `[{"match":`+tt.match+`,"do":{"status":503}}]`)})
			got := ""
			for i := range len(tt.want) {
				if h.post(fmt.Sprint("k", i), "H-1").status == 503 {
					got += "S"
				} else {
					got += "."
				}
			}
			if got != tt.want {
				t.Errorf("struck %s, want %s", got, tt.want)
			}
		})
	}
}

func TestTheSameSeedStrikesTheSameRequests(t *testing.T) {
	run := func(seed uint64) []int {
		h := start(t, courtsim.Options{Seed: seed, Faults: script(t, `[{"match":{"probability":0.5},"do":{"status":503}}]`)})
		var got []int
		for i := range 40 {
			got = append(got, h.post(fmt.Sprint("k", i), "H-1").status)
		}
		return got
	}
	if a, b := run(7), run(7); !slices.Equal(a, b) {
		t.Errorf("the same seed gave\n%v\n%v", a, b)
	}
	if a, b := run(7), run(8); slices.Equal(a, b) {
		t.Error("two seeds gave the same forty answers")
	}
}

func TestFirstRuleThatStrikesDecides(t *testing.T) {
	h := start(t, courtsim.Options{Faults: script(t, `[
		{"match":{"first":1},"do":{"status":503}},
		{"match":{"first":2},"do":{"status":429}}]`)})
	for i, want := range []int{503, 429, 201} {
		h.post(fmt.Sprint("k", i), "H-1").want(t, want)
		if e := h.last(); e.Fault != []int{1, 2, 0}[i] {
			t.Errorf("request %d: the ledger has rule %d", i, e.Fault)
		}
	}
}

func TestEveryActionChangesTheAnswer(t *testing.T) {
	tests := []struct {
		name, do string
		accepted bool
		check    func(*testing.T, answer)
	}{
		{"status with Retry-After", `{"status":503,"retry_after":"garbage"}`, false, func(t *testing.T, a answer) {
			a.want(t, 503)
			if got := a.header.Get("Retry-After"); got != "garbage" {
				t.Errorf("Retry-After is %q", got)
			}
		}},
		{"redirect", `{"redirect":"http://169.254.169.254/"}`, false, func(t *testing.T, a answer) {
			a.want(t, 307)
			if got := a.header.Get("Location"); got != "http://169.254.169.254/" {
				t.Errorf("Location is %q", got)
			}
		}},
		{"redirect with a status", `{"redirect":"/x","status":302}`, false, func(t *testing.T, a answer) { a.want(t, 302) }},
		{"a gateway's page", `{"gateway":"html"}`, false, func(t *testing.T, a answer) {
			a.want(t, 404)
			if got := a.header.Get("Content-Type"); !strings.HasPrefix(got, "text/html") || !strings.HasPrefix(a.body, "<!DOCTYPE html>") {
				t.Errorf("got %q as %q", a.body, got)
			}
		}},
		{"a gateway's redirect to a page", `{"gateway":"html","redirect":"/maintenance","status":302}`, false, func(t *testing.T, a answer) {
			if a.want(t, 302); !strings.HasPrefix(a.body, "<!DOCTYPE html>") {
				t.Errorf("body is %q", a.body)
			}
		}},
		{"a gateway's text", `{"gateway":"text","status":400}`, false, func(t *testing.T, a answer) {
			if a.want(t, 400); a.body != "default backend - 404" {
				t.Errorf("body is %q", a.body)
			}
		}},
		{"a gateway that says nothing", `{"gateway":"empty","status":405}`, false, func(t *testing.T, a answer) {
			if a.want(t, 405); a.body != "" || a.header.Get("Content-Type") != "" {
				t.Errorf("got %q as %q", a.body, a.header.Get("Content-Type"))
			}
		}},
		{"another body", `{"body":"\u0000{"}`, true, func(t *testing.T, a answer) {
			if a.want(t, 201); a.body != "\x00{" {
				t.Errorf("body is %q", a.body)
			}
		}},
		{"a body many times", `{"body":"ab","repeat":3}`, true, func(t *testing.T, a answer) {
			if a.want(t, 201); a.body != "ababab" {
				t.Errorf("body is %q", a.body)
			}
		}},
		{"compressed", `{"body":"0","repeat":100000,"gzip":true}`, true, func(t *testing.T, a answer) {
			a.want(t, 201)
			z, err := gzip.NewReader(strings.NewReader(a.body))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(z)
			if err != nil || len(b) != 100000 || len(a.body) > 1000 {
				t.Errorf("%d bytes became %d (%v)", len(a.body), len(b), err)
			}
		}},
		{"dropped before", `{"drop":"before"}`, false, func(t *testing.T, a answer) { a.wantCut(t) }},
		{"dropped after", `{"drop":"after"}`, true, func(t *testing.T, a answer) { a.wantCut(t) }},
		{"dropped during", `{"drop":"during"}`, true, func(t *testing.T, a answer) {
			if a.wantCut(t); a.status != 201 || a.body == "" {
				t.Errorf("before the cut came %d %q", a.status, a.body)
			}
		}},
		{"delayed", `{"delay":"1ms"}`, true, func(t *testing.T, a answer) { a.want(t, 201) }},
		{"dripping", `{"drip":"10us"}`, true, func(t *testing.T, a answer) {
			if a.want(t, 201); !strings.HasSuffix(a.body, "}") {
				t.Errorf("body is %q", a.body)
			}
		}},
		{"hangs, then cuts", `{"hang":"1ms"}`, false, func(t *testing.T, a answer) { a.wantCut(t) }},
		{"hangs, then answers", `{"hang":"1ms","status":504}`, false, func(t *testing.T, a answer) { a.want(t, 504) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, courtsim.Options{Faults: script(t, `[{"match":{"first":1},"do":`+tt.do+`}]`)})
			a := h.post("k", "H-1")
			tt.check(t, a)
			e := h.last()
			if e.Accepted != tt.accepted {
				t.Errorf("accepted is %v, want %v", e.Accepted, tt.accepted)
			}
			if a.status != e.Status {
				t.Errorf("the ledger says %d, the caller saw %d", e.Status, a.status)
			}
			// The repetition finds what the first request stored.
			again := 201
			if tt.accepted {
				again = 409
			}
			h.post("k", "H-1").want(t, again)
		})
	}
}

// signal is a ledger file that signals each request.
type signal chan struct{}

func (s signal) Write(b []byte) (int, error) {
	s <- struct{}{}
	return len(b), nil
}

func TestHangEndsWithTheCallerAndWithTheCourt(t *testing.T) {
	faults := script(t, `[{"do":{"hang":"1h"}}]`)
	t.Run("caller leaves", func(t *testing.T) {
		h := start(t, courtsim.Options{Faults: faults})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		h.do(ctx, "POST", "/api/calendar", "k", "{}").wantCut(t)
	})
	t.Run("court closes", func(t *testing.T) {
		read := make(signal, 1)
		h := start(t, courtsim.Options{Faults: faults, Ledger: read})
		done := make(chan answer)
		go func() { done <- h.post("k", "H-1") }()
		<-read
		if err := h.court.Close(); err != nil {
			t.Fatal(err)
		}
		(<-done).wantCut(t)
	})
}

func TestTheScriptIsReadAndReplacedOverHTTP(t *testing.T) {
	h := start(t, courtsim.Options{})
	h.do(t.Context(), "POST", "/faults", "", `[{"match":{"first":1},"do":{"status":500,"hang":"1ms"}}]`).want(t, 200)
	a := h.do(t.Context(), "GET", "/faults", "", "").want(t, 200)
	if want := `[{"match":{"first":1},"do":{"status":500,"hang":"1ms"}}]`; a.body != want {
		t.Errorf("script is %s, want %s", a.body, want)
	}
	h.do(t.Context(), "POST", "/faults", "", `[{"do":{"status":42}}]`).want(t, 422)
	h.post("k", "H-1").want(t, 500) // the refused script changed nothing
	h.do(t.Context(), "POST", "/faults", "", `[]`).want(t, 200)
	h.post("k", "H-1").want(t, 201)
	if a := h.do(t.Context(), "GET", "/ledger", "", "").want(t, 200); strings.Count(a.body, `"seq"`) != 2 {
		t.Errorf("ledger is %s", a.body)
	}
}

func TestBadScriptsAreRefused(t *testing.T) {
	tests := []struct{ name, script, want string }{
		{"not JSON", `[`, "fault script"},
		{"an object", `{}`, "array"},
		{"trailing text", `[] []`, "follows"},
		{"unknown field", `[{"do":{"stauts":503}}]`, "stauts"},
		{"bad duration", `[{"do":{"hang":"soon"}}]`, "soon"},
		{"bad status", `[{"do":{"status":99}}]`, "fault 1: do.status is 99"},
		{"bad gateway", `[{"do":{"gateway":"page"}}]`, `do.gateway is "page", not one of empty, html, text`},
		{"bad fault", `[{"do":{"fault":"Servr"}}]`, `do.fault is "Servr", not one of Busy, Client,`},
		{"bad drop", `[{"do":{"drop":"off"}}]`, `do.drop is "off"`},
		{"bad probability", `[{"match":{"probability":2},"do":{"status":500}}]`, "probability"},
		{"negative count", `[{"match":{"after":-1},"do":{"status":500}}]`, "not be negative"},
		{"negative wait", `[{"do":{"delay":"-1s"}}]`, "not be negative"},
		{"nothing to do, in the second", `[{"do":{"status":500}},{"match":{}}]`, "fault 2: do is empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := courtsim.ParseFaults([]byte(tt.script))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want it to name %q", err, tt.want)
			}
		})
	}
}

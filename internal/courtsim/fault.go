package courtsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Fault is one rule of a script: Match selects requests to the calendar, and Do says
// what the court does with them. The first rule that strikes decides. Every rule counts
// all requests of its key and method, also those that an earlier rule has struck.
type Fault struct {
	Match Match  `json:"match"`
	Do    Action `json:"do"`
}

// Match selects the requests that meet all its conditions. The zero value selects all
// requests.
type Match struct {
	Key         string  `json:"key,omitempty"`         // case reference or idempotency key
	Method      string  `json:"method,omitempty"`      // such as POST
	After       int     `json:"after,omitempty"`       // skip the first n requests
	First       int     `json:"first,omitempty"`       // then strike only the next n requests
	Every       int     `json:"every,omitempty"`       // only each n-th of them
	Probability float64 `json:"probability,omitempty"` // 0 to 1; 0 means always
}

// Action says what the court does. Status, fault, gateway, redirect, hang and drop
// "before" prevent the processing of the request. With other actions the court
// processes the request and changes only the answer.
type Action struct {
	Status     int      `json:"status,omitempty"`      // answer this, process nothing
	Fault      string   `json:"fault,omitempty"`       // answer a SOAP Fault of this kind, with status if given, process nothing; over REST status 500
	RetryAfter string   `json:"retry_after,omitempty"` // header Retry-After
	Gateway    string   `json:"gateway,omitempty"`     // answer like a gateway in front of the court: html, text or empty, with status (default 404); process nothing
	Redirect   string   `json:"redirect,omitempty"`    // header Location, with status (default 307); process nothing
	Hang       Duration `json:"hang,omitempty"`        // process nothing, wait, then cut the connection (or answer status or fault)
	Delay      Duration `json:"delay,omitempty"`       // process, wait, answer
	Drip       Duration `json:"drip,omitempty"`        // answer one byte at a time with this pause
	Drop       string   `json:"drop,omitempty"`        // cut the connection: before or after processing, or during the answer
	Body       *string  `json:"body,omitempty"`        // answer this body
	Repeat     int      `json:"repeat,omitempty"`      // the body this many times
	Gzip       bool     `json:"gzip,omitempty"`        // compress the body, even if the caller does not accept that
}

// Values of [Action.Drop].
const (
	DropBefore = "before" // read the request, store nothing, give no answer
	DropAfter  = "after"  // store, give no answer
	DropDuring = "during" // store, cut the connection in the middle of the answer
)

// gateways are the answers of a gateway that does not know the court's protocol,
// by the values of [Action.Gateway].
var gateways = map[string]reply{
	"html": {
		contentType: "text/html; charset=utf-8",
		body:        []byte("<!DOCTYPE html>\n<html><head><title>Maintenance</title></head><body><h1>We will be back soon.</h1></body></html>\n"),
	},
	"text":  {contentType: "text/plain; charset=utf-8", body: []byte("default backend - 404")},
	"empty": {},
}

// silent reports whether the caller gets no answer.
func (a Action) silent() bool {
	return a.Drop == DropBefore || a.Drop == DropAfter || a.Hang > 0 && !a.answers()
}

// answers reports whether the action itself is the answer.
func (a Action) answers() bool { return a.Status != 0 || a.Fault != "" || a.Gateway != "" }

// Duration is a time span, written as "1s" or "250ms".
type Duration time.Duration

// UnmarshalText reads a duration as [time.ParseDuration] does.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// MarshalText writes a duration as [time.Duration.String] does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// ParseFaults reads a script: a JSON array of faults. Unknown fields are refused.
func ParseFaults(b []byte) ([]Fault, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var faults []Fault
	if err := dec.Decode(&faults); err != nil {
		return nil, fmt.Errorf("fault script: %w; expected a JSON array of {\"match\": {…}, \"do\": {…}}", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("fault script: something follows the array; expected one JSON array")
	}
	return faults, checkFaults(faults)
}

// checkFaults reports all mistakes in a script.
func checkFaults(faults []Fault) error {
	var errs []error
	for i, f := range faults {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("fault %d: "+format, append([]any{i + 1}, args...)...))
		}
		m, do := f.Match, f.Do
		if m.After < 0 || m.First < 0 || m.Every < 0 {
			bad("match: after, first and every must not be negative")
		}
		if !(m.Probability >= 0 && m.Probability <= 1) {
			bad("match.probability is %v, not between 0 and 1", m.Probability)
		}
		if do.Status != 0 && (do.Status < 200 || do.Status > 599) {
			bad("do.status is %d, not an HTTP status from 200 to 599", do.Status)
		}
		if _, ok := soapFaults[do.Fault]; do.Fault != "" && !ok {
			bad("do.fault is %q, not one of %s", do.Fault, strings.Join(slices.Sorted(maps.Keys(soapFaults)), ", "))
		}
		if _, ok := gateways[do.Gateway]; do.Gateway != "" && !ok {
			bad("do.gateway is %q, not one of %s", do.Gateway, strings.Join(slices.Sorted(maps.Keys(gateways)), ", "))
		}
		if !slices.Contains([]string{"", DropBefore, DropAfter, DropDuring}, do.Drop) {
			bad("do.drop is %q, not before, after or during", do.Drop)
		}
		if do.Hang < 0 || do.Delay < 0 || do.Drip < 0 || do.Repeat < 0 {
			bad("do: hang, delay, drip and repeat must not be negative")
		}
		if do == (Action{}) {
			bad("do is empty; say what the court should do, such as {\"status\": 503}")
		}
	}
	return errors.Join(errs...)
}

// script applies faults. The Court's lock guards it.
type script struct {
	rules []rule
	rand  *rand.Rand
}

type rule struct {
	Fault
	count int // requests of this key and method so far
}

func (s *script) set(faults []Fault) {
	s.rules = nil
	for _, f := range faults {
		s.rules = append(s.rules, rule{Fault: f})
	}
}

func (s *script) faults() []Fault {
	faults := []Fault{}
	for _, r := range s.rules {
		faults = append(faults, r.Fault)
	}
	return faults
}

// pick returns the fault for req with its number from 1, or 0 for none.
func (s *script) pick(req request) (int, Fault) {
	number, picked := 0, Fault{}
	for i := range s.rules {
		r := &s.rules[i]
		if r.strikes(req, s.rand) && number == 0 {
			number, picked = i+1, r.Fault
		}
	}
	return number, picked
}

func (r *rule) strikes(req request, chance *rand.Rand) bool {
	m := r.Match
	if m.Key != "" && m.Key != req.caseRef && m.Key != req.key {
		return false
	}
	if m.Method != "" && m.Method != req.method {
		return false
	}
	r.count++
	n := r.count - m.After
	switch {
	case n <= 0,
		m.First > 0 && n > m.First,
		m.Every > 0 && n%m.Every != 0:
		return false
	}
	return m.Probability == 0 || chance.Float64() < m.Probability
}

// setHeaders puts the headers of a fault into an answer.
func (a Action) setHeaders(h http.Header) {
	if a.RetryAfter != "" {
		h.Set("Retry-After", a.RetryAfter)
	}
	if a.Redirect != "" {
		h.Set("Location", a.Redirect)
	}
	if a.Gzip {
		h.Set("Content-Encoding", "gzip")
	}
}

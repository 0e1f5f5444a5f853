// Package courtsim simulates a court: a calendar over REST and over SOAP, a fault
// script, and a ledger of every request that the court has read.
//
// Tests compare the ledger with the delivery log. The court appends an entry before it
// writes the answer, so a request with a lost answer is in the ledger too. A request is
// accepted if the calendar has it, with any answer. At most one request of an
// idempotency key is accepted.
//
// Over SOAP 1.1 and 1.2, at /soap/calendar, the court takes the operations
// NotifyHearing and CancelHearing of the namespace urn:example:calendar. It knows
// a message by its wsa:MessageID and answers a repetition with the result
// DUPLICATE.
//
// The package uses only the standard library and keeps everything in memory. It
// is for tests and demonstrations.
package courtsim

import (
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxBody is the largest request the court reads, in bytes.
const maxBody = 1 << 20

// Options configure a [Court]. The zero value is a court without faults that
// accepts everything.
type Options struct {
	Token           string    // required bearer token; default none
	Username        string    // required in the UsernameToken over SOAP, with Password
	Password        string    // required in the UsernameToken over SOAP; default no UsernameToken
	Faults          []Fault   // script at the start; default none
	Seed            uint64    // seed of the script's probabilities; default 0
	DuplicateStatus int       // answer over REST to a repeated idempotency key, 409 or 200; default 409
	Keep            int       // number of ledger entries and idempotency keys in memory; default all
	Ledger          io.Writer // gets each ledger entry as one JSON line; default none
}

// Court is a simulated court's calendar, over REST and over SOAP. It is an
// [http.Handler], safe for concurrent use. [Court.Close] ends it.
type Court struct {
	token     string
	duplicate int
	mux       *http.ServeMux
	closing   chan struct{} // closed by Close, to end requests that hang

	mu       sync.Mutex // guards the fields below
	down     bool
	script   *script
	guard    *guard
	calendar *calendar
	ledger   *ledger

	srv serverState
}

// New returns a court. It panics if DuplicateStatus or a fault is not valid. Use
// [ParseFaults] for a script that comes from outside.
func New(o Options) *Court {
	if o.DuplicateStatus == 0 {
		o.DuplicateStatus = http.StatusConflict
	}
	if o.DuplicateStatus != http.StatusConflict && o.DuplicateStatus != http.StatusOK {
		panic(fmt.Sprintf("courtsim: DuplicateStatus is %d; only 409 and 200 are known", o.DuplicateStatus))
	}
	c := &Court{
		token:     o.Token,
		duplicate: o.DuplicateStatus,
		closing:   make(chan struct{}),
		script:    &script{rand: rand.New(rand.NewPCG(o.Seed, 0x6c6f636b))},
		guard:     &guard{username: o.Username, password: o.Password},
		calendar:  newCalendar(o.Keep),
		ledger:    &ledger{keep: o.Keep, out: o.Ledger},
	}
	if err := c.SetFaults(o.Faults); err != nil {
		panic("courtsim: " + err.Error())
	}
	c.mux = http.NewServeMux()
	c.mux.HandleFunc("/api/", c.serveCalendar)
	c.mux.HandleFunc(soapPath, c.serveCalendar)
	c.mux.HandleFunc("GET /ledger", c.admin(c.serveLedger))
	c.mux.HandleFunc("GET /faults", c.admin(c.serveFaults))
	c.mux.HandleFunc("POST /faults", c.admin(c.changeFaults))
	c.mux.HandleFunc("GET /healthz", c.serveHealth)
	return c
}

// ServeHTTP answers one request.
func (c *Court) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.mux.ServeHTTP(w, r) }

// SetFaults replaces the script and starts its counters at zero. Without faults,
// the court is well. An invalid script changes nothing.
func (c *Court) SetFaults(faults []Fault) error {
	if err := checkFaults(faults); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.script.set(faults)
	return nil
}

// Down takes the court off the network, or brings it back. A court that is down cuts
// every connection to its calendar and reads no request, so the ledger has none.
func (c *Court) Down(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

// Ledger returns a copy of the requests read so far, in the order of reading.
func (c *Court) Ledger() []Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ledger.all()
}

// Calendar returns a copy of the calendar by case reference.
func (c *Court) Calendar() map[string]Booking {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calendar.all()
}

// request is one call, as the court read it.
type request struct {
	method, path string
	id           string // path value behind /api/calendar/
	key          string // idempotency key without its quotes, or wsa:MessageID
	caseRef      string
	body         []byte
	digest       string // SHA-256, hex, of the part that repetitions of the key have in common
	soap         *call  // nil over REST
}

func (c *Court) serveCalendar(w http.ResponseWriter, r *http.Request) {
	if c.isDown() {
		panic(http.ErrAbortHandler) // net/http cuts the connection without an answer
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	tooLarge := false
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); !ok {
			return // the caller closed the connection before the end of the request
		}
		tooLarge = true
	}
	req := request{
		method: r.Method,
		path:   r.URL.Path,
		key:    unquote(r.Header.Get("Idempotency-Key")),
		body:   body,
		digest: fmt.Sprintf("%x", sha256.Sum256(body)),
	}
	if id, ok := strings.CutPrefix(r.URL.Path, "/api/calendar/"); ok {
		req.id = id
	}
	digest := req.digest // readSOAP replaces that of the request
	if r.URL.Path == soapPath {
		readSOAP(r, &req)
	}

	c.mu.Lock()
	e := Entry{Method: req.method, Path: req.path, IdempotencyKey: req.key, BodySHA256: digest}
	if req.soap == nil {
		req.caseRef = c.calendar.caseOf(req)
	} else {
		e.Operation = req.soap.operation
	}
	n, fault := c.script.pick(req)
	ans := c.decide(r, req, fault.Do, tooLarge)
	e.Time, e.CaseReference, e.Fault = time.Now().UTC(), req.caseRef, n
	e.Status, e.Result, e.Accepted, e.Duplicate = ans.status, ans.result, ans.accepted, ans.duplicate
	if fault.Do.silent() {
		e.Status, e.Result = 0, ""
	}
	c.ledger.append(e)
	c.mu.Unlock()

	c.answer(w, r, ans, fault.Do)
}

// decide processes req, or answers as the fault says. The caller holds mu.
func (c *Court) decide(r *http.Request, req request, do Action, tooLarge bool) reply {
	const scripted = "The fault script of this court asked for this answer."
	switch {
	case do.Drop == DropBefore || do.Hang > 0 && !do.answers():
		return reply{}
	case do.Redirect != "" || do.Gateway != "":
		usual := http.StatusNotFound
		if do.Redirect != "" {
			usual = http.StatusTemporaryRedirect
		}
		rep := gateways[do.Gateway]
		rep.status = cmp.Or(do.Status, usual)
		return rep
	case do.Fault != "" && req.soap != nil:
		return req.soap.fault(do.Fault, scripted, do.Status)
	case do.answers():
		return req.refuse(cmp.Or(do.Status, http.StatusInternalServerError), "scripted", scripted)
	case !c.authorized(r):
		return req.refuse(http.StatusUnauthorized, "unauthorized", "Send the court's token as Authorization: Bearer.")
	case tooLarge:
		return req.refuse(http.StatusRequestEntityTooLarge, "too-large", fmt.Sprintf("A request holds at most %d bytes.", maxBody))
	case req.soap == nil:
		return c.calendar.apply(req, c.duplicate)
	case req.soap.refusal != nil:
		return *req.soap.refusal
	}
	if kind, reason := c.guard.refuses(req.soap.security, time.Now()); kind != "" {
		return req.soap.fault(kind, reason, 0)
	}
	return req.soap.process(c.calendar, req)
}

// refuse returns a refusal in the caller's protocol. The calendar does not change.
func (req request) refuse(status int, kind, detail string) reply {
	if req.soap != nil {
		return plain(status, detail)
	}
	return problem(status, kind, detail)
}

func (c *Court) isDown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

func (c *Court) authorized(r *http.Request) bool {
	if c.token == "" {
		return true
	}
	got := []byte(r.Header.Get("Authorization"))
	return subtle.ConstantTimeCompare(got, []byte("Bearer "+c.token)) == 1
}

// admin protects the ledger and the faults with the token of the calendar.
func (c *Court) admin(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !c.authorized(r) {
			writeReply(w, problem(http.StatusUnauthorized, "unauthorized", "Send the court's token as Authorization: Bearer."))
			return
		}
		next(w, r)
	}
}

func (c *Court) serveLedger(w http.ResponseWriter, _ *http.Request) {
	writeReply(w, jsonReply(http.StatusOK, c.Ledger()))
}

func (c *Court) serveFaults(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	faults := c.script.faults()
	c.mu.Unlock()
	writeReply(w, jsonReply(http.StatusOK, faults))
}

func (c *Court) changeFaults(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		writeReply(w, problem(http.StatusBadRequest, "unreadable", "The script could not be read."))
		return
	}
	faults, err := ParseFaults(b)
	if err == nil {
		err = c.SetFaults(faults)
	}
	if err != nil {
		writeReply(w, problem(http.StatusUnprocessableEntity, "bad-script", err.Error()))
		return
	}
	c.serveFaults(w, r)
}

func (c *Court) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if c.isDown() {
		writeReply(w, problem(http.StatusServiceUnavailable, "down", "This court is down."))
		return
	}
	writeReply(w, jsonReply(http.StatusOK, map[string]string{"status": "ok"}))
}

// unquote removes the quotes of an idempotency key. The header is a structured
// string (RFC 8941), but many callers send it without quotes.
func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// caseReference is the field case_reference of a JSON object, "" without one.
func caseReference(body []byte) string {
	var v struct {
		CaseReference string `json:"case_reference"`
	}
	if json.Unmarshal(body, &v) != nil {
		return ""
	}
	return v.CaseReference
}

package courtsim_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// harness is a court behind a real socket, with a client that never repeats a request.
// net/http does that on a reused connection.
type harness struct {
	t     *testing.T
	court *courtsim.Court
	url   string
	http  *http.Client
}

func start(t *testing.T, o courtsim.Options) *harness {
	t.Helper()
	court := courtsim.New(o)
	srv := httptest.NewUnstartedServer(court)
	srv.Start()
	t.Cleanup(func() {
		if err := court.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		srv.Close()
	})
	return &harness{t: t, court: court, url: srv.URL, http: &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

type answer struct {
	status int
	header http.Header
	body   string
	err    error // of the connection, also in the middle of the body
}

func (h *harness) do(ctx context.Context, method, path, key, body string) answer {
	h.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, h.url+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", `"`+key+`"`)
	}
	res, err := h.http.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{status: res.StatusCode, header: res.Header, body: string(b), err: err}
}

func (h *harness) post(key, caseRef string) answer {
	h.t.Helper()
	return h.do(h.t.Context(), "POST", "/api/calendar", key, fmt.Sprintf(`{"case_reference":%q}`, caseRef))
}

func (a answer) want(t *testing.T, status int) answer {
	t.Helper()
	if a.err != nil || a.status != status {
		t.Fatalf("answer is %d %q, error %v; want %d", a.status, a.body, a.err, status)
	}
	return a
}

func (a answer) wantCut(t *testing.T) {
	t.Helper()
	if a.err == nil {
		t.Fatalf("answer is %d %q; want a cut connection", a.status, a.body)
	}
}

func (h *harness) last() courtsim.Entry {
	h.t.Helper()
	l := h.court.Ledger()
	if len(l) == 0 {
		h.t.Fatal("the ledger is empty")
	}
	return l[len(l)-1]
}

func TestBookingsAreStoredChangedAndCancelled(t *testing.T) {
	h := start(t, courtsim.Options{})
	a := h.post("k1", "H-1").want(t, 201)
	var got struct{ ID string }
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || got.ID == "" {
		t.Fatalf("created answer %q has no id (%v)", a.body, err)
	}
	if want := "/api/calendar/" + got.ID; a.header.Get("Location") != want {
		t.Errorf("Location is %q, want %q", a.header.Get("Location"), want)
	}
	h.post("k2", "H-1").want(t, 200)
	h.do(t.Context(), "PUT", "/api/calendar/"+got.ID, "k3", `{"case_reference":"H-1","room":"3A"}`).want(t, 200)
	if b := h.court.Calendar()["H-1"]; b.Changes != 3 || b.Status != "booked" || b.IdempotencyKey != "k3" {
		t.Errorf("after three writes the booking is %+v", b)
	}
	h.do(t.Context(), "DELETE", "/api/calendar/"+got.ID, "k4", `{"reason":"settled"}`).want(t, 200)
	b := h.court.Calendar()["H-1"]
	if b.Status != "cancelled" || b.Changes != 4 {
		t.Errorf("after DELETE the booking is %+v", b)
	}
	if string(b.Fields) != `{"case_reference":"H-1","room":"3A"}` {
		t.Errorf("DELETE changed the fields to %s", b.Fields)
	}
	h.do(t.Context(), "DELETE", "/api/calendar/"+got.ID, "k5", "").want(t, 200)
	h.do(t.Context(), "POST", "/api/calendar", "k6", `{"case_reference":"H-1","status":"held"}`).want(t, 200)
	if b := h.court.Calendar()["H-1"]; b.Status != "held" {
		t.Errorf("status is %q, want the body's own", b.Status)
	}
	for _, path := range []string{"/api/calendar/H-1", "/api/calendar/" + got.ID} {
		if a := h.do(t.Context(), "GET", path, "", "").want(t, 200); !strings.Contains(a.body, `"held"`) {
			t.Errorf("GET %s is %s", path, a.body)
		}
	}
	a = h.do(t.Context(), "GET", "/api/calendar", "", "").want(t, 200)
	if !strings.Contains(a.body, `"H-1"`) {
		t.Errorf("the calendar is %s", a.body)
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	h := start(t, courtsim.Options{})
	h.post("first", "H-1").want(t, 201)
	tests := []struct {
		name, method, path, body string
		status                   int
	}{
		{"not JSON", "POST", "/api/calendar", "{", 400},
		{"an array", "POST", "/api/calendar", "[]", 400},
		{"null", "POST", "/api/calendar", "null", 400},
		{"no case reference", "POST", "/api/calendar", "{}", 422},
		{"update of an unknown id", "PUT", "/api/calendar/CAL-9", `{"case_reference":"H-1"}`, 404},
		{"update with another case", "PUT", "/api/calendar/CAL-000001", `{"case_reference":"H-2"}`, 422},
		{"cancel of an unknown id", "DELETE", "/api/calendar/CAL-9", "", 404},
		{"cancel with a broken body", "DELETE", "/api/calendar/CAL-000001", "{", 400},
		{"read of an unknown case", "GET", "/api/calendar/H-9", "", 404},
		{"PUT on the collection", "PUT", "/api/calendar", "{}", 405},
		{"another path", "POST", "/api/diary", "{}", 404},
		{"too large", "POST", "/api/calendar", strings.Repeat(" ", 1<<20+1), 413},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h.t = t
			a := h.do(t.Context(), tt.method, tt.path, "k", tt.body).want(t, tt.status)
			if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
				t.Errorf("Content-Type is %q", ct)
			}
			if e := h.last(); e.Status != tt.status || e.Accepted {
				t.Errorf("ledger entry %+v", e)
			}
		})
	}
	h.t = t
	if b := h.court.Calendar(); len(b) != 1 || b["H-1"].Changes != 1 {
		t.Errorf("a refused request changed the calendar: %+v", b)
	}
	h.post("k", "H-2").want(t, 201) // a refused request does not use up its key
}

func TestARepeatedKeyIsADuplicate(t *testing.T) {
	tests := []struct {
		name   string
		option int
		status int
	}{
		{"default is 409", 0, 409},
		{"200 when asked for", 200, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := start(t, courtsim.Options{DuplicateStatus: tt.option})
			h.post("k", "H-1").want(t, 201)
			a := h.post("k", "H-1").want(t, tt.status)
			if a.header.Get("Duplicate") != "true" || !strings.Contains(a.body, `"id":"CAL-000001"`) {
				t.Errorf("duplicate answer: Duplicate %q, body %s", a.header.Get("Duplicate"), a.body)
			}
			if !json.Valid([]byte(a.body)) {
				t.Errorf("the answer is not JSON: %s", a.body)
			}
			if e := h.last(); !e.Duplicate || e.Accepted || e.IdempotencyKey != "k" {
				t.Errorf("ledger entry of the duplicate is %+v", e)
			}
			h.post("k", "H-2").want(t, 422)
			h.post("", "H-1").want(t, 200) // no key: nothing to compare
			h.post("", "H-1").want(t, 200)
			if b := h.court.Calendar(); len(b) != 1 || b["H-1"].Changes != 3 {
				t.Errorf("calendar is %+v", b)
			}
		})
	}
}

func TestTheTokenIsRequired(t *testing.T) {
	h := start(t, courtsim.Options{Token: "open sesame"})
	a := h.post("k", "H-1").want(t, 401)
	if a.header.Get("WWW-Authenticate") != "Bearer" {
		t.Error("401 without WWW-Authenticate")
	}
	for _, path := range []string{"/ledger", "/faults"} {
		h.do(t.Context(), "GET", path, "", "").want(t, 401)
	}
	h.do(t.Context(), "GET", "/healthz", "", "").want(t, 200)
	req, err := http.NewRequestWithContext(t.Context(), "POST", h.url+"/api/calendar", strings.NewReader(`{"case_reference":"H-1"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer open sesame")
	res, err := h.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 201 {
		t.Errorf("with the token: %d, want 201", res.StatusCode)
	}
	if l := h.court.Ledger(); len(l) != 2 || l[0].Status != 401 || !l[1].Accepted {
		t.Errorf("ledger is %+v", l)
	}
}

func TestACourtThatIsDownReadsNothing(t *testing.T) {
	h := start(t, courtsim.Options{})
	h.court.Down(true)
	h.post("k", "H-1").wantCut(t)
	h.do(t.Context(), "GET", "/healthz", "", "").want(t, 503)
	if l := h.court.Ledger(); len(l) != 0 {
		t.Errorf("a court that is down read %+v", l)
	}
	h.court.Down(false)
	h.post("k", "H-1").want(t, 201)
}

func TestLedgerIsBoundedAndWritten(t *testing.T) {
	var out bytes.Buffer
	h := start(t, courtsim.Options{Keep: 3, Ledger: &out})
	for i := range 10 {
		h.post(fmt.Sprint("k", i), "H-1")
	}
	l := h.court.Ledger()
	if len(l) != 3 || l[0].Seq != 8 || l[2].Seq != 10 {
		t.Errorf("the ledger keeps %+v, want the entries 8 to 10", l)
	}
	h.post("k9", "H-1").want(t, 409)
	h.post("k0", "H-1").want(t, 200) // forgotten
	if n := strings.Count(out.String(), "\n"); n != 12 {
		t.Errorf("%d lines were written, want all 12", n)
	}
	var e courtsim.Entry
	line, _, _ := strings.Cut(out.String(), "\n")
	if err := json.Unmarshal([]byte(line), &e); err != nil || e.CaseReference != "H-1" || len(e.BodySHA256) != 64 {
		t.Errorf("first line %q is %+v (%v)", line, e, err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestLedgerWriteErrorIsReported(t *testing.T) {
	court := courtsim.New(courtsim.Options{Ledger: fullDisk{}})
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/calendar", strings.NewReader(`{"case_reference":"H-1"}`))
	court.ServeHTTP(httptest.NewRecorder(), r)
	if err := court.Close(); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("Close returned %v", err)
	}
}

func TestACourtServesUntilClosed(t *testing.T) {
	court := courtsim.New(courtsim.Options{})
	url, err := court.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := courtsim.New(courtsim.Options{})
	if _, err := other.Start(strings.TrimPrefix(url, "http://")); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a port that is taken gave %v", err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", url+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if err := court.Close(); err != nil {
		t.Fatal(err)
	}
	<-court.Done()
	if err := court.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestConcurrentCallersOfOneKey(t *testing.T) {
	h := start(t, courtsim.Options{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { h.post("same", "H-1") })
	}
	wg.Wait()
	accepted := 0
	for _, e := range h.court.Ledger() {
		if e.Accepted {
			accepted++
		}
	}
	if accepted != 1 || len(h.court.Ledger()) != 20 {
		t.Errorf("%d of %d requests were accepted, want 1 of 20", accepted, len(h.court.Ledger()))
	}
}

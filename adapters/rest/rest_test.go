package rest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
)

// court records the last request and gives the configured answer.
type court struct {
	*httptest.Server
	status int
	header http.Header
	body   string

	request *http.Request
	sent    string
}

func newCourt(t *testing.T) *court {
	t.Helper()
	c := &court{status: http.StatusCreated, header: http.Header{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		_, _ = io.Copy(&b, r.Body)
		c.request, c.sent = r, b.String()
		maps.Copy(w.Header(), c.header)
		w.WriteHeader(c.status)
		_, _ = io.WriteString(w, c.body)
	}))
	t.Cleanup(c.Close)
	return c
}

func message() adapters.Message {
	return adapters.Message{
		ID: "e-1", IdempotencyKey: "e-1", Type: "scheduling:updated", Key: "hearing 7", Version: new(int64(4)),
		OccurredAt: time.Date(2027, 3, 1, 9, 30, 0, 0, time.FixedZone("", -5*3600)), Attempt: 1,
		Body: []byte(`{"caseId":12345678901234567890,"court":{"code":"NY/07","room":"..","open":true,"tags":[]},"note":"a&b=c?d#e","empty":""}`),
		Ref:  adapters.Ref{ExternalID: "ext/7", ETag: `"v3"`},
	}
}

func TestRequestOnTheWire(t *testing.T) {
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		t.Run(method, func(t *testing.T) {
			c := newCourt(t)
			a := newAdapter(t, rest.Config{
				URL: c.URL + "/hearings", Method: method, IfMatch: "true",
				Headers: map[string]adapters.Secret{
					"source-system":      "AGENCY",
					"Request-Created-At": "{occurred_at}",
					"X-About":            "{type} {key} v{version} of {fields.court.code}, {id}",
				},
			})
			msg := message()
			msg.IdempotencyKey = `e-1:2 "\`
			msg.Headers = map[string]string{
				"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=1", "Authorization": "Bearer from-data",
			}
			if _, err := a.Deliver(t.Context(), msg); err != nil {
				t.Fatal(err)
			}
			if c.request.Method != method || c.sent != string(msg.Body) {
				t.Errorf("sent %s with %s", c.request.Method, c.sent)
			}
			got := map[string]string{}
			for name := range c.request.Header {
				got[name] = c.request.Header.Get(name)
			}
			want := map[string]string{
				"Accept": "application/json", "Accept-Encoding": "gzip", "Content-Type": "application/json", "User-Agent": "Lockstep",
				"Content-Length":  strconv.Itoa(len(msg.Body)),
				"Idempotency-Key": `"e-1:2 \"\\"`, "If-Match": `"v3"`,
				"Traceparent": msg.Headers["traceparent"], "Tracestate": "a=1",
				"Source-System": "AGENCY", "Request-Created-At": "2027-03-01T14:30:00Z",
				"X-About": "scheduling:updated hearing 7 v4 of NY/07, e-1",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWithoutIfMatchNoETagIsSent(t *testing.T) {
	c := newCourt(t)
	if _, err := newAdapter(t, rest.Config{URL: c.URL}).Deliver(t.Context(), message()); err != nil {
		t.Fatal(err)
	}
	if got := c.request.Header.Get("If-Match"); got != "" {
		t.Errorf("sent If-Match: %s", got)
	}
}

func TestMostSpecificRouteWins(t *testing.T) {
	c := newCourt(t)
	a := newAdapter(t, rest.Config{
		URL: c.URL + "/default", Method: "PUT",
		Routes: map[string]rest.Route{
			"*":                    {Request: rest.Request{URL: c.URL + "/any"}},
			"scheduling:*":         {Request: rest.Request{URL: c.URL + "/scheduling"}},
			"scheduling:can*":      {Request: rest.Request{URL: c.URL + "/can"}},
			"scheduling:cancelled": {Request: rest.Request{Method: "DELETE"}},
			"*:closed":             {Request: rest.Request{URL: c.URL + "/closed", Method: "POST"}},
			"a*b*c":                {Request: rest.Request{URL: c.URL + "/abc"}},
		},
	})
	for eventType, want := range map[string]string{
		"scheduling:updated":           "PUT /scheduling",
		"scheduling:canned":            "PUT /can",
		"scheduling:cancelled":         "DELETE /default",
		"scheduling:cancelled:by-mail": "PUT /can",
		"room:closed":                  "POST /closed",
		"other":                        "PUT /any",
		"a-b-c":                        "PUT /abc",
		"acb":                          "PUT /any",
	} {
		msg := message()
		msg.Type = eventType
		if _, err := a.Deliver(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		if got := c.request.Method + " " + c.request.URL.Path; got != want {
			t.Errorf("%s went to %s, want %s", eventType, got, want)
		}
	}
}

func TestReceipt(t *testing.T) {
	before := adapters.Ref{ExternalID: "old", ETag: `"v1"`}
	for name, tc := range map[string]struct {
		status int
		etag   string
		body   string

		contentType string

		pointer string
		ref     adapters.Ref
		want    adapters.Receipt
	}{
		"nothing to say":      {status: 201, want: adapters.Receipt{Code: "HTTP 201"}},
		"id and ETag":         {status: 201, etag: `"v1"`, body: `{"data":[{"i/d":"x-1"}]}`, pointer: "/data/0/i~1d", want: adapters.Receipt{Code: "HTTP 201", Ref: &adapters.Ref{ExternalID: "x-1", ETag: `"v1"`, Version: new(int64(4))}}},
		"a long number":       {status: 200, body: `{"id":90071992547409931234}`, pointer: "/id", want: adapters.Receipt{Code: "HTTP 200", Ref: &adapters.Ref{ExternalID: "90071992547409931234", Version: new(int64(4))}}},
		"no id keeps the old": {status: 200, etag: `W/"v2"`, body: `{}`, pointer: "/id", ref: before, want: adapters.Receipt{Code: "HTTP 200", Ref: &adapters.Ref{ExternalID: "old", ETag: `W/"v2"`, Version: new(int64(4))}}},
		"no ETag drops it":    {status: 204, pointer: "/id", ref: before, want: adapters.Receipt{Code: "HTTP 204", Ref: &adapters.Ref{ExternalID: "old", Version: new(int64(4))}}},
		"the same again":      {status: 200, etag: `"v1"`, body: `{"id":"old"}`, pointer: "/id", ref: before, want: adapters.Receipt{Code: "HTTP 200"}},
		"a byte-order mark":   {status: 201, body: "\xef\xbb\xbf" + `{"id":"x"}`, pointer: "/id", want: adapters.Receipt{Code: "HTTP 201", Ref: &adapters.Ref{ExternalID: "x", Version: new(int64(4))}}},
		"a body too long":     {status: 201, body: `{"id":"x","pad":"` + strings.Repeat("x", 70_000) + `"}`, pointer: "/id", want: adapters.Receipt{Code: "HTTP 201", Ref: &adapters.Ref{ExternalID: "x", Version: new(int64(4))}}},
		"accepted, no id yet": {status: 202, pointer: "/id", want: adapters.Receipt{Code: "HTTP 202", Accepted: true, NoID: true}},
		"duplicate, no id":    {status: 409, pointer: "/id", want: adapters.Receipt{Code: "HTTP 409", Duplicate: true, NoID: true}},
		"a bad ETag":          {status: 201, etag: "v1", want: adapters.Receipt{Code: "HTTP 201"}},
		"accepted":            {status: 202, body: `{"id":"x"}`, pointer: "/id", want: adapters.Receipt{Code: "HTTP 202", Accepted: true, Ref: &adapters.Ref{ExternalID: "x", Version: new(int64(4))}}},
		"duplicate":           {status: 409, etag: `"err"`, body: `{"id":"x"}`, pointer: "/id", ref: before, want: adapters.Receipt{Code: "HTTP 409", Duplicate: true, Ref: &adapters.Ref{ExternalID: "x", ETag: `"v1"`, Version: new(int64(4))}}},
		"Latin 1, and says so": {
			status: 201, contentType: "application/json; charset=ISO-8859-1", body: "{\"id\":\"M\xfcnchen\"}", pointer: "/id",
			want: adapters.Receipt{Code: "HTTP 201", Ref: &adapters.Ref{ExternalID: "München", Version: new(int64(4))}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCourt(t)
			c.status, c.body = tc.status, tc.body
			if tc.etag != "" {
				c.header.Set("ETag", tc.etag)
			}
			if tc.contentType != "" {
				c.header.Set("Content-Type", tc.contentType)
			}
			a := newAdapter(t, rest.Config{URL: c.URL, ExternalID: rest.Source{Path: tc.pointer}, Outcomes: map[int]string{409: "duplicate"}})
			msg := message()
			msg.Ref = tc.ref
			got, err := a.Deliver(t.Context(), msg)
			if err != nil {
				t.Fatal(err)
			}
			tc.want.SHA256 = fmt.Sprintf("%x", sha256.Sum256(msg.Body))
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("receipt (-want +got):\n%s", diff)
			}
		})
	}
}

// A success without the id that later requests need does not count as one.
func TestSuccessWithoutTheID(t *testing.T) {
	const id = adapters.RequireID
	for name, tc := range map[string]struct {
		method, require, known string
		status                 int
		body                   string
		want                   adapters.Class
	}{
		"another field":           {status: 201, body: `{"ID":"x"}`, want: adapters.ClassUnknown},
		"nothing":                 {status: 204, want: adapters.ClassUnknown},
		"NUL":                     {status: 201, body: `{"id":"a\u0000b"}`, want: adapters.ClassUnknown},
		"too long":                {status: 201, body: `{"id":"` + strings.Repeat("x", 513) + `"}`, want: adapters.ClassUnknown},
		"an object":               {status: 201, body: `{"id":{}}`, want: adapters.ClassUnknown},
		"half of a surrogate":     {status: 201, body: `{"id":"x\ud800"}`, want: adapters.ClassUnknown},
		"in Latin-1":              {status: 201, body: "{\"id\":\"\xe9t\xe9\"}", want: adapters.ClassUnknown},
		"no JSON":                 {status: 201, body: "OK", want: adapters.ClassUnknown},
		"known":                   {status: 204, known: "x", want: adapters.ClassDelivered},
		"known, but required":     {status: 204, known: "x", require: id, want: adapters.ClassUnknown},
		"required with 202":       {status: 202, require: id, want: adapters.ClassUnknown},
		"not required":            {status: 204, require: adapters.RequireNothing, want: adapters.ClassDelivered},
		"of what is deleted":      {status: 204, method: "DELETE", require: id, want: adapters.ClassDelivered},
		"of what is deleted, 200": {status: 200, method: "DELETE", body: `{}`, want: adapters.ClassDelivered},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCourt(t)
			c.status, c.body = tc.status, tc.body
			a := newAdapter(t, rest.Config{URL: c.URL, Method: tc.method, ExternalID: rest.Source{Path: "/id"}, Require: tc.require})
			msg := message()
			msg.Ref = adapters.Ref{ExternalID: tc.known}
			receipt, err := a.Deliver(t.Context(), msg)
			if got := adapters.ClassOf(err); got != tc.want {
				t.Fatalf("class %s, want %s: %v", got, tc.want, err)
			}
			if err != nil && (!adapters.IsUnclear(err) || !receipt.NoID || receipt.Ref != nil || !strings.Contains(err.Error(), "without the id that external_id names (/id)")) {
				t.Errorf("%+v, %v", receipt, err)
			}
		})
	}
}

// The id in a cut answer is worth another request only if it is not known yet.
func TestCutAnswer(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"id":`)
	}))
	defer s.Close()
	for name, tc := range map[string]struct {
		pointer, known string
		want           adapters.Class
	}{
		"id needed":     {"/id", "", adapters.ClassUnknown},
		"id known":      {"/id", "ext-7", adapters.ClassDelivered},
		"id not wanted": {"", "", adapters.ClassDelivered},
	} {
		t.Run(name, func(t *testing.T) {
			msg := message()
			msg.Ref.ExternalID = tc.known
			receipt, err := newAdapter(t, rest.Config{URL: s.URL, ExternalID: rest.Source{Path: tc.pointer}}).Deliver(t.Context(), msg)
			if got := adapters.ClassOf(err); got != tc.want || receipt.Code != "HTTP 201" {
				t.Errorf("class %s, code %s, want %s: %v", got, receipt.Code, tc.want, err)
			}
		})
	}
}

func TestErrorsNameTheEndpointAndTheReason(t *testing.T) {
	c := newCourt(t)
	c.status, c.body = 422, `{"errCode":"1004","errorDesc":"room NY/07 is closed","errLinkId":"L9"}`
	_, err := newAdapter(t, rest.Config{URL: c.URL + "/h/{id}?code=abc"}).Deliver(t.Context(), message())
	want := "POST " + strings.TrimPrefix(c.URL, "http://") + "/h/{id}: answered HTTP 422: 1004, errLinkId L9 (a part is not shown, because it repeats what was sent)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestNewReportsEverythingAtOnce(t *testing.T) {
	const canary = "canary-5a1"
	_, err := rest.New(rest.Config{
		URL:    "ftp://user:" + canary + "@{key}/a b/../{nope}/{#x",
		Method: "GET",
		Headers: map[string]adapters.Secret{
			"Bad Name": "x", "Transfer-Encoding": "chunked", "X-Line": canary + "\r\n", "X-Tmpl": "{nope}", "a-b": "1", "A-B": "2", "Authorization": canary,
			"Idempotency-Key": "1", "Accept-Encoding": "br",
		},
		Auth:       adapters.Credentials{Kind: adapters.Bearer, Username: "u"},
		TLS:        adapters.TLS{CertFile: "c.pem"},
		Timeout:    time.Hour,
		Routes:     map[string]rest.Route{"": {Request: rest.Request{URL: "https://x"}}, "a": {}, "b": {Request: rest.Request{Method: "HEAD"}}, "c": {Request: rest.Request{URL: "https://{id}.example"}}},
		ExternalID: rest.Source{Path: "id"},
		Outcomes:   map[int]string{200: "fine"},
		Answers: []adapters.Answer{
			{Class: "delivered"},
			{Path: "x", Class: "fine"},
			{Equals: []byte("1"), Status: 1, Class: "permanent", Reason: "/~"},
			{Path: "/a", Equals: []byte("[1]"), Class: "permanent"},
		},
		Reason:  "message",
		Require: "etag",
	})
	if err == nil {
		t.Fatal("no error")
	}
	text := err.Error()
	for _, want := range []string{
		"url: ", "method: \"GET\"", `headers["Bad Name"]: is not`, `headers["Transfer-Encoding"]: cannot`, `headers["X-Line"]: has a control`,
		`headers["X-Tmpl"]: {nope}`, `headers["a-b"]: is set twice`, `headers["Authorization"]: is set twice`,
		`headers["Idempotency-Key"]: cannot`, `headers["Accept-Encoding"]: cannot`, "auth.token: is required", "auth.username: belongs to kind basic",
		"tls.key_file", "timeout: 1h0m0s is not from 10ms to 10m0s", `routes[""]`, `routes["a"]: is empty: set method, url or another key`,
		`routes["b"].method: "HEAD"`, `routes["c"].url: {id} is not a placeholder that is allowed here`, "external_id: is not a JSON Pointer", `outcomes.200: "fine"`,
		"answers[0]: has no condition", "answers[1].path: is not a JSON Pointer", `answers[1].class: "fine"`, "answers[2].equals: needs a path",
		"answers[2].status: is not a status", "answers[2].reason: is not a JSON Pointer", "answers[3].equals: is not a single value",
		"reason: is not a JSON Pointer", `require: "etag" is not one of external_id, nothing`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no word of %s in:\n%s", want, text)
		}
	}
	if strings.Contains(text, canary) {
		t.Errorf("a secret is in:\n%s", text)
	}
}

func TestConfiguredContentTypeReplacesTheDefault(t *testing.T) {
	c := newCourt(t)
	a := newAdapter(t, rest.Config{URL: c.URL, Headers: map[string]adapters.Secret{"content-type": "application/vnd.court+json"}})
	if _, err := a.Deliver(context.Background(), message()); err != nil {
		t.Fatal(err)
	}
	if got := c.request.Header["Content-Type"]; !slices.Equal(got, []string{"application/vnd.court+json"}) {
		t.Errorf("sent %v", got)
	}
}

func TestPreviewShowsTheRequestWithoutSendingIt(t *testing.T) {
	a, err := rest.New(rest.Config{
		URL:    "https://court.example.gov/api/calendar?key=secret",
		Routes: map[string]rest.Route{"scheduling:cancelled": {Request: rest.Request{Method: "DELETE", URL: "https://court.example.gov/api/calendar/{ref.external_id}"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		msg  adapters.Message
		want string
		err  bool
	}{
		"default route": {adapters.Message{IdempotencyKey: "1", Type: "scheduling:created"}, "POST https://court.example.gov/api/calendar?key=***", false},
		"own route":     {adapters.Message{IdempotencyKey: "1", Type: "scheduling:cancelled", Ref: adapters.Ref{ExternalID: "C 7"}}, "DELETE https://court.example.gov/api/calendar/C%207", false},
		"unknown field": {adapters.Message{IdempotencyKey: "1", Type: "scheduling:cancelled"}, "DELETE ", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := a.Preview(test.msg)
			if got := p.Method + " " + p.URL; got != test.want || (err != nil) != test.err {
				t.Errorf("got %s, %v; want %s", got, err, test.want)
			}
		})
	}
}

// If-Match compares strongly (RFC 9110, 13.1.1): a weak tag would always be refused.
func TestWeakETagIsNotSent(t *testing.T) {
	c := newCourt(t)
	a, err := rest.New(rest.Config{URL: c.URL, IfMatch: "true"})
	if err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[string]string{`"v2"`: `"v2"`, `W/"v2"`: "", "\"v2\"\r\nX-Evil: 1": ""} {
		m := message()
		m.Ref.ETag = tag
		if _, err := a.Deliver(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if got := c.request.Header.Get("If-Match"); got != want {
			t.Errorf("ETag %s: sent If-Match %q, want %q", tag, got, want)
		}
	}
}

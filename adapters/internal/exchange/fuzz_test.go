package exchange

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
)

// FuzzReason: a text from an answer is short, is safe to store, and shows no hidden
// value.
func FuzzReason(f *testing.F) {
	for _, body := range []string{
		`{"title":"a\u0000b\u001b[1m","type":"x"}`, "{\"message\":\"\xff\"}",
		`{"type":"https://court.example/p?x=value","title":"Unknown","status":422,"detail":"value","instance":"/value/7"}`,
		`{"errCode":["1004",{"a":1},["value"]],"errorDesc":12345678901234567890,"errLinkId":"va\u200dlue"}`,
		`{"error":"val","error_codes":["ue"],"error_description":"\u202evalue"}`,
		`{"statusCode":1e400,"message":"val\u001b\u001b[mue value"}`, `[{"title":"value"}]`, `{"title":"value"}{"title":"x"}`, `null`,
	} {
		f.Add([]byte(body), "value")
	}
	f.Add([]byte(`{"title":"a b  c d"}`), "a\tb c d")
	f.Fuzz(func(t *testing.T, body []byte, hide string) {
		got := Request{Secrets: func() []string { return []string{hide} }}.Reason(Answer{Status: 422, Body: body})
		if len(got) > maxReason || !safe(got) {
			t.Errorf("%q is not safe", got)
		}
		if hidden := strings.Join(strings.Fields(adapters.Clean(hide, 0)), " "); len(hidden) >= 4 && strings.Contains(strings.TrimSuffix(got, partHidden), hidden) && !strings.HasPrefix(got, "its reason is not") && !strings.HasPrefix(got, "the receiver wants") {
			t.Errorf("%q contains %q", got, hidden)
		}
	})
}

func safe(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.IsSpace(r) && r != ' '
	})
}

// FuzzRetryAfter: the wait is from 0 to 1 hour, for any value.
func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{
		"", "0", "120", "3600", "-5", "+5", "1.5", "1e9", "99999999999999999999999999", " 7 ", "7, 8", "soon", "٣", "00000000000000000000000001",
		"Mon, 01 Mar 2027 10:00:30 GMT", "Monday, 01-Mar-27 10:00:30 GMT", "Mon Mar  1 10:00:30 2027", "Mon, 01 Mar 9999 10:00:30 GMT", "Sat, 01 Jan 0000 00:00:00 GMT",
		"Mon, 01 Mar 2027 10:00:30 PST",
	} {
		for _, date := range []string{"", "Mon, 01 Mar 2027 10:00:00 GMT", "Sat, 01 Jan 0000 00:00:00 GMT", "yesterday"} {
			f.Add(value, date)
		}
	}
	now := time.Date(2027, 3, 1, 10, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, value, date string) {
		h := http.Header{"Retry-After": {value}, "Date": {date}}
		wait, ok := RetryAfter(h, func() time.Time { return now })
		if wait < 0 || wait > MaxRetryAfter || !ok && wait != 0 {
			t.Errorf("%q at %q is %s, %t", value, date, wait, ok)
		}
		if digits := strings.TrimSpace(value); digits != "" && strings.Trim(digits, "0123456789") == "" && !ok {
			t.Errorf("%q is a number of seconds, and was not read", value)
		}
	})
}

// FuzzPointer: a value that a pointer finds is in the answer, also if the answer was cut.
func FuzzPointer(f *testing.F) {
	for _, seed := range [][2]string{
		{"/id", `{"id":"CAL-1"}`},
		{"/a/0/b~1c~0", `{"a":[{"b/c~":12345678901234567890}]}`},
		{"/a/-1", `{"a":[1]}`},
		{"/a/00", `{"a":[1]}`},
		{"/a/99999999999999999999", `{"a":[1]}`},
		{"/", `{"":"x"}`},
		{"/id", `{"id":"a\u0000b"}`},
		{"/id", `{"id":"a"}{"id":"b"}`},
		{"/id", `{"id":"a`},
		{"/~2", `{}`},
		{"id", `{}`},
		{"/id", `{"id":"` + strings.Repeat("x", 513) + `"}`},
		{"/id", `{"id":"\ud800"}`},
		{strings.Repeat("/0", 100), strings.Repeat("[", 100) + "1" + strings.Repeat("]", 100)},
	} {
		f.Add(seed[0], []byte(seed[1]))
	}
	f.Fuzz(func(t *testing.T, text string, body []byte) {
		p, err := ParsePointer(text)
		if err != nil {
			return
		}
		id, ok := Answer{Body: body}.JSON().Text(p)
		if ok && json.Valid(body) && !slices.Contains(texts(body), id) {
			t.Errorf("%s found %q, which is not in %s", text, id, body)
		}
		for end := range min(len(body), 500) {
			cut, found := Answer{Body: body[:end], Partial: true}.JSON().Text(p)
			if found && ok && json.Valid(body) && !slices.Contains(texts(body), cut) {
				t.Errorf("%s found %q in the first %d bytes of %s", text, cut, end, body)
			}
		}
	})
}

// texts returns the strings and numbers of a JSON document.
func texts(document []byte) (all []string) {
	d := json.NewDecoder(bytes.NewReader(document))
	d.UseNumber()
	for {
		token, err := d.Token()
		if err != nil {
			return all
		}
		switch token.(type) {
		case string, json.Number:
			all = append(all, fmt.Sprint(token))
		}
	}
}

// FuzzClass: every status has a class that the relay knows. Its error is one line,
// without secrets of the request.
func FuzzClass(f *testing.F) {
	classes := slices.Clone(classes)
	for _, status := range []int{0, 100, 101, 200, 202, 204, 226, 302, 307, 400, 401, 403, 404, 407, 409, 412, 425, 429, 495, 500, 501, 503, 599, 600, 999} {
		f.Add(status, "https://user:tok-4711-secret@tok-4711-secret.example/x", "5", `{"title":"tok-4711-secret is wrong"}`)
	}
	f.Add(400, "", "", "<html><center>No required SSL certificate was sent</center></html>")
	f.Add(301, "//[fe80::1%25\u202etok-4711-secret]/", "", "")
	f.Add(207, "", "", `{"results":[]}`)
	f.Add(307, "https://"+strings.Repeat("a.", 5000), "", "")
	const secret = "tok-4711-secret"
	r := Request{Method: "POST", Target: "court.example/{key}", Header: http.Header{"Authorization": {"Bearer " + secret}}}
	f.Fuzz(func(t *testing.T, status int, location, after, body string) {
		a := Answer{Status: status, Header: http.Header{"Location": {location}, "Retry-After": {after}}, Body: []byte(body)}
		receipt, err := Rules{}.Judge(r, a)
		finished := []adapters.Class{adapters.ClassDelivered, adapters.ClassDuplicate, adapters.ClassAccepted}
		if class := adapters.ClassOf(err); err != nil && (!slices.Contains(append(classes, adapters.ClassUnexplained), class) || slices.Contains(finished, class)) {
			t.Errorf("HTTP %d is of class %q", status, class)
		}
		unclear := a.IsPage() || status == http.StatusMultiStatus
		if (err == nil) != (a.OK() && !unclear) || receipt.Code != a.Code() {
			t.Errorf("HTTP %d: %+v, %v", status, receipt, err)
		}
		if wait := adapters.RetryDelay(err); wait < 0 || wait > MaxRetryAfter {
			t.Errorf("wait of %s", wait)
		}
		if err != nil {
			if text := err.Error(); len(text) > 500 || !safe(text) || strings.Contains(text, secret) {
				t.Errorf("%q is not safe", text)
			}
		}
	})
}

var traceHeader = regexp.MustCompile(`^[\x20-\x7e]+$`)

// FuzzTrace: only a valid trace context is forwarded.
func FuzzTrace(f *testing.F) {
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for _, p := range []string{
		"", "00-" + id + "-" + parent + "-01", "ff-" + id + "-" + parent + "-01", "00-" + strings.Repeat("0", 32) + "-" + parent + "-01",
		"00-" + id + "-" + strings.Repeat("0", 16) + "-01", "00-" + strings.ToUpper(id) + "-" + parent + "-01", "00-" + id + "-" + parent + "-01\n",
		"01-" + id + "-" + parent + "-01-more", "00-" + id + "-" + parent + "-01\r\nX: y",
	} {
		f.Add(p, "a=1,b=2")
	}
	f.Add("00-"+id+"-"+parent+"-00", "a=1\r\nX: y")
	f.Add("00-"+id+"-"+parent+"-00", strings.Repeat("a", 513))
	f.Fuzz(func(t *testing.T, parent, state string) {
		h := http.Header{}
		Trace(h, map[string]string{"traceparent": parent, "tracestate": state})
		switch {
		case len(h) == 0:
		case h.Get("Traceparent") != parent || len(parent) != 55 || !traceHeader.MatchString(parent):
			t.Errorf("%q was passed on as %v", parent, h)
		case len(h) > 2, len(h) == 2 && (h.Get("Tracestate") != state || len(state) > maxTracestate || !traceHeader.MatchString(state)):
			t.Errorf("%q was passed on as %v", state, h)
		}
	})
}

package rest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
)

const fuzzedValue = "zq9x7kw" // stands in data, and must not come out of errors

// FuzzRequest fills any template with any data: data makes no host, no segment,
// no query and no header, and what a receiver reads is what was meant.
func FuzzRequest(f *testing.F) {
	for _, template := range []string{
		"/hearings/{key}", "/h/{ref.external_id}/{fields.f}", "/a%2Fb/{id}.json?v={version}&k={key}&{fields.f}=x", "/.{key}", "/{key}{key}/x;p={key}",
		"", "?{key}", "//{key}", "/%{key}", "/{key}#x", "@evil/{key}", ":80{key}", "/{", "/é/{fields.f.g}", "/für\"/{key}?ü={key}",
	} {
		for _, data := range []string{fuzzedValue, "..", "a/b", `a\b`, "?x=1&y#z", "%2e%2e", "a\r\nX-Evil: 1", "é\u202e", "\x00", "\xff", "", " ", `"\`} {
			f.Add(template, data, `"v3"`)
		}
	}
	f.Add("/{key}", "x", `W/"3"`)
	f.Add("/{key}", "x", "\"a\"\r\nX: y")
	f.Fuzz(func(t *testing.T, template, data, etag string) {
		a, err := New(Config{
			URL: "https://court.example" + template, IfMatch: true,
			Headers: map[string]adapters.Secret{"X-About": "{type} {key} of {ref.external_id}", "X-Field": "{fields.f}"},
		})
		if err != nil {
			return
		}
		body, err := json.Marshal(map[string]any{"f": data})
		if err != nil {
			t.Fatal(err)
		}
		msg := adapters.Message{
			ID: "e-1", IdempotencyKey: data, Type: data, Key: data, Version: new(int64(4)), Body: body,
			Ref: adapters.Ref{ExternalID: data, ETag: etag}, Headers: map[string]string{"traceparent": data, data: data},
		}
		to := a.router.find(msg.Type)
		u, err := to.url.expand(&values{msg: msg})
		if err == nil {
			checkURL(t, to.url, u, data)
		}
		req, err := a.request(to, msg)
		if err != nil {
			if strings.Contains(err.Error(), fuzzedValue) && !strings.Contains(template, fuzzedValue) {
				t.Errorf("the error shows a value: %v", err)
			}
			return
		}
		got := onTheWire(t, req)
		want := []string{"Accept", "Content-Type", "Idempotency-Key", "User-Agent", "X-About", "X-Field"}
		if tag := got.Header.Get("If-Match"); tag != "" {
			want = append(want, "If-Match")
			if tag != etag || !validETag(tag) {
				t.Errorf("%q was sent as %q", etag, tag)
			}
		}
		if got.Header.Get("Traceparent") != "" {
			want = append(want, "Traceparent")
		}
		slices.Sort(want)
		if names := slices.Sorted(maps.Keys(got.Header)); !slices.Equal(names, want) {
			t.Errorf("the receiver reads headers %v of %q", names, data)
		}
		if key := got.Header.Get("Idempotency-Key"); unquoted(key) != data {
			t.Errorf("key %q was sent as %s", data, key)
		}
		if got.Host != "court.example" && got.Host != to.url.host || got.RequestURI != u.RequestURI() {
			t.Errorf("the receiver reads %s at %s of %s", got.RequestURI, got.Host, u)
		}
	})
}

func checkURL(t *testing.T, template *urlTemplate, u *url.URL, data string) {
	t.Helper()
	path := u.EscapedPath()
	if u.Scheme != "https" || u.Host != template.host || u.User != nil || u.Opaque != "" || u.Fragment != "" {
		t.Errorf("%q made %s", data, u)
	}
	if strings.ContainsAny(path, "?#\\ ") || dotted(u.Path) {
		t.Errorf("%q made the path %s", data, path)
	}
	meant, are := strings.Split(template.path.text, "/"), strings.Split(path, "/")
	if u.Path != "" && len(meant) != len(are) {
		t.Fatalf("%q made the path %s of %s", data, path, template.path.text)
	}
	for i, segment := range are {
		if meant[i] != "{key}" {
			continue
		}
		if got, err := url.PathUnescape(segment); err != nil || got != data {
			t.Errorf("%q became the segment %s", data, segment)
		}
	}
	for _, divider := range []string{"&", ";", "#"} {
		if strings.Count(u.RawQuery, divider) != strings.Count(template.query.text, divider) {
			t.Errorf("%q made the query %s of %s", data, u.RawQuery, template.query.text)
		}
	}
}

// onTheWire writes a request and reads it as a receiver does.
func onTheWire(t *testing.T, r exchange.Request) *http.Request {
	t.Helper()
	var wire bytes.Buffer
	req := &http.Request{Method: r.Method, URL: r.URL, Host: r.URL.Host, Header: r.Header}
	if err := req.Write(&wire); err != nil {
		t.Fatalf("cannot be sent: %v", err)
	}
	reader := bufio.NewReader(&wire)
	got, err := http.ReadRequest(reader)
	if err != nil {
		t.Fatalf("cannot be read: %v", err)
	}
	if rest, _ := io.ReadAll(reader); len(rest) > 0 {
		t.Errorf("%q follows the request", rest)
	}
	got.Header.Del("Content-Length")
	return got
}

// unquoted reads a string of a structured field (RFC 8941, 4.2.5).
func unquoted(s string) string {
	s, opened := strings.CutPrefix(s, `"`)
	var b strings.Builder
	for i := 0; opened && i < len(s); i++ {
		switch {
		case s[i] == '"' && i == len(s)-1:
			return b.String()
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == '"' || s[i+1] == '\\'):
			i++
			b.WriteByte(s[i])
		case s[i] == '"' || s[i] == '\\' || s[i] < 0x20 || s[i] > 0x7e:
			return "not a string"
		default:
			b.WriteByte(s[i])
		}
	}
	return "not a string"
}

// FuzzPointer: what a pointer finds stands in the answer, and can be stored and
// sent back.
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
		p, err := parsePointer(text)
		if err != nil {
			return
		}
		id, ok := p.find(exchange.Answer{Status: 201, Body: body})
		if ok && (!storable(id) || len(id) > maxRef) {
			t.Errorf("%s found %q", text, id)
		}
		if ok && json.Valid(body) && !slices.Contains(exchange.Strings(body), id) {
			t.Errorf("%s found %q, which is not in %s", text, id, body)
		}
		if _, found := p.find(exchange.Answer{Status: 201, Body: body, Partial: true}); found {
			t.Errorf("%s found something in an answer that is not whole", text)
		}
	})
}

func storable(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// receiver answers every request with the same bytes, whatever they are, and
// hangs up.
type receiver struct {
	net.Listener
	mu     sync.Mutex
	answer []byte
}

func newReceiver(f *testing.F) *receiver {
	f.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	r := &receiver{Listener: l}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() { r.serve(conn) })
		}
	})
	f.Cleanup(func() {
		_ = l.Close()
		served.Wait()
	})
	return r
}

func (r *receiver) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	req, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, req.Body)
	r.mu.Lock()
	answer := r.answer
	r.mu.Unlock()
	_, _ = conn.Write(answer)
}

func (r *receiver) set(answer []byte) {
	r.mu.Lock()
	r.answer = answer
	r.mu.Unlock()
}

// FuzzDeliver takes any bytes for an answer. Each gives an attempt a result that
// can be recorded, soon, in which nothing stands that was sent along.
func FuzzDeliver(f *testing.F) {
	const (
		token = "tok-4711-secret"
		key   = "qk-0815-secret"
		name  = "Zebulon Quixote-Roe"
	)
	for _, seed := range answers(token, key, name) {
		f.Add(seed)
	}
	court := newReceiver(f)
	a, err := New(Config{
		URL: "http://" + court.Addr().String() + "/h/{key}?api_key=" + key, ExternalID: "/id", Timeout: 20 * time.Second,
		Auth: Auth{Kind: AuthBearer, Token: token},
	})
	if err != nil {
		f.Fatal(err)
	}
	msg := adapters.Message{ID: "e-1", IdempotencyKey: "e-1", Type: "t", Key: "7", Body: []byte(`{"name":"` + name + `"}`)}
	f.Fuzz(func(t *testing.T, answer []byte) {
		court.set(answer)
		began := time.Now()
		receipt, err := a.Deliver(t.Context(), msg)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %s", took)
		}
		if err == nil && receipt.Code == "" || receipt.Code != "" && !storable(receipt.Code) {
			t.Errorf("%+v, %v", receipt, err)
		}
		if err != nil {
			text := err.Error()
			if len(text) > 500 || !storable(text) {
				t.Errorf("%q cannot be recorded", text)
			}
			for _, hidden := range []string{token, key, name} {
				if strings.Contains(text, hidden) {
					t.Errorf("%q shows %q", text, hidden)
				}
			}
		}
		if wait := adapters.RetryDelay(err); wait < 0 || wait > exchange.MaxRetryAfter {
			t.Errorf("wait of %s", wait)
		}
		if ref := receipt.Ref; ref != nil && (err != nil ||
			ref.ExternalID != "" && (!storable(ref.ExternalID) || len(ref.ExternalID) > maxRef) || ref.ETag != "" && !validETag(ref.ETag)) {
			t.Errorf("reference %+v, %v", ref, err)
		}
		req, err := a.request(a.router.find(msg.Type), msg)
		if err != nil {
			t.Fatal(err)
		}
		if ans, err := a.client.Do(t.Context(), req); err == nil && len(ans.Body) > exchange.MaxAnswer {
			t.Errorf("%d bytes were read", len(ans.Body))
		}
	})
}

// answers are good and bad ones; some repeat what they were sent.
func answers(repeated ...string) [][]byte {
	var all [][]byte
	add := func(status int, header, body string) {
		all = append(all, fmt.Appendf(nil, "HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s", status, header, len(body), body))
	}
	zipped := func(body string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = io.WriteString(z, body) // into memory
		_ = z.Close()
		return b.String()
	}
	const gzipped = "Content-Encoding: gzip\r\n"
	for _, status := range []int{200, 201, 202, 204, 400, 401, 403, 404, 409, 412, 422, 429, 500, 503} {
		add(status, "ETag: \"v3\"\r\nRetry-After: 7\r\n", `{"id":"CAL-1","title":"bad \u001b[31mroom\u0000","type":"https://court.example/p?x"}`)
	}
	for _, s := range repeated {
		add(422, "", `{"errCode":"7","errorDesc":"`+s+`","errLinkId":"`+strings.ToUpper(s)+`"}`)
		add(307, "Location: https://"+strings.ReplaceAll(s, " ", "")+"@"+strings.ReplaceAll(s, " ", "")+".example/"+"\r\n", "")
	}
	add(503, "Retry-After: Mon, 01 Mar 9999 10:00:00 GMT\r\nDate: Mon, 01 Mar 2027 10:00:00 GMT\r\n", "<html>")
	add(201, gzipped, zipped(`{"id":12345678901234567890}`))
	add(201, gzipped, zipped(`{"id":"`+strings.Repeat(" ", 1<<20)))
	add(422, gzipped, zipped(`{"title":"x"}`)[:20])
	add(201, gzipped, "not gzip")
	add(201, "ETag: \"a\x00b\"\r\n", `{"id":"\ud800"}`)
	add(201, "ETag: \""+strings.Repeat("x", 600)+"\"\r\n", `{"id":"`+strings.Repeat("x", 600)+`"}`)
	for _, raw := range []string{
		"", "HTTP/1.1", "HTTP/1.1 201 X\r\n", "HTTP/1.1 201 X\r\nContent-Length: 90\r\n\r\n{", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 100 X\r\n\r\n",
		"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc", "HTTP/1.1 201 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"id\"\r\nzz\r\n",
		"HTTP/1.0 200 \x1b[31m\r\n\r\n{\"id\":\"1\"}", "HTTP/1.1 999 X\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 200 X\r\nA: " + strings.Repeat("x", 70<<10) + "\r\n\r\n",
		"HTTP/1.1 103 X\r\nLink: a\r\n\r\nHTTP/1.1 201 X\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 000 X\r\n\r\n", "HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 X\r\n\r\n" + strings.Repeat("x", 100<<10),
	} {
		all = append(all, []byte(raw))
	}
	return all
}

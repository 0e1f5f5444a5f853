package endpoint

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

const fuzzedValue = "zq9x7kw" // a value of the data, which must not appear in errors

// FuzzRequest fills any template with any data. Data adds no segment, no query and no
// header, and a receiver reads the intended values. Data makes a host only if it is
// allowed.
func FuzzRequest(f *testing.F) {
	for _, template := range []string{
		"/hearings/{key}", "/h/{ref.external_id}/{fields.f}", "/a%2Fb/{id}.json?v={version}&k={key}&{fields.f}=x", "/.{key}", "/{key}{key}/x;p={key}",
		"", "?{key}", "//{key}", "/%{key}", "/{key}#x", "@evil/{key}", ":80{key}", "/{", "/é/{fields.f.g}", "/für\"/{key}?ü={key}",
	} {
		for _, data := range []string{fuzzedValue, "..", "a/b", `a\b`, "?x=1&y#z", "%2e%2e", "a\r\nX-Evil: 1", "é\u202e", "\x00", "\xff", "", " ", `"\`} {
			f.Add("court.example", template, data)
		}
	}
	for _, host := range []string{"{fields.f}", "{fields.f}.court.example:8443", "a{fields.f}", "[{fields.f}]", "{fields.f}:{fields.f}"} {
		for _, data := range []string{"court.example", "x.court.example", "evil.example", "x/", "u@x", "x:80", "[::1]", "127.0.0.1", ".", "X", "%2e", "x\x00"} {
			f.Add(host, "/", data)
		}
	}
	f.Add("0", "\u3812", "0")
	f.Fuzz(func(t *testing.T, host, template, data string) {
		to, err := ParseURL("https://" + host + template)
		if err != nil {
			return
		}
		e, err := New(Options{
			Headers: map[string]adapters.Secret{"X-About": "{type} {key} of {ref.external_id}", "X-Field": "{fields.f}"},
			Allow:   adapters.Allow{Hosts: []string{"court.example", "*.court.example"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(map[string]any{"f": data})
		if err != nil {
			t.Fatal(err)
		}
		msg := adapters.Message{
			ID: "e-1", IdempotencyKey: data, Type: data, Key: data, Version: new(int64(4)), Body: body,
			Ref: adapters.Ref{ExternalID: data}, Headers: map[string]string{"traceparent": data, data: data},
		}
		v := &placeholder.Values{Msg: msg}
		u, err := to.expand(v, e.hosts)
		if err == nil {
			checkURL(t, to, u, data)
		}
		req, err := e.Request(http.MethodPost, to, v, http.Header{"Content-Type": {"application/json"}}, nil)
		if err != nil {
			if strings.Contains(err.Error(), fuzzedValue) && !strings.Contains(host+template, fuzzedValue) {
				t.Errorf("the error shows a value: %v", err)
			}
			return
		}
		got := onTheWire(t, req)
		want := []string{"Content-Type", "Idempotency-Key", "User-Agent", "X-About", "X-Field"}
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
		beyondASCII := strings.ContainsFunc(u.Host, func(r rune) bool { return r > '~' })
		sameHost := got.Host == u.Host || beyondASCII && strings.Contains(got.Host, "xn--") // how it goes out
		if !sameHost || got.RequestURI != u.RequestURI() {
			t.Errorf("the receiver reads %s at %s of %s", got.RequestURI, got.Host, u)
		}
	})
}

func checkURL(t *testing.T, template *URL, u *url.URL, data string) {
	t.Helper()
	path := u.EscapedPath()
	name := u.Hostname()
	named := template.host.Text() == u.Host || name == "court.example" || strings.HasSuffix(name, ".court.example")
	if u.Scheme != "https" || !named || u.User != nil || u.Opaque != "" || u.Fragment != "" {
		t.Errorf("%q made %s", data, u)
	}
	if strings.ContainsAny(path, "?#\\ ") || dotted(u.Path) {
		t.Errorf("%q made the path %s", data, path)
	}
	meant, are := strings.Split(template.path.Text(), "/"), strings.Split(path, "/")
	if u.Path != "" && len(meant) != len(are) {
		t.Fatalf("%q made the path %s of %s", data, path, template.path.Text())
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
		if strings.Count(u.RawQuery, divider) != strings.Count(template.query.Text(), divider) {
			t.Errorf("%q made the query %s of %s", data, u.RawQuery, template.query.Text())
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

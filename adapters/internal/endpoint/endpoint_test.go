package endpoint_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// poster is the least adapter: it posts the body to one URL.
type poster struct {
	*endpoint.Endpoint
	to *endpoint.URL
}

type config struct {
	URL     string
	Headers map[string]adapters.Secret
	Auth    adapters.Credentials
	TLS     adapters.TLS
	Timeout time.Duration
	Allow   adapters.Allow
}

func newPoster(c config) (*poster, error) {
	to, err := endpoint.ParseURL(c.URL)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	e, err := endpoint.New(endpoint.Options{Headers: c.Headers, Auth: c.Auth, TLS: c.TLS, Timeout: c.Timeout, Allow: c.Allow, URLs: []*endpoint.URL{to}})
	return &poster{e, to}, err
}

func (p *poster) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	req, err := p.Request(http.MethodPost, p.to, &placeholder.Values{Msg: msg}, http.Header{}, msg.Body)
	if err != nil {
		return adapters.Receipt{}, err
	}
	return p.Endpoint.Deliver(ctx, p.to, req, func(a exchange.Answer) (adapters.Receipt, error) {
		return exchange.Rules{}.Judge(req, a)
	})
}

func post(t *testing.T, c config) *poster {
	t.Helper()
	p, err := newPoster(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

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

func TestInvalidTraceContextIsNotForwarded(t *testing.T) {
	c := newCourt(t)
	a := post(t, config{URL: c.URL})
	for name, headers := range map[string]map[string]string{
		"not hex":      {"traceparent": "00-zzf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=1"},
		"all zero":     {"traceparent": "00-00000000000000000000000000000000-00f067aa0ba902b7-01"},
		"a line break": {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nX: y"},
		"state alone":  {"tracestate": "a=1"},
	} {
		msg := message()
		msg.Headers = headers
		if _, err := a.Deliver(t.Context(), msg); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.request.Header.Get("Traceparent")+c.request.Header.Get("Tracestate") != "" {
			t.Errorf("%s: forwarded %v", name, c.request.Header)
		}
	}
}

func TestURLTemplates(t *testing.T) {
	c := newCourt(t)
	for name, tc := range map[string]struct {
		path string
		edit func(*adapters.Message)
		want string // request URI; empty: refused
		err  string
	}{
		"external id":                            {path: "/h/{ref.external_id}", want: "/h/ext%2F7"},
		"key, id, version":                       {path: "/{key}/{id}/{version}", want: "/hearing%207/e-1/4"},
		"exact number":                           {path: "/{fields.caseId}", want: "/12345678901234567890"},
		"dotted field":                           {path: "/c/{fields.court.code}/x", want: "/c/NY%2F07/x"},
		"boolean":                                {path: "/{fields.court.open}", want: "/true"},
		"no query from data":                     {path: "/{fields.note}", want: "/a&b=c%3Fd%23e"},
		"value in a query":                       {path: "/x?note={fields.note}&k=1", want: "/x?note=a%26b%3Dc%3Fd%23e&k=1"},
		"no host from data":                      {path: "/{key}", edit: func(m *adapters.Message) { m.Key = "//evil.example/x@y" }, want: "/%2F%2Fevil.example%2Fx@y"},
		"slash next to text that needs escaping": {path: "/für\"/{key}?ü={key}", edit: func(m *adapters.Message) { m.Key = "a/b" }, want: "/f%C3%BCr%22/a%2Fb?%C3%BC=a%2Fb"},
		"escaped already":                        {path: "/{key}", edit: func(m *adapters.Message) { m.Key = "%2e%2e" }, want: "/%252e%252e"},

		"no external id":      {path: "/h/{ref.external_id}", edit: func(m *adapters.Message) { m.Ref.ExternalID = "" }, err: "{ref.external_id} is not known: no answer of the receiver contained the id of this key's record; set it with lockstep ref set, then requeue"},
		"no version":          {path: "/{version}", edit: func(m *adapters.Message) { m.Version = nil }, err: "{version} is not known"},
		"no such field":       {path: "/{fields.court.name}", err: "{fields.court.name} is not known"},
		"field below a value": {path: "/{fields.note.x}", err: "{fields.note.x} is not known"},
		"an empty field":      {path: "/{fields.empty}", err: "{fields.empty} is empty"},
		"an object":           {path: "/{fields.court}", err: "{fields.court} is an object or a list"},
		"a list":              {path: "/{fields.court.tags}", err: "{fields.court.tags} is an object or a list"},
		"dots":                {path: "/{fields.court.room}", err: "{fields.court.room} has . or .. as a path segment"},
		"dots behind a slash": {path: "/{key}", edit: func(m *adapters.Message) { m.Key = "a/../../b" }, err: "{key} has . or .. as a path segment"},
		"dots with the text":  {path: "/.{fields.x}", edit: func(m *adapters.Message) { m.Body = []byte(`{"x":"/b"}`) }, err: "the values make . or .. a path segment"},
		"a control character": {path: "/{key}", edit: func(m *adapters.Message) { m.Key = "a\nb" }, err: "{key} has a control character (U+000A) at byte 1"},
		"invalid UTF-8":       {path: "/{key}", edit: func(m *adapters.Message) { m.Key = "a\xff" }, err: "{key} is not valid UTF-8"},
		"no JSON object":      {path: "/{fields.x}", edit: func(m *adapters.Message) { m.Body = []byte(`[1]`) }, err: "{fields.x} cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			a := post(t, config{URL: c.URL + tc.path})
			msg := message()
			if tc.edit != nil {
				tc.edit(&msg)
			}
			c.request = nil
			_, err := a.Deliver(t.Context(), msg)
			if tc.err != "" {
				if c.request != nil {
					t.Errorf("sent %s", c.request.RequestURI)
				}
				if adapters.ClassOf(err) != adapters.ClassPermanent || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("got %v (%s), want a permanent error with %q", err, adapters.ClassOf(err), tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.request.RequestURI != tc.want {
				t.Errorf("sent %s, want %s", c.request.RequestURI, tc.want)
			}
		})
	}
}

func TestHeaderValuesFromData(t *testing.T) {
	c := newCourt(t)
	for name, tc := range map[string]struct {
		value adapters.Secret
		edit  func(*adapters.Message)
		err   string
	}{
		"a line break":         {"{key}", func(m *adapters.Message) { m.Key = "a\r\nX-Admin: 1" }, "header X-A: {key} has a control character"},
		"no version":           {"{version}", func(m *adapters.Message) { m.Version = nil }, "header X-A: {version} is not known"},
		"no time":              {"{occurred_at}", func(m *adapters.Message) { m.OccurredAt = time.Time{} }, "{occurred_at} is not known"},
		"an odd key":           {"x", func(m *adapters.Message) { m.IdempotencyKey = "é" }, "Idempotency-Key: the key has a byte"},
		"no idempotency key":   {"x", func(m *adapters.Message) { m.IdempotencyKey = "" }, "Idempotency-Key: the key is not known"},
		"a field with newline": {"{fields.a}", func(m *adapters.Message) { m.Body = []byte(`{"a":"x\ny"}`) }, "{fields.a} has a control character"},
	} {
		t.Run(name, func(t *testing.T) {
			a := post(t, config{URL: c.URL, Headers: map[string]adapters.Secret{"X-A": tc.value}})
			msg := message()
			tc.edit(&msg)
			_, err := a.Deliver(t.Context(), msg)
			if adapters.ClassOf(err) != adapters.ClassPermanent || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got %v (%s)", err, adapters.ClassOf(err))
			}
			if c.request != nil {
				t.Error("a request was sent")
			}
		})
	}
}

func TestNewRefusesURLs(t *testing.T) {
	for rawURL, want := range map[string]string{
		"":                                    "must start with https://",
		"court.example/api":                   "must start with https://",
		"https:///x":                          "must start with https://",
		"https://court.example\"/":            "has a host that is neither",
		"https://court.example:65536/":        "port above 65535",
		"https://{key}.court.example/":        "{key} is not a placeholder that is allowed here",
		"https://{fields.a}:{fields.b}/":      "is not a URL",
		"{key}://court.example/":              "in its scheme",
		"https://u:pw@court.example/":         "holds credentials",
		"https://court.example/#x":            "has a fragment",
		"https://court.example/a/../b":        ". or .. as a path segment",
		"https://court.example/%2e./b":        ". or .. as a path segment",
		"https://court.example/a b":           "has a space",
		"https://court.example/{ref.version}": "{ref.version} is not a placeholder that is allowed here: no key learn has the name \"version\"",
		"https://court.example/{key":          "a brace does not belong",
		"https://court.example/?a=}":          "a brace does not belong",
		"https://court.example/{fields.a..b}": "{fields.a..b} is not a placeholder",
		"https://court.example/{fields.}":     "{fields.} is not a placeholder",
		"https://court.example/\x00":          "is not a URL",
	} {
		if _, err := newPoster(config{URL: rawURL}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "pw") {
			t.Errorf("%s: got %v, want %q", rawURL, err, want)
		}
	}
}

func TestNewAcceptsHosts(t *testing.T) {
	for host, want := range map[string]string{
		"localhost": "localhost", "127.0.0.1:8081": "127.0.0.1:8081", "[::1]:443": "[::1]:443", "[fe80::1%25eth0]": "[fe80::1%eth0]",
		"gericht_1.münchen.example:": "gericht_1.münchen.example:", "COURT.example.": "COURT.example.",
	} {
		p, err := newPoster(config{URL: "https://" + host + "/x"})
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		req, err := p.Request(http.MethodPost, p.to, &placeholder.Values{Msg: message()}, http.Header{}, nil)
		if err != nil || req.URL.Host != want || req.URL.Path != "/x" {
			t.Errorf("%s: the request goes to %s: %v", host, req.URL, err)
		}
	}
}

func TestAttemptTimeoutCoversTheToken(t *testing.T) {
	plain := post(t, config{URL: "https://court.example"})
	if got := plain.AttemptTimeout(); got != endpoint.DefaultTimeout {
		t.Errorf("got %s, want %s", got, endpoint.DefaultTimeout)
	}
	withToken := post(t, config{URL: "https://court.example", Timeout: time.Second, Auth: adapters.Credentials{
		Kind: adapters.ClientCredentials, TokenURL: "https://login.example", ClientID: "a", ClientSecret: "b",
	}})
	if got := withToken.AttemptTimeout(); got != 11*time.Second {
		t.Errorf("got %s, want 11s", got)
	}
}

// A missing token is trouble of all destinations. An answer of the receiver is not.
func TestTroubleWithTheTokenIsCommon(t *testing.T) {
	receiver, login := newCourt(t), newCourt(t)
	login.status = http.StatusUnauthorized
	receiver.status = http.StatusServiceUnavailable
	withToken := post(t, config{URL: receiver.URL, Auth: adapters.Credentials{
		Kind: adapters.ClientCredentials, TokenURL: login.URL, ClientID: "a", ClientSecret: "b",
	}})
	if _, err := withToken.Deliver(t.Context(), message()); err == nil || !adapters.IsCommon(err) {
		t.Errorf("of the token endpoint: %v, common %t", err, adapters.IsCommon(err))
	}
	plain := post(t, config{URL: receiver.URL})
	if _, err := plain.Deliver(t.Context(), message()); err == nil || adapters.IsCommon(err) {
		t.Errorf("of the receiver: %v, common %t", err, adapters.IsCommon(err))
	}
}

// Data may name only a host that the operator listed, with an address in the public
// internet or in a listed network. A refusal sends nothing.
func TestHostsFromData(t *testing.T) {
	c := newCourt(t)
	port := c.URL[strings.LastIndexByte(c.URL, ':'):]
	loopback := []string{"127.0.0.0/8", "::1/128"}
	for name, tc := range map[string]struct {
		host  string // in the template
		value string
		allow adapters.Allow
		err   string // empty: delivered
	}{
		"listed, in a listed network": {"{fields.court}", "localhost", adapters.Allow{Hosts: []string{"localhost"}, Networks: loopback}, ""},
		"without regard to case":      {"{fields.court}", "LocalHost", adapters.Allow{Hosts: []string{"localhost"}, Networks: loopback}, ""},
		"part of a name":              {"{fields.court}host", "local", adapters.Allow{Hosts: []string{"localhost"}, Networks: loopback}, ""},
		"any host":                    {"{fields.court}", "localhost", adapters.Allow{Hosts: []string{"*"}, Networks: loopback}, ""},
		"an address":                  {"{fields.court}", "127.0.0.1", adapters.Allow{Hosts: []string{"*"}, Networks: loopback}, ""},

		"listed, but loopback":     {"{fields.court}", "localhost", adapters.Allow{Hosts: []string{"localhost"}}, "which is not public"},
		"any host, but loopback":   {"{fields.court}", "127.0.0.1", adapters.Allow{Hosts: []string{"*"}}, "has the address 127.0.0.1, which is not public"},
		"metadata":                 {"{fields.court}", "169.254.169.254", adapters.Allow{Hosts: []string{"*"}, Networks: loopback}, "169.254.169.254, which is not public"},
		"in another spelling":      {"{fields.court}", "2130706433", adapters.Allow{Hosts: []string{"*"}}, "nothing was sent"},
		"another host":             {"{fields.court}", "evil.example", adapters.Allow{Hosts: []string{"localhost"}, Networks: loopback}, "not in allow.hosts"},
		"above what is listed":     {"{fields.court}", "court.example", adapters.Allow{Hosts: []string{"*.court.example"}}, "not in allow.hosts"},
		"an ending that is listed": {"{fields.court}", "evilcourt.example", adapters.Allow{Hosts: []string{"*.court.example"}}, "not in allow.hosts"},
		"a port":                   {"{fields.court}", "localhost:1", adapters.Allow{Hosts: []string{"localhost"}}, "do not make a host name"},
		"user and host":            {"{fields.court}", "localhost@evil.example", adapters.Allow{Hosts: []string{"*"}}, "do not make a host name"},
		"a path":                   {"{fields.court}.court.example", "evil.example/", adapters.Allow{Hosts: []string{"*"}}, "do not make a host name"},
		"a missing field":          {"{fields.room}", "localhost", adapters.Allow{Hosts: []string{"*"}}, "{fields.room} is not known"},
	} {
		t.Run(name, func(t *testing.T) {
			a := post(t, config{URL: "http://" + tc.host + port + "/h", Allow: tc.allow})
			msg := message()
			msg.Body = []byte(`{"court":"` + tc.value + `"}`)
			c.request = nil
			_, err := a.Deliver(t.Context(), msg)
			switch {
			case tc.err == "" && (err != nil || c.request == nil):
				t.Errorf("got %v", err)
			case tc.err == "":
			case err == nil || !strings.Contains(err.Error(), tc.err) || strings.Contains(err.Error(), "evil"):
				t.Errorf("got %v, want %q", err, tc.err)
			case c.request != nil:
				t.Error("a request was sent")
			case adapters.ClassOf(err) != adapters.ClassPermanent && name != "in another spelling": // not every resolver takes it for an address
				t.Errorf("class %s", adapters.ClassOf(err))
			}
		})
	}
}

// The operator's own URLs may point anywhere.
func TestWrittenHostsAreNotJudged(t *testing.T) {
	c := newCourt(t)
	if _, err := post(t, config{URL: c.URL, Allow: adapters.Allow{Hosts: []string{"court.example"}}}).Deliver(t.Context(), message()); err != nil {
		t.Error(err)
	}
}

func TestAllowIsChecked(t *testing.T) {
	const canary = "canary-77"
	for name, tc := range map[string]struct {
		config config
		want   string
	}{
		"a URL":              {config{Allow: adapters.Allow{Hosts: []string{"x.example", "https://court.example"}}}, `allow.hosts[1]: "https://court.example" is not a host name`},
		"a star inside":      {config{Allow: adapters.Allow{Hosts: []string{"court-*.example"}}}, `allow.hosts[0]: "court-*.example" is not a host name`},
		"an empty name":      {config{Allow: adapters.Allow{Hosts: []string{""}}}, `allow.hosts[0]: "" is not a host name`},
		"no prefix":          {config{Allow: adapters.Allow{Networks: []string{"10.0.0.1"}}}, `allow.networks[0]: "10.0.0.1" is not a network`},
		"nothing listed":     {config{Allow: adapters.Allow{Networks: []string{"127.0.0.0/8"}}}, "allow.hosts: is required"},
		"any, with a query":  {config{URL: "https://{fields.a}/?token=" + canary, Allow: adapters.Allow{Hosts: []string{"*"}}}, "the query of a url to any host"},
		"any, with a token":  {config{Allow: adapters.Allow{Hosts: []string{"*"}}, Auth: adapters.Credentials{Kind: adapters.Bearer, Token: canary}}, "auth to any host"},
		"any, with a header": {config{Allow: adapters.Allow{Hosts: []string{"*"}}, Headers: map[string]adapters.Secret{"X-Key": canary}}, "headers to any host"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.config.URL = cmp.Or(tc.config.URL, "https://{fields.a}/")
			_, err := newPoster(tc.config)
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), canary) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

package exchange

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

const proxyPassword = "proxy-4711-secret"

// proxied returns a client that uses the proxy at address, with credentials.
func proxied(t *testing.T, options adapters.TLS, address string) *Client {
	t.Helper()
	c, err := New(options, adapters.Secret("http://agency:"+proxyPassword+"@"+address), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// proxy answers CONNECT with status; with 200 it connects to the receiver.
func proxy(t *testing.T, status int) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status != http.StatusOK {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "<html>proxy of the agency</html>")
			return
		}
		receiver, err := net.Dial("tcp", r.Host) //nolint:noctx // it ends with the test's server
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(receiver, conn); _ = receiver.Close() }()
		_, _ = io.Copy(conn, receiver)
		_ = conn.Close()
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestRefusalsOfAProxy(t *testing.T) {
	court := &url.URL{Scheme: "https", Host: "court.example.gov"}
	for status, want := range map[int]struct {
		class  adapters.Class
		common bool
		says   string
	}{
		407: {adapters.ClassAuth, true, "wants other credentials: check proxy"},
		403: {adapters.ClassAuth, false, "does not let requests to this host through"},
		502: {adapters.ClassTransient, false, "could not connect to the receiver, or is overloaded"},
		503: {adapters.ClassTransient, false, "could not connect to the receiver, or is overloaded"},
		418: {adapters.ClassTransient, false, "refused the connection"},
	} {
		address := proxy(t, status)
		_, err := post(t.Context(), proxied(t, adapters.TLS{}, address), court)
		if adapters.ClassOf(err) != want.class || adapters.IsCommon(err) != want.common {
			t.Errorf("%d: class %s, common %t: %v", status, adapters.ClassOf(err), adapters.IsCommon(err), err)
		}
		if err == nil || !strings.Contains(err.Error(), "the proxy "+address+" ") || !strings.Contains(err.Error(), want.says) || strings.Contains(err.Error(), proxyPassword) {
			t.Errorf("%d: %v", status, err)
		}
	}
}

// A proxy that is down is common to all receivers behind it.
func TestAProxyThatIsDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	for _, scheme := range []string{"http", "https"} {
		_, err := post(t.Context(), proxied(t, adapters.TLS{}, address), &url.URL{Scheme: scheme, Host: "court.example.gov"})
		if adapters.ClassOf(err) != adapters.ClassTransient || !adapters.IsCommon(err) ||
			!strings.Contains(err.Error(), "nothing was sent: the proxy cannot be reached: connection refused (proxy "+address+")") || strings.Contains(err.Error(), proxyPassword) {
			t.Errorf("%s: class %s, common %t: %v", scheme, adapters.ClassOf(err), adapters.IsCommon(err), err)
		}
	}
}

func TestRequestsGoThroughTheConfiguredProxy(t *testing.T) {
	server := issue(t, "127.0.0.1", time.Now().Add(time.Hour))
	u := tlsServer(t, &tls.Config{Certificates: []tls.Certificate{server.pair(t)}})
	ca := adapters.TLS{CAFile: write(t, t.TempDir(), "ca.pem", server.cert)}
	if _, err := post(t.Context(), proxied(t, ca, proxy(t, http.StatusOK)), u); err != nil {
		t.Error(err)
	}
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1") // net/http reads it once, so this only shows the intent
	direct, err := New(ca, "none", 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = direct.Close() }()
	if direct.transport.Proxy != nil {
		t.Error("none uses a proxy")
	}
	for text, want := range map[string]string{
		"proxy.example:8080": "proxy: is not a URL", "ftp://proxy.example": "proxy: is not a URL", "http://": "proxy: is not a URL",
		"http://u:" + proxyPassword + "@p example": "proxy: is not a URL", "http://proxy.example/path": "proxy: is not a URL",
	} {
		_, err := New(adapters.TLS{}, adapters.Secret(text), time.Second)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), proxyPassword) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// A server that speaks only HTTP/2 is named as such.
func TestServersOfHTTP2Only(t *testing.T) {
	server := issue(t, "127.0.0.1", time.Now().Add(time.Hour))
	ca := adapters.TLS{CAFile: write(t, t.TempDir(), "ca.pem", server.cert)}
	for name, tc := range map[string]struct {
		scheme, offers string
		class          adapters.Class
		says           string
	}{
		"refuses HTTP/1.1": {"https", "h3", adapters.ClassTransient, "nothing was sent: TLS: the receiver does not speak HTTP/1.1"},
		"over TLS":         {"https", "h2", adapters.ClassUnknown, "the answer is HTTP/2"}, // crypto/tls lets clients of HTTP/1.1 in
		"without TLS":      {"http", "", adapters.ClassUnknown, "the answer is HTTP/2"},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		if tc.scheme == "https" {
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{server.pair(t)}, NextProtos: []string{tc.offers}})
		}
		var served sync.WaitGroup
		served.Go(func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = http.ReadRequest(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64") // SETTINGS
			_ = conn.Close()
		})
		_, err = post(t.Context(), newClient(t, ca), &url.URL{Scheme: tc.scheme, Host: address})
		_ = l.Close()
		served.Wait()
		if adapters.ClassOf(err) != tc.class || err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: class %s: %v", name, adapters.ClassOf(err), err)
		}
	}
}

// The token endpoint is behind the same proxy.
func TestFailuresOfTheTokenClientNameTheProxy(t *testing.T) {
	for address, want := range map[string]string{proxy(t, 407): "wants other credentials: check proxy", "127.0.0.1:1": "the proxy cannot be reached: connection refused"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://login.example.gov/token", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := proxied(t, adapters.TLS{}, address).TokenClient().Do(req)
		if err == nil {
			_ = res.Body.Close()
			t.Fatal("no error")
		}
		if got := Describe(t.Context(), err).Error(); !strings.Contains(got, want) || strings.Contains(got, proxyPassword) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A proxy may repeat its own password.
func TestReasonsDoNotShowTheProxysPassword(t *testing.T) {
	r := Request{Proxy: "http://agency:" + proxyPassword + "@proxy.example:3128"}
	if got := r.Reason(Answer{Status: 407, Body: []byte(`{"message":"` + proxyPassword + ` is wrong"}`)}); got != "its reason is not shown, because it repeats what was sent" {
		t.Errorf("got %q", got)
	}
}

// Without TLS the proxy answers instead of the receiver.
func TestAProxysAnswerWithoutTLS(t *testing.T) {
	_, err := Rules{}.Judge(Request{Method: "POST", Target: "court"}, Answer{Status: 407, Body: []byte("<html>")})
	if want := "POST court: answered HTTP 407: a proxy wants other credentials: check proxy"; err == nil || err.Error() != want || adapters.ClassOf(err) != adapters.ClassAuth {
		t.Errorf("%s: %v", adapters.ClassOf(err), err)
	}
}

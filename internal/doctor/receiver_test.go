package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/outboxtest"
)

// certificate is a certificate for 127.0.0.1 that is its own authority, in files.
type certificate struct {
	certFile, keyFile string
	pair              tls.Certificate
}

func issue(t *testing.T, left time.Duration) certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	outboxtest.Must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "court"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-1000 * time.Hour), NotAfter: time.Now().Add(left),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	outboxtest.Must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	outboxtest.Must(t, err)
	dir := t.TempDir()
	c := certificate{certFile: filepath.Join(dir, "cert.pem"), keyFile: filepath.Join(dir, "key.pem")}
	outboxtest.Must(t, os.WriteFile(c.certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	outboxtest.Must(t, os.WriteFile(c.keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	c.pair, err = tls.LoadX509KeyPair(c.certFile, c.keyFile)
	outboxtest.Must(t, err)
	return c
}

// court is a receiver that counts requests and answers them with a status.
type court struct {
	*httptest.Server
	requests atomic.Int32
}

func newCourt(t *testing.T, c *certificate, status int) *court {
	t.Helper()
	s := new(court)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.requests.Add(1)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"access_token": "token-1"}`)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // it reports handshakes that we refuse
	if c == nil {
		s.Start()
	} else {
		s.TLS = &tls.Config{Certificates: []tls.Certificate{c.pair}}
		s.StartTLS()
	}
	t.Cleanup(s.Close)
	return s
}

// proxy connects to the hosts that it is asked for, or refuses with a status.
func proxy(t *testing.T, status int) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		receiver, err := net.Dial("tcp", r.Host) //nolint:noctx // it ends with the test's server
		if status != http.StatusOK || err != nil {
			w.WriteHeader(status)
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
	return s.URL
}

// connected makes the checks of the receivers of a sync whose adapter has the given options.
func connected(t *testing.T, tokens bool, format string, args ...any) findings {
	t.Helper()
	yaml := "database: {url: 'postgres://127.0.0.1/agency'}\nsyncs:\n  - {name: court, event: a, adapter: {kind: rest, " + fmt.Sprintf(format, args...) + "}}\n"
	f, err := config.Parse("lockstep.yaml", []byte(yaml), os.LookupEnv)
	outboxtest.Must(t, err)
	o := Options{Config: f, Tokens: tokens}
	return findings{t, run(t.Context(), o.receivers())}
}

func TestCertificatesOfReceivers(t *testing.T) {
	const day = 24 * time.Hour
	for name, tc := range map[string]struct {
		left     time.Duration
		severity Severity
		says     string
	}{
		"valid for long":  {300 * day, OK, "is valid until"},
		"soon":            {10 * day, Warning, "in 9 days"},
		"in a few hours":  {30 * time.Hour, Problem, "in 29 hours"},
		"expired already": {-time.Hour, Problem, "has expired"},
	} {
		t.Run(name, func(t *testing.T) {
			c := issue(t, tc.left)
			s := newCourt(t, &c, http.StatusOK)
			found := connected(t, false, "url: %s/x, tls: {ca_file: %s}", s.URL, c.certFile)
			found.have("receiver", tc.severity, tc.says, "court", s.Listener.Addr().String())
			if n := s.requests.Load(); n > 0 || len(found.all) != 1 {
				t.Errorf("%d requests were sent, findings %s", n, found)
			}
		})
	}
	t.Run("of an unknown authority", func(t *testing.T) {
		c := issue(t, 300*day)
		connected(t, false, "url: %s/x", newCourt(t, &c, http.StatusOK).URL).have("receiver", Problem, "unknown authority", "tls.ca_file")
	})
	t.Run("of the client", func(t *testing.T) {
		c := issue(t, 10*day)
		s := newCourt(t, nil, http.StatusOK)
		found := connected(t, false, "url: %s/x, tls: {cert_file: %s, key_file: %s}", s.URL, c.certFile, c.keyFile)
		found.have("client certificate", Warning, "the certificate in tls.cert_file expires on", "court")
		found.have("receiver", OK, "reached without TLS")
	})
}

func TestReceiversOutOfReach(t *testing.T) {
	const down = "127.0.0.1:1"
	c := issue(t, 1000*time.Hour)
	s := newCourt(t, &c, http.StatusOK)
	trust := "tls: {ca_file: " + c.certFile + "}"
	connected(t, false, "url: 'http://%s/x'", down).have("receiver", Problem, down, "connection refused")
	connected(t, false, "url: 'http://court.invalid/x'").have("receiver", Problem, "court.invalid:80", "DNS")
	connected(t, false, "url: %s/x, %s, proxy: 'http://%s'", s.URL, trust, down).have("receiver", Problem, "the proxy cannot be reached", down)
	connected(t, false, "url: %s/x, %s, proxy: '%s'", s.URL, trust, proxy(t, http.StatusProxyAuthRequired)).have("receiver", Problem, "407", "check proxy")
	through := proxy(t, http.StatusOK)
	connected(t, false, "url: %s/x, %s, proxy: '%s'", s.URL, trust, through).have("receiver", OK, "through the proxy "+strings.TrimPrefix(through, "http://"), "is valid until")
	connected(t, false, "url: 'http://court.invalid/x', proxy: '%s'", through).have("receiver", OK, "court.invalid:80", "connects to the host when a request is sent")
	connected(t, false, "url: '%s/x', routes: {a: {url: 'http://%s/y'}}", newCourt(t, nil, http.StatusOK).URL, down).have("receiver", Problem, down)
	connected(t, false, "url: 'https://{fields.court}/x', allow: {hosts: ['*.example.gov']}").have("receiver", OK, "hosts that data names are not checked")
}

func TestReceiverThatDoesNotAnswer(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	outboxtest.Must(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	connected(t, false, "url: 'https://%s/x'", silent.Addr()).have("receiver", Problem, "the timeout of 4s is up")
}

func TestTokenEndpoints(t *testing.T) {
	receiver, login := newCourt(t, nil, http.StatusOK), newCourt(t, nil, http.StatusUnauthorized)
	const auth = "url: %s/x, auth: {kind: oauth2_client_credentials, token_url: %s/token, client_id: agency, client_secret: secret-canary}"
	connected(t, false, auth, receiver.URL, login.URL).have("token endpoint", OK, "reached")
	if n := login.requests.Load(); n > 0 {
		t.Errorf("%d requests were sent", n)
	}
	found := connected(t, true, auth, receiver.URL, login.URL)
	found.have("token endpoint", Problem, "answered HTTP 401", "check the credentials in auth")
	if text := found.String(); strings.Contains(text, "canary") {
		t.Errorf("a secret is shown: %s", text)
	}
	connected(t, true, auth, receiver.URL, receiver.URL).have("token endpoint", OK, "reached")
	if n := receiver.requests.Load(); n != 1 {
		t.Errorf("%d requests to the receiver, want 1 for the token", n)
	}
}

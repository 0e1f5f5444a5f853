package exchange

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// issued is a certificate with its key, as PEM.
type issued struct{ cert, key []byte }

// issue makes a self-signed certificate that is its own authority.
func issue(t *testing.T, name string, notAfter time.Time) issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-48 * time.Hour),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return issued{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
	}
}

func (i issued) pair(t *testing.T) tls.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair(i.cert, i.key)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (i issued) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(i.cert)
	return p
}

func write(t *testing.T, dir, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// tlsServer answers with the common name of the client's certificate.
func tlsServer(t *testing.T, config *tls.Config) *url.URL {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) > 0 {
			_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
		}
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = config
	s.StartTLS()
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func post(ctx context.Context, c *Client, u *url.URL) (Answer, error) {
	return c.Do(ctx, Request{Method: http.MethodPost, URL: u, Target: "court", Body: []byte(`{}`)})
}

// A certificate that is not trusted holds the receiver: no message is the cause.
func TestTLSFailuresSaySo(t *testing.T) {
	const here = "127.0.0.1"
	day := 24 * time.Hour
	good := issue(t, here, time.Now().Add(day))
	for name, tc := range map[string]struct {
		server  issued
		max     uint16
		trusted issued
		class   adapters.Class
		want    string
	}{
		"expired":           {server: issue(t, here, time.Now().Add(-day)), class: adapters.ClassAuth, want: "has expired"},
		"wrong host":        {server: issue(t, "other.example.gov", time.Now().Add(day)), class: adapters.ClassAuth, want: "another host name"},
		"unknown authority": {server: good, trusted: issue(t, here, time.Now().Add(day)), class: adapters.ClassAuth, want: "unknown authority"},
		"TLS 1.1":           {server: good, max: tls.VersionTLS11, class: adapters.ClassTransient, want: "protocol version"},
	} {
		t.Run(name, func(t *testing.T) {
			trusted := tc.trusted
			if trusted.cert == nil {
				trusted = tc.server
			}
			u := tlsServer(t, &tls.Config{
				Certificates: []tls.Certificate{tc.server.pair(t)}, MinVersion: tls.VersionTLS10, MaxVersion: tc.max,
			})
			c := newClient(t, adapters.TLS{CAFile: write(t, t.TempDir(), "ca.pem", trusted.cert)})
			_, err := post(t.Context(), c, u)
			if class := adapters.ClassOf(err); class != tc.class {
				t.Errorf("class %s, want %s", class, tc.class)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "nothing was sent") {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestPlainServerBehindHTTPS(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	u, _ := url.Parse(strings.Replace(s.URL, "http:", "https:", 1))
	_, err := post(t.Context(), newClient(t, adapters.TLS{}), u)
	if adapters.ClassOf(err) != adapters.ClassTransient || !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("got %v (%s)", err, adapters.ClassOf(err))
	}
}

func TestNameLookupFailureIsTransient(t *testing.T) {
	c := newClient(t, adapters.TLS{})
	c.transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "court.invalid", IsNotFound: true}}
	}
	_, err := post(t.Context(), c, &url.URL{Scheme: "http", Host: "court.invalid"})
	if adapters.ClassOf(err) != adapters.ClassTransient || !strings.Contains(err.Error(), "DNS: no such host") {
		t.Errorf("got %v (%s)", err, adapters.ClassOf(err))
	}
}

func TestRefusedClientCertificateIsAuth(t *testing.T) {
	server := issue(t, "127.0.0.1", time.Now().Add(time.Hour))
	stranger := issue(t, "stranger", time.Now().Add(time.Hour))
	dir := t.TempDir()
	ca := write(t, dir, "ca.pem", server.cert)
	with := adapters.TLS{CAFile: ca, CertFile: write(t, dir, "c.pem", stranger.cert), KeyFile: write(t, dir, "k.pem", stranger.key)}
	for name, tc := range map[string]struct {
		options adapters.TLS
		max     uint16
	}{
		"none shown, TLS 1.3":    {adapters.TLS{CAFile: ca}, tls.VersionTLS13},
		"none shown, TLS 1.2":    {adapters.TLS{CAFile: ca}, tls.VersionTLS12},
		"unknown one shown, 1.3": {with, tls.VersionTLS13},
		"unknown one shown, 1.2": {with, tls.VersionTLS12},
	} {
		t.Run(name, func(t *testing.T) {
			u := tlsServer(t, &tls.Config{
				Certificates: []tls.Certificate{server.pair(t)}, ClientAuth: tls.RequireAndVerifyClientCert,
				ClientCAs: server.pool(), MaxVersion: tc.max,
			})
			_, err := post(t.Context(), newClient(t, tc.options), u)
			if class := adapters.ClassOf(err); class != adapters.ClassAuth {
				t.Errorf("class %s, want auth: %v", class, err)
			}
		})
	}
}

// Editors of Windows begin files with a byte-order mark.
func TestPEMFilesWithAByteOrderMark(t *testing.T) {
	server, client := issue(t, "127.0.0.1", time.Now().Add(time.Hour)), issue(t, "client", time.Now().Add(time.Hour))
	u := tlsServer(t, &tls.Config{Certificates: []tls.Certificate{server.pair(t)}, ClientAuth: tls.RequireAnyClientCert})
	marked := func(name string, pem []byte) string {
		return write(t, t.TempDir(), name, append([]byte("\uFEFF"), pem...))
	}
	c := newClient(t, adapters.TLS{
		CAFile: marked("ca.pem", server.cert), CertFile: marked("cert.pem", client.cert), KeyFile: marked("key.pem", client.key),
	})
	if a, err := post(t.Context(), c, u); err != nil || string(a.Body) != "client" {
		t.Errorf("showed %q, %v", a.Body, err)
	}
}

func TestClientCertificateFollowsItsFiles(t *testing.T) {
	server := issue(t, "127.0.0.1", time.Now().Add(time.Hour))
	u := tlsServer(t, &tls.Config{Certificates: []tls.Certificate{server.pair(t)}, ClientAuth: tls.RequireAnyClientCert})
	dir := t.TempDir()
	put := func(i issued, modified time.Time) (certFile, keyFile string) {
		certFile, keyFile = write(t, dir, "cert.pem", i.cert), write(t, dir, "key.pem", i.key)
		for _, name := range []string{certFile, keyFile} {
			if err := os.Chtimes(name, modified, modified); err != nil {
				t.Fatal(err)
			}
		}
		return certFile, keyFile
	}
	start := time.Now()
	certFile, keyFile := put(issue(t, "first", start.Add(time.Hour)), start.Add(-time.Minute))
	c := newClient(t, adapters.TLS{CAFile: write(t, dir, "ca.pem", server.cert), CertFile: certFile, KeyFile: keyFile})
	shown := func() string {
		t.Helper()
		_ = c.Close() // the next request makes a new connection
		a, err := post(t.Context(), c, u)
		if err != nil {
			t.Fatal(err)
		}
		return string(a.Body)
	}
	if got := shown(); got != "first" {
		t.Fatalf("showed %q, want first", got)
	}
	second := issue(t, "second", start.Add(time.Hour))
	write(t, dir, "cert.pem", second.cert)
	if got := shown(); got != "first" {
		t.Errorf("while the files do not fit together it showed %q, want first", got)
	}
	put(second, start)
	if got := shown(); got != "second" {
		t.Errorf("after the change it showed %q, want second", got)
	}
}

func TestTLSOptionsAreCheckedAtOnce(t *testing.T) {
	dir := t.TempDir()
	_, err := New(adapters.TLS{CAFile: write(t, dir, "ca.pem", []byte("no PEM")), CertFile: "cert.pem"}, "", time.Second)
	if err == nil || !strings.Contains(err.Error(), "tls.ca_file") || !strings.Contains(err.Error(), "tls.key_file") {
		t.Errorf("got %v, want both fields named", err)
	}
	_, err = New(adapters.TLS{CertFile: filepath.Join(dir, "none.pem"), KeyFile: filepath.Join(dir, "none.key")}, "", time.Second)
	if err == nil || !strings.Contains(err.Error(), "tls.cert_file") {
		t.Errorf("got %v, want tls.cert_file named", err)
	}
	long := write(t, dir, "long.pem", make([]byte, maxPEM+1))
	_, err = New(adapters.TLS{CAFile: "/dev/zero", CertFile: long, KeyFile: long}, "", time.Second)
	if err == nil || !strings.Contains(err.Error(), "tls.ca_file: /dev/zero is longer than") || !strings.Contains(err.Error(), "long.pem is longer") {
		t.Errorf("got %v, want both files named", err)
	}
}

//go:build linux

package chaos

import (
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
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// front is a server in front of a court: for TLS, for answers that are no HTTP, and for measurements.
type front struct {
	*court
	tls atomic.Pointer[tls.Config] // of the next handshake
	raw atomic.Pointer[string]     // answered to the letter, though the court processes the request

	sent atomic.Int64 // bytes of answers

	mu       sync.Mutex
	open     int // requests in progress
	answered int
	most     int // in progress at a time
	beyond   int // the most in progress more than were answered before
}

// addFront starts a court for a sync behind a front, with TLS if config is given.
func (w *world) addFront(sync string, config *tls.Config) *front {
	w.t.Helper()
	f := &front{court: w.addCourt(sync)}
	server := httptest.NewUnstartedServer(f)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it would only report what the scenario does
	if config == nil {
		server.Start()
	} else {
		f.tls.Store(config)
		server.TLS = &tls.Config{
			MinVersion:         tls.VersionTLS10,
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.tls.Load(), nil },
		}
		server.StartTLS()
	}
	f.url = server.URL
	w.t.Cleanup(func() {
		_ = f.Close() // ends the connections that hang
		server.CloseClientConnections()
		server.Close()
	})
	return f
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.begin()
	defer f.end()
	if raw := f.raw.Load(); raw != nil {
		f.Court.ServeHTTP(httptest.NewRecorder(), r)
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_, _ = io.WriteString(conn, *raw)
			_ = conn.Close()
		}
		return
	}
	f.Court.ServeHTTP(counted{w, &f.sent}, r)
}

func (f *front) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open++
	f.most = max(f.most, f.open)
	f.beyond = max(f.beyond, f.open-f.answered)
}

func (f *front) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open--
	f.answered++
}

// measure starts a new measurement.
func (f *front) measure() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answered, f.most, f.beyond = 0, 0, 0
}

func (f *front) measured() (most, beyond int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.most, f.beyond
}

// counted counts the bytes of an answer.
type counted struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.sent.Add(int64(n))
	return n, err
}

// authority issues certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its own certificate, PEM
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, file: filepath.Join(t.TempDir(), "ca.pem")}
	a.key = newKey(t)
	own := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, own, own, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(raw); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// server is the TLS configuration of a receiver of that name, which may be an address. Its certificate
// ends so long from now.
func (a *authority) server(name string, ends time.Duration) *tls.Config {
	a.t.Helper()
	key := newKey(a.t)
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(ends), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ip := net.ParseIP(name); ip != nil {
		cert.IPAddresses = []net.IP{ip}
	} else {
		cert.DNSNames = []string{name}
	}
	raw, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}}
}

// trap is a server that must get no call. It counts calls.
type trap struct {
	url   string
	calls atomic.Int64
}

func newTrap(t testing.TB) *trap {
	t.Helper()
	p := &trap{}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			p.calls.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

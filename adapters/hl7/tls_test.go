package hl7

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
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/clinic"
)

// issue writes a self-signed certificate for 127.0.0.1 and its key to PEM files.
func issue(t *testing.T, notAfter time.Time) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "EC PRIVATE KEY", keyDER)
}

// The clinic shows a certificate, and may want one of us. Both can be refused.
func TestTLS(t *testing.T) {
	inAnHour := time.Now().Add(time.Hour)
	cert, key := issue(t, inAnHour)
	ours, ourKey := issue(t, inAnHour)
	other, _ := issue(t, inAnHour)
	for name, tc := range map[string]struct {
		clientCA string // that the clinic trusts
		tls      *adapters.TLS
		class    adapters.Class
		says     string
	}{
		"trusted":                        {"", &adapters.TLS{CAFile: cert}, adapters.ClassDelivered, ""},
		"with a client certificate":      {ours, &adapters.TLS{CAFile: cert, CertFile: ours, KeyFile: ourKey}, adapters.ClassDelivered, ""},
		"unknown authority":              {"", &adapters.TLS{}, adapters.ClassAuth, "nothing was sent: TLS: the receiver's certificate comes from an unknown authority: check tls.ca_file"},
		"no TLS to a receiver with TLS":  {"", nil, adapters.ClassUnknown, "sent, but"},
		"another authority of receivers": {"", &adapters.TLS{CAFile: other}, adapters.ClassAuth, "check tls.ca_file"},
	} {
		t.Run(name, func(t *testing.T) {
			c := clinic.StartTLS(t, cert, key, tc.clientCA)
			config := calendar(c.Address)
			config.TLS = tc.tls
			a := newAdapter(t, config)
			for n, id := range []string{"e-1", "e-2"} {
				msg := hearing("created", id, "")
				msg.Key += id
				_, err := a.Deliver(t.Context(), msg)
				if class := adapters.ClassOf(err); class != tc.class || err != nil && !strings.Contains(err.Error(), tc.says) {
					t.Errorf("message %d: %s, want %s: %v", n, class, tc.class, err)
				}
			}
			if held := len(c.Held()); held != map[bool]int{true: 2}[tc.class == adapters.ClassDelivered] {
				t.Errorf("the clinic holds %d messages", held)
			}
		})
	}
	t.Run("TLS to a receiver without it", func(t *testing.T) {
		config := calendar(clinic.Start(t).Address)
		config.TLS, config.Timeout = &adapters.TLS{CAFile: cert}, 200*time.Millisecond
		_, err := newAdapter(t, config).Deliver(t.Context(), hearing("created", "e-1", ""))
		if adapters.ClassOf(err) != adapters.ClassTransient || !strings.Contains(err.Error(), "nothing was sent") {
			t.Errorf("%s: %v", adapters.ClassOf(err), err)
		}
	})
}

// A receiver that refuses our certificate, or the lack of one, says so by an alert. (The
// clinic only closes the connection.)
func TestRefusedClientCertificate(t *testing.T) {
	cert, key := issue(t, time.Now().Add(time.Hour))
	other, otherKey := issue(t, time.Now().Add(time.Hour))
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	authorities := x509.NewCertPool()
	authorities.AddCert(pair.Leaf)
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
				Certificates: []tls.Certificate{pair}, ClientCAs: authorities, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12, MaxVersion: version,
			})
			if err != nil {
				t.Fatal(err)
			}
			var serving sync.WaitGroup
			serving.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					_ = conn.(*tls.Conn).HandshakeContext(context.Background())
					_, _ = io.Copy(io.Discard, conn.(*tls.Conn).NetConn()) // until the sender has read the alert
					_ = conn.Close()
				}
			})
			t.Cleanup(func() { _ = l.Close(); serving.Wait() })
			for what, own := range map[string]adapters.TLS{"none": {CAFile: cert}, "another": {CAFile: cert, CertFile: other, KeyFile: otherKey}} {
				config := calendar(l.Addr().String())
				config.TLS = &own
				a := newAdapter(t, config)
				_, err := a.Deliver(t.Context(), hearing("created", "e-1", ""))
				if adapters.ClassOf(err) != adapters.ClassAuth || !strings.Contains(err.Error(), "the receiver refused the client certificate, or the lack of one (TLS alert: ") {
					t.Errorf("%s: %s: %v", what, adapters.ClassOf(err), err)
				}
			}
		})
	}
}

// What lockstep doctor asks: can it connect, and when do certificates expire.
func TestHosts(t *testing.T) {
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	cert, key := issue(t, expires)
	c := clinic.StartTLS(t, cert, key, "")
	config := calendar(c.Address)
	config.TLS = &adapters.TLS{CAFile: cert, CertFile: cert, KeyFile: key}
	a := newAdapter(t, config)
	hosts := a.Hosts()
	if len(hosts) != 1 || hosts[0].Address != c.Address {
		t.Fatalf("%+v", hosts)
	}
	made, err := hosts[0].Connect(t.Context())
	if err != nil || !made.Reached || !made.Expires.Equal(expires) || !a.CertificateExpires().Equal(expires) {
		t.Errorf("%+v, %v, %v", made, a.CertificateExpires(), err)
	}
	plain := newAdapter(t, calendar(clinic.Start(t).Address))
	if made, err := plain.Hosts()[0].Connect(t.Context()); err != nil || !made.Reached || !made.Expires.IsZero() || !plain.CertificateExpires().IsZero() {
		t.Errorf("%+v, %v", made, err)
	}
	if _, err := newAdapter(t, calendar("127.0.0.1:1")).Hosts()[0].Connect(t.Context()); err == nil {
		t.Error("connected to nobody")
	}
	if len(c.Seen()) != 0 {
		t.Error("something was sent")
	}
}

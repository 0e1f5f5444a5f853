package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// issue writes a certificate for example.org and its key into files.
func issue(t *testing.T, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"example.org"}, IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	writeFile(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})))
}

// client trusts the certificates of a file, and follows no redirect.
func client(t *testing.T, certFile string) *http.Client {
	t.Helper()
	text, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(text)
	return &http.Client{
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted, ServerName: "example.org"}, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func TestTheConsoleIsServedByHTTPSToPeopleWhoLogIn(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	issue(t, cert, key)
	w.env["ANA_TOKEN"], w.env["OPERATOR_URL"] = "ana-token-canary-01", pgtest.AsRole(t, w.env["DATABASE_URL"], "outbox_operator")
	w.configure(fmt.Sprintf(courtYAML, w.court.URL) + fmt.Sprintf(`
listen_tls: {cert_file: %q, key_file: %q}
console:
  users: [{name: ana, token: "${ANA_TOKEN}", may: operate}]
  operator_url: "${OPERATOR_URL}"
`, cert, key))
	p := w.spawn(program(t))
	address := fmt.Sprint(p.says(t, "serving the console")["address"])
	p.says(t, "relay running")
	get := func(c *http.Client, path string, cookies ...*http.Cookie) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range cookies {
			r.AddCookie(one)
		}
		resp, err := c.Do(r)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	c := client(t, cert)
	if status, _ := get(c, "/"); status != http.StatusSeeOther {
		t.Errorf("without a login: %d", status)
	}
	if status, body := get(c, "/livez"); status != http.StatusOK {
		t.Errorf("/livez: %d %s", status, body)
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+address+"/login", strings.NewReader(url.Values{"token": {w.env["ANA_TOKEN"]}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	cookies := resp.Cookies()
	if len(cookies) != 1 || cookies[0].Name != "__Host-lockstep" || !cookies[0].Secure {
		t.Fatalf("cookies %v", cookies)
	}
	waiting.For(t, waitTimeout, "after the login the page shows the sync", func() bool {
		status, body := get(c, "/", cookies...)
		return status == http.StatusOK && strings.Contains(body, "CourtCalendarSync")
	})

	// The certificate is replaced while the relay runs.
	issue(t, cert, key)
	renewed := client(t, cert)
	waiting.For(t, waitTimeout, "the new certificate is used", func() bool { status, _ := get(renewed, "/livez"); return status == http.StatusOK })

	path := w.env["LOCKSTEP_CONFIG"]
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, strings.Replace(string(text), "console:", "console:\n  zone: America/New_York", 1))
	if said := p.says(t, "configuration change not applied"); said["change"] != "console, except its users, needs a restart" {
		t.Errorf("said %v", said)
	}

	// A person is removed while the relay runs.
	if status, _ := get(renewed, "/", cookies...); status != http.StatusOK {
		t.Errorf("ana's login has ended: %d", status)
	}
	writeFile(t, path, strings.Replace(string(text), "name: ana", "name: jo", 1))
	waiting.For(t, waitTimeout, "ana's login ends", func() bool { status, _ := get(renewed, "/", cookies...); return status == http.StatusSeeOther })

	healthcheck := func() result {
		w.configure(fmt.Sprintf("listen: %s\nlisten_tls: {cert_file: %q, key_file: %q}\n", address, cert, key))
		return w.run("healthcheck")
	}
	healthcheck().wants(t, 0, "ready")
	cert, key = filepath.Join(dir, "other.pem"), filepath.Join(dir, "other.key")
	issue(t, cert, key)
	healthcheck().wants(t, 1, "the server has another certificate than")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for line := range p.events {
		if strings.Contains(fmt.Sprint(line), "canary") {
			t.Errorf("the log has a token: %v", line)
		}
	}
	p.exits(t, 0)
}

func TestTheConsoleNeedsNoRelay(t *testing.T) {
	w := newWorld(t)
	w.env["DATABASE_URL"] = pgtest.AsRole(t, w.env["DATABASE_URL"], "outbox_auditor")
	p := w.spawnAs(program(t), "console", "--log-format", "json")
	address := fmt.Sprint(p.says(t, "serving the console")["address"])
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "There is no sync yet") {
		t.Errorf("%s %v\n%s", resp.Status, err, body)
	}

	// From now on, only people who log in may read.
	token := filepath.Join(t.TempDir(), "token")
	writeFile(t, token, "ana-token-canary-02")
	text, err := os.ReadFile(w.env["LOCKSTEP_CONFIG"])
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, w.env["LOCKSTEP_CONFIG"], string(text)+fmt.Sprintf("\nconsole: {users: [{name: ana, token: \"${file:%s}\"}]}\n", token))
	p.says(t, "console.users reloaded; other changes need a restart")
	if resp, err = http.DefaultTransport.RoundTrip(r); err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusSeeOther {
		t.Errorf("without a login: %s", resp.Status)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.exits(t, 0)
	for text, want := range map[string]string{"listen: ''": "listen is empty", "console: {off: true}": "console.off is true"} {
		w.configure(text)
		w.run("console").wants(t, 2, want)
	}
}

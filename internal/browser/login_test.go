package browser

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/pgtest"
)

// users may log in: maria may act, jo may read.
const users = `console: {zone: America/New_York, users: [{name: maria, token: "${MARIA}", may: operate}, {name: jo, token: "${JO}"}], operator_url: "${OPERATOR_URL}"}
`

// usersEnv is the environment with the tokens.
func (w *world) usersEnv() []string {
	w.Helper()
	return []string{"MARIA=" + strings.Repeat("m", 20), "JO=" + strings.Repeat("j", 20), "OPERATOR_URL=" + pgtest.AsRole(w, w.database, "outbox_operator")}
}

// logIn logs a person in, whose token is her first letter, and shows the overview.
func (p *tab) logIn(site, name string) *tab {
	p.Helper()
	return p.visit(site+"/login").fill("token", strings.Repeat(name[:1], 20)).submit("token", 200)
}

func TestAPersonLogsIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := "http://" + w.console(users, w.usersEnv()...)
	p := open(t)
	p.shows(site+"/login", 200, []string{"Log in", "Token"}, "login-light", "login-phone")
	p.visit(site + "/changes?by=maria").says("Log in")
	p.fill("token", "not the token of anybody").submit("token", 403).says("Nobody has this token.").audit("login-wrong-light")
	p.fill("token", strings.Repeat("m", 20)).submit("token", 200).says("Who did what", "maria")
	p.visit(site+"/login").says("You are maria", "may read and act").audit()
	p.click("Log out", 200).says("Log in")
	p.visit(site + "/").says("Log in")
	p.withoutScripts(true).logIn(site, "jo").says("There is no sync yet", "jo")
}

func TestAPersonLogsInOverTLS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cert, key := w.certificate()
	site := "https://" + w.console(fmt.Sprintf("listen_tls: {cert_file: %q, key_file: %q}\n", cert, key)+users, w.usersEnv()...)
	p := open(t)
	p.logIn(site, "maria").says("There is no sync yet", "maria")
	if cookie := eval[string](p, "document.cookie"); cookie != "" {
		t.Errorf("a script can read the cookie %s", cookie)
	}
	p.shows(site+"/changes", 200, []string{"Who did what", "maria"})
	p.visit(site+"/login").click("Log out", 200).says("Log in")
}

// certificate writes a certificate that nobody has signed, and its key.
func (w *world) certificate() (cert, key string) {
	w.Helper()
	cert, key = filepath.Join(w.TempDir(), "cert.pem"), filepath.Join(w.TempDir(), "key.pem")
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		w.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		w.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: signed}, key: {Type: "PRIVATE KEY", Bytes: encoded}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			w.Fatal(err)
		}
	}
	return cert, key
}

package endpoint_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
)

func newRSA(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newEC(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func pemOf(t *testing.T, key any) string {
	t.Helper()
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}))
}

// asserted checks the assertion of a token request as a server does, and returns its
// header and its claims.
func asserted(t *testing.T, form url.Values, key crypto.PublicKey) (header map[string]any, claims jwt.MapClaims) {
	t.Helper()
	if got := form.Get("client_assertion_type"); got != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		t.Errorf("client_assertion_type %q", got)
	}
	claims = jwt.MapClaims{}
	token, err := jwt.ParseWithClaims(form.Get("client_assertion"), claims, func(*jwt.Token) (any, error) { return key, nil }, jwt.WithExpirationRequired())
	if err != nil {
		t.Fatal(err)
	}
	return token.Header, claims
}

func TestPrivateKeyJWT(t *testing.T) {
	rsaKey, p384, p256 := newRSA(t), newEC(t, elliptic.P384()), newEC(t, elliptic.P256())
	ec, err := x509.MarshalECPrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	openssl := "-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n" +
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ec}))
	pkcs1 := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}))
	for name, tc := range map[string]struct {
		pem       string
		algorithm string
		public    crypto.PublicKey
		want      string
	}{
		"SMART with RSA":       {pemOf(t, rsaKey), "", &rsaKey.PublicKey, "RS384"},
		"SMART with EC":        {pemOf(t, p384), "", &p384.PublicKey, "ES384"},
		"NHS":                  {pemOf(t, rsaKey), "RS512", &rsaKey.PublicKey, "RS512"},
		"another curve":        {pemOf(t, p256), "", &p256.PublicKey, "ES256"},
		"PSS":                  {pemOf(t, rsaKey), "PS256", &rsaKey.PublicKey, "PS256"},
		"as openssl writes it": {openssl, "ES384", &p384.PublicKey, "ES384"},
		"PKCS 1":               {pkcs1, "", &rsaKey.PublicKey, "RS384"},
		"a byte-order mark":    {"\uFEFF" + pkcs1, "", &rsaKey.PublicKey, "RS384"},
	} {
		t.Run(name, func(t *testing.T) {
			l, c := newLogin(t), newCourt(t)
			a := post(t, config{URL: c.URL, Auth: adapters.Credentials{
				Kind: adapters.PrivateKeyJWT, TokenURL: l.URL + "/token", ClientID: "agency", Scopes: []string{"system/Appointment.cu"},
				PrivateKey: adapters.Secret(tc.pem), KeyID: "key-1", Algorithm: tc.algorithm,
			}})
			seen := map[any]bool{}
			for i := range 2 {
				c.status = http.StatusUnauthorized // so that the next delivery fetches a token
				if _, err := a.Deliver(t.Context(), message()); adapters.ClassOf(err) != adapters.ClassAuth {
					t.Fatal(err)
				}
				if got, want := c.request.Header.Get("Authorization"), fmt.Sprintf("Bearer token-%d", i+1); got != want {
					t.Errorf("sent %q, want %q", got, want)
				}
				header, claims := asserted(t, l.form, tc.public)
				if diff := cmp.Diff(map[string]any{"alg": tc.want, "typ": "JWT", "kid": "key-1"}, header); diff != "" {
					t.Errorf("header (-want +got):\n%s", diff)
				}
				if claims["iss"] != "agency" || claims["sub"] != "agency" || claims["aud"] != l.URL+"/token" {
					t.Errorf("claims %v", claims)
				}
				if expires, _ := claims.GetExpirationTime(); time.Until(expires.Time) > 5*time.Minute {
					t.Errorf("valid until %s, more than five minutes", expires)
				}
				if id, _ := claims["jti"].(string); len(id) != 36 || seen[id] {
					t.Errorf("jti %q, want a new UUID", id)
				}
				seen[claims["jti"]] = true
				l.form.Del("client_assertion")
				l.form.Del("client_assertion_type")
				want := url.Values{"grant_type": {"client_credentials"}, "scope": {"system/Appointment.cu"}, "client_id": {"agency"}}
				if diff := cmp.Diff(want, l.form); diff != "" {
					t.Errorf("form (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// Google's service accounts: the assertion is the grant, and has the scopes.
func TestJWTBearer(t *testing.T) {
	key := newRSA(t)
	for user, sub := range map[string]any{"": nil, "clerk@agency.example": "clerk@agency.example"} {
		l, c := newLogin(t), newCourt(t)
		a := post(t, config{URL: c.URL, Auth: adapters.Credentials{
			Kind: adapters.JWTBearer, TokenURL: l.URL + "/token", ClientID: "relay@agency.example", Username: user,
			Scopes: []string{"https://calendar.example/auth", "b"}, PrivateKey: adapters.Secret(pemOf(t, key)),
		}})
		if _, err := a.Deliver(t.Context(), message()); err != nil {
			t.Fatal(err)
		}
		if got := c.request.Header.Get("Authorization"); got != "Bearer token-1" {
			t.Errorf("sent %q", got)
		}
		claims := jwt.MapClaims{}
		token, err := jwt.ParseWithClaims(l.form.Get("assertion"), claims, func(*jwt.Token) (any, error) { return &key.PublicKey, nil }, jwt.WithExpirationRequired())
		if err != nil {
			t.Fatal(err)
		}
		if token.Header["alg"] != "RS256" || claims["iss"] != "relay@agency.example" || claims["sub"] != sub ||
			claims["aud"] != l.URL+"/token" || claims["scope"] != "https://calendar.example/auth b" {
			t.Errorf("header %v, claims %v", token.Header, claims)
		}
		l.form.Del("assertion")
		if diff := cmp.Diff(url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}}, l.form); diff != "" {
			t.Errorf("form (-want +got):\n%s", diff)
		}
	}
}

// A new key is used with the next token. While its file is being written, the old one is.
func TestKeyFileIsReadAgain(t *testing.T) {
	first, second := newEC(t, elliptic.P384()), newEC(t, elliptic.P384())
	file := filepath.Join(t.TempDir(), "key.pem")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(pemOf(t, first))
	l, c := newLogin(t), newCourt(t)
	a := post(t, config{URL: c.URL, Auth: adapters.Credentials{
		Kind: adapters.PrivateKeyJWT, TokenURL: l.URL, ClientID: "agency", KeyFile: file, Audience: "https://audience.example",
	}})
	c.status = http.StatusUnauthorized // so that each delivery fetches a token
	signedBy := func(key *ecdsa.PrivateKey) {
		t.Helper()
		if _, err := a.Deliver(t.Context(), message()); adapters.ClassOf(err) != adapters.ClassAuth {
			t.Fatal(err)
		}
		if _, claims := asserted(t, l.form, &key.PublicKey); claims["aud"] != "https://audience.example" {
			t.Errorf("aud %v", claims["aud"])
		}
	}
	signedBy(first)
	write(pemOf(t, second)[:60])
	signedBy(first)
	write(pemOf(t, second))
	signedBy(second)
}

func TestPasswordGrant(t *testing.T) {
	for name, tc := range map[string]struct {
		clientID, secret string
		want             url.Values
	}{
		"without a client":  {"", "", url.Values{}},
		"a public client":   {"agency", "", url.Values{"client_id": {"agency"}}},
		"a client's secret": {"agency", "client-canary", url.Values{}},
	} {
		t.Run(name, func(t *testing.T) {
			l, c := newLogin(t), newCourt(t)
			a := post(t, config{URL: c.URL, Auth: adapters.Credentials{
				Kind: adapters.PasswordGrant, TokenURL: l.URL, ClientID: tc.clientID, ClientSecret: adapters.Secret(tc.secret),
				Username: "clerk", Password: "p&ss", Scopes: []string{"openid", "roles"},
			}})
			if _, err := a.Deliver(t.Context(), message()); err != nil {
				t.Fatal(err)
			}
			if got := c.request.Header.Get("Authorization"); got != "Bearer token-1" {
				t.Errorf("sent %q", got)
			}
			tc.want["grant_type"], tc.want["scope"] = []string{"password"}, []string{"openid roles"}
			tc.want["username"], tc.want["password"] = []string{"clerk"}, []string{"p&ss"}
			if diff := cmp.Diff(tc.want, l.form); diff != "" {
				t.Errorf("form (-want +got):\n%s", diff)
			}
		})
	}
}

func TestARefusedPasswordIsNotRepeated(t *testing.T) {
	l, c := newLogin(t), newCourt(t)
	l.answer = status(400, `{"error":"invalid_grant","error_description":"user-canary is wrong, and user%2Dcanary"}`)
	a := post(t, config{URL: c.URL, Auth: adapters.Credentials{Kind: adapters.PasswordGrant, TokenURL: l.URL, Username: "clerk", Password: "user-canary"}})
	_, err := a.Deliver(t.Context(), message())
	if adapters.ClassOf(err) != adapters.ClassAuth || !strings.Contains(err.Error(), "invalid_grant (a part is not shown, because it repeats what was sent)") || strings.Contains(err.Error(), "user-canary") {
		t.Errorf("got %v", err)
	}
}

// lease is HMCTS's service-auth-provider. Its tokens are valid for the time that is left.
type lease struct {
	*httptest.Server
	requests atomic.Int32
	last     map[string]string
	left     time.Duration
	answer   func(w http.ResponseWriter, token string)
}

func newLease(t *testing.T) *lease {
	t.Helper()
	l := &lease{left: 4 * time.Hour, answer: func(w http.ResponseWriter, token string) {
		w.Header().Set("Content-Type", "text/plain;charset=UTF-8")
		_, _ = io.WriteString(w, token)
	}}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.requests.Add(1)
		l.last = nil
		if r.Header.Get("Content-Type") != "application/json" || json.NewDecoder(r.Body).Decode(&l.last) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS512, jwt.MapClaims{"sub": l.last["microservice"], "exp": time.Now().Add(l.left).Unix(), "n": l.requests.Load()}).SignedString([]byte("s"))
		if err != nil {
			t.Error(err)
		}
		l.answer(w, token)
	}))
	t.Cleanup(l.Close)
	return l
}

// HMC wants the user's bearer token, and the service's token in ServiceAuthorization.
func TestServiceTokenBesideTheBearer(t *testing.T) {
	l, s, c := newLogin(t), newLease(t), newCourt(t)
	a := post(t, config{URL: c.URL, Timeout: 5 * time.Second, Auth: adapters.Credentials{
		Kind: adapters.PasswordGrant, TokenURL: l.URL, Username: "clerk", Password: "p",
		Second: &adapters.Credentials{Kind: adapters.ServiceLease, TokenURL: s.URL + "/lease", ClientID: "agency", ClientSecret: "gezd gnbv gy3t qojq"},
	}})
	if got, want := a.AttemptTimeout(), 15*time.Second; got != want {
		t.Errorf("an attempt may take %s, want %s: the request, and ten seconds for both tokens", got, want)
	}
	deliver := func() string {
		t.Helper()
		if _, err := a.Deliver(t.Context(), message()); err != nil && c.status != http.StatusUnauthorized {
			t.Fatal(err)
		}
		return c.request.Header.Get("Authorization") + " " + c.request.Header.Get("ServiceAuthorization")
	}
	first := deliver()
	if !strings.HasPrefix(first, "Bearer token-1 Bearer eyJ") {
		t.Errorf("sent %s", first)
	}
	if s.last["microservice"] != "agency" || len(s.last["oneTimePassword"]) != 6 || len(s.last) != 2 {
		t.Errorf("asked with %v", s.last)
	}
	if again := deliver(); again != first || s.requests.Load() != 1 {
		t.Errorf("sent %s after %d requests, want the tokens that are kept", again, s.requests.Load())
	}
	c.status = http.StatusUnauthorized // nobody knows which of them was refused
	deliver()
	c.status = http.StatusCreated
	s.left = 5 * time.Second
	if renewed := deliver(); !strings.HasPrefix(renewed, "Bearer token-2 Bearer eyJ") || s.requests.Load() != 2 {
		t.Errorf("sent %s after %d leases, want new tokens", renewed, s.requests.Load())
	}
	if deliver(); s.requests.Load() != 3 {
		t.Errorf("%d leases: a token with five seconds left is not renewed", s.requests.Load())
	}
}

func TestLeaseFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(w http.ResponseWriter, otp string)
		text   string
	}{
		"wrong password": {func(w http.ResponseWriter, otp string) {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = fmt.Fprintf(w, `{"error":"invalid","error_description":"one-time password %s"}`, otp)
		}, "answered HTTP 401: invalid (a part is not shown, because it repeats what was sent)"},
		"a page":      {func(w http.ResponseWriter, _ string) { _, _ = io.WriteString(w, "<html>") }, "its body is a page of HTML or XML, not a JWT"},
		"other JSON":  {func(w http.ResponseWriter, _ string) { _, _ = io.WriteString(w, `{"token":"x"}`) }, "its body is JSON, not a JWT"},
		"no token":    {func(http.ResponseWriter, string) {}, "its body is empty, not a JWT"},
		"other words": {func(w http.ResponseWriter, _ string) { _, _ = io.WriteString(w, "try later") }, "its body is text of another kind, not a JWT"},
	} {
		t.Run(name, func(t *testing.T) {
			s, c := newLease(t), newCourt(t)
			s.answer = func(w http.ResponseWriter, _ string) { tc.answer(w, s.last["oneTimePassword"]) }
			a := post(t, config{URL: c.URL, Auth: adapters.Credentials{Kind: adapters.ServiceLease, TokenURL: s.URL, ClientID: "agency", ClientSecret: "GEZDGNBVGY3TQOJQ"}})
			_, err := a.Deliver(t.Context(), message())
			if adapters.ClassOf(err) != adapters.ClassAuth || !strings.Contains(err.Error(), tc.text) || c.request != nil {
				t.Errorf("got %v (%s), want %q", err, adapters.ClassOf(err), tc.text)
			}
		})
	}
}

func TestLeaseWithAMarkOrInQuotes(t *testing.T) {
	for _, form := range []string{"\uFEFF%s\r\n", `"%s"`} {
		s, c := newLease(t), newCourt(t)
		s.answer = func(w http.ResponseWriter, token string) { _, _ = fmt.Fprintf(w, form, token) }
		a := post(t, config{URL: c.URL, Auth: adapters.Credentials{Kind: adapters.ServiceLease, TokenURL: s.URL, ClientID: "agency", ClientSecret: "GEZDGNBVGY3TQOJQ"}})
		if _, err := a.Deliver(t.Context(), message()); err != nil || !strings.HasPrefix(c.request.Header.Get("ServiceAuthorization"), "Bearer eyJ") {
			t.Errorf("%q: sent %q, %v", form, c.request.Header.Get("ServiceAuthorization"), err)
		}
	}
}

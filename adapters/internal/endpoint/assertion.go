package endpoint

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/oauth2"

	"github.com/hms-mkt/lockstep/adapters"
)

const (
	// assertionLife is how long an assertion is valid. SMART Backend Services and the
	// NHS allow five minutes at most. One less leaves room for a clock that is slow.
	assertionLife = 4 * time.Minute

	// maxKey bounds a file with a private key, in bytes.
	maxKey = 64 << 10
)

// newAssertion returns a grant with a signed JWT. With private_key_jwt, the JWT says who
// the client is, for the client credentials grant (RFC 7523, 2.2). With jwt_bearer, it is
// the grant itself (2.1). Each request has a new one, with a new jti: SMART Backend
// Services accept each jti once.
func newAssertion(a adapters.Credentials, client *http.Client) (grant, error) {
	key, err := readKey(a)
	if err != nil {
		return grant{}, err
	}
	algorithm := cmp.Or(a.Algorithm, defaultAlgorithm(a.Kind, key))
	if !slices.Contains(algorithms, algorithm) {
		return grant{}, fmt.Errorf("algorithm: %q is not one of %s", algorithm, strings.Join(algorithms, ", "))
	}
	method := jwt.GetSigningMethod(algorithm)
	sign := func(key any) (string, error) {
		t := jwt.NewWithClaims(method, assertedClaims(a, time.Now()))
		if a.KeyID != "" {
			t.Header["kid"] = a.KeyID
		}
		return t.SignedString(key)
	}
	if _, err := sign(key); err != nil {
		return grant{}, fmt.Errorf("algorithm: %s does not fit the key: RS… and PS… need an RSA key, ES256, ES384 and ES512 an EC key with 256, 384 and 521 bits", algorithm)
	}
	var sent string
	g := newOAuth2(formOf(a), client, func() (url.Values, error) {
		if next, err := readKey(a); err == nil { // a file that is being replaced: the last key
			key = next
		}
		if sent, err = sign(key); err != nil {
			return nil, err
		}
		if a.Kind == adapters.JWTBearer {
			return url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {sent}}, nil
		}
		return url.Values{
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
			"client_assertion":      {sent},
		}, nil
	})
	g.style = oauth2.AuthStyleInParams
	g.secrets = func() []string { return []string{sent} }
	return g, nil
}

// assertedClaims are the claims of an assertion (RFC 7523, 3). With jwt_bearer the scopes
// are a claim, as Google wants it, and the subject is the user for whom the client acts.
func assertedClaims(a adapters.Credentials, now time.Time) jwt.MapClaims {
	claims := jwt.MapClaims{
		"iss": a.ClientID,
		"sub": a.ClientID,
		"aud": a.Audience, // text: not all servers read a list
		"jti": newID(),
		"iat": now.Unix(),
		"exp": now.Add(assertionLife).Unix(),
	}
	if a.Kind == adapters.JWTBearer {
		claims["sub"] = a.Username
		if a.Username == "" {
			delete(claims, "sub")
		}
		if len(a.Scopes) > 0 {
			claims["scope"] = strings.Join(a.Scopes, " ")
		}
	}
	return claims
}

// formOf is a without what the assertion says instead of the form.
func formOf(a adapters.Credentials) adapters.Credentials {
	if a.Kind == adapters.JWTBearer {
		a.ClientID, a.Scopes = "", nil
	}
	return a
}

// algorithms are the algorithms of assertions. All are asymmetric.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"}

// defaultAlgorithm is the algorithm of a key. SMART Backend Services require RS384 and
// ES384, Google takes RS256 only.
func defaultAlgorithm(kind adapters.CredentialsKind, key any) string {
	if ec, ok := key.(*ecdsa.PrivateKey); ok {
		return map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[ec.Curve.Params().BitSize]
	}
	if kind == adapters.JWTBearer {
		return "RS256"
	}
	return "RS384"
}

// readKey returns the private key of a. Its errors do not repeat any of it.
func readKey(a adapters.Credentials) (any, error) {
	field, text := "private_key", []byte(a.PrivateKey.Reveal())
	switch {
	case a.PrivateKey == "" && a.KeyFile == "":
		return nil, errors.New("key_file: is required, or private_key")
	case a.PrivateKey != "" && a.KeyFile != "":
		return nil, errors.New("key_file: is set together with private_key: remove one of them")
	case a.KeyFile != "":
		field = "key_file"
		f, err := os.Open(a.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("key_file: %w", err)
		}
		defer func() { _ = f.Close() }() // it was only read
		if text, err = io.ReadAll(io.LimitReader(f, maxKey)); err != nil {
			return nil, fmt.Errorf("key_file: %w", err)
		}
	}
	for block, rest := pem.Decode(bytes.TrimPrefix(text, []byte("\uFEFF"))); block != nil; block, rest = pem.Decode(rest) {
		if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			return key, nil
		}
		if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
			return key, nil
		}
		if key, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
			return key, nil
		}
	}
	if bytes.Contains(text, []byte("ENCRYPTED")) {
		return nil, fmt.Errorf("%s: the key is encrypted: give it without a passphrase, in a file that only this user may read", field)
	}
	return nil, fmt.Errorf("%s: has no RSA or EC private key in PEM form (-----BEGIN PRIVATE KEY-----)", field)
}

// newID returns a random UUID (RFC 9562, 5.4).
func newID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}

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

// newAssertion returns the client credentials grant of a client that identifies itself
// by a signed JWT (RFC 7523, 2.2 and 3). Each request has a new one, with a new jti:
// SMART Backend Services accept each jti once.
func newAssertion(a adapters.Credentials, client *http.Client) (grant, error) {
	key, err := readKey(a)
	if err != nil {
		return grant{}, err
	}
	algorithm := cmp.Or(a.Algorithm, defaultAlgorithm(key))
	if !slices.Contains(algorithms, algorithm) {
		return grant{}, fmt.Errorf("algorithm: %q is not one of %s", algorithm, strings.Join(algorithms, ", "))
	}
	method := jwt.GetSigningMethod(algorithm)
	sign := func(key any) (string, error) {
		now := time.Now()
		t := jwt.NewWithClaims(method, jwt.MapClaims{
			"iss": a.ClientID,
			"sub": a.ClientID,
			"aud": a.Audience, // text: not all servers read a list
			"jti": newID(),
			"iat": now.Unix(),
			"exp": now.Add(assertionLife).Unix(),
		})
		if a.KeyID != "" {
			t.Header["kid"] = a.KeyID
		}
		return t.SignedString(key)
	}
	if _, err := sign(key); err != nil {
		return grant{}, fmt.Errorf("algorithm: %s does not fit the key: RS… and PS… need an RSA key, ES256, ES384 and ES512 an EC key with 256, 384 and 521 bits", algorithm)
	}
	var sent string
	g := newOAuth2(a, client, func() (url.Values, error) {
		if next, err := readKey(a); err == nil { // a file that is being replaced: the last key
			key = next
		}
		if sent, err = sign(key); err != nil {
			return nil, err
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

// algorithms are the algorithms of assertions. All are asymmetric.
var algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"}

// defaultAlgorithm is the algorithm of a key. SMART Backend Services require RS384 and
// ES384.
func defaultAlgorithm(key any) string {
	if ec, ok := key.(*ecdsa.PrivateKey); ok {
		return map[int]string{256: "ES256", 384: "ES384", 521: "ES512"}[ec.Curve.Params().BitSize]
	}
	return "RS384"
}

// readKey returns the private key of a. Its errors do not repeat any of it.
func readKey(a adapters.Credentials) (any, error) {
	field, text := "private_key", []byte(a.PrivateKey.Reveal())
	switch {
	case a.PrivateKey == "" && a.KeyFile == "":
		return nil, errors.New("key_file: is required for kind private_key_jwt, or private_key")
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

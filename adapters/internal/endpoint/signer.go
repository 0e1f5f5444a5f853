package endpoint

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/exchange"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// The encodings of a secret or a signature.
const (
	encodingText   = "text"
	encodingHex    = "hex"
	encodingBase64 = "base64"
)

// signer signs each request with an HMAC (RFC 2104) and sends the signature in headers.
type signer struct {
	sum     func(text string) string // the signature; a function, so that fmt does not see the secret
	sign    placeholder.Template
	headers []header // with the value of the signature's own header
	now     func() time.Time
}

var hashes = map[string]func() hash.Hash{"sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New}

// ofRequest are the placeholders that both the signed text and headers may have.
var ofRequest = []string{
	"method", "host", "path", "query", "timestamp", "date", "nonce", "content_type", "sha256", "sha256_base64",
}

func newSigner(path string, a adapters.Credentials) (authorizer, error) {
	s := &signer{now: time.Now}
	var errs []error
	wrong := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s.%s: "+format, append([]any{path, field}, args...)...))
	}
	newHash, ok := hashes[a.Algorithm]
	if !ok {
		wrong("algorithm", "%q is not one of sha1, sha256, sha512", a.Algorithm)
	}
	var encode func([]byte) string
	switch a.Encoding {
	case encodingHex:
		encode = hex.EncodeToString
	case encodingBase64:
		encode = base64.StdEncoding.EncodeToString
	default:
		wrong("encoding", "%q is not one of hex, base64", a.Encoding)
	}
	key, err := decodeSecret(a)
	if err != nil {
		errs = append(errs, fmt.Errorf("%s.%w", path, err))
	}
	s.sum = func(text string) string {
		mac := hmac.New(newHash, key)
		mac.Write([]byte(text))
		return encode(mac.Sum(nil))
	}
	parse := func(field, text, also string) placeholder.Template {
		known := append(slices.Clone(ofRequest), also)
		t, err := placeholder.Parse(text, func(string) bool { return true })
		if err != nil {
			wrong(field, "%w", err)
		}
		for _, name := range t.Names() {
			if !slices.Contains(known, name) {
				wrong(field, "{%s} is not a placeholder that is allowed here: write one of {%s}", name, strings.Join(known, "}, {"))
			}
		}
		return t
	}
	s.sign = parse("sign", a.Sign, "body")
	values := map[string]string{a.Header: a.Value}
	for name, value := range a.Headers {
		values[name] = value.Reveal()
	}
	signed := false
	for _, name := range slices.Sorted(maps.Keys(values)) {
		field := fmt.Sprintf("headers[%q]", name)
		if name == a.Header {
			field = "value"
		}
		t := parse(field, values[name], "signature")
		if err := placeholder.Plain(values[name]); err != nil {
			wrong(field, "%w", err)
		}
		signed = signed || slices.Contains(t.Names(), "signature")
		s.headers = append(s.headers, header{http.CanonicalHeaderKey(name), t})
	}
	if !signed {
		wrong("value", "has no {signature}, so the signature would not be sent")
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

// decodeSecret returns the bytes of the secret. Its error does not repeat it.
func decodeSecret(a adapters.Credentials) (key []byte, err error) {
	switch a.SecretEncoding {
	case encodingText:
		key = []byte(a.Secret.Reveal())
	case encodingHex:
		key, err = hex.DecodeString(a.Secret.Reveal())
	case encodingBase64:
		key, err = base64.StdEncoding.DecodeString(a.Secret.Reveal())
	default:
		return nil, fmt.Errorf("secret_encoding: %q is not one of text, base64, hex", a.SecretEncoding)
	}
	if err != nil {
		return nil, fmt.Errorf("secret: is not %s, as secret_encoding says", a.SecretEncoding)
	}
	return key, nil
}

func (s *signer) authorize(_ context.Context, r exchange.Request) (func(), error) {
	s.set(r, s.sum)
	return func() {}, nil
}

func (s *signer) show(r exchange.Request) {
	s.set(r, func(string) string { return masked })
}

// set sets the headers with the signature that sum makes.
func (s *signer) set(r exchange.Request, sum func(text string) string) {
	at := s.now().UTC()
	digest := sha256.Sum256(r.Body)
	values := map[string]string{
		"method":        r.Method,
		"host":          r.URL.Host,
		"path":          r.URL.EscapedPath(),
		"query":         r.URL.RawQuery,
		"timestamp":     strconv.FormatInt(at.Unix(), 10),
		"date":          at.Format(http.TimeFormat),
		"nonce":         rand.Text(),
		"content_type":  r.Header.Get("Content-Type"),
		"sha256":        hex.EncodeToString(digest[:]),
		"sha256_base64": base64.StdEncoding.EncodeToString(digest[:]),
		"body":          string(r.Body),
	}
	fill := func(t placeholder.Template) string {
		text, _ := t.Fill(func(name string) (string, error) { return values[name], nil }) // fails only if the function does
		return text
	}
	values["signature"] = sum(fill(s.sign))
	for _, h := range s.headers {
		r.Header.Set(h.name, fill(h.value))
	}
}

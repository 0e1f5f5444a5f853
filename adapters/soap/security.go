package soap

import (
	"crypto/rand"
	"crypto/sha1" // as the profile prescribes
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Identifiers of the OASIS Username Token Profile 1.0 and of the message
// security specification that it extends.
const (
	passwordText   = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#PasswordText"
	passwordDigest = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0#PasswordDigest"
	base64Binary   = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#Base64Binary"
)

// timeFormat is an xs:dateTime in UTC. More than milliseconds need not be
// understood (Web Services Security 1.0, 10).
const timeFormat = "2006-01-02T15:04:05.000Z"

const masked = "***"

// token is the UsernameToken of one attempt, or nil without security. Receivers
// remember nonces and refuse a second use.
type token struct {
	username, kind, password string // password as it is sent
	nonce                    string // base64
	created, expires         time.Time
	plain                    string // never sent with a digest
}

// newToken makes the token of an attempt at now. The nonce must be random.
func newToken(s Security, nonce []byte, now time.Time) *token {
	t := &token{
		username: s.Username,
		kind:     passwordText,
		plain:    s.Password.Reveal(),
		nonce:    base64.StdEncoding.EncodeToString(nonce),
		created:  now.UTC().Truncate(time.Millisecond),
	}
	t.password = t.plain
	if s.PasswordType == Digest {
		t.kind = passwordDigest
		t.password = digest(nonce, t.created.Format(timeFormat), t.plain)
	}
	if s.Timestamp != 0 {
		t.expires = t.created.Add(s.Timestamp)
	}
	return t
}

// digest is Base64(SHA-1(nonce + created + password)), Username Token Profile 1.0, 3.1.
func digest(nonce []byte, created, password string) string {
	sum := sha1.Sum([]byte(string(nonce) + created + password))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// newNonce returns 16 random bytes.
func newNonce() []byte {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // never fails
	return nonce
}

// mask replaces the secrets of t, so that it may be shown.
func (t *token) mask() {
	if t == nil {
		return
	}
	t.password, t.nonce = masked, masked
}

// secrets are the values that no text may repeat.
func (t *token) secrets() []string {
	if t == nil {
		return nil
	}
	return []string{t.username, t.plain, t.password, t.nonce}
}

func (t *token) write(w *writer, version string) {
	must := "1"
	if version == Version12 {
		must = "true"
	}
	w.raw("<wsse:Security")
	w.attr("soap:mustUnderstand", must)
	w.raw(">")
	created := t.created.Format(timeFormat)
	if !t.expires.IsZero() {
		w.raw("<wsu:Timestamp>")
		w.element("wsu:Created", created)
		w.element("wsu:Expires", t.expires.Format(timeFormat))
		w.raw("</wsu:Timestamp>")
	}
	w.raw("<wsse:UsernameToken>")
	w.element("wsse:Username", t.username)
	w.element("wsse:Password", t.password, "Type", t.kind)
	w.element("wsse:Nonce", t.nonce, "EncodingType", base64Binary)
	w.element("wsu:Created", created)
	w.raw("</wsse:UsernameToken></wsse:Security>\n")
}

func (s Security) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf("security."+format, args...)) }
	switch s.Kind {
	case NoSecurity:
		for _, f := range []struct {
			field string
			set   bool
		}{
			{"username", s.Username != ""},
			{"password", s.Password != ""},
			{"password_type", s.PasswordType != ""},
			{"timestamp", s.Timestamp != 0},
		} {
			if f.set {
				wrong("%s: belongs to kind %s; set security.kind", f.field, UsernameToken)
			}
		}
		return errors.Join(errs...)
	case UsernameToken:
	default:
		wrong("kind: %q is not one of %s, %s", s.Kind, NoSecurity, UsernameToken)
		return errors.Join(errs...)
	}
	switch {
	case s.Username == "":
		wrong("username: is required for kind %s", s.Kind)
	case xmlText(s.Username) != nil:
		wrong("username: %w", xmlText(s.Username))
	}
	switch {
	case s.Password == "":
		wrong("password: is required for kind %s", s.Kind)
	case xmlText(s.Password.Reveal()) != nil:
		wrong("password: has a character that XML 1.0 cannot carry")
	}
	if s.PasswordType != Digest && s.PasswordType != Text {
		wrong("password_type: %q is not one of %s, %s", s.PasswordType, Digest, Text)
	}
	if s.Timestamp != 0 && (s.Timestamp < MinTimestamp || s.Timestamp > MaxTimestamp) {
		wrong("timestamp: %s is not from %s to %s", s.Timestamp, MinTimestamp, strings.TrimSuffix(MaxTimestamp.String(), "0m0s"))
	}
	return errors.Join(errs...)
}

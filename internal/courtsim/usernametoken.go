package courtsim

import (
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base64"
	"strings"
	"time"
)

// security is the part of the header block of WS-Security 1.0 that the court reads.
type security struct {
	Token *struct {
		Username string
		Password struct {
			Type string `xml:"Type,attr"`
			Text string `xml:",chardata"`
		}
		Nonce   string
		Created string
	} `xml:"UsernameToken"`
	Timestamp *struct {
		Expires string
	}
}

// freshness is the largest difference between a token's time and now.
const freshness = 5 * time.Minute

// guard requires a UsernameToken. The Court's lock guards its nonces.
type guard struct {
	username, password string // without a password, no token is required

	began      time.Time // of the young ones
	young, old map[string]bool
}

// refuses returns the kind of Fault and the reason for a message that is refused,
// "" for others.
func (g *guard) refuses(s *security, now time.Time) (kind, reason string) {
	if g.password == "" {
		return "", ""
	}
	const failed = "FailedAuthentication"
	if s == nil || s.Token == nil {
		return failed, "A UsernameToken is required."
	}
	t := s.Token
	given, wanted := t.Password.Text, g.password
	digest := strings.HasSuffix(t.Password.Type, "#PasswordDigest")
	if digest {
		nonce, err := base64.StdEncoding.DecodeString(t.Nonce)
		if err != nil || len(nonce) == 0 {
			return failed, "The token's nonce is not base64."
		}
		sum := sha1.Sum(append(nonce, t.Created+g.password...))
		wanted = base64.StdEncoding.EncodeToString(sum[:])
	}
	if t.Username != g.username || subtle.ConstantTimeCompare([]byte(given), []byte(wanted)) != 1 {
		return failed, "The username or the password is wrong."
	}
	if s.Timestamp != nil {
		if end, err := time.Parse(time.RFC3339, s.Timestamp.Expires); err != nil || now.After(end) {
			return "MessageExpired", "The message has expired."
		}
	}
	if !digest {
		return "", ""
	}
	created, err := time.Parse(time.RFC3339, t.Created)
	if err != nil || now.Sub(created).Abs() > freshness {
		return "MessageExpired", "The token was not created within five minutes of now."
	}
	if g.used(t.Nonce, now) {
		return failed, "The token's nonce was used before."
	}
	return "", ""
}

// used remembers a nonce for at least as long as its token is fresh.
func (g *guard) used(nonce string, now time.Time) bool {
	if now.Sub(g.began) > 2*freshness {
		g.began, g.old, g.young = now, g.young, map[string]bool{}
	}
	before := g.young[nonce] || g.old[nonce]
	g.young[nonce] = true
	return before
}

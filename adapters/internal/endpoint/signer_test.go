package endpoint_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

// The example of GitHub's documentation of X-Hub-Signature-256.
func TestHMACOfTheBody(t *testing.T) {
	c := newCourt(t)
	a := post(t, config{URL: c.URL, Auth: adapters.Credentials{
		Kind: adapters.HMAC, Secret: "It's a Secret to Everybody", Header: "X-Hub-Signature-256", Value: "sha256={signature}",
	}})
	msg := message()
	msg.Body = []byte("Hello, World!")
	if _, err := a.Deliver(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	const want = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
	if got := c.request.Header.Get("X-Hub-Signature-256"); got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
}

func TestHMACByTemplate(t *testing.T) {
	c := newCourt(t)
	a := post(t, config{URL: c.URL + "/hearings/{key}?court=NY", Auth: adapters.Credentials{
		Kind: adapters.HMAC, Secret: adapters.Secret(base64.StdEncoding.EncodeToString([]byte("key"))), SecretEncoding: "base64",
		Algorithm: "sha512", Encoding: "base64",
		Sign:    "{method}\n{path}?{query}\n{date};{host};{sha256_base64}\n{timestamp}{nonce}{sha256}{content_type}",
		Value:   "HMAC id=agency, nonce={nonce}, signature={signature}",
		Headers: map[string]adapters.Secret{"X-Date": "{date}", "x-timestamp": "{timestamp}", "X-Content-SHA256": "{sha256_base64}"},
	}})
	if _, err := a.Deliver(t.Context(), message()); err != nil {
		t.Fatal(err)
	}
	h := c.request.Header
	got := regexp.MustCompile(`^HMAC id=agency, nonce=([A-Z2-7]{26}), signature=(.+)$`).FindStringSubmatch(h.Get("Authorization"))
	if got == nil {
		t.Fatalf("sent %q", h.Get("Authorization"))
	}
	if _, err := http.ParseTime(h.Get("X-Date")); err != nil {
		t.Error(err)
	}
	digest := sha256.Sum256([]byte(c.sent))
	encoded := base64.StdEncoding.EncodeToString(digest[:])
	if h.Get("X-Content-Sha256") != encoded {
		t.Errorf("digest %q, want %q", h.Get("X-Content-Sha256"), encoded)
	}
	mac := hmac.New(sha512.New, []byte("key"))
	mac.Write([]byte("POST\n/hearings/hearing%207?court=NY\n" + h.Get("X-Date") + ";" + strings.TrimPrefix(c.URL, "http://") + ";" + encoded + "\n" +
		h.Get("X-Timestamp") + got[1] + hex.EncodeToString(digest[:]) + h.Get("Content-Type")))
	if want := base64.StdEncoding.EncodeToString(mac.Sum(nil)); got[2] != want {
		t.Errorf("signature %s, want %s", got[2], want)
	}
}

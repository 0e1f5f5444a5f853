package soap

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

// The example of the profile does not have its password. These examples come from the
// ONVIF Application Programmer's Guide, 6.1.1.2, and from openssl.
func TestPasswordDigest(t *testing.T) {
	for name, tc := range map[string]struct{ nonce, created, password, want string }{
		"ONVIF": {"LKqI6G/AikKCQrN0zqZFlg==", "2010-09-16T07:50:45Z", "userpassword", "tuOSpGlFlIXsozq4HFNeeGeFLEI="},
		"UTF-8": {"MDEyMzQ1Njc4OWFiY2RlZg==", "2027-03-01T13:30:00.123Z", "pässwörd", "gYnBrJb0PXVUCHtEGgGiwS9QXFs="},
	} {
		t.Run(name, func(t *testing.T) {
			nonce, err := base64.StdEncoding.DecodeString(tc.nonce)
			if err != nil {
				t.Fatal(err)
			}
			if got := digest(nonce, tc.created, tc.password); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestEveryAttemptHasAnotherNonceAndDigest(t *testing.T) {
	c := hearings()
	c.Security = Security{Kind: UsernameToken, Username: "agency", Password: "s3cr3t"}
	a, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close() }()
	nonces, digests := map[string]bool{}, map[string]bool{}
	for range 100 {
		token := a.attempt()
		nonce, err := base64.StdEncoding.DecodeString(token.nonce)
		if err != nil || len(nonce) != 16 {
			t.Fatalf("the nonce %q is not 16 bytes: %v", token.nonce, err)
		}
		nonces[token.nonce], digests[token.password] = true, true
		if age := time.Since(token.created); age < 0 || age > time.Minute {
			t.Errorf("created %s ago", age)
		}
	}
	if len(nonces) != 100 || len(digests) != 100 {
		t.Errorf("%d nonces and %d digests for 100 attempts", len(nonces), len(digests))
	}
}

func TestPreviewMasksNonceDigestAndPassword(t *testing.T) {
	for _, passwordType := range []string{Text, Digest} {
		t.Run(passwordType, func(t *testing.T) {
			a := fixed(t, hearings().in(func(c *Config) {
				c.Security = Security{Kind: UsernameToken, Username: "agency", Password: "s3cr3t", PasswordType: passwordType}
			}))
			token := a.attempt()
			preview, err := a.Preview(hearing(`{"case":"NY-07"}`))
			if err != nil {
				t.Fatal(err)
			}
			body := string(preview.Body)
			for _, secret := range []string{token.plain, token.password, token.nonce} {
				if strings.Contains(body, secret) || strings.Contains(preview.URL, secret) {
					t.Errorf("%s is in %s\n%s", secret, preview.URL, body)
				}
			}
			for _, want := range []string{">***</wsse:Password>", ">***</wsse:Nonce>", "<wsse:Username>agency<", "<cal:reference>NY-07<"} {
				if !strings.Contains(body, want) {
					t.Errorf("%s is not in\n%s", want, body)
				}
			}
			if preview.Method != "POST" || preview.ContentType != "text/xml; charset=utf-8" || preview.URL != "https://clinic.example.gov/CalendarService?key=***" {
				t.Errorf("got %s %s, %s", preview.Method, preview.URL, preview.ContentType)
			}
		})
	}
}

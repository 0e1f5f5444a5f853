package webhook

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

// The vectors of the reference libraries.
const (
	vectorID      = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	vectorTime    = 1614265330
	vectorBody    = `{"test": 2432232314}`
	vectorHMAC    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	vectorEd25519 = "whsk_VEVTVFNJR05JTkdLRVlET05PVFVTRVRISVNGT1JBTlk="
)

func TestSignatures(t *testing.T) {
	for name, tc := range map[string]struct{ secret, want string }{
		"HMAC-SHA256": {vectorHMAC, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
		"ed25519":     {vectorEd25519, "v1a,tQ9V2XOqn7jL/DQenEFpqIugdBVtiMmER5mhSkXBNwM0mkATuDe6KYYUuxqtaiHeYGb7KaaBRdM5WqyeFiL8Ag=="},
	} {
		t.Run(name, func(t *testing.T) {
			sign, err := parseSecret(tc.secret)
			if err != nil {
				t.Fatal(err)
			}
			if got := sign(content(vectorID, time.Unix(vectorTime, 0), []byte(vectorBody))); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestKeyWithItsPublicHalfSignsAsTheSeedAlone(t *testing.T) {
	seed, err := parseSecret(vectorEd25519)
	if err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed([]byte("TESTSIGNINGKEYDONOTUSETHISFORANY"))
	whole, err := parseSecret(secretPrefix + base64.StdEncoding.EncodeToString(key))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := seed([]byte("x")), whole([]byte("x")); a != b {
		t.Errorf("%s and %s", a, b)
	}
}

// What is signed is the example of the specification, "Signature scheme".
func TestContentIsThatOfTheSpecification(t *testing.T) {
	const want = `msg_2KWPBgLlAfxdpx2AI54pPJ85f4W.1674087231.{"type":"contact.created","timestamp":"2022-11-03T20:26:10.344522Z","data":{"id":"1f81eb52-5198-4599-803e-771906343485"}}`
	msg := adapters.Message{
		IdempotencyKey: "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", OccurredAt: time.Date(2022, 11, 3, 20, 26, 10, 344_522_000, time.UTC),
		Body: []byte(`{"id":"1f81eb52-5198-4599-803e-771906343485"}`),
	}
	body, _ := Standard.render(msg, "contact.created", "")
	if got := string(content(msg.IdempotencyKey, time.Unix(1674087231, 999_999_999), body)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func base64Of(n int) string { return base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", n))) }

func TestSecretsThatAreAccepted(t *testing.T) {
	for _, secret := range []string{"whsec_" + base64Of(24), "whsec_" + base64Of(64), "whsk_" + base64Of(32)} {
		if _, err := parseSecret(secret); err != nil {
			t.Errorf("%s: %v", secret, err)
		}
	}
}

func TestSecretsThatAreRefused(t *testing.T) {
	const canary = "canaryAAAA"
	for name, tc := range map[string]struct {
		secrets []adapters.Secret
		want    string
	}{
		"none":                  {nil, "secrets: write at least one, whsec_… (HMAC-SHA256) or whsk_… (ed25519)"},
		"an empty one":          {[]adapters.Secret{vectorHMAC, ""}, "secrets[1]: is empty"},
		"no prefix":             {[]adapters.Secret{canary}, "secrets[0]: must begin with whsec_ (HMAC-SHA256) or whsk_ (ed25519)"},
		"prefix in capitals":    {[]adapters.Secret{"WHSEC_" + canary}, "secrets[0]: must begin with whsec_"},
		"a public key":          {[]adapters.Secret{"whpk_" + canary}, "secrets[0]: is a public key (whpk_)"},
		"no base64":             {[]adapters.Secret{"whsec_" + canary + "!"}, "secrets[0]: is not standard base64 with padding after whsec_"},
		"URL base64":            {[]adapters.Secret{"whsec_" + canary + "_-AAAAAAAAAAAAAAAAAAAA"}, "is not standard base64"},
		"no padding":            {[]adapters.Secret{"whsec_" + canary + "AAAAAAAAAAAAAAAAAAAAAAAAA"}, "is not standard base64"},
		"a line end":            {[]adapters.Secret{"whsec_" + canary + "AAAAAAAAAAAAAAAAAAAAAA\n"}, "is not standard base64"},
		"no base64 of a key":    {[]adapters.Secret{"whsk_" + canary + "!"}, "secrets[0]: is not standard base64 with padding after whsk_"},
		"a short one":           {[]adapters.Secret{adapters.Secret("whsec_" + base64Of(23))}, "secrets[0]: has 23 bytes after whsec_, not 24 to 64"},
		"a long one":            {[]adapters.Secret{adapters.Secret("whsec_" + base64Of(65))}, "secrets[0]: has 65 bytes after whsec_, not 24 to 64"},
		"no ed25519 key":        {[]adapters.Secret{adapters.Secret("whsk_" + base64Of(33))}, "secrets[0]: has 33 bytes after whsk_, not 32 (an ed25519 seed) or 64"},
		"halves of two keys":    {[]adapters.Secret{adapters.Secret("whsk_" + base64Of(64))}, "secrets[0]: has a public key that does not belong to its private key"},
		"the same secret twice": {[]adapters.Secret{vectorHMAC, vectorEd25519, vectorHMAC}, "secrets[2]: is the same as secrets[0]"},
		"the second of three":   {[]adapters.Secret{vectorHMAC, canary, vectorEd25519}, "secrets[1]: must begin"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseSecrets(tc.secrets)
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), base64Of(15)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestEveryBadSecretIsReported(t *testing.T) {
	_, err := parseSecrets([]adapters.Secret{"a", vectorHMAC, "b"})
	if err == nil || !strings.Contains(err.Error(), "secrets[0]: ") || !strings.Contains(err.Error(), "secrets[2]: ") {
		t.Error(err)
	}
}

func TestIDs(t *testing.T) {
	for id, ok := range map[string]bool{
		"0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81": true, "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81:2": true,
		"a.b": false, "a b": false, "é": false, "a\n": false, "\x7f": false,
	} {
		if err := checkID(id); ok != (err == nil) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestAdapterDoesNotPrintItsSecrets(t *testing.T) {
	a, err := New(Config{URL: "https://clinic.example", Secrets: []adapters.Secret{vectorHMAC, vectorEd25519}})
	if err != nil {
		t.Fatal(err)
	}
	key, err := decode(vectorHMAC, hmacPrefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%d", "%s"} {
		text := fmt.Sprintf(verb, a)
		for _, shown := range []string{vectorHMAC[6:], vectorEd25519[5:], string(key), fmt.Sprintf("%d", key), fmt.Sprintf("%x", key), "TESTSIGNINGKEY"} {
			if strings.Contains(text, shown) {
				t.Errorf("%s shows %q", verb, shown)
			}
		}
	}
}

package webhook

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
)

// FuzzSecret: no text for a secret causes a panic or appears in an error, and an
// accepted secret signs.
func FuzzSecret(f *testing.F) {
	for _, s := range []string{
		"", vectorHMAC, vectorEd25519, "whsec_", "whsk_", "whpk_AAAA", "whsec_" + base64Of(24), "whsk_" + base64Of(64), "whsk_" + base64Of(33),
		"whsec_\xff", "whsec_AAAA=AAAA", "whsec_ " + base64Of(24), "WHSEC_", "whsec_whsec_" + base64Of(24),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, secret string) {
		signers, err := parseSecrets([]adapters.Secret{adapters.Secret(secret)})
		if err != nil {
			if _, rest, _ := strings.Cut(secret, "_"); len(rest) > 8 && strings.Contains(err.Error(), rest) {
				t.Errorf("the error shows the secret: %v", err)
			}
			return
		}
		version, signature, _ := strings.Cut(signers[0]([]byte("content")), ",")
		if want := map[string]int{"v1": 44, "v1a": 88}[version]; want == 0 || len(signature) != want {
			t.Errorf("signature %s,%s", version, signature)
		}
	})
}

// FuzzRequest: with any data, an envelope is one JSON object with this data, and no
// value adds a header or a line.
func FuzzRequest(f *testing.F) {
	for _, data := range []string{"plain", `"`, `\`, "a\r\nX: y", "é\u202e", "\x00", "\xff", "</script>", `","data":{}`, "", "%41", "."} {
		f.Add(data, data)
	}
	f.Fuzz(func(t *testing.T, data, id string) {
		for _, payload := range payloads {
			c := Config{URL: "https://clinic.example/", Secrets: []adapters.Secret{vectorHMAC}, Payload: payload}
			if payload.cloudEvent() {
				c.Source = "/agency"
			}
			a, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			req, err := a.request(adapters.Message{IdempotencyKey: id, Type: data, Key: data, OccurredAt: time.Unix(1, 0), Body: []byte(`{"a":1}`)})
			if err != nil {
				if adapters.ClassOf(err) != adapters.ClassPermanent {
					t.Errorf("%s: %v", payload, err)
				}
				continue
			}
			var said map[string]any
			if err := json.Unmarshal(req.Body, &said); err != nil {
				t.Fatalf("%s: %v in %s", payload, err, req.Body)
			}
			if name := map[Payload]string{Standard: "type", CloudEventsStructured: "subject"}[payload]; name != "" {
				if data != "" && utf8.ValidString(data) && said[name] != data || !reflect.DeepEqual(said["data"], map[string]any{"a": 1.0}) {
					t.Errorf("%s: %q became %s", payload, data, req.Body)
				}
			}
			if req.Header.Get("Webhook-Id") != id || strings.Contains(id, ".") {
				t.Errorf("%s: the id %q was sent as %q", payload, id, req.Header.Get("Webhook-Id"))
			}
			checkLines(t, req.Header)
		}
	})
}

func checkLines(t *testing.T, h http.Header) {
	t.Helper()
	for name, values := range h {
		for _, v := range values {
			if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%s: %q", name, v)
			}
		}
	}
}

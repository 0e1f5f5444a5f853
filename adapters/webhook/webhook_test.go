package webhook_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/webhook"
)

const (
	secret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	oldSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
)

// clinic records the last request and gives the configured answer.
type clinic struct {
	*httptest.Server
	status int
	header http.Header
	answer string

	request *http.Request
	body    []byte
}

func newClinic(t *testing.T) *clinic {
	t.Helper()
	c := &clinic{status: http.StatusNoContent, header: http.Header{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.request = r
		c.body, _ = io.ReadAll(r.Body)
		maps.Copy(w.Header(), c.header)
		w.WriteHeader(c.status)
		_, _ = io.WriteString(w, c.answer)
	}))
	t.Cleanup(c.Close)
	return c
}

// verify asks the reference library whether body came as it was sent.
func (c *clinic) verify(t *testing.T, secret string, body []byte) error {
	t.Helper()
	wh, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	return wh.Verify(body, c.request.Header)
}

func message() adapters.Message {
	return adapters.Message{
		ID: "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81", IdempotencyKey: "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81",
		Type: "scheduling:updated", Key: "hearing-7", Version: new(int64(4)), Attempt: 1,
		OccurredAt: time.Date(2027, 3, 1, 9, 30, 0, 0, time.FixedZone("", -5*3600)),
		Body:       []byte("{\"z\": 1.50,\n\"a\":12345678901234567890, \"note\":\"<b>&\\u00e9\",\"name\":\"Jane Doe\"}"),
		Ref:        adapters.Ref{ExternalID: "ext-7"},
	}
}

// deliver makes an attempt that the clinic takes.
func deliver(t *testing.T, a *webhook.Adapter, msg adapters.Message) adapters.Receipt {
	t.Helper()
	receipt, err := a.Deliver(t.Context(), msg)
	if err != nil {
		t.Fatal(err)
	}
	return receipt
}

func TestReferenceLibraryVerifiesEveryPayload(t *testing.T) {
	for _, payload := range []webhook.Payload{webhook.Standard, webhook.Fields, webhook.CloudEventsBinary, webhook.CloudEventsStructured} {
		t.Run(string(payload), func(t *testing.T) {
			c := newClinic(t)
			config := webhook.Config{URL: c.URL, Payload: payload, Secrets: []adapters.Secret{secret}}
			if strings.HasPrefix(string(payload), "cloudevents") {
				config.Source = "/agency"
			}
			receipt := deliver(t, newAdapter(t, config), message())
			if err := c.verify(t, secret, c.body); err != nil {
				t.Error(err)
			}
			if err := c.verify(t, oldSecret, c.body); !errors.Is(err, standardwebhooks.ErrNoMatchingSignature) {
				t.Errorf("another secret: %v", err)
			}
			tampered := []byte(strings.Replace(string(c.body), "Jane", "John", 1))
			if err := c.verify(t, secret, tampered); !errors.Is(err, standardwebhooks.ErrNoMatchingSignature) {
				t.Errorf("another body: %v", err)
			}
			if !strings.Contains(string(c.body), string(message().Body)) {
				t.Errorf("the mapped fields are not unchanged in %s", c.body)
			}
			if sum := sha256.Sum256(c.body); receipt.SHA256 != hex.EncodeToString(sum[:]) {
				t.Errorf("the receipt has the digest %s, the clinic %x", receipt.SHA256, sum)
			}
			if receipt.Code != "HTTP 204" || receipt.Ref != nil {
				t.Errorf("receipt %+v", receipt)
			}
		})
	}
}

func TestTamperedHeadersFail(t *testing.T) {
	c := newClinic(t)
	deliver(t, newAdapter(t, webhook.Config{URL: c.URL, Secrets: []adapters.Secret{secret}}), message())
	for name, value := range map[string]string{"Webhook-Id": "another", "Webhook-Timestamp": strconv.FormatInt(time.Now().Unix()-7, 10)} {
		before := c.request.Header.Get(name)
		c.request.Header.Set(name, value)
		if err := c.verify(t, secret, c.body); !errors.Is(err, standardwebhooks.ErrNoMatchingSignature) {
			t.Errorf("another %s: %v", name, err)
		}
		c.request.Header.Set(name, before)
	}
	if err := c.verify(t, secret, c.body); err != nil {
		t.Error(err)
	}
}

// While secrets change, a receiver needs only one of them, whichever it has.
func TestRotation(t *testing.T) {
	c := newClinic(t)
	for step, tc := range []struct {
		sent     []adapters.Secret
		verifies map[string]bool
	}{
		{[]adapters.Secret{oldSecret}, map[string]bool{oldSecret: true, secret: false}},
		{[]adapters.Secret{secret, oldSecret}, map[string]bool{oldSecret: true, secret: true}},
		{[]adapters.Secret{secret}, map[string]bool{oldSecret: false, secret: true}},
	} {
		deliver(t, newAdapter(t, webhook.Config{URL: c.URL, Secrets: tc.sent}), message())
		for with, ok := range tc.verifies {
			if err := c.verify(t, with, c.body); ok != (err == nil) {
				t.Errorf("step %d, a receiver with %s: %v", step+1, with, err)
			}
		}
	}
}

// This release of the reference library knows only v1. The test also gives it a v1a
// signature together with one of v1.
func TestEd25519(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := newClinic(t)
	whsk := adapters.Secret("whsk_" + base64.StdEncoding.EncodeToString(private.Seed()))
	deliver(t, newAdapter(t, webhook.Config{URL: c.URL, Secrets: []adapters.Secret{whsk, secret}}), message())
	if err := c.verify(t, secret, c.body); err != nil {
		t.Errorf("v1 together with v1a: %v", err)
	}
	first, _, _ := strings.Cut(c.request.Header.Get("Webhook-Signature"), " ")
	encoded, ok := strings.CutPrefix(first, "v1a,")
	signature, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil {
		t.Fatalf("%s: %v", first, err)
	}
	signed := fmt.Appendf(nil, "%s.%s.%s", c.request.Header.Get("Webhook-Id"), c.request.Header.Get("Webhook-Timestamp"), c.body)
	if !ed25519.Verify(public, signed, signature) {
		t.Error("the signature does not verify")
	}
	signed[len(signed)-2] ^= 1
	if ed25519.Verify(public, signed, signature) {
		t.Error("the signature verifies another body")
	}
}

func TestIDAndBodyStayTheSameAndTheTimeIsThatOfTheAttempt(t *testing.T) {
	c := newClinic(t)
	a := newAdapter(t, webhook.Config{URL: c.URL, Secrets: []adapters.Secret{secret}})
	msg := message()
	var bodies, ids []string
	for msg.Attempt = 1; msg.Attempt <= 2; msg.Attempt++ {
		before := time.Now().Unix()
		deliver(t, a, msg)
		at, err := strconv.ParseInt(c.request.Header.Get("Webhook-Timestamp"), 10, 64)
		if err != nil || at < before || at > time.Now().Unix() {
			t.Errorf("attempt %d has the time %d: %v", msg.Attempt, at, err)
		}
		bodies, ids = append(bodies, string(c.body)), append(ids, c.request.Header.Get("Webhook-Id"))
	}
	if bodies[0] != bodies[1] || ids[0] != ids[1] || ids[0] != msg.IdempotencyKey {
		t.Errorf("bodies %q, ids %q", bodies, ids)
	}
}

func TestTypesOfTheReceiver(t *testing.T) {
	c := newClinic(t)
	a := newAdapter(t, webhook.Config{URL: c.URL, Secrets: []adapters.Secret{secret}, Types: map[string]string{
		"scheduling:updated": "hearing.rescheduled", "scheduling:*": "hearing.changed",
	}})
	for eventType, want := range map[string]string{
		"scheduling:updated": "hearing.rescheduled", "scheduling:cancelled": "hearing.changed", "data:updated": "data:updated",
	} {
		msg := message()
		msg.Type = eventType
		deliver(t, a, msg)
		if want := `{"type":"` + want + `",`; !strings.HasPrefix(string(c.body), want) {
			t.Errorf("%s was sent as %.60s", eventType, c.body)
		}
	}
}

func TestIDThatWouldMakeSignaturesAmbiguous(t *testing.T) {
	c := newClinic(t)
	a := newAdapter(t, webhook.Config{URL: c.URL, Secrets: []adapters.Secret{secret}})
	for id, want := range map[string]string{
		"a.1":   "POST 127.0.0.1",
		"a.2":   "nothing was sent: header webhook-id: the key has a full stop",
		"a b":   "webhook-id: the key has a byte that is not printable ASCII",
		"a\r\n": "webhook-id: the key has a byte that is not printable ASCII",
		"":      "the key is not known",
	} {
		msg := message()
		msg.IdempotencyKey = id
		_, err := a.Deliver(t.Context(), msg)
		if adapters.ClassOf(err) != adapters.ClassPermanent || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v (%s), want %q", id, err, adapters.ClassOf(err), want)
		}
		if preview, previewErr := a.Preview(msg); previewErr == nil || previewErr.Error() != err.Error() || preview.Method != http.MethodPost {
			t.Errorf("%q: preview %+v, %v", id, preview, previewErr)
		}
	}
	if c.request != nil {
		t.Error("a request was sent")
	}
}

func TestStatuses(t *testing.T) {
	c := newClinic(t)
	for status, want := range map[int]adapters.Class{
		410: adapters.ClassAuth, 429: adapters.ClassThrottled, 502: adapters.ClassThrottled, 504: adapters.ClassThrottled,
		301: adapters.ClassUnexplained, 500: adapters.ClassTransient, 404: adapters.ClassUnexplained, 422: adapters.ClassPermanent,
		503: adapters.ClassAccepted, // as the configuration says
		403: adapters.ClassThrottled,
	} {
		a := newAdapter(t, webhook.Config{URL: c.URL, Secrets: []adapters.Secret{secret}, Outcomes: map[int]string{503: "accepted", 403: "throttled"}})
		c.status, c.header = status, http.Header{"Retry-After": {"7"}}
		receipt, err := a.Deliver(t.Context(), message())
		got := adapters.ClassOf(err)
		if receipt.Accepted {
			got = adapters.ClassAccepted
		}
		if got != want || receipt.Code != fmt.Sprintf("HTTP %d", status) || receipt.SHA256 == "" {
			t.Errorf("%d: %s, %+v, want %s", status, got, receipt, want)
		}
		if wait := adapters.RetryDelay(err); got == adapters.ClassThrottled && wait != 7*time.Second {
			t.Errorf("%d: wait %s", status, wait)
		}
	}
}

func TestOutcomesGoBeforeTheTable(t *testing.T) {
	c := newClinic(t)
	c.status = http.StatusGone
	a := newAdapter(t, webhook.Config{URL: c.URL, Secrets: []adapters.Secret{secret}, Outcomes: map[int]string{410: "permanent"}})
	if _, err := a.Deliver(t.Context(), message()); adapters.ClassOf(err) != adapters.ClassPermanent {
		t.Errorf("%s: %v", adapters.ClassOf(err), err)
	}
}

// A receiver of HMAC signatures has the secret too, and may put it into an answer.
func TestReasonsShowNeitherSecretsNorSignatures(t *testing.T) {
	c := newClinic(t)
	a := newAdapter(t, webhook.Config{URL: c.URL, Secrets: []adapters.Secret{secret, oldSecret, "whsk_VEVTVFNJR05JTkdLRVlET05PVFVTRVRISVNGT1JBTlk="}})
	repeat := func(what func() string) {
		t.Helper()
		c.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c.request = r
			w.WriteHeader(http.StatusBadRequest)
			_, _ = fmt.Fprintf(w, `{"title":"refused %s"}`, what())
		})
		_, err := a.Deliver(t.Context(), message())
		if err == nil || !strings.HasSuffix(err.Error(), "answered HTTP 400: its reason is not shown, because it repeats what was sent") {
			t.Errorf("got %v", err)
		}
	}
	repeat(func() string { return secret })
	repeat(func() string { return strings.TrimPrefix(oldSecret, "whsec_") })
	for i := range 3 {
		repeat(func() string { return strings.Fields(c.request.Header.Get("Webhook-Signature"))[i] })
	}
	repeat(func() string { return "Jane Doe" })
}

func TestPreviewShowsTheBodyAndNoSecret(t *testing.T) {
	c := newClinic(t)
	a := newAdapter(t, webhook.Config{URL: c.URL + "/in?key=canary", Secrets: []adapters.Secret{secret}})
	got, err := a.Preview(message())
	if err != nil {
		t.Fatal(err)
	}
	if c.request != nil {
		t.Error("a request was sent")
	}
	deliver(t, a, message())
	want := adapters.Preview{Method: "POST", URL: c.URL + "/in?key=***", ContentType: "application/json", Body: c.body, Headers: map[string]string{
		"Accept": "application/json", "Content-Type": "application/json", "Idempotency-Key": c.request.Header.Get("Idempotency-Key"), "User-Agent": "Lockstep",
		"Webhook-Id": message().IdempotencyKey, "Webhook-Timestamp": got.Headers["Webhook-Timestamp"], "Webhook-Signature": "***",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAttemptTimeout(t *testing.T) {
	a := newAdapter(t, webhook.Config{URL: "https://clinic.example", Secrets: []adapters.Secret{secret}})
	if got := a.AttemptTimeout(); got != 15*time.Second {
		t.Errorf("got %s", got)
	}
}

package soap

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
)

const calendar = "urn:example:calendar"

// hearings is the configuration that most tests begin with.
func hearings() Config {
	return Config{
		URL:        "https://clinic.example.gov/CalendarService?key=s3cr3t",
		Namespaces: map[string]string{"cal": calendar},
		Action:     "urn:example:calendar/NotifyHearing",
		Body:       `<cal:NotifyHearing><cal:reference>{fields.case}</cal:reference></cal:NotifyHearing>`,
	}
}

// fixed makes an adapter with a fixed nonce and time.
func fixed(t *testing.T, c Config) *Adapter {
	t.Helper()
	a, err := newAdapter(c,
		func() []byte { return []byte("0123456789abcdef") },
		func() time.Time { return time.Date(2027, 3, 1, 9, 30, 0, 123456789, time.FixedZone("", -4*60*60)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

func hearing(body string) adapters.Message {
	return adapters.Message{
		ID:             "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81",
		IdempotencyKey: "0198f6a2-7d3e-7c1a-9b52-3f0e5d6c7a81",
		Type:           "scheduling:updated",
		Key:            "hearing-7",
		Version:        new(int64(3)),
		OccurredAt:     time.Date(2027, 3, 1, 14, 0, 0, 0, time.UTC),
		Attempt:        1,
		Body:           []byte(body),
		Ref:            adapters.Ref{ExternalID: "ext-7"},
	}
}

// render returns the envelope that a sends for msg.
func render(t *testing.T, a *Adapter, msg adapters.Message) (string, error) {
	t.Helper()
	req, err := a.request(a.operations.Find(msg.Type), msg, a.attempt())
	return string(req.Body), err
}

// in returns c with further keys set.
func (c Config) in(change func(*Config)) Config {
	c.Namespaces = maps.Clone(c.Namespaces)
	change(&c)
	return c
}

// enveloped is a message of that version, with the prefix S for its namespace.
func enveloped(version, body string) string {
	return fmt.Sprintf(`<S:Envelope xmlns:S="%s" xmlns:c="%s" xmlns:sec="%s" xmlns:u="%s"><S:Body>%s</S:Body></S:Envelope>`,
		envelopeOf(version), calendar, nsWSSE, nsWSU, body)
}

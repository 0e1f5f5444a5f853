package webhook

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
	"github.com/hms-mkt/lockstep/adapters/internal/placeholder"
)

// Config describes one receiver.
type Config struct {
	// URL is where messages go. It may have the placeholders of a REST URL. Put
	// credentials into Auth. Required.
	URL string `yaml:"url" required:"adapter" pattern:"^[Hh][Tt][Tt][Pp][Ss]?://." doc:"Where messages go. It may have placeholders such as {key} and {ref.external_id}."`

	// Secrets sign the requests: each request has one signature for every secret. A
	// secret for HMAC-SHA256 (v1) is whsec_ and the base64 of 24 to 64 bytes. A secret
	// for ed25519 (v1a) is whsk_ and the base64 of the private key: its seed, or its
	// seed and public key. At least one is required.
	Secrets []adapters.Secret `yaml:"secrets" required:"adapter" pattern:"^(whsec|whsk)_." doc:"Each signs every request: whsec_ for HMAC-SHA256, whsk_ for ed25519."`

	// Payload is the form of the body. Default: standard.
	Payload Payload `yaml:"payload" oneof:"standard|fields|cloudevents_binary|cloudevents_structured" doc:"Form of the message. Default: standard."`

	// Source is the source attribute of CloudEvents, a URI reference such as
	// /agency/scheduling. Required for CloudEvents, refused otherwise.
	Source string `yaml:"source" doc:"Source of CloudEvents, a URI. Required for them, refused otherwise."`

	// Types are the receiver's names of event types. The key is a type, or a pattern in
	// which * is any number of characters. An exact type wins, then the pattern with
	// the most other characters. Default: the event's type.
	Types map[string]string `yaml:"types" keys:"event" pattern:"." doc:"The receiver's name of each event type."`

	// Headers are sent with every request. Values may have placeholders. They are never
	// printed, because some are credentials.
	Headers map[string]adapters.Secret `yaml:"headers" keys:"header" doc:"Headers of every request. They are never printed."`

	// Auth says how requests are authorized in addition to their signatures. Default:
	// no authorization.
	Auth adapters.Credentials `yaml:"auth" doc:"How requests are authorized. Default: none."`

	// TLS says which certificates to trust and which client certificate to show.
	TLS adapters.TLS `yaml:"tls" doc:"Certificates to trust, and the client certificate."`

	// Proxy is the URL of the proxy for all requests, such as
	// http://user:password@proxy.example:3128, or none. Its scheme is http, https or
	// socks5. Default: the proxy of the environment.
	Proxy adapters.Secret `yaml:"proxy" doc:"URL of the proxy, or none. Default: the proxy of the environment."`

	// Timeout bounds a request, from the name lookup to the end of the answer. It is
	// from 10ms to 10m. Default: 15s.
	Timeout time.Duration `yaml:"timeout" doc:"Longest time of a request, to the end of the answer: 10ms to 10m. Default: 15s."`

	// Allow lists the hosts that data may name, for a URL with a placeholder in its
	// host.
	Allow adapters.Allow `yaml:"allow" doc:"Hosts and networks that a host from data may be in."`

	// Outcomes gives statuses another class than the webhook table has. Default: the
	// table in docs/adapters/webhook.md.
	Outcomes map[int]string `yaml:"outcomes" keys:"status" oneof:"delivered|duplicate|accepted|transient|throttled|auth|forbidden|permanent|conflict|unknown" doc:"Class by status, instead of that of the default table."`

	// Answers give answers a class by what is in their JSON bodies. Default: only the
	// status counts.
	Answers []adapters.Answer `yaml:"answers" doc:"Answers that mean something else than their status. The first that matches counts."`

	// Reason is a JSON Pointer to the reason in answers. Its text is shown, so it must
	// name nobody. Default: the reason in the known forms.
	Reason string `yaml:"reason" pattern:"^/" doc:"JSON Pointer of the reason in an answer that refuses."`
}

// withDefaults returns c with its defaults filled in.
func (c Config) withDefaults() Config {
	c.Payload = cmp.Or(c.Payload, Standard)
	return c
}

// check reports the mistakes in the options that only a webhook has.
func (c Config) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch {
	case !slices.Contains(payloads, c.Payload):
		wrong("payload: %q is not one of %s", string(c.Payload), joined(payloads))
	case c.Payload.cloudEvent() && c.Source == "":
		wrong("source: is required for payload %s: a URI reference such as /agency/scheduling", c.Payload)
	case !c.Payload.cloudEvent() && c.Source != "":
		wrong("source: belongs to payload %s or %s, not to %s", CloudEventsBinary, CloudEventsStructured, c.Payload)
	case c.Payload == Fields && len(c.Types) > 0:
		wrong("types: no type is sent with payload %s: remove types", Fields)
	}
	if !uriReference(c.Source) {
		wrong("source: %q is not a URI reference such as /agency/scheduling", c.Source)
	}
	for _, pattern := range slices.Sorted(maps.Keys(c.Types)) {
		switch name := c.Types[pattern]; {
		case pattern == "":
			wrong(`types[""]: name an event type, or a pattern such as "scheduling:*"`)
		case name == "":
			wrong("types[%q]: is empty: write the receiver's name of the type", pattern)
		case placeholder.Plain(name) != nil:
			wrong("types[%q]: %w", pattern, placeholder.Plain(name))
		}
	}
	return errors.Join(errs...)
}

func uriReference(s string) bool {
	odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"<>\\^`{|}", r) } // RFC 3986, 2
	_, err := url.Parse(s)
	return err == nil && !strings.ContainsFunc(s, odd)
}

func joined(payloads []Payload) string {
	names := make([]string, len(payloads))
	for i, p := range payloads {
		names[i] = string(p)
	}
	return strings.Join(names, ", ")
}

func parseURL(text string) (*endpoint.URL, error) {
	if text == "" {
		return nil, errors.New("url: is required")
	}
	u, err := endpoint.ParseURL(text)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	return u, nil
}

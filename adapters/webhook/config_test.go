package webhook_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/webhook"
)

func TestNewRefuses(t *testing.T) {
	const canary = "canary-77"
	for name, tc := range map[string]struct {
		edit func(*webhook.Config)
		want string
	}{
		"no URL":                           {func(c *webhook.Config) { c.URL = "" }, "url: is required"},
		"a bad URL":                        {func(c *webhook.Config) { c.URL = "clinic.example/" + canary }, "url: must start with https://"},
		"credentials in the URL":           {func(c *webhook.Config) { c.URL = "https://u:" + canary + "@clinic.example/" }, "url: holds credentials; put them in auth"},
		"no secret":                        {func(c *webhook.Config) { c.Secrets = nil }, "secrets: write at least one"},
		"a bad secret":                     {func(c *webhook.Config) { c.Secrets = []adapters.Secret{secret, canary} }, "secrets[1]: must begin with whsec_"},
		"an unknown payload":               {func(c *webhook.Config) { c.Payload = "xml" }, `payload: "xml" is not one of standard, fields, cloudevents_binary, cloudevents_structured`},
		"no source":                        {func(c *webhook.Config) { c.Payload = webhook.CloudEventsBinary }, "source: is required for payload cloudevents_binary"},
		"no source in an envelope":         {func(c *webhook.Config) { c.Payload = webhook.CloudEventsStructured }, "source: is required for payload cloudevents_structured"},
		"a source without CloudEvents":     {func(c *webhook.Config) { c.Source = "/agency" }, "source: belongs to payload cloudevents_binary or cloudevents_structured, not to standard"},
		"a source with a space":            {cloudEvent(func(c *webhook.Config) { c.Source = "/our agency" }), `source: "/our agency" is not a URI reference such as /agency/scheduling`},
		"a source that is no URI":          {cloudEvent(func(c *webhook.Config) { c.Source = "%zz" }), `source: "%zz" is not a URI reference`},
		"types without a type in the body": {func(c *webhook.Config) { c.Payload, c.Types = webhook.Fields, map[string]string{"a": "b"} }, "types: no type is sent with payload fields"},
		"a type without a name":            {func(c *webhook.Config) { c.Types = map[string]string{"a": ""} }, `types["a"]: is empty`},
		"a name without a type":            {func(c *webhook.Config) { c.Types = map[string]string{"": "a"} }, `types[""]: name an event type, or a pattern such as "scheduling:*"`},
		"a name with a line end":           {func(c *webhook.Config) { c.Types = map[string]string{"a": "b\n"} }, `types["a"]: has a control character`},
		"an outcome of no status":          {func(c *webhook.Config) { c.Outcomes = map[int]string{42: "auth"} }, "outcomes.42: is not a status"},
		"an unknown class":                 {func(c *webhook.Config) { c.Outcomes = map[int]string{410: "gone"} }, `outcomes.410: "gone" is not a class`},
		"too short a timeout":              {func(c *webhook.Config) { c.Timeout = time.Millisecond }, "timeout: 1ms is not from 10ms to 10m0s"},
		"a token without its kind":         {func(c *webhook.Config) { c.Auth.Token = canary }, "auth.token: belongs to kind bearer; set auth.kind"},
		"credentials as a signature":       {func(c *webhook.Config) { c.Auth = apiKey("webhook-signature", canary) }, "auth.header: Webhook-Signature is computed"},
		"a CA that is not there":           {func(c *webhook.Config) { c.TLS.CAFile = "none.pem" }, "tls.ca_file: "},
		"not a network":                    {func(c *webhook.Config) { c.Allow.Networks = []string{"here"} }, `allow.networks[0]: "here" is not a network`},
		"the id":                           {header("webhook-id"), `headers["webhook-id"]: cannot be set, it is set to the event's id`},
		"the time":                         {header("Webhook-Timestamp"), `headers["Webhook-Timestamp"]: cannot be set, it is set to the time of the attempt`},
		"the signature":                    {header("WEBHOOK-SIGNATURE"), `headers["WEBHOOK-SIGNATURE"]: cannot be set, it is computed`},
		"the idempotency key":              {header("Idempotency-Key"), `headers["Idempotency-Key"]: cannot be set`},
		"an attribute":                     {cloudEvent(header("ce-type")), `headers["ce-type"]: cannot be set, it comes from the event and from source and types`},
		"the type of an attribute":         {cloudEvent(header("ce-datacontenttype")), `headers["ce-datacontenttype"]: cannot be set`},
		"the type of an envelope": {cloudEvent(func(c *webhook.Config) {
			c.Payload = webhook.CloudEventsStructured
			header("Content-Type")(c)
		}), `headers["Content-Type"]: cannot be set, it is fixed for a structured CloudEvent`},
	} {
		t.Run(name, func(t *testing.T) {
			c := webhook.Config{URL: "https://clinic.example/hooks", Secrets: []adapters.Secret{secret}}
			tc.edit(&c)
			a, err := webhook.New(c)
			if err == nil || a != nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), canary) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func cloudEvent(edit func(*webhook.Config)) func(*webhook.Config) {
	return func(c *webhook.Config) {
		c.Payload, c.Source = webhook.CloudEventsBinary, "/agency"
		edit(c)
	}
}

func header(name string) func(*webhook.Config) {
	return func(c *webhook.Config) { c.Headers = map[string]adapters.Secret{name: "canary-77"} }
}

func apiKey(name string, key adapters.Secret) adapters.Credentials {
	return adapters.Credentials{Kind: adapters.APIKey, Header: name, Key: key}
}

func TestNewReportsEverythingAtOnce(t *testing.T) {
	_, err := webhook.New(webhook.Config{Payload: "xml", Timeout: 1, Outcomes: map[int]string{1: "x"}})
	if err == nil {
		t.Fatal("was accepted")
	}
	for _, want := range []string{"url: ", "secrets: ", "payload: ", "timeout: ", "outcomes."} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %v", want, err)
		}
	}
}

func TestHeadersThatTheConfigurationMaySet(t *testing.T) {
	c := newClinic(t)
	a := newAdapter(t, webhook.Config{
		URL: c.URL, Secrets: []adapters.Secret{secret}, Payload: webhook.CloudEventsBinary, Source: "/agency",
		Headers: map[string]adapters.Secret{
			"Content-Type": "application/json; charset=utf-8", "ce-partitionkey": "{key}", "X-Agency": "AGENCY",
		},
		Auth: apiKey("", "k-1"),
	})
	deliver(t, a, message())
	for name, want := range map[string]string{
		"Content-Type": "application/json; charset=utf-8", "Ce-Partitionkey": "hearing-7", "X-Agency": "AGENCY", "X-Api-Key": "k-1",
	} {
		if got := c.request.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if err := c.verify(t, secret, c.body); err != nil {
		t.Error(err)
	}
}

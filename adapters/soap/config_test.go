package soap_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/soap"
)

func TestConfigIsReadFromYAML(t *testing.T) {
	const text = `
url: https://clinic.example.gov/CalendarService
version: "1.2"
namespaces: {cal: "urn:example:calendar"}
action: urn:example:calendar/NotifyHearing
body: <cal:NotifyHearing/>
header: <cal:Agency>AGENCY</cal:Agency>
addressing: {}
security: {kind: username_token, username: agency, password: s3cr3t, password_type: digest, timestamp: 5m}
routes: {"scheduling:cancelled": {action: a, body: <cal:CancelHearing/>, url: "https://clinic.example.gov/Cancel"}}
external_id: cal:NotifyHearingResponse/cal:entryId
answers:
  - {code: Client, path: "detail/cal:CalendarFault/cal:retryable", value: "true", class: transient}
  - {subcode: "cal:Busy", class: throttled}
outcomes: {204: delivered}
headers: {Source-System: AGENCY}
auth: {kind: basic, username: agency, password: b4s1c}
tls: {ca_file: ca.pem}
timeout: 20s
allow: {hosts: [clinic.example.gov], networks: [10.0.0.0/8]}
`
	want := soap.Config{
		URL: "https://clinic.example.gov/CalendarService", Version: soap.Version12,
		Namespaces: map[string]string{"cal": calendar}, Action: "urn:example:calendar/NotifyHearing",
		Body: "<cal:NotifyHearing/>", Header: "<cal:Agency>AGENCY</cal:Agency>", Addressing: &soap.Addressing{},
		Security: soap.Security{Kind: soap.UsernameToken, Username: "agency", Password: "s3cr3t", PasswordType: soap.Digest, Timestamp: 5 * time.Minute},
		Routes: map[string]soap.Route{
			"scheduling:cancelled": {Action: "a", Body: "<cal:CancelHearing/>", URL: "https://clinic.example.gov/Cancel"},
		},
		ExternalID: "cal:NotifyHearingResponse/cal:entryId",
		Answers: []soap.Answer{
			{Code: "Client", Path: "detail/cal:CalendarFault/cal:retryable", Value: "true", Class: "transient"},
			{Subcode: "cal:Busy", Class: "throttled"},
		},
		Outcomes: map[int]string{204: "delivered"},
		Headers:  map[string]adapters.Secret{"Source-System": "AGENCY"},
		Auth:     adapters.Credentials{Kind: adapters.Basic, Username: "agency", Password: "b4s1c"},
		TLS:      adapters.TLS{CAFile: "ca.pem"},
		Timeout:  20 * time.Second,
		Allow:    adapters.Allow{Hosts: []string{"clinic.example.gov"}, Networks: []string{"10.0.0.0/8"}},
	}
	var got soap.Config
	if err := yaml.Load([]byte(text), &got, yaml.WithKnownFields()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	for _, printed := range []string{fmt.Sprintf("%v %+v %#v", got, got, got), mustYAML(t, got)} {
		if strings.Contains(printed, "s3cr3t") || strings.Contains(printed, "b4s1c") {
			t.Errorf("a secret is in:\n%s", printed)
		}
	}
}

func mustYAML(t *testing.T, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEveryMistakeNamesItsField(t *testing.T) {
	token := soap.Security{Kind: soap.UsernameToken, Username: "agency", Password: "s3cr3t"}
	for name, tc := range map[string]struct {
		change func(*soap.Config)
		want   string
	}{
		"no url":                   {func(c *soap.Config) { c.URL = "" }, "url: is required"},
		"no URL":                   {func(c *soap.Config) { c.URL = "clinic" }, "url: must start with https://"},
		"version":                  {func(c *soap.Config) { c.Version = "2" }, `version: "2" is not one of 1.1, 1.2`},
		"taken prefix":             {func(c *soap.Config) { c.Namespaces["wsse"] = "urn:x" }, `namespaces["wsse"]: the prefix is taken; choose another than lockstep, soap,`},
		"no prefix":                {func(c *soap.Config) { c.Namespaces["a:b"] = "urn:x" }, `namespaces["a:b"]: is not a prefix`},
		"empty prefix":             {func(c *soap.Config) { c.Namespaces[""] = "urn:x" }, `namespaces[""]: is not a prefix`},
		"no namespace":             {func(c *soap.Config) { c.Namespaces["x"] = "" }, `namespaces["x"]: has no namespace`},
		"a namespace with NUL":     {func(c *soap.Config) { c.Namespaces["x"] = "urn:\x00" }, `namespaces["x"]: has a space at its ends or a character`},
		"action with a quote":      {func(c *soap.Config) { c.Action = `a"b` }, "action: is not a URI"},
		"action with a newline":    {func(c *soap.Config) { c.Action = "a\r\nX: y" }, "action: is not a URI"},
		"no body":                  {func(c *soap.Config) { c.Body, c.Routes = "", nil }, "body: is required"},
		"body":                     {func(c *soap.Config) { c.Body = "<x:a/>" }, "body: line 1, column 1: the prefix x is not declared"},
		"header":                   {func(c *soap.Config) { c.Header = "<a/> b" }, "header: line 1, column 5: text is outside"},
		"header in its element":    {func(c *soap.Config) { c.Header = "<soap:Header><a/></soap:Header>" }, "header: line 1, column 1: <soap:Header> is written by the adapter"},
		"header of security":       {func(c *soap.Config) { c.Security, c.Header = token, "<wsse:Security/>" }, "header: <wsse:Security> is written by security"},
		"header of addressing":     {func(c *soap.Config) { c.Addressing, c.Header = &soap.Addressing{}, "<wsa:To/>" }, "header: <wsa:To> is written by addressing"},
		"addressing, no action":    {func(c *soap.Config) { c.Addressing, c.Action = &soap.Addressing{}, "" }, "action: is required by addressing"},
		"addressing to":            {func(c *soap.Config) { c.Addressing = &soap.Addressing{To: "\x00"} }, "addressing.to: has U+0000"},
		"security kind":            {func(c *soap.Config) { c.Security.Kind = "x509" }, `security.kind: "x509" is not one of none, username_token`},
		"security without kind":    {func(c *soap.Config) { c.Security.Username = "agency" }, "security.username: belongs to kind username_token; set security.kind"},
		"security, password alone": {func(c *soap.Config) { c.Security.Password = "s3cr3t" }, "security.password: belongs to kind"},
		"security, type alone":     {func(c *soap.Config) { c.Security.PasswordType = soap.Text }, "security.password_type: belongs to kind"},
		"security, time alone":     {func(c *soap.Config) { c.Security.Timestamp = time.Minute }, "security.timestamp: belongs to kind"},
		"no username":              {func(c *soap.Config) { c.Security = token; c.Security.Username = "" }, "security.username: is required"},
		"no password":              {func(c *soap.Config) { c.Security = token; c.Security.Password = "" }, "security.password: is required"},
		"bad username":             {func(c *soap.Config) { c.Security = token; c.Security.Username = "a\x00" }, "security.username: has U+0000"},
		"bad password":             {func(c *soap.Config) { c.Security = token; c.Security.Password = "s3cr3t\x1b" }, "security.password: has a character"},
		"password type":            {func(c *soap.Config) { c.Security = token; c.Security.PasswordType = "md5" }, `security.password_type: "md5" is not one of digest, text`},
		"timestamp, short":         {func(c *soap.Config) { c.Security = token; c.Security.Timestamp = -1 }, "security.timestamp: -1ns is not from 1s to 24h"},
		"timestamp, long":          {func(c *soap.Config) { c.Security = token; c.Security.Timestamp = 25 * time.Hour }, "security.timestamp: 25h0m0s is not"},
		"route without name":       {func(c *soap.Config) { c.Routes[""] = soap.Route{Action: "a"} }, `routes[""]: name an event type`},
		"route without anything":   {func(c *soap.Config) { c.Routes["a"] = soap.Route{} }, `routes["a"].action, routes["a"].body, routes["a"].url: set at least one of action, body and url`},
		"route body":               {func(c *soap.Config) { c.Routes["a"] = soap.Route{Body: "<x:a/>"} }, `routes["a"].body: line 1, column 1: the prefix x`},
		"route action":             {func(c *soap.Config) { c.Routes["a"] = soap.Route{Action: "a b"} }, `routes["a"].action: is not a URI`},
		"route url":                {func(c *soap.Config) { c.Routes["a"] = soap.Route{URL: "ftp://x"} }, `routes["a"].url: must start with`},
		"route without body": {func(c *soap.Config) {
			c.Body = ""
			c.Routes["a"], c.Routes["b"] = soap.Route{Body: "<a/>"}, soap.Route{Action: "b"}
		}, `routes["b"].body: is required here`},
		"external id":          {func(c *soap.Config) { c.ExternalID = "cal:a//b" }, "external_id: is not a path: write names with single slashes between them"},
		"external id, prefix":  {func(c *soap.Config) { c.ExternalID = "x:a" }, "external_id: the prefix x is not declared"},
		"external id, start":   {func(c *soap.Config) { c.ExternalID = "/cal:a" }, "external_id: is not a path: write names with single slashes between them"},
		"external id, outside": {func(c *soap.Config) { c.ExternalID = "soap:Envelope/soap:Body/cal:a" }, "external_id: starts inside the Body: leave soap:Envelope out"},
		"answer code":          {func(c *soap.Config) { c.Answers = []soap.Answer{{Code: "x:Busy", Class: "auth"}} }, "answers[0].code: the prefix x is not declared"},
		"answer subcode": {func(c *soap.Config) {
			c.Answers = []soap.Answer{{Code: "Client", Class: "auth"}, {Subcode: "a b", Class: "auth"}}
		}, `answers[1].subcode: "a b" is not a name`},
		"answer path":             {func(c *soap.Config) { c.Answers = []soap.Answer{{Path: "detail/", Class: "auth"}} }, "answers[0].path: "},
		"answer value":            {func(c *soap.Config) { c.Answers = []soap.Answer{{Code: "Client", Value: "1", Class: "auth"}} }, "answers[0].value: needs a path"},
		"answer class":            {func(c *soap.Config) { c.Answers = []soap.Answer{{Code: "Client", Class: "retry"}} }, `answers[0].class: "retry" is not a class`},
		"answer without class":    {func(c *soap.Config) { c.Answers = []soap.Answer{{Code: "Client"}} }, "answers[0].class: is required: write one of delivered, duplicate, "},
		"answer of anything":      {func(c *soap.Config) { c.Answers = []soap.Answer{{Class: "auth"}, {Code: "Busy", Class: "auth"}} }, "answers[0]: has no condition"},
		"require":                 {func(c *soap.Config) { c.Require = "id" }, `require: "id" is not one of external_id, nothing`},
		"require without a path":  {func(c *soap.Config) { c.ExternalID, c.Require = "", "external_id" }, "require: needs external_id"},
		"outcomes":                {func(c *soap.Config) { c.Outcomes = map[int]string{7: "auth"} }, "outcomes.7: is not a status"},
		"headers":                 {func(c *soap.Config) { c.Headers = map[string]adapters.Secret{"SOAPAction": "x"} }, `headers["SOAPAction"]: cannot be set, it comes from action`},
		"headers of content":      {func(c *soap.Config) { c.Headers = map[string]adapters.Secret{"content-type": "x"} }, `headers["content-type"]: cannot be set, it comes from version and action`},
		"auth":                    {func(c *soap.Config) { c.Auth.Kind = "digest" }, "auth.kind: "},
		"tls":                     {func(c *soap.Config) { c.TLS.KeyFile = "k.pem" }, "tls.cert_file: is missing, but tls.key_file is set"},
		"timeout":                 {func(c *soap.Config) { c.Timeout = time.Hour }, "timeout: 1h0m0s is not from"},
		"allow":                   {func(c *soap.Config) { c.Allow.Networks = []string{"10.0.0"} }, "allow.networks[0]: "},
		"any host and a header":   {func(c *soap.Config) { c.Header, c.Allow.Hosts = "<cal:Agency/>", []string{"*"} }, "allow.hosts: * would send header to any host"},
		"any host and a password": {func(c *soap.Config) { c.Security, c.Allow.Hosts = token, []string{"*"} }, "allow.hosts: * would send security"},
	} {
		t.Run(name, func(t *testing.T) {
			c := service()
			tc.change(&c)
			_, err := soap.New(c)
			if err == nil || !strings.Contains("\n"+err.Error(), "\n"+tc.want) {
				t.Fatalf("got  %v\nwant %s", err, tc.want)
			}
			if strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
}

func TestAllMistakesAreReportedAtOnce(t *testing.T) {
	c := service()
	c.URL, c.Version, c.Body, c.ExternalID, c.Timeout = "", "3", "", "x:y", -1
	_, err := soap.New(c)
	if err == nil {
		t.Fatal("was accepted")
	}
	for _, field := range []string{"url", "version", "external_id", "timeout"} {
		if !strings.Contains("\n"+err.Error(), "\n"+field+": ") {
			t.Errorf("%s is not named in\n%v", field, err)
		}
	}
}

// service is a configuration without mistakes.
func service() soap.Config {
	return soap.Config{
		URL:        "https://clinic.example.gov/CalendarService",
		Namespaces: map[string]string{"cal": calendar},
		Action:     "urn:example:calendar/NotifyHearing",
		Body:       "<cal:NotifyHearing><cal:reference>{fields.reference}</cal:reference></cal:NotifyHearing>",
		Routes: map[string]soap.Route{"scheduling:cancelled": {
			Action: "urn:example:calendar/CancelHearing",
			Body:   "<cal:CancelHearing><cal:reference>{fields.reference}</cal:reference></cal:CancelHearing>",
		}},
		ExternalID: "cal:NotifyHearingResponse/cal:entryId",
	}
}

package rest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/rest"
)

func TestConfigIsReadFromYAML(t *testing.T) {
	const text = `
url: https://court.example.gov/api/calendar
method: PUT
headers: {Source-System: AGENCY}
auth:
  kind: oauth2_client_credentials
  token_url: https://login.example/token
  client_id: agency
  client_secret: s3cr3t
  scopes: [a, b]
  audience: https://court.example.gov
tls: {ca_file: ca.pem, cert_file: c.pem, key_file: k.pem}
timeout: 20s
routes:
  "scheduling:cancelled": {method: DELETE, url: "https://court.example.gov/api/calendar/{ref.external_id}"}
external_id: {path: /id}
if_match: true
outcomes: {409: duplicate}
`
	want := rest.Config{
		URL: "https://court.example.gov/api/calendar", Method: "PUT",
		Headers: map[string]adapters.Secret{"Source-System": "AGENCY"},
		Auth: adapters.Credentials{
			Kind: adapters.ClientCredentials, TokenURL: "https://login.example/token", ClientID: "agency", ClientSecret: "s3cr3t",
			Scopes: []string{"a", "b"}, Audience: "https://court.example.gov",
		},
		TLS:        adapters.TLS{CAFile: "ca.pem", CertFile: "c.pem", KeyFile: "k.pem"},
		Timeout:    20 * time.Second,
		Routes:     map[string]rest.Route{"scheduling:cancelled": {Request: rest.Request{Method: "DELETE", URL: "https://court.example.gov/api/calendar/{ref.external_id}"}}},
		ExternalID: rest.Source{Path: "/id"}, IfMatch: "true", Outcomes: map[int]string{409: "duplicate"},
	}
	var got rest.Config
	if err := yaml.Load([]byte(text), &got, yaml.WithKnownFields()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	printed, err := yaml.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(printed), "s3cr3t") || strings.Contains(string(printed), "AGENCY") {
		t.Errorf("a secret is in:\n%s", printed)
	}
}

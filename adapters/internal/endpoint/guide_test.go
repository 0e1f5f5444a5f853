package endpoint_test

import (
	"os"
	"regexp"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/internal/endpoint"
)

// The credentials that the guide shows are accepted, and it names every kind.
func TestGuideShowsCredentials(t *testing.T) {
	guide, err := os.ReadFile("../../../docs/adapters.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```yaml\n(auth:.*?)^```").FindAllSubmatch(guide, -1)
	if len(blocks) < 4 {
		t.Fatalf("found %d blocks only", len(blocks))
	}
	variable := regexp.MustCompile(`\$\{(\w+)\}`)
	values := map[string]string{"BARS_KEY": pemOf(t, newRSA(t)), "GOOGLE_KEY": pemOf(t, newRSA(t)), "S2S_SECRET": "GEZDGNBVGY3TQOJQ"}
	for _, b := range blocks {
		var section struct {
			Auth adapters.Credentials `yaml:"auth"`
		}
		if err := yaml.Load(b[1], &section, yaml.WithKnownFields()); err != nil {
			t.Errorf("%v in\n%s", err, b[1])
			continue
		}
		for c := &section.Auth; c != nil; c = c.Second {
			for _, s := range []*adapters.Secret{&c.PrivateKey, &c.ClientSecret, &c.Password, &c.Secret} {
				*s = adapters.Secret(variable.ReplaceAllStringFunc(s.Reveal(), func(v string) string {
					if value, ok := values[variable.FindStringSubmatch(v)[1]]; ok {
						return value
					}
					return "secret"
				}))
			}
		}
		e, err := endpoint.New(endpoint.Options{Auth: section.Auth})
		if err != nil {
			t.Errorf("%v in\n%s", err, b[1])
			continue
		}
		_ = e.Close()
	}
	for _, kind := range []adapters.CredentialsKind{
		adapters.NoCredentials, adapters.Bearer, adapters.Basic, adapters.APIKey, adapters.ClientCredentials,
		adapters.PasswordGrant, adapters.PrivateKeyJWT, adapters.JWTBearer, adapters.ServiceLease, adapters.HMAC,
	} {
		if !regexp.MustCompile("(?m)^\\| `" + string(kind) + "` \\|").Match(guide) {
			t.Errorf("the kind %s is not in the table", kind)
		}
	}
}

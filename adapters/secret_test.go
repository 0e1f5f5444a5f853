package adapters_test

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/hms-mkt/lockstep/adapters"
)

type account struct {
	User  string          `yaml:"user"`
	Token adapters.Secret `yaml:"token"`
}

func TestSecretNeverPrintsItself(t *testing.T) {
	const canary = "s3cr3t-canary"
	a := account{User: "agency", Token: canary}

	var logged strings.Builder
	slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "token", a.Token, "account", a)

	asJSON, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	asXML, err := xml.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"slog": logged.String(), "json": string(asJSON), "yaml": string(asYAML), "xml": string(asXML)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t"} {
		texts["value "+verb] = fmt.Sprintf(verb, a.Token)
		texts["struct "+verb] = fmt.Sprintf(verb, a)
	}
	for how, text := range texts {
		if strings.Contains(text, canary) || strings.Contains(text, fmt.Sprintf("%x", canary)) {
			t.Errorf("%s shows the secret: %s", how, text)
		}
		if !strings.Contains(text, "***") {
			t.Errorf("%s does not show that a secret is set: %s", how, text)
		}
	}
}

func TestSecretIsReadLikeAString(t *testing.T) {
	var fromYAML, fromJSON account
	if err := yaml.Unmarshal([]byte("token: abc"), &fromYAML); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`{"Token":"abc"}`), &fromJSON); err != nil {
		t.Fatal(err)
	}
	if fromYAML.Token.Reveal() != "abc" || fromJSON.Token.Reveal() != "abc" {
		t.Errorf("read %q and %q, want abc", fromYAML.Token.Reveal(), fromJSON.Token.Reveal())
	}
}

func TestEmptySecretShowsThatItIsEmpty(t *testing.T) {
	if got := fmt.Sprintf("[%v]", adapters.Secret("")); got != "[]" {
		t.Errorf("got %s", got)
	}
}

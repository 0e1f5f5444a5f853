package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/config"
)

// A relay takes each starting file as soon as its variables are set, and the file names them
// all.
func TestStartingFilesAreValid(t *testing.T) {
	all, err := profiles()
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{"FHIR_KEY": privatePEM(t, ecKey), "GOOGLE_KEY": privatePEM(t, rsaKey)}
	guide, err := os.ReadFile("../../docs/recipes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(guide), "```json\n")
	payload, _, _ := strings.Cut(after, "```")
	hearing := filepath.Join(t.TempDir(), "hearing.json")
	writeFile(t, hearing, `{"type": "scheduling:created", "key": "H-2027-7", "version": 1, "occurred_at": "2027-03-01T10:00:00Z", "payload": `+payload+`}`)
	operatorEvent := filepath.Join(t.TempDir(), "operator.json")
	writeFile(t, operatorEvent, `{"type": "lockstep:held", "key": "CourtCalendarSync", "payload":
		{"sync": "CourtCalendarSync", "severity": "critical", "says": "it is on hold", "remedy": "renew the credentials", "kind": "auth"}}`)
	for name := range all {
		t.Run(name, func(t *testing.T) {
			s := &shell{t: t, env: map[string]string{}}
			path := filepath.Join(t.TempDir(), "lockstep.yaml")
			s.run("config", "init", "--profile", name, "--file", path).wants(t, 0, "next: lockstep config check --config "+path)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if printed := s.run("config", "init", "--profile", name).wants(t, 0).stdout; printed != string(text) {
				t.Errorf("the printed file differs from the written one: %s", printed)
			}
			_, after, _ := strings.Cut(string(text), "# Variables of this file: ")
			line, _, _ := strings.Cut(after, "\n")
			for variable := range strings.SplitSeq(line, ", ") {
				switch {
				case strings.HasSuffix(variable, "URL"):
					s.env[variable] = "https://court.example.gov"
				case variable == "CLINIC_ADDRESS":
					s.env[variable] = "clinic.example.org:2575"
				case strings.HasSuffix(variable, "_KEY"):
					s.env[variable] = keys[variable]
				case variable == "HOOK_SECRET":
					s.env[variable] = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
				default:
					s.env[variable] = "BASE32SECRET2345"
				}
			}
			s.env["DATABASE_URL"] = "postgres://lockstep@127.0.0.1/agency"
			s.run("config", "check", "--config", path).wants(t, 0, "is valid")

			file, err := config.Parse(path, text, func(name string) (string, bool) { value, ok := s.env[name]; return value, ok })
			if err != nil {
				t.Fatal(err)
			}
			event := hearing
			if name == "chat" || name == "mail" {
				event = operatorEvent
			}
			address := "https://court.example.gov"
			if name == "clinic" {
				address = "clinic.example.org:2575"
			}
			shown := s.run("map", file.RelayConfig().Syncs[0].Name, event, "--config", path).wants(t, 0, "request", address)
			if strings.Contains(shown.stdout, "would not be sent") {
				t.Errorf("a hearing would not be sent:\n%s", shown.stdout)
			}
		})
	}
}

func privatePEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func TestConfigInitRefusals(t *testing.T) {
	s := &shell{t: t}
	s.run("config", "init", "--profile", "mainframe").wants(t, exitUsage, `--profile "mainframe": want one of caldav, chat, clinic, county, ecf5, fhir, google, graph`, "webhook")
	s.run("config", "init", "--force").wants(t, exitUsage, "--force is for --file")
	path := filepath.Join(t.TempDir(), "lockstep.yaml")
	writeFile(t, path, "mine")
	s.run("config", "init", "--file", path).wants(t, exitUsage, path+" exists already", "--force")
	if text, err := os.ReadFile(path); err != nil || string(text) != "mine" {
		t.Errorf("the file was changed: %s, %v", text, err)
	}
	s.run("config", "init", "--file", path, "--force").wants(t, 0)
	s.run("config", "init", "--file", filepath.Join(path, "x")).wants(t, exitFailed, "cannot write the file")
}

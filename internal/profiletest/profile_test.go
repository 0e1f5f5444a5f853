package profiletest

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/docs/recipes"
	"github.com/hms-mkt/lockstep/internal/config"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/outbox"
	"github.com/hms-mkt/lockstep/relay"
	"github.com/hms-mkt/lockstep/relay/mapping"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const (
	ecfUser     = "agency"
	ecfPassword = "p<ss&word"
)

// open returns the sync of a profile as a user gets it, whose receiver is at url. The tokens are from a
// server of its own.
func open(t *testing.T, profile, url string) relay.Sync {
	t.Helper()
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/lease") {
			claims := base64.RawURLEncoding.EncodeToString([]byte(`{"exp":4102444800}`))
			_, _ = io.WriteString(w, "eyJhbGciOiJIUzUxMiJ9."+claims+".c2lnbmF0dXJl")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"t0ken","token_type":"Bearer","expires_in":3600}`)
	}))
	t.Cleanup(tokens.Close)
	text, err := recipes.Files.ReadFile(profile + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	variables := map[string]string{
		"ECF_URL": url, "ECF_USER": ecfUser, "ECF_PASSWORD": ecfPassword,
		"HMC_URL": url, "IDAM_URL": tokens.URL, "IDAM_SECRET": "s", "IDAM_USER": "u", "IDAM_PASSWORD": "p", "S2S_URL": tokens.URL, "S2S_SECRET": "JBSWY3DPEHPK3PXP",
		"HMI_URL": url + "/hmi", "HMI_TOKEN_URL": tokens.URL + "/token", "HMI_SECRET": "s",
	}
	f, err := config.Parse(profile+".yaml", text, func(name string) (string, bool) {
		value, ok := variables[name]
		return value, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	return f.RelayConfig().Syncs[0]
}

// sender sends events of one sync as a relay does, without a database: it keeps the reference of each key.
type sender struct {
	sync relay.Sync
	refs map[string]adapters.Ref
}

func newSender(s relay.Sync) *sender { return &sender{s, map[string]adapters.Ref{}} }

func (s *sender) send(t *testing.T, e outbox.Event) (adapters.Receipt, error) {
	t.Helper()
	ref := s.refs[e.Key]
	msg := adapters.Message{
		ID: e.ID, IdempotencyKey: e.ID, Type: e.Type, Key: e.Key, Version: e.Version, OccurredAt: e.OccurredAt, Attempt: 1, Ref: ref,
	}
	mapper, _, err := s.sync.Mapper(msg)
	if err != nil {
		t.Fatal(err)
	}
	sending := mapping.Sending{IdempotencyKey: e.ID, Ref: outbox.Ref{ExternalID: ref.ExternalID, ETag: ref.ETag, Learned: ref.Learned}}
	if msg.Body, err = mapper.Map(e, sending, nil); err != nil {
		return adapters.Receipt{}, fmt.Errorf("mapping: %w", err)
	}
	receipt, err := s.sync.Adapter.Deliver(t.Context(), msg)
	if err == nil && receipt.Ref != nil {
		s.refs[e.Key] = *receipt.Ref
	}
	return receipt, err
}

// sendAll sends the events in order, and fails the test if the receiver refuses one.
func (s *sender) sendAll(t *testing.T, events []outbox.Event) {
	t.Helper()
	for _, e := range events {
		if receipt, err := s.send(t, e); err != nil {
			t.Fatalf("%s of %s, version %d: %s, %v\n%s", e.Type, e.Key, *e.Version, receipt.Code, err, e.Payload)
		}
	}
}

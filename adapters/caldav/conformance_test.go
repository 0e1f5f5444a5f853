package caldav_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/adapters/adaptertest"
	"github.com/hms-mkt/lockstep/adapters/caldav"
)

// named is the adapter for the suite, which tells messages apart by their idempotency keys and
// adds a field canary. In a calendar, messages are told apart by their keys.
type named struct{ *caldav.Adapter }

func (a named) Deliver(ctx context.Context, msg adapters.Message) (adapters.Receipt, error) {
	msg.Key = msg.IdempotencyKey
	msg.Body = bytes.Replace(msg.Body, []byte(`"canary"`), []byte(`"description"`), 1)
	return a.Adapter.Deliver(ctx, msg)
}

func TestConformance(t *testing.T) {
	msg := hearing(3, "updated", nil)
	msg.Ref = adapters.Ref{ExternalID: "/rooms/H-1.ics", ETag: `"v2"`}
	adaptertest.Run(t, adaptertest.Harness{
		New: func(t *testing.T, s adaptertest.Setup) adapters.Adapter {
			server, _, _ := strings.Cut(s.URL, "?") // a collection has no query
			return named{newAdapter(t, caldav.Config{
				URL: strings.TrimRight(server, "/") + "/rooms/", Domain: "agency.example.gov", Timeout: s.Timeout,
				Auth: adapters.Credentials{Kind: adapters.Bearer, Token: s.Secret},
			})}
		},
		Accept: func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.Header().Set("ETag", `"v3"`)
			w.WriteHeader(http.StatusNoContent)
		},
		Refuse: func(w http.ResponseWriter, status int, reason string) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(map[string]any{"title": reason, "status": status, "detail": reason})
		},
		Key: func(_ *http.Request, body []byte) string {
			for l := range strings.SplitSeq(string(body), "\r\n") {
				if uid, ok := strings.CutPrefix(l, "UID:"); ok {
					return strings.TrimSuffix(uid, "@agency.example.gov")
				}
			}
			return ""
		},
		Message: msg,
		Listed: func(w http.ResponseWriter, _ *http.Request, held adapters.Message) {
			sent, err := newAdapter(t, config("https://calendar.example.gov/rooms/")).Preview(held)
			if err != nil {
				t.Error(err)
			}
			w.WriteHeader(http.StatusMultiStatus)
			_, _ = io.WriteString(w, `<multistatus xmlns="DAV:" xmlns:C="urn:ietf:params:xml:ns:caldav"><response><href>/rooms/H-1.ics</href><propstat>`+
				`<status>HTTP/1.1 200 OK</status><prop><C:calendar-data>`+strings.ReplaceAll(string(sent.Body), "\r\n", "&#13;\n")+`</C:calendar-data></prop></propstat></response></multistatus>`)
		},
		Holds: func(w http.ResponseWriter, r *http.Request, held *adapters.Message) {
			switch {
			case held == nil && r.Method == http.MethodGet:
				w.WriteHeader(http.StatusNotFound)
			case held == nil:
				w.WriteHeader(http.StatusMultiStatus)
				_, _ = io.WriteString(w, `<multistatus xmlns="DAV:"/>`)
			default:
				sent, err := newAdapter(t, config("https://calendar.example.gov/rooms/")).Preview(*held)
				if err != nil {
					t.Error(err)
				}
				w.Header().Set("ETag", `"v3"`)
				_, _ = w.Write(sent.Body)
			}
		},
		Classes: map[int]adapters.Class{http.StatusConflict: adapters.ClassPermanent, http.StatusLocked: adapters.ClassTransient},
	})
}

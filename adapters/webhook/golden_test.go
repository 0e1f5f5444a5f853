package webhook

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGoldenRequests compares the request that a receiver reads, except Host, with a
// file for each payload.
func TestGoldenRequests(t *testing.T) {
	for _, payload := range payloads {
		t.Run(string(payload), func(t *testing.T) {
			var got bytes.Buffer
			clinic := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(&got, "%s %s %s\n", r.Method, r.RequestURI, r.Proto)
				_ = r.Header.Write(crlf{&got})
				fmt.Fprintln(&got)
				_, _ = io.Copy(&got, r.Body)
				fmt.Fprintln(&got)
			}))
			defer clinic.Close()
			c := Config{URL: clinic.URL + "/hooks/{key}", Payload: payload, Secrets: []adapters.Secret{vectorHMAC, vectorEd25519}}
			if payload != Fields {
				c.Types = map[string]string{"scheduling:updated": "hearing.rescheduled"}
			}
			if payload.cloudEvent() {
				c.Source = "/agency/scheduling"
			}
			a, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = a.Close() }()
			a.now = func() time.Time { return time.Date(2027, 3, 1, 14, 30, 7, 0, time.UTC) }
			if _, err := a.Deliver(t.Context(), hearing()); err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata", string(payload)+".golden"), got.Bytes())
		})
	}
}

// crlf writes lines as files have them.
type crlf struct{ w io.Writer }

func (c crlf) Write(p []byte) (int, error) {
	_, err := c.w.Write(bytes.ReplaceAll(p, []byte("\r\n"), []byte("\n")))
	return len(p), err
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got); run with -update if that is meant\n%s", path, diff)
	}
}

package adaptertest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hms-mkt/lockstep/adapters"
)

// secrets: a receiver that repeats everything. The canary is in the credential, in the
// URL's query and in the payload. deliver searches for it.
func (s suite) secrets(t *testing.T) {
	msg := s.Message
	msg.Body = []byte(strings.Replace(string(msg.Body), "{", `{"canary":"`+canary+`",`, 1))

	t.Run("in what is sent", func(t *testing.T) {
		var credential atomic.Bool
		b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) {
			dump, err := httputil.DumpRequest(r, true)
			if err != nil {
				t.Errorf("dump: %v", err)
			}
			credential.Store(strings.Contains(string(dump), canary))
			s.Accept(w, r, nil)
		})
		_, err := b.deliver(t.Context(), t, msg)
		b.wantClass(t, err, adapters.ClassDelivered)
		if !credential.Load() {
			t.Error("no canary was sent: the tests of this group prove nothing")
		}
	})

	for _, status := range []int{302, 400, 401, 403, 409, 422, 429, 500, 503} {
		t.Run(fmt.Sprintf("echoed with %d", status), func(t *testing.T) {
			b := s.with(t, longTimeout, func(w http.ResponseWriter, r *http.Request) {
				dump, err := httputil.DumpRequest(r, true)
				if err != nil {
					t.Errorf("dump: %v", err)
				}
				w.Header().Set("Location", "https://"+"user:"+canary+"@elsewhere.example/"+canary+"?q="+canary)
				w.Header().Set("WWW-Authenticate", "Bearer realm="+canary)
				s.Refuse(w, status, "did not like "+canary+" in "+string(dump))
			})
			_, err := b.deliver(t.Context(), t, msg)
			b.wantClass(t, err, s.classes[status], DefaultClasses()[status]) // an echo of the request may look like a success
		})
	}

	t.Run("printing the adapter", func(t *testing.T) {
		b := s.with(t, longTimeout, func(http.ResponseWriter, *http.Request) {})
		checkPrinting(t, b.adapter)
	})
}

func checkPrinting(t *testing.T, a adapters.Adapter) {
	t.Helper()
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		if text := fmt.Sprintf(verb, a); strings.Contains(text, "secret-"+canary) {
			t.Errorf("%s of the adapter shows its credential", verb)
		}
	}
}

// redirects: none is followed, so that no credential goes to another host.
func (s suite) redirects(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			checkLeaks(t)
			var followed atomic.Int32
			target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
			t.Cleanup(target.Close)
			b := s.with(t, longTimeout, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", target.URL+"/"+canary+"?token="+canary)
				s.Refuse(w, status, "moved")
			})
			_, err := b.deliver(t.Context(), t, s.Message)
			b.wantClass(t, err, s.classes[status])
			if n := followed.Load(); n != 0 {
				t.Errorf("the redirect was followed %d times", n)
			}
			if host := strings.TrimPrefix(target.URL, "http://"); err == nil || !strings.Contains(err.Error(), host) {
				t.Errorf("the error does not name the host %s: %v", host, err)
			}
		})
	}
}

// allocated returns how many bytes f allocated, other goroutines included.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

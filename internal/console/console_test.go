package console

import (
	"net/http"
	"net/url"
	"testing"
)

func TestAPageIsServedToThisMachineOnly(t *testing.T) {
	w := newWorld(t)
	host := func(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
	for _, name := range []string{"localhost", "localhost:9464", "127.0.0.1:9464", "[::1]:9464"} {
		w.get("/", host(name)).wants(200, "Court")
	}
	for _, name := range []string{"court.example.org", "localhost.example.org:9464", "192.0.2.1", "<script>"} {
		w.get("/", host(name)).wants(403, "only served as localhost").lacks("Court", "<script>")
	}
}

func TestBeyondThisMachineAPageNeedsALogin(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Loopback = false })
	for _, path := range []string{"/", "/nothing"} {
		w.get(path).wants(403, "console.users").lacks("Court")
	}
}

func TestARequestThatNoPageAnswersIsRefused(t *testing.T) {
	w := newWorld(t)
	w.get("/nothing").wants(404, "There is no page with this address", `<a href="/">Overview</a>`)
	w.send("POST", "/", url.Values{"a": {"b"}}).wants(405, "Nothing can be changed at this address")
	w.send("POST", "/", url.Values{}, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }).wants(403, "another site")
	head := w.send("HEAD", "/", nil).wants(200)
	if head.body != "" {
		t.Errorf("HEAD has a body: %s", head.body)
	}
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"} {
		if got := head.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestThePageOfADatabaseThatIsAwaySaysSo(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Read.Close() })
	if retry := w.get("/").wants(503, "The database does not answer").Header.Get("Retry-After"); retry == "" {
		t.Error("the answer does not say when to try again")
	}
}

package console

import (
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a database with one sync, and a server of its pages.
type world struct {
	outboxtest.Session
	database string
	console  *Console
	server   *httptest.Server
	client   *http.Client
}

// newWorld serves the pages of a new database. change may change their settings.
func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	t.Parallel()
	database := pgtest.New(t)
	w := &world{Session: outboxtest.Connect(t, database), database: database}
	w.Sync("Court", "scheduling:*")
	config := Config{
		Read: pool(t, pgtest.AsRole(t, database, "outbox_auditor")), Operate: pool(t, pgtest.AsRole(t, database, "outbox_operator")),
		Loopback: true, Version: "1.2.3", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, c := range change {
		c(&config)
	}
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	w.console = c
	t.Cleanup(c.Close)
	w.console = c
	w.server = httptest.NewServer(c.Handler())
	t.Cleanup(w.server.Close)
	w.client = w.server.Client()
	w.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return w
}

func pool(t *testing.T, database string) *pgxpool.Pool {
	t.Helper()
	c, err := pgxpool.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // as the commands do
	p, err := pgxpool.NewWithConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// answer is the answer to a request.
type answer struct {
	t *testing.T
	*http.Response
	body string
}

// send sends a request. change may change it.
func (w *world) send(method, path string, form url.Values, change ...func(*http.Request)) answer {
	t := w.T.(*testing.T)
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, w.server.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, c := range change {
		c(r)
	}
	got, err := w.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	body, err := io.ReadAll(got.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{t, got, string(body)}
}

// get asks for a page.
func (w *world) get(path string, change ...func(*http.Request)) answer {
	w.T.Helper()
	return w.send("GET", path, nil, change...)
}

// wants checks the status of an answer, and that its page has texts.
func (a answer) wants(status int, texts ...string) answer {
	a.t.Helper()
	if a.StatusCode != status {
		a.t.Errorf("%s %s: %s, want %d\n%s", a.Request.Method, a.Request.URL.Path, a.Status, status, a.body)
	}
	for _, text := range texts {
		if !strings.Contains(a.body, text) {
			a.t.Errorf("%s has no %q:\n%s", a.Request.URL.Path, text, a.body)
		}
	}
	return a
}

// lacks checks that a page has none of the texts.
func (a answer) lacks(texts ...string) {
	a.t.Helper()
	for _, text := range texts {
		if strings.Contains(a.body, text) {
			a.t.Errorf("%s has %q:\n%s", a.Request.URL.Path, text, a.body)
		}
	}
}

// link returns the address of the page's link with a text.
func (a answer) link(text string) string {
	a.t.Helper()
	found := regexp.MustCompile(`<a [^>]*href="([^"]*)"[^>]*>` + regexp.QuoteMeta(text) + `</a>`).FindStringSubmatch(a.body)
	if found == nil {
		a.t.Fatalf("%s has no link %q:\n%s", a.Request.URL.Path, text, a.body)
	}
	return html.UnescapeString(found[1])
}

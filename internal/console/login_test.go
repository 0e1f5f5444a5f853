package console

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	anaToken = "ana-token-0123456789"
	bobToken = "bob-token-0123456789"
)

func withUsers(c *Config) {
	c.Loopback = false
	c.Users = []User{{Name: "ana", Token: anaToken, May: Operate}, {Name: "bob <b>", Token: bobToken}}
}

// logIn logs in, and returns what adds the session to a request.
func (w *world) logIn(token string) func(*http.Request) {
	w.T.Helper()
	cookies := w.send("POST", "/login", url.Values{"token": {token}}).wants(303).Cookies()
	if len(cookies) != 1 {
		w.T.Fatalf("%d cookies, want 1", len(cookies))
	}
	return func(r *http.Request) { r.AddCookie(cookies[0]) }
}

func TestAPageNeedsALoginIfThereAreUsers(t *testing.T) {
	w := newWorld(t, withUsers)
	got := w.get("/?a=b").wants(303).Header.Get("Location")
	if got != "/login?next=%2F%3Fa%3Db" {
		t.Errorf("sent to %s", got)
	}
	w.get(got).wants(200, `name="token"`, `name="next" value="/?a=b"`).lacks("Court")
	w.send("POST", "/", url.Values{}).wants(401, "You are not logged in")
	back := w.send("POST", "/login", url.Values{"token": {" " + bobToken}, "next": {"/?a=b"}}).wants(303)
	if to := back.Header.Get("Location"); to != "/?a=b" {
		t.Errorf("after the login: %s", to)
	}
	cookie := back.Cookies()[0]
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteLaxMode || cookie.MaxAge != 12*60*60 || cookie.Path != "/" {
		t.Errorf("the cookie is %v", cookie)
	}
	if strings.Contains(cookie.Value, bobToken) {
		t.Error("the cookie has the token")
	}
	bob := w.logIn(bobToken)
	w.get("/", bob).wants(200, "Court", `<a class="aside" href="/login">bob &lt;b&gt;</a>`)
	w.get("/login", bob).wants(200, "bob &lt;b&gt;", "may read", "Log out").lacks("may read and act")
	w.get("/login", w.logIn(anaToken)).wants(200, "may read and act")
	out := w.send("POST", "/logout", url.Values{}, bob).wants(303)
	if c := out.Cookies(); len(c) != 1 || c[0].MaxAge >= 0 {
		t.Errorf("the cookies after the logout: %v", c)
	}
}

func TestAfterALoginOnlyPagesOfThisServerAreShown(t *testing.T) {
	w := newWorld(t, withUsers)
	for _, next := range []string{"//evil.example", "https://evil.example/", `/\evil.example`, "javascript:alert(1)", "", "/\t/evil.example"} {
		if to := w.send("POST", "/login", url.Values{"token": {anaToken}, "next": {next}}).wants(303).Header.Get("Location"); to != "/" {
			t.Errorf("next %q leads to %q", next, to)
		}
	}
}

func TestASessionIsRefusedIfItIsNotExactlyWhatWasSigned(t *testing.T) {
	w := newWorld(t, withUsers)
	cookie := w.send("POST", "/login", url.Values{"token": {bobToken}}).Cookies()[0]
	text, signature, _ := strings.Cut(cookie.Value, ".")
	other := w.send("POST", "/login", url.Values{"token": {anaToken}}).Cookies()[0]
	otherText, _, _ := strings.Cut(other.Value, ".")
	for name, value := range map[string]string{
		"no signature": text + ".", "another signature": text + "." + signature[1:], "another name": otherText + "." + signature,
		"nothing": "", "no text": "." + signature, "long": strings.Repeat("a", 2000), "not encoded": "%." + signature,
	} {
		w.get("/", func(r *http.Request) { r.Header.Set("Cookie", cookie.Name+"="+value) }).wants(303)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

func TestASessionEndsWithItsTimeAndItsToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := User{Name: "ana", Token: anaToken}
		c := &Console{}
		c.UseUsers([]User{u})
		text := time.Now().Add(sessionLasts).UTC()
		session := func() bool {
			r, err := http.NewRequestWithContext(t.Context(), "GET", "/", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.AddCookie(&http.Cookie{Name: "lockstep", Value: u.cookie(text)})
			_, ok := c.session(r)
			return ok
		}
		if !session() {
			t.Error("a new session is refused")
		}
		c.UseUsers([]User{{Name: u.Name, Token: bobToken}})
		if session() {
			t.Error("a session of an old token is taken")
		}
		c.UseUsers([]User{u})
		time.Sleep(sessionLasts - time.Second)
		if !session() {
			t.Error("a session ends too early")
		}
		time.Sleep(time.Second)
		if session() {
			t.Error("a session does not end")
		}
	})
}

func TestAnAddressWithWrongTokensMustWait(t *testing.T) {
	w := newWorld(t, withUsers)
	for range mostWrong {
		w.send("POST", "/login", url.Values{"token": {"ana-token-012345678"}}).wants(403, "Nobody has this token").lacks("ana-token")
	}
	got := w.send("POST", "/login", url.Values{"token": {anaToken}}).wants(429, "Too many wrong tokens")
	if got.Header.Get("Retry-After") == "" || len(got.Cookies()) > 0 {
		t.Errorf("the answer is %v", got.Header)
	}
}

// from makes a request look as if a proxy had passed it on for browsers at these addresses.
func from(addresses string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("X-Forwarded-For", addresses) }
}

func TestBehindAProxyEachBrowserHasItsOwnWrongTokens(t *testing.T) {
	w := newWorld(t, withUsers, func(c *Config) {
		c.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.5/32")}
	})
	for n := range mostWrong {
		w.guess(403, []string{"203.0.113.7", "198.51.100.1, 203.0.113.7", "203.0.113.7,10.0.0.5", "x, 203.0.113.7", "203.0.113.7, 10.0.0.5, 127.0.0.1"}[n])
	}
	w.guess(429, "203.0.113.7")
	w.guess(429, "203.0.113.8, 203.0.113.7") // what the browser itself sends does not count
	w.guess(403, "203.0.113.8")
	w.guess(403, "")
}

func TestWhatStrangersSayOfTheirAddressDoesNotCount(t *testing.T) {
	w := newWorld(t, withUsers)
	for range mostWrong {
		w.guess(403, "203.0.113.7")
	}
	w.guess(429, "203.0.113.8")
}

// guess tries a wrong token as browsers at these addresses.
func (w *world) guess(status int, addresses string) {
	w.T.Helper()
	w.send("POST", "/login", url.Values{"token": {"a-wrong-token-0123"}}, from(addresses)).wants(status)
}

func TestBehindAProxyWithTLSTheCookieIsOnlySentEncrypted(t *testing.T) {
	w := newWorld(t, withUsers, func(c *Config) { c.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} })
	to, err := url.Parse(w.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.SetXForwarded()
		r.Out.Host = r.In.Host
	}})
	t.Cleanup(proxy.Close)
	direct := w.send("POST", "/login", url.Values{"token": {anaToken}}).Cookies()[0]
	if direct.Secure || direct.Name != "lockstep" {
		t.Errorf("without TLS the cookie is %v", direct)
	}
	w.server.URL, w.client = proxy.URL, proxy.Client()
	w.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	cookie := w.send("POST", "/login", url.Values{"token": {anaToken}}).wants(303).Cookies()[0]
	if !cookie.Secure || cookie.Name != "__Host-lockstep" {
		t.Errorf("the cookie is %v", cookie)
	}
	w.get("/", func(r *http.Request) { r.AddCookie(cookie) }).wants(200, "ana")
	w.get("/", func(r *http.Request) { r.AddCookie(direct) }).wants(303)
}

func TestPagesWithoutALoginAreNotServedThroughAProxy(t *testing.T) {
	w := newWorld(t)
	w.get("/").wants(200)
	for _, name := range forwarding {
		w.get("/", func(r *http.Request) { r.Header.Set(name, "for=10.0.0.1") }).wants(403, "A proxy sent this request", "console.users")
	}
}

// Whoever removes the last person does not mean everybody.
func TestPagesStayClosedWhenTheLastUserIsRemoved(t *testing.T) {
	w := newWorld(t, withUsers, func(c *Config) { c.Loopback = true })
	ana := w.logIn(anaToken)
	w.console.UseUsers(nil)
	w.get("/", ana).wants(403, "The last of console.users was removed")
	w.get("/login").wants(404)
	w.console.UseUsers([]User{{Name: "ana", Token: anaToken}})
	w.get("/", ana).wants(200)
}

func TestWrongTokensAreForgottenAfterAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a attempts
		at := func(ip string) netip.Addr { return netip.MustParseAddr(ip) }
		for range mostWrong {
			a.wrong(at("2001:db8::1"), time.Now())
		}
		if a.wait(at("2001:db8::2"), time.Now()) != time.Minute || a.wait(at("2001:db8:0:1::1"), time.Now()) != 0 || a.wait(at("10.0.0.1"), time.Now()) != 0 {
			t.Error("not exactly the addresses of one network wait")
		}
		time.Sleep(time.Minute)
		if a.wait(at("2001:db8::1"), time.Now()) != 0 {
			t.Error("an address waits for longer than a minute")
		}
	})
}

func TestAProxyNamesThePerson(t *testing.T) {
	header := func(c *Config) {
		c.Loopback, c.UserHeader, c.Operators = false, "X-Remote-User", []string{"ana"}
	}
	named := func(names ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header["X-Remote-User"] = names }
	}
	t.Run("proxy", func(t *testing.T) {
		w := newWorld(t, header, func(c *Config) {
			c.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
		})
		w.get("/", named("<b>")).wants(200, "Court", "&lt;b&gt;").lacks("<b>")
		w.get("/login", named("ana")).wants(200, "may read and act").lacks("Log out")
		w.get("/login", named("bob")).wants(200, "may read").lacks("may read and act")
		w.get("/").wants(403, "sends no header X-Remote-User")
		w.get("/", named("ana", "bob")).wants(403, "came 2 times")
		for _, name := range []string{"", "a/b", "a\tb", strings.Repeat("a", 101)} {
			w.get("/", named(name)).wants(403, "cannot be written to the log")
		}
		w.send("POST", "/login", url.Values{"token": {anaToken}}).wants(404, "There is no login here")
	})
	t.Run("another address", func(t *testing.T) {
		w := newWorld(t, header, func(c *Config) { c.Proxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
		w.get("/", named("ana")).wants(403, "through the proxy").lacks("Court")
	})
}

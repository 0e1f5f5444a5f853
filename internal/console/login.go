package console

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/page"
)

// sessionLasts is how long a login lasts.
const sessionLasts = 12 * time.Hour

// visitor returns who sent the request, or why it is refused.
//
// A person is known by the header of a proxy, or by the cookie of a login. A page that
// needs neither is served to this machine only, under its own name: another site could make
// its name point to this machine, and its script could then read the page. A login needs no
// such check, because a browser sends the cookie only to the name that it was made for.
func (c *Console) visitor(r *http.Request) (visitor, error) {
	byProxy := c.UserHeader != "" && c.isProxy(address(r))
	if names := r.Header.Values(c.UserHeader); byProxy && len(names) > 0 {
		return c.named(names)
	}
	v, ok := c.session(r)
	switch {
	case ok:
		return v, nil
	case len(c.users.get()) > 0:
		return visitor{}, errNoLogin
	case byProxy:
		return visitor{}, refusal{http.StatusForbidden, "You are not known", "The proxy does not say who you are: it sends no header " + c.UserHeader + "."}
	case c.UserHeader != "":
		return visitor{}, refusal{http.StatusForbidden, "You are not known", fmt.Sprintf("Open these pages through the proxy that logs you in: requests from %s are not from one of console.proxies.", address(r))}
	case c.hadUsers.Load():
		return visitor{}, refusal{http.StatusForbidden, "Nobody can log in", "The last of console.users was removed. Name somebody there, or restart this program to serve these pages without a login."}
	case !c.Loopback:
		return visitor{}, refusal{http.StatusForbidden, "These pages need a login", "Other machines can reach these pages, so they must know who you are: configure console.users or console.user_header."}
	case slices.ContainsFunc(forwarding, func(name string) bool { return r.Header.Get(name) != "" }):
		return visitor{}, refusal{http.StatusForbidden, "These pages need a login", "A proxy sent this request, so other machines can reach these pages, and they must know who you are: configure console.users or console.user_header."}
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return visitor{}, refusal{http.StatusForbidden, "This was refused", fmt.Sprintf("Without a login, these pages are only served as localhost, not as %s.", strconv.Quote(adapters.Clean(host, 100)))}
	}
	return visitor{May: Read}, nil
}

// errNoLogin refuses a request of somebody who can log in.
var errNoLogin = refusal{http.StatusUnauthorized, "You are not logged in", "Log in and send it again. Nothing was changed."}

// named returns the person whom a proxy names. A proxy that adds its header to that of the
// client would let everybody choose a name.
func (c *Console) named(names []string) (visitor, error) {
	if len(names) > 1 {
		return visitor{}, refusal{http.StatusForbidden, "You are not known", fmt.Sprintf("The header %s came %d times: let the proxy replace it, not add to it.", c.UserHeader, len(names))}
	}
	name := names[0]
	if name == "" || len([]rune(name)) > 100 || strings.Contains(name, "/") || name != adapters.Clean(name, 0) {
		return visitor{}, refusal{http.StatusForbidden, "You are not known", "The name that the proxy sends cannot be written to the log: it is empty or longer than 100 characters, or has a slash or control characters."}
	}
	v := visitor{Name: name, May: Read}
	if slices.Contains(c.Operators, name) {
		v.May = Operate
	}
	return v, nil
}

// forwarding are the headers by which proxies say that they pass a request on.
var forwarding = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via"}

// isProxy reports whether an address is that of one of our proxies.
func (c *Console) isProxy(ip netip.Addr) bool {
	return slices.ContainsFunc(c.Proxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// browser returns the address of the browser, and whether its connection is encrypted. Our
// proxies say both: each adds the address that it was called from to the end of
// X-Forwarded-For. What stands before the first foreign address may be invented.
func (c *Console) browser(r *http.Request) (from netip.Addr, encrypted bool) {
	from, encrypted = address(r), r.TLS != nil
	if !c.isProxy(from) {
		return from, encrypted
	}
	encrypted = encrypted || lastOf(r.Header.Values("X-Forwarded-Proto")) == "https"
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		ip, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil || !c.isProxy(from) {
			break
		}
		from = ip.Unmap().WithZone("")
	}
	return from, encrypted
}

// lastOf returns the last of the values of a header, which has the form of a list.
func lastOf(values []string) string {
	all := strings.Split(strings.Join(values, ","), ",")
	return strings.TrimSpace(all[len(all)-1])
}

// address returns the address that a request came from.
func address(r *http.Request) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap().WithZone("")
}

// cookieName is the name of the cookie of a login. A browser takes one that begins with
// __Host- only by HTTPS and from this server itself.
func cookieName(encrypted bool) string {
	if encrypted {
		return "__Host-lockstep"
	}
	return "lockstep"
}

// session returns the person of the cookie.
func (c *Console) session(r *http.Request) (visitor, bool) {
	_, encrypted := c.browser(r)
	cookie, err := r.Cookie(cookieName(encrypted))
	if err != nil || len(cookie.Value) > 1000 {
		return visitor{}, false
	}
	encoded, signature, _ := strings.Cut(cookie.Value, ".")
	text, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return visitor{}, false
	}
	ends, name, _ := strings.Cut(string(text), " ")
	seconds, err := strconv.ParseInt(ends, 10, 64)
	if err != nil || !time.Now().Before(time.Unix(seconds, 0)) {
		return visitor{}, false
	}
	for _, u := range c.users.get() {
		if u.Name == name && hmac.Equal([]byte(signature), []byte(u.sign(string(text)))) {
			return visitor{Name: u.Name, May: u.May}, true
		}
	}
	return visitor{}, false
}

// cookie returns the value of the cookie of a session.
func (u User) cookie(ends time.Time) string {
	text := strconv.FormatInt(ends.Unix(), 10) + " " + u.Name
	return base64.RawURLEncoding.EncodeToString([]byte(text)) + "." + u.sign(text)
}

// sign signs a session. The key comes from the user's token, so a session outlives a
// restart of this program, and ends when the token changes.
func (u User) sign(session string) string {
	h := hmac.New(sha256.New, []byte("lockstep console session\n"+u.Token.Reveal()))
	h.Write([]byte(session))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// userOf returns the user with a token. It takes the same time for all wrong tokens.
func (c *Console) userOf(token string) (found User, ok bool) {
	given := sha256.Sum256([]byte(token))
	for _, u := range c.users.get() {
		wanted := sha256.Sum256([]byte(u.Token.Reveal()))
		if subtle.ConstantTimeCompare(given[:], wanted[:]) == 1 {
			found, ok = u, true
		}
	}
	return found, ok
}

// loginData is the page on which a person logs in, or out.
type loginData struct {
	Name  string // who is logged in; empty: nobody
	May   May
	Next  string // the page to show after the login
	Wrong string
	Out   bool // the person can log out here
}

// login shows who is logged in, or a form to do so.
func (c *Console) login(w http.ResponseWriter, r *http.Request) error {
	if v, err := c.visitor(r); err == nil && v.Name != "" {
		_, out := c.session(r)
		c.write(w, r, http.StatusOK, page.View{Page: "login", Title: "Who you are", Data: loginData{Name: v.Name, May: v.May, Out: out}})
		return nil
	}
	if len(c.users.get()) == 0 {
		return refusal{http.StatusNotFound, "There is no login here", "Nobody can log in with a token, because console.users is empty."}
	}
	c.write(w, r, http.StatusOK, page.View{Page: "login", Title: "Log in", Data: loginData{Next: localPath(r.FormValue("next"))}})
	return nil
}

// logIn makes a session for the user with the token of the form.
func (c *Console) logIn(w http.ResponseWriter, r *http.Request) error {
	if len(c.users.get()) == 0 {
		return refusal{http.StatusNotFound, "There is no login here", "Nobody can log in with a token, because console.users is empty."}
	}
	if err := r.ParseForm(); err != nil {
		return refusal{http.StatusBadRequest, "This was refused", "The form cannot be read. Open the page again."}
	}
	from, _ := c.browser(r)
	if wait := c.attempts.wait(from, time.Now()); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		return refusal{http.StatusTooManyRequests, "Too many wrong tokens", "Too many wrong tokens came from your address. Try again in a minute."}
	}
	next := localPath(r.PostFormValue("next"))
	u, ok := c.userOf(strings.TrimSpace(r.PostFormValue("token")))
	if !ok {
		c.attempts.wrong(from, time.Now())
		c.Log.WarnContext(r.Context(), "console: a wrong token", "address", from.String())
		c.write(w, r, http.StatusForbidden, page.View{Page: "login", Title: "Log in", Data: loginData{Next: next, Wrong: "Nobody has this token. Check that you copied all of it."}})
		return nil
	}
	c.setCookie(w, r, u.cookie(time.Now().Add(sessionLasts)), int(sessionLasts/time.Second))
	c.Log.InfoContext(r.Context(), "console: logged in", "person", u.Name, "address", from.String())
	http.Redirect(w, r, next, http.StatusSeeOther)
	return nil
}

// logOut ends the session of this browser.
func (c *Console) logOut(w http.ResponseWriter, r *http.Request) error {
	c.setCookie(w, r, "", -1)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
	return nil
}

// setCookie sets the cookie of a login. A browser sends it also with a link from elsewhere,
// such as a mail, because a page that is read changes nothing. With forms of other sites it
// does not send it.
func (c *Console) setCookie(w http.ResponseWriter, r *http.Request, value string, seconds int) {
	_, encrypted := c.browser(r)
	http.SetCookie(w, &http.Cookie{
		Name: cookieName(encrypted), Value: value, Path: "/", MaxAge: seconds,
		HttpOnly: true, Secure: encrypted, SameSite: http.SameSiteLaxMode,
	})
}

// localPath returns the address of a page of this server, and the overview for all others.
func localPath(path string) string {
	u, err := url.Parse(path)
	if err != nil || u.Host != "" || u.Scheme != "" || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || strings.ContainsAny(path, "\\\r\n\t") {
		return "/"
	}
	return path
}

// attempts counts the wrong tokens of each address in the last minute.
type attempts struct {
	mu   sync.Mutex
	last map[netip.Prefix][]time.Time
}

const (
	mostWrong     = 5 // wrong tokens of one address in a minute
	wrongCounts   = time.Minute
	mostAddresses = 10_000
)

// source is what counts as one address: a host can have all addresses of its IPv6 network.
func source(from netip.Addr) netip.Prefix {
	bits := from.BitLen()
	if from.Is6() {
		bits = 64
	}
	p, _ := from.Prefix(bits) // fits
	return p
}

// wait returns how long an address must wait before its next token is looked at.
func (a *attempts) wait(from netip.Addr, now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.last[source(from)]
	if len(all) < mostWrong {
		return 0
	}
	return max(0, all[len(all)-mostWrong].Add(wrongCounts).Sub(now))
}

// wrong notes a wrong token.
func (a *attempts) wrong(from netip.Addr, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil || len(a.last) >= mostAddresses {
		a.last = map[netip.Prefix][]time.Time{} // so many addresses do not guess a token of 16 characters either
	}
	of := append(a.last[source(from)], now)
	a.last[source(from)] = of[max(0, len(of)-mostWrong):]
}

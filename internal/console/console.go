package console

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/page"
)

// Config are the settings of the pages.
type Config struct {
	Read       *pgxpool.Pool  // of a login in outbox_auditor
	Operate    *pgxpool.Pool  // of a login in outbox_operator; nil: there are no actions
	Zone       *time.Location // of the times on the pages; default UTC
	Users      []User         // who may log in with a token
	UserHeader string         // the header in which a proxy names the person; empty: none
	Proxies    []netip.Prefix // the addresses from which UserHeader, X-Forwarded-For and X-Forwarded-Proto count
	Operators  []string       // names in UserHeader that may operate
	Loopback   bool           // only this machine can reach the pages
	Version    string         // of this program
	Log        *slog.Logger
}

// User is a person who may log in.
type User struct {
	Name  string
	Token adapters.Secret
	May   May
}

// May is what a person may do.
type May int

// What a person may do. Who may operate may also read.
const (
	Read May = iota
	Operate
)

// Console serves the pages. It is safe for concurrent use.
type Console struct {
	Config
	users    guarded[[]User] // instead of Config.Users, which UseUsers replaces
	hadUsers atomic.Bool     // there were some once, so the pages are not served without a login
	site     *page.Site
	mux      *http.ServeMux
	attempts attempts
	jobs     jobs
	latest   latest
	history  history
	kept     kept
	viewers  chan struct{} // one entry for each who watches live

	actWithin time.Duration // bounds a request for an action

	serving context.Context // ends with Close
	end     context.CancelCauseFunc
}

//go:embed pages/*.html
var pageFiles embed.FS

// New prepares the pages. It reads nothing from the database yet.
func New(config Config) (*Console, error) {
	c := &Console{Config: config, mux: http.NewServeMux(), viewers: make(chan struct{}, mostViewers)}
	c.serving, c.end = context.WithCancelCause(context.Background())
	c.jobs.answerWithin = 3 * time.Second
	c.actWithin = 25 * time.Second // less than the server's time for writing an answer
	c.UseUsers(config.Users)
	if c.Zone == nil {
		c.Zone = time.UTC
	}
	files, err := fs.Sub(pageFiles, "pages")
	if err != nil {
		return nil, err
	}
	if c.site, err = page.NewSite("Lockstep", navigation, files, c.functions()); err != nil {
		return nil, err
	}
	for _, r := range c.routes() {
		c.handle(r.pattern, r.needs, r.answer)
	}
	c.open("GET /login", c.login)
	c.open("POST /login", c.logIn)
	c.open("POST /logout", c.logOut)
	c.serve("GET /live", Read, c.live)
	c.handle("/", Read, unknown)
	c.mux.HandleFunc(page.StylePattern, page.Style)
	c.mux.HandleFunc("GET "+scriptURL, serveScript)
	return c, nil
}

// UseUsers replaces those who may log in with a token. A login ends if its user is none of
// them, or has another token now.
func (c *Console) UseUsers(users []User) {
	if len(users) > 0 {
		c.hadUsers.Store(true)
	}
	c.users.set(users)
}

// Handler serves the pages.
func (c *Console) Handler() http.Handler { return c.mux }

// visitor is the person who asks for a page.
type visitor struct {
	Name string // empty: not known
	May  May
}

// handler answers a request with a page. The page of an error is written by its caller.
type handler func(w http.ResponseWriter, r *http.Request, v visitor) error

// maxBody bounds the form of a request.
const maxBody = 64 << 10

// handle answers requests for a page of visitors who may do what it needs. A page that is
// only for reading is bounded in time. If it cannot be read now, its last good answer is shown.
func (c *Console) handle(pattern string, needs May, h handler) {
	if needs > Read {
		c.serve(pattern, needs, func(w http.ResponseWriter, r *http.Request, v visitor) error {
			defer c.latest.expire() // a person who has acted sees what is true now
			ctx, cancel := context.WithTimeoutCause(r.Context(), c.actWithin, fmt.Errorf("no answer within %s", c.actWithin))
			defer cancel()
			return h(w, r.WithContext(ctx), v)
		})
		return
	}
	c.serve(pattern, needs, func(w http.ResponseWriter, r *http.Request, v visitor) error {
		ctx, cancel := context.WithTimeoutCause(r.Context(), readTimeout, fmt.Errorf("no answer within %s", readTimeout))
		defer cancel()
		err := h(w, r.WithContext(ctx), v)
		if _, refused := errors.AsType[refusal](err); err == nil || refused {
			return err
		}
		last, ok := c.kept.get(v.keptAs(r))
		if !ok {
			return err
		}
		c.logUnread(r, err)
		last.view.Note = staleNote(err, last.at)
		c.write(w, r, http.StatusOK, last.view)
		return nil
	})
}

// serve answers requests of visitors who may do what it needs.
func (c *Console) serve(pattern string, needs May, h handler) {
	c.open(pattern, func(w http.ResponseWriter, r *http.Request) error {
		v, err := c.visitor(r)
		if err == nil {
			err = c.allow(v, needs)
		}
		if errors.Is(err, errNoLogin) && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			http.Redirect(w, r, "/login?next="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
			return nil
		}
		if err != nil {
			return err
		}
		return h(w, r, v)
	})
}

// open answers requests for a page that anybody may see. It refuses forms of other sites. The
// context of a request ends with Close, because a page that waits for the database would
// keep its connection.
func (c *Console) open(pattern string, h func(http.ResponseWriter, *http.Request) error) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page.SecurityHeaders(w.Header())
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		defer context.AfterFunc(c.serving, func() { cancel(errClosing) })()
		if err := h(w, r.WithContext(ctx)); err != nil {
			c.refuse(w, r, err)
		}
	})
	own := http.NewCrossOriginProtection()
	own.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page.SecurityHeaders(w.Header())
		c.refuse(w, r, refusal{http.StatusForbidden, "This was refused", "The form was sent by another site, so nothing was changed. Open the page here and send it again."})
	}))
	c.mux.Handle(pattern, own.Handler(answer))
}

// allow refuses a visitor who may not do what the page needs.
func (c *Console) allow(v visitor, needs May) error {
	switch {
	case needs == Read:
		return nil
	case c.Operate == nil:
		return refusal{http.StatusForbidden, "There are no actions here", "This program has no login of the database that may act: configure console.operator_url, or use the command line."}
	case v.Name == "":
		return refusal{http.StatusForbidden, "You are not known", "The log names the person who acts, so actions need a login: configure console.users or console.user_header."}
	case v.May < needs:
		return refusal{http.StatusForbidden, "You may only read", fmt.Sprintf("%s may read these pages, but may not act. In the configuration, console.users (may: operate) and console.operators say who may.", v.Name)}
	}
	return nil
}

// refusal is an error with the page that says it.
type refusal struct {
	status int
	title  string
	says   string // one sentence or two
}

func (r refusal) Error() string { return r.says }

// unknown answers requests for which there is no page.
func unknown(_ http.ResponseWriter, r *http.Request, _ visitor) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return refusal{http.StatusMethodNotAllowed, "This was refused", "Nothing can be changed at this address."}
	}
	return refusal{http.StatusNotFound, "No such page", "There is no page with this address. Check the link, or begin with the overview."}
}

// refuse writes a page that says why there is no other page.
func (c *Console) refuse(w http.ResponseWriter, r *http.Request, err error) {
	said, ok := errors.AsType[refusal](err)
	if !ok {
		said = databaseRefusal(err)
		c.logUnread(r, err)
	}
	if said.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	c.write(w, r, said.status, page.View{Page: "refused", Title: said.title, Data: said.says})
}

func (c *Console) logUnread(r *http.Request, err error) {
	c.Log.LogAttrs(r.Context(), slog.LevelWarn, "a page could not be read",
		slog.String("route", r.Pattern), slog.String("error", adapters.Clean(err.Error(), 500)))
}

// databaseRefusal says what an error of the database means for the reader of a page.
func databaseRefusal(err error) refusal {
	says := "The database does not answer. Reload the page in a moment; the log of this program has the reason."
	if tookTooLong(err) {
		says = "The database took too long to answer. Reload the page in a moment."
	} else if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pgErr.Code {
		case "42501":
			says = "The login of this program may not read this. It needs the role outbox_auditor, which an administrator grants."
		case "3F000", "42P01", "42703", "42883":
			says = "The schema of the database does not fit this program. Run lockstep migrate status on the machine of the relay."
		}
	}
	return refusal{http.StatusServiceUnavailable, "This cannot be shown now", says}
}

// tookTooLong reports whether a statement or a page had no time left.
func tookTooLong(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == "57014" || errors.Is(err, context.DeadlineExceeded)
}

// write writes a page, and keeps it for the time when the database does not answer. Its foot
// says when that was, unless it says something else.
func (c *Console) write(w http.ResponseWriter, r *http.Request, status int, v page.View) {
	if v.Foot == "" {
		v.Foot = "As of " + time.Now().In(c.Zone).Format("15:04:05 MST") + "."
	}
	if who, err := c.visitor(r); err == nil {
		if status == http.StatusOK && r.Method == http.MethodGet && v.Note == "" {
			c.kept.put(who.keptAs(r), v)
		}
		if who.Name != "" {
			v.Aside = page.Link{URL: "/login", Text: who.Name}
		}
	}
	if err := c.site.Write(w, status, v); err != nil {
		c.Log.LogAttrs(r.Context(), slog.LevelError, "a page could not be written", slog.String("route", r.Pattern), slog.String("error", err.Error()))
		http.Error(w, "the page could not be written", http.StatusInternalServerError)
	}
}

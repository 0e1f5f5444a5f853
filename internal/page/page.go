// Package page has what all HTML pages of Lockstep share: the layout, the style sheet,
// the security headers, and how times are written.
//
// A page is one file of html/template that defines "main", and may define "head" for
// the end of the head element. It is written to a buffer first, so a reader never
// gets half a page.
package page

import (
	"bytes"
	"embed"
	"fmt"
	"hash/fnv"
	"html/template"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"strings"
	"time"
)

//go:embed layout.html style.css
var files embed.FS

// style is the style sheet. Its URL has its hash, so that browsers may keep it.
var style, styleURL = func() ([]byte, string) {
	b, err := files.ReadFile("style.css")
	if err != nil {
		panic(err) // it is embedded
	}
	h := fnv.New64a()
	_, _ = h.Write(b) // never fails
	return b, fmt.Sprintf("/static/style-%x.css", h.Sum64())
}()

// Link is an entry of the navigation.
type Link struct{ URL, Text string }

// Site is a set of pages with one layout. It is safe for concurrent use.
type Site struct {
	name  string
	nav   []Link
	pages map[string]*template.Template
}

// NewSite reads all *.html of pages. A page's name is that of its file without .html.
// A file whose name begins with _ is a part that all pages can use.
func NewSite(name string, nav []Link, pages fs.FS, funcs template.FuncMap) (*Site, error) {
	all := template.FuncMap{"style": func() string { return styleURL }, "time": Time, "timeNear": TimeNear, "timeExact": TimeExact}
	maps.Copy(all, funcs)
	base, err := template.New("layout.html").Funcs(all).ParseFS(files, "layout.html")
	if err != nil {
		return nil, err
	}
	names, err := fs.Glob(pages, "*.html")
	if err != nil {
		return nil, err
	}
	s := &Site{name: name, nav: nav, pages: map[string]*template.Template{}}
	for _, file := range names {
		if strings.HasPrefix(file, "_") {
			if base, err = base.ParseFS(pages, file); err != nil {
				return nil, err
			}
		}
	}
	for _, file := range names {
		if strings.HasPrefix(file, "_") {
			continue
		}
		one, err := base.Clone()
		if err == nil {
			_, err = one.ParseFS(pages, file)
		}
		if err != nil {
			return nil, fmt.Errorf("page %s: %w", file, err)
		}
		s.pages[strings.TrimSuffix(path.Base(file), ".html")] = one
	}
	return s, nil
}

// View is what the layout shows around a page.
type View struct {
	Page  string // name of the page
	Title string // its h1, and with the site's name the title of the window
	Here  string // URL of the navigation's entry that the page belongs to; "" for none
	Aside Link   // a short text at the end of the header, such as who is signed in
	Note  string // a sentence above the page that the reader must not miss
	Foot  string // a sentence below the page
	Data  any    // what "main" gets as .Data
}

// Write answers with a page.
func (s *Site) Write(w http.ResponseWriter, status int, v View) error {
	t := s.pages[v.Page]
	if t == nil {
		return fmt.Errorf("no page is named %q", v.Page)
	}
	var out bytes.Buffer
	err := t.ExecuteTemplate(&out, "layout.html", struct {
		View
		Site string
		Nav  []Link
	}{v, s.name, s.nav})
	if err != nil {
		return fmt.Errorf("page %s: %w", v.Page, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = out.WriteTo(w) // the reader may have closed the connection
	return nil
}

// Part writes a part of a page: a template that the page's file or a file with _ defines.
func (s *Site) Part(w io.Writer, page, part string, data any) error {
	t := s.pages[page]
	if t == nil {
		return fmt.Errorf("no page is named %q", page)
	}
	return t.ExecuteTemplate(w, part, data)
}

// StylePattern is the pattern of [Style] for a ServeMux.
const StylePattern = "GET /static/{style}"

// Style answers with the style sheet.
func Style(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != styleURL {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	_, _ = w.Write(style) // the reader may have closed the connection
}

// policy lets a page load nothing that is not from its own server, run no script inside
// the page, send forms to no other server, and not be shown in a frame.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// SecurityHeaders sets the headers that every page has. With the referrer policy
// no-referrer, a browser sends "Origin: null" with forms, which
// http.CrossOriginProtection refuses on plain HTTP.
func SecurityHeaders(h http.Header) {
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}

// Time writes a time as a time element: its text is in the zone of at, with the date
// and the zone's name.
func Time(at time.Time) template.HTML {
	return timeElement(at, at.Format("Mon 2 Jan 2006, 15:04 MST"))
}

// TimeNear is [Time] without what the reader knows: on the day of now the text is the
// time only.
func TimeNear(at, now time.Time) template.HTML {
	if at.Format(time.DateOnly) == now.In(at.Location()).Format(time.DateOnly) {
		return timeElement(at, at.Format("15:04"))
	}
	return timeElement(at, at.Format("Mon 2 Jan 2006, 15:04"))
}

// TimeExact is [Time] with seconds.
func TimeExact(at time.Time) template.HTML {
	return timeElement(at, at.Format("Mon 2 Jan 2006, 15:04:05 MST"))
}

func timeElement(at time.Time, text string) template.HTML {
	return template.HTML(fmt.Sprintf(`<time datetime="%s" title="%s">%s</time>`, at.Format(time.RFC3339),
		template.HTMLEscapeString(at.Format("Monday 2 January 2006, 15:04:05 MST")), template.HTMLEscapeString(text)))
}

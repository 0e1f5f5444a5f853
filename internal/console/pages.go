package console

import (
	"html/template"
	"net/url"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/page"
)

// navigation is on top of every page.
var navigation = []page.Link{
	{URL: "/", Text: "Overview"},
	{URL: "/failed", Text: "Failed"},
	{URL: "/blocked", Text: "Blocked"},
	{URL: "/changes", Text: "Changes"},
}

// route is the address of a page, and what a visitor needs to see it.
type route struct {
	pattern string
	needs   May
	answer  handler
}

// routes are all pages.
func (c *Console) routes() []route {
	return []route{
		{"GET /{$}", Read, c.overview},
		{"GET /failed", Read, c.failed},
		{"GET /blocked", Read, c.blocked},
		{"GET /sync/{name}", Read, c.sync},
		{"GET /find", Read, c.find},
		{"GET /key/{key}", Read, c.storyOf},
		{"GET /key", Read, c.storyAsked},
		{"GET /changes", Read, c.changes},
		{"GET /action/{action}", Operate, c.confirm},
		{"POST /action/{action}", Operate, c.act},
		{"GET /action/pause", Operate, c.confirmPause},
		{"POST /action/pause", Operate, c.changePause},
		{"GET /action/resume", Operate, c.confirmPause},
		{"POST /action/resume", Operate, c.changePause},
		{"GET /action/job/{id}", Read, c.showJob},
		{"POST /action/job/{id}/stop", Operate, c.stopJob},
	}
}

// functions are what templates can call, in addition to those of package page. Times are
// in the zone of the console.
func (c *Console) functions() template.FuncMap {
	return template.FuncMap{
		"time":       func(at time.Time) template.HTML { return page.Time(at.In(c.Zone)) },
		"timeNear":   func(at, now time.Time) template.HTML { return page.TimeNear(at.In(c.Zone), now) },
		"timeExact":  func(at time.Time) template.HTML { return page.TimeExact(at.In(c.Zone)) },
		"sentence":   c.sentence,
		"keyURL":     keyURL,
		"lasting":    lasting,
		"script":     func() string { return scriptURL },
		"text":       func(s string) string { return adapters.Clean(s, 0) },
		"tone":       func(s inspect.Standing) string { return tones[string(s)] },
		"syncURL":    func(sync string) string { return "/sync/" + url.PathEscape(sync) },
		"failedURL":  func(sync string) string { return "/failed?" + url.Values{"sync": {sync}}.Encode() },
		"blockedURL": func(sync string) string { return "/blocked?" + url.Values{"sync": {sync}}.Encode() },
		"person":     inspect.Person,
		"answer":     inspect.Answer,
	}
}

// sentence writes a sentence with its times.
func (c *Console) sentence(s inspect.Sentence) template.HTML { return sentenceIn(s, c.Zone) }

// sentenceIn writes a sentence with the times of a zone.
func sentenceIn(s inspect.Sentence, zone *time.Location) template.HTML {
	var b strings.Builder
	for _, p := range s {
		if p.Time.IsZero() {
			b.WriteString(template.HTMLEscapeString(p.Text))
			continue
		}
		b.WriteString(string(page.Time(p.Time.In(zone))))
	}
	return template.HTML(b.String()) // its texts are escaped
}

// action is a link to the page of an action, with the names and values of its query.
func action(name, text string, query ...string) page.Link {
	q := url.Values{}
	for i := 0; i < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	return page.Link{URL: "/action/" + name + "?" + q.Encode(), Text: text}
}

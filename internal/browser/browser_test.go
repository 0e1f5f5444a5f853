package browser

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

var screenshots = flag.String("screenshots", "", "write pictures into this `directory`")

// actionTimeout bounds one action in the browser.
const actionTimeout = 30 * time.Second

// chrome is the browser of all tests.
var chrome context.Context

func TestMain(m *testing.M) { pgtest.Main(withChrome{m}) }

// withChrome starts the browser and builds the programs for the tests.
type withChrome struct{ tests interface{ Run() int } }

func (w withChrome) Run() int {
	code, err := w.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "browser:", err)
		return 1
	}
	return code
}

func (w withChrome) run() (code int, err error) {
	dir, err := os.MkdirTemp("", "lockstep-browser-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := build(context.Background(), dir); err != nil {
		return 0, err
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.NoSandbox, // Chromium's sandbox does not start as root
		chromedp.UserDataDir(dir+"/profile"),
		chromedp.Flag("force-color-profile", "srgb"),
		chromedp.Flag("font-render-hinting", "none"),
		chromedp.Flag("lang", "en-US"),
		chromedp.Flag("ignore-certificate-errors", true), // those of the tests are signed by nobody
		chromedp.Env("TZ=America/New_York", "LANGUAGE=en_US", "HOME="+dir),
		chromedp.WSURLReadTimeout(time.Minute),
	)
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	defer stop()
	ctx, cancel := chromedp.NewContext(ctx)
	defer cancel()
	if err := chromedp.Do(ctx); errors.Is(err, exec.ErrNotFound) {
		return 0, errors.New("the tests need Chromium (Debian: apt-get install chromium fonts-dejavu-core)")
	} else if err != nil {
		return 0, fmt.Errorf("start Chromium: %w", err)
	}
	chrome = ctx
	code = w.tests.Run()
	return code, chromedp.Cancel(ctx)
}

// tab is a tab with cookies of its own. Everything that a page does wrong while it is
// open fails the test.
type tab struct {
	*testing.T
	ctx     context.Context
	mu      sync.Mutex
	host    string // of the pages
	refused bool   // the page itself may be an answer such as 404
	wrong   []string
}

// open opens a tab. zone is the reader's.
func open(t *testing.T) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(chrome, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	p := &tab{T: t, ctx: ctx}
	// This first action of the tab has no deadline, which would end the tab.
	if err := chromedp.Listen(ctx, p.note); err != nil {
		t.Fatal(err)
	}
	call(p, log.Enable, cdp.Empty{})
	call(p, network.Enable, network.EnableParams{})
	call(p, runtime.Enable, cdp.Empty{})
	p.screen(wide, light)
	return p
}

// note is called for each event of the tab.
func (p *tab) note(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelVerbose {
			return // advice, such as for password forms
		}
		if p.refused && e.Entry.Source == log.EntrySourceNetwork && strings.Contains(e.Entry.Text, "the server responded with a status of") {
			return
		}
		p.wrong = append(p.wrong, fmt.Sprintf("%s: %s %s", e.Entry.Level, e.Entry.Text, e.Entry.URL))
	case *runtime.EventExceptionThrown:
		p.wrong = append(p.wrong, "exception: "+e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		p.wrong = append(p.wrong, fmt.Sprintf("console.%s", e.Type))
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(e.Request.URL); err == nil && u.Scheme != "data" && u.Host != p.host {
			p.wrong = append(p.wrong, "request to another server: "+e.Request.URL)
		}
	}
}

// do runs actions.
func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, actionTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.Fatal(err)
	}
}

// call runs a command of the DevTools protocol.
func call[P, R any](p *tab, command cdp.Command[P, R], params P) R {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, actionTimeout)
	defer cancel()
	answer, err := chromedp.Call(ctx, command, params)
	if err != nil {
		p.Fatal(err)
	}
	return answer
}

// eval returns the value of an expression.
func eval[T any](p *tab, expression string) T {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, actionTimeout)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		p.Fatal(err)
	}
	return v
}

// visit opens a page that must be there.
func (p *tab) visit(address string) *tab {
	p.Helper()
	return p.visitStatus(address, 200)
}

// visitStatus opens a page that is answered with this status.
func (p *tab) visitStatus(address string, status int64) *tab {
	p.Helper()
	u, err := url.Parse(address)
	if err != nil {
		p.Fatal(err)
	}
	p.mu.Lock()
	p.host, p.refused = u.Host, status >= 400
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(p.ctx, actionTimeout)
	defer cancel()
	answer, err := chromedp.RunResponse(ctx, chromedp.Navigate(address))
	if err != nil {
		p.Fatalf("%s: %v", address, err)
	}
	if answer.Status != status {
		p.Fatalf("%s answered %d, want %d; the page says:\n%s", address, answer.Status, status, p.text())
	}
	return p
}

// text is what a reader sees.
func (p *tab) text() string {
	p.Helper()
	return eval[string](p, "document.body?.innerText ?? ''")
}

// says waits until the page has these texts. Spaces and line ends are the same.
func (p *tab) says(texts ...string) *tab {
	p.Helper()
	var got string
	for _, want := range texts {
		waiting.For(p, actionTimeout, fmt.Sprintf("the page says %q", want), func() bool {
			got = strings.Join(strings.Fields(p.text()), " ")
			return strings.Contains(got, want)
		}, func() string { return got })
	}
	return p
}

// press presses keys, such as kb.Tab.
func (p *tab) press(keys ...string) {
	p.Helper()
	for _, k := range keys {
		p.do(chromedp.KeyEvent(k))
	}
}

// fill writes a value into a field of the page's form, like a person who replaces what
// is there.
func (p *tab) fill(field, value string) *tab {
	p.Helper()
	// The keys for a date depend on the browser's language.
	p.do(chromedp.SetValue(`[name="`+field+`"]:not([type=hidden])`, value))
	return p
}

// submit presses Enter in a field, and waits for the page that follows. status is that of
// the page after redirects.
func (p *tab) submit(field string, status int64) *tab {
	p.Helper()
	selector := `[name="` + field + `"]:not([type=hidden])`
	return p.follow(status, chromedp.Focus(selector), chromedp.KeyEvent(kb.Enter))
}

// click clicks the button or link with this text, and waits for the page that follows.
func (p *tab) click(text string, status int64) *tab {
	p.Helper()
	return p.follow(status, chromedp.Click(fmt.Sprintf(`//*[self::button or self::a][normalize-space()=%q]`, text)))
}

func (p *tab) follow(status int64, actions ...chromedp.Action[chromedp.Void]) *tab {
	p.Helper()
	p.mu.Lock()
	p.refused = status >= 400
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(p.ctx, actionTimeout)
	defer cancel()
	answer, err := chromedp.RunResponse(ctx, actions...)
	if err != nil {
		p.Fatalf("%v; the page says:\n%s", err, p.text())
	}
	if answer != nil && answer.Status != status {
		p.Fatalf("%s answered %d, want %d; the page says:\n%s", answer.URL, answer.Status, status, p.text())
	}
	return p
}

// withoutScripts turns the scripts of pages off.
func (p *tab) withoutScripts(off bool) *tab {
	p.Helper()
	call(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: off})
	return p
}

// choose selects a radio button.
func (p *tab) choose(name, value string) *tab {
	p.Helper()
	p.do(chromedp.Click(fmt.Sprintf("input[name=%q][value=%q]", name, value)))
	return p
}

// run runs a script for its effect.
func (p *tab) run(script string) {
	p.Helper()
	p.do(chromedp.Evaluate[chromedp.Void](script))
}

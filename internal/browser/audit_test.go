package browser

import (
	"bytes"
	_ "embed"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/hms-mkt/lockstep/internal/waiting"
)

// scheme is a color scheme, and size is a screen.
type (
	scheme string
	size   struct {
		name          string
		width, height int64
	}
)

const (
	light scheme = "light"
	dark  scheme = "dark"
)

var (
	wide  = size{"wide", 1280, 800}
	phone = size{"phone", 360, 740}
)

// screen sets the screen and the color scheme.
func (p *tab) screen(s size, colors scheme) {
	p.Helper()
	call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: s.width, Height: s.height, DeviceScaleFactor: 1, Mobile: s == phone,
	})
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: string(colors)}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
}

//go:embed audit.js
var auditScript string

//go:embed keyboard.js
var keyboardScript string

// audit checks the page that is shown in every scheme and on every screen, and its
// keyboard. It takes the pictures with these names, which end in -light, -dark or -phone.
func (p *tab) audit(pictures ...string) {
	p.Helper()
	for _, s := range []size{wide, phone} {
		for _, colors := range []scheme{light, dark} {
			p.screen(s, colors)
			for _, wrong := range eval[[]string](p, auditScript) {
				p.Errorf("%s (%s, %s): %s", p.where(), s.name, colors, wrong)
			}
			look := string(colors)
			if s == phone {
				look = map[scheme]string{light: "phone", dark: "phone-dark"}[colors]
			}
			for _, name := range pictures {
				if strings.HasSuffix(name, "-"+look) {
					p.picture(name)
				}
			}
		}
	}
	p.screen(wide, light)
	p.keyboard()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, wrong := range p.wrong {
		p.Errorf("%s: %s", p.host, wrong)
	}
	p.wrong = nil
}

// where names the page in a message.
func (p *tab) where() string {
	p.Helper()
	return eval[string](p, "location.pathname + location.search")
}

// keyboard presses Tab until everything was reached: in the order of the page, each with
// a visible focus, the link that skips the header first.
func (p *tab) keyboard() {
	p.Helper()
	type place struct {
		Stops   int
		At      int // place among the stops, or -1
		Text    string
		Visible bool
	}
	p.atTheTop()
	stops := eval[place](p, keyboardScript).Stops
	var reached []int
	for range 10*stops + 10 { // a date has several stops
		p.press(kb.Tab)
		at := eval[place](p, keyboardScript)
		if at.At < 0 {
			break // the end of the page
		}
		if !at.Visible {
			p.Errorf("%s: the focus of %s cannot be seen", p.where(), at.Text)
		}
		if len(reached) == 0 && !strings.HasPrefix(at.Text, "A Skip") {
			p.Errorf("%s: the first stop of the Tab key is %s, not the link that skips the header", p.where(), at.Text)
		}
		if n := len(reached); n == 0 || reached[n-1] != at.At {
			reached = append(reached, at.At)
		}
		if at.At == stops-1 {
			break
		}
	}
	if !slices.IsSorted(reached) || len(reached) != stops {
		p.Errorf("%s: the Tab key reached %v of %d stops", p.where(), reached, stops)
	}
}

// atTheTop makes the Tab key begin at the top of the page.
func (p *tab) atTheTop() {
	p.Helper()
	p.run("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute(\"tabindex\"); scrollTo(0, 0)")
}

// skips checks that the first link leads to the content.
func (p *tab) skips() {
	p.Helper()
	p.atTheTop()
	p.press(kb.Tab, kb.Enter)
	waiting.For(p, actionTimeout, "the link that skips the header leads to the content", func() bool {
		return eval[string](p, "document.activeElement.id") == "main"
	})
}

// picture writes a picture of the page, if the tests were started with -screenshots.
func (p *tab) picture(name string) {
	p.Helper()
	if *screenshots == "" {
		return
	}
	p.atTheTop()
	height := min(eval[float64](p, "document.documentElement.scrollHeight"), 1200)
	beyond := true
	shot := call(p, page.CaptureScreenshot, page.CaptureScreenshotParams{
		CaptureBeyondViewport: &beyond,
		Clip:                  &page.Viewport{Width: eval[float64](p, "innerWidth"), Height: height, Scale: 1},
	})
	small, err := reduce(shot.Data)
	if err != nil {
		p.Fatal(err)
	}
	const limit = 150_000
	if len(small) > limit {
		p.Errorf("%s has %d bytes, more than %d", name, len(small), limit)
	}
	if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), small, 0o644); err != nil {
		p.Fatal(err)
	}
}

// reduce makes a picture of at most 256 colors: its most frequent ones.
func reduce(b []byte) ([]byte, error) {
	full, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	count := map[color.RGBA]int{}
	each := func(f func(x, y int, c color.RGBA)) {
		for y := full.Bounds().Min.Y; y < full.Bounds().Max.Y; y++ {
			for x := full.Bounds().Min.X; x < full.Bounds().Max.X; x++ {
				r, g, bl, _ := full.At(x, y).RGBA()
				f(x, y, color.RGBA{uint8(r >> 8), uint8(g >> 8), uint8(bl >> 8), 255})
			}
		}
	}
	each(func(_, _ int, c color.RGBA) { count[c]++ })
	var colors []color.RGBA
	for c := range count {
		colors = append(colors, c)
	}
	slices.SortFunc(colors, func(a, b color.RGBA) int { return count[b] - count[a] })
	var palette color.Palette
	for _, c := range colors[:min(len(colors), 256)] {
		palette = append(palette, c)
	}
	small := image.NewPaletted(full.Bounds(), palette)
	nearest := map[color.RGBA]uint8{}
	each(func(x, y int, c color.RGBA) {
		i, ok := nearest[c]
		if !ok {
			i = uint8(palette.Index(c))
			nearest[c] = i
		}
		small.SetColorIndex(x, y, i)
	})
	var out bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, small)
	return out.Bytes(), err
}

// The audit is worth nothing if it does not see mistakes.
func TestTheAuditSeesMistakes(t *testing.T) {
	for name, tc := range map[string]struct{ body, sees string }{
		"pale text":    {`<p style="color:#999">pale</p>`, "contrast 2.85"},
		"no label":     {`<input name="q">`, "no label"},
		"two h1":       {`<h1>again</h1>`, "2 elements h1"},
		"level":        {`<h4>deep</h4>`, "comes after h1"},
		"wide":         {`<div style="width:3000px">wide</div>`, "px wide on a screen"},
		"empty button": {`<button></button>`, "nothing to read"},
		"same id":      {`<p id="a">x</p><p id="a">y</p>`, "comes twice"},
		"dead link":    {`<a href="#nowhere">go</a>`, "leads to nothing"},
		"picture":      {`<svg width="9" height="9"></svg>`, "without words"},
		"th":           {`<table><tr><th>x</th></tr></table>`, "without scope"},
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t)
			p.do(chromedp.Navigate("about:blank"))
			page := `<title>t</title><main><h1>Title</h1><p>text <b>of the page</b></p>` + tc.body + `</main>`
			p.run(fmt.Sprintf("document.documentElement.lang='en'; document.documentElement.innerHTML = %q", page))
			wrong := eval[[]string](p, auditScript)
			if !strings.Contains(strings.Join(wrong, "\n"), tc.sees) {
				t.Errorf("the audit says %q, want %q", wrong, tc.sees)
			}
		})
	}
}

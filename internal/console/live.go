package console

import (
	"bytes"
	_ "embed"
	"fmt"
	"hash/fnv"
	"net/http"
	"time"

	"github.com/hms-mkt/lockstep/internal/page"
)

//go:embed live.js
var script []byte

// scriptURL has the hash of the script, so that browsers may keep it.
var scriptURL = func() string {
	h := fnv.New64a()
	_, _ = h.Write(script) // never fails
	return fmt.Sprintf("/static/live-%x.js", h.Sum64())
}()

// serveScript answers with the only script of the pages.
func serveScript(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/javascript; charset=utf-8")
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(script) // the reader may have closed the connection
}

const (
	liveEvery   = 2 * time.Second
	mostViewers = 20
	liveWrite   = 10 * time.Second // bound of one write to a viewer
)

// live sends the overview again and again, as Server-Sent Events. All viewers share one
// reading of the database.
func (c *Console) live(w http.ResponseWriter, r *http.Request, v visitor) error {
	select {
	case c.viewers <- struct{}{}:
		defer func() { <-c.viewers }()
	default:
		return refusal{http.StatusServiceUnavailable, "Too many people watch", fmt.Sprintf("%d people watch the live overview already. Reload the page instead.", mostViewers)}
	}
	w.Header().Set("Content-Type", "text/event-stream")
	if r.Method == http.MethodHead {
		return nil
	}
	connection := http.NewResponseController(w)
	t := time.NewTicker(liveEvery)
	defer t.Stop()
	var before []byte
	for {
		part := c.livePart(r, v)
		if part == nil || bytes.Equal(part, before) {
			part = []byte(":\n\n") // shows whether the viewer is still there
		} else {
			before = part
		}
		err := connection.SetWriteDeadline(time.Now().Add(liveWrite))
		if err == nil {
			_, err = w.Write(part)
		}
		if err == nil {
			err = connection.Flush()
		}
		if err != nil {
			return nil // the viewer has gone
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-t.C:
		}
		if _, err := c.visitor(r); err != nil {
			return nil // the login has ended, and a reload says so
		}
	}
}

// livePart returns the live part of the overview as an event, nil if there is none.
func (c *Console) livePart(r *http.Request, v visitor) []byte {
	now, err := c.readOverview(r.Context())
	view := page.View{}
	if err == nil {
		view.Data = c.overviewData(&now.Overview, v)
	} else if last := c.latest.last.get(); !last.read.IsZero() {
		view.Note = staleNote(err, last.read)
		view.Data = c.overviewData(&last.Overview, v)
	} else {
		return nil
	}
	var html bytes.Buffer
	if err := c.site.Part(&html, "overview", "overview-live-noted", view); err != nil {
		c.Log.ErrorContext(r.Context(), "console: the live part could not be written", "error", err)
		return nil
	}
	var event bytes.Buffer
	for line := range bytes.Lines(html.Bytes()) {
		event.WriteString("data: ")
		event.Write(bytes.TrimRight(line, "\r\n"))
		event.WriteByte('\n')
	}
	event.WriteByte('\n')
	return event.Bytes()
}

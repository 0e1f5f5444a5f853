package relay

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

// caller is one kind of database call of one loop. It decides how long the loop pauses after
// an error, and logs the error. A caller belongs to one goroutine.
type caller struct {
	troubles *troubles
	what     string        // such as "claim deliveries"
	sync     string        // empty for the relay's own loops
	loop     string        // distinguishes callers with the same what
	says     string        // message of the log line about an error; empty means callFailed
	pause    time.Duration // last pause; zero after a call without an error
}

const (
	firstPause = 100 * time.Millisecond // pause after the first error; each further error doubles it
	mostPause  = 2 * time.Second
	callFailed = "database call failed, trying again"
)

// failed notes an error and returns how long to pause before the next call.
func (c *caller) failed(ctx context.Context, err error, args ...any) time.Duration {
	c.pause = min(max(2*c.pause, firstPause), mostPause)
	c.troubles.failed(ctx, c, err, args...)
	return c.pause
}

// worked notes a call without an error.
func (c *caller) worked(ctx context.Context) {
	if c.pause != 0 {
		c.pause = 0
		c.troubles.worked(ctx, c)
	}
}

// troubles has the kinds of database calls that fail now. It logs the first error of each
// cause at once. It counts repetitions, and logs their number after 1 s, 2 s, 4 s and so
// on, then once a minute. It is safe for concurrent use.
type troubles struct {
	log *slog.Logger
	mu  sync.Mutex
	by  map[string]*trouble // by caller.what
}

// trouble is about one kind of call. It begins with the first error. It ends when every loop
// that had an error has made the call without one.
type trouble struct {
	began, last time.Time
	failures    int
	loops       map[string]bool
	causes      map[string]bool // causes that were logged
	next        time.Time       // when repetitions are logged next
	gap         time.Duration   // pause before next
}

const (
	firstGap   = time.Second
	mostGap    = time.Minute
	mostCauses = 10              // further causes count as repetitions
	forgotten  = 5 * time.Minute // a trouble without errors for this long is over, even if the call was not repeated
)

func newTroubles(log *slog.Logger) *troubles {
	return &troubles{log: log, by: map[string]*trouble{}}
}

func (t *troubles) failed(ctx context.Context, c *caller, err error, args ...any) {
	if ctx.Err() != nil {
		return // the relay stops
	}
	now, cause := time.Now(), outbox.Cause(err)
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.by[c.what]
	if x == nil || now.Sub(x.last) > forgotten {
		x = &trouble{began: now, loops: map[string]bool{}, causes: map[string]bool{}, next: now.Add(firstGap), gap: firstGap}
		t.by[c.what] = x
	}
	x.last = now
	x.failures++
	x.loops[c.sync+"\x00"+c.loop] = true
	isNew := !x.causes[cause] && len(x.causes) < mostCauses
	if !isNew && now.Before(x.next) {
		return
	}
	x.causes[cause] = x.causes[cause] || isNew
	if !now.Before(x.next) {
		x.gap = min(2*x.gap, mostGap)
		x.next = now.Add(x.gap)
	}
	if c.sync != "" {
		args = append([]any{"sync", c.sync}, args...)
	}
	if x.failures > 1 {
		args = append(args, "failures", x.failures, "for", now.Sub(x.began).Round(100*time.Millisecond))
	}
	says := c.says
	if says == "" {
		says = callFailed
	}
	t.log.WarnContext(ctx, says, append(args, "to", c.what, "error", err)...) //nolint:sloglint // one of three constants
}

func (t *troubles) worked(ctx context.Context, c *caller) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.by[c.what]
	if x == nil {
		return
	}
	delete(x.loops, c.sync+"\x00"+c.loop)
	if len(x.loops) > 0 {
		return
	}
	delete(t.by, c.what)
	t.log.InfoContext(ctx, "database call works again", "to", c.what,
		"after", time.Since(x.began).Round(100*time.Millisecond), "failures", x.failures)
}

package console

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/page"
)

// readTimeout bounds all reads of one page, and waiting for a connection.
const readTimeout = 3 * time.Second

const (
	sharedFor = time.Second     // how long a reading of the overview is shared by all who ask
	pageAge   = 2 * time.Second // how old the reading is at most that a page shows
)

// latest shares one reading of the overview among all who ask at about the same time.
type latest struct {
	reads   singleflight.Group
	last    guarded[reading]
	changes atomic.Int64 // how often a person has changed what it shows
}

// reading is an overview and when it was read, by this machine's clock.
type reading struct {
	inspect.Overview
	read    time.Time
	changes int64 // those before it was read
}

// expire makes the next who asks read again. The reading stays for the time when the database
// does not answer.
func (l *latest) expire() {
	l.changes.Add(1)
	l.reads.Forget("")
}

// younger returns the last reading, and whether it is younger than an age and no person has
// changed anything since.
func (l *latest) younger(age time.Duration) (reading, bool) {
	last := l.last.get()
	return last, time.Since(last.read) < age && last.changes == l.changes.Load()
}

// pageOverview returns an overview for a page, at most pageAge old. If it is older than
// sharedFor, the next page gets a newer one: nobody waits for a reading while others look too.
func (c *Console) pageOverview(ctx context.Context) (reading, error) {
	last, ok := c.latest.younger(pageAge)
	if !ok {
		return c.readOverview(ctx)
	}
	if time.Since(last.read) >= sharedFor {
		c.startReading(ctx) // it puts what it reads into c.latest
	}
	return last, nil
}

// readOverview returns an overview that is at most sharedFor old.
func (c *Console) readOverview(ctx context.Context) (reading, error) {
	if last, ok := c.latest.younger(sharedFor); ok {
		return last, nil
	}
	select {
	case r := <-c.startReading(ctx):
		if r.Err != nil {
			return reading{}, r.Err
		}
		return r.Val.(reading), nil
	case <-ctx.Done():
		return reading{}, context.Cause(ctx)
	}
}

// startReading reads the overview, or joins those who wait for a reading that has begun.
func (c *Console) startReading(ctx context.Context) <-chan singleflight.Result {
	return c.latest.reads.DoChan("", func() (any, error) {
		// The reading is not only for the one who asks first, who may go away.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
		defer cancel()
		now := reading{changes: c.latest.changes.Load()}
		o, err := inspect.ReadOverview(ctx, c.Read)
		if err != nil {
			return nil, err
		}
		now.Overview, now.read = o, time.Now()
		c.latest.last.set(now)
		c.history.age(&o)
		return now, nil
	})
}

// overviewData is the page of all syncs.
type overviewData struct {
	*inspect.Overview
	Version string
	Syncs   []syncData
	Since   time.Time // since when the ages in the pictures are known
}

// syncData is a sync with what the page shows beside.
type syncData struct {
	*inspect.Sync
	At        time.Time
	Tone      string // the colour of its state
	Delivered picture
	Ages      picture
	Acts      []page.Link
}

// overview is the page of all syncs.
func (c *Console) overview(w http.ResponseWriter, r *http.Request, v visitor) error {
	now, err := c.pageOverview(r.Context())
	if err != nil {
		return err
	}
	c.write(w, r, http.StatusOK, page.View{
		Page: "overview", Title: "Overview", Here: "/", Data: c.overviewData(&now.Overview, v),
		Foot: c.asOf(now.At),
	})
	return nil
}

// asOf is the foot of a page that was read at a time of the database's clock.
func (c *Console) asOf(at time.Time) string {
	return "As of " + at.In(c.Zone).Format("2 Jan 2006 15:04:05 MST") + ", by the clock of the database. Lockstep " + c.Version + "."
}

func (c *Console) overviewData(o *inspect.Overview, v visitor) overviewData {
	d := overviewData{Overview: o, Version: c.Version, Since: c.history.began()}
	for i := range o.Syncs {
		d.Syncs = append(d.Syncs, c.syncData(&o.Syncs[i], o.At, v))
	}
	return d
}

func (c *Console) syncData(s *inspect.Sync, at time.Time, v visitor) syncData {
	d := syncData{Sync: s, At: at, Tone: syncTones[s.State()]}
	d.Delivered, d.Ages = c.history.pictures(s.Name, at)
	if c.allow(v, Operate) == nil {
		d.Acts = syncActs(s)
	}
	return d
}

// syncActs are the actions on a sync, and on the destinations that a person has paused, that
// can work.
func syncActs(s *inspect.Sync) (links []page.Link) {
	if s.Backlog.Failed > 0 {
		links = append(links, action("requeue", "Send failed ones again", "sync", s.Name))
	}
	paused := false
	for _, h := range s.Holds {
		switch {
		case h.Kind != "operator":
		case h.Scope == "":
			paused = true
			links = append(links, action("resume", "Resume", "sync", s.Name))
		default:
			links = append(links, action("resume", "Resume "+h.Scope, "sync", s.Name, "scope", h.Scope))
		}
	}
	if !paused && s.RetiredAt == nil {
		links = append(links, action("pause", "Pause", "sync", s.Name))
	}
	return links
}

// syncTones are the colours of the states of syncs. Others have none.
var syncTones = map[string]string{
	"no relay": "bad", "credentials refused": "bad", "some failed": "bad",
	"on hold": "wait", "partly on hold": "wait", "retired, still sending": "wait",
	"up to date": "good",
}

// Orphan says why nobody sends for a sync.
func (d syncData) Orphan() string {
	if !d.Orphaned() {
		return ""
	}
	return "No running relay serves this sync, so nothing is sent. Start one that has it in its configuration: lockstep run."
}

// Countdown says when a sync that is on hold is tried again, or continues.
func (d syncData) Countdown(h *inspect.Hold) string {
	if h.Until == nil || !h.Until.After(d.At) {
		return ""
	}
	return "That is in " + lasting(h.Until.Sub(d.At)) + "."
}

// lasting writes a length of time for people.
func lasting(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d/time.Second))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d/time.Minute))
	case d < 48*time.Hour && d%time.Hour < time.Minute:
		return fmt.Sprintf("%d h", int(d/time.Hour))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d/time.Hour), int(d%time.Hour/time.Minute))
	}
	return fmt.Sprintf("%d days", int(d/(24*time.Hour)))
}

package console

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/hms-mkt/lockstep/internal/inspect"
)

const (
	sampleEvery = 15 * time.Second
	shownFor    = 60 // minutes in a picture
)

// history is what the pictures show: per sync and minute of the last hour, how much was
// delivered, and how old the oldest open delivery was. The first comes from the log, so it
// survives a restart. The second begins with this program.
type history struct {
	mu        sync.Mutex
	since     time.Time // of the ages; zero: none yet
	last      int64     // newest row of the log that was counted
	delivered map[string]map[int64]float64
	ages      map[string]map[int64]float64 // in seconds
}

// Run samples the state of the syncs for the pictures until ctx ends.
func (c *Console) Run(ctx context.Context) {
	t := time.NewTicker(sampleEvery)
	defer t.Stop()
	for {
		c.sample(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (c *Console) sample(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	_, err := c.readOverview(bounded)
	if err == nil {
		var d inspect.Delivered
		if d, err = inspect.ReadDelivered(bounded, c.Read, c.history.newest()); err == nil {
			c.history.count(&d)
		}
	}
	if err != nil && ctx.Err() == nil {
		c.Log.LogAttrs(ctx, slog.LevelDebug, "console: no sample", slog.String("error", err.Error()))
	}
}

func (h *history) newest() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

func (h *history) began() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.since
}

// minute numbers the minutes.
func minute(at time.Time) int64 { return at.Unix() / 60 }

// count adds deliveries.
func (h *history) count(d *inspect.Delivered) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = d.Last
	for _, m := range d.Minutes {
		put(&h.delivered, m.Sync, minute(m.Minute), func(before float64) float64 { return before + float64(m.Count) })
	}
	forget(h.delivered, d.At)
}

// age notes the age of the oldest delivery to send of each sync. A minute has its highest age.
func (h *history) age(o *inspect.Overview) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.since.IsZero() {
		h.since = o.At
	}
	for _, s := range o.Syncs {
		age := 0.0
		if s.Backlog.Oldest != nil {
			age = max(0, o.At.Sub(*s.Backlog.Oldest).Seconds())
		}
		put(&h.ages, s.Name, minute(o.At), func(before float64) float64 { return max(before, age) })
	}
	forget(h.ages, o.At)
}

func put(all *map[string]map[int64]float64, sync string, minute int64, change func(float64) float64) {
	if *all == nil {
		*all = map[string]map[int64]float64{}
	}
	if (*all)[sync] == nil {
		(*all)[sync] = map[int64]float64{}
	}
	(*all)[sync][minute] = change((*all)[sync][minute])
}

// forget removes what no picture shows any more.
func forget(all map[string]map[int64]float64, now time.Time) {
	for sync, minutes := range all {
		maps.DeleteFunc(minutes, func(m int64, _ float64) bool { return m <= minute(now)-shownFor })
		if len(minutes) == 0 {
			delete(all, sync)
		}
	}
}

// picture is a line over the last hour. Its text says the same.
type picture struct {
	Points string // of an SVG polyline in a box of 120 by 24
	Says   string
}

// pictures draws what was delivered to a sync, and the ages.
func (h *history) pictures(sync string, at time.Time) (delivered, ages picture) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := minute(at)
	most, last := highest(h.delivered[sync]), h.delivered[sync][now-1]
	delivered = picture{line(h.delivered[sync], now, most), fmt.Sprintf("Delivered per minute in the last hour: at most %.0f, and %.0f in the last full minute.", most, last)}
	oldest := highest(h.ages[sync])
	ages = picture{line(h.ages[sync], now, oldest), fmt.Sprintf("Age of the oldest event to send in the last hour: at most %s.", lasting(time.Duration(oldest)*time.Second))}
	return delivered, ages
}

func highest(minutes map[int64]float64) (most float64) {
	for _, v := range minutes {
		most = max(most, v)
	}
	return most
}

// line are the points of the minutes up to now. A minute that is not known counts as zero.
func line(minutes map[int64]float64, now int64, most float64) string {
	var b strings.Builder
	for i := range shownFor {
		value := minutes[now-shownFor+1+int64(i)]
		y := 23.0
		if most > 0 {
			y -= 22 * value / most
		}
		fmt.Fprintf(&b, "%d,%.1f ", 2*i+1, y)
	}
	return strings.TrimSpace(b.String())
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// clerks is how many clerks work at the same time.
const clerks = 6

const wallTime = "2006-01-02T15:04"

// change is one change that a clerk makes.
type change struct {
	hearing int // index
	what    string
	start   string // wall time; "" for a cancellation
	room    string
}

// The changes.
const (
	booked    = "booked"
	moved     = "moved"
	cancelled = "cancelled"
)

// plan returns the changes of all hearings in a random order. The changes of one
// hearing stay in order. The same seed gives the same plan.
func plan(list []listed, seed uint64) []change {
	random := rand.New(rand.NewPCG(seed, 0x636c65726b))
	lives := make([][]change, len(list))
	var turns []int
	for i, h := range list {
		life := []change{{i, booked, h.Start.Format(wallTime), h.CourtRoom}}
		for range random.IntN(4) {
			life = append(life, move(h, life[len(life)-1], random))
		}
		if random.IntN(7) == 0 {
			life = append(life, change{i, cancelled, "", ""})
		}
		lives[i] = life
		for range life {
			turns = append(turns, i)
		}
	}
	random.Shuffle(len(turns), func(a, b int) { turns[a], turns[b] = turns[b], turns[a] })
	all := make([]change, len(turns))
	for n, i := range turns {
		all[n], lives[i] = lives[i][0], lives[i][1:]
	}
	return all
}

// move gives a hearing another day, time and room.
func move(h listed, before change, random *rand.Rand) change {
	day := workday(h.Start.AddDate(0, 0, 1+random.IntN(40)))
	room := before.room
	for room == before.room {
		room = fmt.Sprintf("Court %d", 1+random.IntN(8))
	}
	start := time.Date(day.Year(), day.Month(), day.Day(), 9+random.IntN(8), 15*random.IntN(4), 0, 0, time.UTC)
	return change{before.hearing, moved, start.Format(wallTime), room}
}

// traffic is the work of the clerks.
type traffic struct {
	url      string
	client   *http.Client
	list     []listed
	all      []change
	versions []int64 // of each hearing; only the hearing's clerk uses its element
	done     atomic.Int64
	last     atomic.Pointer[string] // the last change, without names
}

func newTraffic(url string, list []listed, seed uint64) *traffic {
	return &traffic{
		url: url, list: list, all: plan(list, seed), versions: make([]int64, len(list)),
		client: &http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: clerks}},
	}
}

// work makes the changes, spread over about the given time. A hearing belongs
// to one clerk, who makes its changes one after the other.
func (t *traffic) work(ctx context.Context, changes []change, over time.Duration) error {
	defer t.client.CloseIdleConnections()
	pace := over * clerks / time.Duration(max(1, len(changes)))
	group, ctx := errgroup.WithContext(ctx)
	for clerk := range clerks {
		group.Go(func() error {
			tick := time.NewTicker(max(pace, time.Microsecond))
			defer tick.Stop()
			for _, c := range changes {
				if c.hearing%clerks != clerk {
					continue
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				if err := t.make(ctx, c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// make asks the scheduling module for a change.
func (t *traffic) make(ctx context.Context, c change) error {
	h := t.list[c.hearing]
	path, body := "/hearings/"+h.ID, any(nil)
	switch c.what {
	case booked:
		path = "/hearings"
		body = map[string]any{
			"id": h.ID, "case_number": h.CaseNumber, "case_name": h.CaseName, "hearing_type": h.HearingType,
			"courthouse": h.CourtHouse, "courtroom": c.room, "local_start": c.start, "zone": londonZone,
			"duration_minutes": int(h.Duration / time.Minute),
		}
	case moved:
		path += "/reschedule"
		body = map[string]any{"local_start": c.start, "courtroom": c.room}
	case cancelled:
		path += "/cancel"
		body = map[string]any{"reason": "settled"}
	}
	version, err := t.post(ctx, path, t.versions[c.hearing], body)
	if err != nil {
		return fmt.Errorf("hearing %s was not %s: %w", h.ID, c.what, err)
	}
	t.versions[c.hearing] = version
	t.done.Add(1)
	said := "case " + h.CaseNumber + " " + c.what
	if c.start != "" {
		at, _ := time.Parse(wallTime, c.start) // plan made it valid
		said += at.Format(", Mon 2 Jan 15:04, ") + "room " + strings.TrimPrefix(c.room, "Court ")
	}
	t.last.Store(&said)
	return nil
}

// post sends a request and returns the hearing's version from the answer. The module
// refuses a change if the hearing is not at the version that the clerk has seen.
func (t *traffic) post(ctx context.Context, path string, seen int64, body any) (int64, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url+path, bytes.NewReader(b))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	if seen > 0 {
		req.Header.Set("If-Match", strconv.Quote(strconv.FormatInt(seen, 10)))
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close() // read to the end
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return 0, err
	}
	var said struct {
		Version int64
		Detail  string
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return 0, fmt.Errorf("answered %s: %w", resp.Status, err)
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return 0, fmt.Errorf("answered %s: %s", resp.Status, said.Detail)
	}
	if said.Version <= seen {
		return 0, errors.New("answered without a new version")
	}
	return said.Version, nil
}

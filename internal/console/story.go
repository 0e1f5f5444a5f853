package console

import (
	"cmp"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/page"
)

// keyURL is the address of the story of a key. Servers and browsers change paths with
// slashes and dots, so such keys are in the query.
func keyURL(key string) string {
	if key == "." || key == ".." || strings.ContainsAny(key, `/\`) {
		return "/key?" + url.Values{"key": {key}}.Encode()
	}
	return "/key/" + url.PathEscape(key)
}

// eventID is the form of an event's id.
var eventID = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// find goes to the story of a key, or of an event's key.
func (c *Console) find(w http.ResponseWriter, r *http.Request, _ visitor) error {
	q := r.FormValue("q")
	if trimmed := strings.TrimSpace(q); eventID.MatchString(trimmed) {
		key, err := inspect.KeyOfEvent(r.Context(), c.Read, trimmed)
		if err != nil {
			return err
		}
		if key != "" {
			http.Redirect(w, r, keyURL(key)+"#"+strings.ToLower(trimmed), http.StatusSeeOther)
			return nil
		}
	}
	if strings.TrimSpace(q) == "" {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return nil
	}
	http.Redirect(w, r, keyURL(q), http.StatusSeeOther)
	return nil
}

// storyData is the page of a key's story.
type storyData struct {
	Key       string
	Lanes     []laneData
	Unmatched []inspect.Event
	Older     string // address of the part with older rows of the log; "" for none
	Newest    string // address of the newest part, if this is another
}

// laneData is the part of a story about one sync.
type laneData struct {
	inspect.Lane
	Standing inspect.Standing
	Tone     string
	Says     []inspect.Sentence
	NeededBy *time.Time
	Events   []eventData
	Acts     []page.Link // actions that can work, the most likely first
	zone     *time.Location
}

// eventData is an event in one lane.
type eventData struct {
	inspect.LaneEvent
	Anchor string // its id, in the first lane that has it
	Now    string // what becomes of it, if it is not finished
}

// tones are the colours of standings and outcomes. Others have none.
var tones = map[string]string{
	string(inspect.UpToDate): "good",
	string(inspect.Sending):  "wait", string(inspect.Waiting): "wait", string(inspect.OnHold): "wait",
	"delivered": "good", "duplicate": "good", "accepted": "good",
	"failed": "bad", "retry": "wait", "unknown": "wait", "lease_lost": "wait", "step": "wait",
}

// urgency orders the lanes of a page: those that need a person are first, the finished ones last.
var urgency = map[string]int{"bad": -2, "wait": -1}

// storyOf answers with the story of the key in the path.
func (c *Console) storyOf(w http.ResponseWriter, r *http.Request, v visitor) error {
	return c.story(w, r, v, r.PathValue("key"))
}

// storyAsked answers with the story of the key in the query.
func (c *Console) storyAsked(w http.ResponseWriter, r *http.Request, v visitor) error {
	return c.story(w, r, v, r.FormValue("key"))
}

func (c *Console) story(w http.ResponseWriter, r *http.Request, v visitor, key string) error {
	unknown := refusal{
		http.StatusNotFound, "No such key",
		fmt.Sprintf("Nothing is known about the key %s. Upper and lower case are different. The log and the events are kept for the times in outbox.retention.", strconv.Quote(adapters.Clean(key, 600))),
	}
	if !utf8.ValidString(key) || strings.ContainsRune(key, 0) || key == "" {
		return unknown
	}
	before, err := rowID(r.FormValue("before"))
	if err != nil {
		return err
	}
	story, err := inspect.ReadStory(r.Context(), c.Read, key, before)
	if err != nil {
		return err
	}
	if !story.Known() {
		return unknown
	}
	data := storyData{Key: key, Unmatched: story.Unmatched}
	for i := range story.Lanes {
		data.Lanes = append(data.Lanes, c.lane(&story, &story.Lanes[i], v))
	}
	slices.SortStableFunc(data.Lanes, func(a, b laneData) int { return cmp.Compare(urgency[a.Tone], urgency[b.Tone]) })
	anchored := map[string]bool{}
	for _, lane := range data.Lanes {
		for i := range lane.Events {
			if e := &lane.Events[i]; !anchored[e.ID] {
				e.Anchor, anchored[e.ID] = e.ID, true
			}
		}
	}
	here := keyURL(key)
	if story.OlderThan != 0 {
		data.Older = with(here, "before", strconv.FormatInt(story.OlderThan, 10))
	}
	if story.Before != 0 {
		data.Newest = here
	}
	c.write(w, r, http.StatusOK, page.View{Page: "story", Title: adapters.Clean(key, 0), Data: data})
	return nil
}

// lane prepares what the page shows of a lane. Its times are in the console's zone, or in
// the receiver's if the console has none of its own.
func (c *Console) lane(story *inspect.Story, l *inspect.Lane, v visitor) laneData {
	zone := c.Zone
	if receivers, err := time.LoadLocation(l.Zone); err == nil && zone == time.UTC {
		zone = receivers
	}
	d := laneData{Lane: *l, zone: zone}
	if story.Before == 0 {
		d.Standing, d.Says = l.Says(story)
		d.Tone = tones[string(d.Standing)]
	}
	if l.First != nil {
		d.NeededBy = l.First.NeededBy
	}
	for i := range l.Events {
		d.Events = append(d.Events, eventData{LaneEvent: l.Events[i], Now: l.Now(&l.Events[i])})
	}
	if story.Before == 0 && c.allow(v, Operate) == nil {
		d.Acts = d.acts(story.Key)
	}
	return d
}

// acts are the actions that can work for a lane.
func (d *laneData) acts(key string) (links []page.Link) {
	switch {
	case d.First != nil && d.First.State == "failed":
		links = append(links, action("requeue", "Send it again", "sync", d.Sync, "key", key))
		fallthrough
	case d.First != nil && d.First.State == "retry":
		links = append(links, action("discard", "Give it up", "sync", d.Sync, "event", d.First.EventID))
	case d.First == nil && d.Standing == inspect.UpToDate:
		links = append(links, action("replay", "Send it once more", "sync", d.Sync, "key", key))
	}
	for _, h := range d.Holds {
		if h.Kind == "operator" {
			links = append(links, action("resume", strings.TrimSpace("Resume "+h.Scope), "sync", d.Sync, "scope", h.Scope))
		}
	}
	return links
}

// Time, Exact and Sentence write times in the lane's zone.

func (d laneData) Time(at time.Time) template.HTML { return page.Time(at.In(d.zone)) }

func (d laneData) Exact(at time.Time) template.HTML { return page.TimeExact(at.In(d.zone)) }

func (d laneData) Sentence(s inspect.Sentence) template.HTML { return sentenceIn(s, d.zone) }

// entryData is a row of the log.
type entryData struct {
	inspect.Entry
	Recorded template.HTML
	Tone     string
}

// Row prepares a row of the log.
func (d laneData) Row(e inspect.Entry) *entryData {
	return &entryData{e, d.Exact(e.When()), tones[e.Outcome]}
}

// rowID reads the id of a row of the log in an address, 0 for none.
func rowID(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 {
		return 0, wrong("before=%s is not the id of a row of the log. Go back and follow the link again.", text)
	}
	return id, nil
}

// with adds a parameter to an address.
func with(address, name, value string) string {
	separator := "?"
	if strings.Contains(address, "?") {
		separator = "&"
	}
	return address + separator + name + "=" + url.QueryEscape(value)
}

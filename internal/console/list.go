package console

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/operate"
	"github.com/hms-mkt/lockstep/internal/page"
)

// listData is a page of deliveries that need attention.
type listData struct {
	Path    string // of the page, for its form
	Filter  inspect.StuckFilter
	At      time.Time
	List    []stuckData
	Blocked bool        // the page is about blocked keys
	Sync    *syncData   // the page is about this sync; nil: about all
	AtRisk  []stuckData // of the sync
	First   string      // address of the first page, if this is another
	Next    string      // address of the next page
	Acts    []page.Link // actions on everything that the filter selects
}

// Classes returns the error classes that the page suggests.
func (listData) Classes() []string { return operate.Classes() }

// stuckData is a row with what can be done about it.
type stuckData struct {
	inspect.Stuck
	Acts []page.Link
}

// failed is the page of the deliveries that wait for a person.
func (c *Console) failed(w http.ResponseWriter, r *http.Request, v visitor) error {
	f, err := stuckFilter(r)
	if err != nil {
		return err
	}
	f.Failed = true
	found, err := inspect.ReadStuck(r.Context(), c.Read, f)
	if err != nil {
		return err
	}
	d := c.listData(r, f, &found, v)
	c.write(w, r, http.StatusOK, page.View{Page: "list", Title: "Failed", Here: "/failed", Data: d, Foot: c.asOf(d.At)})
	return nil
}

// blocked is the page of the keys whose first delivery is failed or in retry, with others
// behind it.
func (c *Console) blocked(w http.ResponseWriter, r *http.Request, v visitor) error {
	f, err := stuckFilter(r)
	if err != nil {
		return err
	}
	f.Blocked = true
	found, err := inspect.ReadStuck(r.Context(), c.Read, f)
	if err != nil {
		return err
	}
	d := c.listData(r, f, &found, v)
	d.Blocked = true
	c.write(w, r, http.StatusOK, page.View{Page: "list", Title: "Blocked", Here: "/blocked", Data: d, Foot: c.asOf(d.At)})
	return nil
}

// sync is the page of one sync, with its deliveries that have failed or are retried.
func (c *Console) sync(w http.ResponseWriter, r *http.Request, v visitor) error {
	f, err := stuckFilter(r)
	if err != nil {
		return err
	}
	f.Sync = r.PathValue("name")
	none := refusal{http.StatusNotFound, "No such sync", "There is no sync " + adapters.Clean(f.Sync, 100) + ". The overview has all syncs."}
	if !fits(f.Sync) {
		return none
	}
	now, err := c.pageOverview(r.Context()) // its counts are the dear part of this page
	if err != nil {
		return err
	}
	found, err := inspect.ReadSync(r.Context(), c.Read, f, now.Sync(f.Sync))
	if err != nil {
		return err
	}
	if found.Sync == nil {
		return none
	}
	d := c.listData(r, f, &found.Trouble, v)
	sync := c.syncData(found.Sync, found.At, v)
	d.Sync = &sync
	for _, one := range found.AtRisk {
		d.AtRisk = append(d.AtRisk, c.stuckData(one, v))
	}
	c.write(w, r, http.StatusOK, page.View{Page: "list", Title: f.Sync, Data: d, Foot: c.asOf(found.At)})
	return nil
}

func (c *Console) listData(r *http.Request, f inspect.StuckFilter, found *inspect.StuckPage, v visitor) listData {
	d := listData{Path: r.URL.EscapedPath(), Filter: f, At: found.At}
	for _, one := range found.List {
		d.List = append(d.List, c.stuckData(one, v))
	}
	q := url.Values{}
	for name, value := range map[string]string{"sync": f.Sync, "class": f.Class, "error": f.Error} {
		if value != "" && (name != "sync" || r.PathValue("name") == "") {
			q.Set(name, value)
		}
	}
	address := func() string { return strings.TrimSuffix(d.Path+"?"+q.Encode(), "?") }
	if f.After != (inspect.Place{}) {
		d.First = address()
	}
	if found.Next != nil {
		q.Set("after", cursor(*found.Next))
		d.Next = address()
	}
	if f.Failed && len(d.List) > 0 && c.allow(v, Operate) == nil {
		d.Acts = setActs(f)
	}
	return d
}

// setActs are the actions on all failed deliveries that a filter selects.
func setActs(f inspect.StuckFilter) []page.Link {
	query := []string{}
	for _, one := range [][2]string{{"sync", f.Sync}, {"class", f.Class}, {"error", f.Error}} {
		if one[1] != "" {
			query = append(query, one[0], one[1])
		}
	}
	return []page.Link{action("requeue", "Send all of these again", query...), action("discard", "Give all of these up", query...)}
}

// stuckData adds the actions that can work for a delivery.
func (c *Console) stuckData(s inspect.Stuck, v visitor) stuckData {
	d := stuckData{Stuck: s}
	if s.State == "failed" && c.allow(v, Operate) == nil {
		d.Acts = []page.Link{
			action("requeue", "Send again", "sync", s.Sync, "event", s.EventID),
			action("discard", "Give up", "sync", s.Sync, "event", s.EventID),
		}
	}
	return d
}

// mostFilter bounds the texts of a filter, in bytes.
const mostFilter = 1000

// fits reports whether the database can have a text.
func fits(text string) bool {
	return len(text) <= mostFilter && utf8.ValidString(text) && !strings.ContainsRune(text, 0)
}

// stuckFilter reads the filter of a list from its address.
func stuckFilter(r *http.Request) (f inspect.StuckFilter, err error) {
	for name, field := range map[string]*string{"sync": &f.Sync, "class": &f.Class, "error": &f.Error} {
		*field = strings.TrimSpace(r.FormValue(name))
		if !fits(*field) {
			return f, wrong("The field %s is longer than %d bytes, or is no text.", name, mostFilter)
		}
	}
	if err := operate.CheckClass(f.Class); err != nil {
		return f, wrong("%s.", err)
	}
	if after := r.FormValue("after"); after != "" {
		text, err := base64.RawURLEncoding.DecodeString(after)
		if err == nil {
			err = json.Unmarshal(text, &f.After)
		}
		if err != nil || !fits(f.After.Sync) || !fits(f.After.Key) {
			return f, wrong("The part of this address after after= is not complete. Go back and follow the link again.")
		}
	}
	return f, nil
}

// cursor writes a place into an address.
func cursor(p inspect.Place) string {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err) // texts and a number
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

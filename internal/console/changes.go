package console

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/page"
)

// changesData is the page of what people did.
type changesData struct {
	By, Sync, Action, From, To string // as the form has them
	Actions                    []string
	Running                    []jobData // actions of this process
	List                       []inspect.Change
	Older                      string // address of older changes; "" for none
	Newest                     string // address of the newest changes, if these are others
}

// changes answers with what people did: by person, sync, action and day.
func (c *Console) changes(w http.ResponseWriter, r *http.Request, _ visitor) error {
	query := url.Values{}
	field := func(name string) string {
		value := strings.TrimSpace(r.FormValue(name))
		if value != "" {
			query.Set(name, value)
		}
		return value
	}
	d := changesData{By: field("by"), Sync: field("sync"), Action: field("action"), From: field("from"), To: field("to"), Actions: inspect.Actions()}
	f := inspect.ChangeFilter{Person: d.By, Sync: d.Sync, Action: d.Action}
	if d.Action != "" && !slices.Contains(d.Actions, d.Action) {
		return wrong("action=%s is no action: want one of %s.", d.Action, strings.Join(d.Actions, ", "))
	}
	if text := d.By + d.Sync; !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return wrong("This address has a text that cannot be read.")
	}
	var err error
	if f.Since, err = c.day("from", d.From, 0); err != nil {
		return err
	}
	if f.Until, err = c.day("to", d.To, 1); err != nil {
		return err
	}
	if f.Before, err = rowID(r.FormValue("before")); err != nil {
		return err
	}
	found, err := inspect.ReadChanges(r.Context(), c.Read, f)
	if err != nil {
		return err
	}
	d.List, d.Running = found.List, c.jobs.now()
	here := "/changes?" + query.Encode()
	if found.Older != 0 {
		d.Older = with(here, "before", strconv.FormatInt(found.Older, 10))
	}
	if f.Before != 0 {
		d.Newest = here
	}
	c.write(w, r, http.StatusOK, page.View{Page: "changes", Title: "Who did what", Here: "/changes", Data: d})
	return nil
}

// day reads a day in an address, and returns when it begins, or the day after it by that
// many days. The time is zero if there is no day.
func (c *Console) day(name, text string, after int) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	day, err := time.ParseInLocation(time.DateOnly, text, c.Zone)
	if err != nil {
		return time.Time{}, wrong("%s=%s is not a day: want one such as 2027-01-31.", name, text)
	}
	return day.AddDate(0, 0, after), nil
}

// wrong refuses an address or a form that says what the page does not take.
func wrong(format string, args ...any) error {
	return refusal{http.StatusBadRequest, "This cannot be shown", adapters.Clean(fmt.Sprintf(format, args...), 500)}
}

package scheduling

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hms-mkt/lockstep/internal/page"
)

// Pages are the settings of the pages for clerks.
type Pages struct {
	Zone  string   // zone of a new hearing until the clerk writes another; default: none
	Hosts []string // names under which a proxy serves the pages; a loopback name always works
}

//go:embed pages/*.html
var pageFiles embed.FS

// pageLimit is the number of hearings on one page of the list.
const pageLimit = 50

// clerkPages serves the pages for clerks:
//
//	GET  /                     the list: from, case_number, courthouse, after
//	GET  /book, POST /book     book
//	GET  /hearing/{id}         one hearing, with forms to move and to cancel it
//	POST /hearing/{id}/move, /hearing/{id}/cancel
//
// They need no script. A form has the version that the clerk saw, so it never overwrites
// a change that she has not seen.
type clerkPages struct {
	Pages
	service *Service
	site    *page.Site
	log     *slog.Logger
	zone    *time.Location // of Zone; UTC if there is none
}

// addPages adds the pages to the API's mux.
func (a *api) addPages(p Pages) {
	files, err := fs.Sub(pageFiles, "pages")
	if err != nil {
		panic(err) // they are embedded
	}
	site, err := page.NewSite("Hearings", []page.Link{{URL: "/", Text: "List"}, {URL: "/book", Text: "Book"}}, files, nil)
	if err != nil {
		panic(err) // they are embedded, and a test writes each
	}
	zone, err := time.LoadLocation(p.Zone)
	if err != nil {
		zone = time.UTC // a booking in this zone is refused with the reason
	}
	c := &clerkPages{Pages: p, service: a.service, site: site, log: a.log, zone: zone}
	c.handle(a.mux, "GET /{$}", c.list)
	c.handle(a.mux, "GET /book", c.booking)
	c.handle(a.mux, "POST /book", c.book)
	c.handle(a.mux, "GET /hearing/{id}", c.hearing)
	c.handle(a.mux, "POST /hearing/{id}/move", c.move)
	c.handle(a.mux, "POST /hearing/{id}/cancel", c.cancel)
	a.mux.HandleFunc(page.StylePattern, page.Style)
}

// handle answers requests for a page. It refuses forms of other sites, and names of the
// server that are not its own, because a foreign name may be made to point to it.
func (c *clerkPages) handle(mux *http.ServeMux, pattern string, h handler) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page.SecurityHeaders(w.Header())
		err := c.refuseHost(r)
		if err == nil {
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			err = h(w, r)
		}
		if err != nil {
			c.refuse(w, r, err)
		}
	})
	own := http.NewCrossOriginProtection()
	own.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page.SecurityHeaders(w.Header())
		c.refuse(w, r, newProblem(http.StatusForbidden, "The form was sent by another site, so nothing was changed. Open the page here and send it again."))
	}))
	mux.Handle(pattern, own.Handler(answer))
}

func (c *clerkPages) refuseHost(r *http.Request) error {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); host == "localhost" || ip != nil && ip.IsLoopback() || slices.Contains(c.Hosts, host) {
		return nil
	}
	return newProblem(http.StatusForbidden, fmt.Sprintf("These pages are not served as %s. If a proxy that signs people in serves them so, start the module with --page-host and that name.", shorten(strconv.Quote(host))))
}

// refuse writes a page that says why there is no other page.
func (c *clerkPages) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	if p.Status >= http.StatusInternalServerError {
		c.log.LogAttrs(r.Context(), slog.LevelError, "request failed",
			slog.String("route", r.Pattern), slog.String("error", loggable(err)))
	}
	title := map[int]string{
		http.StatusNotFound:            "No such hearing",
		http.StatusServiceUnavailable:  "The database does not answer",
		http.StatusPreconditionFailed:  "The hearing has changed in the meantime",
		http.StatusUnprocessableEntity: "The page cannot be shown",
	}[p.Status]
	if title == "" {
		title = "This was refused"
	}
	c.write(w, r, p.Status, page.View{Page: "refused", Title: title, Data: p.Detail})
}

func (c *clerkPages) write(w http.ResponseWriter, r *http.Request, status int, v page.View) {
	if v.Foot == "" {
		v.Foot = "As of " + time.Now().In(c.zone).Format("15:04:05 MST") + ". Reload the page to see what is new."
	}
	if err := c.site.Write(w, status, v); err != nil {
		c.log.LogAttrs(r.Context(), slog.LevelError, "page was not written", slog.String("route", r.Pattern), slog.String("error", err.Error()))
		http.Error(w, "the page could not be written", http.StatusInternalServerError)
	}
}

// field is a field of a form.
type field struct {
	Name, Label, Type, Value, Hint, Error string
	Needed                                bool
	List, Min, Max                        string
	Choices                               []foldChoice
}

// foldChoice is one of the two instants of a wall time that comes twice.
type foldChoice struct {
	Fold Fold
	Text string
}

// mistakes puts the mistakes of a refused request to their fields, and returns them with
// the fields' labels. It returns false for an error of another kind.
func mistakes(err error, fields ...*field) ([]field, bool) {
	p, ok := errors.AsType[problem](err)
	if !ok || len(p.Errors) == 0 {
		return nil, false
	}
	var all []field
	for _, e := range p.Errors {
		one := field{Error: e.Field + " " + e.Detail}
		for _, f := range fields {
			if f.Name != e.Field {
				continue
			}
			f.Error = strings.ToUpper(e.Detail[:1]) + e.Detail[1:] + "."
			if e.Code == CodeAmbiguous {
				f.Error = "This time comes twice on that day, because the clocks are put back. Choose one."
			}
			for _, c := range e.Choices {
				if at, err := time.Parse(time.RFC3339, c.StartsAt); err == nil && c.Fold != "" {
					f.Choices = append(f.Choices, foldChoice{c.Fold, fmt.Sprintf("the %s, %s UTC%s", c.Fold, at.Format("15:04"), at.Format("-07:00"))})
				}
			}
			one = *f
			if e.Code != CodeAmbiguous {
				one.Error = e.Detail
			} else {
				one.Label, one.Error = "Start", "comes twice on that day"
			}
		}
		all = append(all, one)
	}
	return all, true
}

func (c *clerkPages) list(w http.ResponseWriter, r *http.Request) error {
	q := url.Values{}
	for name, values := range r.URL.Query() {
		if values[0] = strings.TrimSpace(values[0]); values[0] != "" {
			q[name] = values
		}
	}
	_, asked := r.URL.Query()["from"]
	if !asked && !q.Has("after") && !q.Has("case_number") {
		q.Set("from", time.Now().UTC().AddDate(0, 0, -1).Format(time.DateOnly)) // today in all zones
	}
	data := struct {
		From, CaseNumber, Courthouse string
		Caption, Next, First         string
		Unknown                      string
		Mistakes                     []field
		Rows                         []row
	}{From: q.Get("from"), CaseNumber: q.Get("case_number"), Courthouse: q.Get("courthouse")}
	view := page.View{Page: "list", Title: "Hearings", Here: "/"}
	f, err := parseFilter(q)
	if err != nil {
		var ok bool
		if data.Mistakes, ok = mistakes(err); !ok {
			return err
		}
		view.Data = data
		c.write(w, r, http.StatusUnprocessableEntity, view)
		return nil
	}
	f.Limit = pageLimit
	found, err := c.service.List(r.Context(), f)
	if err != nil {
		return err
	}
	known, err := c.service.Courts(r.Context(), found.Hearings)
	switch {
	case errors.Is(err, errMayNotRead):
		data.Unknown = err.Error()
	case err != nil:
		return err
	}
	now := time.Now()
	for _, h := range found.Hearings {
		data.Rows = append(data.Rows, newRow(h, known[h.ID], now))
	}
	data.Caption = fmt.Sprintf("%d hearings.", len(data.Rows))
	if len(data.Rows) == 1 {
		data.Caption = "1 hearing."
	}
	if q.Has("after") {
		q.Del("after")
		data.First = "/?" + q.Encode()
	}
	if found.Next != "" {
		data.Caption = fmt.Sprintf("%d hearings, and there are more.", len(data.Rows))
		q.Set("after", found.Next)
		data.Next = "/?" + q.Encode()
	}
	view.Data = data
	c.write(w, r, http.StatusOK, view)
	return nil
}

// row is a hearing and what the courts have of it.
type row struct {
	Hearing
	Told []told
}

func newRow(h Hearing, known []Knowledge, now time.Time) row {
	one := row{Hearing: h}
	for _, k := range known {
		if k.Sync == "" {
			one.Told = append(one.Told, told{System: "No system", State: "is told", Why: "No sync carries hearings of this module."})
			continue
		}
		one.Told = append(one.Told, h.tell(k, now))
	}
	return one
}

// done are the sentences after a change, by the parameter done.
var done = map[string]string{
	"booked":    "The hearing is booked. The courts are told now.",
	"moved":     "The hearing is moved. The courts are told now.",
	"cancelled": "The hearing is cancelled. The courts are told now.",
	"same":      "Nothing was different, so nothing was changed.",
}

// reason is a code for a cancellation.
type reason struct{ Code, Text string }

var reasons = []reason{
	{"settled", "The case was settled"},
	{"adjourned", "The hearing was adjourned"},
	{"withdrawn", "The case was withdrawn"},
	{"judge_unavailable", "The judge is not available"},
	{"room_unavailable", "The room is not available"},
	{"entered_in_error", "It was booked by mistake"},
}

// hearingData is the page of one hearing.
type hearingData struct {
	row
	Hearing  Hearing
	Written  time.Time
	Unknown  string
	Done     string
	Stale    string
	Mistakes []field
	Move     []*field
	Fold     *field
	Reason   *field
	Reasons  []reason
}

func (c *clerkPages) hearing(w http.ResponseWriter, r *http.Request) error {
	return c.show(w, r, nil)
}

// show writes the page of the hearing. refused is nil or the reason why the request, a
// form, changed nothing: the page then has the form's values and the hearing as it is.
func (c *clerkPages) show(w http.ResponseWriter, r *http.Request, refused error) error {
	h, err := c.service.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	d := hearingData{
		Hearing: h, Written: h.UpdatedAt.In(h.zone()), Done: done[r.URL.Query().Get("done")], Reasons: reasons,
		Move: placeFields(Rescheduling{h.LocalStart, h.Zone, "", h.DurationMinutes, h.Courthouse, h.Courtroom}),
		Fold: &field{Name: "fold"},
		Reason: &field{
			Name: "reason", Label: "Reason", Needed: true, Value: r.PostFormValue("reason"),
			Hint: "The courts are told this reason. A cancelled hearing stays cancelled; a new date is a new booking.",
		},
	}
	status := http.StatusOK
	if refused != nil {
		status = problemOf(refused).Status
		for _, f := range append(slices.Clone(d.Move), d.Fold) {
			if r.PostForm.Has(f.Name) {
				f.Value = r.PostForm.Get(f.Name)
			}
		}
		var ok bool
		if d.Mistakes, ok = mistakes(refused, append(slices.Clone(d.Move), d.Fold, d.Reason)...); !ok {
			d.Stale = problemOf(refused).Detail + "."
			if status == http.StatusPreconditionFailed {
				d.Stale = fmt.Sprintf("The hearing was changed while you looked at it: this page now shows version %d. "+
					"The form below still has what you wrote; send it again if it is still right.", h.Version)
			}
		}
	}
	known, err := c.service.Court(r.Context(), h)
	switch {
	case errors.Is(err, errMayNotRead):
		d.Unknown = err.Error()
	case err != nil:
		return err
	}
	d.row = newRow(h, known, time.Now())
	c.write(w, r, status, page.View{Page: "hearing", Title: "Hearing " + h.ID, Data: d})
	return nil
}

// placeFields are the fields for the time and the place of a hearing.
func placeFields(p Rescheduling) []*field {
	minutes := ""
	if p.DurationMinutes > 0 {
		minutes = strconv.Itoa(p.DurationMinutes)
	}
	return []*field{
		{
			Name: "local_start", Label: "Start", Type: "datetime-local", Value: p.LocalStart, Needed: true,
			Min: "2000-01-01T00:00", Max: "2199-12-31T23:59", Hint: "The time on the clock of the courthouse.",
		},
		{Name: "zone", Label: "Time zone", Type: "text", Value: p.Zone, Needed: true, Hint: "Such as America/New_York."},
		{Name: "duration_minutes", Label: "Minutes", Type: "number", Value: minutes, Needed: true, Min: "1", Max: strconv.Itoa(maxMinutes)},
		{Name: "courthouse", Label: "Courthouse", Type: "text", Value: p.Courthouse, Needed: true},
		{Name: "courtroom", Label: "Courtroom", Type: "text", Value: p.Courtroom, Needed: true},
	}
}

// readPlace reads the fields of [placeFields].
func readPlace(r *http.Request) Rescheduling {
	minutes, err := strconv.Atoi(strings.TrimSpace(r.PostFormValue("duration_minutes")))
	if err != nil {
		minutes = -1 // not 0, which means unchanged
	}
	text := func(name string) string { return strings.TrimSpace(r.PostFormValue(name)) }
	return Rescheduling{
		LocalStart: text("local_start"), Zone: text("zone"), Fold: Fold(text("fold")),
		DurationMinutes: minutes, Courthouse: text("courthouse"), Courtroom: text("courtroom"),
	}
}

// parseForm reads the body of a form.
func parseForm(r *http.Request) error {
	err := r.ParseForm()
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return explainDecode(err)
	} else if err != nil {
		return newProblem(http.StatusBadRequest, "The form cannot be read. Open the page again.")
	}
	return nil
}

func (c *clerkPages) move(w http.ResponseWriter, r *http.Request) error {
	return changed(c, w, r, "moved", c.service.Reschedule, func() (Rescheduling, error) {
		p := readPlace(r)
		var missing checks // the API keeps what a request leaves out; a form leaves nothing out
		for _, one := range [][2]string{{"courthouse", p.Courthouse}, {"courtroom", p.Courtroom}, {"zone", p.Zone}} {
			if one[1] == "" {
				missing.add(one[0], "is missing")
			}
		}
		return p, invalid(missing)
	})
}

func (c *clerkPages) cancel(w http.ResponseWriter, r *http.Request) error {
	return changed(c, w, r, "cancelled", c.service.Cancel, func() (Cancellation, error) {
		return Cancellation{Reason: r.PostFormValue("reason")}, nil
	})
}

// changed makes the change of a form, and sends the clerk to the hearing's page. A form
// that is refused for what is in it is shown again.
func changed[R any](c *clerkPages, w http.ResponseWriter, r *http.Request, word string,
	change func(context.Context, Target, R) (Hearing, error), read func() (R, error),
) error {
	if err := parseForm(r); err != nil {
		return err
	}
	version, err := strconv.ParseInt(r.PostFormValue("version"), 10, 64)
	if err != nil {
		return newProblem(http.StatusBadRequest, "The form has no version of the hearing. Open the hearing's page again.")
	}
	in, err := read()
	var h Hearing
	if err == nil {
		h, err = change(r.Context(), Target{ID: r.PathValue("id"), IfVersion: &version, Headers: eventHeaders(r.Header)}, in)
	}
	if _, refused := errors.AsType[problem](err); refused {
		return c.show(w, r, err)
	} else if err != nil {
		return err
	}
	if h.Version == version {
		word = "same"
	}
	http.Redirect(w, r, "/hearing/"+h.ID+"?done="+word, http.StatusSeeOther)
	return nil
}

// bookData is the page for a booking.
type bookData struct {
	Number   string
	Fields   []*field
	Fold     *field
	Mistakes []field
}

func bookFields(b Booking) []*field {
	return append([]*field{
		{Name: "case_number", Label: "Case number", Type: "text", Value: b.CaseNumber, Needed: true},
		{Name: "case_name", Label: "Case name", Type: "text", Value: b.CaseName, Hint: "Stays in this module; the courts do not get it."},
		{Name: "hearing_type", Label: "Type", Type: "text", Value: b.HearingType, Needed: true, Hint: "Such as Motion or Directions."},
	}, placeFields(Rescheduling{b.LocalStart, b.Zone, b.Fold, b.DurationMinutes, b.Courthouse, b.Courtroom})...)
}

func (c *clerkPages) booking(w http.ResponseWriter, r *http.Request) error {
	return c.showBooking(w, r, http.StatusOK, bookFields(Booking{Zone: c.Zone, DurationMinutes: 30}), &field{Name: "fold"}, nil)
}

func (c *clerkPages) showBooking(w http.ResponseWriter, r *http.Request, status int, fields []*field, fold *field, wrong []field) error {
	number, err := c.service.nextNumber(r.Context())
	if err != nil {
		return err
	}
	c.write(w, r, status, page.View{
		Page: "book", Title: "Book a hearing", Here: "/book",
		Data: bookData{Number: strconv.FormatInt(number, 10), Fields: fields, Fold: fold, Mistakes: wrong},
	})
	return nil
}

var numberForm = regexp.MustCompile(`^[1-9][0-9]{0,17}$`)

// book books the hearing of a form. The form has the hearing's number, so a form that is
// sent twice books one hearing.
func (c *clerkPages) book(w http.ResponseWriter, r *http.Request) error {
	if err := parseForm(r); err != nil {
		return err
	}
	p := readPlace(r)
	b := Booking{
		CaseNumber: strings.TrimSpace(r.PostFormValue("case_number")), CaseName: strings.TrimSpace(r.PostFormValue("case_name")),
		HearingType: strings.TrimSpace(r.PostFormValue("hearing_type")),
		Courthouse:  p.Courthouse, Courtroom: p.Courtroom, LocalStart: p.LocalStart, Zone: p.Zone, Fold: p.Fold, DurationMinutes: p.DurationMinutes,
	}
	number := r.PostFormValue("number")
	if !numberForm.MatchString(number) {
		return newProblem(http.StatusBadRequest, "The form has no number for the hearing. Open the page again.")
	}
	wanted, err := b.hearing()
	if err == nil {
		n, _ := strconv.ParseInt(number, 10, 64) // numberForm fits
		b.ID = numbered(wanted.StartsAt, n)
		_, err = c.service.Book(r.Context(), b, eventHeaders(r.Header))
	}
	if p, ok := errors.AsType[problem](err); ok && p.Status == http.StatusConflict {
		if old, reading := c.service.Get(r.Context(), b.ID); reading == nil && old.booksSame(wanted) {
			err = nil // the same form once more
		}
	}
	if err == nil {
		http.Redirect(w, r, "/hearing/"+b.ID+"?done=booked", http.StatusSeeOther)
		return nil
	}
	refused, ok := errors.AsType[problem](err)
	if !ok {
		return err
	}
	fields, fold := bookFields(b), &field{Name: "fold", Value: string(b.Fold)}
	for _, f := range fields {
		f.Value = r.PostFormValue(f.Name)
	}
	wrong, ok := mistakes(err, append(slices.Clone(fields), fold)...)
	if !ok {
		wrong = []field{{Error: fmt.Sprintf("Hearing %s exists already with other values, perhaps from this form. To book one more, send it again.", b.ID)}}
	}
	return c.showBooking(w, r, refused.Status, fields, fold, wrong)
}

// booksSame reports whether o asks for what h has.
func (h Hearing) booksSame(o Hearing) bool {
	o.ID, o.Version, o.EventID, o.CreatedAt, o.UpdatedAt = h.ID, h.Version, h.EventID, h.CreatedAt, h.UpdatedAt
	return h.sameAs(o)
}

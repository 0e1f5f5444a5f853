package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/inspect"
	"github.com/hms-mkt/lockstep/internal/operate"
	"github.com/hms-mkt/lockstep/internal/page"
)

// An action on a set of deliveries has two steps. GET shows the set: what selects it, how
// many deliveries it has, and what happens to them. The form has the moment and the
// fingerprint of the set. POST changes exactly this set, or answers 409 with the set as it
// is by then.

// shownFirst is how many deliveries of a set the page lists.
const shownFirst = 20

// maxReason is how many characters of a reason the log keeps.
const maxReason = 1000

// actionWords say what an action does.
var actionWords = map[operate.Action]struct {
	Title, Button string
	Does          string // what happens to the deliveries
	When          string // begins a sentence that ends with the time when relays send
}{
	operate.Requeue: {
		"Send again", "Send them again",
		"Attempts and the time for retries begin at zero. Each event keeps its place in the order of its key, and its message is made anew with the mapping of today.",
		"They are sent",
	},
	operate.Discard: {
		"Give up", "Give them up",
		"They are never sent, so the receiver does not learn of these events. This cannot be undone.",
		"What waits behind them is sent",
	},
	operate.Replay: {
		"Send once more", "Send them once more",
		"Each event is sent after everything else of its key. It gets a new idempotency key, so that the receiver does not take it for a duplicate.",
		"They are sent",
	},
}

// filterFields are the fields of a form or an address that select deliveries.
var filterFields = []string{"sync", "key", "event", "class", "error", "since", "until", "all", "retired", "force"}

// confirmation is the page that asks whether a set shall be changed.
type confirmation struct {
	Action  operate.Action
	Button  string
	Does    string
	Next    []inspect.Sentence
	Set     operate.Set
	Words   string
	First   []operate.Delivery
	More    int64  // deliveries of the set that are not in First
	Many    bool   // it is changed in several transactions
	Hidden  fields // what selects the set, and says which set it was
	Asked   fields // what selects the set
	Reason  string
	Mistake string // why the reason is not taken
	Changed string // why nothing was changed
	Older   string // why these events must not be sent once more; the reader may insist
	Wider   bool   // the reader has to say that everything is meant
}

// confirm shows the set of an action.
func (c *Console) confirm(w http.ResponseWriter, r *http.Request, _ visitor) error {
	a, err := actionOf(r)
	if err != nil {
		return err
	}
	if err := r.ParseForm(); err != nil {
		return wrong("This address cannot be read.")
	}
	return c.showSet(w, r, a, http.StatusOK, confirmation{})
}

// actionOf returns the action in the path.
func actionOf(r *http.Request) (operate.Action, error) {
	a := operate.Action(r.PathValue("action"))
	if _, ok := actionWords[a]; !ok {
		return a, unknown(nil, r, visitor{})
	}
	return a, nil
}

// Classes returns the error classes that the page suggests.
func (confirmation) Classes() []string { return operate.Classes() }

// showSet writes the confirmation for the filter of the request's form. d has what the page
// says about an earlier step.
func (c *Console) showSet(w http.ResponseWriter, r *http.Request, a operate.Action, status int, d confirmation) error {
	words := actionWords[a]
	d.Action, d.Button, d.Does = a, words.Button, words.Does
	d.Asked = asked(r.Form)
	f, err := c.filter(a, r.Form)
	if err != nil {
		return err
	}
	if err := f.Check(a); errors.Is(err, operate.ErrTooWide) {
		d.Wider = true
		c.write(w, r, http.StatusBadRequest, page.View{Page: "action", Title: words.Title, Data: d})
		return nil
	} else if err != nil {
		return wrong("%s.", err)
	}
	set, next, err := c.chooseSet(r.Context(), a, f)
	older, isOlder := errors.AsType[*operate.OutdatedError](err)
	refused, isRefused := errors.AsType[*pgconn.PgError](err)
	switch {
	case isOlder:
		d.Older, status = older.Error(), http.StatusConflict
	case isRefused && refused.Code == "P0002": // outbox.check_sync
		return refusal{http.StatusNotFound, "No such sync", adapters.Clean(refused.Message+". "+refused.Hint, 1000)}
	case tookTooLong(err):
		return refusal{http.StatusServiceUnavailable, "This cannot be shown now", "The database took too long to find the deliveries, and nothing was changed. Try again in a moment, or select fewer: of one sync, of one error class or of a shorter time."}
	case err != nil:
		return err
	default:
		d.Set, d.Next, d.Words = set, next, adapters.Clean(set.Words, 0)
		d.First = set.First[:min(shownFirst, len(set.First))]
		d.More = set.Count - int64(len(d.First))
		d.Many = set.Count > operate.PageSize
		d.Hidden = maps.Clone(d.Asked)
		d.Hidden["as_of"], d.Hidden["fingerprint"] = set.AsOf.Format(time.RFC3339Nano), set.Fingerprint
		d.Hidden["count"] = strconv.FormatInt(set.Count, 10)
	}
	c.write(w, r, status, page.View{Page: "action", Title: words.Title, Data: d})
	return nil
}

// fields are the fields of a form that are not empty.
type fields map[string]string

// Of returns the value of a field, "" if it is empty.
func (f fields) Of(name string) string { return f[name] }

// asked returns the fields of a form that select deliveries.
func asked(form url.Values) fields {
	given := fields{}
	for _, name := range filterFields {
		if value := form.Get(name); value != "" {
			given[name] = value
		}
	}
	return given
}

// filter reads the fields that select deliveries. For failed deliveries, nobody has to say
// that all are meant: the page shows how many they are.
func (c *Console) filter(a operate.Action, form url.Values) (f operate.Filter, err error) {
	for _, name := range filterFields {
		if value := form.Get(name); !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
			return f, wrong("%s has a text that cannot be read.", name)
		}
	}
	yes := func(name string) bool { return form.Get(name) == "yes" }
	f = operate.Filter{
		Sync: form.Get("sync"), Key: form.Get("key"), Event: form.Get("event"), Class: form.Get("class"), Error: form.Get("error"),
		All: yes("all") || a != operate.Replay, Retired: yes("retired"), Force: yes("force"),
	}
	if f.Event != "" && !eventID.MatchString(f.Event) {
		return f, wrong("%q is not an event's id: want a UUID such as 0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d.", f.Event)
	}
	if f.Since, err = c.moment("since", form.Get("since")); err != nil {
		return f, err
	}
	f.Until, err = c.moment("until", form.Get("until"))
	return f, err
}

// moment reads a time in a form: with a zone, or in the console's zone as browsers send it.
func (c *Console) moment(name, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04", "2006-01-02T15:04:05"} {
		if at, err := time.ParseInLocation(layout, text, c.Zone); err == nil {
			return at, nil
		}
	}
	return time.Time{}, wrong("%s=%s is not a time: want one such as 2027-01-31T08:00:00Z.", name, text)
}

// chooseTimeout bounds each statement that reads a set, which may be large.
const chooseTimeout = "20s"

// chooseSet reads the set that a filter selects, and when its deliveries will be sent.
func (c *Console) chooseSet(ctx context.Context, a operate.Action, f operate.Filter) (set operate.Set, next []inspect.Sentence, err error) {
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, c.Operate, snapshot, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true)`, chooseTimeout); err != nil {
			return err
		}
		if f.Sync != "" {
			if _, err := tx.Exec(ctx, `SELECT outbox.check_sync($1)`, f.Sync); err != nil {
				return err
			}
		}
		if set, err = operate.Choose(ctx, tx, a, f); err != nil {
			return err
		}
		next, err = c.whenSent(ctx, tx, set)
		return err
	})
	return set, next, err
}

// whenSent says when relays send what an action changes.
func (c *Console) whenSent(ctx context.Context, tx pgx.Tx, set operate.Set) (said []inspect.Sentence, err error) {
	syncs := map[string]bool{}
	for _, g := range set.Groups {
		syncs[g.Sync] = true
	}
	names := slices.Sorted(maps.Keys(syncs))
	var now time.Time
	var unserved []string
	const served = `-- lockstep: which syncs are served
SELECT clock_timestamp(), ARRAY(SELECT n FROM unnest($1::text[]) AS n WHERE NOT EXISTS (SELECT FROM outbox.relay AS r WHERE r.running AND n = ANY (r.syncs)) ORDER BY n)`
	if err := tx.QueryRow(ctx, served, names).Scan(&now, &unserved); err != nil {
		return nil, err
	}
	text := func(s string) inspect.Sentence { return inspect.Sentence{{Text: s}} }
	stopped := 0 // syncs to which nothing is sent
	for _, name := range names {
		holds, err := inspect.HoldsOf(ctx, tx, []string{name})
		if err != nil {
			return nil, err
		}
		whole := slices.DeleteFunc(slices.Clone(holds), func(h inspect.Hold) bool { return h.Scope != "" })
		switch {
		case slices.Contains(unserved, name):
			stopped++
			said = append(said, text(name+": no running relay serves this sync, so nothing is sent until one does."))
		case len(whole) > 0:
			stopped++
			said = append(said, append(text(name+": "), whole[0].Says(now)...))
		}
		for _, h := range holds[len(whole):min(len(holds), len(whole)+mostScopes)] {
			said = append(said, append(text(name+": "), h.Says(now)...))
		}
	}
	soon := actionWords[set.Action].When + " as soon as the relays can."
	switch {
	case stopped == len(names):
		return said, nil
	case stopped > 0:
		soon = "To other syncs: " + strings.ToLower(soon[:1]) + soon[1:]
	}
	return append([]inspect.Sentence{text(soon)}, said...), nil
}

// mostScopes is how many destinations on hold the page names for each sync.
const mostScopes = 3

// act changes the set of a confirmation.
func (c *Console) act(w http.ResponseWriter, r *http.Request, v visitor) error {
	a, err := actionOf(r)
	if err != nil {
		return err
	}
	if err := r.ParseForm(); err != nil {
		return wrong("The form cannot be read. Open the page again.")
	}
	r.Form = r.PostForm // what the address says does not count
	reason, mistake := reasonOf(r.PostForm)
	if mistake != "" {
		return c.showSet(w, r, a, http.StatusBadRequest, confirmation{Reason: reason, Mistake: mistake})
	}
	f, err := c.filter(a, r.PostForm)
	if err != nil {
		return err
	}
	fingerprint := r.PostFormValue("fingerprint")
	if f.AsOf, err = time.Parse(time.RFC3339Nano, r.PostFormValue("as_of")); err != nil || fingerprint == "" {
		return wrong("The form does not say which deliveries you saw. Open the page again.")
	}
	count, _ := strconv.ParseInt(r.PostFormValue("count"), 10, 64) // only shown
	again := url.Values{}
	for name, value := range asked(r.PostForm) {
		again.Set(name, value)
	}
	j := &job{By: v.Name, Reason: reason, Action: a, Words: adapters.Clean(f.Words(a), 0), Again: "/action/" + string(a) + "?" + again.Encode(), Seen: count}
	err = c.jobs.start(j, c.Operate, operate.Order{Action: a, Filter: f, Fingerprint: fingerprint})
	if err != nil {
		return err
	}
	if !j.wait(r.Context(), c.jobs.answerWithin) {
		http.Redirect(w, r, j.URL(), http.StatusSeeOther)
		return nil
	}
	err = j.State().Err
	changed, isChanged := errors.AsType[*operate.ChangedError](err)
	_, isOlder := errors.AsType[*operate.OutdatedError](err)
	if isChanged || isOlder {
		d := confirmation{Reason: reason, Changed: "Something happened to these deliveries since you opened the page."}
		if isChanged {
			d.Changed = fmt.Sprintf("The set has changed since you opened the page. In it now: %d.", changed.Now.Count)
		}
		return c.showSet(w, r, a, http.StatusConflict, d)
	}
	http.Redirect(w, r, j.URL(), http.StatusSeeOther)
	return nil
}

// reasonOf returns the reason of a form, and why it is not taken.
func reasonOf(form url.Values) (reason, mistake string) {
	reason = strings.TrimSpace(form.Get("reason"))
	switch {
	case adapters.Clean(reason, 0) == "":
		return reason, "Say why: the reason is written to the log."
	case !utf8.ValidString(reason) || strings.ContainsRune(reason, 0):
		return "", "The reason has characters that cannot be read."
	case utf8.RuneCountInString(reason) > maxReason:
		return reason, fmt.Sprintf("The reason has %d characters. The log keeps %d.", utf8.RuneCountInString(reason), maxReason)
	}
	return reason, ""
}

// pauseData is the page that asks whether a sync shall be paused or resumed.
type pauseData struct {
	operate.Pause
	Action      string // pause or resume
	Seen        string // fingerprint of the pause
	Many        bool   // more wait than were counted
	Ends        []pauseEnd
	Chosen      string // the end that was chosen
	Reason      string
	Mistake     string // why the reason is not taken
	Changed     string // why nothing was changed
	MostWaiting int
}

// pauseEnd is a choice of when a pause ends by itself.
type pauseEnd struct {
	Value, Text string
	after       time.Duration
}

var pauseEnds = []pauseEnd{
	{"", "when a person resumes it", 0},
	{"30m", "after 30 minutes", 30 * time.Minute},
	{"1h", "after 1 hour", time.Hour},
	{"2h", "after 2 hours", 2 * time.Hour},
	{"4h", "after 4 hours", 4 * time.Hour},
	{"8h", "after 8 hours", 8 * time.Hour},
	{"1d", "after 1 day", 24 * time.Hour},
	{"3d", "after 3 days", 72 * time.Hour},
}

// confirmPause shows what is paused and what waits.
func (c *Console) confirmPause(w http.ResponseWriter, r *http.Request, _ visitor) error {
	if err := r.ParseForm(); err != nil {
		return wrong("This address cannot be read.")
	}
	return c.showPause(w, r, http.StatusOK, pauseData{})
}

// pauseAction returns "pause" or "resume", the end of the path.
func pauseAction(r *http.Request) string {
	return strings.TrimPrefix(r.URL.Path, "/action/")
}

func (c *Console) showPause(w http.ResponseWriter, r *http.Request, status int, d pauseData) error {
	sync, scope := r.Form.Get("sync"), r.Form.Get("scope")
	if sync == "" {
		return wrong("The address does not say which sync: want sync=NAME.")
	}
	if text := sync + scope; !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
		return wrong("The address has a text that cannot be read.")
	}
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(r.Context(), c.Operate, snapshot, func(tx pgx.Tx) (err error) {
		d.Pause, err = operate.ReadPause(r.Context(), tx, sync, scope)
		return err
	})
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code == "P0002" {
		return refusal{http.StatusNotFound, "No such sync", adapters.Clean(refused.Message+". "+refused.Hint, 1000)}
	} else if err != nil {
		return err
	}
	d.Action, d.Ends, d.Seen = pauseAction(r), pauseEnds, d.Fingerprint()
	d.Many, d.MostWaiting = d.Waiting > operate.MostWaiting, operate.MostWaiting
	d.Chosen = r.Form.Get("for")
	c.write(w, r, status, page.View{Page: "pause", Title: strings.ToUpper(d.Action[:1]) + d.Action[1:] + " " + adapters.Clean(cmp.Or(scope, sync), 0), Data: d})
	return nil
}

// pauseTimeout bounds a change of a pause.
const pauseTimeout = 20 * time.Second

// changePause pauses or resumes, if the pause is as the person saw it.
func (c *Console) changePause(w http.ResponseWriter, r *http.Request, v visitor) error {
	if err := r.ParseForm(); err != nil {
		return wrong("The form cannot be read. Open the page again.")
	}
	r.Form = r.PostForm // what the address says does not count
	form := r.PostForm
	reason, mistake := reasonOf(form)
	if mistake != "" {
		return c.showPause(w, r, http.StatusBadRequest, pauseData{Reason: reason, Mistake: mistake})
	}
	end := slices.IndexFunc(pauseEnds, func(e pauseEnd) bool { return e.Value == form.Get("for") })
	if end < 0 {
		return wrong("for=%s is none of the choices. Open the page again.", form.Get("for"))
	}
	by := operate.Actor{Name: v.Name, Reason: reason}
	sync, scope, seen := form.Get("sync"), form.Get("scope"), form.Get("seen")
	// A change that has begun is completed, so that its result is known.
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(r.Context()), pauseTimeout, fmt.Errorf("no answer within %s", pauseTimeout))
	defer cancel()
	var err error
	if pauseAction(r) == "pause" {
		err = operate.SetPause(ctx, c.Operate, by, sync, scope, seen, operate.End{After: pauseEnds[end].after})
	} else {
		err = operate.LiftPause(ctx, c.Operate, by, sync, scope, seen)
	}
	if _, ok := errors.AsType[*operate.PauseChanged](err); ok {
		return c.showPause(w, r, http.StatusConflict, pauseData{Reason: reason, Changed: "Somebody has paused or resumed it since you opened the page."})
	}
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.Code == "P0002" {
		return refusal{http.StatusNotFound, "No such sync", adapters.Clean(refused.Message+". "+refused.Hint, 1000)}
	} else if ok && refused.Code == "55P03" { // lock_not_available
		return refusal{http.StatusConflict, "Not now", said(err) + "."}
	} else if err != nil {
		return err
	}
	http.Redirect(w, r, "/changes?sync="+url.QueryEscape(sync), http.StatusSeeOther)
	return nil
}

package console

import (
	"html"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/operate"
	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// office is a world with people: ana and cleo may act, bob may read.
type office struct {
	*world
	ana, bob, cleo func(*http.Request)
}

func newOffice(t *testing.T, change ...func(*Config)) *office {
	t.Helper()
	const cleoToken = "cleo-token-0123456789"
	w := newWorld(t, append([]func(*Config){withUsers, func(c *Config) {
		c.Users = append(c.Users, User{Name: "cleo", Token: cleoToken, May: Operate})
	}}, change...)...)
	return &office{w, w.logIn(anaToken), w.logIn(bobToken), w.logIn(cleoToken)}
}

// failed writes an event of a key whose delivery has failed.
func (o *office) failed(key string) string {
	o.T.Helper()
	event := o.Event(key)
	o.Fail(event)
	return event
}

// log returns what people did: actor without the login, outcome, key and reason.
func (o *office) log() string {
	o.T.Helper()
	return strings.Join(outboxtest.List[string](o.Session, `SELECT concat_ws(' ', split_part(actor, '/', 2), outcome, key, reason) FROM outbox.delivery_log WHERE actor IS NOT NULL ORDER BY id`), "\n")
}

var (
	theForm = regexp.MustCompile(`(?s)<form[^>]*method="post"[^>]*>.*?</form>`)
	hidden  = regexp.MustCompile(`<input type="hidden" name="(\w+)" value="([^"]*)">`)
)

// form returns the hidden fields of the page's form that acts, and a reason.
func (a answer) form(reason string) url.Values {
	a.t.Helper()
	text := theForm.FindString(a.body)
	if text == "" {
		a.t.Fatalf("%s has no form:\n%s", a.Request.URL.Path, a.body)
	}
	f := url.Values{"reason": {reason}}
	for _, m := range hidden.FindAllStringSubmatch(text, -1) {
		f.Set(m[1], html.UnescapeString(m[2]))
	}
	return f
}

// done follows a form that was sent to the page of the action.
func (o *office) done(a answer, who func(*http.Request), texts ...string) answer {
	o.T.Helper()
	to := a.wants(303).Header.Get("Location")
	if !strings.HasPrefix(to, "/action/job/") {
		o.T.Fatalf("goes to %s", to)
	}
	return o.get(to, who).wants(200, texts...)
}

func TestAnActionChangesWhatWasShown(t *testing.T) {
	o := newOffice(t)
	o.Do(`INSERT INTO outbox.heartbeat (instance, name, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay-1', '{Court}', now(), now())`)
	o.failed("H-1")
	o.failed("H-2")
	page := o.get("/action/requeue?sync=Court&class=permanent", o.ana).wants(200, "failed deliveries to Court of class permanent", "<dd>2</dd>", "Oldest, since",
		"Attempts and the time for retries begin at zero", "They are sent as soon as the relays can", "Send them again: 2", "no such courtroom", `href="/key/H-1"`, "All of them")
	o.done(o.send("POST", "/action/requeue", page.form(" the court is back "), o.ana), o.ana, "2 requeued", "the court is back", "ana", "failed deliveries to Court of class permanent")
	if got, want := o.log(), "ana requeued H-1 the court is back\nana requeued H-2 the court is back"; got != want {
		t.Errorf("the log says %q, want %q", got, want)
	}
	if states := o.States("H-1"); states != "pending" {
		t.Errorf("H-1 is %s", states)
	}
	o.get("/action/requeue?sync=Court", o.ana).wants(200, "Nothing is selected", "Select others")

	event := o.failed("H-3")
	page = o.get("/action/discard?sync=Court&event="+event, o.ana).wants(200, "open deliveries of event "+event, "This cannot be undone", "Give them up: 1")
	o.done(o.send("POST", "/action/discard", page.form("entered by hand"), o.ana), o.ana, "1 discarded")
	if states := o.States("H-3"); states != "" || !strings.HasSuffix(o.log(), "ana discarded H-3 entered by hand") {
		t.Errorf("H-3 is %s, log:\n%s", states, o.log())
	}

	delivered := o.Event("H-4")
	o.Deliver(delivered)
	page = o.get("/action/replay?sync=Court&key=H-4", o.ana).wants(200, "the newest delivered event of key H-4 to Court", "new idempotency key")
	o.done(o.send("POST", "/action/replay", page.form("the court lost it"), o.ana), o.ana, "1 replayed")
	if states := o.States("H-4"); states != "pending" || !strings.HasSuffix(o.log(), "ana replayed H-4 the court lost it") {
		t.Errorf("H-4 is %s, log:\n%s", states, o.log())
	}
}

func TestAConfirmationSaysWhenRelaysSend(t *testing.T) {
	o := newOffice(t)
	o.Sync("Clinic")
	o.failed("H-1")
	both := func(texts ...string) answer {
		t.Helper()
		return o.get("/action/requeue", o.ana).wants(200, texts...)
	}
	both("Clinic: no running relay serves this sync", "Court: no running relay serves this sync").lacks("as soon as the relays can")
	o.Do(`INSERT INTO outbox.heartbeat (instance, name, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay-1', '{Court,Clinic}', now(), now())`)
	both("They are sent as soon as the relays can").lacks("no running relay")
	o.Do(`SELECT outbox.pause('Court', 'it moves', scope => 'ny07')`)
	both("They are sent as soon as the relays can", "Court: Sending to ny07 was paused by")
	o.Do(`SELECT outbox.pause('Court', 'all of it moves')`)
	both("To other syncs: they are sent as soon as the relays can", "Court: Sending was paused by", "all of it moves", "Sending to ny07")
	o.get("/action/discard?key=H-1&sync=Court", o.ana).wants(200, "Sending was paused by").lacks("as soon as the relays can")
	o.get("/action/discard?key=H-1&sync=Clinic", o.ana).wants(200, "What waits behind them is sent as soon as the relays can").lacks("paused")
}

func TestTheSecondOfTwoPeopleSeesWhatTheFirstDid(t *testing.T) {
	o := newOffice(t)
	o.failed("H-1")
	o.failed("H-2")
	anas := o.get("/action/requeue?sync=Court", o.ana).wants(200, "<dd>2</dd>")
	cleos := o.get("/action/discard?sync=Court&key=H-1", o.cleo).wants(200, "<dd>1</dd>")
	o.done(o.send("POST", "/action/discard", cleos.form("entered by hand"), o.cleo), o.cleo, "1 discarded")
	again := o.send("POST", "/action/requeue", anas.form("the court is back"), o.ana).
		wants(409, "Nothing was changed", "In it now: 1.", "<dd>1</dd>", "the court is back</textarea>", "H-2")
	again.lacks("H-1")
	o.done(o.send("POST", "/action/requeue", again.form("the court is back"), o.ana), o.ana, "1 requeued")
	// A form that is sent twice changes nothing more.
	o.send("POST", "/action/requeue", again.form("the court is back"), o.ana).wants(409, "Nothing is selected")
	if got, want := o.log(), "cleo discarded H-1 entered by hand\nana requeued H-2 the court is back"; got != want {
		t.Errorf("the log says %q, want %q", got, want)
	}
}

func TestADeliveryThatFailedLaterIsNotInTheSet(t *testing.T) {
	o := newOffice(t)
	o.failed("H-1")
	page := o.get("/action/requeue?sync=Court", o.ana).wants(200)
	o.failed("H-2")
	o.Past(`INSERT INTO outbox.delivery_log (sync, event_id, key, outcome, claim, relay, attempt)
	        SELECT 'Court', event_id, key, 'failed', gen_random_uuid(), 'relay-1', 1 FROM outbox.delivery WHERE key = 'H-2'`)
	o.done(o.send("POST", "/action/requeue", page.form("the court is back"), o.ana), o.ana, "1 requeued")
	if states := o.States("H-2"); states != "failed" {
		t.Errorf("H-2 is %s", states)
	}
}

func TestARelayThatSendsAfterTheConfirmationWins(t *testing.T) {
	o := newOffice(t)
	event := o.Event("H-1")
	page := o.get("/action/discard?sync=Court&event="+event, o.ana).wants(200, "<dd>1</dd>")
	o.Send(event) // a relay claims it
	o.done(o.send("POST", "/action/discard", page.form("not needed"), o.ana), o.ana, "Not done", "Nothing was changed: event "+event+" is being sent", "it cannot be discarded now").lacks("SQLSTATE")
	if states := o.States("H-1"); states != "sending" {
		t.Errorf("H-1 is %s", states)
	}
	o.Deliver(event)
	o.send("POST", "/action/discard", page.form("not needed"), o.ana).wants(409, "Nothing was changed", "Nothing is selected")
	if got := o.log(); got != "" {
		t.Errorf("the log says %s", got)
	}
}

func TestAnActionIsRefused(t *testing.T) {
	o := newOffice(t)
	o.failed("H-1")
	page := o.get("/action/requeue?sync=Court", o.ana).wants(200)
	send := func(change func(url.Values), who ...func(*http.Request)) answer {
		t.Helper()
		f := page.form("the court is back")
		change(f)
		return o.send("POST", "/action/requeue", f, who...)
	}
	set := func(name, value string) func(url.Values) { return func(f url.Values) { f.Set(name, value) } }
	same := func(url.Values) {}
	o.send("POST", "/action/requeue?key=H-9", page.form(""), o.ana).wants(400, "<dd>1</dd>")
	send(set("reason", " \n"), o.ana).wants(400, "Nothing was changed", "Say why", "<dd>1</dd>", `aria-invalid="true"`)
	send(set("reason", strings.Repeat("x", 1001)), o.ana).wants(400, "The reason has 1001 characters. The log keeps 1000", "xxx</textarea>")
	send(set("fingerprint", "0-0"), o.ana).wants(409)
	send(set("fingerprint", ""), o.ana).wants(400, "does not say which deliveries you saw")
	send(set("as_of", "yesterday"), o.ana).wants(400, "does not say which deliveries you saw")
	send(set("key", "H-2"), o.ana).wants(409)
	send(same).wants(401)
	send(same, o.bob).wants(403, "may read these pages, but may not act")
	send(same, o.ana, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }).wants(403, "another site")
	send(same, o.ana, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }).wants(403, "another site")
	o.get("/action/requeue?sync=Court", o.bob).wants(403, "may not act")
	for path, want := range map[string]string{
		"requeue?all=yes&sync=Typo":                "Registered: Court",
		"replay?sync=Court":                        "This would select everything of Court",
		"replay":                                   "This would select everything.",
		"requeue?event=H-1":                        "is not an event&#39;s id",
		"requeue?since=yesterday":                  "since=yesterday is not a time",
		"requeue?key=%ff":                          "key has a text that cannot be read",
		"replay?class=mapping":                     "a delivered event has no error",
		"discard?retired=yes":                      "only discard selects all open deliveries of a retired sync",
		"remove?all=yes":                           "There is no page with this address",
		"pause":                                    "does not say which sync",
		"pause?sync=Typo":                          "Registered: Court",
		"requeue?class=Permanent":                  "want one of auth, conflict, crash, forbidden, local, mapping, permanent,",
		"requeue?until=2027-01-31T08:00&class=%00": "cannot be read",
	} {
		status := http.StatusBadRequest
		if strings.Contains(want, "Registered") || strings.Contains(want, "no page") {
			status = http.StatusNotFound
		}
		o.get("/action/"+path, o.ana).wants(status, want)
	}
	o.get("/action/requeue?key=H-1&since=2020-01-31T08:00", o.ana).wants(200, "since 2020-01-31T08:00:00Z")
	if got := o.log(); got != "" || o.States("H-1") != "failed" {
		t.Errorf("the log says %s, H-1 is %s", got, o.States("H-1"))
	}
}

func TestWithoutALoginOfTheDatabaseThereAreNoActions(t *testing.T) {
	o := newOffice(t, func(c *Config) { c.Operate = nil })
	event := o.failed("H-1")
	o.get("/action/requeue?key=H-1", o.ana).wants(403, "console.operator_url")
	o.get("/key/H-1", o.ana).wants(200, event).lacks("/action/requeue")
}

func TestAStoryOffersTheActionsThatCanWork(t *testing.T) {
	o := newOffice(t)
	event := o.failed("H/1")
	story := o.get("/key?key=H/1", o.ana).wants(200)
	o.get(story.link("Send it again"), o.ana).wants(200, "<dd>1</dd>", "of key H/1 to Court")
	o.get(story.link("Give it up"), o.ana).wants(200, "<dd>1</dd>", "of event "+event)
	story.lacks("Send it once more", "Resume")
	o.get("/key?key=H/1", o.bob).wants(200).lacks("/action/")
	o.Do(`UPDATE outbox.delivery SET state = 'pending'`)
	o.Do(`UPDATE outbox.delivery SET state = 'retry', attempts = 1, due_at = now() + interval '1 hour', error_class = 'transient', error = 'HTTP 500'`)
	story = o.get("/key?key=H/1", o.ana).wants(200)
	o.get(story.link("Give it up"), o.ana).wants(200, "<dd>1</dd>", "HTTP 500")
	story.lacks("Send it again")
	o.Deliver(event)
	story = o.get("/key?key=H/1", o.ana).wants(200)
	o.get(story.link("Send it once more"), o.ana).wants(200, "<dd>1</dd>")
	story.lacks("Send it again", "Give it up")
	o.Event("H/1")
	o.Do(`SELECT outbox.pause('Court', 'the court moves')`)
	o.get(o.get("/key?key=H/1", o.ana).link("Resume"), o.ana).wants(200, "the court moves")
}

func TestAnOlderStateIsSentOnlyIfAPersonInsists(t *testing.T) {
	o := newOffice(t)
	version := func(n int) string {
		return outboxtest.One[string](o.Session, `INSERT INTO outbox.event (type, key, version, payload) VALUES ('scheduling:updated', 'H-1', $1, '{}') RETURNING id::text`, n)
	}
	first, second := version(1), version(2)
	o.Deliver(first)
	o.Deliver(second)
	refused := o.get("/action/replay?sync=Court&event="+first, o.ana).wants(409, "Court got version 2 of key H-1 after version 1: a replay of the older one would undo it", `name="force" value="yes" required`)
	if strings.Contains(refused.body, `method="post"`) {
		t.Error("the refusal has a form that acts")
	}
	page := o.get("/action/replay?sync=Court&event="+first+"&force=yes", o.ana).wants(200, "It will have the old state afterwards", "<dd>1</dd>")
	o.done(o.send("POST", "/action/replay", page.form("the court asked for it"), o.ana), o.ana, "1 replayed")

	// An event that became older after the confirmation.
	o.Do(`DELETE FROM outbox.delivery`)
	page = o.get("/action/replay?sync=Court&event="+second, o.ana).wants(200, "<dd>1</dd>")
	o.Deliver(version(3))
	o.send("POST", "/action/replay", page.form("the court lost it"), o.ana).wants(409, "Nothing was changed", "a replay of the older one would undo it")
	o.get("/action/replay?sync=Court&since=2020-01-01T00:00:00Z", o.ana).wants(200)
}

func TestAPauseIsChangedAsItWasSeen(t *testing.T) {
	o := newOffice(t)
	o.Event("H-1")
	ask := func(action string, who func(*http.Request)) answer {
		t.Helper()
		return o.get("/action/"+action+"?sync=Court", who)
	}
	o.failed("H-2")
	anas := ask("pause", o.ana).wants(200, "Court is not paused", "<dd>1</dd>", "Relays send nothing more to Court")
	cleos := ask("pause", o.cleo).wants(200)
	ask("resume", o.ana).wants(200, "There is nothing to resume").lacks(`method="post"`)
	f := anas.form("the court moves")
	f.Set("for", "2h")
	o.get("/sync/Court", o.ana).wants(200).lacks("was paused by") // this reading is shared for a while
	to := o.send("POST", "/action/pause", f, o.ana).wants(303).Header.Get("Location")
	o.get(to, o.ana).wants(200, "paused", "ana", "the court moves")
	o.get("/sync/Court", o.ana).wants(200, "was paused by")
	if hours := outboxtest.One[float64](o.Session, `SELECT extract(epoch FROM until - since)::float8 / 3600 FROM outbox.hold`); hours < 1.9 || hours > 2.1 {
		t.Errorf("paused for %f hours", hours)
	}
	o.send("POST", "/action/pause", cleos.form("maintenance"), o.cleo).
		wants(409, "<strong>Nothing was changed.</strong> Somebody has paused or resumed it since you opened the page.", "Court is paused by ana", "The new pause replaces the old one", "maintenance</textarea>")
	f = cleos.form("maintenance")
	f.Set("for", "1y")
	o.send("POST", "/action/pause", f, o.cleo).wants(400, "for=1y is none of the choices")
	resume := ask("resume", o.cleo).wants(200, "is paused by ana", "the court moves", "It continues at")
	o.send("POST", "/action/resume", resume.form(""), o.cleo).wants(400, "Say why")
	o.send("POST", "/action/resume", resume.form("it has moved"), o.cleo).wants(303)
	o.send("POST", "/action/resume", resume.form("it has moved"), o.cleo).wants(409, "Court is not paused", "There is nothing to resume")
	o.send("POST", "/action/pause", anas.form("x"), o.bob).wants(403)
	scoped := o.get("/action/pause?sync=Court&scope=ny07.example.gov", o.ana).wants(200, "ny07.example.gov")
	o.send("POST", "/action/pause", scoped.form("it moves"), o.ana).wants(303)
	if got := o.log(); !regexp.MustCompile(`^ana paused until \S+: the court moves\ncleo resumed it has moved\nana paused scope ny07.example.gov: it moves$`).MatchString(got) {
		t.Errorf("the log says %q", got)
	}
}

func TestAPauseThatSomebodyElseIsChangingIsNotWaitedForLong(t *testing.T) {
	o := newOffice(t)
	page := o.get("/action/pause?sync=Court", o.ana).wants(200)
	other := outboxtest.Connect(t, o.database)
	other.Do(`BEGIN`)
	other.Do(`SELECT outbox.pause('Court', 'not committed')`)
	o.send("POST", "/action/pause", page.form("the court moves"), o.ana).wants(409, "Nothing was changed: somebody else has been changing the pause for 2s")
	other.Do(`ROLLBACK`)
	o.send("POST", "/action/pause", page.form("the court moves"), o.ana).wants(303)
}

func TestAPageThatWaitsForTheDatabaseEndsWithTheProgram(t *testing.T) {
	o := newOffice(t)
	other := outboxtest.Connect(t, o.database)
	other.Do(`BEGIN`)
	other.Do(`LOCK TABLE outbox.delivery`)
	answered := make(chan answer, 1)
	go func() { answered <- o.get("/action/requeue?sync=Court", o.ana) }()
	waiting.For(t, time.Minute, "the page waits", func() bool {
		return outboxtest.One[bool](other, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'outbox.delivery'::regclass AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`)
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		o.console.Close()
		o.console.Operate.Close() // waits for the page's connection
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second): // less than chooseTimeout
		t.Error("the end of the program waits for the page")
	}
	other.Do(`ROLLBACK`)
	(<-answered).wants(503)
}

// until asks for a page until it has texts.
func (o *office) until(path string, texts ...string) (a answer) {
	o.T.Helper()
	waiting.For(o.T, time.Minute, path+" has "+strings.Join(texts, ", "), func() bool {
		a = o.get(path, o.ana)
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(a.body, text) })
	})
	return a.wants(200, texts...)
}

func TestALargeSetIsChangedInTheBackground(t *testing.T) {
	o := newOffice(t)
	o.Do(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'H-' || n, '{}' FROM generate_series(1, 2500) AS n`)
	o.Do(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent', error = 'x', attempts = 1`)
	page := o.get("/action/requeue?sync=Court", o.ana).wants(200, "<dd>2500</dd>", "in steps of 1000", "The first 20", "2480 more are not listed")

	// Somebody has locked a delivery of the second step. The action waits, and is stopped.
	o.console.jobs.answerWithin = time.Millisecond
	other := outboxtest.Connect(t, o.database)
	other.Do(`BEGIN`)
	other.Do(`SELECT FROM outbox.delivery WHERE key = 'H-1500' FOR UPDATE`)
	job := o.send("POST", "/action/requeue", page.form("the court is back"), o.ana).wants(303).Header.Get("Location")
	o.Until("the first step is done", `SELECT count(*) = 1000 FROM outbox.delivery WHERE state = 'pending'`)
	o.until(job, "1000 of 2500 requeued until now", `<meta http-equiv="refresh"`, "Stop after this step")
	if to := o.get("/changes", o.bob).wants(200, "failed deliveries to Court").link("1000 of 2500 requeued until now"); to != job {
		t.Errorf("the changes lead to %s", to)
	}
	o.send("POST", job+"/stop", url.Values{}, o.bob).wants(403)
	o.send("POST", job+"/stop", url.Values{}, o.ana).wants(303)
	other.Do(`ROLLBACK`)
	o.until(job, "Stopped", "Stopped: 2000 of 2500 requeued, the others were not changed").lacks("http-equiv")
	o.console.jobs.answerWithin = time.Minute
	o.get("/changes", o.ana).lacks("until now")

	// The rest is as it was.
	rest := o.get(o.get(job, o.ana).link("look at them"), o.ana).wants(200, "<dd>500</dd>")
	o.done(o.send("POST", "/action/requeue", rest.form("the rest"), o.ana), o.ana, "500 requeued")
	if n := outboxtest.One[int](o.Session, `SELECT count(*)::int FROM outbox.delivery_log WHERE outcome = 'requeued' AND split_part(actor, '/', 2) = 'ana'`); n != 2500 {
		t.Errorf("the log has %d rows", n)
	}
	o.get("/action/job/unknown", o.ana).wants(404, "This program does not know the action", `href="/changes?by=ana"`)
}

func TestAnActionThatIsToldToStopAtTheEndOfTheProgramIsStopped(t *testing.T) {
	t.Parallel()
	var s jobs
	ended := make(chan struct{})
	j := &job{stop: func(error) { close(ended) }}
	s.all = append(s.all, j)
	s.wg.Go(func() { <-ended })
	s.close()
	if err := s.start(&job{}, nil, operate.Order{}); err == nil || !strings.Contains(err.Error(), "is being stopped") {
		t.Errorf("got %v", err)
	}
}

func TestOnlyAFewActionsRunAtATime(t *testing.T) {
	t.Parallel()
	var s jobs
	for range mostRunning {
		s.all = append(s.all, &job{})
	}
	if err := s.start(&job{}, nil, operate.Order{}); err == nil || !strings.Contains(err.Error(), "Several actions are running") {
		t.Errorf("got %v", err)
	}
}

func TestActionsEscapeEverything(t *testing.T) {
	o := newOffice(t)
	const evil = `<script>"'&`
	o.failed(evil)
	o.Do(`UPDATE outbox.delivery SET error = $1, error_class = $1`, evil)
	page := o.get("/action/requeue", o.ana).wants(200, "&lt;script&gt;")
	page.lacks("<script>")
	for _, name := range []string{"key", "class", "error", "sync", "scope"} {
		o.get("/action/requeue?"+url.Values{name: {evil}, "all": {"yes"}}.Encode(), o.ana).lacks("<script>")
		o.get("/action/pause?"+url.Values{name: {evil}, "sync": {"Court"}}.Encode(), o.ana).lacks("<script>")
	}
	f := page.form(evil)
	o.failed("other")
	o.send("POST", "/action/requeue", f, o.ana).lacks("<script>")
	o.done(o.send("POST", "/action/requeue", o.get("/action/requeue", o.ana).form(evil), o.ana), o.ana, "requeued").lacks("<script>")
	p := o.get("/action/pause?sync=Court", o.ana).form(evil)
	o.send("POST", "/action/pause", p, o.ana).wants(303)
	o.get("/action/resume?sync=Court", o.ana).wants(200, "&lt;script&gt;").lacks("<script>")
	o.send("POST", "/action/pause", p, o.ana).wants(409).lacks("<script>")
}

func TestTheNewestActionsAreRemembered(t *testing.T) {
	w := newWorld(t)
	var ids []string
	for range mostJobs + 1 {
		j := &job{}
		outboxtest.Must(t, w.console.jobs.start(j, w.console.Operate, operate.Order{Action: "none"}))
		<-j.ended
		ids = append(ids, j.ID)
	}
	w.get("/action/job/"+ids[0]).wants(404, "does not know the action")
	w.get("/action/job/"+ids[1]).wants(200, "There is no action &#34;none&#34;")
	w.get("/action/job/" + ids[mostJobs]).wants(200)
}

func TestAConfirmationEndsInTime(t *testing.T) {
	o := newOffice(t)
	o.failed("H-1")
	o.console.actWithin = 50 * time.Millisecond
	o.Do(`BEGIN`)
	o.Do(`LOCK TABLE outbox.delivery`)
	o.get("/action/requeue?sync=Court", o.ana).wants(503, "took too long to find the deliveries", "select fewer")
	o.Do(`ROLLBACK`)
}

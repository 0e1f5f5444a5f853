package console

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// relay makes a relay appear that serves the sync Court.
func (w *world) relay() {
	w.T.Helper()
	w.Do(`INSERT INTO outbox.heartbeat (instance, name, host, version, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay-<1>', 'host-1', '1.2.3', '{Court}', now(), now())`)
}

// hearing writes an event that is needed after a time, such as '2 hours'.
func (w *world) hearing(key, in string) string {
	w.T.Helper()
	w.Do(`UPDATE outbox.sync SET escalate_at = '{scheduledAt}'`)
	id := outboxtest.One[string](w.Session, `INSERT INTO outbox.event (type, key, version, payload)
		VALUES ('scheduling:updated', $1, 3, jsonb_build_object('scheduledAt', now() + $2::text::interval + interval '1 second', 'party', 'Smith')) RETURNING id::text`, key, in)
	w.Do(`UPDATE outbox.delivery SET created_at = created_at - interval '2 minutes'`)
	return id
}

func TestTheOverviewSaysInWordsWhyNothingIsSent(t *testing.T) {
	w := newWorld(t)
	w.get("/").wants(200, "No relay is running", "No running relay serves this sync")
	w.relay()
	w.fresh().get("/").wants(200, "up to date", "relay-&lt;1&gt;", "host-1").lacks("No relay is running", "<1>")
	w.Do(`SELECT outbox.pause('Court', 'the <script> moves')`)
	w.fresh().get("/").wants(200, "on hold", "was paused by", "the &lt;script&gt; moves", "It continues when a person resumes it.").lacks("<script>alert", "the <script>")
	w.Do(`SELECT outbox.resume('Court')`)
	for kind, want := range map[string]string{
		"auth": "refuses our credentials", "breaker": "does not answer as it should", "throttle": "asked for a pause", "window": "it is HTTP 500",
	} {
		w.Do(`INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('Court', $1, now() + interval '90 seconds', 'HTTP 500 <b>', 'relay-1')`, kind)
		w.fresh().get("/").wants(200, "<span class=\"state", want, "That is in 1 min.", "&lt;b&gt;").lacks("<b>")
		w.Do(`DELETE FROM outbox.hold`)
	}
	w.Do(`INSERT INTO outbox.hold (sync, scope, kind, until, reason, by) VALUES ('Court', '<court-7>', 'breaker', now() + interval '90 seconds', 'HTTP 500', 'relay-1')`)
	w.fresh().get("/").wants(200, "partly on hold", "Sending to &lt;court-7&gt; is stopped")
}

// fresh makes the next page read again.
func (w *world) fresh() *world {
	w.console.latest.expire()
	return w
}

func TestTheOverviewSortsWhatIsAtRiskByTime(t *testing.T) {
	w := newWorld(t)
	w.relay()
	w.hearing("H-later", "3 days")
	refused := w.hearing("H-<soon>", "2 hours")
	w.hearing("H-past", "-1 hours")
	w.Fail(refused)
	body := w.get("/").wants(200, "H-&lt;soon&gt;", "H-later", "in 2 h", "in 3 days", "no such courtroom", "It waits for a person.", "1 open event was needed before now",
		`<a href="/key/H-%3Csoon%3E">`, "1 waits for a person", "3: 1 failed, 2 pending").body
	if strings.Index(body, "H-&lt;soon") > strings.Index(body, "H-later") {
		t.Error("the soonest is not the first")
	}
	w.Do(`UPDATE outbox.delivery SET escalates_at = now() WHERE key = 'H-<soon>'`)
	if body := w.fresh().get("/").body; strings.Count(body, "escalated") != 1 || strings.Index(body, "escalated") > strings.Index(body, "H-later") {
		t.Error("not exactly the escalated hearing is marked")
	}
	w.get("/failed").wants(200, `<span class="state bad">escalated</span>`)
	if strings.Contains(body, "Smith") {
		t.Error("the page has a part of a payload")
	}
}

func TestWhatStopsASyncIsSaidOnce(t *testing.T) {
	w := newWorld(t)
	w.relay()
	for _, key := range []string{"H-1", "H-2", "H-3"} {
		w.hearing(key, "2 hours")
	}
	w.Do(`INSERT INTO outbox.hold (sync, scope, kind, until, reason, by) VALUES ('Court', '', 'breaker', now() + interval '1 hour', 'HTTP 503 of all', 'relay-1')`)
	for _, path := range []string{"/", "/sync/Court"} {
		body := w.get(path).wants(200, "H-3", "because the whole sync is on hold, as said above").body
		if n := strings.Count(body, "HTTP 503 of all"); n != 2 { // for the sync, and for the first key
			t.Errorf("%s says it %d times", path, n)
		}
	}
}

func TestTheOverviewOffersActionsToThoseWhoMayAct(t *testing.T) {
	w := newWorld(t, withUsers)
	w.Fail(w.hearing("H-1", "2 hours"))
	w.get("/", w.logIn(bobToken)).wants(200, "1 waits for a person").lacks("/action/")
	w.get("/", w.logIn(anaToken)).wants(200, `href="/action/requeue?sync=Court"`, `href="/action/pause?sync=Court"`).lacks("/action/resume")
	w.Do(`SELECT outbox.pause('Court', 'a reason')`)
	w.fresh().get("/", w.logIn(anaToken)).wants(200, `href="/action/resume?sync=Court"`).lacks("/action/pause")
	w.Do(`SELECT outbox.resume('Court')`)
	w.Do(`SELECT outbox.pause('Court', 'a reason', scope => 'East')`)
	w.fresh().get("/", w.logIn(anaToken)).wants(200, `href="/action/resume?scope=East&amp;sync=Court">Resume East<`, "/action/pause")
}

func TestWhileTheDatabaseIsAwayTheLastAnswerIsShown(t *testing.T) {
	w := newWorld(t)
	w.relay()
	w.get("/").wants(200, "up to date").lacks("This is as of")
	w.get("/failed").wants(200, "Nothing has failed.")
	w.Do(`BEGIN`)
	w.Do(`LOCK TABLE outbox.delivery`)
	w.fresh().get("/").wants(200, "up to date", "This is as of", "The database took too long to answer.")
	w.get("/failed").wants(200, "Nothing has failed.", "This is as of", "The database took too long to answer.")
	w.get("/blocked").wants(503, "The database took too long to answer.")
	w.Do(`ROLLBACK`)
	w.get("/failed").wants(200, "Nothing has failed.").lacks("This is as of")
	w.console.Read.Close()
	w.fresh().get("/").wants(200, "up to date", "This is as of", "The database does not answer.")
	w.get("/key/H-1").wants(503, "The database does not answer")
}

func TestAPageDoesNotWaitWhileOthersLook(t *testing.T) {
	w := newWorld(t)
	w.get("/").wants(200, "No relay is running")
	w.relay()
	older := w.console.latest.last.get()
	w.Do(`BEGIN`)
	w.Do(`LOCK TABLE outbox.delivery`)
	waiting.For(t, time.Minute, "a page without the table", func() bool { // on a busy machine the reading may get too old meanwhile
		older.read = time.Now().Add(-sharedFor)
		w.console.latest.last.set(older)
		return !strings.Contains(w.get("/").wants(200, "No relay is running").body, "This is as of")
	})
	w.Do(`ROLLBACK`)
	waiting.For(t, time.Minute, "a newer reading", func() bool {
		w.get("/")
		return w.console.latest.last.get().read.After(older.read.Add(sharedFor))
	})
	w.get("/").lacks("No relay is running")
}

// A reading that begins before a person acts, and ends later, must not be shown to her.
func TestAReadingFromBeforeAnActionIsNotShared(t *testing.T) {
	w := newWorld(t)
	w.relay()
	waiting.For(t, time.Minute, "a reading that outlasts the lock", func() bool {
		w.Do(`BEGIN`)
		w.Do(`LOCK TABLE outbox.delivery`)
		before := w.console.startReading(t.Context())
		waiting.For(t, time.Minute, "the reading waits", func() bool {
			return outboxtest.One[bool](w.Session, `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)`) || len(before) > 0
		})
		w.console.latest.expire()
		w.Do(`ROLLBACK`)
		return (<-before).Err == nil // after 500 ms it gives up
	})
	if _, ok := w.console.latest.younger(time.Minute); ok {
		t.Error("it is shared")
	}
}

// watch follows the live overview. until waits for a text in it, or with "" for its end.
func (w *world) watch(change ...func(*http.Request)) (until func(text string)) {
	t := w.T
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", w.server.URL+"/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(r)
	}
	got, err := w.client.Do(r) //nolint:bodyclose // the goroutine below closes it
	if err != nil {
		t.Fatal(err)
	}
	if kind := got.Header.Get("Content-Type"); kind != "text/event-stream" {
		t.Errorf("/live is %s", kind)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		defer got.Body.Close()
		for s := bufio.NewScanner(got.Body); s.Scan(); {
			select {
			case lines <- s.Text():
			case <-t.Context().Done():
				return
			}
		}
	}()
	return func(text string) {
		t.Helper()
		for {
			select {
			case line, ok := <-lines:
				switch {
				case !ok && text != "":
					t.Fatalf("ended before %q", text)
				case !ok, text != "" && strings.Contains(line, text):
					return
				}
			case <-time.After(time.Minute):
				t.Fatalf("nothing came before %q", text)
			}
		}
	}
}

func TestTheOverviewIsSentLive(t *testing.T) {
	w := newWorld(t)
	w.relay()
	w.get("/").wants(200, `<div id="live" data-from="/live">`, `<script src="`+scriptURL+`" defer>`)
	script := w.get(scriptURL).wants(200, "EventSource")
	if kind := script.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/javascript") {
		t.Errorf("the script is %s", kind)
	}
	w.send("HEAD", "/live", nil).wants(200)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan struct{})
	go func() { defer close(ended); w.console.Run(ctx) }()
	until := w.watch()
	until("up to date")
	w.Do(`SELECT outbox.pause('Court', 'a reason')`)
	until("was paused by")
	w.console.Read.Close()
	until("This is as of")
	w.console.Close()
	until("")
	stop()
	<-ended
}

func TestTheLastOverviewStaysAfterAnAction(t *testing.T) {
	o := newOffice(t)
	o.get("/", o.ana).wants(200, "Court")
	o.console.Read.Close()
	o.get("/action/pause?sync=Court", o.ana).wants(200)
	until := o.watch(o.ana)
	until("This is as of")
	o.console.Close()
	until("")
}

func TestTheNumberOfViewersIsBounded(t *testing.T) {
	w := newWorld(t)
	for range mostViewers {
		w.console.viewers <- struct{}{}
	}
	w.get("/live").wants(503, "20 people watch the live overview already")
}

func TestThePicturesShowWhatWasDelivered(t *testing.T) {
	w := newWorld(t)
	w.relay()
	for range 3 {
		w.Deliver(w.Event("H-1"))
	}
	w.console.sample(t.Context())
	w.console.sample(t.Context())
	w.get("/").wants(200, "Delivered per minute in the last hour: at most 3")
	for at, want := range map[time.Duration]string{
		-time.Second: "0 s", 59 * time.Second: "59 s", 5 * time.Minute: "5 min", 2 * time.Hour: "2 h", 130 * time.Minute: "2 h 10 min", 47 * time.Hour: "47 h", 72 * time.Hour: "3 days",
	} {
		if got := lasting(at); got != want {
			t.Errorf("%s is %q, want %q", at, got, want)
		}
	}
}

func TestTheOverviewNamesSyncsWithoutTimes(t *testing.T) {
	w := newWorld(t)
	w.get("/").wants(200, `Not in this list: events of <a href="/sync/Court">Court</a>`, "escalate.at").lacks("Nothing is at risk")
	w.Do(`UPDATE outbox.sync SET escalate_at = '{scheduledAt}'`)
	w.fresh().get("/").wants(200, "Nothing is at risk").lacks("Not in this list")
	w.Do(`DELETE FROM outbox.sync`)
	w.fresh().get("/").wants(200, "Nothing is at risk", "There is no sync yet")
}

package console

import (
	"fmt"
	"html"
	"regexp"
	"strings"
	"testing"
)

var nextPage = regexp.MustCompile(`<a href="([^"]*after=[^"]*)">Next page</a>`)

// next returns the address of the next page.
func (a answer) next() string {
	a.t.Helper()
	found := nextPage.FindStringSubmatch(a.body)
	if found == nil {
		a.t.Fatalf("there is no next page:\n%s", a.body)
	}
	return html.UnescapeString(found[1])
}

// trouble makes a failed delivery of each of 120 keys, each with one behind it.
func (w *world) trouble() {
	w.T.Helper()
	w.Do(`INSERT INTO outbox.event (type, key, version, payload) SELECT 'scheduling:updated', to_char(i % 120, '"H-"000'), i, '{"party": "Smith"}' FROM generate_series(1, 240) AS i`)
	w.Do(`UPDATE outbox.delivery AS d SET state = 'failed', due_at = 'infinity', error_class = CASE WHEN key LIKE '%7' THEN 'conflict' ELSE 'permanent' END, error = 'PUT https://court/x: answered HTTP 422: <b>Room ' || key
	       WHERE NOT EXISTS (SELECT FROM outbox.delivery AS o WHERE o.key = d.key AND o.event_seq < d.event_seq)`)
}

func TestFailedAndBlockedAreListedInPages(t *testing.T) {
	w := newWorld(t)
	for path, none := range map[string]string{"/failed": "Nothing has failed.", "/blocked": "No key is blocked.", "/sync/Court": "Nothing has failed, and nothing is tried again."} {
		w.get(path).wants(200, none).lacks("Next page")
	}
	w.trouble()
	for _, path := range []string{"/failed", "/blocked", "/sync/Court", "/failed?sync=Court"} {
		first := w.get(path).wants(200, "H- 000", "it was refused: HTTP 422: &lt;b&gt;Room", "It waits for a person.", "1 later event of this key waits behind it.", `<a href="/key/H-%20000">`)
		first.lacks("H- 110", "Smith", "<b>", "First page", "/action/")
		second := w.get(first.next()).wants(200, "H- 119", "First page")
		second.lacks("H- 001", "Next page")
		if n := strings.Count(first.body, "it was refused") + strings.Count(second.body, "it was refused"); n != 120 {
			t.Errorf("%s: the pages have %d rows", path, n)
		}
	}
	w.get("/failed?class=conflict").wants(200, "H- 007").lacks("H- 008", "Next page")
	w.get("/failed?error=ROOM+H-+01").wants(200, "H- 011", `value="ROOM H- 01"`).lacks("H- 021")
	w.get("/failed?error=%25").wants(200, "Nothing matches.")
	w.get("/blocked?sync=Other").wants(200, "Nothing matches.")
	w.get("/failed?class=%3Cscript%3E").wants(400, "there is no error class &#34;&lt;script&gt;&#34;: want one of auth, conflict,").lacks("<script>")
}

func TestListsOfferActionsOnWhatTheyShow(t *testing.T) {
	w := newWorld(t, withUsers)
	w.trouble()
	w.get("/failed?class=conflict", w.logIn(bobToken)).wants(200, "H- 007").lacks("/action/")
	id := fmt.Sprint(w.get("/failed?sync=Court&class=conflict", w.logIn(anaToken)).wants(200,
		`href="/action/requeue?class=conflict&amp;sync=Court">Send all of these again`, `href="/action/discard?class=conflict&amp;sync=Court">Give all of these up`).body)
	one := regexp.MustCompile(`href="(/action/requeue\?event=[0-9a-f-]{36}&amp;sync=Court)"`).FindStringSubmatch(id)
	if one == nil {
		t.Fatal("a row has no action")
	}
	w.get(html.UnescapeString(one[1]), w.logIn(anaToken)).wants(200, "Send again")
}

func TestThePageOfASyncSaysHowItStands(t *testing.T) {
	w := newWorld(t, withUsers)
	w.Fail(w.hearing("H-1", "2 hours"))
	ana := w.logIn(anaToken)
	w.get("/sync/Court", ana).wants(200, "<h1>Court</h1>", "At risk", "no relay", "H-1", "1 waits for a person", "/action/pause?sync=Court", "/action/requeue?sync=Court")
	w.Do(`UPDATE outbox.sync SET retired_at = now()`)
	w.fresh().get("/sync/Court", ana).wants(200, "Retired at").lacks("/action/pause")
	for _, name := range []string{"None", "%3Cb%3E", "%FF", "%00", strings.Repeat("a", 2000)} {
		w.get("/sync/"+name, ana).wants(404, "There is no sync").lacks("<b>")
	}
}

func TestAListRefusesWhatItCannotRead(t *testing.T) {
	w := newWorld(t)
	for _, query := range []string{"after=x", "after=%FF", "after=e30x", "class=%FF", "error=%00a", "sync=" + strings.Repeat("a", mostFilter+1)} {
		for _, path := range []string{"/failed", "/blocked", "/sync/Court"} {
			if path != "/sync/Court" || !strings.HasPrefix(query, "sync") {
				w.get(path + "?" + query).wants(400)
			}
		}
	}
}

package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/docs/recipes"
)

// The recipe for a chat is added to a file, and a pause and its end are told in the chat, in
// their order.
func TestAPauseIsToldInTheChat(t *testing.T) {
	w := newWorld(t)
	recipe, err := recipes.Files.ReadFile("chat.yaml")
	if err != nil {
		t.Fatal(err)
	}
	w.env["CHAT_URL"] = w.court.URL + "/chat"
	w.configure(`
database: {url: "${DATABASE_URL}"}
relay: {poll: 5ms, name: relay-1}
listen: 127.0.0.1:0
` + string(recipe) + `
  - name: CourtCalendarSync
    events: ["scheduling:*"]
    adapter: {kind: rest, url: "` + w.court.URL + `/hearings"}
`)
	told := make(chan string, 10)
	w.court.answers(func(_ *http.Request, body string) int {
		told <- body
		return http.StatusOK
	})
	r := w.start("run")
	w.eventually(`SELECT count(*) = 2 AND bool_and(backfill_seq IS NULL) FROM outbox.sync`)
	operator := w.as(roleOperator)
	operator.run("pause", "CourtCalendarSync", "--reason", "the court moves").wants(t, 0)
	if got, want := <-told, `{"text":"[info] sync \"CourtCalendarSync\" is on hold (operator) by `; !strings.HasPrefix(got, want) || !strings.Contains(got, "the court moves\\nResume it when the reason has passed: lockstep resume CourtCalendarSync") {
		t.Errorf("the chat got %s, want %s", got, want)
	}
	operator.run("resume", "CourtCalendarSync").wants(t, 0)
	if got, want := <-told, `{"text":"[info] sync \"CourtCalendarSync\" is not on hold (operator) any more"}`; got != want {
		t.Errorf("the chat got %s, want %s", got, want)
	}
	r.stop(t, 0)
}

package main

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// refuses answers 422 to requests about one of these hearings.
func refuses(hearings ...string) func(*http.Request, string) int {
	return func(_ *http.Request, body string) int {
		if slices.ContainsFunc(hearings, func(h string) bool { return strings.Contains(body, `"`+h+`"`) }) {
			return http.StatusUnprocessableEntity
		}
		return http.StatusCreated
	}
}

// troubled is a world in which H-1 was delivered, H-2 failed at the court with
// an event waiting behind it, and H-3 failed in the mapping.
func troubled(t *testing.T) (w *world, h1, h2, behind, h3 string) {
	t.Helper()
	w = newWorld(t)
	w.court.answers(refuses("H-2"))
	h1 = w.emit("H-1", `{"hearingId":"H-1"}`)
	h2 = w.emit("H-2", `{"hearingId":"H-2"}`)
	behind = w.emit("H-2", `{"hearingId":"H-2b"}`)
	h3 = w.emit("H-3", `{"wrong":"H-3"}`)
	w.relayUntil(`SELECT (SELECT count(*) FROM outbox.delivery WHERE state = 'failed') = 2 AND (SELECT count(*) FROM outbox.delivery) = 3`)
	return w, h1, h2, behind, h3
}

func TestStatusForAnAuditor(t *testing.T) {
	w, _, _, _, _ := troubled(t)
	ask[string](w, `INSERT INTO outbox.event (type, key, payload) VALUES ('clinic:closed', 'C', '{}') RETURNING id::text`)
	auditor := w.as(roleAuditor)
	auditor.env["COURT_TOKEN"] = "x"
	r := auditor.run("status").wants(t, 0, "SYNC", "CourtCalendarSync", "(no sync matches)")
	if strings.Contains(r.stdout, "orphaned") || strings.Contains(r.stdout, "differs") {
		t.Errorf("file and database agree, but: %s", r.stdout)
	}
	rows := decode[[]statusRow](t, auditor.run("status", "-o", "json").wants(t, 0))
	if len(rows) != 2 || rows[0].Failed != 2 || rows[0].BlockedKeys != 1 || rows[1].Sync != nil || rows[1].Pending != 1 {
		t.Errorf("got %+v", rows)
	}
	auditor.run("status", "--max-lag", "1h").wants(t, exitFound, "CourtCalendarSync: 2 failed, more than 0")
	auditor.run("status", "--max-lag", "1h", "--max-failed", "2").wants(t, 0)
	auditor.run("status", "--max-lag", "1ns", "--max-failed", "-1").wants(t, exitFound, "the oldest delivery that is not finished")
	auditor.run("status", "--max-failed", "1").wants(t, exitFound)
}

// Outside the window of a sync, commands say when it opens. Its deliveries may be old.
func TestCommandsSayWhenAWindowOpens(t *testing.T) {
	w := newWorld(t)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
	opens := time.Now().UTC().AddDate(0, 0, 3).Truncate(24 * time.Hour).Add(8 * time.Hour)
	w.configure(strings.ReplaceAll(strings.ReplaceAll(courtYAML, "%s", w.court.URL), "    retry:",
		"    windows: [{days: "+opens.Format("Mon")+", from: '08:00', to: '18:00'}]\n    retry:"))
	id := w.emit("H-1", `{"hearingId":"H-1"}`)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.hold)`)
	says := "outside its window, opens " + opens.Format("Mon 2006-01-02 15:04") + " UTC"
	auditor := w.as(roleAuditor)
	auditor.env["COURT_TOKEN"] = w.env["COURT_TOKEN"]
	auditor.run("status", "--max-lag", "1ns").wants(t, 0, "window", says)
	auditor.run("explain", id).wants(t, 0, "on hold (window)", says)
	w.as(roleOperator).run("resume", "CourtCalendarSync").wants(t, 0, "window: "+says, "it ends at "+opens.Format(time.RFC3339))
	if n := ask[int](w, `SELECT count(*) FROM outbox.delivery`); n != 1 {
		t.Errorf("%d deliveries are open, want 1", n)
	}
}

func TestStatusComparesWithTheFile(t *testing.T) {
	w := newWorld(t)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
	w.configure(`
syncs:
  - {name: CourtCalendarSync, events: ["scheduling:*", "data:*"], on_failed: supersede, adapter: {kind: rest, url: "http://127.0.0.1:1/"}}
  - {name: ClinicSync, event: scheduling:created, adapter: {kind: rest, url: "http://127.0.0.1:1/"}}
`)
	w.run("status").wants(t, 0, "differs: events are scheduling:*, data:* in the file; on_failed is supersede", "not registered")
	w.run("sync", "list").wants(t, 0, "ClinicSync", "not registered", "differs: events")
	w.run("run").wants(t, exitUsage, `sync "ClinicSync" is new`, "from: beginning", "hint: ")

	w.run("sync", "apply", "--dry-run").wants(t, exitUsage, `sync "ClinicSync" is new`)
	w.run("sync", "apply", "CourtCalendarSync", "--dry-run").wants(t, 0, "would be changed: events are scheduling:*, data:*, on_failed is supersede")
	w.run("sync", "list").wants(t, 0, "differs: events")
	w.as(roleAuditor).run("sync", "apply", "CourtCalendarSync").wants(t, exitFailed, "GRANT outbox_relay TO")
	relay := w.as(roleRelay)
	relay.run("sync", "apply", "CourtCalendarSync").wants(t, 0, "changed: events are scheduling:*, data:*, on_failed is supersede")
	relay.run("sync", "apply", "CourtCalendarSync").wants(t, 0, "unchanged")
	auditor := w.as(roleAuditor)
	auditor.run("status").wants(t, 0, "events are being added: waits for transactions that began before the change")
	if rows := decode[[]statusRow](t, auditor.run("status", "-o", "json").wants(t, 0)); !slices.ContainsFunc(rows, func(s statusRow) bool { return s.Backfill != nil && s.Hold == nil }) {
		t.Errorf("status does not say that events are being added: %+v", rows)
	}
	relay.run("sync", "apply", "ClinicSync", "--from", "now").wants(t, 0, "registered: events are scheduling:created, on_failed is block, running relays add retained events from now")
	relay.run("sync", "apply", "--from", "now").wants(t, exitUsage, "name the syncs")
	relay.run("sync", "apply", "NoSync").wants(t, exitUsage, "it has CourtCalendarSync, ClinicSync")

	w.configure(`syncs: [{name: ClinicSync, event: scheduling:created, adapter: {kind: rest, url: "http://127.0.0.1:1/"}}]`)
	w.run("status").wants(t, 0, "orphaned: not in the file")
	rows := decode[[]syncRow](t, w.run("sync", "list", "-o", "json"))
	if len(rows) != 2 || *rows[1].InFile || !*rows[0].InFile || !rows[1].Registered {
		t.Errorf("got %+v", rows)
	}
}

// A filtered event is never sent, so a failed event before it stays failed.
func TestSyncApplyOfSupersedeAsksTheFilter(t *testing.T) {
	w := newWorld(t)
	w.court.answers(refuses("H-2", "H-3"))
	filtered, sent := w.emit("H-2", `{"hearingId":"H-2"}`), w.emit("H-3", `{"hearingId":"H-3"}`)
	w.emit("H-2", `{"hearingId":"H-2b", "court": "elsewhere"}`)
	w.emit("H-3", `{"hearingId":"H-3b"}`)
	w.relayUntil(`SELECT count(*) FILTER (WHERE state = 'failed') = 2 AND count(*) FILTER (WHERE state = 'queued') = 2 FROM outbox.open_delivery`)
	w.configure(strings.ReplaceAll(strings.ReplaceAll(courtYAML, "%s", w.court.URL), "    retry:", "    on_failed: supersede\n    retry:"))
	relay := w.as(roleRelay)
	relay.env["COURT_TOKEN"] = w.env["COURT_TOKEN"]
	relay.run("sync", "apply").wants(t, 0, "changed: on_failed is supersede")
	w.relayUntil(`SELECT (SELECT count(*) FROM outbox.delivery) = 2 AND EXISTS (SELECT FROM outbox.lane WHERE due_at = 'infinity' AND judged > 0)`)
	for id, want := range map[string]bool{filtered: false, sent: true} {
		if got := ask[bool](w, `SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE event_id = $1 AND outcome = 'superseded')`, id); got != want {
			t.Errorf("%s is superseded: %t, want %t", id, got, want)
		}
	}
}

// An auditor has the database's URL, but no secret of the relay.
func TestStatusWithoutTheRelaysSecrets(t *testing.T) {
	w := newWorldAlone(t) // it changes the directory
	auditor := w.as(roleAuditor)
	yaml := strings.ReplaceAll(courtYAML, "%s", "http://127.0.0.1:1")
	auditor.run("status").wants(t, exitUsage, "COURT_TOKEN") // the file was named
	auditor.run("log").wants(t, 0)                           // this one does not need it
	delete(auditor.env, "LOCKSTEP_CONFIG")
	t.Chdir(t.TempDir())
	writeFile(t, "lockstep.yaml", yaml)
	auditor.run("status").wants(t, 0, "lockstep.yaml is not valid, so the syncs are not compared with it")
}

func TestLogFiltersRows(t *testing.T) {
	w, h1, h2, _, _ := troubled(t)
	auditor := w.as(roleAuditor)
	r := auditor.run("log").wants(t, 0, h1, h2, "HTTP 422", "mapping", "relay-1")
	if n := strings.Count(r.stdout, "\n"); n != 4 {
		t.Errorf("%d lines, want a header and 3 rows:\n%s", n, r.stdout)
	}
	for line, want := range map[string]int{
		"log --key H-1":                       1,
		"log --event " + h2:                   1,
		"log --outcome failed":                2,
		"log --outcome failed,delivered":      3,
		"log --sync NoSync":                   0,
		"log --limit 2":                       2,
		"log --since 2020-01-01T00:00:00Z":    3,
		"log --key H-1 --since 1s --limit 10": -1,
	} {
		rows := decode[[]logRow](t, auditor.run(append(strings.Fields(line), "-o", "json")...).wants(t, 0))
		if want >= 0 && len(rows) != want {
			t.Errorf("%s: %d rows, want %d", line, len(rows), want)
		}
		if !slices.IsSortedFunc(rows, func(a, b logRow) int { return a.At.Compare(b.At) }) {
			t.Errorf("%s: not oldest first", line)
		}
	}
}

func TestATableOfTheLogHasTheTimeOfTheAnswer(t *testing.T) {
	recorded := time.Date(2027, 1, 31, 9, 0, 1, 0, time.UTC)
	answered := recorded.Add(-60 * time.Millisecond)
	if got, want := (logRow{At: recorded, AnsweredAt: &answered}).Cells()[0], "2027-01-31T09:00:00.940Z"; got != want {
		t.Errorf("got %s, want %s, as outbox.why_not_delivered and the pages say", got, want)
	}
	if got, want := (logRow{At: recorded}).Cells()[0], "2027-01-31T09:00:01.000Z"; got != want {
		t.Errorf("without an answer: got %s, want %s", got, want)
	}
}

func TestExplainShowsEverythingExceptThePayload(t *testing.T) {
	w, h1, h2, behind, _ := troubled(t)
	auditor := w.as(roleAuditor)
	auditor.run("explain", h1).wants(t, 0, "type      scheduling:created", "CourtCalendarSync: delivered at", "HTTP 201")
	auditor.run("explain", behind).wants(t, 0, "waits behind event "+h2)
	r := auditor.run("explain", h2, "--sync", "CourtCalendarSync").wants(t, 0, "failed with permanent", "payload   20 bytes")
	if strings.Contains(r.stdout, "hearingId") {
		t.Errorf("the payload is shown: %s", r.stdout)
	}
	x := decode[explanation](t, auditor.run("explain", h2, "-o", "json"))
	if x.Event.Key != "H-2" || len(x.Deliveries) != 1 || x.Deliveries[0].State != "failed" || len(x.Log) != 1 || len(x.Why) != 1 {
		t.Errorf("got %+v", x)
	}
	auditor.run("explain", "0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d").wants(t, exitFailed, "neither an event nor a key")
	auditor.run("explain", h1, "--sync", "NoSync").wants(t, exitFailed, "is not registered", "hint: Registered: CourtCalendarSync")
}

func TestRequeueTakesTheFilteredDeliveries(t *testing.T) {
	w, _, h2, _, h3 := troubled(t)
	operator := w.as(roleOperator)
	failed := func() int { return ask[int](w, `SELECT count(*) FROM outbox.delivery WHERE state = 'failed'`) }

	operator.run("requeue", "--all", "--dry-run").wants(t, 0, h2, h3, "2 deliveries would be requeued; nothing was changed")
	operator.run("requeue", "--class", "auth").wants(t, 0, "no failed delivery to requeue")
	operator.run("requeue", "--older-than", "1h").wants(t, 0, "no failed delivery to requeue")
	operator.run("requeue", "--sync", "NoSync", "--all").wants(t, exitFailed, `"NoSync" is not registered`)
	if failed() != 2 {
		t.Fatalf("%d failed, want 2 still", failed())
	}
	operator.run("requeue", "--class", "mapping", "--since", "1h", "--reason", "mapping repaired", "--actor", "anna").
		wants(t, 0, h3, "1 delivery requeued")
	if got := ask[string](w, `SELECT concat_ws(' ', outcome, reason, split_part(actor, '/', 2)) FROM outbox.delivery_log ORDER BY id DESC LIMIT 1`); got != "requeued mapping repaired anna" {
		t.Errorf("log has %q", got)
	}
	operator.run("requeue", "--event", h3).wants(t, exitFailed, "no failed delivery to requeue; see: lockstep explain "+h3)
	operator.run("requeue", "--sync", "CourtCalendarSync", "--key", "H-2").wants(t, 0, "1 delivery requeued")
	if failed() != 0 {
		t.Errorf("%d failed, want none", failed())
	}
	w.court.answers(nil)
	operator.env["LOCKSTEP_ACTOR"] = "bert"
	w.relayUntil(`SELECT (SELECT count(*) FROM outbox.delivery) = 1`) // H-3 fails again
	operator.run("requeue", "--all", "-o", "jsonl").wants(t, 0, `"event_id":"`+h3+`"`)
	if got := ask[string](w, `SELECT split_part(actor, '/', 2) FROM outbox.delivery_log ORDER BY id DESC LIMIT 1`); got != "bert" {
		t.Errorf("actor %q, want bert", got)
	}
}

func TestRolesAreEnforcedAndNamed(t *testing.T) {
	w, h1, h2, _, _ := troubled(t)
	auditor, writer := w.as(roleAuditor), w.as("outbox_writer")
	for _, line := range []string{
		"requeue --all", "discard --event " + h2 + " --reason x", "replay --event " + h1 + " --reason x",
		"pause CourtCalendarSync --reason x", "resume CourtCalendarSync", "retire CourtCalendarSync --reason x",
	} {
		auditor.run(strings.Fields(line)...).wants(t, exitFailed, "an administrator grants with: GRANT outbox_operator TO")
	}
	delete(writer.env, "LOCKSTEP_CONFIG") // nor is there a file in this directory
	for _, line := range []string{"status", "log", "explain " + h1, "sync list"} {
		writer.run(strings.Fields(line)...).wants(t, exitFailed, "GRANT outbox_auditor TO")
	}
}

func TestDiscardEndsDeliveries(t *testing.T) {
	w, h1, h2, behind, h3 := troubled(t)
	operator := w.as(roleOperator)
	// outbox.discard needs READ COMMITTED, even if the login has another default.
	login, err := url.Parse(operator.env["DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.conn.Exec(t.Context(), "ALTER ROLE "+login.User.Username()+" SET default_transaction_isolation = 'serializable'"); err != nil {
		t.Fatal(err)
	}
	operator.run("discard", "--event", h2, "--dry-run").wants(t, 0, "1 delivery would be discarded")
	operator.run("discard", "--event", h2, "--reason", "by hand").wants(t, 0, "1 delivery discarded")
	operator.run("discard", "--event", behind, "--reason", "by hand").wants(t, 0, "1 delivery discarded")
	operator.run("discard", "--event", h1, "--reason", "x").wants(t, exitFailed, "no delivery to discard; see: lockstep explain")
	operator.run("discard", "--class", "mapping", "--reason", "x").wants(t, 0, h3)
	if n := ask[int](w, `SELECT count(*) FROM outbox.delivery`); n != 0 {
		t.Errorf("%d open, want none", n)
	}
}

func TestReplaySendsDeliveredEventsAgain(t *testing.T) {
	w, h1, h2, _, _ := troubled(t)
	operator := w.as(roleOperator)
	operator.run("replay", "--event", h2, "--reason", "x").wants(t, exitFailed, "no delivered event to replay; see: lockstep explain")
	operator.run("replay", "--since", "1h", "--older-than", "30m", "--reason", "x").wants(t, 0, "no delivered event to replay")
	operator.run("replay", "--all", "--dry-run").wants(t, 0, h1, "1 delivery would be replayed")
	operator.run("replay", "--since", "1h", "--reason", "court restored a backup").wants(t, 0, h1, "1 delivery replayed")
	operator.run("replay", "--event", h1, "--reason", "x").wants(t, exitFailed)
	before := w.court.count()
	w.relayUntil(`SELECT (SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'delivered') = 2`)
	if w.court.count() != before+1 {
		t.Errorf("%d requests, want one more than %d", w.court.count(), before)
	}
}

func TestPauseResumeAndRetireReportTheirResult(t *testing.T) {
	w, _, _, _, _ := troubled(t)
	operator := w.as(roleOperator)
	operator.run("pause", "NoSync", "--reason", "x").wants(t, exitFailed, "lockstep: sync \"NoSync\" is not registered\nhint: Registered")
	operator.run("pause", "CourtCalendarSync", "--reason", "maintenance", "--actor", "anna").wants(t, 0, "CourtCalendarSync is paused: relays send nothing more, events are collected. To end the pause: lockstep resume CourtCalendarSync\n")
	w.as(roleAuditor).run("status", "--config", w.env["LOCKSTEP_CONFIG"]).wants(t, exitUsage, "COURT_TOKEN")
	w.run("status").wants(t, 0, "operator", "/anna", "maintenance")
	operator.run("resume", "CourtCalendarSync").wants(t, 0, "CourtCalendarSync is resumed: relays send again, nothing else is open", "2 failed deliveries wait for you")
	operator.run("resume", "CourtCalendarSync").wants(t, 0, "was not paused by an operator")
	operator.run("retire", "CourtCalendarSync", "--reason", "moved").wants(t, 0, "CourtCalendarSync is retired: it gets no further events", "To undo this: lockstep retire CourtCalendarSync --undo")
	w.run("status").wants(t, 0, "retired in the database")
	operator.run("log", "--outcome", "paused,resumed,retired").wants(t, 0, "maintenance", "moved")

	// sync apply starts it again, and the log says on whose behalf.
	relay := w.as(roleRelay)
	relay.env["COURT_TOKEN"] = w.env["COURT_TOKEN"]
	relay.run("sync", "apply", "--actor", "anna\u202e").wants(t, 0, "changed: it gets events again")
	operator.run("log", "--outcome", "sync_changed", "--output", "json").wants(t, 0, `/anna?"`, `"reason":"retired: since `)
	relay.run("sync", "apply").wants(t, 0, "unchanged")
	if got := ask[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'sync_changed'`); got != 1 {
		t.Errorf("%d rows say that the sync was changed, want 1", got)
	}

	// The operator can bring it back too.
	operator.run("retire", "CourtCalendarSync", "--undo").wants(t, exitUsage, "--reason is required")
	operator.run("retire", "CourtCalendarSync", "--undo", "--reason", "r").wants(t, 0, "is not retired")
	operator.run("retire", "CourtCalendarSync", "--reason", "moved").wants(t, 0, "CourtCalendarSync is retired: it gets no further events", "To undo this: lockstep retire CourtCalendarSync --undo")
	id := w.emit("H-9", `{"hearingId":"H-9"}`)
	operator.run("retire", "CourtCalendarSync", "--undo", "--reason", "moved back").wants(t, 0, "gets events again, also those that were written while it was retired")
	operator.run("log", "--outcome", "sync_changed").wants(t, 0, "to no: moved back")
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.delivery_log WHERE key = 'H-9' AND event_id = '` + id + `')`)
}

func TestPauseWithAnEnd(t *testing.T) {
	w := newWorld(t)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
	operator := w.as(roleOperator)
	for flags, want := range map[string]string{
		"--until 18:00":                         "want a time with its zone",
		"--for 0h":                              "for nothing",
		"--for 2":                               "want a duration such as 90s",
		"--for 2h --until 2099-01-31T18:00:00Z": "none of the others",
	} {
		operator.run(append([]string{"pause", "CourtCalendarSync", "--reason", "r"}, strings.Fields(flags)...)...).wants(t, exitUsage, want)
	}
	operator.run("pause", "CourtCalendarSync", "--reason", "r", "--until", "2020-01-31T18:00:00Z").wants(t, exitFailed, "cannot end at 2020-01-31")
	operator.run("pause", "CourtCalendarSync", "--reason", "maintenance", "--until", "2099-01-31T18:00:00-05:00").
		wants(t, 0, "CourtCalendarSync is paused until 2099-01-31T23:00:00Z")
	w.run("status").wants(t, 0, "until 2099-01-31T23:00:00Z: maintenance")
	operator.run("pause", "CourtCalendarSync", "--reason", "maintenance", "--for", "36h", "--scope", "ny07").
		wants(t, 0, "CourtCalendarSync, scope ny07, is paused for 1d12h, until 20")
	if got := ask[string](w, `SELECT string_agg(scope || (until BETWEEN now() + interval '35 hours' AND now() + interval '37 hours')::text, ' ' ORDER BY scope) FROM outbox.hold`); got != "false ny07true" {
		t.Errorf("holds %q", got)
	}
}

func TestStatusNamesUnmatchedTypes(t *testing.T) {
	w := newWorld(t)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
	ask[int64](w, `WITH e AS (INSERT INTO outbox.event (type, key, payload) SELECT 'sheduling:created', 'k', '{}' FROM generate_series(1, 2) RETURNING seq) SELECT count(*) FROM e`)
	w.run("status").wants(t, 0, "(no sync matches)", "sheduling:created: 2 events, the last at ")
	rows := decode[[]statusRow](t, w.run("status", "-o", "json").wants(t, 0))
	if got := rows[len(rows)-1].UnmatchedTypes; len(got) != 1 || got[0].Type != "sheduling:created" || got[0].Events != 2 || got[0].First.After(got[0].Last) {
		t.Errorf("got %+v", got)
	}
}

func TestMapShowsTheRequestWithoutSecrets(t *testing.T) {
	w, h1, h2, _, h3 := troubled(t)
	auditor := w.as(roleAuditor)
	auditor.env["COURT_TOKEN"] = "canary"
	r := auditor.run("map", "CourtCalendarSync", h1).wants(t, 0, `"case_reference": "H-1"`, "idempotency key  "+h1, "mapping version")
	if strings.Contains(r.stdout, "canary") {
		t.Errorf("a secret is shown: %s", r.stdout)
	}
	auditor.run("map", "CourtCalendarSync", h3).wants(t, exitFailed, "would fail with class mapping", "hearingId")
	auditor.run("map", "CourtCalendarSync", "0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d").wants(t, exitFailed, "does not exist")
	auditor.run("map", "NoSync", h1).wants(t, exitUsage, "it has CourtCalendarSync")

	p := decode[preview](t, auditor.run("map", "CourtCalendarSync", h2, "-o", "json").wants(t, 0))
	if !p.Send || p.IdempotencyKey != h2 || string(p.Body) != `{
    "case_reference": "H-2"
  }` {
		t.Errorf("got %+v, body %s", p, p.Body)
	}
}

func TestMapReadsAnEventFromAFile(t *testing.T) {
	w := &world{shell: &shell{t: t, env: map[string]string{"COURT_TOKEN": "x", "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none"}}}
	w.configure(strings.ReplaceAll(courtYAML, "%s", "http://127.0.0.1:1"))
	for name, tc := range map[string]struct {
		input string
		args  []string
		code  int
		says  []string
	}{
		"payload":            {`{"hearingId":"H-7"}`, nil, 0, []string{`"case_reference": "H-7"`}},
		"payload with type":  {`{"hearingId":"H-7"}`, []string{"--type", "clinic:x"}, 0, []string{"would not be sent: its events scheduling:* do not match type clinic:x"}},
		"filtered":           {`{"hearingId":"H-7","court":"elsewhere"}`, nil, 0, []string{"would not be sent: filtered: its condition"}},
		"whole event":        {`{"id":"e-1","type":"scheduling:x","key":"k","payload":{"hearingId":"H-8"}}`, nil, 0, []string{"e-1", "H-8"}},
		"missing field":      {`{}`, nil, exitFailed, []string{"class mapping", "hearingId"}},
		"no object":          {`[1]`, nil, exitFailed, []string{"want one JSON object"}},
		"no JSON":            {`hello`, nil, exitFailed, []string{"want one JSON object"}},
		"event of odd parts": {`{"type":7,"payload":{}}`, nil, exitFailed, []string{"the event's type cannot be a number"}},
		"too long":           {`{"a":"` + strings.Repeat("x", maxInput) + `"}`, nil, exitFailed, []string{"more than"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &shell{t: t, env: w.env, stdin: tc.input}
			s.run(append([]string{"map", "CourtCalendarSync", "-"}, tc.args...)...).wants(t, tc.code, tc.says...)
		})
	}
	path := t.TempDir() + "/hearing.json"
	writeFile(t, path, `{"hearingId":"H-9"}`)
	w.run("map", "CourtCalendarSync", path).wants(t, 0, "H-9")
	w.run("map", "CourtCalendarSync", path+".not").wants(t, exitUsage, "EVENT is a UUID, FILE a JSON file")
}

func TestFollowShowsNewRows(t *testing.T) {
	w, _, _, _, _ := troubled(t)
	f := w.start("log", "--follow", "--limit", "1", "-o", "jsonl")
	f.line(t) // the newest row
	ask[string](w, `SELECT outbox.pause('CourtCalendarSync', 'while followed')::text`)
	if line := f.line(t); !strings.Contains(line, `"outcome":"paused"`) {
		t.Errorf("got %s", line)
	}
	ask[string](w, `SELECT outbox.resume('CourtCalendarSync')::text`)
	if line := f.line(t); !strings.Contains(line, `"outcome":"resumed"`) {
		t.Errorf("got %s", line)
	}
	f.stop(t, 0)
}

func TestAgesHaveTwoUnits(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": -time.Second, "400ms": 412 * time.Millisecond, "59.9s": 59900 * time.Millisecond,
		"5m2s": 5*time.Minute + 2*time.Second, "2h0m": 2 * time.Hour, "3d4h": 76 * time.Hour,
	} {
		if got := age(d); got != want {
			t.Errorf("%s: got %s, want %s", d, got, want)
		}
	}
}

func TestPauseOfOneDestination(t *testing.T) {
	w := newWorld(t)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
	operator := w.as(roleOperator)
	operator.run("pause", "CourtCalendarSync", "--scope", "", "--reason", "r").wants(t, exitUsage, "--scope is empty")
	operator.run("resume", "CourtCalendarSync", "--scope", "").wants(t, exitUsage, "--scope is empty")
	operator.run("pause", "CourtCalendarSync", "--scope", strings.Repeat("x", 201), "--reason", "r").wants(t, exitFailed, "at most 200 characters")
	operator.run("pause", "CourtCalendarSync", "--scope", "ny07", "--reason", "moves house").
		wants(t, 0, "CourtCalendarSync, scope ny07, is paused: relays", "lockstep resume CourtCalendarSync --scope ny07")
	auditor := w.as(roleAuditor)
	auditor.env["COURT_TOKEN"] = "x"
	auditor.run("status").wants(t, 0, "1 of its scopes", "scope ny07 on hold by", "moves house")
	rows := decode[[]statusRow](t, auditor.run("status", "-o", "json").wants(t, 0))
	if rows[0].Hold != nil || len(rows[0].ScopeHolds) != 1 || rows[0].ScopeHolds[0].Scope != "ny07" || rows[0].ScopeHolds[0].Hold != "operator" {
		t.Errorf("got %+v", rows)
	}
	operator.run("resume", "CourtCalendarSync").wants(t, 0, "was not paused by an operator, but this was: scope ny07; name the scope to resume it (--scope, or scope => in SQL)", "CourtCalendarSync is not on hold")
	operator.run("pause", "CourtCalendarSync", "--reason", "all of it").wants(t, 0, "CourtCalendarSync is paused: ", "lockstep resume CourtCalendarSync")
	operator.run("resume", "CourtCalendarSync", "--scope", "ny07", "--reason", "moved").wants(t, 0, "the pause of CourtCalendarSync, scope ny07, is lifted, but it is still on hold (the whole sync, operator: all of it); to end that: lockstep resume CourtCalendarSync\n")
	operator.run("resume", "CourtCalendarSync", "--scope", "ny08").wants(t, 0, "still on hold (the whole sync, operator")
	operator.run("resume", "CourtCalendarSync").wants(t, 0, "CourtCalendarSync is resumed: relays send again, nothing is open")
	if n := ask[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome IN ('paused', 'resumed')`); n != 4 {
		t.Errorf("%d rows in the log, want 4", n)
	}
	if reason := ask[string](w, `SELECT string_agg(coalesce(reason, 'none'), ', ' ORDER BY id) FROM outbox.delivery_log WHERE outcome = 'resumed'`); reason != "scope ny07: moved, none" {
		t.Errorf("the log has %q", reason)
	}
}

// At 3 a.m. the terminal has 80 columns, and nothing may be missing.
func TestTablesFitIntoTheTerminal(t *testing.T) {
	w, h1, h2, _, _ := troubled(t)
	ask[string](w, `SELECT outbox.pause('CourtCalendarSync', 'the court moves its servers to another building and is back at 18:00')::text`)
	for line, says := range map[string]string{
		"status":                                 "another building and is back at 18:00",
		"log":                                    "HTTP 422",
		"log --sync CourtCalendarSync --key H-2": "HTTP 422",
		"explain " + h2:                          "HTTP 422",
		"explain " + h1:                          "delivered at",
		"requeue --all --dry-run":                h2,
		"replay --all --dry-run":                 h1,
		"sync list":                              "CourtCalendarSync",
		"sync apply --dry-run":                   "unchanged",
	} {
		t.Run(line, func(t *testing.T) {
			narrow := &shell{t: t, env: maps.Clone(w.env)}
			narrow.env["COLUMNS"] = "80"
			r := narrow.run(strings.Fields(line)...).wants(t, 0)
			for l := range strings.Lines(r.stdout) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(l, "\n")); n > 80 {
					t.Errorf("a line has %d columns: %s", n, l)
				}
			}
			if text := strings.Join(strings.Fields(r.stdout), " "); !strings.Contains(text, says) {
				t.Errorf("does not say %q: %s", says, text)
			}
			wide := narrow.run(append(strings.Fields(line), "--wide")...).wants(t, 0)
			if piped := w.run(strings.Fields(line)...).wants(t, 0); masked(piped.stdout) != masked(wide.stdout) {
				t.Errorf("--wide prints\n%s, a pipe gets\n%s", wide.stdout, piped.stdout)
			}
			narrow.env["COLUMNS"] = "wide"
			narrow.run(strings.Fields(line)...).wants(t, 0) // as if it were not set
		})
	}
}

func TestTablesLeaveOutWhatTheUserAskedFor(t *testing.T) {
	w, _, h2, _, _ := troubled(t)
	header := func(line string) []string {
		first, _, _ := strings.Cut(w.run(strings.Fields(line)...).wants(t, 0).stdout, "\n")
		return strings.Fields(first)
	}
	for line, without := range map[string][]string{
		"log":                          {},
		"log --sync CourtCalendarSync": {"SYNC"},
		"log --key H-2":                {"KEY"},
		"log --event " + h2:            {"EVENT"},
		"requeue --sync CourtCalendarSync --all --dry-run": {"SYNC"},
		"requeue --key H-2 --dry-run":                      {"KEY"},
		"requeue --event " + h2 + " --dry-run":             {"EVENT"},
	} {
		got := header(line)
		for _, name := range []string{"SYNC", "KEY", "EVENT"} {
			if slices.Contains(without, name) == slices.Contains(got, name) {
				t.Errorf("%s: the columns are %v, want %v left out", line, got, without)
			}
		}
	}
}

// A success says what is true now, and what still stops the deliveries.
func TestRepairsSayWhatIsTrueNow(t *testing.T) {
	w, h1, h2, _, _ := troubled(t)
	w.runsARelay()
	operator := w.as(roleOperator)
	operator.run("requeue", "--class", "mapping").wants(t, 0, "1 delivery requeued: relays send it now\n")
	operator.run("pause", "CourtCalendarSync", "--reason", "maintenance until six").wants(t, 0)
	operator.run("requeue", h2).wants(t, 0, "1 delivery requeued: relays send it when CourtCalendarSync is no longer on hold (operator: maintenance until six)\n")
	operator.run("replay", h1, "--reason", "r").wants(t, 0, "1 delivery replayed: relays send it when CourtCalendarSync is no longer on hold")
	operator.run("discard", h1, "--reason", "r").wants(t, 0, "1 delivery discarded: it is never sent. What waits behind it is sent when CourtCalendarSync is no longer on hold")
	operator.run("resume", "CourtCalendarSync").wants(t, 0, "CourtCalendarSync is resumed: relays send its 3 open deliveries\n")
	operator.run("discard", h2, "--reason", "r").wants(t, 0, "1 delivery discarded: it is never sent. What waits behind it is sent now\n")
}

func TestResumeSaysHowAnotherHoldEnds(t *testing.T) {
	w := newWorld(t)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
	for kind, says := range map[string]string{
		"auth":     "it ends when a probe succeeds",
		"breaker":  "it ends when a probe succeeds",
		"throttle": "it ends at 2099-01-01T00:00:00Z",
		"backfill": "it ends when a running relay has added the events",
	} {
		ask[string](w, `SELECT outbox.pause('CourtCalendarSync', 'r')::text`)
		if _, err := w.conn.Exec(t.Context(), `INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', $1, CASE WHEN $1 <> 'backfill' THEN timestamptz '2099-01-01Z' END, 'the reason', 'relay-1')`, kind); err != nil {
			t.Fatal(err)
		}
		w.run("resume", "CourtCalendarSync").wants(t, 0, "the pause of CourtCalendarSync is lifted, but it is still on hold ("+kind+": the reason); "+says)
		if _, err := w.conn.Exec(t.Context(), `DELETE FROM outbox.hold`); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStatusSaysWhoRelays(t *testing.T) {
	w := newWorld(t)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
	id := w.emit("H-1", `{"hearingId":"H-1"}`)
	w.run("status").wants(t, 0, "no relay is running") // it stopped in an orderly way
	w.run("status", "--relays").wants(t, 0, "no relay is running; start one with: lockstep run")
	w.run("explain", id).wants(t, 0, "waits for a relay to claim it; no relay is running")

	ask[int64](w, `WITH h AS (INSERT INTO outbox.heartbeat (instance, name, host, version, syncs, started_at, seen_at)
	   VALUES (gen_random_uuid(), 'clinic-1', 'host-a', 'v1.3.9', '{ClinicSync}', now() - interval '1 day', now()),
	          (gen_random_uuid(), 'court-1', 'host-b', 'v1.4.0', '{CourtCalendarSync}', now() - interval '1 day', now() - interval '1 minute') RETURNING 1) SELECT count(*) FROM h`)
	w.run("status").wants(t, 0, "no running relay serves this sync")
	w.run("explain", id).wants(t, 0, "waits for a relay to claim it; no running relay serves this sync")
	w.run("status", "--relays").wants(t, 0, "clinic-1", "host-a", "v1.3.9", "running", "court-1", "v1.4.0", "not seen since ")
	w.run("status", "--relays", "--max-lag", "5m").wants(t, exitUsage, "none of the others")
	rows := decode[[]statusRow](t, w.run("status", "-o", "json").wants(t, 0))
	if got := rows[0].Relays; len(got) != 1 || got[0].Name != "court-1" || deref(got[0].Version) != "v1.4.0" || got[0].Running {
		t.Errorf("relays of the sync: %+v", got)
	}
	relays := decode[[]relayRow](t, w.run("status", "--relays", "-o", "json").wants(t, 0))
	if len(relays) != 2 || !relays[0].Running || relays[1].Running || relays[1].Syncs[0] != "CourtCalendarSync" {
		t.Errorf("got %+v", relays)
	}
	w.as(roleAuditor).run("status", "--relays").wants(t, 0, "clinic-1")

	r := w.start("run")
	w.eventually(`SELECT count(*) = 2 AND bool_and(version <> '') FROM outbox.relay WHERE running`)
	if out := w.run("status").wants(t, 0); strings.Contains(out.stdout, "relay") {
		t.Errorf("status of a sync that is served: %s", out.stdout)
	}
	r.stop(t, 0)
	if n := ask[int](w, `SELECT count(*) FROM outbox.relay WHERE running`); n != 1 {
		t.Errorf("%d relays are running after the stop, want 1", n)
	}
}

func TestDiscardEverythingOfAnOrphanedSync(t *testing.T) {
	w, _, h2, behind, h3 := troubled(t)
	operator := w.as(roleOperator)
	operator.run("discard", "CourtCalendarSync", "--all").wants(t, exitUsage, "--reason is required")
	operator.run("discard", "CourtCalendarSync", "--all", "--class", "permanent", "--reason", "r").wants(t, exitUsage, "--all allows no filter except --sync")
	operator.run("discard", "NoSync", "--all", "--reason", "r").wants(t, exitFailed, `sync "NoSync" is not registered`)
	operator.run("discard", "CourtCalendarSync", "--all", "--reason", "r").wants(t, exitFailed, "nothing was changed", "still gets events", "Retire it first")
	operator.run("retire", "CourtCalendarSync", "--reason", "closed").wants(t, 0)
	operator.run("discard", "CourtCalendarSync", "--all", "--dry-run").wants(t, 0, h2, behind, h3, "3 deliveries would be discarded; nothing was changed")
	operator.run("discard", "CourtCalendarSync", "--all", "--reason", "the court closed").wants(t, 0, behind, "3 deliveries discarded: none of them is ever sent")
	if n := ask[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'discarded' AND reason = 'the court closed'`); n != 3 {
		t.Errorf("%d rows of the log, want 3", n)
	}
	operator.run("discard", "CourtCalendarSync", "--all", "--reason", "r").wants(t, 0, "no delivery to discard")
}

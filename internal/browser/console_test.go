package browser

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// shows opens a page without scripts and with them, and checks that both say the texts. It
// audits the page with scripts, of which the pictures are.
func (p *tab) shows(address string, status int64, texts []string, pictures ...string) {
	p.Helper()
	p.withoutScripts(true)
	// Readers within a second share one reading of the database.
	waiting.For(p, actionTimeout, fmt.Sprintf("%s says %q without scripts", address, texts), func() bool {
		got := strings.Join(strings.Fields(p.visitStatus(address, status).text()), " ")
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(got, text) })
	}, func() string { return p.text() })
	p.withoutScripts(false).visitStatus(address, status).says(texts...).audit(pictures...)
}

func TestTheOverviewSaysWhatStopsASync(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := "http://" + w.console("")
	p := open(t)
	p.shows(site+"/", 200, []string{"There is no sync yet", "No relay is running", "A relay that was stopped is not listed"}, "overview-empty-light")
	p.skips()

	_, stop := w.relay("")
	w.until("EXISTS (SELECT FROM outbox.sync)")
	w.book("H-2027-000201", "2027-03-15 10:00")
	w.until("EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'delivered')")
	p.shows(site+"/", 200, []string{"CourtCalendarSync up to date", "Nothing is at risk", "running"}, "overview-fine-light")

	w.faults(courtsim.Fault{Do: courtsim.Action{Status: 401}})
	w.book("H-2027-000202", "2027-03-15 11:00")
	w.until("EXISTS (SELECT FROM outbox.hold WHERE kind = 'auth')")
	p.shows(site+"/", 200, []string{"CourtCalendarSync on hold", "because the receiver refuses our credentials: HTTP 401"}, "overview-auth-light")
	w.faults()
	w.exec("UPDATE outbox.hold SET until = now() WHERE kind = 'auth'")
	w.until("NOT EXISTS (SELECT FROM outbox.delivery)")

	w.faults(courtsim.Fault{Do: courtsim.Action{Status: 503}})
	for n := range 12 {
		w.book(fmt.Sprintf("H-2027-0003%02d", n), "2027-03-15 12:00")
	}
	w.until("EXISTS (SELECT FROM outbox.hold WHERE kind = 'breaker')")
	p.shows(site+"/", 200, []string{"CourtCalendarSync on hold", "because the receiver does not answer as it should", "HTTP 503", "H-2027-000300"}, "overview-breaker-light")
	w.exec("DELETE FROM outbox.delivery WHERE key > 'H-2027-000301'")

	w.exec("SELECT outbox.pause('CourtCalendarSync', 'the court moves its computers')")
	p.shows(site+"/", 200, []string{"was paused by", "the court moves its computers", "It continues when a person resumes it."}, "overview-paused-light")
	w.exec("SELECT outbox.resume('CourtCalendarSync')")
	w.exec("DELETE FROM outbox.hold")
	w.exec(`INSERT INTO outbox.hold (sync, kind, until, reason, by)
SELECT 'CourtCalendarSync', 'window', opens AT TIME ZONE 'America/New_York', to_char(opens, '"outside its window, opens "Dy YYYY-MM-DD HH24:MI" America/New_York"'), 'relay'
  FROM (SELECT date_trunc('day', now() AT TIME ZONE 'America/New_York') + interval '1 day 8 hours' AS opens) AS tomorrow`)
	p.shows(site+"/", 200, []string{"it is outside its window", "It continues at"}, "overview-window-light")

	stop()
	p.shows(site+"/", 200, []string{"No relay is running, so nothing is sent", "A relay that was stopped is not listed", "CourtCalendarSync no relay"}, "overview-no-relay-light")

	// The reads of the page wait for a lock, and are given up.
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "LOCK TABLE outbox.sync"); err != nil {
		t.Fatal(err)
	}
	p.shows(site+"/", 200, []string{"CourtCalendarSync", "s ago"}, "overview-stale-light")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestTheOverviewChangesWithoutAReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site, _ := w.relay("console: {zone: Europe/London}\n")
	w.until("EXISTS (SELECT FROM outbox.sync)")
	p := open(t)
	p.visit(site + "/").says("CourtCalendarSync up to date")
	p.run("window.loadedOnce = true")
	w.exec("SELECT outbox.pause('CourtCalendarSync', 'a rehearsal')")
	p.says("CourtCalendarSync on hold", "a rehearsal")
	w.exec("SELECT outbox.resume('CourtCalendarSync')")
	p.says("CourtCalendarSync up to date")
	w.book("H-2027-000501", "2027-03-15 10:00")
	p.says("ago, at")
	if !eval[bool](p, "window.loadedOnce === true") {
		t.Error("the page was loaded again")
	}
	p.audit()
}

func TestAPageThatNobodySeesIsNotRenewed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site, _ := w.relay("")
	w.until("EXISTS (SELECT FROM outbox.sync)")
	hidden, seen := open(t), open(t)
	shown := func(yes bool) {
		hidden.run(fmt.Sprintf("Object.defineProperty(document, 'hidden', {value: %t, configurable: true}); document.dispatchEvent(new Event('visibilitychange'))", !yes))
	}
	hidden.visit(site + "/").says("CourtCalendarSync up to date")
	shown(false)
	seen.visit(site + "/").says("CourtCalendarSync up to date")
	for _, reason := range []string{"first reason", "second reason", "third reason"} {
		w.exec("SELECT outbox.pause('CourtCalendarSync', $1)", reason)
		seen.says(reason)
	}
	if text := hidden.text(); strings.Contains(text, "reason") {
		t.Errorf("the page that nobody sees says %s", text)
	}
	shown(true)
	hidden.says("third reason")
}

// Keys that failed, are blocked behind a failure, or wait for another reason, and are needed.
func TestTheOverviewShowsWhatTheCourtDoesNotHave(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site, _ := w.relay("console: {zone: America/New_York}\n")
	w.until("(SELECT count(*) = 1 FROM outbox.sync WHERE backfill_seq IS NULL)")
	w.faults(
		courtsim.Fault{Match: courtsim.Match{Key: "H-2027-000601"}, Do: courtsim.Action{Status: 422}},
		courtsim.Fault{Match: courtsim.Match{Key: "H-2027-000602"}, Do: courtsim.Action{Status: 422}},
		courtsim.Fault{Match: courtsim.Match{Key: "H-2027-000603"}, Do: courtsim.Action{Status: 503}},
	)
	for n := range 20 {
		w.book(fmt.Sprintf("H-2027-0007%02d", n), "2027-03-15 10:00")
	}
	w.book("H-2027-000601", "2027-01-04 09:30")
	w.book("H-2027-000602", "2027-01-05 10:00")
	w.change("H-2027-000602", "rescheduled", "booked")
	w.book("H-2027-000603", "2027-01-06 11:00")
	w.until("(SELECT count(*) FROM outbox.delivery WHERE state = 'failed') = 2 AND (SELECT count(*) FROM outbox.delivery WHERE state = 'retry') = 1 AND (SELECT count(*) FROM outbox.delivery) = 4")
	p := open(t)
	p.shows(site+"/", 200, []string{"H-2027-000601", "H-2027-000602", "H-2027-000603", "CourtCalendarSync some failed", "2 wait for a person", "1 key", "HTTP 422"},
		"overview-light", "overview-dark", "overview-phone")
	p.shows(site+"/failed", 200, []string{"H-2027-000601", "H-2027-000602", "it was refused: HTTP 422", "permanent"}, "failed-light", "failed-phone")
	p.shows(site+"/failed?sync=CourtCalendarSync&error=422", 200, []string{"H-2027-000601"})
	p.shows(site+"/blocked", 200, []string{"H-2027-000602", "1 later event of this key waits behind it"}, "blocked-light")
	p.shows(site+"/sync/CourtCalendarSync", 200, []string{"some failed", "H-2027-000601", "H-2027-000603"}, "sync-light", "sync-dark", "sync-phone")
	p.shows(site+"/sync/Nobody", 404, []string{"Nobody"})
	p.shows(site+"/nothing", 404, []string{"There is no page with this address"})
	p.visit(site+"/").click("2 wait for a person", 200).says("H-2027-000601")
	p.click("H-2027-000601", 200).says("CourtCalendarSync failed")
}

package browser

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/hms-mkt/lockstep/internal/courtsim"
	"github.com/hms-mkt/lockstep/internal/waiting"
)

// failing serves the console of a court that refuses n hearings.
func (w *world) failing(n int) (site string) {
	w.Helper()
	w.faults(courtsim.Fault{Do: courtsim.Action{Status: 422}})
	w.relay("")
	w.until("(SELECT count(*) = 1 FROM outbox.sync WHERE backfill_seq IS NULL)")
	for i := range n {
		w.book(fmt.Sprintf("H-2027-0008%02d", i+1), "2027-03-15 10:00")
	}
	w.until(fmt.Sprintf("(SELECT count(*) FROM outbox.delivery WHERE state = 'failed') = %d", n))
	return "http://" + w.console(users, w.usersEnv()...)
}

func TestAnOperatorSendsFailedHearingsAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := w.failing(3)
	p, other := open(t), open(t)
	p.logIn(site, "maria")
	other.withoutScripts(true).logIn(site, "maria")
	address := site + "/action/requeue?sync=CourtCalendarSync&class=permanent"
	p.shows(address, 200, []string{"Exactly 3", "What happens", "H-2027-000801", "HTTP 422", "Soonest hearing"}, "action-confirm-light", "action-confirm-dark", "action-confirm-phone")
	other.visit(address).says("Exactly 3")

	// Without a reason the browser does not send the form. A program may.
	p.run(`document.querySelector("textarea").required = false`)
	p.click("Send them again: 3", 400).says("Nothing was changed.").audit("action-no-reason-light")

	w.faults()
	p.visit(address).fill("reason", "the court has corrected its rooms").click("Send them again: 3", 200).says("3", "the court has corrected its rooms", "maria").audit("action-done-light")
	w.until("NOT EXISTS (SELECT FROM outbox.delivery)")
	other.fill("reason", "the same, too late").click("Send them again: 3", 409).says("Nothing was changed.").audit("action-stale-light")
	p.visit(site+"/changes").says("maria", "requeued", "3 deliveries", "the court has corrected its rooms")
	w.until("(SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'requeued' AND actor LIKE '%/maria' AND reason = 'the court has corrected its rooms') = 3")
}

func TestAnOperatorGivesUpAndSendsOnceMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := w.failing(2)
	p := open(t)
	p.logIn(site, "maria")
	p.shows(site+"/action/discard?sync=CourtCalendarSync&key=H-2027-000801", 200, []string{"Exactly 1", "This cannot be undone", "H-2027-000801"}, "action-discard-light")
	p.fill("reason", "the court has it on paper").click("Give them up: 1", 200).says("1", "the court has it on paper").audit()
	w.until("(SELECT array_agg(key) = '{H-2027-000802}' FROM outbox.delivery)")

	w.faults()
	p.visit(site+"/action/requeue?sync=CourtCalendarSync").fill("reason", "the court has corrected its rooms").click("Send them again: 1", 200)
	w.until("NOT EXISTS (SELECT FROM outbox.delivery)")
	p.shows(site+"/action/replay?sync=CourtCalendarSync&key=H-2027-000802", 200, []string{"Exactly 1", "a new idempotency key", "H-2027-000802"}, "action-replay-light")
	p.fill("reason", "the court has lost it").click("Send them once more: 1", 200).says("1", "the court has lost it").audit()
	w.until("(SELECT count(*) FROM outbox.delivery_log WHERE key = 'H-2027-000802' AND outcome IN ('delivered', 'duplicate')) = 2")
	p.visit(site+"/key/H-2027-000801").says("maria gave it up", "the court has it on paper")
}

func TestAnActionThatTakesLongIsShownWhileItRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := w.failing(3)
	p := open(t)
	p.logIn(site, "maria")
	p.visit(site+"/action/requeue?sync=CourtCalendarSync").fill("reason", "the court has corrected its rooms")
	w.faults()
	locked, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := locked.Exec(t.Context(), "SELECT FROM outbox.delivery WHERE key = 'H-2027-000802' FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	p.click("Send them again: 3", 200).says("0 of 3 requeued until now. The page reloads by itself.", "Stop after this step").audit("action-running-light")
	if err := locked.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.until("NOT EXISTS (SELECT FROM outbox.delivery)")
	waiting.For(t, happens, "the page shows the end", func() bool { return strings.Contains(p.text(), "3 requeued.") })
	p.audit()
}

func TestAnOperatorPausesWithTheKeyboardOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := w.failing(1)
	p := open(t)
	p.logIn(site, "maria")
	p.shows(site+"/action/pause?sync=CourtCalendarSync", 200, []string{"CourtCalendarSync is not paused", "What happens"}, "action-pause-light")
	p.do(chromedp.SendKeys(`[name="reason"]`, "the court moves its computers"))
	p.press(kb.Tab, kb.Tab) // to the end of the pause, and to the button
	p.follow(200, chromedp.KeyEvent(kb.Enter))
	w.until("EXISTS (SELECT FROM outbox.hold WHERE kind = 'operator' AND reason = 'the court moves its computers')")
	p.visit(site+"/").says("was paused by maria", "the court moves its computers").audit()
	p.shows(site+"/action/resume?sync=CourtCalendarSync", 200, []string{"is paused by maria", "What happens"}, "action-resume-phone")
	p.fill("reason", "they have moved").click("Resume", 200)
	w.until("NOT EXISTS (SELECT FROM outbox.hold WHERE kind = 'operator')")
}

func TestWhoMayReadMayNotAct(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := w.failing(1)
	p := open(t)
	p.logIn(site, "jo")
	p.visit(site + "/").says("CourtCalendarSync some failed")
	if links := eval[int](p, `document.querySelectorAll("a[href^='/action/']").length`); links != 0 {
		t.Errorf("a person who may only read sees %d links to actions", links)
	}
	p.shows(site+"/action/requeue?sync=CourtCalendarSync", 403, []string{"jo may read these pages, but may not act."}, "action-refused-light")
}

package browser

import (
	"testing"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

func TestClerkPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := w.scheduling()
	p := open(t)
	p.visit(site + "/").says("No hearing matches").audit()
	p.skips()

	w.relay("")
	w.until("EXISTS (SELECT FROM outbox.sync)")
	w.faults(courtsim.Fault{Match: courtsim.Match{Key: "H-2027-000102"}, Do: courtsim.Action{Status: 422}})
	w.book("H-2027-000101", "2027-03-15 10:00")
	w.book("H-2027-000102", "2027-03-15 11:30")
	w.until("(SELECT count(*) FROM outbox.delivery_log WHERE outcome IN ('delivered', 'failed')) = 2")
	w.exec("SELECT outbox.pause('CourtCalendarSync', 'the court moves its computers')")
	w.book("H-2027-000103", "2027-03-16 09:00")
	p.visit(site+"/").says("3 hearings", "Court calendar has it since", "Court calendar refused it since", "An operator paused it: the court moves its computers").
		audit("clerk-list-light", "clerk-list-dark", "clerk-list-phone")
	p.visit(site+"/hearing/H-2027-000102").says("refused it", "Move", "Cancel").audit("clerk-hearing-light")
	p.visitStatus(site+"/hearing/H-0", 404).says("No such hearing").audit()

	// A clerk without scripts and without a mouse.
	p.withoutScripts(true)
	p.visit(site + "/book").says("Book a hearing").audit()
	p.fill("case_number", "27-CV-0004").fill("hearing_type", "Trial").fill("courthouse", "Albany").fill("courtroom", "4B")
	p.fill("local_start", "2027-11-07T01:30").submit("courtroom", 422).says("This time comes twice", "the second, 01:30 UTC-05:00").audit("clerk-mistake-light")
	p.choose("fold", "second").submit("courtroom", 200).says("The hearing is booked", "Sun 7 Nov 2027, 01:30 EST").audit()
	stale := open(t)
	stale.visit(eval[string](p, "location.href"))
	p.fill("local_start", "2027-11-08T09:00").submit("zone", 200).says("The hearing is moved", "Version 2").audit()
	stale.fill("courtroom", "9Z").submit("courtroom", 412).says("was changed while you looked at it", "Mon 8 Nov 2027, 09:00 EST").audit()
	p.fill("reason", "settled").click("Cancel the hearing", 200).says("The hearing is cancelled").audit()
}

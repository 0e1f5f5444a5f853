package browser

import (
	"net/url"
	"testing"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

func TestAStorySaysWhatBecameOfAHearing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.second("ArchiveSync")
	site, _ := w.relay("")
	w.until("(SELECT count(*) = 2 FROM outbox.sync WHERE backfill_seq IS NULL)")
	const delivered, refused, retried, cancelled, odd = "H-2027-000401", "H-2027-000402", "H-2027-000403", "H-2027-000404", "a/b%20 <i>מפתח</i> 日本"
	w.faults(
		courtsim.Fault{Match: courtsim.Match{Key: refused}, Do: courtsim.Action{Status: 422}},
		courtsim.Fault{Match: courtsim.Match{Key: retried, First: 2}, Do: courtsim.Action{Status: 503}},
	)
	for _, id := range []string{delivered, refused, retried, cancelled} {
		w.book(id, "2027-03-15 10:00")
	}
	w.change(cancelled, "cancelled", "cancelled")
	w.change(refused, "rescheduled", "booked")
	w.exec("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:created', $1, '{\"hearingId\": \"H-X\", \"scheduledAt\": \"2027-03-15T10:00:00Z\", \"location\": \"3A\", \"status\": \"booked\"}')", odd)
	w.until("(SELECT count(*) FROM outbox.delivery) = 2 AND EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'failed')")
	w.exec("WITH who AS MATERIALIZED (SELECT set_config('lockstep.actor', 'maria', true)) SELECT outbox.requeue('CourtCalendarSync', key => $1, reason => 'the court has corrected its rooms') FROM who", refused)
	w.until("(SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'failed') = 2")

	p := open(t)
	p.shows(site+"/key/"+delivered, 200, []string{"CourtCalendarSync up to date", "has version 1", "delivered, attempt 1, HTTP 201", "The receiver's id"}, "story-delivered-light")
	p.says("EST)") // the reader's own time beside that of the page
	p.shows(site+"/key/"+refused, 200, []string{"CourtCalendarSync failed", "it was refused: HTTP 422", "It waits for a person", "waits behind version 1", "maria had it sent again", "the court has corrected its rooms", "ArchiveSync up to date"},
		"story-failed-light", "story-failed-dark", "story-failed-phone")
	p.shows(site+"/key/"+retried, 200, []string{"CourtCalendarSync up to date", "failed for now, tried again later", "HTTP 503", "attempt 3"}, "story-retried-light")
	p.shows(site+"/key/"+cancelled, 200, []string{"scheduling:cancelled", "has version 2"})
	p.shows(site+"/key?"+url.Values{"key": {odd}}.Encode(), 200, []string{odd, "up to date"}, "story-odd-phone")
	p.shows(site+"/key/H-0", 404, []string{"Nothing is known about the key"})
	p.shows(site+"/key/"+delivered+"?before=x", 400, []string{"is not the id of a row of the log"})

	p.visit(site+"/").fill("q", refused).submit("q", 200).says("CourtCalendarSync failed")
	id := eval[string](p, `document.querySelector("h3[id]").id`)
	p.fill("q", id).submit("q", 200).says("CourtCalendarSync failed")

	p.shows(site+"/changes", 200, []string{"maria", "requeued", refused, "the court has corrected its rooms"}, "changes-light", "changes-phone")
	p.fill("by", "nobody").submit("by", 200).says("Nobody did anything that is selected.")
	p.shows(site+"/changes?from=x", 400, []string{"from=x is not a day"})
}

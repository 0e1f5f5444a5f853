package browser

import (
	"fmt"
	"testing"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// shows opens a page with scripts and without, checks that both say the texts, and audits
// both. The pictures are of the page with scripts.
func (p *tab) shows(address string, status int64, texts []string, pictures ...string) {
	p.Helper()
	p.withoutScripts(true).visitStatus(address, status).says(texts...).audit()
	p.withoutScripts(false).visitStatus(address, status).says(texts...).audit(pictures...)
}

func TestTheOverviewSaysWhatStopsASync(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := "http://" + w.console("")
	p := open(t)
	p.shows(site+"/", 200, []string{"There is no sync yet"}, "console-empty-light")
	p.skips()

	_, stop := w.relay("")
	w.until("EXISTS (SELECT FROM outbox.sync)")
	w.book("H-2027-000201", "2027-03-15 10:00")
	w.until("EXISTS (SELECT FROM outbox.delivery_log WHERE outcome = 'delivered')")
	p.shows(site+"/", 200, []string{"CourtCalendarSync", "Nothing stops it."}, "console-fine-light")

	w.faults(courtsim.Fault{Do: courtsim.Action{Status: 401}})
	w.book("H-2027-000202", "2027-03-15 11:00")
	w.until("EXISTS (SELECT FROM outbox.hold WHERE kind = 'auth')")
	p.shows(site+"/", 200, []string{"because the receiver refuses our credentials: HTTP 401"}, "console-auth-light")
	w.faults()
	w.exec("UPDATE outbox.hold SET until = now() WHERE kind = 'auth'")
	w.until("NOT EXISTS (SELECT FROM outbox.delivery)")

	w.faults(courtsim.Fault{Do: courtsim.Action{Status: 503}})
	for n := range 12 {
		w.book(fmt.Sprintf("H-2027-0003%02d", n), "2027-03-15 12:00")
	}
	w.until("EXISTS (SELECT FROM outbox.hold WHERE kind = 'breaker')")
	p.shows(site+"/", 200, []string{"because the receiver does not answer as it should", "HTTP 503"}, "console-breaker-light")

	w.exec("SELECT outbox.pause('CourtCalendarSync', 'the court moves its computers')")
	p.shows(site+"/", 200, []string{"was paused by", "the court moves its computers", "It continues when a person resumes it."}, "console-paused-light")
	w.exec("SELECT outbox.resume('CourtCalendarSync')")
	w.exec("DELETE FROM outbox.hold")
	w.exec("INSERT INTO outbox.hold (sync, kind, until, reason, by) VALUES ('CourtCalendarSync', 'window', now() + interval '9 hours', 'Mon-Fri 08:00 to 18:00', 'relay')")
	p.shows(site+"/", 200, []string{"for the hours in which the receiver wants changes", "It continues at"}, "console-window-light")
	stop()
}

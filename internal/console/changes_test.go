package console

import (
	"fmt"
	"testing"

	"github.com/hms-mkt/lockstep/internal/inspect"
)

func TestChangesShowWhoDidWhat(t *testing.T) {
	w := newWorld(t)
	w.get("/changes").wants(200, "Nobody did anything")
	const row = `INSERT INTO outbox.delivery_log (sync, event_id, key, outcome, actor, reason, at) `
	w.Past(row + `SELECT 'Court', gen_random_uuid(), 'H/' || n, 'requeued', 'ops/maria', 'the court is back', '2026-11-30T23:59:00Z' FROM generate_series(1, 7) AS n`)
	w.Past(row + `VALUES ('Court', NULL, NULL, 'paused', 'ops/jo', 'the court moves', '2026-12-01T00:01:00Z')`)
	all := w.get("/changes").wants(200, "requeued 7 deliveries", "maria", "as <bdi>ops/maria</bdi>", "the court is back", "paused", "the court moves",
		`href="/key?key=H%2F7"`, ", …", "Mon 30 Nov 2026, 23:59:00 UTC")
	w.get(all.link("Changes")).wants(200)
	for query, want := range map[string]bool{
		"by=maria": true, "by=ops/maria": true, "by=jo": false, "sync=Court": true, "sync=Clinic": false, "action=requeued": true, "action=paused": false,
		"from=2026-11-30&to=2026-11-30": true, "from=2026-12-01": false, "to=2026-11-29": false,
	} {
		if page := w.get("/changes?" + query); want {
			page.wants(200, "requeued 7")
		} else {
			page.wants(200).lacks("requeued 7")
		}
	}
	w.get("/changes?action=requeue").wants(400, "action=requeue is no action")
	w.get("/changes?from=yesterday").wants(400, "from=yesterday is not a day: want one such as")
	w.get("/changes?before=-1").wants(400, "is not the id of a row")
	w.get("/changes?by=%ff").wants(400)

	w.Past(row+`SELECT 'Court', NULL, NULL, 'paused', 'ops/jo', 'pause ' || n, now() FROM generate_series(1, $1) AS n`, inspect.MostChanges)
	first := w.get("/changes?by=&action=paused").wants(200, "pause 1<")
	first.lacks("the court moves")
	older := w.get(first.link("Older")).wants(200, "the court moves")
	older.lacks("pause 1<", "requeued 7")
	w.get(older.link("Newest")).wants(200, fmt.Sprintf("pause %d<", inspect.MostChanges))
}

func TestChangesEscapeEverything(t *testing.T) {
	w := newWorld(t)
	const evil = `<script>"'&`
	w.Past(`INSERT INTO outbox.delivery_log (sync, event_id, key, outcome, actor, reason) VALUES ('Court', gen_random_uuid(), $1, 'requeued', $1, $1)`, evil)
	w.get("/changes").wants(200, "&lt;script&gt;").lacks("<script>")
	w.get("/changes?by=%3Cscript%3E&sync=%3Cscript%3E").wants(200).lacks("<script>")
}

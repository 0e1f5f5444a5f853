package console

import (
	"net/url"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
)

func TestAStoryShowsWhatHappenedToAKey(t *testing.T) {
	w := newWorld(t)
	w.Do(`UPDATE outbox.sync SET escalate_at = '{at}', escalate_zone = 'America/New_York'`)
	w.Do(`INSERT INTO outbox.heartbeat (instance, name, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay-1', '{Court}', now(), now())`)
	event := outboxtest.One[string](w.Session, `INSERT INTO outbox.event (type, key, version, payload) VALUES ('scheduling:updated', 'H-1', 7, '{"at": "2027-07-15T10:00", "party": "Smith"}') RETURNING id::text`)
	w.get("/key/H-1").wants(200, "<h1>H-1</h1>", "Court", "waiting", "does not have version 7 (scheduling:updated) yet. It is about to be sent.",
		"Needed by", "Thu 15 Jul 2027, 10:00 EDT", event).lacks("Smith", "/action/")
	w.Deliver(event)
	w.get("/key/H-1").wants(200, "up to date", "delivered", "HTTP 201", "attempt 1", "by <bdi>relay-1</bdi>")
	w.Do(`INSERT INTO outbox.event (type, key, payload) VALUES ('clinic:closed', 'H-1', '{}')`)
	w.get("/key/H-1").wants(200, "Events that no sync takes", "clinic:closed")
	w.get("/key/h-1").wants(404, "No such key", "Upper and lower case are different")
	w.get("/key/H-1?before=x").wants(400, "before=x is not the id of a row")
	for _, path := range []string{"/key/%ff", "/key/a%00b", "/key", "/key?key=", "/key/" + strings.Repeat("x", 600)} {
		w.get(path).wants(404)
	}
}

func TestAStoryBeginsWithWhatNeedsAPerson(t *testing.T) {
	w := newWorld(t)
	w.Sync("Zoo", "scheduling:*")
	w.Event("H-1")
	w.Do(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity', error_class = 'permanent', error = 'HTTP 422' WHERE sync = 'Zoo'`)
	body := w.get("/key/H-1").wants(200, "waits for a person").body
	if strings.Index(body, `id="lane-Zoo"`) > strings.Index(body, `id="lane-Court"`) {
		t.Errorf("the failed lane is not the first:\n%s", body)
	}
}

func TestAStoryHasALinkForEveryKey(t *testing.T) {
	w := newWorld(t)
	for _, key := range []string{
		"H 1", "H/2027/1", "a//b", "100%", "%2F", ".", "..", "a\\b", "?x=1&y", "#1", "קו-7", "<script>alert(1)</script>", "a+b", strings.Repeat("é", 256),
	} {
		event := w.Event(key)
		for _, q := range []string{key, event, strings.ToUpper(event)} {
			to := w.get("/find?q=" + url.QueryEscape(q)).wants(303).Header.Get("Location")
			w.get(to).wants(200, event).lacks("<script>")
			if q != key && !strings.HasSuffix(to, "#"+event) {
				t.Errorf("the event of %q is at %s", key, to)
			}
		}
	}
	w.get("/find?q=+").wants(303)
	to := w.get("/find?q=0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d").wants(303).Header.Get("Location")
	w.get(to).wants(404, "No such key")
	w.get("/").wants(200, `action="/find"`)
}

func TestAStoryIsReadInParts(t *testing.T) {
	w := newWorld(t)
	event := w.Event("H/1")
	w.Past(`INSERT INTO outbox.delivery_log (sync, event_id, key, outcome, error, claim, relay, attempt)
	        SELECT 'Court', $1::uuid, 'H/1', 'retry', 'try no. ' || n, gen_random_uuid(), 'relay-1', n FROM generate_series(1, 201) AS n`, event)
	first := w.get("/key?key=H/1").wants(200, "try no. 201<", "try no. 2<", "Older part of the log")
	first.lacks("try no. 1<")
	older := w.get(first.link("Older part of the log")).wants(200, "try no. 1<", "This is an older part of the log")
	older.lacks("try no. 2<", "about to be sent")
	w.get(older.link("Show the newest part")).wants(200, "try no. 201<")
}

func TestAStoryEscapesEverything(t *testing.T) {
	w := newWorld(t)
	const evil = `<script>"'&`
	event := w.Event(evil)
	w.Fail(event)
	w.Do(`UPDATE outbox.delivery SET error = $1, error_class = $1`, evil)
	w.Do(`INSERT INTO outbox.external_ref (sync, key, external_id, etag, learned, event_seq) VALUES ('Court', $1::text, $1, $1, jsonb_build_object($1::text, $1::text), 1)`, evil)
	w.Past(`INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, outcome, code, error, error_class, external_id, relay, reason, claim)
	        VALUES ('Court', $1::uuid, $2, $2, 'retry', $2, $2, $2, $2, $2, $2, gen_random_uuid())`, event, evil)
	w.Past(`INSERT INTO outbox.delivery_log (sync, event_id, event_type, key, outcome, actor, reason) VALUES ('Court', $1::uuid, $2, $2, 'requeued', $2, $2)`, event, evil)
	w.Past(`INSERT INTO outbox.delivery_log (sync, outcome, actor, reason) VALUES ('Court', 'paused', $1, $1)`, evil)
	w.get(keyURL(evil)).wants(200, "&lt;script&gt;").lacks("<script>")
}

package main

import (
	"strings"
	"testing"
)

func TestTopWithoutATerminalIsWrittenOnce(t *testing.T) {
	w, _, _, _, _ := troubled(t)
	ask[string](w, `UPDATE outbox.delivery SET needed_by = now() + interval '2 hours 30 seconds', created_at = now() - interval '1 hour' WHERE state = 'failed' RETURNING key`)
	ask[string](w, `SELECT outbox.pause('CourtCalendarSync', 'the court moves', now() + interval '1 hour 30 seconds')::text`)
	got := w.as(roleAuditor).run("top").wants(t, 0, "no relay is running", "CourtCalendarSync", "the court moves", "It continues at", "That is in 1h0m.",
		"At risk, the soonest first:", "2h0m", "It waits for a person.").stdout
	ask[string](w, `INSERT INTO outbox.heartbeat (instance, name, syncs, started_at, seen_at) SELECT gen_random_uuid(), n, '{CourtCalendarSync}', now(), now() FROM unnest('{a,b}'::text[]) AS n RETURNING name`)
	w.as(roleAuditor).run("top").wants(t, 0, "2 relays running")
	if strings.Contains(got, "\x1b") {
		t.Errorf("writes controls of a terminal: %q", got)
	}
}

package main

import (
	"slices"
	"strings"
	"testing"
)

func TestExplainTakesAKey(t *testing.T) {
	w, h1, h2, behind, _ := troubled(t)
	other := ask[string](w, `INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling-updtaed', 'H-2', '{}') RETURNING id::text`)
	auditor := w.as(roleAuditor)
	r := auditor.run("explain", "H-2").wants(t, 0, "failed with permanent", "waits behind event "+h2, "no sync matches type scheduling-updtaed", "HTTP 422")
	first, second, third := strings.Index(r.stdout, h2), strings.Index(r.stdout, behind), strings.Index(r.stdout, "event "+other)
	if first < 0 || second < first || third < second {
		t.Errorf("the events of the key are not in order: %s", r.stdout)
	}
	if strings.Contains(r.stdout, "hearingId") || strings.Contains(r.stdout, h1) {
		t.Errorf("a payload or another key is shown: %s", r.stdout)
	}
	x := decode[keyExplanation](t, auditor.run("explain", "H-2", "-o", "json"))
	if x.Key != "H-2" || len(x.Events) != 3 || x.NotShown != 0 || len(x.Deliveries) != 2 || len(x.Log) != 1 || x.Events[1].Event.ID != behind || len(x.Events[1].Why) != 1 {
		t.Errorf("got %+v", x)
	}
	auditor.run("explain", "H-9").wants(t, exitFailed, `"H-9" is neither an event nor a key of this database`, "Upper and lower case differ")
	auditor.run("explain", "h-2").wants(t, exitFailed, "neither an event nor a key")
	auditor.run("explain", "H-2", "--sync", "NoSync").wants(t, exitFailed, "is not registered")
}

// Many keys are UUIDs themselves.
func TestAKeyMayLookLikeAnEvent(t *testing.T) {
	w := newWorld(t)
	const key = "0199f3a1-7c1e-7b5e-9c3e-5a4f2d1b0c9d"
	event := w.emit(key, `{"hearingId":"H-1"}`)
	w.relayUntil(nothingOpen)
	w.run("explain", key).wants(t, 0, "key "+key+", 1 event", event, "CourtCalendarSync: delivered at")
	w.run("requeue", key).wants(t, 0, "no failed delivery to requeue")
	w.run("replay", key, "--reason", "the court lost it").wants(t, 0, "1 delivery replayed")
}

// The error of the first event is not repeated for each event that waits behind it.
func TestExplainOfAKeySaysAnErrorOnce(t *testing.T) {
	w := newWorld(t)
	w.court.answers(refuses("H-2"))
	w.emit("H-2", `{"hearingId":"H-2"}`)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.failed)`)
	ask[int](w, `WITH added AS (INSERT INTO outbox.event (type, key, version, payload) SELECT 'scheduling:updated', 'H-2', n, '{}' FROM generate_series(4, 6) AS n RETURNING 1) SELECT count(*) FROM added`)
	r := w.run("explain", "H-2").wants(t, 0, "version 6, inserted")
	sentences, _, _ := strings.Cut(r.stdout, "SYNC")
	first := ask[string](w, `SELECT event_id::text FROM outbox.failed`)
	if strings.Count(sentences, "HTTP 422") != 1 || strings.Count(sentences, "CourtCalendarSync: waits behind event "+first+"\n") != 3 {
		t.Errorf("the error is repeated: %s", sentences)
	}
	ask[int](w, `WITH gone AS (DELETE FROM outbox.delivery WHERE event_id = $1::text::uuid RETURNING 1) SELECT count(*) FROM gone`, first)
	w.run("explain", "H-2").wants(t, 0, "CourtCalendarSync: waits behind version 4\n")
	x := decode[keyExplanation](t, w.run("explain", "H-2", "-o", "json"))
	if last := x.Events[len(x.Events)-1]; !strings.Contains(last.Why[0], "which is") {
		t.Errorf("a program gets less: %q", last.Why)
	}
}

// The first event of a blocked key matters most, so a long lane does not hide it.
func TestExplainOfALongLaneShowsItsBeginning(t *testing.T) {
	w := newWorld(t)
	w.court.answers(refuses("H-2"))
	first := w.emit("H-2", `{"hearingId":"H-2"}`)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.failed)`)
	ask[int](w, `WITH added AS (INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:updated', 'H-2', '{}' FROM generate_series(1, 60) RETURNING 1) SELECT count(*) FROM added`)
	r := w.run("explain", "H-2").wants(t, 0, "41 more events of this key", "lockstep explain H-2 --limit 61")
	if before, _, _ := strings.Cut(r.stdout, "waits behind"); !strings.Contains(before, first) || !strings.Contains(before, "failed with permanent") {
		t.Errorf("the failed event is not the first: %s", r.stdout)
	}
	if x := decode[keyExplanation](t, w.run("explain", "H-2", "--limit", "61", "-o", "json")); len(x.Events) != 61 || x.NotShown != 0 {
		t.Errorf("%d events, %d not shown", len(x.Events), x.NotShown)
	}
	w.run("explain", "H-2", "--limit", "0").wants(t, exitUsage, "want 1 to 1000")
}

func TestReplayOfAKeySendsItsNewestState(t *testing.T) {
	w := newWorld(t)
	created, moved := w.emit("H-1", `{"hearingId":"H-1"}`), w.emit("H-1", `{"hearingId":"H-1 moved"}`)
	w.relayUntil(nothingOpen)
	w.run("replay", "H-9", "--reason", "x").wants(t, exitFailed, "neither an event nor a key")
	w.run("replay", "H-1", "--key", "H-1", "--reason", "x").wants(t, exitUsage, "not both")
	for _, args := range [][]string{{"H-1"}, {"--key", "H-1"}} {
		r := w.run(append([]string{"replay", "--dry-run"}, args...)...).wants(t, 0, moved, "1 delivery would be replayed", "1 earlier event of the key", "--all")
		if strings.Contains(r.stdout, created) {
			t.Errorf("an older state would be sent: %s", r.stdout)
		}
	}
	if r := w.run("replay", "H-1", "--all", "--dry-run").wants(t, 0, created, moved, "2 deliveries would be replayed"); strings.Index(r.stdout, created) > strings.Index(r.stdout, moved) {
		t.Errorf("not in order: %s", r.stdout)
	}
	w.run("replay", "H-1", "--reason", "the court lost it").wants(t, 0, moved, "1 delivery replayed")
	w.run("replay", "H-1", "--all", "--reason", "x").wants(t, exitFailed, "of key H-1 is newer than event "+created+" and still pending for CourtCalendarSync", "lockstep explain H-1")
	w.relayUntil(nothingOpen)
	w.court.mu.Lock()
	defer w.court.mu.Unlock()
	if last := w.court.bodies[len(w.court.bodies)-1]; len(w.court.bodies) != 3 || !strings.Contains(last, "moved") {
		t.Errorf("%d requests, the last one is %s", len(w.court.bodies), last)
	}
}

// A replay of an older event would be sent after the newer one and undo it.
func TestReplayOfAKeyDoesNotUndoANewerEvent(t *testing.T) {
	w := newWorld(t)
	delivered := w.emit("H-2", `{"hearingId":"H-2"}`)
	w.relayUntil(nothingOpen)
	w.court.answers(refuses("H-2 moved"))
	w.emit("H-2", `{"hearingId":"H-2 moved"}`)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.failed)`)
	r := w.run("replay", "H-2", "--reason", "x").wants(t, exitFailed, "of key H-2 is newer than event "+delivered+" and still failed for CourtCalendarSync", "would undo", "add --force")
	if r.stdout != "" {
		t.Errorf("stdout has %q", r.stdout)
	}
	w.run("replay", delivered, "--reason", "x").wants(t, exitFailed, "would undo", "add --force")
	w.run("replay", delivered, "--reason", "I know", "--force").wants(t, 0, "1 delivery replayed")
}

func TestRequeueAndDiscardTakeAnEventOrAKey(t *testing.T) {
	w, h1, h2, behind, h3 := troubled(t)
	operator := w.as(roleOperator)
	operator.run("requeue", h2, "--dry-run").wants(t, 0, "H-2", "1 delivery would be requeued")
	operator.run("requeue", "H-3", "--dry-run").wants(t, 0, h3, "1 delivery would be requeued")
	operator.run("requeue", "H-9").wants(t, exitFailed, "neither an event nor a key")
	operator.run("requeue", "H-1").wants(t, 0, "no failed delivery to requeue; see: lockstep explain H-1")
	operator.run("requeue", h1).wants(t, exitFailed, "no failed delivery to requeue; see: lockstep explain "+h1)
	operator.run("requeue", "H-2", "--all").wants(t, exitUsage, "--all allows no filter")
	operator.run("discard", behind, "--reason", "by hand").wants(t, 0, "1 delivery discarded")
	operator.run("discard", "H-2", "--reason", "by hand").wants(t, 0, h2, "1 delivery discarded")
	operator.run("requeue", "H-3", "--reason", "repaired").wants(t, 0, "1 delivery requeued")
	if got := ask[[]string](w, `SELECT array_agg(outcome ORDER BY id) FROM outbox.delivery_log WHERE actor IS NOT NULL`); !slices.Equal(got, []string{"discarded", "discarded", "requeued"}) {
		t.Errorf("the log has %v", got)
	}
}

// Hints are copied into a shell.
func TestHintsQuoteKeys(t *testing.T) {
	for given, want := range map[string]string{"H-2027-000007": "H-2027-000007", "court 3": "'court 3'", "it's; $(x)": `'it'\''s; $(x)'`, "": "''"} {
		if got := quoted(given); got != want {
			t.Errorf("%q: got %s, want %s", given, got, want)
		}
	}
}

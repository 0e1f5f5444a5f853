package main

import (
	"maps"
	"strings"
	"testing"
)

// These tests follow an operator at 3 a.m., with 80 columns and real faults.

// A command must not promise what nobody does.
func TestACommandSaysThatNoRelayIsRunning(t *testing.T) {
	w, h1, h2, _, _ := troubled(t) // its relay has stopped
	const none = "as soon as one serves CourtCalendarSync; none does now, see: lockstep status --relays\n"
	w.run("requeue", h2).wants(t, 0, "1 delivery requeued: relays send it "+none)
	w.run("replay", h1, "--reason", "r").wants(t, 0, "1 delivery replayed: relays send it "+none)
	w.run("pause", "CourtCalendarSync", "--reason", "r").wants(t, 0)
	w.run("resume", "CourtCalendarSync").wants(t, 0, "CourtCalendarSync is resumed: relays send its 3 open deliveries "+none[:len(none)-1])
	w.run("status").wants(t, 0, "no relay is running; start one with: lockstep run")
}

// What waits behind a failed delivery is not sent by a resume.
func TestResumeCountsWhatIsSent(t *testing.T) {
	w, _, _, _, _ := troubled(t)
	w.runsARelay()
	w.run("pause", "CourtCalendarSync", "--reason", "r").wants(t, 0)
	w.run("resume", "CourtCalendarSync").wants(t, 0, "relays send again, nothing else is open. 2 failed deliveries wait for you, and 1 delivery behind them: lockstep requeue --sync CourtCalendarSync --all --dry-run\n")
	w.run("retire", "CourtCalendarSync", "--reason", "r").wants(t, 0, "CourtCalendarSync is retired: it gets no further events. 2 failed")
}

func TestNothingFoundIsSaid(t *testing.T) {
	w := newWorld(t)
	w.relayUntil(nothingOpen)
	for line, says := range map[string]string{
		"log":                            "nothing was logged in the last 24 hours; to look further back: --since 7d",
		"log --since 1h":                 "no row of the log is selected",
		"log --key H-1":                  "no row of the log is selected",
		"log --sync NoSync":              `sync "NoSync" has no rows; known are CourtCalendarSync`,
		"requeue --all":                  "no failed delivery to requeue",
		"discard --all --reason r":       "no delivery to discard",
		"replay --all --reason r":        "no delivered event to replay",
		"requeue --class auth --dry-run": "no failed delivery to requeue",
	} {
		r := w.run(strings.Fields(line)...).wants(t, 0, says)
		if !strings.HasPrefix(line, "log") && r.stdout != "" {
			t.Errorf("%s prints a table without rows: %s", line, r.stdout)
		}
		if r := w.run(append(strings.Fields(line), "-o", "json")...).wants(t, 0); r.stdout != "[]\n" {
			t.Errorf("%s prints %q for a program", line, r.stdout)
		}
	}
}

func TestAMisspeltErrorClassIsRefused(t *testing.T) {
	w := newWorld(t)
	for _, line := range []string{"requeue --class Permanent --dry-run", "discard --class typo --reason r"} {
		w.run(strings.Fields(line)...).wants(t, exitUsage, "--class: there is no error class", "want one of auth, conflict, crash, forbidden, local, mapping, permanent,")
	}
}

func TestStatusSaysWhatToDoAboutADifference(t *testing.T) {
	w := newWorld(t)
	w.run("status").wants(t, 0, "not registered: lockstep run registers it")
	w.relayUntil(nothingOpen)
	w.run("retire", "CourtCalendarSync", "--reason", "r").wants(t, 0)
	w.run("status").wants(t, 0, "retired in the database; to undo that: lockstep retire CourtCalendarSync --undo")
	w.run("retire", "CourtCalendarSync", "--undo", "--reason", "r").wants(t, 0)
	w.configure(`syncs: [{name: CourtCalendarSync, events: ["scheduling:*", "data:*"], adapter: {kind: rest, url: "http://127.0.0.1:1/"}}]`)
	w.run("status").wants(t, 0, "differs: events are scheduling:*, data:* in the file; to apply the file: lockstep sync apply CourtCalendarSync")
	w.configure(`syncs: [{name: ClinicSync, event: a, from: now, adapter: {kind: rest, url: "http://127.0.0.1:1/"}}]`)
	w.run("status").wants(t, 0, "orphaned: not in the file. Add it to the file of a relay, or end it: lockstep retire CourtCalendarSync")
}

// In 80 columns, the ordinary rows take one line, and zeros do not take another one.
func TestOrdinaryRowsTakeOneLine(t *testing.T) {
	w := newWorld(t)
	id := w.emit("H-2027-000007", `{"hearingId":"H-1"}`)
	w.relayUntil(nothingOpen)
	w.runsARelay()
	s := &shell{t: t, env: maps.Clone(w.env)}
	s.env["COLUMNS"] = "80"
	if r := s.run("status").wants(t, 0, "last delivered:"); strings.Contains(r.stdout, ": 0") {
		t.Errorf("zeros take a line: %s", r.stdout)
	}
	if r := s.run("log", "--sync", "CourtCalendarSync").wants(t, 0, "HTTP 201"); strings.Contains(r.stdout, "code:") {
		t.Errorf("the code is not in the line: %s", r.stdout)
	}
	r := s.run("explain", "H-2027-000007").wants(t, 0, id)
	if strings.Contains(r.stdout, "version none") {
		t.Errorf("the version is not there, but mentioned: %s", r.stdout)
	}
}

// explain says an error once for each place where it belongs: in the sentence and in the
// log.
func TestExplainSaysAnErrorOnce(t *testing.T) {
	w, _, h2, _, _ := troubled(t)
	if r := w.run("explain", h2).wants(t, 0); strings.Count(r.stdout, "answered HTTP 422") != 2 {
		t.Errorf("got %s", r.stdout)
	}
}

// runsARelay makes the database believe that a relay is running.
func (w *world) runsARelay() {
	w.t.Helper()
	if _, err := w.conn.Exec(w.t.Context(), `INSERT INTO outbox.heartbeat (instance, name, host, version, syncs, started_at, seen_at) VALUES (gen_random_uuid(), 'relay-9', 'here', 'v1', '{CourtCalendarSync}', clock_timestamp(), clock_timestamp())`); err != nil {
		w.t.Fatal(err)
	}
}

func TestAHintIsSaidOnce(t *testing.T) {
	w := newWorld(t)
	w.emit("H-1", `{"hearingId":"H-1"}`)
	if r := w.run("migrate", "down").wants(t, exitFailed, "hint: "); strings.Count(r.stderr, "--force") != 1 {
		t.Errorf("got %s", r.stderr)
	}
}

func TestStatusSaysWhatToDo(t *testing.T) {
	w, _, _, _, _ := troubled(t)
	w.runsARelay()
	w.run("status").wants(t, 0, "2 failed wait for you: lockstep requeue --sync CourtCalendarSync --all --dry-run")
	hold := func(kind, scope string) {
		t.Helper()
		if _, err := w.conn.Exec(t.Context(), `INSERT INTO outbox.hold (sync, scope, kind, until, reason, by) VALUES ('CourtCalendarSync', $2, $1, CASE WHEN $1 <> 'operator' THEN timestamptz '2099-01-01Z' END, 'the reason', 'relay-9')`, kind, scope); err != nil {
			t.Fatal(err)
		}
	}
	hold("auth", "")
	w.run("status").wants(t, 0, "next probe 2099-01-01T00:00:00Z: the reason; correct the credentials of the sync")
	hold("operator", "")
	hold("operator", "ny 07")
	w.run("status").wants(t, 0, "on hold by relay-9: the reason; to end it: lockstep resume CourtCalendarSync;",
		"scope ny 07 on hold by relay-9: the reason; to end it: lockstep resume CourtCalendarSync --scope 'ny 07'")
	w.run("resume", "CourtCalendarSync").wants(t, 0, "it ends when a probe succeeds; correct the credentials of the sync")
}

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hms-mkt/lockstep/internal/operate"
)

// manyFailed is a world in which n deliveries have failed, of as many keys. Every tenth one
// has failed in the mapping.
func manyFailed(t *testing.T, n int) *world {
	t.Helper()
	w := newWorld(t)
	w.relayUntil(`SELECT EXISTS (SELECT FROM outbox.sync WHERE backfill_seq IS NULL)`)
	ask[int](w, `WITH e AS (INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:created', 'H-' || n, '{"hearingId": "H"}' FROM generate_series(1, $1) AS n RETURNING 1) SELECT count(*) FROM e`, n)
	ask[int](w, `
WITH d AS (
    UPDATE outbox.delivery
       SET state = 'failed', due_at = 'infinity', attempts = 1,
           error_class = CASE event_seq % 10 WHEN 0 THEN 'mapping' ELSE 'permanent' END,
           error = CASE event_seq % 10 WHEN 0 THEN 'room 3 is not in the table' ELSE 'HTTP 422: No such Courtroom' END
    RETURNING 1)
SELECT count(*) FROM d`)
	return w
}

const countFailed = `SELECT count(*) FROM outbox.delivery WHERE state = 'failed'`

func TestALargeSetIsShownByGroups(t *testing.T) {
	w := manyFailed(t, 1300)
	operator := w.as(roleOperator)
	r := operator.run("requeue", "--sync", "CourtCalendarSync", "--all", "--dry-run").wants(t, 0,
		"failed deliveries to CourtCalendarSync: 1300 as of 2", "the oldest since 2", "1300 deliveries would be requeued; nothing was changed", "the first 20; all of them: --output jsonl")
	if !regexp.MustCompile(`(?m)^CourtCalendarSync +permanent +1170$`).MatchString(r.stdout) || !regexp.MustCompile(`(?m)^CourtCalendarSync +mapping +130$`).MatchString(r.stdout) ||
		strings.Count(r.stdout, "\n") != 26 {
		t.Errorf("stdout is\n%s", r.stdout)
	}
	if n := strings.Count(operator.run("requeue", "--all", "--dry-run", "-o", "jsonl").wants(t, 0).stdout, "\n"); n != 1300 {
		t.Errorf("%d lines, want 1300", n)
	}
	if rows := decode[[]operate.Delivery](t, operator.run("requeue", "--class", "mapping", "--dry-run", "-o", "json").wants(t, 0)); len(rows) != 130 {
		t.Errorf("%d objects, want 130", len(rows))
	}
	r = operator.run("requeue", "--error", "no such courtROOM", "--reason", "the court has added it", "--actor", "maria").wants(t, 0, "1170 deliveries requeued: relays send them as soon as one serves")
	if !regexp.MustCompile(`(?m)^CourtCalendarSync +permanent +1170$`).MatchString(r.stdout) {
		t.Errorf("stdout is\n%s", r.stdout)
	}
	if n := ask[int](w, `SELECT count(*) FROM outbox.delivery_log WHERE outcome = 'requeued' AND reason = 'the court has added it' AND actor LIKE '%/maria'`); n != 1170 {
		t.Errorf("%d in the log, want 1170", n)
	}
	rows := decode[[]operate.Delivery](t, operator.run("discard", "--all", "--reason", "x", "-o", "json").wants(t, 0))
	if len(rows) != 130 || rows[0].State != "failed" || ask[int](w, countFailed) != 0 {
		t.Errorf("%d discarded", len(rows))
	}
}

func TestMistakesInSetsAreUsageErrors(t *testing.T) {
	w := newWorld(t)
	for line, want := range map[string]string{
		"requeue --all --rate 50":                              "such as 20/s, 600/m or 1000/h",
		"requeue --until 18:00":                                "want a time with its zone",
		"requeue --until 2027-01-31T08:00:00Z --older-than 1h": "none of the others",
		"requeue --as-of yesterday --all":                      "want a time with its zone",
		"replay --error x --reason r":                          "unknown flag: --error",
		"requeue --error x --all":                              "--all allows no filter except --sync",
		"requeue --force --all":                                "unknown flag: --force",
	} {
		w.run(strings.Fields(line)...).wants(t, exitUsage, want)
	}
	w.run("requeue", "--error", strings.Repeat("x", longestErrorText+1)).wants(t, exitUsage, "--error has 2001 bytes", "at most 2000")
	w.run("requeue", "--all", "--as-of", "2999-01-01T00:00:00Z").wants(t, exitFailed, "a set cannot be of 2999-01-01T00:00:00Z, because the database's clock says")
}

func TestUntilSelectsByTheTimeOfTheFailure(t *testing.T) {
	w, h1, _, _, _ := troubled(t)
	after := time.Now().Format(time.RFC3339Nano)
	w.run("requeue", "--until", "2020-01-01T00:00:00Z", "--dry-run").wants(t, 0, "no failed delivery to requeue")
	w.run("requeue", "--until", after, "--dry-run").wants(t, 0, "2 deliveries would be requeued")
	w.run("replay", "--until", after, "--dry-run").wants(t, 0, h1, "1 delivery would be replayed", "delivered at 2")
}

var asOf = regexp.MustCompile(`--as-of (\S+)`)

func TestAStoppedRepairSaysHowToGoOn(t *testing.T) {
	w := manyFailed(t, 50)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out, in := io.Pipe()
	var stderr bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"requeue", "--all", "--rate", "1/m", "-o", "jsonl"}, w.lookup, strings.NewReader(""), in, &stderr)
		in.Close()
	}()
	if _, err := out.Read(make([]byte, 1<<20)); err != nil { // the first page
		t.Fatal(err)
	}
	stop()
	_, _ = io.Copy(io.Discard, out)
	r := result{code: <-code, stderr: stderr.String()}.wants(t, exitFailed, "lockstep: stopped: 1 of 50 requeued, the others were not changed; to continue, run the same command with --as-of 2")
	if n := ask[int](w, countFailed); n != 49 {
		t.Errorf("%d are failed, want 49", n)
	}
	// What failed meanwhile is not in the set.
	ask[int](w, `WITH d AS (UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity' WHERE ctid IN (SELECT ctid FROM outbox.delivery WHERE state = 'pending' LIMIT 1) RETURNING event_id, sync, key, event_seq, revision),
	l AS (INSERT INTO outbox.delivery_log (sync, event_id, key, attempt, outcome, event_seq, revision, claim, relay) SELECT sync, event_id, key, 1, 'failed', event_seq, revision, gen_random_uuid(), 'relay-1' FROM d RETURNING 1) SELECT count(*) FROM l`)
	w.run("requeue", "--all", "--as-of", asOf.FindStringSubmatch(r.stderr)[1]).wants(t, 0, "49 deliveries requeued")
	if n := ask[int](w, countFailed); n != 1 {
		t.Errorf("%d are failed, want 1", n)
	}
}

func TestABarFitsIntoTheTerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := (&app{stderr: io.Discard, stdout: io.Discard}).newProgress("requeued", 100_000)
		time.Sleep(2 * time.Second)
		p.add(1700)
		for columns, want := range map[int]string{
			80: "[........................] requeued 1700 of 100000, 850/s, 1m56s left",
			60: "requeued 1700 of 100000, 850/s, 1m56s left",
			20: "requeued 1700 of 10",
			0:  "",
		} {
			if got := p.bar(columns); got != want {
				t.Errorf("%d columns: %q, want %q", columns, got, want)
			}
		}
	})
}

func TestWithoutATerminalALineSaysTheProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stderr bytes.Buffer
		p := (&app{stderr: &stderr, stdout: io.Discard}).newProgress("replayed", 100)
		for range 50 {
			time.Sleep(time.Second)
			p.add(2)
		}
		p.end()
		want := ""
		for _, n := range []int{20, 40, 60, 80} {
			want += fmt.Sprintf("replayed %d of 100, 2.0/s, %ds left\n", n, (100-n)/2)
		}
		if !strings.HasPrefix(stderr.String(), want) {
			t.Errorf("got\n%s, want\n%s", stderr.String(), want)
		}
	})
}

// A larger replay leaves out what would undo a newer state, and says so.
func TestAReplayOfManyLeavesOutWhatIsOld(t *testing.T) {
	w := newWorld(t)
	older, other := w.emit("H-1", `{"hearingId":"H-1"}`), w.emit("H-2", `{"hearingId":"H-2"}`)
	w.relayUntil(nothingOpen)
	newer := w.emit("H-1", `{"hearingId":"H-1 moved"}`)
	const says = "1 older event left out, because the receiver got a newer one of the key, or will get it, such as: "
	r := w.run("replay", "--all", "--dry-run").wants(t, 0, other, "1 delivery would be replayed", says, "The keys: H-1. To send them nevertheless, add --force")
	if strings.Contains(r.stdout, older) {
		t.Errorf("the older event would be sent: %s", r.stdout)
	}
	w.run("replay", "--since", "1h", "--reason", "x").wants(t, 0, "1 delivery replayed", says)
	w.run("replay", "--since", "1h", "--reason", "x").wants(t, exitFailed, "nothing was changed: "+says, newer)
	w.run("replay", "--since", "1h", "--reason", "x", "--force").wants(t, 0, older, "1 delivery replayed")
}

package outbox_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/outboxtest"
	"github.com/hms-mkt/lockstep/internal/pgtest"
	"github.com/hms-mkt/lockstep/internal/waiting"
	"github.com/hms-mkt/lockstep/outbox"
)

// The function is called while a writer inserts an event. It must not fail, whatever the payload has.
func TestTimesOfPayloads(t *testing.T) {
	d := outboxtest.Connect(t, pgtest.New(t))
	d.Do("SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'")
	long := strings.Repeat("2", 100_000)
	for value, want := range map[string]string{
		`"2027-07-01T09:30:00Z"`:          "2027-07-01 09:30:00",
		`"2027-07-01T09:30:00-04:00"`:     "2027-07-01 13:30:00",
		`"2027-07-01T09:30:00+05:30"`:     "2027-07-01 04:00:00",
		`"2027-07-01T09:30:00+0000"`:      "2027-07-01 09:30:00",
		`"2027-07-01T09:30:00+02"`:        "2027-07-01 07:30:00",
		`"2027-07-01t09:30:00.25z"`:       "2027-07-01 09:30:00.25",
		`"2027-07-01T09:30Z"`:             "2027-07-01 09:30:00",
		`"2027-07-01 09:30"`:              "2027-07-01 13:30:00",
		`"2027-07-01T09:30:00.123456789"`: "2027-07-01 13:30:00.123457",
		`"2027-07-01"`:                    "2027-07-01 04:00:00",
		`"2027-01-01"`:                    "2027-01-01 05:00:00",
		`"2028-02-29"`:                    "2028-02-29 05:00:00",
		`"2027-06-30T23:59:60Z"`:          "2027-07-01 00:00:00",
		`1800000000`:                      "2027-01-15 08:00:00",
		`1800000000.5`:                    "2027-01-15 08:00:00.5",
		`1800000000500`:                   "2027-01-15 08:00:00.5",
		`"9999-12-31T23:59:59-23:59"`:     "10000-01-01 23:58:59",
		`"0001-01-01T00:00:00+23:59"`:     "0001-12-31 00:01:00 BC",
		// The clocks of New York skip 02:30 on 14 March 2027, and show 01:30 twice on 7 November 2027.
		`"2027-03-14T02:30:00"`: "2027-03-14 07:30:00",
		`"2027-11-07T01:30:00"`: "2027-11-07 06:30:00",

		`"2027-02-30"`: "", `"2027-02-29T10:00:00Z"`: "", `"2027-13-01"`: "", `"2027-00-10"`: "", `"2027-04-31"`: "", `"2027-04-00"`: "",
		`"0000-01-01"`: "", `"10000-01-01"`: "", `"-2027-01-01"`: "", `"2027-01-01T24:00:00Z"`: "", `"2027-01-01T10:60:00Z"`: "",
		`"2027-01-01T10:00:61Z"`: "", `"2027-01-01T10"`: "", `"2027-01-01T10:00:00+24:00"`: "", `"2027-01-01Z"`: "",
		`"2027-01-01T10:00:00 America/New_York"`: "", `"2027-01-01\n"`: "", `" 2027-01-01"`: "", `"now"`: "", `"infinity"`: "", `"epoch"`: "", `""`: "",
		`"٢٠٢٧-01-01"`: "", `"1800000000"`: "", `20270131`: "", `0`: "", `-1`: "", `1e131071`: "", `1e-16000`: "", `253402300800000`: "",
		`null`: "", `true`: "", `[]`: "", `["2027-01-01"]`: "", `{"a": "2027-01-01"}`: "", `"` + long + `"`: "", long: "",
	} {
		got := outboxtest.One[string](d, `SELECT coalesce(to_char(outbox.read_time($1::text::jsonb, 'America/New_York') AT TIME ZONE 'UTC',
			'YYYY-MM-DD HH24:MI:SS.US BC'), '')`, value)
		if want == "" && got != "" || want != "" && !sameTime(got, want) {
			t.Errorf("%.60s: got %q, want %q", value, got, want)
		}
	}
	if got := outboxtest.One[bool](d, `SELECT outbox.read_time('"2027-01-01"', 'Mars/Olympus') IS NULL`); !got {
		t.Error("a zone that the server does not know does not give null")
	}
}

// sameTime compares a text with microseconds and an era with a shorter one.
func sameTime(got, want string) bool {
	era := " AD"
	if rest, ok := strings.CutSuffix(want, " BC"); ok {
		want, era = rest, " BC"
	}
	whole, fraction, _ := strings.Cut(want, ".")
	return got == fmt.Sprintf("%s.%-6s", whole, fraction)[:len(whole)+1]+(fraction + "000000")[:6]+era
}

func times(d outboxtest.Session, key string) string {
	d.T.Helper()
	return strings.Join(outboxtest.List[string](d, `
SELECT coalesce(to_char(needed_by AT TIME ZONE 'UTC', 'MM-DD HH24:MI'), 'none') || ' '
       || CASE WHEN escalates_at IS NULL THEN 'never' WHEN escalates_at = created_at + interval '1 minute' THEN 'soon'
               WHEN escalates_at = created_at + interval '2 hours' THEN 'after' WHEN escalates_at = needed_by - interval '1 day' THEN 'before' ELSE 'at ' || escalates_at END
  FROM outbox.delivery WHERE key = $1 ORDER BY event_seq`, key), ", ")
}

// Each statement that adds deliveries stores the times of the policy, and a writer is never refused.
func TestDeliveriesKnowWhenTheyEscalate(t *testing.T) {
	url := pgtest.New(t)
	d, w := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_writer")
	r := outboxtest.OpenRelay(t, url)
	write := func(key, payload string) {
		t.Helper()
		w.Do("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', $1, $2)", key, payload)
	}
	write("early", `{"scheduledAt": "2020-01-01"}`)
	policy := outbox.Escalation{At: []string{"scheduledAt", "was.at"}, Zone: "America/New_York", Before: 24 * time.Hour, After: 2 * time.Hour}
	reg := outbox.Registration{Name: "court", Patterns: []string{"*"}, OnFailed: "block", Escalate: policy}
	_, err := r.Register(t.Context(), []outbox.Registration{reg})
	outboxtest.Must(t, err)
	for b := r.NewBackfill("court"); ; {
		complete, _, err := b.Step(t.Context(), 1000)
		outboxtest.Must(t, err)
		if complete {
			break
		}
	}
	if got := times(d, "early"); got != "01-01 05:00 soon" {
		t.Errorf("backfill: %s", got)
	}
	year := time.Now().Year() + 1
	far := fmt.Sprintf("%d-07-01T09:00", year)
	near := time.Now().Add(25 * time.Hour).UTC()
	for _, tc := range []struct{ key, payload, want string }{
		{"far", `{"scheduledAt": "` + far + `"}`, "07-01 13:00 after"},
		{"moved", `{"scheduledAt": "` + far + `", "was": {"at": "` + near.Format(time.RFC3339) + `"}}`, near.Format("01-02 15:04") + " before"},
		{"past", `{"scheduledAt": "2020-01-01"}`, "01-01 05:00 soon"},
		{"none", `{}`, "none after"},
		{"broken", `{"scheduledAt": "30 February", "was": []}`, "none after"},
	} {
		write(tc.key, tc.payload)
		if got := times(d, tc.key); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.key, got, tc.want)
		}
	}
	// Replay and repair.
	event := outboxtest.One[string](d, "SELECT id::text FROM outbox.event WHERE key = 'far'")
	d.Deliver(event)
	d.Do("SELECT outbox.replay('court', $1, 'again')", event)
	if got := times(d, "far"); got != "07-01 13:00 after" {
		t.Errorf("replay: %s", got)
	}
	d.Past("INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', 'missed', $1)", `{"scheduledAt": "`+far+`"}`)
	d.Do("SELECT outbox.find_missed(0, 1000)")
	d.Do("SELECT outbox.repair()")
	if got := times(d, "missed"); got != "07-01 13:00 after" {
		t.Errorf("repair: %s", got)
	}
	// A changed policy applies to open deliveries.
	reg.Escalate = outbox.Escalation{}
	changed, err := r.Apply(t.Context(), reg)
	outboxtest.Must(t, err)
	if got := times(d, "past"); !changed || got != "none never" {
		t.Errorf("without a policy: %s (changed: %t)", got, changed)
	}
	write("later", `{"scheduledAt": "`+far+`"}`)
	if got := times(d, "later"); got != "none never" {
		t.Errorf("without a policy: %s", got)
	}
	reg.Escalate = policy
	_, err = r.Apply(t.Context(), reg)
	outboxtest.Must(t, err)
	for key, want := range map[string]string{"later": "07-01 13:00 after", "past": "01-01 05:00 soon", "none": "none after"} {
		if got := times(d, key); got != want {
			t.Errorf("%s, policy again: got %s, want %s", key, got, want)
		}
	}
	if changed, err = r.Apply(t.Context(), reg); err != nil || changed {
		t.Errorf("applied again: changed %t, %v", changed, err)
	}
	reg.Escalate.Zone = "Mars/Olympus"
	if _, err = r.Apply(t.Context(), reg); err == nil || !strings.Contains(err.Error(), `sync "court": escalate.zone "Mars/Olympus" is not a time zone of the database server`) {
		t.Errorf("got %v", err)
	}
	// The log has the change.
	if got := outboxtest.One[string](d, "SELECT reason FROM outbox.delivery_log WHERE outcome = 'sync_changed' ORDER BY id DESC LIMIT 1"); got != "escalate: at scheduledAt, was.at in America/New_York, before 24:00:00, after 02:00:00" {
		t.Errorf("log: %s", got)
	}
}

// A writer that does not see the change may commit at any time.
func TestAChangedPolicyCountsForWritersThatDidNotSeeIt(t *testing.T) {
	url := pgtest.New(t)
	d, w := outboxtest.Connect(t, url), outboxtest.As(t, url, "outbox_writer")
	r := outboxtest.OpenRelay(t, url)
	reg := outbox.Registration{Name: "court", Patterns: []string{"*"}, OnFailed: "block"}
	_, err := r.Register(t.Context(), []outbox.Registration{reg})
	outboxtest.Must(t, err)
	write := func(key string) {
		t.Helper()
		w.Do("BEGIN")
		w.Do(`INSERT INTO outbox.event (type, key, payload) VALUES ('scheduling:updated', $1, '{"scheduledAt": "2027-07-01T09:00:00Z"}')`, key)
	}
	write("H-1")
	reg.Escalate = outbox.Escalation{At: []string{"scheduledAt"}, Before: 24 * time.Hour}
	if _, err = r.Apply(t.Context(), reg); err == nil || !strings.Contains(err.Error(), "1 transaction(s) are open that may not have seen the change") {
		t.Fatalf("got %v", err)
	}
	w.Do("COMMIT")
	if got := times(d, "H-1"); got != "none never" {
		t.Fatalf("the writer has seen the change: %s", got)
	}
	_, err = r.Apply(t.Context(), reg)
	outboxtest.Must(t, err)
	if got := times(d, "H-1"); got != "07-01 09:00 before" {
		t.Errorf("the next call: %s", got)
	}
	write("H-2")
	reg.Escalate.Before = 0
	reg.Escalate.After = 2 * time.Hour
	applied := make(chan error, 1)
	go func() {
		_, err := r.Apply(t.Context(), reg)
		applied <- err
	}()
	waiting.For(t, time.Minute, "the policy is changed", func() bool {
		return outboxtest.One[bool](d, "SELECT escalate_after IS NOT NULL FROM outbox.sync")
	})
	w.Do("COMMIT")
	outboxtest.Must(t, <-applied)
	if got := times(d, "H-2"); got != "07-01 09:00 after" {
		t.Errorf("while Apply waits: %s", got)
	}
	if changed, err := r.Apply(t.Context(), reg); err != nil || changed {
		t.Errorf("applied again: changed %t, %v", changed, err)
	}
}

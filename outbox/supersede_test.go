package outbox_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hms-mkt/lockstep/outbox"
)

// keyLine is the lane of one key in a sync whose filter leaves out events of
// type "unwanted".
type keyLine struct {
	*desk
	key     string
	before  int64          // the last number drawn before; events are numbered from there
	failing map[int64]bool // events that the receiver refuses for good
}

func wanted(e outbox.Event) bool { return e.Type != "unwanted" }

// write adds an event. The first one has number 1. Replays have numbers too.
func (l *keyLine) write(typ string) {
	l.t.Helper()
	l.exec(`INSERT INTO outbox.event (type, key, payload) VALUES ($1, $2, '{}')`, typ, l.key)
}

// late commits the delivery of an event after do has run.
func (l *keyLine) late(n int64, do func()) {
	l.t.Helper()
	const columns = `sync, key, event_seq, event_id, state, due_at, created_at, total_attempts, revision`
	l.exec(`CREATE TABLE late AS SELECT * FROM outbox.delivery WHERE event_seq = $1::text::bigint`, fmt.Sprint(l.before+n))
	l.exec(`DELETE FROM outbox.delivery WHERE event_seq = $1`, l.before+n)
	do()
	l.exec(`INSERT INTO outbox.delivery (` + columns + `) SELECT ` + columns + ` FROM late`)
	l.exec(`DROP TABLE late`)
}

// fails writes an event, which the receiver refuses and which fails.
func (l *keyLine) fails(n int64) {
	l.t.Helper()
	l.failing[n] = true
	l.write("x")
	l.run()
}

func (l *keyLine) operator(function string, n int64) {
	l.t.Helper()
	l.exec(operatorCall(function), l.before+n)
}

func operatorCall(function string) string {
	return fmt.Sprintf(`SELECT outbox.%s('%s', event_id => (SELECT id FROM outbox.event WHERE seq = $1), reason => 'r')`, function, sync)
}

// open calls an operator's function in a transaction, and returns how to end it.
func (l *keyLine) open(function string, n int64) (end func(how string)) {
	l.t.Helper()
	tx, err := l.pool.BeginTx(l.t.Context(), pgx.TxOptions{})
	if err == nil {
		_, err = tx.Exec(l.t.Context(), operatorCall(function), l.before+n)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = tx.Rollback(l.t.Context()) })
	return func(how string) {
		l.t.Helper()
		if _, err := tx.Exec(l.t.Context(), how); err != nil {
			l.t.Fatal(err)
		}
		l.afterAMoment()
	}
}

// run runs a relay until it finds nothing more to do.
func (l *keyLine) run() {
	l.t.Helper()
	for idle := 0; idle < 3; idle++ {
		l.known(l.a).CheckAgainNow()
		for work := l.poll(l.a, 9, time.Minute).Deliveries; len(work) > 0; {
			idle = 0
			var results []outbox.Result
			for _, d := range work {
				r := outbox.Result{Delivery: d, Outcome: outbox.Delivered, Attempt: true, Stay: true}
				switch {
				case d.Event.Type == "unwanted":
					r = outbox.Result{Delivery: d, Outcome: outbox.Filtered, Stay: true}
				case l.failing[d.Event.Seq-l.before]:
					r.Outcome, r.Failed, r.Class = outbox.Failed, true, "permanent"
				}
				results = append(results, r)
			}
			r := l.a.Record(l.t.Context(), sync, results)
			if r.Err != nil {
				l.t.Fatal(r.Err)
			}
			work = r.Next
		}
	}
}

// state returns the open deliveries, in the order of the lane, and those that have ended.
func (l *keyLine) state() string {
	l.t.Helper()
	return l.text(fmt.Sprintf(`
SELECT concat_ws(' | ',
       (SELECT string_agg(e.seq - %[2]d || ' ' || d.state, ', ' ORDER BY d.event_seq)
          FROM outbox.open_delivery AS d JOIN outbox.event AS e ON e.id = d.event_id
         WHERE d.key = '%[1]s'),
       (SELECT string_agg(e.seq - %[2]d || ' ' || g.outcome, ', ' ORDER BY g.id)
          FROM outbox.delivery_log AS g JOIN outbox.event AS e ON e.id = g.event_id
         WHERE g.key = '%[1]s' AND g.outcome IN ('delivered', 'filtered', 'superseded', 'discarded')))`, l.key, l.before))
}

// rows returns all rows about the lane, with xmin and xmax.
func (l *keyLine) rows() string {
	l.t.Helper()
	return l.text(fmt.Sprintf(`
SELECT coalesce((SELECT string_agg(concat_ws(' ', ctid, xmin, xmax, state), ', ' ORDER BY event_seq) FROM outbox.delivery WHERE key = '%[1]s'), 'none')
       || coalesce((SELECT concat_ws(' ', ', lane', ctid, xmin, xmax) FROM outbox.lane WHERE key = '%[1]s'), ', no lane')`, l.key))
}

// The newest state reaches the receiver, or its failure is visible to operators.
func TestOnlyANewerEventThatIsSentSupersedes(t *testing.T) {
	tests := []struct {
		name             string
		do               func(l *keyLine)
		block, supersede string // what is open | what has ended
	}{
		{
			"a newer event", func(l *keyLine) { l.fails(1); l.write("x") },
			"1 failed, 2 queued", "1 superseded, 2 delivered",
		},
		{
			"a newer event that waits already", func(l *keyLine) { l.failing[1] = true; l.write("x"); l.write("x") },
			"1 failed, 2 queued", "1 superseded, 2 delivered",
		},
		{
			"a newer event that fails too", func(l *keyLine) { l.fails(1); l.fails(2) },
			"1 failed, 2 queued", "2 failed | 1 superseded",
		},
		{
			"a filtered newer event", func(l *keyLine) { l.fails(1); l.write("unwanted") },
			"1 failed, 2 queued", "1 failed, 2 queued",
		},
		{
			"a filtered newer event that waits already", func(l *keyLine) { l.failing[1] = true; l.write("x"); l.write("unwanted") },
			"1 failed, 2 queued", "1 failed, 2 queued",
		},
		{
			"a filtered newer event, then one that is sent", func(l *keyLine) { l.fails(1); l.write("unwanted"); l.run(); l.write("x") },
			"1 failed, 2 queued, 3 queued", "1 superseded, 2 filtered, 3 delivered",
		},
		{
			"one that is sent, then a filtered one", func(l *keyLine) { l.failing[1] = true; l.write("x"); l.write("x"); l.write("unwanted") },
			"1 failed, 2 queued, 3 queued", "1 superseded, 2 delivered, 3 filtered",
		},
		{
			"more filtered ones than one look judges", func(l *keyLine) {
				l.failing[1] = true
				l.write("x")
				l.exec(`INSERT INTO outbox.event (type, key, payload)
				        SELECT CASE n WHEN 2 THEN 'x' ELSE 'unwanted' END, $1, '{}' FROM generate_series(2, 50) AS n`, l.key)
			},
			"1 failed, " + each(2, 50, "queued"), "1 superseded, 2 delivered, " + each(3, 50, "filtered"),
		},
		{
			"a replay of an older event", func(l *keyLine) { l.write("x"); l.run(); l.fails(2); l.operator("replay", 1) },
			"2 failed, 1 queued | 1 delivered", "2 failed, 1 queued | 1 delivered",
		},
		{
			"a replay of an older event that waits already", func(l *keyLine) {
				l.write("x")
				l.run()
				l.failing[2] = true
				l.write("x")
				l.operator("replay", 1)
			},
			"2 failed, 1 queued | 1 delivered", "2 failed, 1 queued | 1 delivered",
		},
		{
			"a replay of an older event, then a newer event", func(l *keyLine) {
				l.write("x")
				l.run()
				l.fails(2)
				l.operator("replay", 1)
				l.run()
				l.write("x")
			},
			"2 failed, 1 queued, 4 queued | 1 delivered", "1 delivered, 2 superseded, 1 delivered, 4 delivered",
		},
		{
			"a replay of the newest event, for a failed replay of an older one", func(l *keyLine) {
				l.write("x")
				l.write("x")
				l.run()
				l.failing[1] = true
				l.operator("replay", 1)
				l.run()
				l.operator("replay", 2)
			},
			"1 failed, 2 queued | 1 delivered, 2 delivered", "1 delivered, 2 delivered, 1 superseded, 2 delivered",
		},
		{
			// An attempt of the replay may have put the receiver back, although it was not answered.
			"a newer event that was sent before", func(l *keyLine) {
				l.write("x")
				l.write("x")
				l.run()
				l.failing[1] = true
				l.operator("replay", 1)
			},
			"1 failed | 1 delivered, 2 delivered", "1 failed | 1 delivered, 2 delivered",
		},
		{
			"a failed replay of the newest event, and a replay of an older one", func(l *keyLine) {
				l.write("x")
				l.write("x")
				l.run()
				l.failing[2] = true
				l.operator("replay", 2)
				l.run()
				l.operator("replay", 1)
			},
			"2 failed, 1 queued | 1 delivered, 2 delivered", "2 failed, 1 queued | 1 delivered, 2 delivered",
		},
		{
			"a requeue of the newest event, which a replay of an older one waits for", func(l *keyLine) {
				l.write("x")
				l.run()
				l.fails(2)
				l.operator("replay", 1)
				l.run()
				l.failing[2] = false
				l.operator("requeue", 2)
			},
			"1 delivered, 2 delivered, 1 delivered", "1 delivered, 2 delivered, 1 delivered",
		},
		{
			"a requeue that fails again", func(l *keyLine) { l.fails(1); l.write("unwanted"); l.run(); l.operator("requeue", 1) },
			"1 failed, 2 queued", "1 failed, 2 queued",
		},
		{
			"a discard of the failed one before a filtered one", func(l *keyLine) { l.fails(1); l.write("unwanted"); l.run(); l.operator("discard", 1) },
			"1 discarded, 2 filtered", "1 discarded, 2 filtered",
		},
		{
			"a discard of the filtered one", func(l *keyLine) {
				l.fails(1)
				l.write("unwanted")
				l.run()
				l.operator("discard", 2)
				l.run()
				l.write("unwanted")
			},
			"1 failed, 3 queued | 2 discarded", "1 failed, 3 queued | 2 discarded",
		},
		{
			"a newer event that is discarded in an open transaction", func(l *keyLine) {
				l.failing[1] = true
				l.fails(1)
				l.write("x")
				end := l.open("discard", 2)
				l.run()
				end("COMMIT")
			},
			"1 failed | 2 discarded", "1 failed | 2 discarded",
		},
		{
			"the newest of two, of which one is filtered, is discarded in an open transaction", func(l *keyLine) {
				l.fails(1)
				l.write("unwanted")
				l.write("x")
				end := l.open("discard", 3)
				l.run()
				end("COMMIT")
			},
			"1 failed, 2 queued | 3 discarded", "1 failed, 2 queued | 3 discarded",
		},
		{
			"a discard of the newer event that is rolled back", func(l *keyLine) {
				l.fails(1)
				l.write("x")
				end := l.open("discard", 2)
				l.run()
				end("ROLLBACK")
			},
			"1 failed, 2 queued", "1 superseded, 2 delivered",
		},
		{
			"an open requeue of the failed one", func(l *keyLine) {
				l.fails(1)
				end := l.open("requeue", 1)
				l.write("x")
				l.run()
				l.failing[1] = false
				end("COMMIT")
			},
			"1 delivered, 2 delivered", "1 delivered, 2 delivered",
		},
		{
			"an open requeue of the failed one that is rolled back", func(l *keyLine) {
				l.fails(1)
				end := l.open("requeue", 1)
				l.write("x")
				l.run()
				end("ROLLBACK")
			},
			"1 failed, 2 queued", "1 superseded, 2 delivered",
		},
		{
			"an open requeue before a filtered event, rolled back", func(l *keyLine) {
				l.fails(1)
				end := l.open("requeue", 1)
				l.write("unwanted")
				l.run()
				end("ROLLBACK")
			},
			"1 failed, 2 queued", "1 failed, 2 queued",
		},
		{
			"an older event that comes late in front of a failed one, and fails", func(l *keyLine) {
				l.failing[1], l.failing[2] = true, true
				l.write("x")
				l.write("x")
				l.late(1, l.run)
			},
			"1 failed, 2 failed", "2 failed | 1 superseded",
		},
		{
			"a newer event that comes late in front of a failed replay", func(l *keyLine) {
				l.write("x")
				l.run()
				l.failing[1] = true
				l.write("x")
				l.late(2, func() { l.operator("replay", 1); l.run() })
			},
			"1 failed | 1 delivered, 2 delivered", "1 failed | 1 delivered, 2 delivered",
		},
	}
	for _, policy := range []string{"block", "supersede"} {
		d := newDesk(t, outbox.Registration{Name: sync, Patterns: []string{"*"}, OnFailed: policy})
		for _, tt := range tests {
			t.Run(policy+"/"+tt.name, func(t *testing.T) {
				l := &keyLine{desk: &desk{t: t, pool: d.pool, a: d.a, b: d.b}, key: tt.name, failing: map[int64]bool{}}
				if err := d.pool.QueryRow(t.Context(), `SELECT nextval(pg_get_serial_sequence('outbox.event', 'seq'))`).Scan(&l.before); err != nil {
					t.Fatal(err)
				}
				tt.do(l)
				l.run()
				want := tt.block
				if policy == "supersede" {
					want = tt.supersede
				}
				if got := l.state(); got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
				before := l.rows()
				l.run()
				if after := l.rows(); after != before {
					t.Errorf("waiting rows are changed again and again:\nbefore %s\nafter  %s", before, after)
				}
			})
		}
	}
}

// each is an outcome for every event of a range.
func each(from, to int, outcome string) string {
	var list []string
	for n := from; n <= to; n++ {
		list = append(list, fmt.Sprint(n, " ", outcome))
	}
	return strings.Join(list, ", ")
}

// After a change of the policy, relays judge deliveries that failed before it, each with its own
// filter.
func TestApplyingSupersedeClosesFailedDeliveriesWithANewerEvent(t *testing.T) {
	d := newDesk(t)
	for _, key := range []string{"filtered", "sent"} {
		d.exec(`INSERT INTO outbox.event (type, key, payload) VALUES ('x', $1, '{}')`, key)
		d.exec(`INSERT INTO outbox.event (type, key, payload) VALUES (CASE $1 WHEN 'sent' THEN 'x' ELSE 'unwanted' END, $1, '{}')`, key)
	}
	var failed []outbox.Result
	for _, c := range d.claim(d.a) {
		failed = append(failed, outbox.Result{Delivery: c, Outcome: outbox.Failed, Failed: true, Attempt: true})
	}
	if r := d.a.Record(t.Context(), sync, failed); r.Err != nil {
		t.Fatal(r.Err)
	}
	if got := d.claim(d.a); got != nil || d.states() != "failed queued failed queued" {
		t.Fatalf("claimed %v, states: %s", numbers(got), d.states())
	}
	changed, err := d.a.Apply(t.Context(), outbox.Registration{Name: sync, Patterns: []string{"*"}, OnFailed: "supersede"})
	if err != nil || !changed {
		t.Fatalf("apply: %t, %v", changed, err)
	}
	if got := numbers(d.claim(d.a)); !slices.Equal(got, []int64{4}) {
		t.Errorf("claimed %v after the change, want the fourth", got)
	}
	if got := d.states(); got != "failed queued sending" {
		t.Errorf("states: %s, want failed queued of the one and sending of the other", got)
	}
	if got := d.text(`SELECT string_agg(key, ', ') FROM outbox.delivery_log WHERE outcome = 'superseded'`); got != "sent" {
		t.Errorf("superseded: %s, want sent", got)
	}
}

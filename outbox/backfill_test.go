package outbox_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/hms-mkt/lockstep/outbox"
)

// Patterns change while writers of every isolation level are open, and relays backfill,
// deliver and die. If the sync took the type of an event from its insertion to the end, the
// event is sent. No event is sent twice. Events of a key and a type are sent in order.
func TestPatternsChangeWhileWritersAreOpen(t *testing.T) {
	tune(t, "rapid.checks", "25")
	tune(t, "rapid.steps", "40")
	desk := newDesk(t)
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		w := &widener{desk: desk, t: t, sync: fmt.Sprint("s", round), patterns: []string{"a"}, locked: map[string]bool{}}
		w.apply("now", w.patterns)
		w.fills = []*outbox.Backfill{w.a.NewBackfill(w.sync), w.b.NewBackfill(w.sync)}
		w.complete()
		defer w.close()
		t.Repeat(map[string]func(*rapid.T){
			"write 1": w.write, "write 2": w.write, "write 3": w.write, "end": w.end, "change": w.change,
			"step 1": w.step, "step 2": w.step, "relay dies": w.die, "deliver 1": w.deliver, "deliver 2": w.deliver,
		})
		w.finish()
	})
}

type widener struct {
	*desk
	t        *rapid.T
	sync     string
	patterns []string
	fills    []*outbox.Backfill
	arrivals outbox.Arrivals
	open     []*openWriter
	locked   map[string]bool // keys of open writers: each changes its own row of the key first
	events   []*written      // committed
	sent     []string
}

type openWriter struct {
	tx     pgx.Tx
	keys   []string
	events []*written
}

type written struct {
	id, key, typ string
	seq          int64
	taken        bool // by the patterns, ever since it was inserted
}

var widerPatterns = [][]string{{"a"}, {"a", "b"}, {"a", "c"}, {"*"}, {"b"}}

func takes(patterns []string, typ string) bool {
	return slices.Contains(patterns, "*") || slices.Contains(patterns, typ)
}

func (w *widener) apply(from string, patterns []string) {
	_, err := w.a.Apply(w.t.Context(), outbox.Registration{Name: w.sync, Patterns: patterns, OnFailed: "block", From: from})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *widener) change(t *rapid.T) {
	w.patterns = pick(t, "patterns", widerPatterns)
	w.apply("", w.patterns)
	for _, o := range w.open {
		w.narrow(o.events)
	}
	w.narrow(w.events)
}

func (w *widener) narrow(events []*written) {
	for _, e := range events {
		e.taken = e.taken && takes(w.patterns, e.typ)
	}
}

// write inserts an event, in a transaction that may have begun long ago.
func (w *widener) write(t *rapid.T) {
	if len(w.open) == 0 || len(w.open) < 3 && rapid.Bool().Draw(t, "begins") {
		tx, err := w.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pick(t, "level", []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead})})
		if err != nil {
			t.Fatal(err)
		}
		w.open = append(w.open, &openWriter{tx: tx})
		if _, err := tx.Exec(t.Context(), `SELECT count(*) FROM outbox.sync`); err != nil {
			t.Fatal(err)
		}
		return
	}
	o := pick(t, "writer", w.open)
	key := fmt.Sprint(w.sync, "-", rapid.IntRange(1, 2).Draw(t, "key"))
	if w.locked[key] && !slices.Contains(o.keys, key) {
		t.SkipNow() // it would wait for the other
	}
	w.locked[key], o.keys = true, append(o.keys, key)
	e := &written{key: key, typ: pick(t, "type", []string{"a", "b", "c"})}
	// The type may be taken since a change that this transaction does not see: the backfill waits for it.
	e.taken = takes(w.patterns, e.typ)
	err := o.tx.QueryRow(t.Context(), `INSERT INTO outbox.event (type, key, payload) VALUES ($1, $2, '{}') RETURNING id, seq`, e.typ, e.key).Scan(&e.id, &e.seq)
	if err != nil {
		t.Fatal(err)
	}
	o.events = append(o.events, e)
}

func (w *widener) end(t *rapid.T) {
	if len(w.open) == 0 {
		t.SkipNow() // nobody writes
	}
	i := rapid.IntRange(0, len(w.open)-1).Draw(t, "writer")
	w.endOne(i, rapid.IntRange(0, 4).Draw(t, "rolls back") > 0)
}

func (w *widener) endOne(i int, commits bool) {
	o := w.open[i]
	w.open = slices.Delete(w.open, i, i+1)
	for _, key := range o.keys {
		delete(w.locked, key)
	}
	err := error(nil)
	if commits {
		err = o.tx.Commit(w.t.Context())
		w.events = append(w.events, o.events...)
	} else {
		err = o.tx.Rollback(w.t.Context())
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *widener) step(t *rapid.T) {
	if _, _, err := pick(t, "relay", w.fills).Step(t.Context(), pick(t, "page", []int{1, 5, 2000})); err != nil {
		t.Fatal(err)
	}
}

func (w *widener) die(t *rapid.T) {
	w.fills[rapid.IntRange(0, 1).Draw(t, "relay")] = w.a.NewBackfill(w.sync)
	w.arrivals = outbox.Arrivals{}
}

func (w *widener) deliver(t *rapid.T) { w.deliverSome() }

// deliverSome delivers all deliveries of two polls, and reports whether there were any.
func (w *widener) deliverSome() (some bool) {
	request := outbox.ClaimRequest{Sync: w.sync, Capacity: 9, Lanes: 9, Lease: time.Minute}
	for range 2 {
		w.arrivals.CheckAgainNow()
		c, err := w.a.Claim(w.t.Context(), request, &w.arrivals)
		if err == nil {
			err = w.a.Record(w.t.Context(), w.sync, c.Idle).Err
		}
		for work := c.Deliveries; err == nil && len(work) > 0; {
			some = true
			var results []outbox.Result
			for _, d := range work {
				w.sent = append(w.sent, d.Event.ID)
				results = append(results, outbox.Result{Delivery: d, Outcome: outbox.Delivered, Attempt: true, Stay: true})
			}
			r := w.a.Record(w.t.Context(), w.sync, results)
			err, work = r.Err, r.Next
		}
		if err == nil {
			_, err = w.a.ReleaseBackfilled(w.t.Context(), w.sync, 1000)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return some
}

func (w *widener) complete() {
	for end := time.Now().Add(time.Minute); ; {
		complete, _, err := w.fills[0].Step(w.t.Context(), 2000)
		if err != nil || complete {
			if err != nil {
				w.t.Fatal(err)
			}
			return
		}
		if time.Now().After(end) {
			w.t.Fatal("the backfill does not come to its end")
		}
	}
}

// finish ends all writers and delivers everything.
func (w *widener) finish() {
	for len(w.open) > 0 {
		w.endOne(0, true)
	}
	w.complete()
	for w.deliverSome() {
	}
	last := map[string]int64{}
	for _, id := range w.sent {
		i := slices.IndexFunc(w.events, func(e *written) bool { return e.id == id })
		if i < 0 {
			continue // of another round: its writer was open when this sync was made
		}
		e := w.events[i]
		if line := e.key + " " + e.typ; e.seq <= last[line] {
			w.t.Fatalf("%s of %s, type %s, is sent after event %d, or twice", id, e.key, e.typ, last[line])
		} else {
			last[line] = e.seq
		}
	}
	for _, e := range w.events {
		if e.taken && !slices.Contains(w.sent, e.id) {
			w.t.Fatalf("event %d of %s, type %s, is missed", e.seq, e.key, e.typ)
		}
	}
}

func (w *widener) close() {
	for _, o := range w.open {
		_ = o.tx.Rollback(w.desk.t.Context())
	}
}

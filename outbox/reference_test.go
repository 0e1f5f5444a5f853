package outbox_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/hms-mkt/lockstep/outbox"
)

// answered records deliveries as delivered, with an id that the receiver gave. It returns the
// reference of the key as the database has it then.
func (d *desk) answered(id string, claimed []*outbox.Delivery) string {
	d.t.Helper()
	results := delivered(claimed...)
	for i := range results {
		results[i].Ref = &outbox.Ref{ExternalID: id, Version: claimed[i].Event.Version}
	}
	d.recorded(results)
	return d.reference()
}

func (d *desk) recorded(results []outbox.Result) {
	d.t.Helper()
	if r := d.a.Record(d.t.Context(), sync, results); r.Err != nil || len(r.Done) != 1 || !r.Done[0] {
		d.t.Fatalf("recorded %+v", r)
	}
}

func (d *desk) reference() string {
	d.t.Helper()
	return d.text(`SELECT coalesce(string_agg(concat_ws(' ', key, external_id, etag, 'v' || version), ', '), 'none') FROM outbox.external_ref`)
}

// A hearing is deleted and created again, and its version begins anew. The next request must not
// address the record from before.
func TestReferenceFollowsTheLaneNotTheVersion(t *testing.T) {
	d := newDesk(t)
	write := func(version int) {
		d.exec(`INSERT INTO outbox.event (type, key, version, payload) VALUES ('x', 'H-1', $1, '{}')`, version)
	}
	write(5)
	if got := d.answered("A", d.claim(d.a)); got != "H-1 A v5" {
		t.Errorf("reference %s", got)
	}
	write(1)
	if got := d.answered("B", d.claim(d.a)); got != "H-1 B v1" {
		t.Errorf("created again: reference %s", got)
	}
	write(2)
	next := d.claim(d.a)
	if len(next) != 1 || next[0].Ref.ExternalID != "B" {
		t.Fatalf("claimed %+v", next)
	}
	if got := d.answered("B", next); got != "H-1 B v2" {
		t.Errorf("changed: reference %s", got)
	}
	// A replay is at the end of the lane.
	d.exec(`SELECT outbox.replay('CourtCalendarSync', (SELECT id FROM outbox.event ORDER BY seq LIMIT 1), 'r')`)
	if got := d.answered("C", d.claim(d.a)); got != "H-1 C v5" {
		t.Errorf("replayed: reference %s", got)
	}
}

// The receiver gets an event after a later one of its key, because its transaction commits late.
// The reference stays that of the later one.
func TestReferenceOfALaterDeliveryStays(t *testing.T) {
	d := newDesk(t)
	late := d.begin(`INSERT INTO outbox.event (type, key, version, payload) VALUES ('x', 'H-1', 2, '{}')`)
	d.exec(`INSERT INTO outbox.event (type, key, version, payload) VALUES ('x', 'H-1', 1, '{}')`)
	if got := d.answered("later", d.claim(d.a)); got != "H-1 later v1" {
		t.Errorf("reference %s", got)
	}
	d.end(late, "COMMIT")
	if got := d.answered("earlier", d.claim(d.a)); got != "H-1 later v1" {
		t.Errorf("reference %s, want that of the later event", got)
	}
}

// A late event finds that the receiver has lost the record, and creates it again. The id of the
// new record is kept, although a later event was answered before.
func TestReferenceOfARecordThatIsCreatedAgainIsKept(t *testing.T) {
	d := newDesk(t)
	late := d.begin(`INSERT INTO outbox.event (type, key, version, payload) VALUES ('x', 'H-1', 2, '{}')`)
	d.exec(`INSERT INTO outbox.event (type, key, version, payload) VALUES ('x', 'H-1', 1, '{}')`)
	d.answered("later", d.claim(d.a))
	d.end(late, "COMMIT")
	d.recorded([]outbox.Result{{Delivery: d.claim(d.a)[0], Outcome: outbox.Retry, Attempt: true, Ref: &outbox.Ref{}}})
	if got := d.answered("again", d.claim(d.a)); got != "H-1 again v2" {
		t.Errorf("reference %s, want that of the record that was created again", got)
	}
}

// A person sets a reference while a delivery of the key is being sent.
//
//	relay:    claims, reads the reference …  sends …      records: the reference stays    claims, reads the one that was set … records its answer
//	operator:                                sets it
func TestAReferenceThatIsSetStays(t *testing.T) {
	const set = `SELECT outbox.set_reference('CourtCalendarSync', 'H-1', 'set', '"7"', 'from the court''s list')`
	for name, test := range map[string]struct {
		before bool // the key has a reference
		result outbox.Result
	}{
		"no reference before":                     {result: outbox.Result{Outcome: outbox.Delivered}},
		"another one before":                      {before: true, result: outbox.Result{Outcome: outbox.Delivered}},
		"the relay has read the receiver's copy":  {before: true, result: outbox.Result{Outcome: outbox.Retry}},
		"it has read the copy, nothing was known": {result: outbox.Result{Outcome: outbox.Retry}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			if test.before {
				d.emit("H-1", 1)
				d.answered("before", d.claim(d.a))
			}
			d.emit("H-1", 2)
			claimed := d.claim(d.a)
			d.exec(set)
			result := test.result
			result.Delivery, result.Attempt, result.Ref = claimed[0], true, &outbox.Ref{ExternalID: "stale"}
			d.recorded([]outbox.Result{result})
			if got := d.reference(); got != `H-1 set "7"` {
				t.Errorf("reference %s, want the one that was set", got)
			}
			if test.result.Outcome == outbox.Delivered {
				d.emit("H-1", 3)
			}
			next := d.claim(d.a)
			if len(next) != 1 || next[0].Ref.ExternalID != "set" || next[0].Ref.ETag != `"7"` {
				t.Fatalf("claimed %+v", next)
			}
			if got := d.answered("after", next); got != "H-1 after" {
				t.Errorf("reference %s, want the answer to the attempt that had it", got)
			}
		})
	}
}

// A person sets a reference in a transaction that stays open. Only the recording of that key
// waits for it, and then leaves the reference as it was set.
//
//	operator: begins, sets it …                                       commits
//	relay:                      records another key   records this key …      the reference stays
func TestAnOpenTransactionThatSetsAReferenceIsWaitedFor(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	d.emit("H-2", 2)
	claimed := d.claim(d.a)
	open := d.begin(`SELECT outbox.set_reference('CourtCalendarSync', 'H-1', 'set', NULL, 'r')`)
	byKey := map[string][]outbox.Result{}
	for _, r := range delivered(claimed...) {
		byKey[r.Delivery.Key] = append(byKey[r.Delivery.Key], r)
	}
	d.recorded(byKey["H-2"])
	recording := blocked(d, "record finished", func() outbox.Recorded { return d.a.Record(t.Context(), sync, byKey["H-1"]) })
	d.end(open, "COMMIT")
	if r := recording(); r.Err != nil || !r.Done[0] {
		t.Fatalf("recorded %+v", r)
	}
	if got := d.text(`SELECT external_id FROM outbox.external_ref WHERE key = 'H-1'`); got != "set" {
		t.Errorf("reference %s", got)
	}
}

// A person sets several references in one transaction, in the order of the keys. A recording
// with the same keys takes them in the same order, so neither waits for the other without end.
//
//	operator: sets H-1 …                             sets H-2 … commits
//	relay:                records H-2 and H-1, waits                    has recorded them
func TestReferencesAreRecordedInTheOrderOfTheKeys(t *testing.T) {
	for _, outcome := range []outbox.Outcome{outbox.Delivered, outbox.Retry} {
		t.Run(string(outcome), func(t *testing.T) {
			d := newDesk(t)
			d.emit("H-1", 1)
			d.emit("H-2", 2)
			results := delivered(d.claim(d.a)...)
			slices.SortFunc(results, func(a, b outbox.Result) int { return strings.Compare(b.Delivery.Key, a.Delivery.Key) })
			for i := range results {
				results[i].Outcome, results[i].Ref = outcome, &outbox.Ref{ExternalID: "answered"}
			}
			open := d.begin(`SELECT outbox.set_reference('CourtCalendarSync', 'H-1', 'set', NULL, 'r')`)
			recording := blocked(d, "record", func() outbox.Recorded { return d.a.Record(t.Context(), sync, results) })
			if _, err := open.Exec(t.Context(), `SELECT outbox.set_reference('CourtCalendarSync', 'H-2', 'set', NULL, 'r')`); err != nil {
				t.Error(err)
			}
			d.end(open, "COMMIT")
			if r := recording(); r.Err != nil || !r.Done[0] || !r.Done[1] {
				t.Errorf("recorded %+v", r)
			}
			if got := d.text(`SELECT string_agg(external_id, ' ') FROM outbox.external_ref`); got != "set set" {
				t.Errorf("references %s", got)
			}
		})
	}
}

// An update failed because the receiver's id was not known. A person sets the id and requeues it.
func TestARequeueUsesTheReferenceThatWasSet(t *testing.T) {
	d := newDesk(t)
	d.emit("H-1", 1)
	failed := d.claim(d.a)
	d.recorded([]outbox.Result{{Delivery: failed[0], Outcome: outbox.Failed, Failed: true, Class: "permanent", Error: "ref.external_id is not known"}})
	d.exec(`SELECT outbox.set_reference('CourtCalendarSync', 'H-1', 'C-77', '', 'r')`)
	d.exec(`SELECT outbox.requeue('CourtCalendarSync', key => 'H-1')`)
	next := d.claim(d.a)
	if len(next) != 1 || next[0].Ref.ExternalID != "C-77" || next[0].Ref.ETag != "" {
		t.Fatalf("claimed %+v", next)
	}
	if got := d.answered("C-77", next); got != "H-1 C-77" {
		t.Errorf("reference %s", got)
	}
}

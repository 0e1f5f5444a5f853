package inspect

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func (h *hearing) overview() Overview {
	h.T.Helper()
	o, err := ReadOverview(h.T.Context(), h.auditor)
	if err != nil {
		h.T.Fatal(err)
	}
	return o
}

// keyed inserts an event of another key.
func (h *hearing) keyed(key string) string {
	h.T.Helper()
	was := h.key
	defer func() { h.key = was }()
	h.key = key
	return h.emit(1)
}

func TestTheOverviewCountsDeliveriesByState(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	h.Sync("Other", "other:*")
	h.Sync("Told", "lockstep:*")
	failed := h.keyed("K-failed")
	h.keyed("K-failed")
	h.Fail(failed)
	h.Send(h.keyed("K-sent"))
	h.keyed("K-pending")
	retried := h.keyed("K-retried")
	h.Do(`UPDATE outbox.delivery SET state = 'retry', due_at = now(), created_at = created_at - interval '1 hour' WHERE event_id = $1`, retried)
	o := h.overview()
	if len(o.Syncs) != 3 || o.Syncs[0].Name != "Court" || o.Syncs[1].Name != "Other" {
		t.Fatalf("syncs %+v", o.Syncs)
	}
	if got := o.Untimed(); !slices.Equal(got, []string{"Court", "Other"}) {
		t.Errorf("%q have no time of a hearing, want Court and Other: operator events have none", got)
	}
	b := o.Syncs[0].Backlog
	age := o.At.Sub(*b.Oldest)
	b.Oldest = nil
	if want := (Backlog{Open: 5, Failed: 1, Pending: 1, Queued: 1, Retry: 1, Sending: 1, Blocked: 1}); b != want || age < time.Hour || age > 2*time.Hour {
		t.Errorf("%+v and an age of %s, want %+v", b, age, want)
	}
	if !o.Syncs[1].Orphaned() || o.Syncs[0].Orphaned() || !slices.Equal(o.Syncs[0].ServedBy, []string{"relay-1"}) || o.Running() != 1 {
		t.Errorf("relays: %+v", o)
	}
}

func TestTheOverviewCountsNoMoreThanItsBound(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	h.Do(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:created', 'K-' || i, '{}' FROM generate_series(1, $1) AS i`, MostCounted+1)
	b := h.overview().Syncs[0].Backlog
	if b.Counted() || b.Open.String() != "10,000+" || b.Failed != 0 || b.Oldest == nil {
		t.Errorf("%+v", b)
	}
	h.Do(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity' WHERE key < 'K-2'`)
	b = h.overview().Syncs[0].Backlog
	if b.Failed < 1000 || b.Failed > MostCounted || b.Oldest == nil {
		t.Errorf("with failed ones: %+v", b)
	}
	for n, want := range map[Count]string{0: "0", 999: "999", 1000: "1,000", 9007: "9,007", MostCounted: "10,000"} {
		if n.String() != want {
			t.Errorf("%d is %q, want %q", int(n), n, want)
		}
	}
}

// needed inserts an event that is needed in a time, written before.
func (h *hearing) needed(key, in, written string) string {
	h.T.Helper()
	id := h.keyed(key)
	h.Do(`UPDATE outbox.delivery SET needed_by = clock_timestamp() + $2::text::interval, created_at = clock_timestamp() - $3::text::interval WHERE event_id = $1`, id, in, written)
	return id
}

func TestWhatIsAtRiskIsSortedByTime(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	h.needed("K-days", "2 days", "1 hour")
	h.needed("K-new", "1 minute", "1 second")
	h.needed("K-past", "-1 minute", "1 hour")
	soon := h.needed("K-soon", "1 hour", "1 hour")
	h.needed("K-soon", "30 minutes", "1 hour")
	h.Fail(soon)
	o := h.overview()
	var got []string
	for _, s := range o.AtRisk {
		text := ""
		for _, sentence := range s.Says {
			text += sentence.In(time.UTC) + " "
		}
		got = append(got, fmt.Sprintf("%s %s: %s", s.Key, s.Standing, text))
	}
	if len(got) != 2 || !strings.HasPrefix(got[0], "K-soon failed: Version 1 waits behind version 1. Court does not have version 1 (scheduling:updated): it was refused") ||
		!strings.HasPrefix(got[1], "K-days waiting: Court does not have version 1 (scheduling:updated) yet. It is about to be sent.") || o.MoreRisk || o.Past != 1 {
		t.Errorf("at risk: %q, past %s", got, o.Past)
	}
	h.Do(`UPDATE outbox.heartbeat SET seen_at = now() - interval '1 hour'`)
	if said := h.overview().AtRisk[1].Says; len(said) != 2 || said[0].In(time.UTC) != "Court does not have version 1 (scheduling:updated) yet." || !strings.HasPrefix(said[1].In(time.UTC), "No running relay serves this sync") {
		t.Errorf("without a relay: %v", said)
	}
	h.Do(`INSERT INTO outbox.hold (sync, scope, kind, reason, by) VALUES ('Court', 'court-7', 'operator', 'it moves', 'admin/ana')`)
	h.Do(`INSERT INTO outbox.lane (sync, key, scope, due_at) VALUES ('Court', 'K-days', 'court-7', now())`)
	if last := h.overview().AtRisk[1]; last.Standing != OnHold || !strings.Contains(last.Says[1].In(time.UTC), "Sending to court-7 was paused by ana") {
		t.Errorf("on hold: %+v", last)
	}
	h.Do(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:created', 'M-' || i, '{}' FROM generate_series(1, $1) AS i`, MostAtRisk)
	h.Do(`UPDATE outbox.delivery SET needed_by = clock_timestamp() + interval '1 day', state = 'retry', due_at = now() WHERE key LIKE 'M-%'`)
	if o := h.overview(); len(o.AtRisk) != MostAtRisk || !o.MoreRisk {
		t.Errorf("%d at risk, more: %t", len(o.AtRisk), o.MoreRisk)
	}
}

func TestListsAreReadInPages(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	h.Do(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:created', 'K-' || i % 250, '{}' FROM generate_series(1, 500) AS i`)
	h.Do(`UPDATE outbox.delivery AS d SET state = CASE WHEN key LIKE '%7' THEN 'retry' ELSE 'failed' END, due_at = CASE WHEN key LIKE '%7' THEN now() ELSE 'infinity' END,
	             error_class = CASE WHEN key LIKE '%5' THEN 'conflict' ELSE 'permanent' END, error = 'Room ' || key || ' is TAKEN'
	       WHERE NOT EXISTS (SELECT FROM outbox.delivery AS o WHERE o.key = d.key AND o.event_seq < d.event_seq)`)
	h.Do(`DELETE FROM outbox.delivery WHERE key LIKE 'K-1%' AND state = 'pending'`)
	all := func(f StuckFilter) (keys []string) {
		t.Helper()
		f.After = Place{}
		for range 10 {
			p, err := ReadStuck(t.Context(), h.auditor, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range p.List {
				keys = append(keys, s.Key)
			}
			if p.Next == nil {
				return keys
			}
			if len(p.List) != stuckPage {
				t.Errorf("a page of %d", len(p.List))
			}
			f.After = *p.Next
		}
		t.Fatal("the pages do not end")
		return nil
	}
	for name, want := range map[string]struct {
		filter StuckFilter
		n      int
	}{
		"all":      {StuckFilter{}, 250},
		"a sync":   {StuckFilter{Sync: "Court"}, 250},
		"another":  {StuckFilter{Sync: "Other"}, 0},
		"failed":   {StuckFilter{Failed: true}, 225},
		"blocked":  {StuckFilter{Blocked: true}, 139},
		"a class":  {StuckFilter{Class: "conflict", Failed: true}, 25},
		"a text":   {StuckFilter{Error: "room k-24"}, 11},
		"no match": {StuckFilter{Error: "%"}, 0},
	} {
		keys := all(want.filter)
		if len(keys) != want.n || !slices.IsSorted(keys) || len(slices.Compact(slices.Clone(keys))) != len(keys) {
			t.Errorf("%s: %d keys, want %d: %v", name, len(keys), want.n, keys)
		}
	}
	p, err := ReadSync(t.Context(), h.auditor, StuckFilter{Sync: "Court", Class: "conflict"}, nil)
	if err != nil || p.Sync == nil || p.Sync.Backlog.Failed != 225 || len(p.Trouble.List) != 25 {
		t.Errorf("sync: %+v, %v", p, err)
	}
	if s := p.Trouble.List[0]; s.State != "failed" || s.Class != "conflict" || s.Behind > 1 || s.Standing != Failed {
		t.Errorf("a row: %+v", s)
	}
	if p, err := ReadSync(t.Context(), h.auditor, StuckFilter{Sync: "None"}, nil); err != nil || p.Sync != nil {
		t.Errorf("no such sync: %+v, %v", p, err)
	}
}

func TestASearchThatFindsLittleEndsAndContinues(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	h.Do(`INSERT INTO outbox.event (type, key, payload) SELECT 'scheduling:created', 'K-' || i, '{}' FROM generate_series(1, $1) AS i`, stuckScan+10)
	h.Do(`UPDATE outbox.delivery SET state = 'failed', due_at = 'infinity' WHERE key = 'K-999'`)
	p, err := ReadStuck(t.Context(), h.auditor, StuckFilter{})
	if err != nil || len(p.List) != 0 || p.Next == nil {
		t.Fatalf("the first page: %+v, %v", p, err)
	}
	if p, err = ReadStuck(t.Context(), h.auditor, StuckFilter{After: *p.Next}); err != nil || len(p.List) != 1 || p.Next != nil {
		t.Errorf("the second page: %+v, %v", p, err)
	}
}

func TestDeliveriesOfTheLastHourAreCountedOnce(t *testing.T) {
	t.Parallel()
	h := newHearing(t)
	read := func(after int64) Delivered {
		t.Helper()
		d, err := ReadDelivered(t.Context(), h.auditor, after)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := read(0); d.Last != 0 || len(d.Minutes) != 0 {
		t.Errorf("an empty log: %+v", d)
	}
	h.deliver(h.emit(1))
	h.deliver(h.emit(2))
	count := func(d Delivered) (n int) {
		for _, m := range d.Minutes {
			if m.Sync != "Court" || d.At.Sub(m.Minute) > 3*time.Minute {
				t.Errorf("%+v", m)
			}
			n += m.Count
		}
		return n
	}
	first := read(0)
	if n := count(first); n != 2 || first.Last == 0 {
		t.Errorf("%d delivered: %+v", n, first)
	}
	if d := read(first.Last); count(d) != 0 || d.Last != first.Last {
		t.Errorf("nothing new: %+v", d)
	}
	h.deliver(h.emit(3))
	if d := read(first.Last); count(d) != 1 || d.Last <= first.Last {
		t.Errorf("one more: %+v", d)
	}
}

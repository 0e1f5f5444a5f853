package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/internal/courtsim"
)

// truth is a hearing that was booked and moved once. The court and the clinic got
// both changes, the second one with a lost answer. The court was down when the
// hearing was booked, and got the first change two seconds later than the clinic.
func truth() (facts, story) {
	at := time.Date(2027, 3, 29, 9, 0, 0, 0, time.UTC) // summer time in London
	after := func(d time.Duration) *time.Time { return new(at.Add(d)) }
	hold := func(sys *system, fields string, first time.Duration) holding {
		return holding{
			system: sys,
			events: []event{
				{ID: "e1", Key: "H-1", Version: 1, InsertedAt: at, Attempts: 1, Acks: 1, AnsweredAt: after(first), SHA256: new("a")},
				{ID: "e2", Key: "H-1", Version: 2, InsertedAt: at.Add(5 * time.Second), Attempts: 2, Acks: 1, AnsweredAt: after(6 * time.Second), SHA256: new("c")},
			},
			calendar: map[string]courtsim.Booking{"H-1": {CaseReference: "H-1", Status: "booked", IdempotencyKey: "e2", Fields: json.RawMessage(fields)}},
			ledger: []courtsim.Entry{
				{Seq: 1, Method: "POST", IdempotencyKey: "e1", CaseReference: "H-1", BodySHA256: "a", Status: 201, Accepted: true},
				{Seq: 2, Method: "POST", IdempotencyKey: "e2", CaseReference: "H-1", BodySHA256: "b", Accepted: true},
				{Seq: 3, Method: "GET"},
				{Seq: 4, Method: "POST", IdempotencyKey: "e2", CaseReference: "H-1", BodySHA256: "c", Status: 409, Duplicate: true},
			},
		}
	}
	court, clinic := newCourt(), newClinic()
	f := facts{
		hearings: []hearing{{ID: "H-1", StartsAt: at, Courtroom: "Court 2", Status: "booked", Version: 2, EventID: "e2"}},
		systems: []holding{
			hold(court, `{"case_reference":"H-1","start_time":"2027-03-29T10:00:00+01:00","courtroom":"Court 2","status":"booked"}`, 3*time.Second),
			hold(clinic, `{"reference":"H-1","start":"2027-03-29T09:00:00Z","room":"Court 2","status":"booked"}`, time.Second),
		},
	}
	s := story{
		troubles: []trouble{{system: court, other: clinic, what: "down", from: at, until: at.Add(2 * time.Second)}},
	}
	return f, s
}

// TestEveryDisagreementIsFound plants each disagreement in the court and then in the clinic.
func TestEveryDisagreementIsFound(t *testing.T) {
	book := func(h *holding, change func(*courtsim.Booking)) {
		b := h.calendar["H-1"]
		change(&b)
		h.calendar["H-1"] = b
	}
	replaceField := func(from, to string) func(*holding) {
		return func(h *holding) {
			book(h, func(b *courtsim.Booking) { b.Fields = bytes.Replace(b.Fields, []byte(from), []byte(to), 1) })
		}
	}
	type counts struct{ lost, open, order, different, unlogged, needless int }
	for name, tc := range map[string]struct {
		change func(*holding)
		want   counts
		says   string
	}{
		"all agrees":                   {func(*holding) {}, counts{}, ""},
		"it never got the last":        {func(h *holding) { h.ledger = h.ledger[:1]; h.events[1].SHA256 = nil }, counts{lost: 1}, "H-1: version 2 is lost: the %s never"},
		"the last is open":             {func(h *holding) { h.ledger = h.ledger[:1]; h.events[1].SHA256 = nil; h.events[1].Open = true }, counts{open: 1}, "still open for the %s"},
		"the log claims a delivery":    {func(h *holding) { h.ledger = h.ledger[:1] }, counts{lost: 1, unlogged: 1}, "the %s's ledger does not have that request"},
		"the log has another body":     {func(h *holding) { h.ledger[3].BodySHA256 = "d" }, counts{unlogged: 1}, "the %s's ledger does not have that request"},
		"a request is not in the log":  {func(h *holding) { h.events[1].Attempts = 1 }, counts{unlogged: 1}, "sent to the %s 2 times"},
		"an older version came later":  {func(h *holding) { h.ledger[0], h.ledger[1] = h.ledger[1], h.ledger[0] }, counts{order: 1}, "the %s took version 1 after version 2"},
		"an event was taken twice":     {func(h *holding) { h.ledger[3].Accepted = true }, counts{order: 1}, "the %s took version 2 after version 2"},
		"it was sent again needlessly": {func(h *holding) { h.events[1].Acks = 2 }, counts{needless: 1}, "version 2 was sent to the %s again"},
		"another time":                 {replaceField("29T", "28T"), counts{different: 1}, "the start is"},
		"another room":                 {replaceField("Court 2", "Attic"), counts{different: 1}, `"Attic" at the %s`},
		"no room":                      {replaceField("room", "floor"), counts{different: 1}, "the room is"},
		"another status":               {func(h *holding) { book(h, func(b *courtsim.Booking) { b.Status = cancelled }) }, counts{different: 1}, "the status is"},
		"an older version there":       {func(h *holding) { book(h, func(b *courtsim.Booking) { b.IdempotencyKey = "e1" }) }, counts{different: 1}, "version is 2 here and 1 at the %s"},
		"no booking":                   {func(h *holding) { delete(h.calendar, "H-1") }, counts{different: 1}, "the %s has no such hearing"},
		"a booking without a hearing":  {func(h *holding) { h.calendar["H-9"] = courtsim.Booking{} }, counts{different: 1}, "H-9: the %s has it"},
		"somebody else wrote": {func(h *holding) {
			h.ledger = append(h.ledger, courtsim.Entry{Seq: 5, Method: "POST", CaseReference: "H-1", Accepted: true})
		}, counts{unlogged: 1}, "at the %s, about H-1, belongs to no event"},
	} {
		for i, at := range []string{"court", "clinic"} {
			t.Run(name+" at the "+at, func(t *testing.T) {
				f, s := truth()
				tc.change(&f.systems[i])
				v := judge(f, s)
				for n, a := range v.Accounts {
					got := counts{a.Lost, a.Open, a.OutOfOrder, a.Different, a.Unlogged, a.Needless}
					want := counts{}
					if n == i {
						want = tc.want
					}
					if got != want {
						t.Errorf("%s: got %+v, want %+v: %q", a.name, got, want, a.Problems)
					}
				}
				if v.agrees() != (tc.want == counts{}) {
					t.Errorf("agrees is %v", v.agrees())
				}
				if says := strings.ReplaceAll(tc.says, "%s", at); !strings.Contains(strings.Join(v.problems(), "\n"), says) {
					t.Errorf("%q does not say %q", v.problems(), says)
				}
			})
		}
	}
}

func TestFiguresAreCounted(t *testing.T) {
	v := judge(truth())
	if v.Hearings != 1 || len(v.Accounts) != 2 || len(v.Separations) != 1 {
		t.Fatalf("got %+v", v)
	}
	for _, a := range v.Accounts {
		if a.Events != 2 || a.Attempts != 3 || a.Retries != 1 || a.Requests != 3 || a.Duplicates != 1 ||
			a.Answers["2xx"] != 1 || a.Answers["409"] != 1 || a.Answers[""] != 1 {
			t.Errorf("got %+v", a)
		}
	}
	if times := v.Accounts[1].Times; len(times) != 2 || times[0].took != time.Second {
		t.Errorf("times: %v", times)
	}
}

func TestATroubleOfOneSystemMustNotStopTheOther(t *testing.T) {
	for name, tc := range map[string]struct {
		change          func(*facts, *story)
		troubled, other int
		says            string
	}{
		"it gets them":              {func(*facts, *story) {}, 0, 1, ""},
		"it gets them late as well": {func(f *facts, _ *story) { f.systems[1].events[0].AnsweredAt = f.systems[0].events[0].AnsweredAt }, 0, 0, "while the court was down, the clinic got nothing, although 1 changes were due"},
		"it never got them":         {func(f *facts, _ *story) { f.systems[1].events[0].AnsweredAt = nil }, 0, 0, "the clinic got nothing"},
		"nothing was due yet":       {func(_ *facts, s *story) { s.troubles[0].until = s.troubles[0].from.Add(moments / 2) }, 0, 0, ""},
		"the court took something":  {func(f *facts, _ *story) { f.systems[0].events[0].AnsweredAt = f.systems[1].events[0].AnsweredAt }, 1, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f, s := truth()
			tc.change(&f, &s)
			v := judge(f, s)
			got := v.Separations[0]
			if got.Made != 1 || got.Troubled != tc.troubled || got.Other != tc.other {
				t.Errorf("of %d changes the court took %d, the clinic %d; want %d and %d of 1", got.Made, got.Troubled, got.Other, tc.troubled, tc.other)
			}
			if !strings.Contains(got.Problem, tc.says) || v.agrees() != (tc.says == "") {
				t.Errorf("agrees is %v, the problem %q, want %q", v.agrees(), got.Problem, tc.says)
			}
		})
	}
}

func TestPercentilesAreOfTheNearestRank(t *testing.T) {
	var times []timing
	for i := range 100 {
		times = append(times, timing{took: time.Duration(100-i) * time.Millisecond})
	}
	for name, tc := range map[string]struct {
		times []timing
		share float64
		want  time.Duration
	}{
		"none":       {nil, 0.5, 0},
		"one":        {times[:1], 0.99, 100 * time.Millisecond},
		"median":     {times, 0.5, 50 * time.Millisecond},
		"p99 of 100": {times, 0.99, 99 * time.Millisecond},
		"all":        {times, 1, 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			if got := percentile(tc.times, tc.share); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestReportNamesTheFirstDifferences(t *testing.T) {
	f, s := truth()
	f.systems[1].calendar = nil
	for i := range 20 {
		f.hearings = append(f.hearings, hearing{ID: fmt.Sprintf("H-%d", 100+i)})
	}
	var b strings.Builder
	if err := printReport(&b, judge(f, s), s, time.Second, palette{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"different                  20      21", "H-100: the court has no such hearing", "and 31 more", "1 changes made: the court took 0, the clinic 1 (p50 1.0 s, p99 1.0 s)"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
}

func TestPlanKeepsEachHearingsOrder(t *testing.T) {
	list, err := hearings(50)
	if err != nil {
		t.Fatal(err)
	}
	before := map[int]change{}
	for n, c := range plan(list, 7) {
		last, seen := before[c.hearing]
		switch {
		case c.what == booked && seen, c.what != booked && !seen, last.what == cancelled:
			t.Errorf("change %d: hearing %d is %s after %q", n, c.hearing, c.what, last.what)
		case c.what == moved && c.room == last.room:
			t.Errorf("change %d: hearing %d stays in its room", n, c.hearing)
		}
		before[c.hearing] = c
	}
	if len(before) != len(list) {
		t.Errorf("%d of %d hearings are booked", len(before), len(list))
	}
}

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

// truth is a hearing that was booked, moved once, and told to the court, the
// second time with an answer that was lost.
func truth() facts {
	at := time.Date(2027, 3, 29, 9, 0, 0, 0, time.UTC) // summer time in London
	answered := at.Add(time.Second)
	sum := func(s string) *string { return &s }
	fields := json.RawMessage(`{"case_reference":"H-1","start_time":"2027-03-29T10:00:00+01:00","courtroom":"Court 2","status":"booked"}`)
	return facts{
		hearings: []hearing{{ID: "H-1", StartsAt: at, Courtroom: "Court 2", Status: "booked", Version: 2, EventID: "e2"}},
		events: []event{
			{ID: "e1", Key: "H-1", Version: 1, InsertedAt: at, Attempts: 1, AnsweredAt: &answered, SHA256: sum("a")},
			{ID: "e2", Key: "H-1", Version: 2, InsertedAt: at, Attempts: 2, AnsweredAt: &answered, SHA256: sum("b")},
		},
		calendar: map[string]courtsim.Booking{"H-1": {CaseReference: "H-1", Status: "booked", IdempotencyKey: "e2", Fields: fields}},
		ledger: []courtsim.Entry{
			{Seq: 1, Method: "POST", IdempotencyKey: "e1", CaseReference: "H-1", BodySHA256: "a", Status: 201, Accepted: true},
			{Seq: 2, Method: "POST", IdempotencyKey: "e2", CaseReference: "H-1", BodySHA256: "b", Accepted: true},
			{Seq: 3, Method: "GET"},
			{Seq: 4, Method: "POST", IdempotencyKey: "e2", CaseReference: "H-1", BodySHA256: "b", Status: 409, Duplicate: true},
		},
	}
}

func TestJudge(t *testing.T) {
	book := func(f *facts, change func(*courtsim.Booking)) {
		b := f.calendar["H-1"]
		change(&b)
		f.calendar["H-1"] = b
	}
	replaceField := func(from, to string) func(*facts) {
		return func(f *facts) {
			book(f, func(b *courtsim.Booking) { b.Fields = bytes.Replace(b.Fields, []byte(from), []byte(to), 1) })
		}
	}
	type counts struct{ lost, open, order, different, unlogged int }
	for name, tc := range map[string]struct {
		change func(*facts)
		want   counts
		says   string
	}{
		"all agrees":                    {func(*facts) {}, counts{}, ""},
		"the court never got the last":  {func(f *facts) { f.ledger = f.ledger[:1]; f.events[1].SHA256 = nil }, counts{lost: 1}, "H-1: version 2 is lost"},
		"the last is on its way":        {func(f *facts) { f.ledger = f.ledger[:1]; f.events[1].SHA256 = nil; f.events[1].Open = true }, counts{open: 1}, "still on its way"},
		"the log claims a delivery":     {func(f *facts) { f.ledger = f.ledger[:1] }, counts{lost: 1, unlogged: 1}, "has not got that request"},
		"the log has another body":      {func(f *facts) { f.ledger[1].BodySHA256 = "c" }, counts{unlogged: 1}, "has not got that request"},
		"a request is not in the log":   {func(f *facts) { f.events[1].Attempts = 1 }, counts{unlogged: 1}, "sent 2 times"},
		"an older version came later":   {func(f *facts) { f.ledger[0], f.ledger[1] = f.ledger[1], f.ledger[0] }, counts{order: 1}, "version 1 after version 2"},
		"an event was taken twice":      {func(f *facts) { f.ledger[3].Accepted = true }, counts{order: 1}, "version 2 after version 2"},
		"another time":                  {replaceField("10:00:00+01:00", "09:00:00Z"), counts{different: 1}, "the start is"},
		"another room":                  {replaceField("Court 2", "Attic"), counts{different: 1}, "the room is"},
		"another status":                {func(f *facts) { book(f, func(b *courtsim.Booking) { b.Status = cancelled }) }, counts{different: 1}, "the status is"},
		"an older version at the court": {func(f *facts) { book(f, func(b *courtsim.Booking) { b.IdempotencyKey = "e1" }) }, counts{different: 1}, "version is 2 here and 1 at the court"},
		"no booking":                    {func(f *facts) { delete(f.calendar, "H-1") }, counts{different: 1}, "no such hearing"},
		"a booking of nobody's":         {func(f *facts) { f.calendar["H-9"] = courtsim.Booking{} }, counts{different: 1}, "H-9: the court has it"},
		"somebody else wrote": {func(f *facts) {
			f.ledger = append(f.ledger, courtsim.Entry{Seq: 5, Method: "POST", CaseReference: "H-1", Accepted: true})
		}, counts{unlogged: 1}, "belongs to no event"},
	} {
		t.Run(name, func(t *testing.T) {
			f := truth()
			tc.change(&f)
			v := judge(f)
			got := counts{v.Lost, v.Open, v.OutOfOrder, v.Different, v.Unlogged}
			if got != tc.want {
				t.Errorf("got %+v, want %+v: %q", got, tc.want, v.Problems)
			}
			if v.agrees() != (tc.want == counts{}) {
				t.Errorf("agrees is %v", v.agrees())
			}
			if !strings.Contains(strings.Join(v.Problems, "\n"), tc.says) {
				t.Errorf("%q does not say %q", v.Problems, tc.says)
			}
		})
	}
}

func TestFiguresAreCounted(t *testing.T) {
	v := judge(truth())
	if v.Hearings != 1 || v.Events != 2 || v.Attempts != 3 || v.Retries != 1 || v.Requests != 3 || v.Duplicates != 1 {
		t.Errorf("got %+v", v)
	}
	if len(v.Times) != 2 || v.Times[0].took != time.Second {
		t.Errorf("times: %v", v.Times)
	}
}

func TestPercentile(t *testing.T) {
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

func TestReportNamesWhatDoesNotAgreeButNotAllOfIt(t *testing.T) {
	f := truth()
	f.calendar = nil
	for i := range 20 {
		f.hearings = append(f.hearings, hearing{ID: fmt.Sprintf("H-%d", 100+i)})
	}
	var b strings.Builder
	if err := printReport(&b, judge(f), story{}, time.Second, palette{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"different                 21", "H-1: the court has no such hearing", "and 11 more"} {
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

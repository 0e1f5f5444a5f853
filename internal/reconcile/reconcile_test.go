package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/hms-mkt/lockstep/adapters"
	"github.com/hms-mkt/lockstep/internal/reconcile"
)

// ledger is what was delivered, by key: the room of each hearing.
type ledger struct {
	rooms   map[string]string
	unknown int
	moving  []string
}

func (l ledger) message(key string) adapters.Message {
	return adapters.Message{ID: "event of " + key, Key: key, Version: new(int64(2)), Body: []byte(l.rooms[key])}
}

func (l ledger) Each(_ context.Context, yield func(reconcile.Delivered, bool) error) error {
	for n := range l.unknown {
		if err := yield(reconcile.Delivered{Message: adapters.Message{Key: fmt.Sprint("old ", n)}}, false); err != nil {
			return err
		}
	}
	for key := range l.rooms {
		if err := yield(reconcile.Delivered{Message: l.message(key), EventID: "event of " + key}, true); err != nil {
			return err
		}
	}
	return nil
}

func (l ledger) One(_ context.Context, event string) (adapters.Message, error) {
	return l.message(strings.TrimPrefix(event, "event of ")), nil
}

func (l ledger) Moving(_ context.Context, yield func(string)) error {
	for _, key := range l.moving {
		yield(key)
	}
	return nil
}

// shelf is a receiver with a list.
type shelf struct {
	entries []adapters.Entry
	fails   error
}

func (shelf) Lists() error { return nil }

func (shelf) Entry(msg adapters.Message) (adapters.Entry, error) {
	return adapters.Entry{Key: msg.Key, Version: msg.Version, Absent: string(msg.Body) == "none", Fields: map[string]string{"room": string(msg.Body)}}, nil
}

func (s shelf) List(_ context.Context, _ adapters.Window, yield func(adapters.Entry) error) error {
	for _, e := range s.entries {
		if err := yield(e); err != nil {
			return err
		}
	}
	return s.fails
}

func has(key, room string) adapters.Entry {
	return adapters.Entry{Key: key, ExternalID: "X-" + key, Fields: map[string]string{"room": room}}
}

func compare(t *testing.T, l ledger, s shelf) *reconcile.Report {
	t.Helper()
	r, err := reconcile.Compare(t.Context(), l, s, adapters.Window{}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestKindsOfDifferences(t *testing.T) {
	l := ledger{
		rooms: map[string]string{
			"same": "1", "missing": "1", "different": "1", "cancelled": "1", "newer": "1", "doubled": "1", "removed": "none", "still there": "none", "on the way": "1", "gone": "1",
		},
		unknown: 3, moving: []string{"on the way", "gone", "first", "nobody"},
	}
	newer, cancelled := has("newer", "1"), has("cancelled", "1")
	newer.Version, newer.Fields = new(int64(7)), map[string]string{"room": "9"}
	cancelled.Cancelled = true
	s := shelf{entries: []adapters.Entry{
		has("same", "1"), has("different", "2"), cancelled, newer, has("doubled", "1"), has("doubled", "5"), has("still there", "1"), has("on the way", "8"), has("first", "1"), has("ours?", "1"), has("old 1", "1"), {}, {},
	}}
	r := compare(t, l, s)
	var got []string
	for _, f := range r.Findings {
		got = append(got, fmt.Sprintf("%s: %s %s %s %s", f.Key, f.Kind, f.Field, f.Ours, f.Theirs))
	}
	want := []string{
		"cancelled: cancelled   ", "different: different room 1 2", "doubled: doubled   ", "missing: missing   ", "newer: newer version 2 7", "ours?: extra   ", "still there: extra   ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if r.Equal() || r.Foreign != 2 || r.OnTheWay != 3 || r.Unknown != 3 || r.Compared != 8 {
		t.Errorf("%+v", r)
	}
	if says := r.Says(adapters.Window{From: time.Date(2027, 3, 1, 0, 0, 0, 0, time.UTC)}); !strings.HasPrefix(says, "the calendars differ: 1 missing, 1 different, 1 cancelled, 1 newer, 1 doubled, 2 extra of 8 entries, digest of ours "+r.Ours) ||
		!strings.HasSuffix(says, "; from 2027-03-01T00:00:00Z; left out: 3 on the way; left out: 3 past retention; left out: 2 of others") {
		t.Error(says)
	}
}

// Equal calendars have equal digests, in whatever order they are listed. Each difference
// changes the digest of one side only.
func TestDigests(t *testing.T) {
	l := ledger{rooms: map[string]string{}}
	var all []adapters.Entry
	for n := range 100 {
		key, room := fmt.Sprint("H-", n), fmt.Sprint(n%7)
		l.rooms[key] = room
		all = append(all, has(key, room))
	}
	equal := compare(t, l, shelf{entries: all})
	slices.Reverse(all)
	if again := compare(t, l, shelf{entries: all}); !equal.Equal() || !again.Equal() || again.Theirs != equal.Theirs || equal.Ours != equal.Theirs {
		t.Errorf("equal calendars: %+v, %+v", equal, again)
	}
	for name, theirs := range map[string][]adapters.Entry{
		"one less": all[1:], "one more": append(slices.Clone(all), has("X", "1")), "one twice": append(slices.Clone(all), all[5]), "one changed": append(slices.Clone(all[1:]), has(all[0].Key, "other")),
	} {
		if r := compare(t, l, shelf{entries: theirs}); r.Equal() || r.Ours != equal.Ours || r.Theirs == equal.Theirs {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// A list that breaks off is no smaller calendar.
func TestAListThatBreaksOff(t *testing.T) {
	broken := errors.New("cut")
	if r, err := reconcile.Compare(t.Context(), ledger{}, shelf{fails: broken}, adapters.Window{}, func() {}); !errors.Is(err, broken) {
		t.Errorf("%+v, %v", r, err)
	}
}

// A key of which something needs a person is not sent again, whatever else it differs in.
func TestWhatCanBeRepaired(t *testing.T) {
	l := ledger{rooms: map[string]string{"different": "1", "doubled": "1", "missing": "1", "none": ""}}
	none := has("none", "")
	r := compare(t, l, shelf{entries: []adapters.Entry{has("different", "2"), has("doubled", "2"), has("doubled", "1"), has("ours?", "1"), none}})
	var got []string
	for _, f := range reconcile.Repairable(r.Findings) {
		got = append(got, f.Key+" "+string(f.Kind))
	}
	if diff := cmp.Diff([]string{"different different", "missing missing"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

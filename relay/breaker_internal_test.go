package relay

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// at is a time of a fake clock.
func at(seconds int) time.Time { return time.Unix(1_000_000+int64(seconds), 0) }

// reported is one attempt that is reported to health.
type reported struct {
	key             string
	began, answered int // in seconds
	accepted        bool
}

func TestRefusalsOfARecordAndOfCredentials(t *testing.T) {
	yes := func(key string, began, answered int) reported { return reported{key, began, answered, true} }
	no := func(key string, began, answered int) reported { return reported{key, began, answered, false} }
	for name, tc := range map[string]struct {
		answers []reported
		want    verdict // about the last of them
	}{
		"the first":                             {[]reported{no("A", 0, 1)}, undecided},
		"others were accepted before":           {[]reported{yes("B", 0, 1), no("A", 2, 3), no("A", 10, 11), no("A", 20, 21)}, refusesAll},
		"others were accepted since":            {[]reported{no("A", 0, 1), yes("B", 2, 3), no("A", 10, 11), no("A", 20, 21)}, refusesRecord},
		"too often in too short a time":         {[]reported{no("A", 0, 1), yes("B", 2, 3), no("A", 4, 5), no("A", 6, 7)}, undecided},
		"once more is not enough":               {[]reported{no("A", 0, 1), yes("B", 2, 3), no("A", 30, 31)}, undecided},
		"healed after an hour, but not at once": {[]reported{no("A", 0, 1), no("A", 1000, 1001), yes("B", 3600, 3601), no("A", 3601, 3602), no("A", 3603, 3604)}, undecided},
		"an old token's success":                {[]reported{no("A", 1, 2), yes("B", 0, 3), no("A", 10, 11), no("A", 20, 21)}, refusesAll},
		"its own success ends the doubt":        {[]reported{no("A", 0, 1), yes("B", 2, 3), no("A", 10, 11), yes("A", 12, 13), no("A", 20, 21)}, undecided},
		"only its own key was accepted":         {[]reported{no("A", 0, 1), yes("A", 2, 3), no("A", 4, 5), no("A", 14, 15), no("A", 24, 25)}, refusesAll},
		"a key's later success hides none":      {[]reported{no("A", 0, 1), yes("B", 2, 3), yes("A", 4, 5), no("A", 6, 7), yes("B", 8, 9), no("A", 18, 19), no("A", 28, 29)}, refusesRecord},
		"three keys one after the other":        {[]reported{no("A", 0, 1), no("B", 2, 3), no("C", 4, 5), no("D", 6, 7)}, refusesAll},
		"many at once, with one token":          {[]reported{no("A", 0, 1), no("B", 0, 2), no("C", 0, 2), no("D", 0, 2), no("E", 0, 3), no("F", 0, 3)}, undecided},
		"a success between":                     {[]reported{no("A", 0, 1), no("B", 2, 3), yes("X", 2, 3), no("C", 4, 5), no("D", 6, 7)}, undecided},
		"the credentials have expired since":    {[]reported{no("A", 0, 1), yes("B", 2, 3), no("A", 10, 11), no("C", 10, 11), no("D", 12, 13), no("E", 14, 15), no("F", 16, 17), no("A", 20, 21)}, undecided},
		"those that were known to be refused":   {[]reported{no("A", 0, 1), no("B", 0, 1), no("C", 0, 1), no("D", 0, 1), yes("X", 2, 3), no("A", 10, 11), no("B", 12, 13), no("C", 14, 15), no("D", 16, 17), no("A", 20, 21)}, refusesRecord},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHealth(time.Second)
			var got verdict
			for _, a := range tc.answers {
				if a.accepted {
					h.succeeded(a.key, at(a.began))
				} else {
					got, _ = h.refuse(a.key, at(a.began), at(a.answered))
				}
			}
			if got != tc.want {
				t.Errorf("verdict %d, want %d", got, tc.want)
			}
		})
	}
}

// A token is changed while many requests are in flight. Successes with the old token arrive among
// refusals of the new one, in any order. No record counts as the cause.
func TestATokenThatIsChangedMeanwhileBlamesNoRecord(t *testing.T) {
	h := newHealth(0)
	var senders sync.WaitGroup
	changed := time.Now()
	for sender := range 8 {
		senders.Go(func() {
			for n := range 2000 {
				if sender%2 == 0 { // began with the old token, and is heard of late
					h.succeeded(fmt.Sprint("old-", n%50), changed.Add(-time.Duration(n)*time.Millisecond))
					continue
				}
				key := fmt.Sprint("new-", sender, "-", n%20)
				if about, _ := h.refuse(key, changed.Add(time.Millisecond), changed.Add(time.Duration(n+2)*time.Millisecond)); about == refusesRecord {
					t.Errorf("%s is blamed", key)
				}
			}
		})
	}
	senders.Wait()
}

func TestDoubtsAreBounded(t *testing.T) {
	h := newHealth(0)
	for n := range 2 * mostDoubts {
		h.refuse(fmt.Sprint(n), at(n), at(n))
	}
	if n := len(h.doubted); n > mostDoubts {
		t.Errorf("%d keys are remembered", n)
	}
}

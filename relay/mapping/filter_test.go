package mapping

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/hms-mkt/lockstep/outbox"
)

func TestFilter(t *testing.T) {
	version := int64(2)
	ev := outbox.Event{
		Type: "scheduling:updated", Key: "H-1", Version: &version,
		Payload: raw(`{"court": "NY-07", "amount": 12.50, "parties": [{"sealed": true}]}`),
		Headers: map[string]string{"tenant": "t1"},
	}
	tests := map[string]struct {
		src  string
		want bool
	}{
		"empty matches all":      {"", true},
		"blank matches all":      {"  ", true},
		"payload":                {`event.court == "NY-07"`, true},
		"payload, other":         {`event.court == "NY-08"`, false},
		"missing field is null":  {`event.nope == "NY-07"`, false},
		"decimal":                {`event.amount >= 12.5`, true},
		"type":                   {`type startsWith "scheduling:"`, true},
		"key":                    {`key matches "^H-[0-9]+$"`, true},
		"version":                {`version > 1`, true},
		"header":                 {`headers.tenant == "t1" and headers.nope == nil`, true},
		"any":                    {`any(event.parties, .sealed)`, true},
		"not":                    {`not any(event.parties, .sealed)`, false},
		"in":                     {`event.court in ["NY-06", "NY-07"]`, true},
		"nothing of the payload": {`key == "H-2"`, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, err := CompileFilter(tt.src)
			if err != nil {
				t.Fatal(err)
			}
			got, err := f.Match(ev, nil)
			if err != nil || got != tt.want {
				t.Errorf("got %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestFilterRefuses(t *testing.T) {
	for src, want := range map[string]string{
		`"text"`:     "the condition is a string, and must be true or false",
		`1 + 1`:      "the condition is a number, and must be true or false",
		`[1]`:        "and must be true or false",
		`court == 1`: "unknown name court",
		`now() > 1`:  "now is not available",
		`key ==`:     "does not compile",
	} {
		if _, err := CompileFilter(src); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want …%q…", src, err, want)
		}
	}
	for src, want := range map[string]string{
		`event.court`:            "the condition is a string for this event, not true or false",
		`event.nope`:             "the condition is null for this event",
		`event.nope.deep == "x"`: "missing or null",
		`event.court > 3`:        "cannot apply > to a string and a number",
	} {
		f, err := CompileFilter(src)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Match(outbox.Event{Payload: raw(`{"court":"SECRET"}`)}, nil)
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != "when" || !strings.Contains(fe.Reason, want) || strings.Contains(fe.Reason, "SECRET") {
			t.Errorf("%s: got %v, want …%q…", src, err, want)
		}
	}
}

func TestFilterIsSafeForConcurrentUse(t *testing.T) {
	f, err := CompileFilter(`count(event.list, # > 1) == 2`)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if ok, err := f.Match(outbox.Event{Payload: raw(`{"list":[1,2,3]}`)}, nil); !ok || err != nil {
					t.Error(ok, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

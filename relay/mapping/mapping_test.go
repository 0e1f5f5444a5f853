package mapping

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hms-mkt/lockstep/outbox"
)

func raw(s string) json.RawMessage { return json.RawMessage(s) }

// courtMapping is the mapping of the documentation's example.
func courtMapping() Mapping {
	return Mapping{
		Fields: []Field{
			{From: "hearingId", To: "case_reference"},
			{From: "scheduledAt", To: "start_time", Time: &TimeFormat{Zone: "America/New_York", Format: "RFC3339"}},
			{From: "location", To: "courtroom", Values: map[string]string{"3A": "ROOM-3A"}, Default: raw(`"TBD"`)},
			{From: "notes", To: "remarks", Optional: true},
		},
		Compute: []Computed{{To: "title", Expr: `"Hearing " + event.hearingId`}},
	}
}

func renames() Mapping {
	return Mapping{Fields: []Field{
		{From: "hearingId", To: "case_reference"},
		{From: "scheduledAt", To: "start_time"},
		{From: "location", To: "courtroom"},
	}}
}

const courtPayload = `{"hearingId": "H-1", "location": "3A", "scheduledAt": "2027-03-01T19:30:00Z"}`

func compile(t testing.TB, m Mapping) *Mapper {
	t.Helper()
	mapper, err := m.Compile()
	if err != nil {
		t.Fatal(err)
	}
	return mapper
}

func TestMap(t *testing.T) {
	tests := map[string]struct {
		mapping Mapping
		payload string
		want    string
	}{
		"the documentation's example": {
			courtMapping(), courtPayload,
			`{"case_reference":"H-1","start_time":"2027-03-01T14:30:00-05:00","courtroom":"ROOM-3A","title":"Hearing H-1"}`,
		},
		"empty mapping keeps order and digits": {
			Mapping{},
			`{"b": 1.50, "a": 12345678901234567890, "c": "<&>"}`,
			`{"b":1.50,"a":12345678901234567890,"c":"<&>"}`,
		},
		"order of the mapping, not of the payload": {
			Mapping{Fields: []Field{{From: "b", To: "x"}, {From: "a", To: "y"}}},
			`{"a": 1, "b": 2}`,
			`{"x":2,"y":1}`,
		},
		"numbers keep their digits in objects and arrays": {
			Mapping{Fields: []Field{{From: "a", To: "a"}}},
			`{"a": [1.10, {"x": 1e400, "y": [0.30]}, -0]}`,
			`{"a":[1.10,{"x":1e400,"y":[0.30]},-0]}`,
		},
		"booleans and empty containers": {
			Mapping{Fields: []Field{{From: "t", To: "t"}, {From: "o", To: "o"}, {From: "l", To: "l"}}},
			`{"t": false, "o": { }, "l": [ ]}`, `{"t":false,"o":{},"l":[]}`,
		},
		"space and brackets inside strings stay": {
			Mapping{Fields: []Field{{From: "a", To: "a"}}},
			`{"x": "}]\\\"", "a": {"k ]": " , \" } "}}`,
			`{"a":{"k ]":" , \" } "}}`,
		},
		"HTML is not escaped": {
			Mapping{Fields: []Field{{From: "a", To: "<b>"}, {To: "c", Const: raw(`"<&>"`)}}},
			`{"a": "<&>"}`,
			`{"<b>":"<&>","c":"<&>"}`,
		},
		"dotted names on both sides": {
			Mapping{Fields: []Field{
				{From: "place.room", To: "where.room"},
				{From: "id", To: "id"},
				{From: "place.building", To: "where.building"},
				{From: "place", To: "raw"},
			}},
			`{"id": 7, "place": {"room": "3A", "building": "N"}}`,
			`{"where":{"room":"3A","building":"N"},"id":7,"raw":{"room":"3A","building":"N"}}`,
		},
		"an object of which nothing is left is left out": {
			Mapping{Fields: []Field{{From: "a", To: "o.p.a", Optional: true}, {From: "b", To: "b"}}},
			`{"b": 1}`,
			`{"b":1}`,
		},
		"nothing left at all": {
			Mapping{Fields: []Field{{From: "a", To: "a", Optional: true}}}, `{}`, `{}`,
		},
		"null counts as missing": {
			Mapping{Fields: []Field{
				{From: "a", To: "a", Optional: true},
				{From: "b", To: "b", Default: raw(`{"x": 1.0}`)},
				{From: "c.d", To: "d", Optional: true},
			}},
			`{"a": null, "b": null, "c": null}`, `{"b":{"x":1.0}}`,
		},
		"one source for two targets": {
			Mapping{Fields: []Field{{From: "a", To: "x"}, {From: "a", To: "y"}}}, `{"a": "v"}`, `{"x":"v","y":"v"}`,
		},
		"escaped names are the same names": {
			Mapping{Fields: []Field{{From: "caf\u00e9", To: "a"}}}, `{"caf\u00e9": 1}`, `{"a":1}`,
		},
		"the last of equal names counts": {
			Mapping{Fields: []Field{{From: "a.b", To: "b"}}}, `{"a": {"b": 1}, "a": {"b": 2}}`, `{"b":2}`,
		},
		"constants": {
			Mapping{Fields: []Field{{To: "n", Const: raw(`1.50`)}, {To: "o.l", Const: raw(`[1, true]`)}}},
			`{}`,
			`{"n":1.50,"o":{"l":[1,true]}}`,
		},
		"values of numbers and booleans": {
			Mapping{Fields: []Field{
				{From: "n", To: "n", Values: map[string]string{"3": "three"}},
				{From: "b", To: "b", Values: map[string]string{"true": "yes"}},
				{From: "s", To: "s", Values: map[string]string{"a\"b": "q\"<"}},
			}},
			`{"n": 3, "b": true, "s": "a\"b"}`, `{"n":"three","b":"yes","s":"q\"<"}`,
		},
		"value outside the table takes the default": {
			Mapping{Fields: []Field{{From: "n", To: "n", Values: map[string]string{"3": "three"}, Default: raw(`0`)}}},
			`{"n": 4}`, `{"n":0}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := compile(t, tt.mapping).Map(outbox.Event{Payload: raw(tt.payload)}, Sending{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestMapRefuses(t *testing.T) {
	one := func(f Field) Mapping { return Mapping{Fields: []Field{f}} }
	tests := map[string]struct {
		mapping Mapping
		payload string
		field   string
		reason  string
	}{
		"missing":                 {renames(), `{"hearingId": "SECRET"}`, "scheduledAt", "is missing"},
		"null":                    {one(Field{From: "a", To: "b"}), `{"a": null}`, "a", "is null"},
		"missing below":           {one(Field{From: "a.b", To: "b"}), `{"a": {}}`, "a.b", "is missing"},
		"null on the way":         {one(Field{From: "a.b", To: "b"}), `{"a": null}`, "a.b", "is missing"},
		"no object on the way":    {one(Field{From: "a.b.c", To: "b", Optional: true}), `{"a": {"b": "SECRET"}}`, "a.b.c", "a.b is not an object"},
		"not in the table":        {one(Field{From: "a", To: "b", Values: map[string]string{"x": "y"}}), `{"a": "SECRET"}`, "a", "not in the values table"},
		"table of an object":      {one(Field{From: "a", To: "b", Values: map[string]string{"x": "y"}}), `{"a": {"k":"SECRET"}}`, "a", "is an object"},
		"time of a number":        {one(Field{From: "a", To: "b", Time: &TimeFormat{}}), `{"a": 4711}`, "a", "is a number"},
		"time without an offset":  {one(Field{From: "a", To: "b", Time: &TimeFormat{}}), `{"a": "2027-03-01T14:00:00"}`, "a", "with an offset"},
		"payload is an array":     {renames(), `["SECRET"]`, "payload", "not a JSON object"},
		"payload is not JSON":     {renames(), `{"SECRET"}`, "payload", "not valid JSON"},
		"payload is not UTF-8":    {renames(), "{\"SECRET\": \"\xff\"}", "payload", "not UTF-8"},
		"empty mapping, an array": {Mapping{}, `["SECRET"]`, "payload", "not a JSON object"},
		"empty mapping, nothing":  {Mapping{}, ``, "payload", "not valid JSON"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := compile(t, tt.mapping).Map(outbox.Event{Payload: raw(tt.payload)}, Sending{}, nil)
			var fe *FieldError
			if !errors.As(err, &fe) {
				t.Fatalf("got %v, want a FieldError", err)
			}
			if fe.Field != tt.field || !strings.Contains(fe.Reason, tt.reason) {
				t.Errorf("got %q: %q, want %q: …%q…", fe.Field, fe.Reason, tt.field, tt.reason)
			}
			for _, value := range []string{"SECRET", "4711", "2027"} {
				if value == "2027" && tt.reason == "with an offset" {
					continue // the message's own example
				}
				if strings.Contains(err.Error(), value) {
					t.Errorf("%q contains a value of the payload", err)
				}
			}
		})
	}
}

func TestCompileReportsEverything(t *testing.T) {
	m := Mapping{
		Fields: []Field{
			{From: "a", To: "x.y"},
			{From: "b", To: "x"},
			{From: "c", To: "x.y"},
			{From: "d", To: "x.y.z"},
			{From: "e..f", To: "e"},
			{From: "g", To: ".g"},
			{From: "h"},
			{To: "i"},
			{From: "j", To: "j", Default: raw(`1`), Optional: true},
			{From: "k", To: "k", Const: raw(`1`), Optional: true},
			{From: "l", To: "l", Time: &TimeFormat{Zone: "New York"}},
			{From: "m", To: "m", Time: &TimeFormat{Format: "YYYY-MM-DD"}},
			{From: "n", To: "n", Time: &TimeFormat{Zone: "Local"}},
			{From: "o", To: "o", Default: raw(`null`)},
			{From: "p", To: "p", Values: map[string]string{}},
			{From: "q", To: "q", Values: map[string]string{"a": "b"}, Time: &TimeFormat{}},
			{From: "r", To: "r", Default: raw(`{`)},
			{},
		},
		Compute: []Computed{{To: "x.y", Expr: `key`}, {To: "s", Expr: `nope`}, {To: "t", Expr: ` `}, {Expr: `key`}},
	}
	_, err := m.Compile()
	if err == nil {
		t.Fatal("compiled")
	}
	want := []string{
		"field x: is an object already, because of x.y",
		"field x.y: is the target of two fields",
		"field x.y.z: lies inside x.y",
		"field e..f: source name has an empty part",
		"field .g: target name has an empty part",
		"field h: has no target name",
		"field i: needs a source field, or const",
		"field j: has both default and optional",
		"field k: const stands alone",
		`field l: time.zone "New York" is unknown`,
		`field m: time.format "YYYY-MM-DD" is neither`,
		"field n: time.zone Local depends on the machine",
		"field o: default is null",
		"field p: values is an empty table",
		"field q: has both time and values",
		"field r: default is not JSON",
		"field mapping: a field needs a target name",
		"field s: the expression does not compile: unknown name nope",
		"field t: the expression is empty",
		"field compute: a computed field needs a name",
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("missing %q in\n%v", w, err)
		}
	}
	if got := strings.Count(err.Error(), "is the target of two fields"); got != 2 {
		t.Errorf("%d fields are said to have a taken target, want 2 (a field and a computed one)", got)
	}
}

func TestTimeFormats(t *testing.T) {
	const summer = "2027-07-04T23:30:15.25Z"
	ny := "America/New_York"
	tests := map[string]struct {
		format TimeFormat
		in     string
		want   string // JSON, or part of the error after "!"
	}{
		"default":               {TimeFormat{}, summer, `"2027-07-04T23:30:15Z"`},
		"offset kept":           {TimeFormat{}, "2027-07-04T23:30:15+02:00", `"2027-07-04T23:30:15+02:00"`},
		"zone":                  {TimeFormat{Zone: ny}, summer, `"2027-07-04T19:30:15-04:00"`},
		"zone, winter":          {TimeFormat{Zone: ny}, "2027-01-04T23:30:15Z", `"2027-01-04T18:30:15-05:00"`},
		"before the gap":        {TimeFormat{Zone: ny}, "2027-03-14T06:59:59Z", `"2027-03-14T01:59:59-05:00"`},
		"after the gap":         {TimeFormat{Zone: ny}, "2027-03-14T07:00:00Z", `"2027-03-14T03:00:00-04:00"`},
		"fold, first":           {TimeFormat{Zone: ny}, "2027-11-07T05:30:00Z", `"2027-11-07T01:30:00-04:00"`},
		"fold, second":          {TimeFormat{Zone: ny}, "2027-11-07T06:30:00Z", `"2027-11-07T01:30:00-05:00"`},
		"nano":                  {TimeFormat{Format: "RFC3339Nano"}, summer, `"2027-07-04T23:30:15.25Z"`},
		"date moves with zone":  {TimeFormat{Zone: "Asia/Tokyo", Format: "date"}, summer, `"2027-07-05"`},
		"date stays a date":     {TimeFormat{Zone: "Pacific/Honolulu", Format: "date"}, "2027-07-04", `"2027-07-04"`},
		"date by layout":        {TimeFormat{Zone: ny, Format: "01/02/2006"}, "2027-07-04", `"07/04/2027"`},
		"date without a time":   {TimeFormat{Format: "RFC3339"}, "2027-07-04", "!use format date"},
		"date as unix":          {TimeFormat{Format: "unix"}, "2027-07-04", "!use format date"},
		"time":                  {TimeFormat{Zone: ny, Format: "time"}, summer, `"19:30:15"`},
		"datetime":              {TimeFormat{Format: "datetime"}, summer, `"2027-07-04 23:30:15"`},
		"datetime-local":        {TimeFormat{Zone: ny, Format: "datetime-local"}, summer, `"2027-07-04T19:30:15"`},
		"basic":                 {TimeFormat{Format: "basic"}, summer, `"20270704T233015Z"`},
		"hl7":                   {TimeFormat{Zone: ny, Format: "hl7"}, summer, `"20270704193015-0400"`},
		"RFC1123":               {TimeFormat{Zone: ny, Format: "RFC1123"}, summer, `"Sun, 04 Jul 2027 19:30:15 EDT"`},
		"RFC1123Z":              {TimeFormat{Format: "RFC1123Z"}, summer, `"Sun, 04 Jul 2027 23:30:15 +0000"`},
		"unix":                  {TimeFormat{Format: "unix"}, "1970-01-01T01:00:01+01:00", `1`},
		"unix_ms":               {TimeFormat{Format: "unix_ms"}, "1970-01-01T00:00:01.5Z", `1500`},
		"layout needing quotes": {TimeFormat{Format: `"15h04"`}, summer, `"\"23h30\""`},
		"lower case":            {TimeFormat{}, "2027-07-04t23:30:15z", `"2027-07-04T23:30:15Z"`},
		"no seconds":            {TimeFormat{}, "2027-03-15T13:30Z", `"2027-03-15T13:30:00Z"`},
		"no seconds, offset":    {TimeFormat{}, "2027-03-15T13:30-05:00", `"2027-03-15T13:30:00-05:00"`},
		"offset without colon":  {TimeFormat{}, "2027-03-15T13:30:00+0530", `"2027-03-15T13:30:00+05:30"`},
		"offset of hours":       {TimeFormat{}, "2027-03-15 13:30:00.25+01", `"2027-03-15T13:30:00+01:00"`},
		"space":                 {TimeFormat{Zone: ny}, "2027-03-15 13:30:00Z", `"2027-03-15T09:30:00-04:00"`},
		"unknown local offset":  {TimeFormat{}, "2027-03-15T13:30:00-00:00", `"2027-03-15T13:30:00Z"`}, // RFC 3339, 4.3
		"local time":            {TimeFormat{}, "2027-07-04T23:30:15", "!with an offset"},
		"hour of one digit":     {TimeFormat{}, "2027-03-15T9:30:00Z", "!a space instead of T, no seconds, Z, -0500 and -05 are accepted too"},
		"comma":                 {TimeFormat{}, "2027-03-15T13:30:00,5Z", "!with an offset"},
		"offset of a day":       {TimeFormat{}, "2027-03-15T13:30:00+24:00", "!with an offset"},
		"offset of 60 minutes":  {TimeFormat{}, "2027-03-15T13:30:00+0160", "!with an offset"},
		"hour 24":               {TimeFormat{}, "2027-03-15T24:00:00Z", "!with an offset"},
		"30 February":           {TimeFormat{}, "2027-02-30T12:00:00Z", "!with an offset"},
		"day first":             {TimeFormat{}, "15-03-2027 13:30:00Z", "!with an offset"},
		"name of a zone":        {TimeFormat{}, "2027-03-15T13:30:00 EST", "!with an offset"},
		"offset after a space":  {TimeFormat{}, "2027-03-15 13:30:00 +0100", "!with an offset"},
		"no separators":         {TimeFormat{}, "20270315T133000Z", "!with an offset"},
		"empty":                 {TimeFormat{}, "", "!with an offset"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := compile(t, Mapping{Fields: []Field{{From: "t", To: "t", Time: &tt.format}}})
			got, err := m.Map(outbox.Event{Payload: raw(`{"t":"` + tt.in + `"}`)}, Sending{}, nil)
			if part, ok := strings.CutPrefix(tt.want, "!"); ok {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Fatalf("got %s, %v; want an error with %q", got, err, part)
				}
				return
			}
			if err != nil || string(got) != `{"t":`+tt.want+`}` {
				t.Errorf("got %s, %v; want %s", got, err, tt.want)
			}
		})
	}
	for _, name := range TimeFormats() {
		if _, err := (TimeFormat{Format: name}).compile(); err != nil {
			t.Errorf("listed format: %v", err)
		}
	}
}

func TestLayoutsShowADateOrATime(t *testing.T) {
	for layout, want := range map[string]string{
		"02.01.2006":          "",
		"Jan _2 06":           "",
		"2006-002":            "",
		"20060102":            "",
		"15:04":               "",
		"3:04 PM":             "",
		"1504":                "",
		"Mon 2 Jan 2006, 3pm": "",
		"ISO8601":             "; the form of ISO 8601 is RFC3339",
		"iso":                 "; the form of ISO 8601 is RFC3339",
		"rfc3339":             "is neither", // it would be sent as it is
		"2006-01":             "year, month and day, or hour and minute",
		"02.01.":              "year, month and day",
		"Monday":              "year, month and day",
		"15h":                 "hour and minute",
		"03:04":               "hour and minute", // half of the day is missing
		"":                    "",
	} {
		_, err := (TimeFormat{Format: layout}).compile()
		if got := fmt.Sprint(err); (err == nil) != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q: got %s, want %q", layout, got, want)
		}
	}
}

// The machine's zone must not show: neither in an abbreviation nor otherwise.
func TestTimeIgnoresTheMachine(t *testing.T) {
	ny, err := loadZone("America/New_York")
	if err != nil {
		t.Fatal(err)
	}
	m := compile(t, Mapping{
		Fields:  []Field{{From: "t", To: "a", Time: &TimeFormat{Format: "15:04 MST"}}},
		Compute: []Computed{{To: "b", Expr: `(date(event.t) + duration("5000h")).Format("15:04 MST")`}},
	})
	ev := outbox.Event{Payload: raw(`{"t":"2027-07-04T19:30:15-04:00"}`)}
	utc, err := m.Map(ev, Sending{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func(l *time.Location) { time.Local = l }(time.Local)
	time.Local = ny
	local, err := m.Map(ev, Sending{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(utc, local) {
		t.Errorf("elsewhere %s, in New York %s", utc, local)
	}
}

func TestVersion(t *testing.T) {
	base := compile(t, courtMapping()).Version()
	if base != compile(t, courtMapping()).Version() {
		t.Error("two versions of one mapping")
	}
	if len(base) != 12 || strings.Trim(base, "0123456789abcdef") != "" {
		t.Errorf("version %q is not 12 hex digits", base)
	}
	changes := map[string]func(*Mapping){
		"renamed":    func(m *Mapping) { m.Fields[0].To = "ref" },
		"reordered":  func(m *Mapping) { m.Fields[0], m.Fields[1] = m.Fields[1], m.Fields[0] },
		"table":      func(m *Mapping) { m.Fields[2].Values["3A"] = "X" },
		"default":    func(m *Mapping) { m.Fields[2].Default = raw(`"?"`) },
		"optional":   func(m *Mapping) { m.Fields[3].Optional = false },
		"zone":       func(m *Mapping) { m.Fields[1].Time.Zone = "UTC" },
		"expression": func(m *Mapping) { m.Compute[0].Expr = "key" },
		"emptied":    func(m *Mapping) { *m = Mapping{} },
	}
	for name, change := range changes {
		m := courtMapping()
		change(&m)
		if compile(t, m).Version() == base {
			t.Errorf("%s: same version", name)
		}
	}
	spaced := courtMapping()
	spaced.Fields[2].Default = raw(` "TBD" `)
	if compile(t, spaced).Version() != base {
		t.Error("space in a default changes the version")
	}
}

// A result must not share memory with the mapper's scratch space.
func TestMapResultsAreIndependent(t *testing.T) {
	m := compile(t, renames())
	first, err := m.Map(outbox.Event{Payload: raw(courtPayload)}, Sending{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := string(first)
	if _, err := m.Map(outbox.Event{Payload: raw(`{"hearingId":"other","scheduledAt":"other","location":"other"}`)}, Sending{}, nil); err != nil {
		t.Fatal(err)
	}
	if string(first) != before {
		t.Errorf("the first result became %s", first)
	}
}

func TestMapAllocations(t *testing.T) {
	m := compile(t, renames())
	ev := outbox.Event{Payload: raw(courtPayload)}
	got := testing.AllocsPerRun(100, func() {
		if _, err := m.Map(ev, Sending{}, nil); err != nil {
			t.Fatal(err)
		}
	})
	if got > 2 {
		t.Errorf("plain renames take %v allocations, want at most 2", got)
	}
}

func FuzzMap(f *testing.F) {
	for _, seed := range []string{
		courtPayload, `{}`, `[]`, `{"a":{"b":[1.50,{"c":null}]},"n":-0.0e5,"t":"2027-01-01"}`,
		`{"a":"x","n":"3","l":[1,2,3]}`, `{"a":{"b":9007199254740993}}`, "{\"a\":\"\\ud800\"}", `{"a":{"a":1},"a":2}`,
	} {
		f.Add([]byte(seed))
	}
	mappers := []*Mapper{
		compile(f, Mapping{}),
		compile(f, courtMapping()),
		compile(f, Mapping{
			Fields: []Field{
				{From: "a", To: "o.a", Optional: true},
				{From: "a.b", To: "o.b", Optional: true},
				{From: "n", To: "n", Values: map[string]string{"3": "three"}, Default: raw(`1.0`)},
				{From: "t", To: "t", Time: &TimeFormat{Zone: "Europe/London", Format: "date"}, Optional: true},
			},
			Compute: []Computed{
				{To: "all", Expr: `event`},
				{To: "some", Expr: `map(event?.l ?? [], # + 1)`},
				{To: "c", Expr: `event.n in [1, 2] ? event.n : string(event.n ?? "")`},
			},
		}),
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		for i, m := range mappers {
			got, err := m.Map(outbox.Event{Payload: payload, Key: "k", Type: "t"}, Sending{}, nil)
			if err != nil {
				if _, ok := errors.AsType[*FieldError](err); !ok {
					t.Fatalf("mapper %d: %T %v", i, err, err)
				}
				continue
			}
			if !json.Valid(got) {
				t.Fatalf("mapper %d: not JSON: %s", i, got)
			}
			if i == 0 {
				var want bytes.Buffer
				if err := json.Compact(&want, payload); err != nil || want.String() != string(got) {
					t.Fatalf("passed %s on as %s", payload, got)
				}
			}
			if i == 2 {
				sameDigits(t, payload, got)
			}
		}
	})
}

// sameDigits compares what was carried over with what encoding/json reads.
func sameDigits(t *testing.T, payload, got []byte) {
	t.Helper()
	in, out := decodeExact(t, payload), decodeExact(t, got)
	want, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	have, err := json.Marshal(out["all"])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, have) {
		t.Fatalf("event %s came out as %s", want, have)
	}
	o, _ := out["o"].(map[string]any)
	a, err := json.Marshal(in["a"])
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(o["a"])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Fatalf("a %s came out as %s", a, b)
	}
}

func decodeExact(t *testing.T, b []byte) map[string]any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

func BenchmarkMap(b *testing.B) {
	for name, m := range map[string]Mapping{
		"renames": renames(), "example": courtMapping(), "pass-through": {},
		"renames and a time": {Fields: courtMapping().Fields}, "expression": {Compute: courtMapping().Compute},
	} {
		b.Run(name, func(b *testing.B) {
			mapper := compile(b, m)
			ev := outbox.Event{Payload: raw(courtPayload), Key: "H-1", Type: "scheduling:created"}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := mapper.Map(ev, Sending{}, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package mapping

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hms-mkt/lockstep/outbox"
)

const fuzzedName = "zq9x7kw" // is in payloads, and must not come out in errors

// FuzzMapping compiles any mapping and filter, and maps any payload with it:
// the same bytes each time, one JSON object, digits as they were, within a
// bound, or an error that names a field and no value.
func FuzzMapping(f *testing.F) {
	for _, seed := range []struct{ mapping, when, payload string }{
		{`{}`, ``, `{"a": 1.50, "b": [1e400, -0.0]}`},
		{`{"fields":[{"from":"a.b","to":"x.y"},{"from":"a","to":"z","optional":true}]}`, `event.a != nil`, `{"a":{"b":12345678901234567890},"a":{"b":0.10}}`},
		{`{"fields":[{"from":"t","to":"t","time":{"zone":"America/New_York","format":"RFC1123"}},{"from":"d","to":"d","time":{"format":"date"}}]}`, `type == "t"`, `{"t":"2027-03-14T07:30:00.5Z","d":"2027-02-29"}`},
		{`{"fields":[{"from":"t","to":"u","time":{"format":"unix_ms"}}]}`, ``, `{"t":"9999-12-31T23:59:60+23:59"}`},
		{`{"fields":[{"from":"v","to":"v","values":{"3A":"ROOM","3":"\u2028"},"default":{"n":[1.0,2]}},{"to":"c","const":[" ",null]}]}`, `version > 3 or headers.tenant == "x"`, `{"v":3}`},
		{`{"fields":[{"from":"a.b.c","to":"a","optional":true},{"from":"a.b","to":"b","default":"x"}]}`, ``, `{"a":{"b":"zq9x7kw"}}`},
		{`{"compute":[{"to":"x.y","expr":"event.a + 1"},{"to":"z","expr":"\"Hearing \" + event.b"}]}`, `event.a`, `{"a":"zq9x7kw","b":7}`},
		{`{"compute":[{"to":"t","expr":"date(event.t).In(timezone(event.z)).Format(event.f)"}]}`, `date(event.t).Year() > 2026`, `{"t":"2027-03-01","z":"zq9x7kw","f":"15:04 MST"}`},
		{`{"compute":[{"to":"m","expr":"map(1..event.n, repeat(event.s, #))"}]}`, `all(event.l, # > 1)`, `{"n":3,"s":"zq9x7kw","l":[2,"zq9x7kw"]}`},
		{`{"compute":[{"to":"m","expr":"reduce(1..30, #acc + #acc, event.s)"}]}`, `event.s matches event.p`, `{"s":"zq9x7kw","p":"(zq9x7kw"}`},
		{`{"compute":[{"to":"g","expr":"groupBy(event.l, #.k)"},{"to":"s","expr":"string(event)"},{"to":"j","expr":"toJSON(event.l)"}]}`, `"k" in event`, `{"l":[{"k":"b"},{"k":"a"}]}`},
		{`{"compute":[{"to":"s","expr":"let x = event.l; sortBy(x, #) | map(# / 0)"},{"to":"f","expr":"flatten([x, [event]])"}]}`, `sum(event.l) % 2 == 0`, `{"l":[3,1e308,-9223372036854775808]}`},
		{`{"compute":[{"to":"s","expr":"split(event.s, event.d) | join(event.d)"},{"to":"i","expr":"event.s[event.n:]"}]}`, `event?.x?.y ?? false`, `{"s":"zq9x7kw","d":"","n":-100}`},
		{`{"fields":[{"from":"","to":""},{"from":"a..b","to":".c"},{"from":"a","to":"a"},{"from":"a","to":"a.b"}],"compute":[{"to":"a","expr":"now()"}]}`, `$env`, `[]`},
		{`{"fields":[{"from":"é\u0000","to":"\ud800"}]}`, `event["é\u0000"] == 1`, `{"é\u0000":"\ud800\u0000"}`},
		{`{"compute":[{"to":"u","expr":"uniq(concat(event.l, event.m)) == event.l"},{"to":"z","expr":"date(\"2027-03-01\").In(timezone(event.z))"}]}`, `event.l in event.m or trim(event.z, event.z) == ""`, `{"l":[1,1.0,{"a":[null]}],"m":[[1,1.0,{"a":[null]}]],"z":"UTC"}`},
		{`{"compute":[{"to":"f","expr":"string(date(event.t).Year)"}]}`, ``, `{"t":"2027-03-01"}`},
	} {
		f.Add([]byte(seed.mapping), seed.when, []byte(seed.payload))
	}
	f.Fuzz(func(t *testing.T, mapping []byte, when string, payload []byte) {
		var m Mapping
		if len(mapping) > 16<<10 || len(payload) > 64<<10 || json.Unmarshal(mapping, &m) != nil {
			return
		}
		began := time.Now()
		mapper, err := m.Compile()
		ev := outbox.Event{Payload: payload, Key: "k", Type: "t", Version: new(int64(4)), Headers: map[string]string{"tenant": "x"}}
		ours := !bytes.Contains(mapping, []byte(fuzzedName)) && !strings.Contains(when, fuzzedName)
		judge := func(err error) {
			t.Helper()
			if _, ok := errors.AsType[*FieldError](err); !ok {
				t.Errorf("%T %v", err, err)
			}
			if ours && strings.Contains(err.Error(), fuzzedName) {
				t.Errorf("the error shows a value: %v", err)
			}
		}
		if filter, err := CompileFilter(when); err == nil {
			first, err := filter.Match(ev, nil)
			second, again := filter.Match(ev, nil)
			if first != second || (err == nil) != (again == nil) {
				t.Errorf("%q gave %v, %v and then %v, %v", when, first, err, second, again)
			}
			if err != nil {
				judge(err)
			}
		}
		if err == nil {
			first, err := mapper.Map(ev, Sending{}, nil)
			second, again := mapper.Map(ev, Sending{}, nil)
			if !bytes.Equal(first, second) || (err == nil) != (again == nil) {
				t.Errorf("mapped to %q, %v and then to %q, %v", first, err, second, again)
			}
			if err != nil {
				judge(err)
			} else {
				checkMapped(t, m, payload, first)
			}
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

func checkMapped(t *testing.T, m Mapping, payload, out []byte) {
	t.Helper()
	// Expressions are bounded by what they make, which JSON escapes sixfold.
	most := len(payload)*(len(m.Fields)+1) + len(m.Compute)*6*(maxBytes+madePerByte*len(payload))
	for _, f := range m.Fields {
		most += 6*len(f.To) + len(f.Default) + len(f.Const) + 100
		for _, to := range f.Values {
			most += 6 * len(to)
		}
		if f.Time != nil {
			most += 40 * len(f.Time.Format)
		}
	}
	for _, c := range m.Compute {
		most += 6*len(c.To) + 8
	}
	if len(out) > most+2 {
		t.Errorf("%d bytes of payload became %d", len(payload), len(out))
	}
	if !utf8.Valid(out) || !json.Valid(out) {
		t.Fatalf("not JSON: %q", out)
	}
	got := decodeExact(t, out)
	if got == nil {
		t.Fatalf("not an object: %s", out)
	}
	for _, f := range m.Fields {
		if f.Time != nil || f.Values != nil || f.Const != nil || strings.Contains(f.From+f.To, ".") {
			continue
		}
		if want, ok := decodeExact(t, payload)[f.From]; ok && want != nil && !reflect.DeepEqual(want, got[f.To]) {
			t.Errorf("%s is %v in the payload, and went out as %v", f.From, want, got[f.To])
		}
	}
}
